"""What a run may spend: a budget is a promise, so the next request is held against its worst case.

A request takes its most expensive outcome out of the purse and puts back what it did not cost. One
that does not fit waits for what is in flight; when nothing is in flight any more, the run stops
before it. An answer that may have been paid and never came stays taken at its worst.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import NamedTuple

from cbatch.errors import BudgetReached


class Bill(NamedTuple):
    """What one request costs at most, or did cost."""

    usd: float
    tokens: float


class Purse:
    """The budget of a run. None is no limit. Belongs to the running loop."""

    def __init__(self, usd: float | None, tokens: int | None, *, spent_usd: float, spent_tokens: int) -> None:
        self.usd, self.tokens = usd, tokens
        self.spent_usd, self.spent_tokens = spent_usd, float(spent_tokens)
        self._held_usd = self._held_tokens = 0.0
        self._holders = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._wanted: list[Bill] = []  # by those who wait, woken or not

    @property
    def is_open(self) -> bool:
        """Whether there is a budget at all."""
        return self.usd is not None or self.tokens is not None

    async def take(self, most: Bill) -> None:
        """Take what the request may cost; waits for answers that may give back enough.

        Raises BudgetReached before the request that could cross the budget.
        """
        while crossed := self._crossed(most):
            # Who wants less may still fit: else the same line, run again, would send that one.
            if not self._holders and all(self._crossed(other) for other in self._wanted):
                self._wake()
                raise BudgetReached(crossed, hint="raise it and run the same line again: it goes on from here")
            change = asyncio.get_running_loop().create_future()
            self._waiting.append(change)
            self._wanted.append(most)
            try:
                await change
            except asyncio.CancelledError:
                self._wake()  # somebody may have waited for this one
                raise
            finally:
                self._wanted.remove(most)
        self._hold(most)

    def try_take(self, most: Bill) -> bool:
        """Take what the request may cost, if it is there."""
        if self._crossed(most):
            return False
        self._hold(most)
        return True

    def settle(self, most: Bill, real: Bill | None) -> None:
        """The request ended, and cost so much; None: nobody knows, so it cost the most it can."""
        paid = real or most
        self._holders -= 1
        self._held_usd -= most.usd
        self._held_tokens -= most.tokens
        self.spent_usd += paid.usd
        self.spent_tokens += paid.tokens
        self._wake()

    def _hold(self, most: Bill) -> None:
        self._holders += 1
        self._held_usd += most.usd
        self._held_tokens += most.tokens

    def _wake(self) -> None:
        while self._waiting:
            if not (waiter := self._waiting.popleft()).done():
                waiter.set_result(None)

    def _crossed(self, most: Bill) -> str | None:
        usd = self.spent_usd + self._held_usd + most.usd
        if self.usd is not None and usd > self.usd + 1e-12:
            return (
                f"budget.usd of ${self.usd:,.4g}: ${self.spent_usd:,.4f} are spent, and the next request "
                f"may cost ${most.usd:,.4f}"
            )
        tokens = self.spent_tokens + self._held_tokens + most.tokens
        if self.tokens is not None and tokens > self.tokens:
            return (
                f"budget.tokens of {self.tokens:,}: {self.spent_tokens:,.0f} are used, and the next request "
                f"may use {most.tokens:,.0f}"
            )
        return None
