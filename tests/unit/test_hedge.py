"""Asked a second time: only late requests, inside the cost cap, and the loser leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from typing import Any, cast

import pytest

from cbatch.catalog import Quota
from cbatch.client import Client
from cbatch.errors import APIConnectionError, APIError, APITimeoutError, APIUnreachableError
from cbatch.gate import Gate
from cbatch.hedge import NOTHING, Hedge
from cbatch.job import Retry
from cbatch.pace import Cost
from cbatch.purse import Bill
from cbatch.schema import Completion
from cbatch.session import Activity
from cbatch.sizes import Sizes
from tests.unit.test_send import WatchedPacer, WatchedPurse, completion, request

Virtual = Callable[[Any], Any]

COST = Cost(1_000.0, 10.0, 10.0)
BILL = Bill(0.001, 1_000.0)
USUAL_S = 0.1
CONNECTS = [(0.0, 0.0), (0.0, 0.05), (0.0, 0.2), (0.2, 0.0), (9.0, 0.0)]


@dataclass
class Api:
    """Every request takes its own time: (seconds, answer or error), after its time to connect."""

    plan: list[tuple[float, Completion | BaseException]]
    connects_s: tuple[float, float] = (0.0, 0.0)  # a first one, a second one
    cannot_connect: bool = False  # a second one
    firsts: int = 1
    started: list[float] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    cancelled: int = 0

    async def complete(self, body: bytes, deadline_s: float, on_sent: Callable[[], None] = lambda: None) -> Completion:
        number = len(self.started)
        took_s, end = self.plan[min(number, len(self.plan) - 1)]
        self.started.append(asyncio.get_running_loop().time() - 1_000.0)
        try:
            if connects_s := self.connects_s[number >= self.firsts]:
                await asyncio.sleep(connects_s)
            if number >= self.firsts and self.cannot_connect:
                raise APIUnreachableError("u")
            self.sent.append(number)
            on_sent()
            await asyncio.sleep(took_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if isinstance(end, BaseException):
            raise end
        return end


class Bench:
    """A hedge that knows that answers take 0.1 s, with a permit and a bill already taken for the first."""

    def __init__(
        self, api: Api, *, share: float = 1.0, answers: int = 200, rpm: int | None = None, tokens: int | None = None
    ) -> None:
        self.api, self.purse, self.activity = api, WatchedPurse(tokens=tokens), Activity()
        self.pacer = WatchedPacer(Quota(rpm=rpm), now=asyncio.get_running_loop().time())
        self.gate = Gate(self.pacer)
        sizes = Sizes(auto=False, ceiling=1_000, default=1_000)
        for _ in range(answers):
            sizes.learn(request(), completion(), USUAL_S, cut=False)
        self.hedge = Hedge(cast(Client, api), self.gate, sizes, self.activity, share)
        self.hedge._used_tokens = 1_000.0 * (answers > 0)

    async def ask(self, deadline_s: float = 60.0) -> Completion:
        await self.gate.enter(COST)
        self.purse._hold(BILL)
        try:
            return await self.hedge.complete(b"{}", deadline_s, COST, self.purse, BILL)
        finally:
            self.gate.leave(COST, None)
            self.purse.settle(BILL, None)

    def settled(self) -> bool:
        return (self.pacer.out, self.pacer.in_flight, self.purse.out, self.purse._holders) == ([], 0, [], 0)


FIRST, SECOND = completion("first"), completion("second")


def test_it_is_off_unless_the_job_says_which_share_it_may_cost() -> None:
    assert Retry().hedge is None


@pytest.mark.parametrize(
    ("plan", "winner", "requests", "cancelled"),
    [
        pytest.param([(0.1, FIRST)], "first", 1, 0, id="in time: asked once"),
        pytest.param([(30.0, FIRST), (0.1, SECOND)], "second", 2, 1, id="late: the second wins"),
        pytest.param([(0.5, FIRST), (9.0, SECOND)], "first", 2, 1, id="late, and first all the same"),
        pytest.param([(30.0, FIRST), (0.1, APIConnectionError("c"))], "first", 2, 0, id="the second fails"),
        pytest.param([(0.5, APIConnectionError("c")), (1.0, SECOND)], "second", 2, 0, id="the first fails, late"),
    ],
)
def test_the_first_answer_wins_and_the_loser_is_cancelled(
    virtual: Virtual, plan: list[tuple[float, Completion | BaseException]], winner: str, requests: int, cancelled: int
) -> None:
    async def main() -> None:
        bench = Bench(Api(plan))
        assert (await bench.ask()).text == winner
        assert (len(bench.api.started), bench.api.cancelled) == (requests, cancelled)
        assert bench.activity.hedged == bench.activity.sent == requests - 1
        assert bench.settled()
        assert bench.purse.settled == [None] * requests, "the loser may have been paid for: at its worst"

    virtual(main())


@pytest.mark.parametrize(
    ("api", "cancelled"),
    [
        pytest.param(Api([(0.5, FIRST)], connects_s=(0.0, 9.0)), 1, id="the first answers while the second connects"),
        pytest.param(Api([(0.5, FIRST)], cannot_connect=True), 0, id="the second cannot connect"),
    ],
)
def test_a_second_request_that_was_never_written_is_not_counted_and_costs_nothing(
    virtual: Virtual, api: Api, cancelled: int
) -> None:
    async def main() -> None:
        bench = Bench(api)
        assert (await bench.ask()).text == "first"
        assert (len(api.started), api.sent, api.cancelled) == (2, [0], cancelled)
        assert bench.activity.hedged == bench.activity.sent == 0
        assert bench.hedge._spent_tokens == 0
        assert bench.settled()
        assert bench.purse.settled == [NOTHING, None], "the second before the first, whose bill is the test's"

    virtual(main())


def test_a_first_request_that_was_overtaken_while_it_connected_was_never_there(virtual: Virtual) -> None:
    """Only one was written, so none was asked twice; what the second may have cost stays taken."""

    async def main() -> None:
        bench = Bench(Api([(0.1, FIRST), (0.1, SECOND)], connects_s=(9.0, 0.0)))
        assert (await bench.ask()).text == "second"
        assert (bench.api.sent, bench.api.cancelled) == ([1], 1)
        assert bench.activity.hedged == bench.activity.sent == 0
        assert bench.settled()
        assert bench.purse.settled == [None, None]

    virtual(main())


def test_what_is_still_to_connect_has_its_part_of_the_share(virtual: Virtual) -> None:
    """Ten are late at once, and the share pays for two of them: no third is even begun."""

    async def main() -> None:
        bench = Bench(Api([(0.5, FIRST)], connects_s=(0.0, 9.0), firsts=10), share=2.5 * COST.total / 1_000.0)
        await asyncio.gather(*(bench.ask() for _ in range(10)))
        assert len(bench.api.started) == 10 + 2
        assert bench.hedge._spent_tokens == 0
        assert bench.settled()

    virtual(main())


def test_both_fail_and_the_error_is_that_of_the_first(virtual: Virtual) -> None:
    async def main() -> None:
        bench = Bench(Api([(5.0, APITimeoutError("mine")), (9.0, APIConnectionError("the other"))]))
        with pytest.raises(APIError, match="mine"):
            await bench.ask()
        assert bench.settled()

    virtual(main())


def test_one_that_fails_early_is_not_asked_again_here(virtual: Virtual) -> None:
    async def main() -> None:
        bench = Bench(Api([(0.01, APIConnectionError("c"))]))
        with pytest.raises(APIConnectionError):
            await bench.ask()
        assert len(bench.api.started) == 1
        assert bench.settled()

    virtual(main())


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"answers": 0}, id="before anything is known"),
        pytest.param({"share": 0.005}, id="beyond the cost cap"),
        pytest.param({"rpm": 1}, id="without a permit"),
        pytest.param({"tokens": 1_999}, id="beyond the budget"),
    ],
)
def test_nobody_is_asked_twice_where_that_is_not_allowed(virtual: Virtual, given: dict[str, Any]) -> None:
    async def main() -> None:
        bench = Bench(Api([(30.0, FIRST)]), **given)
        assert (await bench.ask()).text == "first"
        assert (len(bench.api.started), bench.activity.hedged) == (1, 0)
        assert bench.settled()

    virtual(main())


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_the_cost_of_all_second_requests_stays_inside_the_cap(virtual: Virtual, share: float) -> None:
    """Every single request is late: so many are asked twice as the share pays for."""

    async def main() -> None:
        bench = Bench(Api([(1.0, completion())]), share=share)
        for _ in range(300):
            await bench.ask()
        assert bench.hedge._spent_tokens <= share * bench.hedge._used_tokens
        assert bench.activity.hedged == pytest.approx(share * (100 + 300), abs=2)
        assert bench.settled()

    virtual(main())


def test_cancelled_at_any_turn_both_are_cancelled_and_nothing_stays_out(virtual: Virtual) -> None:
    """Before, at and after every moment at which something happens, with any number of turns in between.

    What was counted and charged is what was written.
    """

    async def main() -> None:
        for connects_s, at in product(CONNECTS, (0.0, 0.05, 0.1, 0.11, 0.12, 0.15, 0.3, 0.5, 0.501)):
            for turns in range(8):
                api = Api([(0.5, FIRST), (0.4, SECOND)], connects_s=connects_s)
                bench = Bench(api)
                task = asyncio.ensure_future(bench.ask())
                await asyncio.sleep(at)
                for _ in range(turns):
                    await asyncio.sleep(0)
                if task.cancel():
                    await asyncio.wait([task])
                    assert task.cancelled(), f"a cancellation was swallowed at {at} s, turn {turns}"
                await asyncio.sleep(0)
                assert bench.settled()
                assert bench.activity.hedged == bench.activity.sent == (len(api.sent) == 2)
                assert bench.hedge._spent_tokens == (1 in api.sent) * COST.total
                assert len(asyncio.all_tasks()) == 1

    virtual(main())
