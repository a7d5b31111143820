"""One message at a time in a session, whichever process sends it.

A lock that the kernel releases however its holder ends, so that a kill leaves nothing to clean up. Two
who have the file open exclude each other in one process, too.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from cbatch.conversations.problems import SessionBusy, StoreError

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.01, 0.25


@asynccontextmanager
async def exclusive(path: Path, wait_s: float, session_id: str) -> AsyncIterator[None]:
    """Hold the lock file at `path`, which is gone afterwards. Raises SessionBusy after `wait_s`, StoreError.

    Asks again and again: waiting in flock(2) would need a thread that cannot be cancelled.
    """
    loop = asyncio.get_running_loop()
    until, pause_s = loop.time() + wait_s, FIRST_PAUSE_S
    while (fd := _take(path)) is None:
        if loop.time() >= until:
            raise SessionBusy(
                f"{session_id}: another terminal has been waiting for its answer for {wait_s:,.0f} s",
                hint="stop the answer there, or start a new session here",
            )
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.5, LONGEST_PAUSE_S)
    try:
        yield
    finally:
        _release(path, fd)


def _release(path: Path, fd: int) -> None:
    with suppress(OSError):
        path.unlink()  # while it is held: who opened it meanwhile sees that it is not this file any more
    os.close(fd)


def is_held(path: Path) -> bool:
    """Whether somebody is waiting for an answer in the session."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def _take(path: Path) -> int | None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise _unusable(path, exc) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_ino == path.stat().st_ino:
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError as exc:
        os.close(fd)
        raise _unusable(path, exc) from None
    os.close(fd)
    return None


def _unusable(path: Path, exc: OSError) -> StoreError:
    return StoreError(
        f"{path}: cannot be locked: {exc.strerror or exc}; nothing was sent",
        hint="free some space, or make the folder writable",
    )
