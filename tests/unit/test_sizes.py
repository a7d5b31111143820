"""Learned sizes and times: what the next request reserves, and how long its answer may take."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbatch.pace import Used
from cbatch.schema import Completion, Request, TimeInfo, Usage
from cbatch.sizes import DEADLINE_S, MORE_ROOM, STEP_TOKENS, WARM_UP, Histogram, Mean, Sizes

CEILING, DEFAULT = 40_000, 16_384


def sizes(*, auto: bool = True, ceiling: int = CEILING) -> Sizes:
    return Sizes(auto=auto, ceiling=ceiling, default=DEFAULT)


def request(estimate: int = 100, limit: int | None = None) -> Request:
    return Request(
        model="m",
        body=b"{}",
        digest=b"d",
        prompt_tokens_estimate=estimate,
        reserve_tokens=estimate + (limit or DEFAULT),
        limit_tokens=limit,
    )


def answer(
    tokens: int | None, *, prompt: int | None = 100, cached: int | None = None, generated_s: float | None = None
) -> Completion:
    total = None if tokens is None or prompt is None else tokens + prompt
    return Completion(
        text="x",
        reasoning=None,
        tool_calls=None,
        finish_reason="stop",
        usage=Usage(prompt_tokens=prompt, cached_tokens=cached, completion_tokens=tokens, total_tokens=total),
        time_info=TimeInfo(completion_s=generated_s),
        request_id=None,
        served_model=None,
        system_fingerprint=None,
    )


def learn(of: Sizes, *lengths: int, latency_s: float = 1.0, cut: bool = False) -> None:
    for tokens in lengths:
        of.learn(request(), answer(tokens), latency_s, cut=cut)


# -- max_completion_tokens: auto ------------------------------------------------------------------


def test_before_enough_answers_it_is_what_the_server_would_reserve_anyway() -> None:
    of = sizes()
    learn(of, *[50] * (WARM_UP - 1))
    assert of.cap() == DEFAULT
    learn(of, 50)
    assert of.cap() < 200


def test_a_model_that_writes_less_than_the_default_is_never_asked_for_more() -> None:
    of = sizes(ceiling=8_000)
    assert of.cap() == of.cap(8_000) == 8_000
    learn(of, *[7_900] * 50)
    assert of.cap() == 8_000


@pytest.mark.parametrize("longest", [1, 100, 300, 2_000])
def test_the_right_size_holds_what_was_seen_with_room_and_is_not_much_more(longest: int) -> None:
    of = sizes()
    rng = random.Random(longest)
    lengths = [rng.randint(max(longest // 3, 1), longest) for _ in range(500)]
    learn(of, *lengths)
    assert max(lengths) <= of.cap() <= 1.7 * longest + STEP_TOKENS
    assert of.cap() % STEP_TOKENS == 0


def test_lengths_that_are_learned_are_those_of_whole_answers() -> None:
    """A cut answer has the length of our own limit: learned, it would keep the limit where it is."""
    of = sizes()
    learn(of, *[100] * WARM_UP)
    before = of.cap()
    learn(of, *[before] * 500, cut=True)
    assert of.cap() == before
    learn(of, *[3_000] * 50)
    assert of.cap() >= 3_000


def test_answers_without_usage_teach_nothing_and_break_nothing() -> None:
    of = sizes()
    for _ in range(100):
        of.learn(request(), answer(None, prompt=None), 1.0, cut=False)
    assert of.cap() == DEFAULT
    assert of.deadline_s(1_000, 0, 180.0) == 180.0
    assert of.slow_after_s(0.99) is None
    assert of.used(answer(None, prompt=None)) is None


@pytest.mark.parametrize(("ceiling", "longest_chain"), [(40_000, 6), (131_072, 6), (64, 1)])
def test_an_answer_that_was_cut_gets_more_room_up_to_the_ceiling_in_a_few_steps(
    ceiling: int, longest_chain: int
) -> None:
    of = sizes(ceiling=ceiling)
    learn(of, *[1] * 200)
    chain = [of.cap()]
    while chain[-1] < ceiling:
        chain.append(of.cap(chain[-1]))
        assert chain[-1] == min(MORE_ROOM * chain[-2], ceiling)
    assert len(chain) - 1 <= longest_chain


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.booleans(), st.floats(0, 100)), max_size=150), st.integers(1, 50_000)
)
def test_it_is_never_beyond_the_ceiling_and_never_nothing(answers: list[tuple[int, bool, float]], ceiling: int) -> None:
    of = sizes(ceiling=ceiling)
    for tokens, cut, latency_s in answers:
        of.learn(request(), answer(tokens), latency_s, cut=cut)
        assert 1 <= of.cap() <= ceiling
        assert of.cap(of.cap()) <= ceiling
        assert 0 < of.deadline_s(of.cap(), 0, 180.0) <= 180.0


def test_without_auto_the_size_is_the_jobs() -> None:
    of = sizes(auto=False)
    learn(of, *[10] * 100)
    assert of.completion_tokens(request(limit=500), None) == 500
    assert of.cost(request(limit=500)).reserve == 600


def test_what_right_sizing_did_is_counted() -> None:
    of = sizes()
    of.booked(256, DEFAULT, cut=True, tokens=256)
    of.booked(1_024, DEFAULT, cut=False, tokens=300)
    gain = of.gain
    assert (gain.requests, gain.reserved_tokens, gain.unsized_tokens) == (2, 1_280, 2 * DEFAULT)
    assert (gain.cut, gain.cut_tokens) == (1, 256)


# -- what a request reserves, and uses ------------------------------------------------------------


def test_before_any_answer_the_estimate_is_taken_at_its_word() -> None:
    cost = sizes(auto=False).cost(request(limit=500))
    assert cost == (600, 600, 600)


def test_what_a_byte_is_worth_is_learned_with_its_spread() -> None:
    """Our estimate is half the truth: reservations grow to it, and a little beyond where it varies."""
    of = sizes(auto=False)
    for _ in range(50):
        of.learn(request(100), answer(20, prompt=200), 1.0, cut=False)
    cost = of.cost(request(100, limit=500))
    assert list(cost) == pytest.approx([700, 220, 220], abs=1)
    rng = random.Random(3)
    for _ in range(200):
        of.learn(request(100), answer(20, prompt=rng.randint(150, 250)), 1.0, cut=False)
    assert 750 <= of.cost(request(100, limit=500)).reserve <= 850


def test_what_comes_from_the_cache_is_expected_to_come_from_it_again() -> None:
    of = sizes(auto=False)
    for _ in range(50):
        of.learn(request(100), answer(20, cached=80), 1.0, cut=False)
    cost = of.cost(request(100, limit=500))
    assert [cost.uncached, cost.total] == pytest.approx([40, 120])
    assert cost.reserve == 600, "the server reserves without knowing its cache"


@pytest.mark.parametrize(
    ("usage", "used"),
    [
        (Usage(prompt_tokens=10, completion_tokens=5, total_tokens=15), Used(15, 15)),
        (Usage(prompt_tokens=10, completion_tokens=5, total_tokens=15, cached_tokens=8), Used(7, 15)),
        (Usage(prompt_tokens=10, completion_tokens=5), Used(15, 15)),
        (Usage(total_tokens=15), Used(15, 15)),
        (Usage(total_tokens=15, cached_tokens=99), Used(0, 15)),
        (Usage(completion_tokens=5), None),
        (Usage(), None),
    ],
)
def test_what_an_answer_used_is_the_servers_word_or_nothing(usage: Usage, used: Used | None) -> None:
    given_answer = answer(5)
    given_answer.usage = usage
    assert Sizes.used(given_answer) == used


@pytest.mark.parametrize("prompt", [0, 10**12])
def test_a_server_that_counts_nonsense_moves_the_estimate_by_twenty_times_at_most(prompt: int) -> None:
    of = sizes(auto=False)
    for _ in range(100):
        of.learn(request(100), answer(1, prompt=prompt), 1.0, cut=False)
    assert 5 <= of.cost(request(100, limit=1)).total - 1 <= 2_001


# -- deadlines ------------------------------------------------------------------------------------


def test_before_enough_answers_a_deadline_is_the_jobs() -> None:
    of = sizes()
    learn(of, *[100] * (WARM_UP - 1))
    assert of.deadline_s(100, 0, 180.0) == 180.0


def test_a_deadline_grows_with_the_tokens_asked_for_and_never_beyond_the_jobs() -> None:
    of = sizes()
    learn(of, *[100] * 50, latency_s=0.1)  # 1 ms a token
    assert of.deadline_s(100, 0, 180.0) == pytest.approx(DEADLINE_S + 0.5)
    assert of.deadline_s(2_000, 0, 180.0) == pytest.approx(DEADLINE_S + 10)
    assert of.deadline_s(10**6, 0, 180.0) == 180.0


def test_every_retry_has_twice_as_long_up_to_the_jobs() -> None:
    of = sizes()
    learn(of, *[100] * 50, latency_s=0.1)
    first = of.deadline_s(100, 0, 180.0)
    assert [of.deadline_s(100, tries, 180.0) for tries in range(1, 5)] == pytest.approx(
        [2 * first, 4 * first, 8 * first, 16 * first]
    )
    assert of.deadline_s(100, 5, 180.0) == of.deadline_s(100, 10**6, 180.0) == 180.0


def test_the_servers_own_clock_tells_generation_from_waiting() -> None:
    """A second of waiting and 10 ms a token: 1,000 tokens are expected after 11 s, 10 after 1.1 s."""
    of = sizes()
    for _ in range(200):
        of.learn(request(), answer(100, generated_s=1.0), 2.0, cut=False)
    assert of.deadline_s(1_000, 0, 1e9) == pytest.approx(DEADLINE_S + 5 * 11)
    assert of.deadline_s(10, 0, 1e9) == pytest.approx(DEADLINE_S + 5 * 1.1)


@pytest.mark.parametrize("generated_s", [-1.0, 5.0, float("nan"), float("inf")])
def test_a_server_clock_that_cannot_be_is_not_believed(generated_s: float) -> None:
    of = sizes()
    for _ in range(50):
        of.learn(request(), answer(100, generated_s=generated_s), 0.5, cut=False)
    assert of.deadline_s(100, 0, 180.0) == pytest.approx(DEADLINE_S + 2.5)


def test_a_server_that_becomes_slower_is_learned_and_not_given_up() -> None:
    of = sizes()
    learn(of, *[100] * 100, latency_s=0.2)
    learn(of, *[100] * 5, latency_s=10.0)
    assert of.deadline_s(100, 0, 180.0) > 5 * 10.0


def test_late_is_what_is_slower_than_nearly_all_answers() -> None:
    of = sizes()
    learn(of, *[100] * (5 * WARM_UP - 1), latency_s=0.1)
    assert of.slow_after_s(0.99) is None, "not from a handful of answers"
    learn(of, 100, latency_s=0.1)
    late_s = of.slow_after_s(0.99)
    assert late_s is not None
    assert 0.1 <= late_s <= 0.15


# -- the parts ------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2**23), min_size=1, max_size=200), st.floats(0.01, 1))
def test_a_quantile_holds_its_part_of_the_sizes_and_is_at_most_a_bucket_too_large(
    values: list[int], part: float
) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    found = histogram.quantile(part)
    exact = sorted(values)[math.ceil(part * len(values)) - 1]
    assert max(exact, 1) <= found <= max(exact, 1) * 2 ** (1 / 8) * (1 + 1e-9)


def test_sizes_beyond_all_buckets_count_as_the_largest() -> None:
    histogram = Histogram()
    assert histogram.quantile(0.5) == 0.0
    histogram.add(10**12)
    assert histogram.quantile(1.0) >= 2**23


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=100))
def test_a_running_mean_stays_between_its_values(values: list[float]) -> None:
    mean = Mean(1.0)
    for value in values:
        mean.add(value)
    assert min(values) - 1e-6 <= mean.mean <= max(values) + 1e-6
    assert mean.far >= 0
    assert mean.high >= mean.mean
