"""Is the endpoint there? Sequences of answers and failures, without a clock."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbatch.health import DISTINCT, FIRST_TRY_S, GIVE_UP, LONGEST_TRY_S, QUIET_S, UNREACHABLE, Health, Verdict


def fail(health: Health, now: float, prompt: int, *, unreachable: bool = False) -> Verdict:
    return health.failed(now, prompt, unreachable=unreachable)


def proven() -> Health:
    """An endpoint that has answered."""
    health = Health(900.0)
    assert health.answered(0.0) is None
    return health


def test_many_different_prompts_in_a_row_without_an_answer_are_an_outage() -> None:
    health = proven()
    verdicts = [fail(health, 1.0 + n, n) for n in range(DISTINCT + 3)]
    assert verdicts == ["counts"] * (DISTINCT - 1) + ["paused"] * 4
    assert (health.is_down, health.down_since, health.outages) == (True, 1.0, 1), "since the first failure"


def test_a_crowd_that_fails_faster_than_any_answer_can_come_is_no_outage() -> None:
    """500 prompts fail in the same moment: the endpoint is gone when a second later still nobody is answered."""
    health = proven()
    assert {fail(health, 5.0, n) for n in range(500)} == {"counts"}
    assert fail(health, 5.0 + QUIET_S - 0.01, 500) == "counts"
    assert fail(health, 5.0 + QUIET_S, 501) == "paused"
    assert health.down_since == 5.0


def test_two_poison_rows_at_the_end_of_a_run_are_no_outage_however_often_they_fail() -> None:
    health = proven()
    assert {fail(health, float(n), n % 2) for n in range(200)} == {"counts"}
    assert not health.is_down


def test_every_answer_in_between_starts_the_row_anew() -> None:
    health = proven()
    for n in range(1_000):
        assert fail(health, float(n), n) == "counts"
        if n % (DISTINCT - 1) == 0:
            assert health.answered(float(n)) is None


def test_connections_that_cannot_be_made_say_nothing_about_a_prompt() -> None:
    """Three in a row are an outage, of one prompt, too."""
    health = proven()
    assert [fail(health, 1.0, 7, unreachable=True) for _ in range(UNREACHABLE)] == ["counts", "counts", "paused"]
    mixed = proven()
    for _ in range(10):
        assert fail(mixed, 1.0, 7, unreachable=True) == "counts"
        assert fail(mixed, 1.0, 7) == "counts"


def test_before_the_first_answer_nothing_proves_that_the_endpoint_was_ever_there() -> None:
    health = Health(900.0)
    assert {fail(health, float(n), n, unreachable=True) for n in range(500)} == {"counts"}
    assert not health.is_down


def test_an_answer_ends_the_pause_and_tells_how_long_it_was() -> None:
    health = proven()
    for n in range(DISTINCT):
        fail(health, 10.0, n)
    assert fail(health, 60.0, 1) == "paused"
    assert health.answered(110.0) == 100.0
    assert (health.is_down, health.down_s, health.outages) == (False, 100.0, 1)
    assert health.answered(120.0) is None
    assert fail(health, 130.0, 1) == "counts", "and the row of failures is a new one"
    for n in range(DISTINCT):
        fail(health, 140.0, n)
    assert health.answered(150.0) == 20.0
    assert (health.down_s, health.outages) == (120.0, 2)


def test_the_patience_is_measured_from_the_first_failure_and_ends_with_over() -> None:
    health = proven()
    for n in range(DISTINCT):
        fail(health, 10.0, n)
    assert fail(health, 910.0, 1) == "paused"
    assert fail(health, 910.1, 1) == "over"


def test_tries_come_after_1_2_4_seconds_and_so_on_up_to_30() -> None:
    health, now, waits = proven(), 0.0, []
    for _ in range(8):
        wait = health.next_try(now, now)
        assert wait is not None
        waits.append(wait)
        now += wait
    assert waits == [FIRST_TRY_S, 2, 4, 8, 16, LONGEST_TRY_S, LONGEST_TRY_S, LONGEST_TRY_S]
    health.answered(now)
    assert health.next_try(now, now) == FIRST_TRY_S, "an answer begins anew"


def test_what_was_sent_before_the_last_try_does_not_put_it_off() -> None:
    """500 requests were in flight when the endpoint went: they are one try, not 500."""
    health = proven()
    assert health.next_try(10.0, 5.0) == FIRST_TRY_S
    for _ in range(500):
        assert health.next_try(10.5, 5.0) is None
    assert health.next_try(11.2, 11.0) == 2 * FIRST_TRY_S


@pytest.mark.parametrize(("unreachable", "prompts"), [(True, 1), (False, GIVE_UP)])
def test_where_nothing_was_ever_answered_the_run_stops_after_so_many_prompts(unreachable: bool, prompts: int) -> None:
    health = Health(900.0)
    assert [health.gave_up(unreachable=unreachable) for _ in range(prompts)] == [False] * (prompts - 1) + [True]


def test_after_one_answer_no_number_of_lost_prompts_stops_the_run() -> None:
    health = proven()
    assert not any(health.gave_up(unreachable=bool(n % 2)) for n in range(1_000))


def test_random_failures_of_a_fifth_practically_never_pause() -> None:
    """A million requests, each failing by chance one time in five, each failure of another prompt."""
    rng, health = random.Random(5), proven()
    for n in range(1_000_000):
        if rng.random() < 0.2:
            fail(health, float(n), n)
        else:
            health.answered(float(n))
    assert health.outages <= 8, "0.2 ** 8 a request: 2.6 in a million"


@given(st.lists(st.tuples(st.sampled_from(["answer", "fail", "refused"]), st.integers(0, 12), st.floats(0, 60))))
def test_a_pause_needs_proof_and_distinct_prompts_in_a_row(events: list[tuple[str, int, float]]) -> None:
    health, now, answers = Health(100.0), 0.0, 0
    row: set[int] = set()
    refused, since = 0, now
    for what, prompt, later in events:
        now += later
        was_down = health.is_down
        if what == "answer":
            away = health.answered(now)
            assert (away is not None) == was_down
            answers, row, refused = answers + 1, set(), 0
            continue
        since = since if row else now
        row.add(prompt)
        refused = refused + 1 if what == "refused" else 0
        verdict = fail(health, now, prompt, unreachable=what == "refused")
        if verdict == "counts":
            assert not answers or (refused < UNREACHABLE and (len(row) < DISTINCT or now - since < QUIET_S))
        else:
            assert answers
            assert was_down or refused >= UNREACHABLE or (len(row) >= DISTINCT and now - since >= QUIET_S)
            assert health.down_since is not None
            assert (verdict == "over") == (now - health.down_since > 100.0)
        assert health.is_down == (verdict != "counts")
