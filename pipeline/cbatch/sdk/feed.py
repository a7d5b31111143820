"""The pieces of a streamed answer, from the loop that reads the socket to whoever iterates, there or in a thread."""

from __future__ import annotations

import asyncio
import queue
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress

from cbatch.errors import APIError, APITimeoutError
from cbatch.replies import Reply

Item = bytes | Exception | None  # a piece, what went wrong, or the end


class Feed:
    """One answer as it comes; nothing of it is parsed in the loop.

    Not bounded: an answer is some hundred KB at most, and a reader that stops to think must not make
    the server's clock run.
    """

    def __init__(self) -> None:
        self.ended = False
        self.late = False
        self._loop = asyncio.get_running_loop()
        self.started: asyncio.Future[tuple[int, Mapping[str, str]]] = self._loop.create_future()
        self._task: asyncio.Task[Reply] | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._silence_s: float | None = None
        self._latest = 0.0

    # -- in the loop ----------------------------------------------------------------------------

    @property
    def task(self) -> asyncio.Task[Reply]:
        """Who reads the socket."""
        assert self._task is not None
        return self._task

    def begin(self, task: asyncio.Task[Reply], silence_s: float | None) -> None:
        """The request is sent by `task`; it is given up after `silence_s` without a piece."""
        self._task, self._silence_s = task, silence_s
        self._latest = self._loop.time()
        if silence_s is not None:
            self._look(silence_s)

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        """The head of the answer is there."""
        self._latest = self._loop.time()
        if status == 200 and not self.started.done():
            self.started.set_result((status, headers))

    def piece(self, data: bytes) -> None:
        """A piece of the body is there."""
        self._latest = self._loop.time()
        self.push(data)

    def finish(self, error: Exception | None) -> None:
        """There is no more."""
        self.ended = True
        self.unwatch()
        self.push(error)

    def unwatch(self) -> None:
        """The request is over, for good or until it is tried again."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _look(self, silence_s: float) -> None:
        """One timer for the whole stream: it is set anew when it rings, and not by every piece."""
        left = self._latest + silence_s - self._loop.time()
        if left > 0:
            self._watch = self._loop.call_later(left, self._look, silence_s)
            return
        self.late = True
        self.task.cancel()

    @property
    def lateness(self) -> APIError:
        """The error of a stream that fell silent."""
        return APITimeoutError(f"nothing came for {self._silence_s:g} s")

    # -- anywhere -------------------------------------------------------------------------------

    def close(self) -> None:
        """Nobody reads on: end the request."""
        if self.ended:
            return
        self.ended = True
        if self._task is not None:
            with suppress(RuntimeError):  # the loop has ended, and the request with it
                self._loop.call_soon_threadsafe(self._task.cancel)
        self.push(None)

    def push(self, item: Item) -> None:
        """Hand one on."""
        raise NotImplementedError

    def pieces(self) -> Iterator[bytes]:
        """The pieces, in a thread. Raises APIError."""
        raise TypeError("this answer is read with `async for`")

    def apieces(self) -> AsyncIterator[bytes]:
        """The pieces, in the loop. Raises APIError."""
        raise TypeError("this answer is read with `for`")


class ThreadFeed(Feed):
    """To a thread, which sleeps until there is something."""

    def __init__(self) -> None:
        super().__init__()
        self._queue: queue.SimpleQueue[Item] = queue.SimpleQueue()

    def push(self, item: Item) -> None:
        """Hand one on."""
        self._queue.put(item)

    def pieces(self) -> Iterator[bytes]:
        """The pieces, in a thread. Raises APIError."""
        while (item := self._queue.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item


class LoopFeed(Feed):
    """To a task of the same loop."""

    def __init__(self) -> None:
        super().__init__()
        self._items: deque[Item] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def push(self, item: Item) -> None:
        """Hand one on."""
        self._items.append(item)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def apieces(self) -> AsyncIterator[bytes]:
        """The pieces, in the loop. Raises APIError."""
        while True:
            while not self._items:
                self._waiter = self._loop.create_future()
                await self._waiter
            item = self._items.popleft()
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            yield item
