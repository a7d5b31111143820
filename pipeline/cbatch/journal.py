"""Record -> disk, now: the crash-safe truth while a run lives. SQLite, group commit, one writer thread.

    meta(k, v)                      format version, job recipe, totals
    result(seq, key, sample, digest, state, attempts)   one row per prompt x model x sample, in order of arrival
    body(seq, data)                 the finished row as JSON, until its part is visible
    part(id, name, state, first_seq, last_seq, sha256)

Every outcome gets the next `seq`, and a part is a range of them, so the row with number `seq`
stands at place `seq - first_seq` of its part forever. A prompt that is run again (after a
failure or an edit) keeps its `seq`: its new body then lies in the range of a visible part,
which says that this part must be rewritten. There is no other state to keep in step.

Nothing is counted before it is durable: `put` hands a record to the writer thread, which
commits whatever has queued (WAL, synchronous=FULL: a commit is an fsync) and then tells the loop.
"""

from __future__ import annotations

import hashlib
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import orjson

from cbatch.errors import JournalError
from cbatch.schema import COLUMN_INDEX, Record

FORMAT = 2
DONE, FAILED = 1, 2
PLANNED, VISIBLE = 1, 2
GARBAGE_ROWS = 2_000  # bodies deleted per commit once their part is visible: a commit must stay short
STATEMENT_ROWS = 32  # of one statement
BUSY_S = 0.01  # a commit so soon after another is one of many
PAUSE_S = 0.002  # before a commit right behind another: rows of a fast run share it
COMMIT_ROWS = 2_000  # at most this many rows in one commit

_SCHEMA = """
CREATE TABLE meta(k TEXT PRIMARY KEY, v) WITHOUT ROWID;
CREATE TABLE result(
  seq INTEGER PRIMARY KEY, key BLOB, sample INTEGER, digest BLOB, state INTEGER, attempts INTEGER
);
CREATE TABLE body(seq INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE part(
  id INTEGER PRIMARY KEY, name TEXT NOT NULL, state INTEGER NOT NULL,
  first_seq INTEGER NOT NULL, last_seq INTEGER NOT NULL, sha256 TEXT
);
"""


_PROMPT, _COMPLETION, _COST = (COLUMN_INDEX[n] for n in ("prompt_tokens", "completion_tokens", "cost_usd"))
_REQUEST_ID = COLUMN_INDEX["request_id"]


@dataclass(slots=True)
class Paid:
    """What the durable answers of a run cost, over all its sessions; superseded answers stay counted."""

    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    unpriced: int = 0  # answers whose price or usage is unknown

    @property
    def known_usd(self) -> float | None:
        """What the answers cost, as far as prices are known; None where none is."""
        return None if self.answers and self.unpriced == self.answers else self.cost_usd

    def add(self, record: Record) -> None:
        """Count one row, and every answer that was paid for on the way to it."""
        row = record.row
        if row[_COST] is None and row[_COMPLETION] is None and row[_REQUEST_ID] is None:
            return  # no answer came
        self.answers += 1
        prompt_tokens, completion_tokens = record.paid_tokens or (row[_PROMPT] or 0, row[_COMPLETION] or 0)
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens
        if row[_COST] is None:
            self.unpriced += 1
        else:
            self.cost_usd += row[_COST]


@dataclass(frozen=True, slots=True)
class Known:
    """What the journal knows of one prompt."""

    digest: bytes
    ok: bool
    seq: int


@dataclass(frozen=True, slots=True)
class Part:
    """One Parquet part: the rows `first_seq` to `last_seq`, both included."""

    id: int
    name: str
    state: int
    first_seq: int
    last_seq: int
    sha256: str | None

    @property
    def rows(self) -> int:
        """How many rows it holds."""
        return self.last_seq - self.first_seq + 1


