"""Ask again where an answer is later than nearly all others, inside a cost cap; the first answer wins.

The last 1 % of a run otherwise waits for a dead socket or a slow machine at its full length. Off
unless `retry.hedge` says which share of the tokens may be spent on it.
"""

from __future__ import annotations

import asyncio

from cbatch.client import Client
from cbatch.gate import Gate
from cbatch.pace import Cost
from cbatch.purse import Bill, Purse
from cbatch.schema import Completion
from cbatch.session import Activity
from cbatch.sizes import Sizes
from cbatch.transport import OnSent

QUANTILE = 0.99  # of the answers are there before anything is asked a second time
NOTHING = Bill(0.0, 0.0)
LOOK_AGAIN_S = 1.0  # where it is not known yet what is late, or a late one cannot be asked again yet


class Hedge:
    """Sends requests of one model, late ones twice. `share` is of the tokens that all answers used."""

    def __init__(self, api: Client, gate: Gate, sizes: Sizes, activity: Activity, share: float) -> None:
        self._api, self._gate, self._sizes, self._activity = api, gate, sizes, activity
        self._share = share
        self._spent_tokens = self._used_tokens = 0.0

    async def complete(self, body: bytes, deadline_s: float, cost: Cost, purse: Purse, bill: Bill | None) -> Completion:
        """The first answer of one or two identical requests. Raises APIError when both failed.

        `cost` and `bill` are what one of them may cost; the first has them already. Who loses may have
        been paid for, so its bill is its worst; a second that was called back unsent costs nothing.
        """
        loop = asyncio.get_running_loop()
        begun_at = loop.time()
        written = 0

        def count() -> None:
            nonlocal written
            written += 1
            if written == 2:  # not with the second: it may overtake a first that is still to connect
                self._activity.hedged += 1
                self._activity.sent += 1

        first = asyncio.ensure_future(self._api.complete(body, deadline_s, on_sent=count))
        tasks = [first]
        try:
            while not first.done():
                late_s = self._sizes.slow_after_s(QUANTILE)  # what was sent before it was known can be late, too
                wait_s = LOOK_AGAIN_S if late_s is None else begun_at + late_s - loop.time()
                if wait_s <= 0:
                    if self._affords(cost) and self._enter(cost, purse, bill):
                        tasks.append(asyncio.ensure_future(self._second(body, deadline_s, cost, purse, bill, count)))
                        await asyncio.sleep(0)  # it begins, even if the first is in: it has a permit to give back
                        break
                    wait_s = LOOK_AGAIN_S
                await asyncio.wait({first}, timeout=wait_s)
            return self._book(await _first_answer(tasks), cost)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)  # does not swallow a cancellation of this one, which comes meanwhile
            for task in tasks:
                if not task.cancelled():
                    task.exception()  # seen: nobody else asks

    async def _second(
        self, body: bytes, deadline_s: float, cost: Cost, purse: Purse, bill: Bill | None, count: OnSent
    ) -> Completion:
        used, sent = None, False

        def on_sent() -> None:
            nonlocal sent
            sent = True
            count()

        try:
            answer = await self._api.complete(body, deadline_s, on_sent=on_sent)
            used = self._sizes.used(answer)
        finally:
            if sent:
                self._gate.leave(cost, used)
            else:  # called back, or failed, while it was still to connect
                self._gate.never_sent(cost)
                self._spent_tokens -= cost.total
            if bill:
                purse.settle(bill, None if sent else NOTHING)
        return answer

    def _enter(self, cost: Cost, purse: Purse, bill: Bill | None) -> bool:
        if bill and not purse.try_take(bill):
            return False
        if self._gate.try_enter(cost):
            self._spent_tokens += cost.total
            return True
        if bill:
            purse.settle(bill, NOTHING)
        return False

    def _affords(self, cost: Cost) -> bool:
        return self._spent_tokens + cost.total <= self._share * self._used_tokens

    def _book(self, answer: Completion, cost: Cost) -> Completion:
        self._used_tokens += answer.usage.total_tokens or cost.total
        return answer


async def _first_answer(tasks: list[asyncio.Task[Completion]]) -> Completion:
    """The first that succeeds; the error of the first when none does."""
    pending = set(tasks)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if task.exception() is None:
                return task.result()
    return tasks[0].result()
