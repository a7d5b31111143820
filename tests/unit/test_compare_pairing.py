"""Two sides -> a change: the unit is the block, prompts are compared with themselves, and drift is said."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from cbatch.compare.metrics import measure
from cbatch.compare.pairing import Design, design, difference, log_ratio
from cbatch.compare.sides import Side, Stretch, interleaved
from cbatch.compare.stats import Floats

SPEED = measure("server_tokens_per_s")


def a_side(
    blocks: Sequence[Floats],
    codes: Sequence[int] | None = None,
    *,
    prompts: int | None = None,
    begun: Sequence[float] = (),
    columns: dict[str, Floats] | None = None,
) -> Side:
    """Blocks of these speeds; prompt numbers as given, or the place in the block."""
    ends = np.cumsum([len(one) for one in blocks])
    speeds = {"server_tokens_per_s": np.concatenate(blocks), "started_at": np.arange(ends[-1], dtype=float)}
    stretches = tuple(
        Stretch(
            repeat=n,
            begun_s=begun[n] if begun else 60.0 * n,
            ended_s=(begun[n] if begun else 60.0 * n) + 10,
            answered=np.arange(end - len(one), end),
        )
        for n, (one, end) in enumerate(zip(blocks, ends, strict=True))
    )
    places = np.concatenate([np.arange(len(one)) for one in blocks]) if codes is None else np.array(codes)
    return Side(
        name="run",
        model="m",
        level=1.0,
        unit="in flight",
        stretches=stretches,
        codes=places,
        prompts=prompts or int(places.max()) + 1,
        numbers=(speeds | (columns or {})).__getitem__,
        requests=int(ends[-1]),
        counts={"errors": (0, int(ends[-1]))},
    )


def noisy(blocks: int, rows: int, *, seed: int, factor: float = 1.0, run_sd: float = 0.0) -> list[Floats]:
    """Speeds by prompt (a wide spread) times a little noise; `run_sd` moves whole blocks."""
    rng = np.random.default_rng(seed)
    prompts = np.exp(np.random.default_rng(0).normal(0, 0.5, rows))
    weather = np.exp(rng.normal(0, run_sd, blocks)) * factor * 2_000
    return [prompts * np.exp(rng.normal(0, 0.02, rows)) * one for one in weather]


def pairs(n: int, *, same_prompts: bool = True) -> Design:
    return Design(kind="interleaved", pairs=tuple((i, i) for i in range(n)), same_prompts=same_prompts)


def test_the_unit_is_the_block_and_not_the_request() -> None:
    """Identical runs whose blocks differ by 5 %: a hundred times the requests make the interval no narrower."""
    widths = []
    for rows in (50, 5_000):
        a, b = (a_side(noisy(6, rows, seed=seed, run_sd=0.05)) for seed in (1, 2))
        change = difference(SPEED, a, b, pairs(6)).change
        assert change is not None
        assert change.low < 0 < change.high
        widths.append(change.high - change.low)
    assert widths[1] > 0.6 * widths[0]


def test_a_prompt_is_compared_with_itself() -> None:
    """Half of the spread of speeds is the prompts': with pairing a slow-down by 2 % is certain, without it is noise.

    Each block asks other prompts than the one before, both sides the same ones in the same pair.
    """
    rng = np.random.default_rng(1)
    prompts = np.exp(rng.normal(0, 0.5, 600))
    codes = np.arange(600)
    first = np.split(2_000 * prompts * np.exp(rng.normal(0, 0.02, 600)), 6)
    order = [rng.permutation(100) for _ in range(6)]
    half = [place[:70] for place in order]  # and B lost some of them, others in each block
    second = [0.98 * one[keep] * np.exp(rng.normal(0, 0.02, 70)) for one, keep in zip(first, half, strict=True)]
    lost = np.concatenate([100 * n + keep for n, keep in enumerate(half)])
    a, b = a_side(first, codes.tolist()), a_side(second, lost.tolist(), prompts=600)
    by_prompt, by_block = (difference(SPEED, a, b, pairs(6, same_prompts=same)) for same in (True, False))
    assert by_prompt.by_prompt
    assert not by_block.by_prompt
    assert by_prompt.change is not None
    assert by_block.change is not None
    assert by_prompt.change.high < 0
    assert by_prompt.change.point == pytest.approx(math.log(0.98), abs=0.005)
    assert by_block.change.high - by_block.change.low > 5 * (by_prompt.change.high - by_prompt.change.low)


def test_a_prompt_that_is_asked_often_counts_once() -> None:
    """One prompt of twenty is 4 x slower and asked a hundred times: the median prompt has not changed."""
    codes = [*range(20), *([0] * 100)]
    first = np.full(120, 2_000.0)
    second = np.where(np.array(codes) == 0, 500.0, 2_000.0)
    found = difference(SPEED, a_side([first] * 3, codes * 3), a_side([second] * 3, codes * 3), pairs(3))
    assert found.change is not None
    assert found.change.point == 0.0


def test_blocks_with_few_prompts_in_common_are_compared_as_blocks() -> None:
    a = a_side(noisy(3, 40, seed=1), [*range(40)] * 3, prompts=75)
    b = a_side(noisy(3, 40, seed=2), [*range(35, 75)] * 3)
    assert not difference(SPEED, a, b, pairs(3)).by_prompt


@pytest.mark.parametrize(
    ("blocks", "turns", "kind"),
    [((6, 6), True, "interleaved"), ((6, 4), True, "interleaved"), ((2, 2), True, "one run"), ((3, 3), False, "apart"),
     ((1, 1), False, "one run"), ((6, 1), False, "one run")],
)  # fmt: skip
def test_the_design_is_the_best_that_the_blocks_allow(blocks: tuple[int, int], turns: bool, kind: str) -> None:
    a, b = (a_side(noisy(n, 20, seed=1)) for n in blocks)
    found = design(a, b, turns=turns, same_prompts=True)
    assert found.kind == kind
    assert len(found.pairs) == (min(blocks) if kind == "interleaved" else 0)
    assert (found.allowance > 0) == (kind == "one run")


def test_pairs_are_those_of_the_same_repeat() -> None:
    """A block that did not come to its end leaves its partner out, and shifts nobody."""
    a = a_side(noisy(4, 20, seed=1))
    stretches = (a.stretches[0], *a.stretches[2:])
    b = Side(**{name: getattr(a, name) for name in Side.__dataclass_fields__} | {"stretches": stretches})
    assert design(a, b, turns=True, same_prompts=True).pairs == ((0, 0), (2, 1), (3, 2))


@pytest.mark.parametrize(
    ("a", "b", "turns"),
    [
        pytest.param((0, 20, 40), (10, 30, 50), True, id="ABABAB"),
        pytest.param((0, 30, 40), (10, 20, 50), True, id="ABBAAB"),
        pytest.param((0, 10, 20), (30, 40, 50), False, id="AAABBB"),
        pytest.param((0, 20, 40), (5, 25, 45), False, id="at the same time"),
        pytest.param((0, 20), (10,), False, id="not as many"),
    ],
)
def test_turns_are_seen_by_the_clock(a: tuple[float, ...], b: tuple[float, ...], turns: bool) -> None:
    sides = [a_side(noisy(len(begun), 20, seed=1), begun=begun) for begun in (a, b)]
    assert interleaved(sides[0].stretches, sides[1].stretches) is turns


def test_drift_is_in_the_interval_of_single_runs_and_not_in_their_tokens() -> None:
    """What a clock measured may be 10 % apart for no reason; how long the answers are does not drift."""
    rng = np.random.default_rng(1)
    tokens = [rng.integers(90, 110, 600).astype(float) for _ in range(2)]
    a, b = (
        a_side(noisy(1, 600, seed=seed), columns={"completion_tokens": one})
        for seed, one in zip((1, 2), tokens, strict=True)
    )
    how = design(a, b, turns=False, same_prompts=True)
    speed, length = (
        difference(measure(name), a, b, how).change for name in ("server_tokens_per_s", "completion_tokens")
    )
    assert speed is not None
    assert length is not None
    assert speed.p is None
    assert 2 * math.log(1.10) < speed.high - speed.low < 2 * math.log(1.12)
    assert length.p is not None
    assert length.high - length.low < 0.03


def test_single_runs_are_compared_prompt_by_prompt_wherever_a_prompt_was() -> None:
    """B asked in another order, and a tenth of its answers failed: the change is still that of the prompts."""
    rng = np.random.default_rng(1)
    prompts = 2_000 * np.exp(rng.normal(0, 0.5, 600))
    order = rng.permutation(600)[:540]
    a, b = a_side([prompts]), a_side([0.7 * prompts[order]], [int(n) for n in order])
    change = difference(SPEED, a, b, design(a, b, turns=False, same_prompts=True)).change
    assert change is not None
    assert change.point == pytest.approx(math.log(0.7))


def test_a_tail_below_its_floor_is_not_compared() -> None:
    a, b = (a_side(noisy(3, 220, seed=seed)) for seed in (1, 2))
    found = difference(measure("server_tokens_per_s", "p99"), a, b, pairs(3))
    assert found.change is None
    assert found.why == "p99 needs 662 requests on each side; measured 660"
    assert difference(measure("server_tokens_per_s", "p95"), a, b, pairs(3)).change is not None


def test_a_queue_of_no_time_is_compared_all_the_same() -> None:
    """0 s has no logarithm; the floor is the clock's resolution."""
    name = "server_queue_s"
    a = a_side(noisy(3, 20, seed=1), columns={name: np.zeros(60)})
    b = a_side(noisy(3, 20, seed=2), columns={name: np.full(60, 0.1)})
    change = difference(measure(name), a, b, pairs(3)).change
    assert change is not None
    assert change.point == pytest.approx(math.log(100))


