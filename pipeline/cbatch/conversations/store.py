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
import os
import random
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from cbatch.conversations import names
from cbatch.conversations.interface import Attachment, Reply, Session, State
from cbatch.conversations.problems import SessionEnded, StoreError, UnknownSession
from cbatch.filesystem import is_network, kind_of
from cbatch.schema import Usage

SCHEMA = 1
APPLICATION = 0x63624368  # "cbCh": so that another program's database is not taken for ours
BUSY_S = 10.0  # another process's transaction takes milliseconds
ROOM_BYTES = 1 << 20  # less than this free, and an answer that is paid for may find no room
TITLE_CHARS = 60

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A message and what became of it. `answer` is what came of it, perhaps not all."""

    n: int
    state: State
    replaces: int | None
    asked_at: datetime
    model: str
    message: str
    answered_at: datetime | None
    answer: str | None
    reply: Reply
    attachments: tuple[Attachment, ...] = ()

    @property
    def counts(self) -> bool:
        """Whether the model is told of it later: there is an answer, or the part that was not stopped."""
        return self.state in ("answered", "stopped") and bool((self.answer or "").strip())


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A summary of the turns up to `upto`."""

    upto: int
    created_at: datetime
    model: str
    text: str
    reply: Reply


def replaced(turns: Sequence[Turn], also: int | None = None) -> set[int]:
    """The turns that were asked again and answered since; `also` is one that is being asked again now."""
    gone = set() if also is None else {also}
    for turn in sorted(turns, key=lambda t: t.n, reverse=True):
        if turn.replaces is not None and (turn.counts or turn.n in gone):
            gone.add(turn.replaces)
    return gone


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
                row = (session_id, _clean(user_id), model, _clean(system), _text(now), _text(now))
                added = db.execute("INSERT OR IGNORE INTO session VALUES(?,?,?,?,?,?,NULL)", row).rowcount
                if added:
                    return session_id

    def session(self, session_id: str) -> Session:
        """One session. Raises UnknownSession."""
        with self._read() as db:
            found = [_session(row) for row in _rows(db, _SESSIONS + " WHERE s.id=?", session_id)] if db else []
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
            return [_session(row) for row in _rows(db, _SESSIONS + which + order, *values)]

    def change(self, session_id: str, column: str, value: str | None, now: datetime) -> None:
        """Set `model` or `system` of a session that goes on. Raises UnknownSession, SessionEnded."""
        with self._write() as db:
            self._require_open(db, session_id)
            values = (_clean(value), _text(now), session_id)
            db.execute(f"UPDATE session SET {column}=?, updated_at=? WHERE id=?", values)

    def end(self, session_id: str, now: datetime) -> None:
        """End a session; one that has ended stays as it is. Raises UnknownSession."""
        self.session(session_id)
        with self._write() as db:
            db.execute("UPDATE session SET ended_at=coalesce(ended_at, ?) WHERE id=?", (_text(now), session_id))

    # -- turns ----------------------------------------------------------------------------------

    def begin(
        self, session_id: str, message: str, attachments: Sequence[Attachment], replaces: int | None, now: datetime
    ) -> int:
        """A new turn's number: the message is on disk, and nothing was sent yet. Raises UnknownSession, SessionEnded.

        Whoever begins holds the session's lock. So nobody waits for an answer any more, and a turn that
        still says so was killed: what became of it is unknown.
        """
        with self._write() as db:
            model = self._require_open(db, session_id)
            db.execute("UPDATE turn SET state='unknown' WHERE session=? AND state='pending'", (session_id,))
            n = _rows(db, "SELECT coalesce(max(n), 0) + 1 FROM turn WHERE session=?", session_id)[0][0]
            row = (session_id, n, replaces, _text(now), model, _clean(message))
            db.execute("INSERT INTO turn VALUES(?,?,'pending',?,?,?,?,NULL,NULL,NULL)", row)
            rows = [(session_id, n, place, _clean(a.name), a.media_type, a.data) for place, a in enumerate(attachments)]
            db.executemany("INSERT INTO attachment VALUES(?,?,?,?,?,?)", rows)
            db.execute("UPDATE session SET updated_at=? WHERE id=?", (_text(now), session_id))
            return int(n)

    def finish(
        self, session_id: str, n: int, state: State, answer: str | None, reply: Reply, now: datetime
    ) -> None:
        """Write what became of a turn."""
        with self._write() as db:
            db.execute(
                "UPDATE turn SET state=?, answered_at=?, answer=?, reply=? WHERE session=? AND n=?",
                (state, _text(now), _clean(answer), _encode(reply), session_id, n),
            )
            db.execute("UPDATE session SET updated_at=? WHERE id=?", (_text(now), session_id))

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
            return [_turn(row, tuple(attached.get(row[0], ()))) for row in _rows(db, sql, session_id)]

    # -- summaries ------------------------------------------------------------------------------

    def add_summary(self, session_id: str, summary: Summary) -> None:
        """Keep a summary, and what it cost."""
        row = (session_id, summary.upto, _text(summary.created_at), summary.model, _clean(summary.text))
        with self._write() as db:
            db.execute("INSERT INTO summary VALUES(?,?,?,?,?,?)", (*row, _encode(summary.reply)))

    def summaries(self, session_id: str) -> list[Summary]:
        """The summaries of a session, oldest first."""
        sql = "SELECT upto, created_at, model, text, reply FROM summary WHERE session=? ORDER BY rowid"
        with self._read() as db:
            return [
                Summary(upto=upto, created_at=_time(at), model=model, text=text, reply=_decode(reply))
                for upto, at, model, text, reply in (_rows(db, sql, session_id) if db else [])
            ]

    # -- the file -------------------------------------------------------------------------------

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection | None]:
        """The database for reading; None where there is none yet."""
        with self._lock, self._errors("what was saved is unchanged"):
            yield self._open() if self._db is not None or self.path.exists() else None

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
        application, version = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
        tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
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
            if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:  # or another process was first
                for statement in _TABLES.strip().split(";\n"):
                    db.execute(statement)
                db.execute(f"PRAGMA application_id={APPLICATION}")
                db.execute(f"PRAGMA user_version={SCHEMA}")
            db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise

    def _require_open(self, db: sqlite3.Connection, session_id: str) -> str:
        """The model of a session that has not ended."""
        found = _rows(db, "SELECT model, ended_at FROM session WHERE id=?", session_id)
        if not found:
            raise self._unknown(session_id, [row[0] for row in _rows(db, "SELECT id FROM session")])
        model, ended_at = found[0]
        if ended_at is not None:
            raise SessionEnded(
                f"{session_id}: the session was ended at {_time(ended_at):%Y-%m-%d %H:%M} UTC and takes no more messages",
                hint=f"start a new one; `cbatch sessions show {session_id}` still shows it",
            )
        return str(model)

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
_REPLY = {field.name for field in fields(Reply)}
_USAGE = {field.name for field in fields(Usage)}


