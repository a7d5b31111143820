"""P2 to P5 under a crash at every step: each acknowledged row exactly once, in its place, with its latest outcome.

A crash is a copy of the folder, taken at a moment when kill -9 or a power cut could leave it like that:
after every commit and around every fsync. The copy is then opened as the next start would open it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cbatch import journal as journal_module
from cbatch.errors import JournalError
from cbatch.journal import PLANNED, VISIBLE, Journal, Writer, key_of
from cbatch.parquet import read_rows, sha256, write_part
from cbatch.publish import Publisher, carried_types, rebuild
from cbatch.rundir import RunDir
from cbatch.schema import COLUMN_INDEX, COLUMNS, Record

CARRIED = {"grade": "int64"}
ID, TEXT = COLUMN_INDEX["id"], COLUMN_INDEX["text"]


def record(name: str, version: int = 0, *, ok: bool = True) -> Record:
    row: list[Any] = [None] * len(COLUMNS) + [7]
    digest = hashlib.sha256(name.encode()).digest()
    values = {"id": name, "sample": 0, "model": "m", "digest": digest.hex(), "attempts": 1, "text": str(version)}
    for column, value in (values | {"status": "ok" if ok else "error"}).items():
        row[COLUMN_INDEX[column]] = value
    return Record(key=key_of(name, "m"), sample=0, digest=digest, ok=ok, attempts=1, row=row)


class Session:
    """One process with a run directory, as the engine uses it. `acknowledged`: id -> version that was counted."""

    def __init__(self, folder: Path, acknowledged: dict[str, int] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.acknowledged = dict(acknowledged or {})
        self.errors: list[JournalError] = []
        self.journal = Journal(RunDir(folder).journal, create=True)
        self.writer = Writer(self.journal, on_durable=self._count, on_error=self.errors.append)
        try:
            self.adopted = rebuild(folder, self.writer)
            self.publisher = Publisher(folder, self.journal, self.writer, CARRIED)
            self.publisher.recover()
        except JournalError:
            self.abandon()
            raise

    def _count(self, records: list[Record]) -> None:
        for one in records:
            self.acknowledged[one.row[ID]] = int(one.row[TEXT])

    def put(self, *names: str, version: int = 0, ok: bool = True) -> None:
        for name in names:
            known = self.journal.lookup(key_of(name, "m"), 0)
            self.writer.put(record(name, version, ok=ok), known.seq if known else None)
        self.writer.do(lambda db: None).result(10)

    def abandon(self) -> None:
        self.writer.stop()
        self.journal.close()

    def finish(self) -> None:
        self.publisher.finish()
        self.abandon()


def rows_of(folder: Path) -> list[list[Any]]:
    """All rows in results/, part by part. A file that cannot be read whole fails here."""
    return [row for path in RunDir(folder).parts for row in read_rows(path)]


def prove(folder: Path, acknowledged: dict[str, int], *, finished: bool = True) -> None:
    """What is promised of a run directory at any moment, and the rest of it once a session has finished."""
    rows = rows_of(folder)
    names = [row[ID] for row in rows]
    assert len(set(names)) == len(names), "a row twice"
    journal = Journal(RunDir(folder).journal)
    parts = journal.parts()
    try:
        assert {path.name for path in RunDir(folder).parts} <= {part.name for part in parts}
        if not finished:
            return
        versions = {row[ID]: int(row[TEXT]) for row in rows}
        assert versions.keys() >= acknowledged.keys(), "a row lost"
        # Newer than acknowledged is fine: committed, and killed before it was counted.
        assert all(versions[name] >= version for name, version in acknowledged.items()), "an outcome lost"
        assert all(part.state == VISIBLE for part in parts)
        assert all(part.sha256 == sha256(folder / "results" / part.name) for part in parts)
        assert journal.count_bodies(0, 1 << 60) == 0
        assert sum(journal.counts()) == len(rows) == sum(part.rows for part in parts)
        for part in parts:
            for place, row in enumerate(read_rows(folder / "results" / part.name)):
                known = journal.lookup(key_of(row[ID], "m"), 0)
                assert known is not None
                assert known.seq == part.first_seq + place, "a row out of its place"
                assert known.ok == (row[COLUMN_INDEX["status"]] == "ok")
    finally:
        journal.close()


class Crashes:
    """Copies the folder of a session at every moment at which it could be cut off."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, into: Path, wanted: set[int] | None = None) -> None:
        self.session: Session | None = None
        self.seen = 0
        self.copies: list[tuple[Path, dict[str, int]]] = []
        self._into = into
        self._wanted = wanted
        commit, fsync = Writer._commit, os.fsync

        def commit_and_copy(writer: Writer, db: sqlite3.Connection, batch: Any) -> Any:
            found = commit(writer, db, batch)
            self._copy()
            return found

        def copy_and_fsync(fd: int) -> None:  # before: the data may be lost with the power; after: the name, too
            self._copy(torn=True)
            fsync(fd)
            self._copy()

        monkeypatch.setattr(Writer, "_commit", commit_and_copy)
        monkeypatch.setattr(os, "fsync", copy_and_fsync)

    def _copy(self, *, torn: bool = False) -> None:
        if self.session is None:
            return
        self.seen += 1
        if self._wanted is not None and self.seen not in self._wanted:
            return
        copy = self._into / f"crash-{self.seen}"
        shutil.copytree(self.session.folder, copy)
        if torn:
            for staged in (copy / "staging").glob("*"):
                os.truncate(staged, staged.stat().st_size // 2)
        self.copies.append((copy, dict(self.session.acknowledged)))


step = st.one_of(
    st.tuples(st.just("put"), st.integers(1, 7)),
    st.tuples(st.just("again"), st.integers(0, 1 << 30)),
    st.tuples(st.just("cut"), st.integers(1, 5)),
    st.tuples(st.just("restart"), st.just(0)),
)


def play(
    session: Session, steps: list[tuple[str, int]], version: int, on_restart: Callable[[Session], None]
) -> Session:
    """Do the steps as the engine would: a row is run again only when its part is visible."""
    for action, number in steps:
        version += 1
        known = sorted(session.acknowledged)
        if action == "put":
            session.put(*(f"v{version}-{n}" for n in range(number)), ok=number % 3 > 0)
        elif action == "again" and known:
            session.publisher.cut_unplaced()
            session.put(*{known[number % len(known)], known[number // 7 % len(known)]}, version=version)
        elif action == "cut":
            first, last = session.journal.unplaced()
            if last - first + 1 >= number:
                session.publisher.cut_now(first, first + number - 1)
        elif action == "restart":
            session.finish()
            prove(session.folder, session.acknowledged)
            session = Session(session.folder, session.acknowledged)
            on_restart(session)
    return session


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    first=st.lists(step, min_size=1, max_size=8),
    second=st.lists(step, max_size=4),
    where=st.sets(st.integers(1, 40), min_size=1, max_size=4),
)
def test_a_run_cut_off_anywhere_ends_with_every_acknowledged_row_once(
    tmp_path_factory: pytest.TempPathFactory,
    first: list[tuple[str, int]],
    second: list[tuple[str, int]],
    where: set[int],
) -> None:
    """Whatever was done before, wherever it was cut off, whatever is done after: one row each, the latest, in place."""
    top = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(journal_module, "GARBAGE_ROWS", 2)
        crashes = Crashes(monkeypatch, top, where)

        def follow(session: Session) -> None:
            crashes.session = session

        session = Session(top / "run")
        follow(session)
        session = play(session, first, 0, follow)
        session.finish()
        crashes.session = None
        prove(top / "run", session.acknowledged)
    for copy, acknowledged in crashes.copies:
        prove(copy, acknowledged, finished=False)
        session = Session(copy, acknowledged)
        prove(copy, acknowledged, finished=False)
        session = play(session, second, 1_000, lambda session: None)
        session.finish()
        prove(copy, session.acknowledged)
    shutil.rmtree(top)


def test_a_part_that_is_made_again_is_the_part_that_was_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off at any step between P1 and P5, results/ ends with the same names and the same bytes."""
    monkeypatch.setattr(journal_module, "GARBAGE_ROWS", 2)
    session = Session(tmp_path / "run")
    session.put(*(f"p{n}" for n in range(8)))
    crashes = Crashes(monkeypatch, tmp_path)
    crashes.session = session
    session.publisher.cut_now(1, 5)
    session.finish()
    crashes.session = None
    expected = {path.name: sha256(path) for path in RunDir(tmp_path / "run").parts}
    assert len(expected) == 2
    assert len(crashes.copies) > 10
    for copy, acknowledged in crashes.copies:
        session = Session(copy, acknowledged)
        if not session.journal.parts():  # cut off before P2
            session.publisher.cut_now(1, 5)
        session.finish()
        assert {path.name: sha256(path) for path in RunDir(copy).parts} == expected


def test_results_hold_nothing_but_parts_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crashes = Crashes(monkeypatch, tmp_path)
    session = crashes.session = Session(tmp_path / "run")
    session.put("a", "b")
    session.publisher.cut_unplaced()
    session.put("a", version=1)
    session.finish()
    crashes.session = None
    for copy, _ in crashes.copies:
        assert {path.suffix for path in (copy / "results").glob("**/*")} <= {".parquet"}
    assert not (tmp_path / "run" / "staging").exists()


def test_a_large_part_is_not_written_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bodies that are still being cleared at the end are not taken for rows that were run again."""
    monkeypatch.setattr(journal_module, "GARBAGE_ROWS", 2)
    written: list[str] = []

    def counting(rows: Any, carried: Any, staged: Path, final: Path) -> str:
        written.append(final.name)
        return write_part(rows, carried, staged, final)

    monkeypatch.setattr("cbatch.publish.write_part", counting)
    session = Session(tmp_path)
    session.put(*(f"p{n}" for n in range(100)))
    session.finish()
    assert written == ["part-00000.parquet"]


def test_only_the_parts_of_rows_that_were_run_again_are_rewritten(tmp_path: Path) -> None:
    """A retried row takes its old place; every other part keeps its bytes."""
    session = Session(tmp_path)
    session.put(*(f"p{n}" for n in range(9)), ok=False)
    for first in (1, 4, 7):
        session.publisher.cut_now(first, first + 2)
    before = [sha256(path) for path in RunDir(tmp_path).parts]
    session.put("p4", version=1)
    session.finish()
    after = [sha256(path) for path in RunDir(tmp_path).parts]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]
    assert [(row[ID], row[TEXT]) for row in rows_of(tmp_path)][3:6] == [("p3", "0"), ("p4", "1"), ("p5", "0")]
    prove(tmp_path, session.acknowledged)


def _pragma(db: sqlite3.Connection, text: str) -> None:
    db.execute(f"PRAGMA {text}")


class _Disk:
    """A `write_part` that finds the disk full a number of times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
        self.times = times
        self.full = threading.Event()
        monkeypatch.setattr("cbatch.publish.write_part", self)

    def __call__(self, rows: Any, carried: Any, staged: Path, final: Path) -> str:
        if self.times:
            self.times -= 1
            self.full.set()
            raise OSError(28, "No space left on device")
        return write_part(rows, carried, staged, final)


def test_a_part_that_could_not_be_written_is_an_error_and_its_rows_wait_in_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the part and says what to do; the next start makes it."""
    session = Session(tmp_path)
    session.put("a", "b")
    _Disk(monkeypatch, 1)
    with pytest.raises(JournalError, match=r"part-00000\.parquet: cannot be written: No space left on device") as error:
        session.publisher.cut_unplaced()
    assert "free some space" in str(error.value.hint)
    session.abandon()
    session = Session(tmp_path, session.acknowledged)
    session.finish()
    prove(tmp_path, session.acknowledged)


def test_a_failed_part_is_not_hidden_by_a_later_one_that_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two parts are queued, the first meets a full disk for a moment: the run learns it, or has both parts."""
    session = Session(tmp_path)
    session.put("a", "b")
    disk = _Disk(monkeypatch, 1)
    session.publisher.cut(1, 1)
    disk.full.wait(10)
    with pytest.raises(JournalError, match="No space left"):  # noqa: PT012 - whichever call comes first says it
        session.publisher.cut(2, 2)
        session.publisher.finish()
    session.publisher.close()
    session.abandon()
    session = Session(tmp_path, session.acknowledged)
    assert [part.state for part in session.journal.parts()][:1] == [VISIBLE]
    session.finish()
    prove(tmp_path, session.acknowledged)


def test_no_part_is_made_when_the_journal_cannot_record_it(tmp_path: Path) -> None:
    """A plan that is not durable publishes nothing."""
    session = Session(tmp_path)
    session.put("a")
    session.writer.do(lambda db: _pragma(db, "query_only=1")).result(10)
    with pytest.raises(JournalError, match="cannot be written"):
        session.publisher.cut_unplaced()
    assert not RunDir(tmp_path).parts
    session.publisher.close()
    session.abandon()


def lose_the_journal(folder: Path) -> None:
    for file in folder.glob("journal.sqlite*"):
        file.unlink()


@pytest.fixture
def finished(tmp_path: Path) -> Session:
    """A finished run of nine rows in three parts, its journal closed."""
    session = Session(tmp_path / "run")
    session.put(*(f"p{n}" for n in range(6)))
    session.put(*(f"p{n}" for n in range(6, 9)), ok=False)
    for first in (1, 4, 7):
        session.publisher.cut_now(first, first + 2)
    session.finish()
    return session


def test_a_lost_journal_is_rebuilt_from_the_parts(finished: Session) -> None:
    """Every row is known again with its digest, its state and its place; running it again still replaces it."""
    folder = finished.folder
    before = {p.name: sha256(p) for p in RunDir(folder).parts}
    lose_the_journal(folder)
    session = Session(folder, finished.acknowledged)
    assert session.adopted == 9
    assert session.journal.counts() == (6, 3)
    known = session.journal.lookup(key_of("p4", "m"), 0)
    assert known is not None
    assert (known.digest, known.ok, known.seq) == (hashlib.sha256(b"p4").digest(), True, 5)
    assert carried_types(folder) == CARRIED
    session.put("p7", version=2)
    session.put("new")
    session.finish()
    prove(folder, session.acknowledged)
    after = {p.name: sha256(p) for p in RunDir(folder).parts}
    assert {name for name in after if after[name] != before.get(name)} == {"part-00002.parquet", "part-00003.parquet"}


def test_a_rebuild_that_is_killed_is_finished_by_the_next_start(
    finished: Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After any number of adopted parts, none included: nothing is unknown, no part is overwritten."""
    lose_the_journal(finished.folder)
    Journal(RunDir(finished.folder).journal, create=True).close()  # killed before the first
    crashes = Crashes(monkeypatch, tmp_path)

    class Watched(Session):
        def __init__(self, folder: Path, acknowledged: dict[str, int]) -> None:
            self.folder, self.acknowledged = folder, acknowledged
            crashes.session = self
            super().__init__(folder, acknowledged)
            crashes.session = None

    Watched(finished.folder, finished.acknowledged).finish()
    prove(finished.folder, finished.acknowledged)
    adopted = []
    for copy, acknowledged in crashes.copies:
        session = Session(copy, acknowledged)
        adopted.append(session.adopted)
        session.put("new")
        session.finish()
        prove(copy, session.acknowledged)
    assert sorted(set(adopted)) == [0, 3, 6]


def test_a_new_part_never_takes_the_name_of_another(finished: Session) -> None:
    """With the journal and the first part gone, the number of parts says nothing about free names."""
    lose_the_journal(finished.folder)
    (finished.folder / "results" / "part-00000.parquet").unlink()
    session = Session(finished.folder)
    session.put("new")
    session.finish()
    assert sorted(row[ID] for row in rows_of(finished.folder)) == sorted(["new", *(f"p{n}" for n in range(3, 9))])
    prove(finished.folder, session.acknowledged)


@pytest.mark.parametrize("content", [b"hello", b""], ids=["text", "an empty file"])
def test_a_file_that_is_no_part_is_refused_every_time(finished: Session, content: bytes) -> None:
    """Not only at the first start: the rows in the parts beside it would be sent again."""
    lose_the_journal(finished.folder)
    stranger = finished.folder / "results" / "zzz.parquet"
    stranger.write_bytes(content)
    for _ in range(2):
        with pytest.raises(JournalError, match=r"zzz\.parquet: not a") as refused:
            Session(finished.folder)
        assert "move it away" in str(refused.value.hint)
    stranger.unlink()
    session = Session(finished.folder, finished.acknowledged)
    session.finish()
    prove(finished.folder, session.acknowledged)


def test_a_copy_of_a_part_is_refused(finished: Session) -> None:
    """Its rows would be there twice."""
    results = finished.folder / "results"
    shutil.copy(results / "part-00001.parquet", results / "part-00001 copy.parquet")
    with pytest.raises(JournalError, match="3 of its rows are in another part"):
        Session(finished.folder)
    (results / "part-00001 copy.parquet").unlink()
    Session(finished.folder).finish()
    prove(finished.folder, finished.acknowledged)


def test_a_part_that_vanished_is_noticed(finished: Session) -> None:
    """Its rows are neither in results/ nor would they be sent again: that is not `nothing to send`."""
    (finished.folder / "results" / "part-00001.parquet").unlink()
    with pytest.raises(JournalError, match=r"part-00001\.parquet: missing, and 3 answered rows with it"):
        Session(finished.folder)


def test_a_part_that_was_shortened_is_not_rewritten_with_rows_missing(finished: Session) -> None:
    """A retried row must not be lost, nor the others move, because something else changed the part."""
    part = finished.folder / "results" / "part-00001.parquet"
    write_part(list(read_rows(part))[:1], CARRIED, finished.folder / "part", part)
    session = Session(finished.folder, finished.acknowledged)
    session.put("p4", version=1)
    with pytest.raises(JournalError, match="row 3 of 3 is missing"):
        session.publisher.finish()
    assert session.journal.count_bodies(4, 6) == 1
    session.abandon()


def test_fresh_deletes_what_a_run_wrote_and_nothing_else(finished: Session) -> None:
    """A file of the user's in results/ stops it before anything is gone; staging/ and notes stay."""
    folder = RunDir(finished.folder)
    stranger, note = folder.results / "mine.parquet", folder.path / "notes.txt"
    stranger.write_text("mine")
    note.write_text("keep")
    (folder.path / "staging").mkdir()
    (folder.path / "staging" / "keep.txt").write_text("keep")
    with pytest.raises(JournalError, match=r"mine\.parquet: not a part of a cbatch run, so not deleted"):
        folder.clear()
    assert len(folder.parts) == 4
    stranger.unlink()
    folder.clear()
    assert not folder.is_run()
    assert sorted(p.name for p in folder.path.rglob("*") if p.is_file()) == ["keep.txt", "notes.txt"]
    session = Session(folder.path)
    session.put("a")
    session.finish()
    prove(folder.path, {"a": 0})
    assert (folder.path / "staging" / "keep.txt").exists()


def test_fresh_killed_in_the_middle_never_leaves_rows_that_are_known_and_nowhere(
    finished: Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After every single deletion the folder is one that the next start can use."""
    copies: list[Path] = []
    unlink = Path.unlink

    def unlink_and_copy(self: Path, missing_ok: bool = False) -> None:
        unlink(self, missing_ok)
        copies.append(tmp_path / f"cleared-{len(copies)}")
        shutil.copytree(finished.folder, copies[-1])

    monkeypatch.setattr(Path, "unlink", unlink_and_copy)
    RunDir(finished.folder).clear()
    monkeypatch.undo()
    assert len(copies) >= 6
    for copy in copies:
        session = Session(copy)
        assert sum(session.journal.counts()) == len(rows_of(copy))
        session.put("new")
        session.finish()
        prove(copy, session.acknowledged)


def test_a_planned_part_is_known_by_its_state(tmp_path: Path) -> None:
    """What a crash after P2 leaves is one PLANNED part; recovery makes exactly that one visible."""
    session = Session(tmp_path)
    session.put("a", "b", "c")
    session.writer.plan_part("part-00000.parquet", 1, 2).result(10)
    assert [part.state for part in session.journal.parts()] == [PLANNED]
    session.abandon()
    session = Session(tmp_path, session.acknowledged)
    assert [(part.state, part.rows) for part in session.journal.parts()] == [(VISIBLE, 2)]
    assert [row[ID] for row in rows_of(tmp_path)] == ["a", "b"]
    session.finish()
    prove(tmp_path, session.acknowledged)
