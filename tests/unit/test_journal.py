"""The journal: what is acknowledged is on disk, and what goes wrong is said once and loses nothing."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cbatch import journal as journal_module
from cbatch.errors import JournalError
from cbatch.journal import FORMAT, VISIBLE, Journal, Part, Writer, key_of
from cbatch.runlock import RunLock, is_locked
from cbatch.schema import COLUMN_INDEX, COLUMNS, Record

PIPELINE = Path(__file__).resolve().parents[2] / "pipeline"
HOLD_THE_LOCK = """
import sys
from pathlib import Path
from cbatch.runlock import RunLock
lock = RunLock(Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""


def record(name: str, *, text: str = "an answer", ok: bool = True, sample: int = 0, cost: float = 0.5) -> Record:
    row: list[object] = [None] * len(COLUMNS)
    status = "ok" if ok else "error"
    values = {"id": name, "sample": sample, "model": "m", "status": status, "text": text, "attempts": 1}
    if ok:
        values |= {"completion_tokens": 10, "prompt_tokens": 5, "cost_usd": cost}
    for column, value in values.items():
        row[COLUMN_INDEX[column]] = value
    return Record(key=key_of(name, "m"), sample=sample, digest=b"d" * 32, ok=ok, attempts=1, row=row)


def _pragma(db: sqlite3.Connection, text: str) -> None:
    db.execute(f"PRAGMA {text}")


class Open:
    """A journal with its writer, and what the writer said."""

    def __init__(self, path: Path) -> None:
        self.durable: list[str] = []
        self.errors: list[JournalError] = []
        self.journal = Journal(path, create=True)
        self.writer = Writer(self.journal, on_durable=self._on_durable, on_error=self.errors.append)

    def _on_durable(self, records: list[Record]) -> None:
        self.durable += [record.row[0] for record in records]

    def put(self, *records: Record, replaces: int | None = None) -> None:
        for one in records:
            self.writer.put(one, replaces)
        self.writer.do(lambda db: None).result(10)

    def close(self) -> None:
        self.writer.stop()
        self.journal.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


@pytest.fixture
def reopen(path: Path) -> Iterator[Callable[[], Open]]:
    """Open the journal, closing the one before."""
    opened: list[Open] = []

    def open_again() -> Open:
        if opened:
            opened.pop().close()
        opened.append(Open(path))
        return opened[-1]

    yield open_again
    for one in opened:
        one.close()


def test_what_was_acknowledged_is_there_after_the_objects_are_abandoned(path: Path, tmp_path: Path) -> None:
    """A second process that opens the files as they are on disk sees every counted row."""
    first = Open(path)
    first.put(*(record(f"p{n}", ok=n % 3 > 0) for n in range(100)))
    assert first.durable == [f"p{n}" for n in range(100)]
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tmp_path.glob("journal.sqlite*"):  # as kill -9 leaves them: the WAL is not checkpointed
        (copy / file.name).write_bytes(file.read_bytes())
    second = Open(copy / path.name)
    assert second.journal.counts() == (66, 34)
    assert [seq for seq, _ in second.journal.bodies(1, 1000)] == list(range(1, 101))
    assert second.writer.paid.answers == 66
    assert second.writer.paid.cost_usd == pytest.approx(33.0)
    first.close()
    second.close()


def test_numbers_go_on_where_they_stopped(reopen: Callable[[], Open]) -> None:
    """A row's number is given once, also over restarts."""
    for session in range(3):
        opened = reopen()
        opened.put(record(f"p{session}"))
        known = opened.journal.lookup(key_of(f"p{session}", "m"), 0)
        assert known is not None
        assert known.seq == session + 1


def test_a_row_that_is_run_again_keeps_its_number_and_stays_paid(reopen: Callable[[], Open]) -> None:
    """The latest outcome takes the place; what both answers cost is counted."""
    opened = reopen()
    opened.put(record("a"), record("b", ok=False))
    opened.put(record("b", text="second"), replaces=2)
    assert opened.journal.counts() == (2, 0)
    assert dict(opened.journal.bodies(1, 9))[2][COLUMN_INDEX["text"]] == "second"
    opened.put(record("a", text="third"), replaces=1)
    assert opened.journal.last_seq() == 2
    assert reopen().writer.paid.answers == 3


def test_samples_and_models_of_one_prompt_are_rows_of_their_own(reopen: Callable[[], Open]) -> None:
    opened = reopen()
    opened.put(record("a", sample=0), record("a", sample=1))
    assert opened.journal.counts() == (2, 0)
    assert key_of("a", "m") != key_of("a", "n")
    assert key_of("am", "") != key_of("a", "m")


def test_bodies_of_a_visible_part_are_cleared_in_slices_and_survivors_are_known(
    reopen: Callable[[], Open], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit stays short however large the part; what a kill leaves lies in the range of a visible part."""
    monkeypatch.setattr(journal_module, "GARBAGE_ROWS", 3)
    opened = reopen()
    opened.put(*(record(f"p{n}") for n in range(10)))
    opened.writer.plan_part("part-00000.parquet", 1, 10).result(10)
    part = opened.journal.parts()[0]
    left: list[int] = []
    opened.writer.part_visible(part, "0" * 64).result(10)
    while not left or left[-1]:
        opened.writer.do(lambda db: None).result(10)
        left.append(opened.journal.count_bodies(1, 10))
    assert opened.journal.parts() == [Part(part.id, part.name, VISIBLE, 1, 10, "0" * 64)]
    assert opened.journal.unplaced() == (11, 10)
    assert opened.journal.counts() == (10, 0)


def test_a_new_body_is_never_cleared_with_the_old_one(
    reopen: Callable[[], Open], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that is run again while the bodies of its part are still being cleared keeps its new body."""
    monkeypatch.setattr(journal_module, "GARBAGE_ROWS", 1)
    opened = reopen()
    opened.put(*(record(f"p{n}") for n in range(50)))
    opened.writer.plan_part("part-00000.parquet", 1, 50).result(10)
    opened.writer.part_visible(opened.journal.parts()[0], "0" * 64).result(10)
    opened.put(record("p49", text="new"), replaces=50)
    opened.writer.clear_bodies().result(10)
    assert [(seq, row[COLUMN_INDEX["text"]]) for seq, row in opened.journal.bodies(1, 99)] == [(50, "new")]


def test_a_full_disk_rolls_back_and_is_said_once(reopen: Callable[[], Open]) -> None:
    """Nothing is counted, everyone who waits learns it, and what was counted before is still there."""
    opened = reopen()
    opened.put(*(record(f"p{n}") for n in range(10)))
    opened.writer.do(lambda db: _pragma(db, "max_page_count=20")).result(10)
    for n in range(10, 200):
        opened.writer.put(record(f"p{n}", text="x" * 10_000))
    for waiting in [opened.writer.do(lambda db: None) for _ in range(3)]:
        with pytest.raises(JournalError, match="the disk is full; every answer that was counted is safe"):
            waiting.result(10)
    assert len(opened.errors) == 1
    assert opened.writer.failed is opened.errors[0]
    counted = list(opened.durable)
    assert opened.writer.paid.answers == opened.writer.durable_seq == len(counted) < 200
    after = reopen()
    assert sum(after.journal.counts()) == len(counted)
    assert [row[0] for _, row in after.journal.bodies(1, 999)] == counted
    after.put(record("later"))  # space was freed
    assert after.durable == ["later"]


@pytest.mark.parametrize("problem", [sqlite3.OperationalError("disk I/O error"), ValueError("a bug"), KeyError("x")])
def test_any_error_in_the_writer_reaches_everyone_who_waits(reopen: Callable[[], Open], problem: Exception) -> None:
    """A writer that dies silently would let the run wait for ever."""

    def fail(db: sqlite3.Connection) -> None:
        raise problem

    opened = reopen()
    opened.put(record("a"))
    opened.writer.put(record("b"))
    failing, waiting = opened.writer.do(fail), opened.writer.do(lambda db: None)
    for future in (failing, waiting, opened.writer.do(lambda db: None)):
        with pytest.raises(JournalError):
            future.result(10)
    assert len(opened.errors) == 1
    assert reopen().journal.lookup(key_of("a", "m"), 0)


def test_half_an_emoji_costs_neither_the_row_nor_the_run(reopen: Callable[[], Open]) -> None:
    opened = reopen()
    opened.put(record("a", text="cut \ud83d here"), record("b"))
    assert opened.durable == ["a", "b"]
    assert next(opened.journal.bodies(1, 1))[1][COLUMN_INDEX["text"]] == "cut ? here"


def _with_format(path: Path, number: int) -> None:
    Journal(path, create=True).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE meta SET v=?", (number,))
        db.commit()


def _foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE meta(k, v)")


def _damaged(path: Path) -> None:
    opened = Open(path)
    opened.put(*(record(f"p{n}", text="x" * 5_000) for n in range(100)))
    opened.close()
    data = bytearray(path.read_bytes())
    data[100:4096] = os.urandom(3996)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        pytest.param(
            lambda path: _with_format(path, FORMAT + 1), "another version of cbatch", id="a newer format is refused"
        ),
        pytest.param(_foreign, "another version of cbatch", id="another program's database is refused"),
        pytest.param(lambda path: path.write_bytes(b"no" * 5000), "unreadable: file is not a database", id="garbage"),
        pytest.param(_damaged, "unreadable: database disk image is malformed", id="a damaged file"),
        pytest.param(lambda path: path.mkdir(), "cannot be written", id="a folder in its place"),
    ],
)
def test_a_journal_that_cannot_be_trusted_is_refused(path: Path, spoil: Callable[[Path], object], said: str) -> None:
    """The message names the file and what to do; nothing is written over it."""
    spoil(path)
    before = path.read_bytes()[100:] if path.is_file() else None  # the first 100 bytes are SQLite's own
    with pytest.raises(JournalError, match=said) as refused:
        Journal(path, create=True)
    assert str(path) in str(refused.value)
    assert refused.value.hint
    assert before is None or path.read_bytes()[100:] == before


