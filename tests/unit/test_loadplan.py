"""What a load run does next: stages, arrivals, and whether a load passes."""

from __future__ import annotations

import math
from array import array
from itertools import islice, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbatch.gates import parse
from cbatch.job import Load
from cbatch.loadplan import SEARCH_STEP, Stage, arrivals, end_of, judge, span, stages


def load(**keys: Any) -> Load:
    return Load.model_validate(keys)


def plan(**keys: Any) -> list[tuple[str, float, str, int]]:
    """(model, level, unit, repeat) of every block, where all pass."""
    models = keys.pop("models", ["m"])
    return [(s.model, s.level, s.unit, s.repeat) for s in stages(load(**keys), models)]


def searched(highest: float, **keys: Any) -> list[float]:
    """The levels that a search tries where everything up to `highest` passes."""
    found = stages(load(mode="search", slo="errors < 1%", **keys), ["m"])
    tried: list[float] = []
    answer: str | None = None
    try:
        stage: Stage = next(found)
        while True:
            tried.append(stage.level)
            answer = None if stage.level <= highest else "too much"
            stage = found.send(answer)
    except StopIteration:
        return tried


# -- stages -----------------------------------------------------------------------------------------


def test_repeats_go_round_all_levels_and_models() -> None:
    """What changes in the meantime changes for all of them alike."""
    found = plan(concurrency=[1, 8], repeats=2, models=["a", "b"])
    assert found == [
        (model, level, "in flight", repeat) for repeat in (0, 1) for level in (1.0, 8.0) for model in ("a", "b")
    ]


def test_rates_are_requests_a_second() -> None:
    assert plan(mode="open", rate=[0.5, 20]) == [("m", 0.5, "requests/s", 0), ("m", 20.0, "requests/s", 0)]


def test_a_replay_has_its_speed_for_a_level() -> None:
    assert plan(mode="replay", of="x", speed=2, repeats=2) == [("m", 2.0, "requests/s", r) for r in (0, 1)]


# -- search -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("highest", "tried"),
    [
        pytest.param(0, [1], id="the lowest fails"),
        pytest.param(1, [1, 2], id="nothing lies between 1 and 2"),
        pytest.param(5, [1, 2, 4, 8, 6, 5], id="between"),
        pytest.param(100, [1, 2, 4, 8, 16, 32, 50], id="all pass, the last below its double"),
        pytest.param(49, [1, 2, 4, 8, 16, 32, 50, 40, 45, 47], id="only the highest fails"),
    ],
)
def test_a_search_doubles_and_then_halves_the_gap(highest: float, tried: list[float]) -> None:
    assert searched(highest, concurrency="1..50") == tried


def test_a_search_goes_from_1_to_256_where_nothing_is_said() -> None:
    assert searched(1e9) == [1, 2, 4, 8, 16, 32, 64, 128, 256]


@given(low=st.integers(1, 40), gap=st.integers(1, 5_000), highest=st.integers(0, 6_000))
def test_a_search_ends_near_the_truth_in_few_trials(low: int, gap: int, highest: int) -> None:
    """No level twice, none outside the range, and the best is next to the first that fails."""
    high = low + gap
    tried = searched(highest, concurrency=f"{low}..{high}")
    assert len(set(tried)) == len(tried) <= 2 + math.log2(high / low) + 5
    assert all(low <= level <= high and level == int(level) for level in tried)
    passed = [level for level in tried if level <= highest]
    failed = [level for level in tried if level > highest]
    if passed and failed:
        assert min(failed) / max(passed) <= SEARCH_STEP or min(failed) - max(passed) <= 1 + 0.1 * max(passed)
    if not failed:
        assert max(passed) == high
    if not passed:
        assert tried == [low]


def test_rates_need_not_be_whole() -> None:
    tried = searched(1.7, rate="0.5..4")
    assert tried[:4] == [0.5, 1, 2, pytest.approx(math.sqrt(2))]
    assert max(level for level in tried if level <= 1.7) > 1.7 / SEARCH_STEP


# -- arrivals ---------------------------------------------------------------------------------------


def test_constant_arrivals_do_not_drift() -> None:
    """The millionth is due where it should be: nothing is added up."""
    found = arrivals(load(mode="open", rate=3, arrival="constant"), 3, 0)
    assert next(islice(found, 999_999, None)) == 999_999 / 3


def test_poisson_arrivals_have_the_rate_and_the_spread() -> None:
    times = list(islice(arrivals(load(mode="open", rate=50), 50, 0), 20_001))
    gaps = [b - a for a, b in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    assert times[0] == 0
    assert mean == pytest.approx(1 / 50, rel=0.03)
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) == pytest.approx(mean**2, rel=0.08)


def test_arrivals_are_those_of_seed_level_and_repeat() -> None:
    def first(level: float = 5, repeat: int = 0, **keys: Any) -> list[float]:
        return list(islice(arrivals(load(mode="open", rate=5, **keys), level, repeat), 50))

    assert first() == first()
    assert first() == first(max_in_flight=3, duration_s=1)  # a block that is run again, or of the other job
    assert len({tuple(times) for times in (first(), first(seed=1), first(repeat=1), first(level=6))}) == 4


