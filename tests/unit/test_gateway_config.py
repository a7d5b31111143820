"""The gateway's file: what it means for a request, what is wrong with it, and how it changes meanwhile."""

from __future__ import annotations

import os
import textwrap
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbatch.errors import JobError
from cbatch.gateway import config
from cbatch.gateway.config import RouteError, Settings, Watched, parse

PATH = Path("gateway.yaml")
OPENAI = "providers:\n  openai: {mode: responses, base_url: https://api.openai.com/v1, key_env: OPENAI_API_KEY}\n"


def refused(text: str) -> str:
    """The message and the hint, as a user reads them."""
    with pytest.raises(JobError) as caught:
        parse(text, PATH)
    return str(caught.value) + (f"\nhint: {caught.value.hint}" if caught.value.hint else "")


def went(settings: Settings, model: str, provider: str | None = None) -> tuple[str, str]:
    route = settings.route(model, provider)
    return route.provider.name, route.model


def test_the_example_in_the_description_is_accepted_and_is_the_defaults() -> None:
    """Whoever copies it gets what it says."""
    example = textwrap.dedent((config.__doc__ or "").split("\n\n", 1)[1])
    found = parse(example, PATH)
    assert found.providers["openai"].mode == "responses"
    assert found.providers["openai"].key_env == "OPENAI_API_KEY"
    assert found.limits.tpm == 1_000_000
    nothing = parse("{}", PATH)
    assert nothing == Settings()
    for key in ("provider", "default_model", "max_completion_tokens", "retry", "concurrency", "log"):
        assert getattr(found, key) == getattr(nothing, key), key


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("\n# nothing\n", "gateway.yaml: the file is empty\nhint: write {} for the defaults", id="empty"),
        pytest.param(
            "zzz: 1", "gateway.yaml:1: zzz: unknown key\nhint: accepted here: provider, providers, ", id="key"
        ),
        pytest.param(
            "log:\n  max_totl: 1GB",
            "gateway.yaml:2: log.max_totl: unknown key\nhint: accepted here: max_exchange, max_total",
            id="a key of a section",
        ),
        pytest.param(
            "retry: {hedge: 1%}",
            "gateway.yaml:1: retry.hedge: unknown key\nhint: accepted here: attempts, max_wait_s",
            id="a key that only job.yaml has",
        ),
        pytest.param(
            "limits:\n  concurrency: 5",
            "gateway.yaml:2: limits.concurrency: a key of its own here; write `concurrency: N` outside of limits",
            id="concurrency as in job.yaml",
        ),
        pytest.param("limits: {rpm: -1}", "gateway.yaml:1: limits.rpm: read -1; accepted: 1 or more", id="a limit"),
        pytest.param("concurrency: 0", "gateway.yaml:1: concurrency: read 0; accepted: 1 or more", id="a bound"),
        pytest.param(
            "provider: lab", 'gateway.yaml:1: provider: read "lab"; accepted: cerebras', id="an unknown default"
        ),
        pytest.param(
            "providers:\n  lab: {mode: translate}",
            "gateway.yaml:2: providers.lab: base_url is missing",
            id="no address",
        ),
        pytest.param(
            "providers:\n  lab:\n    mode: chat\n    base_url: http://h",
            'gateway.yaml:3: providers.lab.mode: read "chat"; accepted: translate, responses',
            id="a mode",
        ),
        pytest.param(
            "providers:\n  lab: {base_url: 'ftp://h'}",
            "gateway.yaml:2: providers.lab.base_url: 'ftp://h' is not a http:// or https:// URL",
            id="an address",
        ),
        pytest.param(
            "providers:\n  my lab: {base_url: 'http://h'}",
            "gateway.yaml:2: providers.my lab: read 'my lab'; accepted: a name of letters",
            id="a name that cannot stand in a header",
        ),
        pytest.param(
            "models:\n  'gpt-*': 5",
            "gateway.yaml:2: models.gpt-*: read 5; accepted: a model's name, or {provider: …, model: …}",
            id="a model that is a number",
        ),
        pytest.param(
            "models:\n  'gpt-*': {}",
            "gateway.yaml:2: models.gpt-*: says neither a model nor a provider",
            id="no target",
        ),
        pytest.param(
            OPENAI + "models:\n  a:\n    provider: opnai",
            'gateway.yaml:5: models.a.provider: read "opnai"; accepted: cerebras, openai',
            id="a model's unknown provider",
        ),
        pytest.param(
            "log: {max_exchange: 2 XB}",
            "gateway.yaml:1: log.max_exchange: not a size; accepted: 500KB, 2MB, 1GB, or a number of bytes",
            id="a size",
        ),
        pytest.param(
            "log:\n  max_exchange: 2MB\n  max_total: 3MB",
            "gateway.yaml:3: log.max_total: 3,000,000 bytes are less than 8 x max_exchange",
            id="a log without room",
        ),
        pytest.param("models: [a]", 'gateway.yaml:1: models: read ["a"]; accepted: a mapping of keys', id="a list"),
        pytest.param("provider: [", "gateway.yaml:1: not valid YAML", id="no YAML"),
    ],
)
def test_what_is_wrong_is_told_with_line_key_and_what_is_accepted(text: str, said: str) -> None:
    assert refused(text).startswith(said)


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("key_env: csk-0123456789abcdef", id="where the variable's name belongs"),
        pytest.param("key_env: [csk-0123456789abcdef]", id="in a list"),
        pytest.param("api_key: csk-0123456789abcdef", id="under a key that is not accepted"),
        pytest.param("base_url: https://me:csk-0123456789abcdef@host", id="in the address"),
    ],
)
def test_a_key_that_somebody_wrote_into_the_file_is_not_printed(line: str) -> None:
    said = refused(f"providers:\n  lab:\n    {line}\n")
    assert said.startswith("gateway.yaml:3: providers.lab.")
    assert "0123456789" not in said