def test_a_journal_that_cannot_be_written_says_so(reopen: Callable[[], Open]) -> None:
    opened = reopen()
    opened.put(record("a"))
    opened.writer.do(lambda db: _pragma(db, "query_only=1")).result(10)
    with pytest.raises(JournalError, match="cannot be written: attempt to write a readonly database"):
        opened.put(record("b"))
    assert opened.durable == ["a"]


def test_reading_needs_no_writing(path: Path) -> None:
    """`status` and `verify` open a journal while a run writes it, and never create one."""
    with pytest.raises(JournalError, match="no journal here"):
        Journal(path)
    assert not path.exists()
    opened = Open(path)
    opened.put(record("a"))
    reader = opened.journal.reader()
    opened.put(record("b"))
    assert reader.counts() == (2, 0)
    reader.close()
    opened.close()


def test_one_runner_per_folder_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    """The second process is told who has the folder; kill -9 releases it at once."""
    lock = tmp_path / "run" / "journal.lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_THE_LOCK, str(lock)],
        env={**os.environ, "PYTHONPATH": str(PIPELINE)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    with holder.stdin, holder.stdout:
        assert holder.stdout.readline() == b"locked\n"
        assert is_locked(lock)
        with pytest.raises(JournalError, match=rf"another cbatch is running this job \(process {holder.pid}\)"):
            RunLock(lock)
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)
    assert not is_locked(lock)
    RunLock(lock).close()


