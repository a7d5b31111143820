"""The workers of a run: as many as the throttle allows, and no more than the ledger has on disk.

A worker that is one too many leaves after its row; new ones come when the throttle has grown and
the larger bound is durable. Nobody polls: whoever has finished a row looks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from cbatch.errors import JournalError
from cbatch.feed import Places
from cbatch.job import bound
from cbatch.ledger import Ledger
from cbatch.throttle import Throttle


class Crew:
    """Workers numbered from 0; `work(number)` is one worker's whole life."""

    def __init__(
        self,
        work: Callable[[int], Coroutine[Any, Any, None]],
        *,
        throttle: Throttle,
        places: Places,
        ledger: Ledger,
        on_error: Callable[[JournalError], None],
    ) -> None:
        """`on_error` learns that the larger bound could not be written."""
        self._on_error = on_error
        self.tasks: set[asyncio.Task[None]] = set()
        self.most = 0  # workers at the same time
        self._work = work
        self._throttle, self._places, self._ledger = throttle, places, ledger
        self._allowed = 0
        self._hired = 0
        self._growing: asyncio.Task[None] | None = None
        self._group: asyncio.TaskGroup | None = None

    async def run(self, rows: int) -> None:
        """Work until no worker has anything to do; at most one worker a row. Raises what a worker raises."""
        self._rows = rows
        async with asyncio.TaskGroup() as self._group:
            await self._grow()

    def may_stay(self) -> bool:
        """Whether the worker that asks still has a place; looks at the throttle on the way."""
        limit = min(self._throttle.limit, max(self._rows, 1))
        if limit > self._allowed and self._growing is None and self._group is not None:
            self._growing = self._group.create_task(self._grow())
        if len(self.tasks) > limit:
            task = asyncio.current_task()
            assert task is not None
            self.tasks.discard(task)  # at once, or all would leave
            self._allowed = min(self._allowed, len(self.tasks))
            return False
        return True

    async def _grow(self) -> None:
        """Make the larger bound durable, then hire."""
        assert self._group is not None
        limit = min(self._throttle.limit, max(self._rows, 1))
        size = bound(max(limit, len(self.tasks)))
        if size < self._places.size:  # what was sent under a larger bound, and is not durable yet, stays covered
            self._places.resize(size)
        try:
            await self._ledger.allow(max(size, self._places.taken))
        except JournalError as exc:
            self._on_error(exc)
            return
        self._places.resize(size)
        self._allowed = limit
        while len(self.tasks) < limit:
            task = self._group.create_task(self._work(self._hired))
            self._hired += 1
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        self.most = max(self.most, len(self.tasks))
        self._growing = None
