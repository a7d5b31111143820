"""How many may be in flight: tables of answers, without a clock."""

from __future__ import annotations

import heapq
import random
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbatch.throttle import CUT, ENOUGH, LESS_SLOW, ROUND, SLOW_START, SLOWER_CUT, START, Throttle


class Load:
    """Requests that keep every allowed place taken, against a server that answers `after_s(in flight)`."""

    def __init__(self, throttle: Throttle, waited_s: float = 0.1) -> None:
        self.throttle, self.waited_s = throttle, waited_s
        self.now = 0.0
        self.sent: list[float] = []

    def round(self, waited_s: float | None = None) -> None:
        """One round: who is in flight is answered, one after the other, and replaced."""
        waited = self.waited_s if waited_s is None else waited_s
        sent_at, places = self.now, self.throttle.limit
        for number in range(places):
            self.now += waited / places
            self.throttle.answered(self.now, sent_at + number * 1e-6, waited, self.throttle.limit)


def grown(places: int) -> int:
    """After one round of slow start: the answers that come before there are enough places count more."""
    steep = max(min(places, (ENOUGH - places) / SLOW_START), 0.0)
    return int(places + steep * SLOW_START + (places - steep) * LESS_SLOW)


def test_slow_start_grows_by_half_a_round_until_enough_are_in_flight_then_by_a_tenth_up_to_the_bound() -> None:
    throttle = Throttle(1, 512)
    load = Load(throttle)
    limits = [throttle.limit]
    while throttle.limit < 512:
        load.round()
        limits.append(throttle.limit)
        assert abs(throttle.limit - min(grown(limits[-2]), 512)) <= 1
    assert limits[:6] == [8, 12, 18, 27, 40, 60]
    rounds = sum(limit > ENOUGH for limit in limits)
    assert 20 <= rounds <= 24, "each a tenth more"
    load.round()
    assert throttle.limit == 512


def test_after_a_cut_it_grows_by_one_a_round() -> None:
    throttle = Throttle(1, 512)
    load = Load(throttle)
    for _ in range(6):
        load.round()
    before = throttle.limit
    throttle.busy(load.now, load.now)
    cut = throttle.limit
    assert cut == int(before * CUT)
    for rounds in range(1, before - cut + 5):
        load.now += 1e-3
        load.round()
        assert cut + rounds - 1 <= throttle.limit <= cut + rounds
    assert throttle.limit >= before, "and comes back to where it was"


def test_answers_that_come_in_one_bunch_let_it_grow_as_fast() -> None:
    """All of a round within a millisecond: the first finds every place taken, the last finds all others empty."""
    throttle = Throttle(1, 512)
    now = 0.0
    for _ in range(5):
        sent_at, places = now, throttle.limit
        now += 0.3
        for number in range(places):
            throttle.answered(now + number * 1e-6, sent_at, 0.1, places - number)
        assert abs(throttle.limit - grown(places)) <= 1


def test_a_moment_in_which_every_place_was_taken_is_proof_once() -> None:
    """Whatever was sent after it needs another one."""
    throttle = Throttle(1, 512)
    throttle.answered(1.0, 0.0, 0.1, START)
    before = throttle.limit
    for number in range(100):
        throttle.answered(2.0 + number, 1.5 + number, 0.1, START - 1)
    assert throttle.limit == before


@pytest.mark.parametrize("in_flight", [1, 4, START - 1])
def test_an_idle_place_proves_nothing(in_flight: int) -> None:
    throttle = Throttle(1, 512)
    for number in range(1_000):
        throttle.answered(number + 0.1, float(number), 0.1, in_flight)
    assert throttle.limit == START


@pytest.mark.parametrize("cause", ["busy", "timed_out"])
def test_everything_that_was_sent_before_a_cut_belongs_to_one_episode(cause: str) -> None:
    """100 errors of requests that were in flight together cut once; one of a later request cuts again."""
    throttle = Throttle(1, 512)
    load = Load(throttle)
    for _ in range(4):
        load.round()
    error = getattr(throttle, cause)
    before, sent_at = throttle.limit, load.now
    for number in range(100):
        error(sent_at + 1.0 + number / 100, sent_at)
    assert throttle.limit == int(before * CUT)
    assert asdict(throttle.cuts) == {"busy": 0, "timeout": 0, "slower": 0} | {cause.replace("timed_out", "timeout"): 1}
    error(sent_at + 3.0, sent_at + 2.5)
    assert throttle.limit == int(int(before * CUT) * CUT)


