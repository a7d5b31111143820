"""Gates: their text, and what they come to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cbatch.gates import parse
from cbatch.report.evidence import read
from cbatch.report.findings import find
from cbatch.report.gates import Outcome
from cbatch.rundir import RunDir
from tests.made_runs import MadeBlock, made_batch, made_run


@pytest.mark.parametrize(
    ("text", "metric", "statistic", "threshold", "share"),
    [
        ("ttft_s p95 < 0.5", "ttft_s", "p95", 0.5, None),
        ("ttft_s p95<500ms", "ttft_s", "p95", 0.5, None),
        ("latency_s p99.9 <= 2 min", "latency_s", "p99.9", 120.0, None),
        ("server_tokens_per_s p50 > 1.8K", "server_tokens_per_s", "p50", 1_800.0, None),
        ("server_tokens_per_s median > 1_800 tok/s", "server_tokens_per_s", "p50", 1_800.0, None),
        ("completion_tokens sum < 2M", "completion_tokens", "sum", 2e6, None),
        ("loop_lag_ms max < 5ms", "loop_lag_ms", "max", 5.0, None),
        ("errors < 1%", "errors", None, 0.01, None),
        ("errors < 10", "errors", None, 10.0, None),
        ("cost_usd sum < 5", "cost_usd", None, 5.0, None),
        ("ttft_s < 500ms for 99%", "ttft_s", None, 0.5, 0.99),
        ("ttft_s < 500ms", "ttft_s", None, 0.5, 1.0),
    ],
)
def test_a_gate_is_read(text: str, metric: str, statistic: str | None, threshold: float, share: float | None) -> None:
    gate = parse(text)
    assert (gate.metric, gate.statistic, gate.share) == (metric, statistic, share)
    assert gate.threshold == pytest.approx(threshold)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("ttft p95 < 1", "did you mean ttft_s?", id="a near name"),
        pytest.param("whatever < 1", "errors, rate_limited", id="no near name"),
        pytest.param("ttft_s p95 0.5", "is not a demand like", id="no comparison"),
        pytest.param("ttft_s p195 < 1", "'p195' is no statistic", id="no percentile"),
        pytest.param("ttft_s p95 < 5 K", "accepted for ttft_s: us", id="a unit of something else"),
        pytest.param("server_tokens_per_s p50 > 5ms", "K or M", id="a time for a speed"),
        pytest.param("errors p50 < 1", "without 'p50'", id="a percentile of a share"),
        pytest.param("errors < 1x", "accepted: %", id="a unit for errors"),
        pytest.param("ttft_s p95 < 1 for 99%", "without a statistic", id="both ways to count"),
        pytest.param("ttft_s < 1 for 101%", "up to 100 %", id="more than all"),
        pytest.param("", "is not a demand like", id="nothing"),
    ],
)
def test_a_wrong_gate_says_what_was_read_and_what_is_accepted(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        parse(text)
    assert repr(text) in str(caught.value)


def outcome(run: RunDir, text: str) -> Outcome:
    return find(read(run), [parse(text)]).gates[0]


def code(run: RunDir, *texts: str) -> int:
    return find(read(run), [parse(text) for text in texts]).exit_code


def test_a_percentile_is_that_of_the_answers(tmp_path: Path) -> None:
    run = made_batch(tmp_path / "a", rows=1_000, block=MadeBlock(speed=2_000))
    found = outcome(run, "server_tokens_per_s p50 > 1900")
    assert (found.passed, found.n) == (True, 1_000)
    assert found.value == pytest.approx(2_000, rel=0.02)
    assert code(run, "server_tokens_per_s p50 > 1900") == 0
    assert code(run, "server_tokens_per_s p50 > 2100") == 5


def test_a_gate_per_request_is_about_all_requests_failed_ones_included(tmp_path: Path) -> None:
    """96 of 100 answered, all within a second: attainment is 96 %."""
    run = made_batch(tmp_path / "a", rows=100, block=MadeBlock(failed=4))
    found = outcome(run, "latency_s < 1s for 95%")
    assert (found.passed, found.value, found.n) == (True, 0.96, 100)
    assert found.goodput_per_s is not None
    assert outcome(run, "latency_s < 1s").passed is False


def test_goodput_is_the_rate_of_those_that_met_it(tmp_path: Path) -> None:
    evidence = read(made_batch(tmp_path / "a", rows=500))
    median = float(evidence.values("latency_s")[249:251].mean())
    found = find(evidence, [parse(f"latency_s < {median:.9f} for 40%")])
    rate = found.figures.system.completed_per_s
    assert rate is not None
    assert found.gates[0].goodput_per_s == pytest.approx(rate / 2, rel=0.01)


def test_what_was_not_measured_is_no_pass(tmp_path: Path) -> None:
    run = made_batch(tmp_path / "a", rows=50)
    found = outcome(run, "ttft_s p95 < 100")
    assert (found.passed, found.value) == (None, None)
    assert "stream" in found.note
    assert code(run, "ttft_s p95 < 100") == 5


def test_an_unknown_price_passes_no_limit_of_cost(tmp_path: Path) -> None:
    def unpriced(row: dict[str, object], number: int) -> None:
        row["cost_usd"] = None if number == 0 else 1.0

    run = made_batch(tmp_path / "a", rows=10, change=unpriced)
    assert outcome(run, "cost_usd < 100").passed is None
    assert outcome(run, "cost_usd < 5").passed is False  # the known ones are too much already


def test_errors_and_429s_are_shares_or_counts(tmp_path: Path) -> None:
    run = made_batch(tmp_path / "a", rows=200, block=MadeBlock(failed=2, refused=4))
    assert outcome(run, "errors < 2%").value == pytest.approx(0.03)
    assert outcome(run, "errors < 10").value == 6
    assert outcome(run, "rate_limited < 1%").passed is False


def test_few_requests_are_judged_and_it_is_said(tmp_path: Path) -> None:
    found = outcome(made_batch(tmp_path / "a", rows=200), "latency_s p99 < 10")
    assert (found.passed, found.note) == (True, "n<662: not certified")


def test_a_ladder_must_hold_at_every_level_a_search_at_its_best(tmp_path: Path) -> None:
    blocks = [MadeBlock(level=level, ttft_s=0.02 * level) for level in (4.0, 8.0, 16.0)]
    ladder = made_run(tmp_path / "a", blocks)
    found = outcome(ladder, "ttft_s p50 < 0.2")
    assert (found.passed, found.at) == (False, "16 in flight")
    search = made_run(tmp_path / "b", blocks, mode="search", load={"search": {"best": 8.0, "unit": "in flight"}})
    assert outcome(search, "ttft_s p50 < 0.2").passed is True


def test_every_model_must_meet_it(tmp_path: Path) -> None:
    def slow(row: dict[str, object], number: int) -> None:
        if row["model"] == "b":
            row["latency_s"] = 3.0

    run = made_batch(tmp_path / "a", rows=50, models=("a", "b"), change=slow)
    found = outcome(run, "latency_s p50 < 1")
    assert (found.passed, found.at, found.value) == (False, "b", 3.0)


def test_in_a_ladder_of_two_models_a_gate_names_model_and_level(tmp_path: Path) -> None:
    blocks = [MadeBlock(model=m, level=n, ttft_s=0.3 if (m, n) == ("b", 8) else 0.05) for m in "ab" for n in (4.0, 8.0)]
    assert outcome(made_run(tmp_path / "a", blocks), "ttft_s p50 < 0.2").at == "b, 8 in flight"


def test_a_gate_per_request_of_nothing_is_not_judged(tmp_path: Path) -> None:
    run = made_run(tmp_path / "a", [MadeBlock(rows=0)])
    assert outcome(run, "ttft_s < 1 for 99%").passed is None


def test_the_gates_of_the_job_are_held_too(tmp_path: Path) -> None:
    run = made_batch(tmp_path / "a", rows=50, job={"gates": ["latency_s p50 < 1ms", "errors < 1%"]})
    found = find(read(run), [parse("errors < 1%")])
    assert [(o.gate, o.passed) for o in found.gates] == [("latency_s p50 < 1ms", False), ("errors < 1%", True)]
    assert found.exit_code == 5


def test_not_valid_is_more_than_missed(tmp_path: Path) -> None:
    """Of a client-bound run times and rates are not judged, and the exit code is 6 with gates and without."""
    run = made_run(tmp_path / "a", [MadeBlock(cpu_share=0.99)])
    found = find(read(run), [parse("latency_s p50 < 1ms"), parse("errors < 1%")])
    assert [(o.passed, o.value) for o in found.gates] == [(None, None), (True, 0.0)]
    assert found.exit_code == 6
    assert code(run) == 6
