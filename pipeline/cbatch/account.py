"""One budget for all processes of a key on this machine: the floats of a Pacer in a small locked file.

Nobody serves it and nothing has to be cleaned up: whoever dies leaves a file of numbers that time
makes right again, because a reservation that is never settled refills like any other. What was
learned about the account stays there for the next run. Times in it are those of the machine's
monotonic clock, so setting the clock changes nothing; a restart of the machine is noticed by its
boot id, and then only hours and days are carried over, by wall time.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import math
import mmap
import os
import struct
import time
from array import array
from collections.abc import Callable, MutableSequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import cast

from cbatch.pace import FLOATS, Pacer, forget, rebase

LAYOUT = 1_000.0 + FLOATS  # of the file: another one is started anew; the 1,000 tells apart what is as long
HEADER = 4  # layout, boot id, wall time and monotonic time of the last sign of life
LOCK_TRIES, LOCK_TRY_S = 20, 0.0005  # a process that was stopped inside must not stop the others
UNUSED_S = 90 * 86400.0  # after which a file is removed
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def name_of(base_url: str, key: str | None, model: str) -> str:
    """The file of an account: it tells neither key nor model."""
    return hashlib.sha256("\0".join((base_url, key or "", model)).encode()).hexdigest()[:32] + ".budget"


def peek(path: Path) -> dict[str, float]:
    """The limits that runs learned or were told by the server, without taking part; {} where nothing is known."""
    try:
        data = path.read_bytes()
    except OSError:
        return {}
    numbers = array("d")
    numbers.frombytes(data[: len(data) // 8 * 8])
    if len(numbers) < HEADER + FLOATS or numbers[0] != LAYOUT:
        return {}
    pacer = Pacer(now=0.0, floats=numbers[HEADER:])
    forget(pacer.floats, 0.0, age_s=0.0)  # what users told others is no news
    return pacer.limits()


class Account:
    """The shared floats of one (endpoint, key, model); `with account:` while they are used.

    Raises OSError where the file cannot be had.
    """

    def __init__(
        self,
        path: Path,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.path = path
        self._monotonic, self._wall = monotonic, wall
        self._depth = 0
        self._locked = False
        self._tries = LOCK_TRIES
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            _remove_unused(path.parent, wall())
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            size = 8 * (HEADER + FLOATS)
            if (have := os.fstat(self._fd).st_size) < size:
                os.pwrite(self._fd, bytes(size - have), have)  # a full disk is told here, not by a signal at a store
            self._map = mmap.mmap(self._fd, size)
        except OSError:
            os.close(self._fd)
            raise
        self._all = memoryview(self._map).cast("d")
        self._ours = self._all[HEADER:]
        self.floats = cast("MutableSequence[float]", self._ours)
        for _ in range(2):  # again where the first process died before it had begun the file
            if _try_lock(self._fd):
                self._restore()
            # Shared for as long as we live: who gets it exclusively knows that nobody else is here.
            fcntl.flock(self._fd, fcntl.LOCK_SH)
            if self._all[0] == LAYOUT:
                return
        self._release()
        raise OSError(errno.EBUSY, "in use by another version of cbatch", str(path))

    def _restore(self) -> None:
        """Make the numbers of the last process good for this one."""
        boot = _boot_id()
        now, wall = self._monotonic(), self._wall().timestamp()
        numbers = self._all
        if numbers[0] != LAYOUT or not all(math.isfinite(number) for number in numbers):
            for place in range(len(numbers)):
                numbers[place] = 0.0
        elif numbers[1] != boot or numbers[3] > now:
            rebase(self.floats, now, idle_s=max(wall - numbers[2], 0.0))
        forget(self.floats, now, age_s=max(wall - numbers[2], 0.0))
        numbers[0], numbers[1] = LAYOUT, boot
        self.touch()

    def touch(self) -> None:
        """Leave a sign of life; once a second is enough."""
        self._all[2], self._all[3] = self._wall().timestamp(), self._monotonic()

    def __enter__(self) -> Account:
        """Take the lock; entering again is free."""
        self._depth += 1
        if self._depth == 1:
            for left in range(self._tries, 0, -1):
                with suppress(BlockingIOError, PermissionError):
                    # Not flock: that one says who is here. This lock is the process's and needs no second file.
                    fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 8, 0)
                    self._locked = True
                    break
                if left > 1:
                    time.sleep(LOCK_TRY_S)
            # Who was stopped inside is not waited for again and again: that would stop our loop, too.
            self._tries = LOCK_TRIES if self._locked else 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the lock."""
        self._depth -= 1
        if not self._depth and self._locked:
            self._locked = False
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 8, 0)

    def close(self) -> None:
        """Leave; the numbers stay for others."""
        self.touch()
        self._release()

    def _release(self) -> None:
        self._ours.release()
        self._all.release()
        self._map.close()
        os.close(self._fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _boot_id() -> float:
    try:
        text = _BOOT_ID.read_bytes()
    except OSError:
        text = b""
    (number,) = struct.unpack("<I", hashlib.sha256(text).digest()[:4])
    return float(number)


def _remove_unused(folder: Path, now: datetime) -> None:
    with suppress(OSError):
        for path in folder.glob("*.budget"):
            if now.timestamp() - path.stat().st_mtime > UNUSED_S:
                path.unlink()
