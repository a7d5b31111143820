"""What workers pull from, and what holds them back: shared iterators and a bound, without queues."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Places:
    """How many more rows may be sent before one becomes durable: a semaphore that gives back in batches."""

    def __init__(self, size: int) -> None:
        self._size = self._free = size  # below zero after a cut, until enough has become durable
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._loop = asyncio.get_running_loop()

    def take(self) -> bool:
        """Take a place if one is free."""
        if self._free <= 0:
            return False
        self._free -= 1
        return True

    async def wait(self) -> None:
        """Take a place as soon as one is free; first come, first served."""
        place = self._loop.create_future()
        self._waiting.append(place)
        await place  # a cancelled worker takes its place with it: the run is ending

    def give_back(self, count: int) -> None:
        """Free so many places."""
        self._free += count
        while self._free > 0 and self._waiting:
            if not (place := self._waiting.popleft()).done():
                place.set_result(None)
                self._free -= 1

    @property
    def size(self) -> int:
        """How many there are in all."""
        return self._size

    @property
    def taken(self) -> int:
        """How many are taken; more than there are after a cut."""
        return self._size - self._free

    def resize(self, size: int) -> None:
        """There are so many places in all from now on."""
        more, self._size = size - self._size, size
        self.give_back(more)


class Pending(Generic[T]):
    """The prompts of one model that have no row yet, shared by its workers."""

    def __init__(self, works: Iterator[T | None]) -> None:
        self._works = works
        self._next: T | None = None
        self._ended = False
        self._looking = asyncio.Lock()

    def pull(self) -> T | None:
        """The next one; None at the end, or after a stretch of skipped rows: `is_empty` says which."""
        if self._next is not None:
            work, self._next = self._next, None
            return work
        try:
            return next(self._works)
        except StopIteration:
            self._ended = True
            return None

    def exhaust(self) -> None:
        """Look at what is left without sending it, for the counts."""
        for _ in self._works:
            pass

    async def is_empty(self) -> bool:
        """Whether nothing is left; lets the loop breathe while it skips rows."""
        async with self._looking:  # one worker looks: a thousand would skip a thousand stretches a turn
            while self._next is None and not self._ended:
                self._next = self.pull()
                if self._next is None:
                    await asyncio.sleep(0)
            return self._next is None