def test_without_a_file_every_default_model_of_codex_is_served_by_cerebras() -> None:
    """gpt-5-codex is the default of 0.42.0, gpt-5.5 and gpt-6-* of the newest."""
    for model in ("gpt-5-codex", "gpt-5", "gpt-5.5", "gpt-5.6-sol", "gpt-6-mini", "codex-mini-latest", "o4-mini", "o3"):
        assert went(Settings(), model) == ("cerebras", "gpt-oss-120b"), model
    for model in ("gpt-oss-120b", "qwen-3.8-27b", "made-up"):
        assert went(Settings(), model) == ("cerebras", model)


def test_the_first_line_of_models_that_matches_wins() -> None:
    settings = parse("models: {gpt-5-mini: gemma-4-31b, 'gpt-5*': gpt-oss-120b, 'GPT-?': zai-glm-4.7}", PATH)
    assert went(settings, "gpt-5-mini")[1] == "gemma-4-31b"
    assert went(settings, "gpt-5-mini-x")[1] == "gpt-oss-120b"
    assert went(settings, "GPT-5")[1] == "zai-glm-4.7"
    assert went(settings, "GPT-55")[1] == "GPT-55"
    assert went(settings, "o3")[1] == "o3", "models that are given replace the built-in ones"


def test_a_line_of_models_may_send_a_model_elsewhere_and_keep_its_name() -> None:
    settings = parse(OPENAI + "models: {'gpt-5*': {provider: openai}, fast: {provider: openai, model: gpt-5.1}}", PATH)
    assert went(settings, "gpt-5.5") == ("openai", "gpt-5.5")
    assert went(settings, "fast") == ("openai", "gpt-5.1")
    assert went(settings, "other") == ("cerebras", "other")


def test_what_the_request_asks_for_wins_and_keeps_its_own_model_names() -> None:
    """A request for OpenAI itself must not ask OpenAI for a model of Cerebras."""
    settings = parse(OPENAI, PATH)
    assert went(settings, "gpt-5.5", "openai") == ("openai", "gpt-5.5")
    assert went(settings, "gpt-5.5", " cerebras ") == ("cerebras", "gpt-oss-120b")
    assert went(settings, "gpt-5.5", "") == ("cerebras", "gpt-oss-120b")
    settings = parse(OPENAI + "models: {'gpt-*': gpt-oss-120b, 'gpt-5*': {provider: openai, model: gpt-5.1}}", PATH)
    assert went(settings, "gpt-5.5") == ("cerebras", "gpt-oss-120b")
    assert went(settings, "gpt-5.5", "openai") == ("openai", "gpt-5.1")


