"""A budget is a promise: never crossed, and never refused while somebody may still give something back."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbatch.errors import BudgetReached
from cbatch.purse import Bill, Purse
from tests.conftest import VirtualLoop

Virtual = Callable[[Any], Any]


def purse(usd: float | None = None, tokens: int | None = None, spent: float = 0.0) -> Purse:
    return Purse(usd, tokens, spent_usd=spent, spent_tokens=int(spent))


@pytest.mark.parametrize(
    ("usd", "tokens", "bill", "fits"),
    [
        pytest.param(None, None, Bill(1e9, 1e12), True, id="no budget"),
        pytest.param(1.0, None, Bill(1.0, 1e12), True, id="exactly the dollars"),
        pytest.param(1.0, None, Bill(1.001, 0), False, id="more dollars"),
        pytest.param(None, 100, Bill(1e9, 100), True, id="exactly the tokens"),
        pytest.param(None, 100, Bill(0, 101), False, id="one token more"),
        pytest.param(1.0, 100, Bill(0.5, 101), False, id="the dollars fit and the tokens do not"),
        pytest.param(1.0, 100, Bill(1.5, 50), False, id="the tokens fit and the dollars do not"),
    ],
)
def test_what_fits_is_taken_and_what_does_not_is_refused(
    virtual: Virtual, usd: float | None, tokens: int | None, bill: Bill, fits: bool
) -> None:
    async def main() -> None:
        of = purse(usd, tokens)
        assert of.is_open == (usd is not None or tokens is not None)
        if fits:
            await of.take(bill)
        else:
            with pytest.raises(BudgetReached) as caught:
                await of.take(bill)
            assert caught.value.exit_code == 4
            assert caught.value.hint
            assert not of.try_take(bill)

    virtual(main())


def test_what_earlier_sessions_spent_counts(virtual: Virtual) -> None:
    async def main() -> None:
        of = Purse(1.0, 1_000, spent_usd=0.9, spent_tokens=100)
        await of.take(Bill(0.1, 900))
        of.settle(Bill(0.1, 900), Bill(0.0, 0.0))
        with pytest.raises(BudgetReached, match=r"budget.usd of \$1: \$0.9000 are spent"):
            await of.take(Bill(0.11, 1))

    virtual(main())


def test_who_does_not_fit_waits_for_what_is_in_flight(virtual: Virtual) -> None:
    """The worst case of the first leaves no room for the second; its real cost does."""

    async def main() -> None:
        of = purse(tokens=100)
        await of.take(Bill(0, 100))
        second = asyncio.ensure_future(of.take(Bill(0, 90)))
        await asyncio.sleep(60)
        assert not second.done(), "60 s, and it neither went nor failed"
        of.settle(Bill(0, 100), Bill(0, 10))
        await second
        assert of.spent_tokens == 10

    virtual(main())


def test_when_nothing_in_flight_could_make_room_everybody_who_waits_is_told(virtual: Virtual) -> None:
    async def main() -> None:
        of = purse(tokens=100)
        await of.take(Bill(0, 60))
        waiting = [asyncio.ensure_future(of.take(Bill(0, 90))) for _ in range(5)]
        await asyncio.sleep(1)
        assert not any(task.done() for task in waiting)
        of.settle(Bill(0, 60), None)
        done, _ = await asyncio.wait(waiting)
        assert all(isinstance(task.exception(), BudgetReached) for task in done)
        assert of.spent_tokens == 60, "unknown costs the most it can"

    virtual(main())


def test_a_small_one_may_still_go_where_a_large_one_waits(virtual: Virtual) -> None:
    async def main() -> None:
        of = purse(tokens=100)
        await of.take(Bill(0, 60))
        large = asyncio.ensure_future(of.take(Bill(0, 90)))
        await asyncio.sleep(1)
        await of.take(Bill(0, 40))
        of.settle(Bill(0, 60), Bill(0, 5))
        await asyncio.sleep(1)
        assert not large.done()
        of.settle(Bill(0, 40), Bill(0, 5))
        await large

    virtual(main())


def test_who_is_cancelled_while_it_waits_has_taken_nothing(virtual: Virtual) -> None:
    async def main() -> None:
        of = purse(tokens=100)
        await of.take(Bill(0, 100))
        first, second = (asyncio.ensure_future(of.take(Bill(0, 50))) for _ in range(2))
        await asyncio.sleep(1)
        first.cancel()
        await asyncio.wait([first])
        of.settle(Bill(0, 100), Bill(0, 50))
        second_too = asyncio.ensure_future(of.take(Bill(0, 1)))
        await second
        second.cancel()  # too late: it has it
        await asyncio.sleep(1)
        assert not second_too.done()
        of.settle(Bill(0, 50), Bill(0, 0))
        await second_too

    virtual(main())


def test_cancelled_in_the_very_turn_in_which_room_was_made(virtual: Virtual) -> None:
    """The place is not lost: another one who waits gets it."""

    async def main() -> None:
        of = purse(tokens=100)
        await of.take(Bill(0, 100))
        first, second = (asyncio.ensure_future(of.take(Bill(0, 100))) for _ in range(2))
        await asyncio.sleep(1)
        of.settle(Bill(0, 100), Bill(0, 0))
        first.cancel()
        await asyncio.wait([first, second])
        assert first.cancelled()
        assert second.exception() is None
        of.settle(Bill(0, 100), Bill(0, 0))
        assert of.try_take(Bill(0, 100))

    virtual(main())


_END = st.sampled_from(["worst", "less", "unknown", "nothing", "cancelled"])


@settings(max_examples=60)
@given(
    budget=st.integers(1, 5_000),
    requests=st.lists(st.tuples(st.integers(1, 600), _END), max_size=80),
    workers=st.sampled_from([1, 3, 100]),
    seed=st.integers(0, 10**6),
)
def test_a_budget_is_never_crossed_and_nothing_is_left_over_without_need(
    budget: int, requests: list[tuple[int, str]], workers: int, seed: int
) -> None:
    """Whatever requests cost and however they end, with 100 at once.

    Who is refused would have crossed the budget with nothing in flight; everything taken is given back.
    """
    price = 1e-6

    async def main() -> None:
        rng = random.Random(seed)
        of = Purse(budget * price, budget, spent_usd=0.0, spent_tokens=0)
        truly = 0
        pending = iter(requests)
        refused: list[int] = []

        async def request(most: int, end: str) -> None:
            nonlocal truly
            bill = Bill(most * price, most)
            await of.take(bill)
            assert of.spent_tokens + of._held_tokens <= budget
            try:
                await asyncio.sleep(rng.random())
                real = {"worst": most, "less": most // 3, "nothing": 0}.get(end)
                truly += most if real is None else real
                of.settle(bill, None if real is None else Bill(real * price, real))
            except asyncio.CancelledError:
                truly += most
                of.settle(bill, None)
                raise
            assert truly <= budget

        async def worker() -> None:
            for most, end in pending:
                task = asyncio.ensure_future(request(most, end))
                if end == "cancelled":
                    asyncio.get_running_loop().call_later(rng.random(), task.cancel)
                await asyncio.wait([task])
                if not task.cancelled() and (exc := task.exception()) is not None:
                    assert isinstance(exc, BudgetReached)
                    assert of.spent_tokens + most > budget
                    refused.append(most)

        async with asyncio.timeout(1_000), asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(worker())
        assert of._holders == 0
        assert of._held_tokens == pytest.approx(0)
        assert of._held_usd == pytest.approx(0, abs=1e-9)
        assert of.spent_tokens == truly <= budget

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())


def test_a_million_small_amounts_do_not_drift(virtual: Virtual) -> None:
    """What is held is a sum of floats that comes and goes; it must not eat the budget or stretch it."""

    async def main() -> None:
        of = purse(usd=1.0)
        for number in range(20_000):
            bill = Bill(1e-5 + number * 1e-10, 3)
            await of.take(bill)
            of.settle(bill, Bill(0.0, 0.0))
        assert abs(of._held_usd) < 1e-12
        await of.take(Bill(1.0, 0))

    virtual(main())
