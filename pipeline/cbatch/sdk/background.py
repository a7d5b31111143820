"""One event loop in a thread of its own, for everybody in this process who does not want to see one.

It starts with the first request. A fork leaves it behind: the child starts its own, and keeps what it
inherited untouched for good, because the sockets in there are its parent's.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

END_S = 2.0  # to end what is under way, when the interpreter exits


class _Background:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.thread: threading.Thread | None = None

    def running(self) -> asyncio.AbstractEventLoop:
        """The loop; started where there is none."""
        loop = self.loop
        if loop is not None:
            return loop
        with self.lock:
            if self.loop is None:
                ready: Future[asyncio.AbstractEventLoop] = Future()
                self.thread = threading.Thread(target=_main, args=(ready,), name="cbatch", daemon=True)
                self.thread.start()
                self.loop = ready.result()
            return self.loop

    def stop(self) -> None:
        """End the loop and what it does; whoever waits for it is told."""
        with self.lock:
            loop, thread, self.loop, self.thread = self.loop, self.thread, None, None
        if loop is None or thread is None or loop.is_closed():
            return
        loop.call_soon_threadsafe(_cancel_main, loop)
        thread.join(END_S)


_inherited: list[_Background] = []
_background = _Background()
_mains: dict[asyncio.AbstractEventLoop, asyncio.Task[None]] = {}


def _main(ready: Future[asyncio.AbstractEventLoop]) -> None:
    try:
        import uvloop

        factory: Any = uvloop.new_event_loop
    except ImportError:
        factory = None

    async def main() -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        _mains[loop] = task
        ready.set_result(loop)
        await loop.create_future()  # until it is cancelled

    try:
        with asyncio.Runner(loop_factory=factory) as runner:  # its end cancels what is under way
            runner.run(main())
    except asyncio.CancelledError:
        pass
    except BaseException as exc:
        if ready.done():
            raise
        ready.set_exception(exc)


def _cancel_main(loop: asyncio.AbstractEventLoop) -> None:
    _mains.pop(loop).cancel()


def _after_fork() -> None:
    global _background
    _inherited.append(_background)
    _background = _Background()


os.register_at_fork(after_in_child=_after_fork)


@atexit.register
def _at_exit() -> None:
    _background.stop()


def run(work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns, done in the background; an interruption of the wait ends it."""
    future = start(work)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def start(work: Coroutine[Any, Any, T]) -> Future[T]:
    """Begin `work` in the background."""
    return asyncio.run_coroutine_threadsafe(work, _background.running())