def test_another_default_provider_gets_the_names_as_they_are() -> None:
    """`provider: openai` switches everything over: the built-in names are Cerebras' alone."""
    settings = parse("provider: openai\n" + OPENAI, PATH)
    assert went(settings, "gpt-5.5") == ("openai", "gpt-5.5")
    assert went(settings, "gpt-5.5", "cerebras") == ("cerebras", "gpt-oss-120b")


def test_the_default_model_takes_what_nobody_knows() -> None:
    settings = parse(OPENAI + "default_model: gpt-oss-120b", PATH)
    assert went(settings, "made-up") == ("cerebras", "gpt-oss-120b")
    assert went(settings, "qwen-3.8-27b") == ("cerebras", "qwen-3.8-27b")
    assert went(settings, "made-up", "openai") == ("openai", "made-up")


def test_an_unknown_provider_is_refused_with_those_there_are() -> None:
    with pytest.raises(RouteError, match="there is no provider 'opnai'; accepted: cerebras, openai"):
        parse(OPENAI, PATH).route("m", "opnai")


@given(
    model=st.text(max_size=20),
    asked=st.sampled_from([None, "cerebras", "openai"]),
    patterns=st.dictionaries(
        st.text(st.characters(codec="ascii", categories=["L", "N"], include_characters="*?-"), min_size=1),
        st.sampled_from(["'a'", "{provider: openai}", "{provider: openai, model: b}"]),
        max_size=4,
    ),
)
def test_every_model_goes_somewhere_and_never_to_another_provider_than_was_asked_for(
    model: str, asked: str | None, patterns: dict[str, str]
) -> None:
    lines = "".join(f"  '{pattern}': {target}\n" for pattern, target in patterns.items())
    settings = parse(OPENAI + (f"models:\n{lines}" if lines else ""), PATH)
    route = settings.route(model, asked)
    assert route == settings.route(model, asked)
    assert asked in (None, route.provider.name)


def test_the_built_in_provider_may_be_given_another_address() -> None:
    settings = parse("providers: {cerebras: {base_url: http://127.0.0.1:9000}}", PATH)
    assert settings.providers["cerebras"].base_url == "http://127.0.0.1:9000/v1"


class Clock:
    """12:00:01, 12:00:02, … at each look."""

    def __init__(self) -> None:
        self.second = 0

    def __call__(self) -> datetime:
        self.second += 1
        return datetime(2026, 11, 20, 12, 0, self.second, tzinfo=UTC)


def watched(path: Path) -> tuple[Watched, list[str]]:
    said: list[str] = []
    return Watched(path, said.append, Clock()), said


