"""One runner per run directory: a lock that the kernel releases however the process ends.

With its journal elsewhere (`--state-dir`), a run holds the lock of the run directory and the one beside
the journal. What that excludes, where the run directory is on a network file system:

    its locks work (NFS 4; NFS 3 with lockd)   every second runner, on this machine and on others
    it has none, or only for show (`nolock`)   a second runner on this machine: it finds the journal, and
                                               so its lock, by the state directory or by run.json
    not excluded, without such locks           a runner on another machine; on this one, two first starts
                                               at the same moment with different state directories
"""

from __future__ import annotations

import fcntl
import os
import platform
import time
from contextlib import suppress
from pathlib import Path

from cbatch.errors import JournalError


class RunLock:
    """An exclusive lock on a run directory, and on where its journal is if that is elsewhere.

    Raises JournalError if another process has one of the locks. `notes` are for the user: with its
    journal elsewhere, a run directory that cannot be locked is no error.
    """

    def __init__(self, run: Path, *state: Path) -> None:
        self.notes: list[str] = []
        self._fds: list[int] = []
        try:
            for path in dict.fromkeys((run, *state)):  # each once: a process may also lock out itself
                self._take(path, needed=path is not run or not state)
        except JournalError:
            self.close()
            raise

    def _take(self, path: Path, *, needed: bool) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise JournalError(
                f"{path.parent}: cannot be written: {exc.strerror}",
                hint="choose another folder with --output, or another for the journal with --state-dir",
            ) from None
        self._fds.append(fd)
        with suppress(OSError):  # whatever the umask; another user's cannot be changed, and need not be
            os.fchmod(fd, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # `is_locked` looks by taking it for a few µs: a runner still has it later
                time.sleep(0.05)
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JournalError(
                f"{path.parent}: another cbatch is running this job{_holder(fd)}",
                hint="wait for it, or give this run its own folder with --output",
            ) from None
        except OSError as exc:
            if needed:
                raise JournalError(
                    f"{path.parent}: cannot be locked: {exc.strerror}",
                    hint="not every network file system has locks: choose a local folder with --output",
                ) from None
            self.notes.append(
                f"{path.parent}: cannot be locked ({exc.strerror}): let no cbatch run this job on another machine"
            )
        with suppress(OSError):  # a full disk: the pid is a courtesy, the lock is what counts
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()} {platform.node()}\n".encode(), 0)

    def close(self) -> None:
        """Release the lock."""
        while self._fds:
            os.close(self._fds.pop())


def _holder(fd: int) -> str:
    pid, _, machine = os.pread(fd, 100, 0).decode("utf-8", "replace").strip().partition(" ")
    elsewhere = f" on {machine}" if machine not in ("", platform.node()) else ""
    return f" (process {pid}{elsewhere})" if pid else ""


def is_locked(*paths: Path) -> bool:
    """Whether a cbatch holds one of these locks."""
    return any(_is_locked(path) for path in paths)


def _is_locked(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no locks here: then whoever runs holds the one beside the journal
        return False
    finally:
        os.close(fd)
    return False
