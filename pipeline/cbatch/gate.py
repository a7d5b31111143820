"""The waiting room in front of a Pacer: first come, first served, one timer, no polling.

The pacer says when; this is the thin shell that waits. A token reservation given back by an
answered request lets the head of the queue go at once, which a sleep computed at the time of
the call could not do.
"""

from __future__ import annotations

import asyncio
from collections import deque

from cbatch.pace import Pacer


class Gate:
    """Admits requests of one model in the order they came. Belongs to the running loop."""

    def __init__(self, pacer: Pacer) -> None:
        self._pacer = pacer
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[asyncio.Future[int], int]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """How many wait."""
        return sum(not future.done() for future, _ in self._queue)

    async def enter(self, reserve_tokens: int) -> int:
        """Wait for the permit; returns the tokens charged. Raises ValueError if it can never be given."""
        now = self._loop.time()
        ready = self._pacer.ready_at(now, reserve_tokens)
        if not self._queue and ready <= now:
            return self._pacer.take(now, reserve_tokens)
        future: asyncio.Future[int] = self._loop.create_future()
        self._queue.append((future, reserve_tokens))
        if len(self._queue) == 1:
            self.serve()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():  # admitted and cancelled in the same turn
                self.leave(reserve_tokens, future.result(), used=0)
            else:
                self.serve()  # this one may have been the head
            raise

    def leave(self, reserve_tokens: int, charged: int, used: int | None, *, serve: bool = True) -> None:
        """The request was answered with `used` tokens (None: unknown).

        After a refusal `serve=False`: whoever stands next may have to be held first.
        """
        self._pacer.settle(reserve_tokens, charged, used)
        if serve and self._queue:
            self.serve()

    def hold(self, seconds: float) -> None:
        """Admit nobody for `seconds`."""
        self._pacer.hold(self._loop.time() + seconds)

    @property
    def waiting_for(self) -> str | None:
        """What the head of the queue waits for; None when nobody waits."""
        for future, tokens in self._queue:
            if not future.done():
                return self._pacer.waiting_for(self._loop.time(), tokens)
        return None

    def serve(self) -> None:
        """Admit who may go now, and set the timer for who is next."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._queue:
            future, tokens = self._queue[0]
            if future.done():  # cancelled while waiting
                self._queue.popleft()
                continue
            now = self._loop.time()
            ready = self._pacer.ready_at(now, tokens)
            if ready > now:
                if ready != float("inf"):  # else an answer in flight comes first and calls `leave`
                    self._timer = self._loop.call_at(ready, self.serve)
                return
            self._queue.popleft()
            future.set_result(self._pacer.take(now, tokens))