def test_a_busy_server_and_a_timeout_of_the_same_episode_cut_once() -> None:
    throttle = Throttle(1, 100)
    throttle.busy(1.0, 0.5)
    throttle.timed_out(2.0, 0.9)
    assert throttle.limit == int(START * CUT)


def test_answers_that_wait_longer_than_they_used_to_are_a_queue_and_cost_a_place_in_six() -> None:
    throttle = Throttle(1, 512)
    load = Load(throttle)
    for _ in range(4):
        load.round()
    throttle.busy(load.now, load.now)  # the end of slow start
    load.round()
    while not throttle.cuts.slower:
        before = throttle.limit
        load.round(waited_s=0.6)
    assert int(before * SLOWER_CUT) <= throttle.limit <= before * SLOWER_CUT + 2
    load.round()
    assert throttle.cuts.slower == 1, "one cut: when they wait no longer, it stays"


def test_the_first_rounds_are_measured_while_slow_start_grows() -> None:
    """Else the best round would be one with every place taken, and no queue would ever be seen."""
    throttle = Throttle(1, 512)
    load = Load(throttle)
    for _ in range(20):
        load.round(waited_s=max(0.1, throttle.limit / 100))  # room for ten: the rest waits
    assert throttle.limit < 60


def test_answers_that_wait_a_little_longer_stop_the_growth_without_a_cut() -> None:
    throttle = Throttle(1, 512)
    load = Load(throttle)
    for _ in range(3):
        load.round()
    for _ in range(3):
        load.round(waited_s=0.25)  # more than 1.5 x 0.1 + 0.05, less than 2 x 0.1 + 0.1
    grown = throttle.limit
    for _ in range(5):
        load.round(waited_s=0.25)
    assert (throttle.limit, throttle.cuts.slower) == (grown, 0)
    for _ in range(3):
        load.round()
    assert throttle.limit > grown, "and goes on when they wait no longer"


def test_one_slow_answer_is_no_queue() -> None:
    throttle = Throttle(1, 512)
    load = Load(throttle)
    for _ in range(3):
        load.round()
    before = throttle.limit
    throttle.answered(load.now, load.now - 1, 1.0, 1)
    load.round()
    assert throttle.limit > before
    assert throttle.cuts.slower == 0


def test_a_server_that_is_slower_for_good_is_not_given_up() -> None:
    """The best round is forgotten: it does not crawl for ever behind what once was."""
    throttle = Throttle(1, 64)
    load = Load(throttle, waited_s=0.05)
    for _ in range(10):
        load.round()
    least = throttle.limit
    for _ in range(3_000):
        load.round(waited_s=0.5)
        least = min(least, throttle.limit)
    assert least < 64
    assert throttle.limit == 64


@pytest.mark.parametrize("fixed", [1, 8, 300])
def test_a_fixed_number_never_changes(fixed: int) -> None:
    throttle = Throttle(fixed, fixed)
    for number in range(500):
        now = float(number)
        throttle.answered(now, now, 0.01 * number, fixed)
        throttle.busy(now, now)
        throttle.timed_out(now, now)
        throttle.restart()
        assert throttle.limit == fixed
    assert asdict(throttle.cuts) == {"busy": 0, "timeout": 0, "slower": 0}


@pytest.mark.parametrize(
    ("low", "high", "start"),
    [(1, 512, 8), (5, 200, 8), (20, 200, 20), (1, 4, 4), (8, 8, 8)],
)
def test_it_starts_at_eight_or_inside_the_bounds(low: int, high: int, start: int) -> None:
    assert Throttle(low, high).limit == start


def test_after_an_outage_it_begins_like_on_the_first_day_and_never_faster() -> None:
    throttle = Throttle(1, 512)
    load = Load(throttle)
    for _ in range(4):
        load.round()
    assert throttle.restart() == START
    load.round()
    assert throttle.limit == grown(START), "slow start again"
    few = Throttle(1, 512)
    few.busy(1.0, 0.5)
    few.busy(2.0, 1.5)
    assert few.restart() == few.limit < START


_EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["answered", "busy", "timed_out", "restart"]),
        st.floats(0, 2),  # later than the event before
        st.floats(0, 5),  # was in flight for so long
        st.integers(1, 600),
    ),
    max_size=200,
)


@given(st.integers(1, 30), st.integers(0, 400), _EVENTS)
def test_the_bounds_hold_and_errors_never_raise_the_speed(
    low: int, more: int, events: list[tuple[str, float, float, int]]
) -> None:
    throttle = Throttle(low, low + more)
    now, full_at = 0.0, -1e9
    for what, later, took, in_flight in events:
        now += later
        before = throttle.limit
        match what:
            case "answered":
                throttle.answered(now, now - took, took, in_flight)
                full_at = now if in_flight >= before else full_at
                if now - took >= full_at:
                    assert throttle.limit <= before, "grows only by who was in flight while every place was taken"
                assert throttle.limit <= before + 1
            case "busy":
                throttle.busy(now, now - took)
                assert throttle.limit <= before
            case "timed_out":
                throttle.timed_out(now, now - took)
                assert throttle.limit <= before
            case _:
                throttle.restart()
                assert throttle.limit <= before
        assert low <= throttle.limit <= low + more


@pytest.mark.parametrize(("places", "seed"), [(6, 1), (40, 2), (150, 3)])
def test_it_finds_the_capacity_of_a_server_that_refuses_more(places: int, seed: int) -> None:
    """A server with room for so many refuses the rest: the run keeps most of its places busy."""
    rng = random.Random(seed)
    throttle = Throttle(1, 512)
    flying: list[tuple[float, float, bool]] = []  # done at, sent at, refused
    now, busy_s, refused, answered = 0.0, 0.0, 0, 0
    while now < 120:
        while len(flying) < throttle.limit:
            serving = sum(not no for _, _, no in flying)
            no = serving >= places
            heapq.heappush(flying, (now + (0.005 if no else rng.uniform(0.2, 0.4)), now, no))
        done, sent, no = heapq.heappop(flying)
        busy_s += (done - now) * sum(not n for _, _, n in flying)
        now = done
        if no:
            refused += 1
            throttle.busy(now, sent)
        else:
            answered += 1
            throttle.answered(now, sent, 0.05, len(flying) + 1)
    assert busy_s / now > 0.6 * places
    assert refused < 0.1 * answered + 100


@pytest.mark.parametrize(("fast", "seed"), [(10, 1), (50, 2)])
def test_it_does_not_pile_up_a_queue_at_a_server_that_never_refuses(fast: int, seed: int) -> None:
    """A server that works on `fast` at a time and lets the rest wait: the queue stays a small multiple of that."""
    rng = random.Random(seed)
    throttle = Throttle(1, 512)
    free_at = [0.0] * fast
    flying: list[tuple[float, float, float]] = []
    now, limits = 0.0, []
    while now < 300:
        while len(flying) < throttle.limit:
            begin = max(now, heapq.heappop(free_at))
            end = begin + rng.uniform(0.2, 0.4)
            heapq.heappush(free_at, end)
            heapq.heappush(flying, (end, now, begin - now + 0.02))
        now, sent, waited = heapq.heappop(flying)
        throttle.answered(now, sent, waited, len(flying) + 1)
        limits.append(throttle.limit)
    late = limits[len(limits) // 2 :]
    assert min(late) >= 0.8 * fast, "the server is kept busy"
    assert sum(late) / len(late) <= 3 * fast, "and not buried"


def test_a_round_is_at_least_sixteen_answers_for_one_alone_tells_nothing() -> None:
    throttle = Throttle(1, 4)
    for number in range(ROUND):
        throttle.answered(float(number), float(number), 0.1, 4)
    for number in range(ROUND - 1):
        throttle.answered(100.0 + number, 100.0 + number, 9.0, 4)
    assert throttle.cuts.slower == 0
    throttle.answered(200.0, 200.0, 9.0, 4)
    assert throttle.cuts.slower == 1