@pytest.mark.parametrize("rows", [0, 5, 11])
def test_too_few_answers_are_no_comparison(rows: int) -> None:
    values = np.full(20, np.nan)
    values[:rows] = 2_000
    a, b = a_side([values]), a_side([np.full(20, 2_000.0)])
    found = difference(SPEED, a, b, design(a, b, turns=False, same_prompts=True))
    assert found.change is None
    assert found.why == ("not measured" if not rows else f"too few answers: {rows}, and slices of time need 12")


def test_a_rate_is_of_what_ended_in_the_blocks() -> None:
    """Both sides were asked the same 100 times, and B had answered half of it when the time was over."""
    a, b = (a_side([np.ones(100)] * 6) for _ in "ab")
    slow = tuple(replace(s, completed=50, completed_tokens=500) for s in b.stretches)
    found = difference(measure("completed_per_s"), a, replace(b, stretches=slow), pairs(6))
    assert found.change is not None
    assert found.change.point == pytest.approx(math.log(0.5))


def test_the_mean_of_free_requests_has_no_ratio() -> None:
    a, b = (a_side(noisy(3, 20, seed=1), columns={"cost_usd": np.zeros(60)}) for _ in range(2))
    assert difference(measure("cost_usd"), a, b, pairs(3)).change is None


def test_a_run_as_one_unit_of_a_history() -> None:
    a, b = a_side(noisy(1, 300, seed=1)), a_side(noisy(1, 300, seed=2, factor=0.9))
    for same in (True, False):
        found = log_ratio(SPEED, a, b, same_prompts=same)
        assert found == pytest.approx(math.log(0.9), abs=0.02)
    assert log_ratio(SPEED, a, a_side([np.full(5, 2_000.0)]), same_prompts=True) is None
