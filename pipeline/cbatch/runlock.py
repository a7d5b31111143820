"""One runner per run directory: a lock that the kernel releases however the process ends."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

from cbatch.errors import JournalError


class RunLock:
    """An exclusive lock on a run directory, released by the kernel however the process ends."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise JournalError(
                f"{path.parent}: cannot be written: {exc.strerror}",
                hint="choose another folder with --output",
            ) from None
        try:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # `is_locked` looks by taking it for a few µs: a runner still has it later
                time.sleep(0.05)
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip()
            os.close(self._fd)
            raise JournalError(
                f"{path.parent}: another cbatch is running this job" + (f" (process {holder})" if holder else ""),
                hint="wait for it, or give this run its own folder with --output",
            ) from None
        except OSError as exc:
            os.close(self._fd)
            raise JournalError(
                f"{path.parent}: cannot be locked: {exc.strerror}",
                hint="not every network file system has locks: choose a local folder with --output",
            ) from None
        with suppress(OSError):  # a full disk: the pid is a courtesy, the lock is what counts
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Release the lock."""
        os.close(self._fd)


def is_locked(path: Path) -> bool:
    """Whether a cbatch is running in the directory of this lock file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no locks here: then no run either
        return False
    finally:
        os.close(fd)
    return False
