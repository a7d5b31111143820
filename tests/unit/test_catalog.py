"""The catalog says what is known of a model, and says nothing of the others."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest

from cbatch import catalog, environment
from cbatch.catalog import Price, Quota
from cbatch.cli import refresh
from cbatch.errors import JobError, RunStopped
from cbatch.job import Limits
from cbatch.plan import UNKNOWN_TOKENS_PER_S, _seconds
from tests.unit.test_job import job

NAME = "gpt-oss-120b"
NO_PRICES: list[object] = [
    *("free", "", "-0.0000004", "NaN", "Infinity", "1e999", "0.35", "0", "1_0e-7", "1e-6 "),
    *(0, -1, True, [], {}),
]
Write = Callable[[object], Path]


@pytest.fixture(autouse=True)
def _no_overlay() -> Iterator[None]:
    catalog.overlay(None)
    yield
    catalog.overlay(None)


@pytest.fixture
def lay(tmp_path: Path) -> Write:
    """Put a refreshed file in place."""

    def write(content: object) -> Path:
        path = tmp_path / "refreshed.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        catalog.overlay(path)
        return path

    return write


def refreshed(models: dict[str, Any] | None = None, date: str = "2026-11-20") -> dict[str, Any]:
    return {"prices_as_of": date, "read_from": "https://api.cerebras.ai/public/v1/models", "models": models or {}}


def listed(name: str = NAME, **changed: Any) -> dict[str, Any]:
    return {
        "id": name,
        "pricing": {"prompt": "0.0000004", "completion": "0.0000008"},
        "limits": {"max_context_length": 200_000, "max_completion_tokens": 50_000},
        **changed,
    }


def test_a_model_that_is_not_in_the_catalog_has_no_price_rather_than_a_price_of_zero() -> None:
    assert catalog.price("nobody/knows-this") is None
    assert catalog.card("nobody/knows-this") is None


def test_every_model_has_a_price_a_size_and_the_limits_of_every_tier() -> None:
    cards, _ = catalog.load()
    assert cards
    for name, card in cards.items():
        assert card.id == name
        assert card.price is not None
        assert card.price.input_usd > 0
        assert card.price.output_usd > 0
        assert 0 < card.max_output_tokens <= card.context_tokens
        assert card.tokens_per_s is not None
        assert card.tokens_per_s > 0
        assert set(card.tiers) == set(catalog.TIERS)
        for quota in card.tiers.values():
            assert all(number is None or number > 0 for number in astuple(quota))
            assert quota.rpm
            assert quota.tpm
            assert quota.total_tpm
            assert quota.total_tpm > quota.tpm


@pytest.mark.parametrize(
    ("model", "tier", "quota"),
    [
        (NAME, "free-trial", Quota(rpm=5, tpm=30_000, total_tpm=90_000, tph=1_000_000, tpd=1_000_000)),
        (NAME, "developer", Quota(rpm=1_000, tpm=1_000_000, total_tpm=3_000_000)),
        ("qwen-3.8-27b", "developer", Quota(rpm=300, tpm=150_000, total_tpm=750_000)),
        ("gemma-4-31b", "developer", Quota(rpm=300, tpm=500_000, total_tpm=1_500_000)),
        ("zai-glm-4.7", "developer", Quota(rpm=500, tpm=500_000, total_tpm=1_500_000)),
    ],
)
def test_the_limits_are_those_of_the_published_tables(model: str, tier: str, quota: Quota) -> None:
    assert catalog.load()[0][model].tiers[tier] == quota


def test_the_file_names_every_limit_so_that_none_is_forgotten() -> None:
    raw = json.loads(Path(catalog.__file__).with_name("catalog.json").read_text("utf-8"))
    for model in raw["models"].values():
        for quota in model["tiers"].values():
            assert list(quota) == ["rpm", "rph", "rpd", "tpm", "total_tpm", "tph", "tpd"]


def test_the_figures_say_when_they_were_read() -> None:
    cards, dates = catalog.load()
    assert set(dates) == {"prices", "limits"}
    assert all(re.fullmatch(r"20\d\d-[01]\d(-[0-3]\d)?", date) for date in dates.values())
    assert {card.prices_as_of for card in cards.values()} == {dates["prices"]}
    assert catalog.prices_from() == catalog.PACKAGED


def test_prices_are_per_million_tokens() -> None:
    price = catalog.Price(input_usd=0.35, output_usd=0.75)
    assert price.cost_usd(1_000_000, 1_000_000) == pytest.approx(1.10)
    assert price.cost_usd(0, 0) == 0.0


def test_a_newer_file_replaces_prices_and_sizes_and_nothing_else(lay: Write) -> None:
    before = catalog.load()[0]
    lay(refreshed({NAME: {"input_usd": 0.4, "output_usd": 0.8, "context": 200_000, "max_output": 50_000}}))
    cards, dates = catalog.load()
    card = cards[NAME]
    assert card.price == Price(input_usd=0.4, output_usd=0.8)
    assert (card.context_tokens, card.max_output_tokens, card.prices_as_of) == (200_000, 50_000, "2026-11-20")
    assert (card.tiers, card.tokens_per_s) == (before[NAME].tiers, before[NAME].tokens_per_s)
    assert dates == {"prices": "2026-11-20", "limits": "2026-09"}
    assert catalog.prices_from() == "https://api.cerebras.ai/public/v1/models"
    assert cards["qwen-3.8-27b"] == before["qwen-3.8-27b"], "what the file does not name keeps its price and its date"
    assert catalog.overlay_problem() is None


def test_a_new_model_has_no_tier_and_no_known_speed(lay: Write) -> None:
    """And a job can still be planned with it."""
    lay(refreshed({"newcomer": {"input_usd": 1, "output_usd": 2, "context": 1000, "max_output": 500}}))
    card = catalog.load()[0]["newcomer"]
    assert (card.price, card.tokens_per_s, card.tiers) == (Price(input_usd=1, output_usd=2), None, {})
    found = _seconds(job(model="newcomer", limits={"concurrency": 1}), "newcomer", 1, 10, 1000, {})
    assert found["concurrency"] == pytest.approx(1000 / UNKNOWN_TOKENS_PER_S, abs=0.1)
    assert Limits(tier="developer").per_minute("newcomer") == (None, None)


def test_a_price_that_is_null_is_unknown(lay: Write) -> None:
    lay(refreshed({NAME: {"input_usd": None, "output_usd": None}}))
    assert catalog.load()[0][NAME].price is None
    assert catalog.price(NAME) is None


@pytest.mark.parametrize("date", ["2025-12-31", "2026-09-30"])
def test_a_file_older_than_cbatch_changes_no_known_model(lay: Write, date: str) -> None:
    """A newer cbatch knows better; but a model it does not know stays known, with the old date."""
    before, dates = catalog.load()
    new = {"input_usd": 1.0, "output_usd": 2.0, "context": 1000, "max_output": 500}
    lay(refreshed({NAME: {"input_usd": 9.0, "output_usd": 9.0}, "newcomer": new}, date))
    after, after_dates = catalog.load()
    assert {name: after[name] for name in before} == before
    assert after_dates == dates
    assert catalog.prices_from() == catalog.PACKAGED
    assert after["newcomer"].prices_as_of == date


def test_no_file_is_no_problem(tmp_path: Path) -> None:
    before = catalog.load()
    catalog.overlay(tmp_path / "missing" / "catalog.json")
    assert catalog.overlay_problem() is None
    assert catalog.load() == before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(b"", "not JSON", id="empty"),
        pytest.param(b"\x00" * 100, "not JSON", id="zeros, as a crash leaves them"),
        pytest.param(b'{"prices_as_of": "2026-11', "not JSON", id="cut off"),
        pytest.param(b"\xff\xfe{", "not JSON", id="not text"),
        pytest.param(b"[" * 200_000, "not JSON", id="nested too deeply"),
        pytest.param(b" " * 1_000_001, "larger than 1,000,000 bytes", id="huge"),
        pytest.param([1], "the file is a list of 1; accepted: an object", id="a list"),
        pytest.param({}, "prices_as_of is missing; accepted: a date like", id="no date"),
        pytest.param(refreshed(date="2026-11"), 'prices_as_of is "2026-11"', id="a month"),
        pytest.param(refreshed(date="2026-13-01"), 'prices_as_of is "2026-13-01"', id="no such month"),
        pytest.param(refreshed(date="\u0662026-11-20"), "prices_as_of is", id="digits of another script"),
        pytest.param({**refreshed(), "read_from": "a\x1b[2Jb"}, r'read_from is "a\u001b[2Jb"', id="terminal codes"),
        pytest.param({**refreshed(), "models": 7}, "models is 7", id="models not an object"),
        pytest.param(refreshed({f"m{i}": {} for i in range(1001)}), "models is an object of 1,001", id="many"),
        pytest.param(refreshed({"a\x1b[2J": {}}), r'models has "a\u001b[2J"', id="a bad id"),
        pytest.param(refreshed({NAME: 1}), f"models.{NAME} is 1", id="a model not an object"),
        pytest.param(refreshed({NAME: {"input_usd": 1}}), "output_usd is missing", id="half a price"),
        pytest.param(refreshed({NAME: {"input_usd": 1, "output_usd": None}}), "output_usd is missing", id="half null"),
        pytest.param(
            refreshed({"newcomer": {"input_usd": 1, "output_usd": 1}}), "context is missing", id="new, no size"
        ),
        pytest.param(refreshed({NAME: {"context": 10, "max_output": 11}}), "max_output 11", id="longer than context"),
        pytest.param(refreshed({NAME: {"context": True, "max_output": 1}}), "context is true", id="true"),
    ],
)
def test_a_corrupt_file_is_ignored_and_why_is_told(lay: Write, content: object, said: str) -> None:
    before = catalog.load()
    path = lay(content)
    assert catalog.load() == before
    problem = catalog.overlay_problem()
    assert problem is not None
    assert problem.startswith(f"{path}: ")
    assert said in problem
    assert problem.isprintable()
    assert len(problem) < len(str(path)) + 250


@pytest.mark.parametrize("usd", [0, -1, 0.0001, 1001, math.nan, math.inf, "0.35", True, [], 10**400])
def test_a_price_that_cannot_be_spoils_the_file(lay: Write, usd: object) -> None:
    before = catalog.load()
    lay(refreshed({NAME: {"input_usd": usd, "output_usd": 1.0}}))
    assert catalog.load() == before
    assert "accepted: USD per million tokens, from 0.001 to 1,000" in (catalog.overlay_problem() or "")


def test_what_is_not_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        catalog.overlay(path)
        assert catalog.overlay_problem() == f"{path}: not a file"
        assert catalog.price(NAME) is not None


def test_a_public_list_is_read_in_dollars_per_million() -> None:
    told = refresh.read([listed(), listed("new", pricing={"prompt": 1e-6, "completion": "2e-6"})])
    sizes = {"context": 200_000, "max_output": 50_000}
    assert told.models == {
        NAME: {"input_usd": 0.4, "output_usd": 0.8, **sizes},
        "new": {"input_usd": 1.0, "output_usd": 2.0, **sizes},
    }
    assert told.refused == []


@pytest.mark.parametrize(
    "pricing",
    [
        *({"prompt": usd, "completion": "0.000001"} for usd in NO_PRICES),
        {"prompt": "0.000001", "completion": "free"},
        {"prompt": None, "completion": "free"},
        "0.35",
        [],
    ],
    ids=str,
)
def test_a_price_that_cannot_be_is_refused_for_that_model_only(pricing: object) -> None:
    """What was known stays; of a new model the price is unknown, and never 0."""
    told = refresh.read([listed(pricing=pricing), listed("new", pricing=pricing), listed("good")])
    assert "input_usd" not in told.models[NAME]
    assert told.models[NAME]["context"] == 200_000
    assert (told.models["new"]["input_usd"], told.models["new"]["output_usd"]) == (None, None)
    assert told.models["good"]["input_usd"] == 0.4
    known, new = told.refused
    assert known.startswith(f"{NAME}: pricing")
    assert "accepted: " in known
    assert known.endswith("the known price stays")
    assert new.endswith("its price is unknown")


@pytest.mark.parametrize(
    "pricing", [None, {}, {"prompt": "0.0000004"}, {"prompt": None, "completion": "0.000001"}], ids=str
)
def test_a_price_that_is_missing_is_unknown(pricing: object, lay: Write) -> None:
    told = refresh.read([listed(pricing=pricing), listed("new", pricing=pricing)])
    assert told.refused == []
    lay(refreshed(told.models))
    assert catalog.overlay_problem() is None
    assert catalog.price(NAME) is None
    assert catalog.price("new") is None
    assert catalog.card("new") is not None


@pytest.mark.parametrize(
    "limits",
    [
        {"max_context_length": "131072", "max_completion_tokens": 1},
        {"max_context_length": 10, "max_completion_tokens": 11},
        {"max_context_length": 10, "max_completion_tokens": 0},
        {"max_context_length": 10**12, "max_completion_tokens": 1},
        {"max_context_length": 10},
    ],
    ids=str,
)
def test_sizes_that_cannot_be_are_refused(limits: object, lay: Write) -> None:
    before = catalog.load()[0][NAME]
    told = refresh.read([listed(limits=limits), listed("new", limits=limits)])
    assert [line.rsplit("; ", 1)[1] for line in told.refused] == ["the known sizes stay", "the model is left out"]
    lay(refreshed(told.models))
    card = catalog.load()[0][NAME]
    assert (card.context_tokens, card.max_output_tokens) == (before.context_tokens, before.max_output_tokens)
    assert card.price == Price(input_usd=0.4, output_usd=0.8)
    assert catalog.card("new") is None


def test_ids_that_cannot_be_and_models_listed_twice_are_refused() -> None:
    bad = ["", "a b", "a\x1b[2J", "é", "x" * 201]
    told = refresh.read([listed(name) for name in bad] + [listed(), listed(pricing={"prompt": "1e-3"})])
    assert set(told.models) == {NAME}
    assert told.models[NAME]["input_usd"] == 0.4
    assert len(told.refused) == len(bad) + 1
    assert all(line.isprintable() for line in told.refused)


@pytest.mark.parametrize(
    ("entries", "today", "said"),
    [
        ([], "2026-11-20", "not one usable price in a list of 0 models"),
        ([listed(pricing=None)], "2026-11-20", "not one usable price in a list of 1 model"),
        ([listed(f"m{i}") for i in range(1001)], "2026-11-20", "lists 1,001 models; accepted: at most 1,000"),
        ([listed()], "2026-09-30", "today is 2026-09-30, and the prices that came with cbatch are of 2026-10"),
    ],
    ids=["empty", "no price", "too many", "a clock that is late"],
)
def test_no_catalog_is_made_of_a_list_that_is_none(entries: list[Any], today: str, said: str) -> None:
    with pytest.raises(RunStopped, match=re.escape(said)) as stopped:
        refresh.document(entries, refresh.read(entries), "https://api.cerebras.ai/public/v1/models", today)
    assert "nothing was written" in (stopped.value.hint or "")


def test_what_changed_is_said(lay: Write) -> None:
    before = catalog.load()[0]
    told = refresh.read([listed(), listed("newcomer", pricing=None)])
    lay(refreshed(told.models))
    found = refresh.changes(before, catalog.load()[0], told.listed)
    assert found.prices == [f"{NAME}: $0.35 in, $0.75 out -> $0.4 in, $0.8 out"]
    assert found.sizes == [
        f"{NAME}: context 131,072, answers up to 40,960 -> context 200,000, answers up to 50,000",
    ]
    assert found.new == [
        "newcomer: price unknown, context 200,000, answers up to 50,000; "
        "no limits known: give limits.rpm and limits.tpm"
    ]
    assert found.gone == [
        f"{name}: not in the list; its entry of 2026-10 stays"
        for name in ("gemma-4-31b", "qwen-3.8-27b", "zai-glm-4.7")
    ]
    assert refresh.changes(catalog.load()[0], before, frozenset(before)).gone == [
        "newcomer: not in the list; its entry is dropped"
    ]


def test_the_file_is_replaced_whole_and_everyone_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "catalog.json"
    for date in ("2026-11-20", "2026-11-21"):
        refresh.write(path, refreshed(date=date))
        assert json.loads(path.read_bytes())["prices_as_of"] == date
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "fchmod"])
def test_a_disk_that_fails_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "catalog.json"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(RunStopped, match="No space left on device; what was there is unchanged") as stopped:
        refresh.write(path, refreshed())
    assert str(path) in str(stopped.value)
    assert "free some space" in (stopped.value.hint or "")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_no_catalog_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("model: gpt-oss-120b\n")
    with pytest.raises(JobError, match="not overwritten"):
        refresh.check_target(path)
    path.write_bytes(b"")
    refresh.check_target(path)
    refresh.check_target(tmp_path / "new.json")


@pytest.mark.parametrize(
    ("host", "local"),
    [
        *((host, True) for host in ("localhost", "LOCALHOST.", "a.localhost", "127.0.0.1", "127.1.2.3", "127.1")),
        *((host, True) for host in ("[::1]", "0.0.0.0", "[::]", "[::ffff:127.0.0.1]")),
        *(
            (host, False)
            for host in ("api.cerebras.ai", "127.example.com", "10.0.0.1", "[2001:db8::1]", "localhost.com")
        ),
    ],
)
def test_whether_an_address_is_this_machine(host: str, local: bool) -> None:
    assert environment.is_local(f"http://{host}:8000/v1") is local