def test_a_changed_file_is_in_force_with_the_next_request_and_told_once(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text("models: {a: one}\n")
    watch, said = watched(path)
    assert went(watch.current(), "a") == ("cerebras", "one")
    path.write_text("models: {a: two}\n")  # of the same size, and written in the same moment
    assert went(watch.current(), "a") == ("cerebras", "two")
    assert went(watch.current(), "a") == ("cerebras", "two")
    assert said == [f"{path}: read again at 12:00:02: new settings from the next request on"]


def test_a_bad_version_is_told_once_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text("models: {a: one}\n")
    watch, said = watched(path)
    path.write_text("models:\n  a: 5\n")
    for _ in range(3):
        assert went(watch.current(), "a") == ("cerebras", "one")
    assert len(said) == 1
    assert said[0].startswith(f"{path}:2: models.a: read 5; accepted: ")
    assert said[0].endswith("; still using the settings read at 12:00:01")
    path.write_text("models:\n  a: 6\n")
    watch.current()
    assert len(said) == 2, "another bad version is news"
    path.write_text("models: {a: one}\n")
    assert went(watch.current(), "a") == ("cerebras", "one")
    assert said[2:] == [f"{path}: read again at 12:00:02: as before"]


def test_a_file_that_vanishes_is_told_once_and_missed_until_it_is_back(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text("models: {a: one}\n")
    watch, said = watched(path)
    path.unlink()
    for _ in range(3):
        assert went(watch.current(), "a") == ("cerebras", "one")
    assert len(said) == 1
    assert "no such file" in said[0]
    path.write_text("models: {a: two}\n")
    assert went(watch.current(), "a") == ("cerebras", "two")


def test_a_file_that_became_a_folder_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text("models: {a: one}\n")
    watch, said = watched(path)
    path.unlink()
    path.mkdir()
    for _ in range(3):
        assert went(watch.current(), "a") == ("cerebras", "one")
    assert len(said) == 1
    assert "not a file" in said[0]


def test_a_change_that_the_file_system_does_not_show_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same size, within one tick of its clock: a young file is read again for every request."""
    path = tmp_path / "gateway.yaml"
    path.write_text("models: {a: one}\n")
    stamp = config._stamp(path)
    monkeypatch.setattr(config, "_stamp", lambda path: stamp)
    watch, _ = watched(path)
    path.write_text("models: {a: two}\n")
    assert went(watch.current(), "a") == ("cerebras", "two")


def test_an_emptied_file_is_no_order_to_use_the_defaults(tmp_path: Path) -> None:
    """Editors empty a file before they write it: a request in between must not go elsewhere."""
    path = tmp_path / "gateway.yaml"
    path.write_text("provider: openai\n" + OPENAI)
    watch, _ = watched(path)
    path.write_text("")
    assert went(watch.current(), "a") == ("openai", "a")


def test_what_is_read_at_the_start_only_stays_and_the_restart_is_asked_for_once(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text("limits: {rpm: 10}\n")
    watch, said = watched(path)
    path.write_text("limits: {rpm: 20}\nconcurrency: 5\n")
    assert watch.current().limits.rpm == 10
    assert watch.current().concurrency == 1_000
    assert len(said) == 1
    assert "changed, and read at the start only: limits, concurrency; for that start cbatch serve again" in said[0]
    path.write_text("limits: {rpm: 20}\nconcurrency: 5\nmodels: {a: b}\n")
    assert went(watch.current(), "a")[1] == "b"
    assert said[1:] == [f"{path}: read again at 12:00:03: new settings from the next request on"]


def test_a_new_comment_is_no_news(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text("models: {a: one}\n")
    watch, said = watched(path)
    path.write_text("models: {a: one}  # mine\n")
    assert went(watch.current(), "a")[1] == "one"
    assert said == []


def test_a_file_that_rests_is_not_read_for_every_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After SETTLED_S one `stat` is enough: what is written from then on has another time."""
    path = tmp_path / "gateway.yaml"
    path.write_text("models: {a: one}\n")
    later = path.stat().st_ctime_ns + 10_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: later)
    watch, _ = watched(path)
    reads: list[Path] = []
    read = config._content
    monkeypatch.setattr(config, "_content", lambda path: reads.append(path) or read(path))  # type: ignore[func-returns-value]
    for _ in range(3):
        watch.current()
    assert reads == []
    fresh = tmp_path / "new.yaml"
    fresh.write_text("models: {a: two}\n")
    os.replace(fresh, path)  # noqa: PTH105  as editors do it
    assert went(watch.current(), "a")[1] == "two"
    assert len(reads) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(None, "no such file", id="missing"),
        pytest.param(b"\xff\xfe", "not UTF-8 text", id="not text"),
        pytest.param(b"models: 5", "models: read 5", id="wrong"),
        pytest.param(b"#" * 1_000_001, "larger than 1,000,000 bytes", id="too large"),
    ],
)
def test_the_first_read_stops_the_start(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "gateway.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(JobError, match=said):
        Watched(path, lambda _: None)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    os.mkfifo(path)
    with pytest.raises(JobError, match="not a file"):
        Watched(path, lambda _: None)
    with pytest.raises(JobError, match="not a file"):
        Watched(tmp_path, lambda _: None)


def test_without_a_file_the_settings_are_the_defaults() -> None:
    assert Watched(None, lambda _: None).current() == Settings()