def key_of(prompt_id: str, model: str) -> bytes:
    """The journal's key of a prompt: (id, model) in 16 bytes."""
    return hashlib.blake2b(f"{prompt_id}\0{model}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


class Journal:
    """The journal of one run directory, open for reading.

    `start_writer` adds the thread through which everything is written.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self.path = path
        self._indexed = False
        if not create and not path.exists():
            raise JournalError(f"{path.parent}: no journal here", hint="is this the folder of a run?")
        try:
            if create:
                _make_private(path)
            self._db = _open(path, write=create)
        except sqlite3.Error as exc:
            raise _journal_error(path, exc) from None
        except OSError as exc:
            raise JournalError(f"{path}: cannot be written: {exc.strerror}", hint="choose another --output") from None
        try:
            version = self._prepare(create)
        except sqlite3.Error as exc:
            self._db.close()
            raise _journal_error(path, exc) from None
        if version != FORMAT:
            self._db.close()
            raise JournalError(
                f"{path}: written by another version of cbatch (format {version}, this one reads {FORMAT})",
                hint="use that version, or start over in another folder with --output",
            )
        self._writer: Writer | None = None

    def _prepare(self, create: bool) -> object:
        if create and not self._db.execute("SELECT 1 FROM sqlite_master WHERE name='meta'").fetchone():
            self._db.executescript(f"BEGIN;{_SCHEMA}INSERT INTO meta VALUES('format',{FORMAT});COMMIT;")
        found = self._db.execute("SELECT v FROM meta WHERE k='format'").fetchone()
        return found[0] if found else None

    def get(self, name: str) -> Any:
        """A meta value, or None."""
        found = self._query("SELECT v FROM meta WHERE k=?", name).fetchone()
        return orjson.loads(found[0]) if found else None

    def lookup(self, key: bytes, sample: int) -> Known | None:
        """What is known of a prompt."""
        table = "known" if self._indexed else "result"
        found = self._query(f"SELECT digest, state, seq FROM {table} WHERE key=? AND sample=?", key, sample).fetchone()
        return Known(found[0], found[1] == DONE, found[2]) if found else None

    def index(self) -> None:
        """Sort what is known now by key: from here on `lookup` is fast, and does not see newer rows.

        Keys are random: an index kept up by the writer costs one more 4 KB page for every row of every
        run, and only a resumed run looks anything up. Sorting 200,000 rows takes 0.15 s.
        Of two rows with one key, which should not be, the newer counts, and `verify` reports them.
        """
        if self._indexed:
            return
        self._query("CREATE TEMP TABLE known(key, sample, digest, state, seq, PRIMARY KEY(key, sample)) WITHOUT ROWID")
        self._query(
            "INSERT OR REPLACE INTO known SELECT key, sample, digest, state, seq FROM result ORDER BY key, sample, seq"
        )
        self._indexed = True

    def counts(self) -> tuple[int, int]:
        """(done, failed) rows."""
        found = dict(self._query("SELECT state, COUNT(*) FROM result GROUP BY state"))
        return found.get(DONE, 0), found.get(FAILED, 0)

    def most_samples(self) -> int:
        """One more than the highest sample number of all rows; 0 without rows."""
        found = self._query("SELECT MAX(sample) FROM result").fetchone()[0]
        return 0 if found is None else int(found) + 1

    def entries(self) -> Iterator[tuple[bytes, int, bytes, int]]:
        """Every (key, sample, digest, seq), in key order."""
        yield from self._query("SELECT key, sample, digest, seq FROM result ORDER BY key, sample")

    def parts(self) -> list[Part]:
        """All parts, in order."""
        return [
            Part(*row) for row in self._query("SELECT id,name,state,first_seq,last_seq,sha256 FROM part ORDER BY id")
        ]

    def last_seq(self) -> int:
        """The number of the newest row; 0 when there is none."""
        found: int = self._query(
            "SELECT MAX(COALESCE((SELECT MAX(seq) FROM body),0), COALESCE((SELECT MAX(last_seq) FROM part),0))"
        ).fetchone()[0]
        return found

    def bodies(self, first_seq: int, last_seq: int) -> Iterator[tuple[int, list[Any]]]:
        """(seq, row) of the bodies in a range, in order."""
        for seq, data in self._query(
            "SELECT seq, data FROM body WHERE seq BETWEEN ? AND ? ORDER BY seq", first_seq, last_seq
        ):
            yield seq, orjson.loads(data)

    def count_bodies(self, first_seq: int, last_seq: int) -> int:
        """How many bodies lie in a range."""
        found: int = self._query("SELECT COUNT(*) FROM body WHERE seq BETWEEN ? AND ?", first_seq, last_seq).fetchone()[
            0
        ]
        return found

    def unplaced(self) -> tuple[int, int]:
        """(first, last) seq of the rows that no part has taken yet; first > last when there are none."""
        parts = self.parts()
        return (parts[-1].last_seq + 1 if parts else 1), self.last_seq()

    def reader(self) -> Journal:
        """A second connection, for another thread."""
        return Journal(self.path)

    def close(self) -> None:
        """Close the connection; the writer must have been stopped."""
        self._db.close()

    def _query(self, sql: str, *values: object) -> sqlite3.Cursor:
        try:
            return self._db.execute(sql, values)
        except sqlite3.Error as exc:
            raise _journal_error(self.path, exc) from None


Command = Callable[[sqlite3.Connection], None]
Item = tuple[Literal["row"], Record, int | None] | tuple[Literal["do"], Command, "Future[None]"] | None


class Writer:
    """The one thread that writes to a journal.

    `on_durable(records)` is called from that thread after their commit, `on_error(exc)` once if a
    commit fails; nothing is accepted after that, and what was queued is dropped uncounted.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        on_durable: Callable[[list[Record]], None],
        on_error: Callable[[JournalError], None],
    ) -> None:
        self.path = journal.path
        self._next_seq = journal.last_seq() + 1
        self._queue: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._on_durable = on_durable
        self._on_error = on_error
        self._garbage: list[tuple[int, int]] = []
        self._committed = float("-inf")
        self.failed: JournalError | None = None
        self.durable_seq = self._next_seq - 1
        self.paid = Paid(**(journal.get("paid") or {}))
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def put(self, record: Record, replaces: int | None = None) -> None:
        """Queue a record; `replaces` is the seq of the row whose place it takes."""
        self._queue.put(("row", record, replaces))

    def do(self, command: Command) -> Future[None]:
        """Run `command` inside a transaction of the writer thread; the future is set once it is durable."""
        future: Future[None] = Future()
        self._queue.put(("do", command, future))
        return future

    def set(self, name: str, value: object) -> Future[None]:
        """Store a meta value."""
        data = orjson.dumps(value)
        return self.do(lambda db: _execute(db, "INSERT OR REPLACE INTO meta VALUES(?,?)", name, data))

    def plan_part(self, name: str, first_seq: int, last_seq: int) -> Future[None]:
        """P2: give a range of rows a part and its name."""
        return self.do(
            lambda db: _execute(
                db,
                "INSERT INTO part(name,state,first_seq,last_seq) VALUES(?,?,?,?)",
                name,
                PLANNED,
                first_seq,
                last_seq,
            )
        )

    def part_visible(self, part: Part, sha256: str) -> Future[None]:
        """P5: the part is published; its bodies go, in slices, so that no commit is long."""

        def command(db: sqlite3.Connection) -> None:
            _execute(db, "UPDATE part SET state=?, sha256=? WHERE id=?", VISIBLE, sha256, part.id)
            self._garbage.append((part.first_seq, part.last_seq))

        return self.do(command)

    def clear_bodies(self) -> Future[None]:
        """Clear what is left to clear of the parts that are visible."""
        return self.do(lambda db: self._collect(db, everything=True))

    def adopt_part(self, part: Part, rows: list[tuple[bytes, int, bytes, bool, int]]) -> Future[None]:
        """Rebuild a lost journal from a published part: (key, sample, digest, ok, attempts) in its order."""

        def command(db: sqlite3.Connection) -> None:
            _execute(
                db,
                "INSERT INTO part(name,state,first_seq,last_seq,sha256) VALUES(?,?,?,?,?)",
                part.name, VISIBLE, part.first_seq, part.last_seq, part.sha256,
            )  # fmt: skip
            # Parts may have been copied: here, and only here, a row may be offered twice.
            _execute(db, "CREATE UNIQUE INDEX IF NOT EXISTS result_key ON result(key, sample)")
            added = db.executemany(
                "INSERT OR IGNORE INTO result VALUES(?,?,?,?,?,?)",
                (
                    (part.first_seq + place, key, sample, digest, DONE if ok else FAILED, attempts)
                    for place, (key, sample, digest, ok, attempts) in enumerate(rows)
                ),
            ).rowcount
            if added != len(rows):
                raise JournalError(
                    f"{part.name}: {len(rows) - added:,} of its rows are in another part or in the journal too",
                    hint="is it a copy? move it out of results/",
                )

        self._next_seq = part.last_seq + 1
        self.durable_seq = part.last_seq
        return self.do(command)

    def stop(self) -> None:
        """Write what is queued and end the thread."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        db: sqlite3.Connection | None = None
        batch: list[Item] = []
        try:
            db = _open(self.path, write=True)
            while True:
                batch = self._next_batch()
                stopping = None in batch
                records = self._commit(db, batch)
                if records:  # before the futures: who waits for one has then seen all counts
                    self._on_durable(records)
                for item in batch:
                    # Who waited may have been cancelled; that must not end the thread.
                    if item is not None and item[0] == "do" and item[2].set_running_or_notify_cancel():
                        item[2].set_result(None)
                if stopping:
                    self._collect(db, everything=True)
                    return
        except Exception as exc:  # noqa: BLE001 - the edge of a thread: nobody else would learn of it, and all would wait
            self._fail(_journal_error(self.path, exc), batch)
        finally:
            if db is not None:
                with suppress(sqlite3.Error):
                    db.close()

    def _next_batch(self) -> list[Item]:
        # Blocks for the first item only: a commit takes what has queued meanwhile.
        batch = [self._queue.get() if not self._garbage else self._get_soon()]
        if time.monotonic() - self._committed < BUSY_S:
            time.sleep(PAUSE_S)
        with suppress(queue.Empty):
            while len(batch) < COMMIT_ROWS and batch[-1] is not None:
                batch.append(self._queue.get_nowait())
        return batch

    def _get_soon(self) -> Item:
        try:
            return self._queue.get(timeout=0.01)
        except queue.Empty:
            return ("do", lambda db: None, Future())

    def _commit(self, db: sqlite3.Connection, batch: list[Item]) -> list[Record]:
        results: list[tuple[object, ...]] = []
        bodies: list[tuple[int, bytes]] = []
        records: list[Record] = []
        paid = replace(self.paid)
        seq = self._next_seq
        for item in batch:
            if item is None or item[0] != "row":
                continue
            _, record, replaces = item
            if replaces is None:
                place, seq = seq, seq + 1
            else:
                place = replaces
            state = DONE if record.ok else FAILED
            results.append((place, record.key, record.sample, record.digest, state, record.attempts))
            bodies.append((place, _body(record.row)))
            records.append(record)
            paid.add(record)
        db.execute("BEGIN IMMEDIATE")
        try:
            if results:
                if any(item[2] is not None for item in batch if item is not None and item[0] == "row"):
                    self._collect(db, everything=True)  # or a late slice would take the new body with the old
                _insert(db, "result", results)
                _insert(db, "body", bodies)
                _execute(db, "INSERT OR REPLACE INTO meta VALUES('paid',?)", orjson.dumps(asdict(paid)))
            for item in batch:
                if item is not None and item[0] == "do":
                    item[1](db)
            self._collect(db)
            db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise
        self._committed = time.monotonic()
        self.paid = paid
        self._next_seq = seq
        self.durable_seq = seq - 1
        return records

    def _collect(self, db: sqlite3.Connection, *, everything: bool = False) -> None:
        while self._garbage:
            first, last = self._garbage[0]
            upto = last if everything else min(last, first + GARBAGE_ROWS - 1)
            _execute(db, "DELETE FROM body WHERE seq BETWEEN ? AND ?", first, upto)
            if upto == last:
                self._garbage.pop(0)
            else:
                self._garbage[0] = (upto + 1, last)
            if not everything:
                return

    def _fail(self, error: JournalError, batch: list[Item]) -> None:
        self.failed = error
        self._on_error(error)
        # Whoever waits for a command must learn that it will not happen.
        while True:
            for item in batch:
                if item is not None and item[0] == "do" and not item[2].done():
                    item[2].set_exception(error)
            if None in batch:
                return
            batch = [self._queue.get()]


def _make_private(path: Path) -> None:
    """Make the file before SQLite makes it world-readable; its -wal and -shm get the mode that it has."""
    new = not path.exists()
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if new:
            os.fchmod(fd, 0o600)  # whatever the umask
    finally:
        os.close(fd)


def _open(path: Path, *, write: bool) -> sqlite3.Connection:
    uri = path.resolve().as_uri() + ("" if write else "?mode=ro")
    if not write and not os.access(path.parent, os.W_OK):
        # Reading a WAL database writes its index beside it. An archived run has no WAL any more: then
        # the file alone is all there is.
        uri += "&immutable=1"
    db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=10)
    if write:
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.execute("PRAGMA wal_autocheckpoint=4000")  # 16 MB: a checkpoint costs two more fsyncs
        except sqlite3.Error:
            db.close()
            raise
    return db


def _insert(db: sqlite3.Connection, table: str, rows: Sequence[tuple[object, ...]]) -> None:
    """Insert many rows by few statements: each lets go of the interpreter lock, and has to wait for it again."""
    place = f"({','.join('?' * len(rows[0]))})"
    for start in range(0, len(rows), STATEMENT_ROWS):
        some = rows[start : start + STATEMENT_ROWS]
        if len(some) == STATEMENT_ROWS:
            places = ",".join([place] * STATEMENT_ROWS)
            db.execute(f"INSERT OR REPLACE INTO {table} VALUES{places}", tuple(chain.from_iterable(some)))
        else:
            db.executemany(f"INSERT OR REPLACE INTO {table} VALUES{place}", some)


def _execute(db: sqlite3.Connection, sql: str, *values: object) -> None:
    db.execute(sql, values)


def _body(row: list[Any]) -> bytes:
    try:
        return orjson.dumps(row, default=str)
    except TypeError:  # a lone surrogate, such as half an emoji: it must not cost the row, or the run
        return orjson.dumps(
            [v.encode("utf-8", "replace").decode() if isinstance(v, str) else v for v in row], default=str
        )


def _is_full(path: Path) -> bool:
    try:
        space = os.statvfs(path.parent)
    except OSError:
        return False
    return space.f_bavail * space.f_frsize < 1 << 20


def _journal_error(path: Path, exc: Exception) -> JournalError:
    if isinstance(exc, JournalError):
        return exc
    text = str(exc) if isinstance(exc, sqlite3.Error) else f"{type(exc).__name__}: {exc}"
    if "full" in text or ("disk I/O" in text and _is_full(path)):  # SQLite says either
        return JournalError(
            f"{path}: the disk is full; every answer that was counted is safe",
            hint="free some space, then run the same line again",
        )
    if "malformed" in text or "not a database" in text:
        return JournalError(
            f"{path}: unreadable: {text}",
            hint="move the journal files away and run the same line again: known rows are then read from results/",
        )
    if "readonly" in text or "unable to open" in text:
        return JournalError(
            f"{path}: cannot be written: {text}", hint="check the folder's permissions, or use --output"
        )
    return JournalError(f"{path}: {text}", hint="every answer that was counted is safe; run the same line again")
