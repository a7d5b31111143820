"""What Codex is told: a config.toml and a catalog of models that the versions 0.42.0 to 0.169.0 take."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbatch import catalog
from cbatch.gateway import codex
from cbatch.gateway.codex import config_toml, model_catalog

URL = "http://127.0.0.1:8787/v1"
CARD = catalog.packaged_catalog().cards["gpt-oss-120b"]


def config(**changed: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "base_url": URL,
        "model": "gpt-oss-120b",
        "catalog_path": Path("/home/me/catalog.json"),
        "client_key": False,
        "context_tokens": 131_072,
    }
    return tomllib.loads(config_toml(**(given | changed)))


def entries() -> dict[str, dict[str, Any]]:
    return {entry["slug"]: entry for entry in model_catalog(catalog.load()[0].values())["models"]}


def test_the_config_sends_codex_here_over_the_responses_api() -> None:
    """Nothing that is not needed: a key that one version does not know is a warning (include_apply_patch_tool).

    `wire_api` is said because 0.42.0 would speak chat completions; the effort because 0.169.0 shows "none"
    otherwise; no env_key, or Codex wants the variable.
    """
    assert config() == {
        "model": "gpt-oss-120b",
        "model_provider": "cbatch",
        "model_reasoning_effort": "medium",
        "model_context_window": 131_072,
        "model_auto_compact_token_limit": 104_857,
        "model_catalog_json": "/home/me/catalog.json",
        "web_search": "disabled",
        "model_providers": {
            "cbatch": {"name": "Cerebras via cbatch", "base_url": URL, "wire_api": "responses"},
        },
    }


def test_a_gateway_that_wants_a_key_has_codex_send_it_from_the_environment() -> None:
    """The key itself stands in no file."""
    provider = config(client_key=True)["model_providers"]["cbatch"]
    assert provider["env_key"] == "CBATCH_CLIENT_KEY"


def test_what_is_not_known_is_not_said() -> None:
    found = config(catalog_path=None, context_tokens=None)
    assert not {"model_context_window", "model_auto_compact_token_limit", "model_catalog_json"} & found.keys()


def test_the_provider_is_not_one_that_codex_treats_as_its_own() -> None:
    """Named OpenAI, it compacts on the server and compresses requests; these ids it has itself."""
    found = config()
    assert found["model_provider"] not in ("openai", "ollama", "lmstudio")
    assert found["model_providers"][found["model_provider"]]["name"] != "OpenAI"


@given(
    path=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).map(Path),
    model=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
)
def test_any_path_and_any_model_is_valid_toml(path: Path, model: str) -> None:
    found = config(catalog_path=path, model=model)
    assert found["model_catalog_json"] == str(path)
    assert found["model"] == model


def test_every_model_of_the_catalog_is_there_with_its_context_and_its_reasoning() -> None:
    found = entries()
    cards = catalog.load()[0]
    assert list(found) == list(cards)
    for name, card in cards.items():
        entry = found[name]
        assert entry["context_window"] == entry["max_context_window"] == card.context_tokens
        levels = [level["effort"] for level in entry["supported_reasoning_levels"]]
        assert levels == list(card.efforts or ())
        assert entry["default_reasoning_level"] in levels
        assert entry["input_modalities"] == (["text", "image"] if card.vision else ["text"])
    assert found["gpt-oss-120b"]["default_reasoning_level"] == "medium"
    assert [entry["priority"] for entry in found.values()] == list(range(1, len(cards) + 1))


def test_a_model_whose_reasoning_is_unknown_gets_no_levels() -> None:
    """A model that `cbatch models --refresh` found; Codex 0.169.0 takes it and sends no effort."""
    (entry,) = model_catalog([replace(CARD, efforts=None)])["models"]
    assert entry["supported_reasoning_levels"] == []
    assert entry["default_reasoning_level"] is None
    assert entry["supports_reasoning_summaries"] is False


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param("apply_patch_tool_type", "freeform", id="`function` stops Codex at its start"),
        pytest.param("supports_search_tool", False, id="true hides MCP tools behind a search"),
        pytest.param("shell_type", "unified_exec", id="the shell tool that 0.98 and later offer"),
        pytest.param("visibility", "list", id="it can be chosen with /model"),
    ],
)
def test_what_breaks_codex_where_it_is_otherwise(key: str, value: object) -> None:
    assert {entry[key] for entry in entries().values()} == {value}


def test_every_field_that_codex_needs_is_there() -> None:
    """The keys of an entry that 0.142.5 and 0.169.0 were seen to read; one that is missing stops Codex."""
    needed = {
        "slug", "display_name", "description", "default_reasoning_level", "supported_reasoning_levels", "shell_type",
        "visibility", "supported_in_api", "priority", "additional_speed_tiers", "service_tiers", "availability_nux",
        "upgrade", "base_instructions", "model_messages", "supports_reasoning_summaries",
        "default_reasoning_summary", "support_verbosity", "default_verbosity", "apply_patch_tool_type",
        "web_search_tool_type", "truncation_policy", "supports_parallel_tool_calls", "context_window",
        "max_context_window", "effective_context_window_percent", "experimental_supported_tools",
        "input_modalities", "supports_search_tool",
    }  # fmt: skip
    for entry in json.loads(json.dumps(model_catalog([CARD])))["models"]:
        assert entry.keys() == needed


def test_the_instructions_are_a_prompt_to_work_with() -> None:
    """They take the place of Codex's own: without the patch format and the shell, nothing gets done."""
    text = model_catalog([CARD])["models"][0]["base_instructions"]
    assert 60 <= len(text.splitlines()) <= 120
    for word in ("apply_patch", "*** Begin Patch", "*** Update File:", "*** End Patch", "update_plan", "exec_command"):
        assert word in text, word
    assert text == Path(codex.__file__).with_name("codex_instructions.md").read_text("utf-8")
