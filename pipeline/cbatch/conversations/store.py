"""Sessions and their turns in one SQLite file of the user's: what is said is on disk before it is answered.

    session(id, user_id, model, system, created_at, updated_at, ended_at)
    turn(session, n, state, replaces, asked_at, model, message, answered_at, answer, reply)
    attachment(session, n, place, name, media_type, data)
    summary(session, upto, created_at, model, text, reply)

A turn is one row: a message and its answer are never apart, and never mixed with another terminal's.
`reply` is what was measured of the answer, as JSON. Plain calls, safe from several threads.
"""

from __future__ import annotations

import difflib
import fcntl
import os
import random
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from cbatch.conversations import names
from cbatch.conversations.interface import Attachment, Reply, Session, State
from cbatch.conversations.problems import SessionEnded, StoreError, UnknownSession
from cbatch.conversations.turns import (
    TITLE_CHARS,
    Summary,
    Turn,
    clean,
    decode,
    encode,
    read_time,
    session_of,
    time_text,
    turn_of,
)
from cbatch.filesystem import is_network, kind_of

SCHEMA = 1
APPLICATION = 0x63624368  # "cbCh": so that another program's database is not taken for ours
BUSY_S = 10.0  # another process's transaction takes milliseconds
ROOM_BYTES = 1 << 20  # less than this free, and an answer that is paid for may find no room

_OPENING = threading.Lock()

_TABLES = """
CREATE TABLE session(
  id TEXT PRIMARY KEY, user_id TEXT NOT NULL, model TEXT NOT NULL, system TEXT,
  created_at TEXT NOT NULL, updated_at TEXT NOT NULL, ended_at TEXT
) WITHOUT ROWID;
CREATE TABLE turn(
  session TEXT NOT NULL, n INTEGER NOT NULL, state TEXT NOT NULL, replaces INTEGER, asked_at TEXT NOT NULL,
  model TEXT NOT NULL, message TEXT NOT NULL, answered_at TEXT, answer TEXT, reply TEXT,
  PRIMARY KEY(session, n)
);
CREATE TABLE attachment(
  session TEXT NOT NULL, n INTEGER NOT NULL, place INTEGER NOT NULL,
  name TEXT NOT NULL, media_type TEXT NOT NULL, data BLOB NOT NULL,
  PRIMARY KEY(session, n, place)
);
CREATE TABLE summary(
  session TEXT NOT NULL, upto INTEGER NOT NULL, created_at TEXT NOT NULL,
  model TEXT NOT NULL, text TEXT NOT NULL, reply TEXT NOT NULL
);
CREATE INDEX summary_session ON summary(session);
"""