def _rows(db: sqlite3.Connection, sql: str, *values: object) -> list[Any]:
    return db.execute(sql, values).fetchall()


def _session(row: Sequence[Any]) -> Session:
    session_id, user_id, model, system, created_at, updated_at, ended_at, turns, first = row
    words = " ".join((first or "").split())
    return Session(
        id=session_id,
        user_id=user_id,
        model=model,
        system=system,
        created_at=_time(created_at),
        updated_at=_time(updated_at),
        ended_at=_time(ended_at) if ended_at is not None else None,
        turns=turns,
        title=words if len(words) <= TITLE_CHARS else f"{words[: TITLE_CHARS - 1]}…",
    )


def _turn(row: Sequence[Any], attachments: tuple[Attachment, ...]) -> Turn:
    n, state, replaces, asked_at, model, message, answered_at, answer, reply = row
    return Turn(
        n=n,
        state=state,
        replaces=replaces,
        asked_at=_time(asked_at),
        model=model,
        message=message,
        answered_at=_time(answered_at) if answered_at is not None else None,
        answer=answer,
        reply=_decode(reply),
        attachments=attachments,
    )


def _text(time: datetime) -> str:
    return time.isoformat(timespec="microseconds")


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _clean(text: str | None) -> str | None:
    # Half an emoji, or bytes of a terminal that are no UTF-8: neither SQLite nor the API can take them.
    return None if text is None else text.encode("utf-8", "replace").decode()


def _encode(reply: Reply) -> str:
    found = {name: value for name, value in asdict(reply).items() if value is not None}
    try:
        return orjson.dumps(found).decode()
    except TypeError:
        reply_text = {name: _clean(value) if isinstance(value, str) else value for name, value in found.items()}
        return orjson.dumps(reply_text, default=str).decode()


def _decode(text: str | None) -> Reply:
    """What was measured; fields of a newer cbatch are left out."""
    found = orjson.loads(text) if text else {}
    usage = Usage(**{name: value for name, value in found.pop("usage", {}).items() if name in _USAGE})
    return Reply(usage=usage, **{name: value for name, value in found.items() if name in _REPLY})


def _make_private(path: Path) -> None:
    """Make folder and file for the user alone; SQLite gives its other files the mode of this one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(PermissionError):  # another user's folder, chosen by hand
        path.parent.chmod(0o700)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with suppress(PermissionError):
            os.fchmod(fd, 0o600)  # whatever the umask, or whoever copied it here
    finally:
        os.close(fd)


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
        return StoreError(f"{path}: another program keeps it locked; {state}", hint="close that program, then try again")
    return StoreError(f"{path}: cannot be used: {text}; {state}", hint="check the folder's permissions and its disk")


def _full(path: Path, state: str) -> StoreError:
    return StoreError(f"{path}: the disk is full; {state}", hint="free some space, then try again")


def _is_full(path: Path) -> bool:
    try:
        space = os.statvfs(path.parent)
    except OSError:
        return False
    return space.f_bavail * space.f_frsize < ROOM_BYTES


__all__ = ["SCHEMA", "Store", "Summary", "Turn", "replaced"]
