"""Every exchange as a line of JSON, in files of this user alone: `cbatch serve --log DIR`.

One thread writes, so a slow disk never delays an answer; what it cannot keep up with is left out, counted and
told. A disk that is full is told once, and tried again every RETRY_S. What a line may hold is in `redaction.py`.
"""

from __future__ import annotations

import fcntl
import os
import queue
import re
import stat
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cbatch.errors import JobError
from cbatch.gateway.redaction import Redaction

MAX_WAITING = 1_000  # exchanges; a disk that stands still for longer loses the ones after
MAX_WAITING_BYTES = 256_000_000  # of those, as far as their writer says what they take
RETRY_S = 10.0
CLOSE_S = 5.0  # at the end, for a disk that does not answer
FILES = 8  # that the bound of the folder has room for

_NAME = re.compile(r"exchanges-[0-9]{8}T[0-9]{6}\.[0-9]{6}Z-[0-9]+\.jsonl")

Notify = Callable[[str], None]


class ExchangeLog:
    """The log of one gateway: `write` at the end of every exchange, `close` at the end of all.

    `secrets` never reach the disk. `notify` may be called from the writing thread. Raises JobError if nothing can
    be written at the start.
    """

    def __init__(
        self,
        folder: Path,
        *,
        secrets: Sequence[str] = (),
        max_exchange_bytes: int = 2_000_000,
        max_total_bytes: int = 1_000_000_000,
        notify: Notify,
    ) -> None:
        self._notify = notify
        self._redaction = Redaction(secrets, max_bytes=min(max_exchange_bytes, max_total_bytes // FILES))
        self._files = Files(folder, max_total_bytes, notify)
        self._queue: queue.SimpleQueue[tuple[Mapping[str, Any], int] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # held for a microsecond at a time
        self._waiting = self._waiting_bytes = 0
        self._dropped = 0  # since the disk fell behind
        self._is_closed = False
        try:
            self._files.begin()
        except OSError as exc:
            raise JobError(
                f"--log {folder}: cannot be written: {exc.strerror or exc}", hint="choose another folder"
            ) from None
        self._thread = threading.Thread(target=self._run, name="cbatch-exchange-log", daemon=True)
        self._thread.start()

    def write(self, record: Mapping[str, Any], size_bytes: int = 0) -> None:
        """Have a record written soon. Never waits, never raises; the record must not be changed afterwards.

        `size_bytes`, about what it takes in memory, bounds what waits for the disk; so does the number of records.
        """
        with self._lock:
            if self._is_closed:
                return
            room = self._waiting < MAX_WAITING and self._waiting_bytes + size_bytes <= MAX_WAITING_BYTES
            if room:
                self._waiting += 1
                self._waiting_bytes += size_bytes
            else:
                self._dropped += 1
            is_first = self._dropped == 1
        if room:
            self._queue.put((record, size_bytes))
        elif is_first:
            self._notify(f"{self._files.folder}: the disk is too slow for the log: exchanges are left out of it")

    def hide(self, secret: str) -> None:
        """Keep one more secret off the disk, from the next record on: the key of a provider that was added."""
        self._redaction.hide(secret)

    def close(self) -> None:
        """Write what waits, for at most CLOSE_S, and end. A second time does nothing."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        self._queue.put(None)
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            self._notify(f"{self._files.folder}: the disk does not answer: {self._waiting:,} exchanges are not logged")

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            record, size_bytes = item
            try:
                self._files.write(self._redaction.line(record, size_bytes))
            except Exception as exc:  # noqa: BLE001  one record must not end the log of all others
                self._notify(f"{self._files.folder}: an exchange cannot be logged ({type(exc).__name__})")
            del item, record
            with self._lock:
                self._waiting -= 1
                self._waiting_bytes -= size_bytes
                dropped = 0
                if self._waiting == 0:
                    dropped, self._dropped = self._dropped, 0
            if dropped:
                self._notify(f"{self._files.folder}: the log keeps up again; {dropped:,} exchanges were left out of it")
        self._files.close()


class Files:
    """The files of one gateway: `exchanges-<UTC>-<pid>.jsonl`, begun anew when full, the oldest in the folder deleted.

    Every gateway holds a lock on the file it writes, and deletes none that is locked; of several gateways on one
    folder, each may put its own file's room (1/FILES of the bound) on top of the bound.
    """

    def __init__(
        self,
        folder: Path,
        max_total_bytes: int,
        notify: Notify,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.folder = folder
        self._max_total = max_total_bytes
        self._max_file = max_total_bytes // FILES
        self._notify = notify
        self._clock = clock
        self._now = now
        self._fd: int | None = None
        self._path = folder
        self._size = 0
        self._failed_at: float | None = None
        self._missed = 0

    def write(self, line: bytes) -> None:
        """Append a line, if the disk takes it: what it does not is counted, and told."""
        if self._failed_at is not None and self._clock() < self._failed_at + RETRY_S:
            self._missed += 1
            return
        try:
            self._append(line)
        except OSError as exc:
            self.close()
            self._missed += 1
            if self._failed_at is None:
                reason = exc.strerror or type(exc).__name__
                self._notify(
                    f"{self.folder}: the log cannot be written: {reason}; serving goes on without, "
                    f"and it is tried again every {RETRY_S:.0f} s"
                )
            self._failed_at = self._clock()
            return
        if self._failed_at is not None:
            self._notify(f"{self.folder}: the log is written again; {self._missed:,} exchanges are missing")
            self._failed_at, self._missed = None, 0

    def begin(self) -> None:
        """Open a new file, and make room for it. Raises OSError."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            path = self.folder / f"exchanges-{self._now():%Y%m%dT%H%M%S.%f}Z-{os.getpid()}.jsonl"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(path, flags, 0o600)
            with suppress(OSError):  # a file system without locks
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink:
                break
            os.close(fd)  # another gateway made room in the moment before the lock
        self._fd, self._path, self._size = fd, path, 0
        self._make_room()

    def close(self) -> None:
        """Close the file; one with nothing in it is no use to anybody."""
        if self._fd is None:
            return
        if not self._size:
            with suppress(OSError):
                self._path.unlink()
        with suppress(OSError):
            os.close(self._fd)
        self._fd = None

    def _append(self, line: bytes) -> None:
        if self._fd is not None and not os.fstat(self._fd).st_nlink:
            self._notify(f"{self._path}: the log was deleted; a new one begins")
            self.close()
        if self._fd is not None and self._size and self._size + len(line) > self._max_file:
            self.close()
        if self._fd is None:
            self.begin()
        assert self._fd is not None
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._fd, self._size)  # half a line is no JSON
            raise
        self._size += len(line)

    def _make_room(self) -> None:
        """Delete the oldest until a full file more is within the bound."""
        found: list[tuple[str, int]] = []
        with suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                if _NAME.fullmatch(entry.name) and entry.name != self._path.name:
                    with suppress(OSError):  # gone already: another gateway makes room, too
                        about = entry.stat(follow_symlinks=False)
                        if stat.S_ISREG(about.st_mode):
                            found.append((entry.name, about.st_size))
        total = sum(size for _, size in found)
        for name, size in sorted(found):  # their names begin with their time
            if total <= self._max_total - self._max_file:
                break
            if _delete(self.folder / name):
                total -= size


def _delete(path: Path) -> bool:
    """Delete a file that nobody writes; whether it is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except OSError:  # in use, or no lock can be had: rather too much on the disk than another's log destroyed
        return False
    else:
        return True
    finally:
        os.close(fd)
