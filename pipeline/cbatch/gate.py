"""The waiting room in front of a Pacer: first come, first served, one timer, no polling.

The pacer says when; this is the thin shell that waits, under the lock of an account that other
processes may share. A token reservation given back by an answered request lets the head of the
queue go at once, which a sleep computed at the time of the call could not do.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

from cbatch.pace import Cost, Kind, NeverFits, Pacer, Period, Said, Used

SOON_S = 1e-6  # a timer may fire this much early: what is nearly ready is ready
LOOK_AGAIN_S = 1.0  # another process may have learned, or given back, what this one waits for


class Gate:
    """Admits requests of one model in the order they came. Belongs to the running loop.

    `account` is held while the pacer is used. `rest` tells what the rest of the job is: so many
    requests, and the tokens they will reserve.
    """

    def __init__(
        self,
        pacer: Pacer,
        *,
        account: AbstractContextManager[object] | None = None,
        rest: Callable[[], tuple[int, float] | None] = lambda: None,
    ) -> None:
        self.pacer = pacer
        self.blocked: dict[str, float] = {}  # cause -> seconds in which somebody waited for it
        self._account = account or nullcontext()
        self._shared = account is not None
        self._rest = rest
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[asyncio.Future[None], Cost]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._blocked_by = ""
        self._blocked_since = 0.0
        self._trial_because: str | None = None

    def __len__(self) -> int:
        """How many wait."""
        return sum(not future.done() for future, _ in self._queue)

    # -- one request ------------------------------------------------------------------------

    async def enter(self, cost: Cost) -> None:
        """Wait for the permit. Raises NeverFits if it can never be given."""
        now = self._loop.time()
        if not self._queue and self._trial_because is None and self.pacer.is_free(now):
            self.pacer.take(now, cost)  # without the lock, which is two system calls
            return
        with self._account:
            rest = self._rest()
            ready = self.pacer.ready_at(now, cost, rest)  # what can never fit is told at once, whoever waits
            if not self._queue and self._may_go and ready <= now:
                self.pacer.take(now, cost, rest)
                return
        future: asyncio.Future[None] = self._loop.create_future()
        self._queue.append((future, cost))
        if len(self._queue) == 1:
            self.serve()
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.never_sent(cost)  # admitted and cancelled in the same turn
            else:
                self.serve()  # this one may have been the head
            raise

    def try_enter(self, cost: Cost) -> bool:
        """Take a permit if one is free now and nobody waits for it."""
        now = self._loop.time() + SOON_S
        with self._account:
            try:
                free = not self._queue and self._may_go and self.pacer.ready_at(now, cost) <= now
            except NeverFits:
                return False
            if free:
                self.pacer.take(now, cost)
        return free

    def leave(self, cost: Cost, used: Used | None) -> None:
        """The request ended, and used so much (None: unknown)."""
        now = self._loop.time()
        with nullcontext() if self.pacer.is_free(now) else self._account:
            self.pacer.settle(now, cost, used)
        if self._queue:
            self.serve()

    def never_sent(self, cost: Cost) -> None:
        """The request was admitted and then not sent, or the server says that it did nothing for it."""
        with self._account:
            self.pacer.give_back(self._loop.time(), cost)
        if self._queue:
            self.serve()

    def listen(self, words: Iterable[Said]) -> None:
        """What an answer said about the account's windows."""
        with self._account:
            self.pacer.listen(self._loop.time(), words)
        if self._queue:
            self.serve()

    def refused(
        self,
        cost: Cost,
        sent_at: float,
        *,
        kind: Kind,
        period: Period | None,
        stated_s: float | None,
        full_in_s: float | None,
        words: Iterable[Said],
    ) -> bool:
        """A 429 of the quota: the account learns from it, and is held if True. `sent_at` is this loop's time."""
        now = self._loop.time()
        with self._account:
            held = self.pacer.refused(
                now, sent_at, cost, kind=kind, period=period, stated_s=stated_s, full_in_s=full_in_s
            )  # fmt: skip
            self.pacer.listen(now, words)
        self.serve()
        return held

    # -- an endpoint that does not answer ---------------------------------------------------

    def try_one_in(self, seconds: float, because: str) -> None:
        """Admit nobody for so long, then one at a time until `reopen`."""
        self._trial_because = because
        with self._account:
            self.pacer.hold(self._loop.time() + seconds)
        self.serve()

    def reopen(self) -> None:
        """It answers again."""
        if self._trial_because is not None:
            self._trial_because = None
            self.serve()

    @property
    def _may_go(self) -> bool:
        return self._trial_because is None or not self.pacer.in_flight

    # -- the queue --------------------------------------------------------------------------

    @property
    def waiting_for(self) -> tuple[str, float] | None:
        """What the head of the queue waits for, and for how long; None when nobody waits."""
        for future, cost in self._queue:
            if not future.done():
                with self._account:
                    try:
                        why, seconds = self.pacer.waiting_for(self._loop.time(), cost)
                    except NeverFits:  # since it waits; its turn will tell
                        return None
                return self._trial_because or why, seconds
        return None

    def serve(self) -> None:
        """Admit who may go now, and set the timer for who is next."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._loop.time() + SOON_S
        blocked_by = ""
        with self._account:
            while self._queue:
                future, cost = self._queue[0]
                if future.done():  # cancelled while waiting
                    self._queue.popleft()
                    continue
                try:
                    rest = self._rest()
                    ready, why = self.pacer.look(now, cost, rest)
                except NeverFits as exc:  # a limit became known while it waited
                    self._queue.popleft()
                    future.set_exception(exc)
                    continue
                if ready > now or not self._may_go:
                    blocked_by = self._trial_because or why
                    if now < ready < float("inf"):  # else an answer in flight comes first, and calls `leave`
                        again = min(ready, now + LOOK_AGAIN_S) if self._shared else ready
                        self._timer = self._loop.call_at(again, self.serve)
                    break
                self.pacer.take(now, cost, rest)
                self._queue.popleft()  # after it: a bug there must not strand the worker
                future.set_result(None)
        self._note(now, blocked_by)

    def _note(self, now: float, blocked_by: str) -> None:
        """Book the time since the last look to what was waited for."""
        if self._blocked_by:
            lost = self.blocked.get(self._blocked_by, 0.0)
            self.blocked[self._blocked_by] = lost + now - self._blocked_since
        self._blocked_by, self._blocked_since = blocked_by, now

    def time_lost(self) -> dict[str, float]:
        """Seconds in which somebody waited, by cause, up to now."""
        self._note(self._loop.time(), self._blocked_by)
        return dict(self.blocked)
