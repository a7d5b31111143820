"""What the Codex CLI has to be told: a config.toml that sends it here, and a catalog of Cerebras' models.

Tried with the versions 0.42.0 and 0.169.0. Codex knows OpenAI's own models: without a catalog, the newer versions do
not know how long the context of another is, and offer it no tool for patches.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cbatch.catalog import ModelCard

PROVIDER = "cbatch"  # any but openai, ollama and lmstudio, which Codex has itself
CLIENT_KEY = "CBATCH_CLIENT_KEY"  # the variable that Codex takes the key from, where the gateway wants one
COMPACT_AT = 0.8  # of the context: the older versions compact a model they do not know only when they are told when

_EFFORTS = {
    "none": "Answers at once",
    "low": "Thinks briefly",
    "medium": "Thinks as long as most tasks need",
    "high": "Thinks longest, for hard tasks",
}


def config_toml(
    base_url: str, model: str, catalog_path: Path | None, client_key: bool, context_tokens: int | None
) -> str:
    """The text of a config.toml. `base_url` ends in /v1; `client_key`: the gateway wants a key from its clients.

    `context_tokens` is the context of `model`, None where it is unknown.
    """
    lines = [
        "# Codex CLI through `cbatch serve`: $CODEX_HOME/config.toml, which is ~/.codex/config.toml",
        f"model = {_toml(model)}",
        f"model_provider = {_toml(PROVIDER)}",
        # What is asked for anyway, but 0.169 would show "none". A model that knows no effort is asked without one.
        'model_reasoning_effort = "medium"  # or low, high',
    ]
    if context_tokens is not None:
        lines.append(f"model_context_window = {context_tokens}")
        lines.append(f"model_auto_compact_token_limit = {int(context_tokens * COMPACT_AT)}")
    if catalog_path is not None:  # read by 0.142 and later; the others go without
        lines.append(f"model_catalog_json = {_toml(str(catalog_path))}")
    lines += [
        'web_search = "disabled"  # it would run at OpenAI',
        "",
        f"[model_providers.{PROVIDER}]",
        # Named OpenAI, Codex would expect what only OpenAI has: compaction on the server, compressed requests.
        'name = "Cerebras via cbatch"',
        f"base_url = {_toml(base_url)}",
        'wire_api = "responses"  # the default of newer versions; 0.42 must be told',
    ]
    if client_key:
        lines.append(f"env_key = {_toml(CLIENT_KEY)}  # export {CLIENT_KEY}=…, the key of `cbatch serve --client-key`")
    return "\n".join(lines) + "\n"


def model_catalog(models: Iterable[ModelCard]) -> dict[str, Any]:
    """What `model_catalog_json` names, with these models in this order."""
    instructions = Path(__file__).with_name("codex_instructions.md").read_text("utf-8")
    return {"models": [_entry(card, position, instructions) for position, card in enumerate(models, 1)]}


def _entry(card: ModelCard, position: int, instructions: str) -> dict[str, Any]:
    efforts = [effort for effort in card.efforts or () if effort in _EFFORTS]
    default = "medium" if "medium" in efforts else efforts[-1] if efforts else None
    return {
        "slug": card.id,
        "display_name": f"{card.id} (Cerebras)",
        "description": "Served by Cerebras, through cbatch",
        "default_reasoning_level": default,
        "supported_reasoning_levels": [{"effort": effort, "description": _EFFORTS[effort]} for effort in efforts],
        "shell_type": "unified_exec",
        "visibility": "list",
        "supported_in_api": True,
        "priority": position,
        "additional_speed_tiers": [],
        "service_tiers": [],
        "availability_nux": None,
        "upgrade": None,
        "base_instructions": instructions,
        "model_messages": None,
        "supports_reasoning_summaries": bool(efforts),
        "default_reasoning_summary": "auto",
        "support_verbosity": False,
        "default_verbosity": None,
        "apply_patch_tool_type": "freeform",  # or none at all: Codex takes no other
        "web_search_tool_type": "text",
        "truncation_policy": {"mode": "tokens", "limit": 10_000},
        "supports_parallel_tool_calls": True,
        "context_window": card.context_tokens,
        "max_context_window": card.context_tokens,
        "effective_context_window_percent": 95,
        "experimental_supported_tools": [],
        "input_modalities": ["text", "image"] if card.vision else ["text"],
        "supports_search_tool": False,  # or MCP tools hide behind a search
    }


def _toml(text: str) -> str:
    """A TOML string: JSON's, but for one control character that JSON leaves as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