def test_a_file_system_without_locks_is_not_another_runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(JournalError, match="cannot be locked: No locks available") as caught:
        RunLock(tmp_path / "journal.lock")
    assert "network file system" in str(caught.value.hint)
    assert not is_locked(tmp_path / "journal.lock")


def test_someone_who_looks_at_the_lock_does_not_make_a_runner_refuse(tmp_path: Path) -> None:
    """`is_locked` takes the lock for a moment; a runner that starts just then waits that moment."""
    path = tmp_path / "journal.lock"
    path.touch()
    looking = os.open(path, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    looked = threading.Timer(0.01, os.close, (looking,))
    looked.start()
    RunLock(path).close()
    looked.join()


def test_of_two_rows_with_one_key_the_newer_counts(reopen: Callable[[], Open]) -> None:
    """They should not be; and if they are, no later start may fail for it."""
    opened = reopen()
    opened.put(record("a", ok=False), record("b"), record("a"))
    opened.journal.index()
    known = opened.journal.lookup(key_of("a", "m"), 0)
    assert known is not None
    assert (known.seq, known.ok) == (3, True)
    assert opened.journal.counts() == (2, 1)


def test_the_lock_file_can_be_opened_again_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o777)
    try:
        RunLock(tmp_path / "journal.lock").close()
    finally:
        os.umask(before)
    assert (tmp_path / "journal.lock").stat().st_mode & 0o777 == 0o600