class Store:
    """The file at `path`; made, with its folder, by the first session. Raises StoreError, and says what to do."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()  # one connection, and calls come from a pool of threads
        self._db: sqlite3.Connection | None = None

    def close(self) -> None:
        """Close the file; the next call opens it again."""
        with self._lock:
            if self._db is not None:
                with suppress(sqlite3.Error):  # nothing is open that could be lost
                    self._db.close()
                self._db = None

    def lock_path(self, session_id: str) -> Path:
        """The file that is locked while the session waits for an answer."""
        return self.path.parent / f"{session_id}.lock"

    def require_room(self) -> None:
        """Raise StoreError where an answer that is paid for may find the disk full."""
        try:
            space = os.statvfs(self.path.parent)
        except OSError:
            return
        if space.f_bavail * space.f_frsize < ROOM_BYTES:
            raise _full(self.path, "nothing was sent")

    # -- sessions -------------------------------------------------------------------------------

    def add_session(self, user_id: str, model: str, system: str | None, now: datetime, rng: random.Random) -> str:
        """A new session's id."""
        with self._write() as db:
            while True:
                session_id = names.draw(rng)
                row = (session_id, clean(user_id), clean(model), clean(system), time_text(now), time_text(now))
                added = db.execute("INSERT OR IGNORE INTO session VALUES(?,?,?,?,?,?,NULL)", row).rowcount
                if added:
                    return session_id

    def session(self, session_id: str) -> Session:
        """One session. Raises UnknownSession."""
        with self._read() as db:
            found = [session_of(row) for row in _rows(db, _SESSIONS + " WHERE s.id=?", clean(session_id))] if db else []
            if found:
                return found[0]
            known = [row[0] for row in _rows(db, "SELECT id FROM session ORDER BY updated_at DESC")] if db else []
        raise self._unknown(session_id, known)

    def sessions(self, user_id: str | None = None) -> list[Session]:
        """All sessions, or one user's; the last used first."""
        with self._read() as db:
            if db is None:
                return []
            which, values = ("", ()) if user_id is None else (" WHERE s.user_id=?", (user_id,))
            order = " ORDER BY s.updated_at DESC, s.id"
            return [session_of(row) for row in _rows(db, _SESSIONS + which + order, *values)]

    def change(self, session_id: str, column: str, value: str | None, now: datetime) -> None:
        """Set `model` or `system` of a session that goes on. Raises UnknownSession, SessionEnded."""
        with self._write() as db:
            self._require_open(db, session_id)
            values = (clean(value), time_text(now), session_id)
            db.execute(f"UPDATE session SET {column}=?, updated_at=? WHERE id=?", values)

    def end(self, session_id: str, now: datetime) -> None:
        """End a session; one that has ended stays as it is. Raises UnknownSession."""
        self.session(session_id)
        with self._write() as db:
            db.execute("UPDATE session SET ended_at=coalesce(ended_at, ?) WHERE id=?", (time_text(now), session_id))

    # -- turns ----------------------------------------------------------------------------------

    def begin(
        self, session_id: str, message: str, attachments: Sequence[Attachment], replaces: int | None, now: datetime
    ) -> tuple[int, Session]:
        """A new turn's number, and the session as it is now: the message is on disk, and nothing was sent yet.

        Whoever begins holds the session's lock. So nobody waits for an answer any more, and a turn that
        still says so was killed: what became of it is unknown. Raises UnknownSession, SessionEnded.
        """
        with self._write() as db:
            session = self._require_open(db, session_id)
            db.execute("UPDATE turn SET state='unknown' WHERE session=? AND state='pending'", (session_id,))
            n = _rows(db, "SELECT coalesce(max(n), 0) + 1 FROM turn WHERE session=?", session_id)[0][0]
            row = (session_id, n, replaces, time_text(now), session.model, clean(message))
            db.execute("INSERT INTO turn VALUES(?,?,'pending',?,?,?,?,NULL,NULL,NULL)", row)
            rows = [(session_id, n, place, clean(a.name), a.media_type, a.data) for place, a in enumerate(attachments)]
            db.executemany("INSERT INTO attachment VALUES(?,?,?,?,?,?)", rows)
            db.execute("UPDATE session SET updated_at=? WHERE id=?", (time_text(now), session_id))
            return int(n), session

    def finish(self, session_id: str, n: int, state: State, answer: str | None, reply: Reply, now: datetime) -> None:
        """Write what became of a turn."""
        with self._write() as db:
            db.execute(
                "UPDATE turn SET state=?, answered_at=?, answer=?, reply=? WHERE session=? AND n=?",
                (state, time_text(now), clean(answer), encode(reply), session_id, n),
            )
            db.execute("UPDATE session SET updated_at=? WHERE id=?", (time_text(now), session_id))

    def withdraw(self, session_id: str, n: int) -> None:
        """Forget a turn that could never be sent."""
        with self._write() as db:
            for table in ("attachment", "turn"):
                db.execute(f"DELETE FROM {table} WHERE session=? AND n=?", (session_id, n))

    def turns(self, session_id: str) -> list[Turn]:
        """The turns of a session, oldest first. Raises UnknownSession."""
        self.session(session_id)
        with self._read() as db:
            assert db is not None
            attached: dict[int, list[Attachment]] = {}
            sql = "SELECT n, name, media_type, data FROM attachment WHERE session=? ORDER BY n, place"
            for n, name, media_type, data in _rows(db, sql, session_id):
                attached.setdefault(n, []).append(Attachment(name=name, media_type=media_type, data=data))
            sql = (
                "SELECT n, state, replaces, asked_at, model, message, answered_at, answer, reply"
                " FROM turn WHERE session=? ORDER BY n"
            )
            return [turn_of(row, tuple(attached.get(row[0], ()))) for row in _rows(db, sql, session_id)]

    # -- summaries ------------------------------------------------------------------------------

    def add_summary(self, session_id: str, summary: Summary) -> None:
        """Keep a summary, and what it cost."""
        row = (session_id, summary.upto, time_text(summary.created_at), summary.model, clean(summary.text))
        with self._write() as db:
            db.execute("INSERT INTO summary VALUES(?,?,?,?,?,?)", (*row, encode(summary.reply)))

    def summaries(self, session_id: str) -> list[Summary]:
        """The summaries of a session, oldest first."""
        sql = "SELECT upto, created_at, model, text, reply FROM summary WHERE session=? ORDER BY rowid"
        with self._read() as db:
            return [
                Summary(upto=upto, created_at=read_time(at), model=model, text=text, reply=decode(reply))
                for upto, at, model, text, reply in (_rows(db, sql, session_id) if db else [])
            ]

    # -- the file -------------------------------------------------------------------------------

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection | None]:
        """The database for reading; None where there is none yet."""
        with self._lock, self._errors("what was saved is unchanged"):
            if self._db is None and not self.path.exists():
                yield None
            elif self._db is None and self._is_settled() and _is_full(self.path):
                # The memory that readers share is a file, for which there may be no room.
                uri = f"{self.path.resolve().as_uri()}?immutable=1"
                with closing(sqlite3.connect(uri, uri=True)) as db:
                    yield db
            else:
                yield self._open()

    def _is_settled(self) -> bool:
        """Whether all that was written is in the file itself, and nobody has it open."""
        log = self.path.with_name(self.path.name + "-wal")
        return not log.exists() and self.path.stat().st_size > 0

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """A transaction, durable at its end."""
        with self._lock, self._errors("what was saved before is unchanged"):
            db = self._open()
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    db.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self, state: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as exc:
            raise _store_error(self.path, exc, state) from None

    def _open(self) -> sqlite3.Connection:
        if self._db is None:
            with _first_come(self.path.parent):
                _make_private(self.path)
                db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=BUSY_S)
                try:
                    self._prepare(db)
                except BaseException:
                    db.close()
                    raise
            self._db = db
        return self._db

    def _prepare(self, db: sqlite3.Connection) -> None:
        """Make the tables, or make sure that these are ours."""
        tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        application, version = (
            db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
        )
        if (tables and application != APPLICATION) or version > SCHEMA:
            what = f"of a newer cbatch (format {version})" if application == APPLICATION else "of another program"
            advice = "upgrade cbatch" if application == APPLICATION else "move it away: a new one is then made"
            raise StoreError(f"{self.path}: a file {what}, not changed; this cbatch reads format {SCHEMA}", hint=advice)
        # A write-ahead log needs memory that all who have the file open share: not between machines.
        db.execute(f"PRAGMA journal_mode={'DELETE' if is_network(kind_of(self.path)) else 'WAL'}")
        db.execute("PRAGMA synchronous=FULL")
        if tables and version == SCHEMA:
            return
        db.execute("BEGIN IMMEDIATE")
        try:
            for statement in _TABLES.strip().split(";\n"):
                db.execute(statement)
            db.execute(f"PRAGMA application_id={APPLICATION}")
            db.execute(f"PRAGMA user_version={SCHEMA}")
            db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise

    def _require_open(self, db: sqlite3.Connection, session_id: str) -> Session:
        """A session that has not ended. Raises UnknownSession, SessionEnded."""
        found = _rows(db, _SESSIONS + " WHERE s.id=?", clean(session_id))
        if not found:
            raise self._unknown(session_id, [row[0] for row in _rows(db, "SELECT id FROM session")])
        session = session_of(found[0])
        if session.ended_at is not None:
            raise SessionEnded(
                f"{session_id}: ended at {session.ended_at:%Y-%m-%d %H:%M} UTC; it takes no more messages",
                hint=f"start a new one; `cbatch sessions show {session_id}` still shows it",
            )
        return session

    def _unknown(self, session_id: str, known: Sequence[str]) -> UnknownSession:
        near = difflib.get_close_matches(session_id, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        hint += "`cbatch sessions` lists them" if known else "there is none yet: `cbatch chat` starts one"
        return UnknownSession(f"no session {session_id!r} in {self.path}", hint=hint)


_SESSIONS = (
    "SELECT s.id, s.user_id, s.model, s.system, s.created_at, s.updated_at, s.ended_at,"
    " (SELECT count(*) FROM turn t WHERE t.session=s.id),"
    f" (SELECT substr(t.message, 1, {4 * TITLE_CHARS}) FROM turn t WHERE t.session=s.id ORDER BY t.n LIMIT 1)"
    " FROM session s"
)


def _rows(db: sqlite3.Connection, sql: str, *values: object) -> list[Any]:
    return db.execute(sql, values).fetchall()


@contextmanager
def _first_come(folder: Path) -> Iterator[None]:
    """One at a time, of all threads and processes: SQLite itself does not wait where the log is switched on."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # one that is there may be /tmp: it stays as it is
    with _OPENING:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def _make_private(path: Path) -> None:
    """Make the file for the user alone; SQLite gives its other files the mode of this one."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        # Not opened: to close it would give up the locks of everybody in this process who uses it.
        with suppress(PermissionError):
            path.chmod(0o600)  # whoever copied it here


def _store_error(path: Path, exc: Exception, state: str) -> StoreError:
    text = str(exc) if isinstance(exc, sqlite3.Error) else exc.strerror or str(exc) if isinstance(exc, OSError) else ""
    if "full" in text or "No space" in text or "too large" in text or ("disk I/O" in text and _is_full(path)):
        return _full(path, state)
    if "malformed" in text or "not a database" in text or isinstance(exc, orjson.JSONDecodeError):
        return StoreError(
            f"{path}: damaged: {text}; it is left as it is",
            hint=f"`sqlite3 {path} .recover` may read what is left; move the file away and a new one is made",
        )
    if "locked" in text:
        return StoreError(
            f"{path}: another program keeps it locked; {state}", hint="close that program, then try again"
        )
    return StoreError(f"{path}: cannot be used: {text}; {state}", hint="check the folder's permissions and its disk")


def _full(path: Path, state: str) -> StoreError:
    return StoreError(f"{path}: the disk is full; {state}", hint="free some space, then try again")


def _is_full(path: Path) -> bool:
    try:
        space = os.statvfs(path.parent)
    except OSError:
        return False
    return space.f_bavail * space.f_frsize < ROOM_BYTES


__all__ = ["SCHEMA", "Store"]