@pytest.mark.parametrize("arrival", ["constant", "poisson"])
@pytest.mark.parametrize("warmup_s", [0.0, 0.37])
@pytest.mark.parametrize("count", [1, 2, 40])
def test_a_counted_window_ends_when_the_next_would_be_due(arrival: str, warmup_s: float, count: int) -> None:
    job = load(mode="open", rate=20, arrival=arrival)
    end = end_of(arrivals(job, 20, 0), warmup_s, count)
    times = list(islice(arrivals(job, 20, 0), 2_000))
    assert sum(warmup_s <= at < end for at in times) == count
    assert end in times


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        pytest.param([0.0], 1.0, id="one"),
        pytest.param([], 1.0, id="none"),
        pytest.param([0.0, 0.0, 0.0], 1.0, id="all at once"),
        pytest.param([0.0, 1.0], 2.0, id="two"),
        pytest.param([0.0, 1.0, 3.0], 4.5, id="three"),
    ],
)
def test_a_replay_lasts_a_mean_gap_longer_than_its_last(times: list[float], seconds: float) -> None:
    assert span(times) == seconds


# -- judging ----------------------------------------------------------------------------------------

VALUES = {
    "ttft_s": array("d", [0.1] * 95 + [0.9] * 5),
    "latency_s": array("d", [1.0] * 100),
    "completion_tokens": array("d", [50.0] * 100),
    "cost_usd": array("d", [0.01] * 100),
}


def judged(*demands: str, **known: Any) -> str | None:
    about: dict[str, Any] = {"requests": 100, "failed": 0, "rate_limited": 0, "per_s": (10.0, 500.0)} | known
    return judge([parse(text) for text in demands], about.pop("values", VALUES), **about)


@pytest.mark.parametrize(
    "demand",
    [
        "ttft_s p50 < 0.2",
        "ttft_s p99 < 1",
        "ttft_s mean < 0.15",
        "ttft_s max <= 0.9",
        "ttft_s min >= 100ms",
        "ttft_s < 0.5 for 95%",
        "errors < 1%",
        "errors <= 0",
        "rate_limited < 1",
        "cost_usd < 1.01",
        "completed_per_s >= 10",
        "output_tokens_per_s >= 500",
        "completion_tokens sum >= 5000",
    ],
)
def test_a_load_passes(demand: str) -> None:
    assert judged(demand) is None


@pytest.mark.parametrize(
    ("demand", "why"),
    [
        ("ttft_s p99 < 0.5", "ttft_s p99 < 0.5: 0.9"),
        ("ttft_s < 0.5 for 96%", "ttft_s < 0.5 for 96%: 95.0 % of the requests"),
        ("ttft_s < 0.5", "ttft_s < 0.5: 95.0 % of the requests"),
        ("cost_usd < 1", "cost_usd < 1: 1"),
        ("completed_per_s > 10", "completed_per_s > 10: 10"),
    ],
)
def test_a_load_fails_with_the_figure(demand: str, why: str) -> None:
    assert judged("errors < 50%", demand) == why


def test_the_first_demand_that_is_missed_is_told() -> None:
    assert judged("latency_s p50 < 0.5", "ttft_s max < 0.1") == "latency_s p50 < 0.5: 1"


@pytest.mark.parametrize(
    ("known", "why"),
    [
        pytest.param({"rate_limited": 1}, "1 answered with 429", id="a 429, whatever is demanded"),
        pytest.param({"requests": 0}, "nothing was answered", id="nothing was sent"),
        pytest.param({"failed": 100}, "nothing was answered", id="all failed"),
        pytest.param({"held": 0.4}, "40 % of the time requests waited for the account's limits", id="paced"),
        pytest.param({"late": 0.2}, "20 % of the requests were not sent in time", id="not delivered"),
    ],
)
def test_a_load_that_was_none_fails_whatever_its_figures_are(known: dict[str, Any], why: str) -> None:
    assert judged("latency_s p50 < 5", **known) == why


def test_what_failed_does_not_meet_a_demand_on_requests() -> None:
    """The share is of all requests, not of the answers."""
    half = {name: values[:50] for name, values in VALUES.items()}
    assert judged("latency_s <= 1 for 60%", failed=50, values=half) == "latency_s <= 1 for 60%: 50.0 % of the requests"
    assert judged("errors < 51%", failed=50, values=half) is None
    assert judged("errors < 50", failed=50, values=half) == "errors < 50: 50"


def test_a_figure_that_needs_a_stream_says_so() -> None:
    assert judged("ttft_s p50 < 1", values={}) == "ttft_s was not measured; it needs params.stream: true"
    assert judged("server_queue_s p50 < 1", values={}) == "server_queue_s was not measured"
