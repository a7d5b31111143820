"""The file of the sessions: private, refused where it is not ours, and never made worse."""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cbatch.conversations import store as store_module
from cbatch.conversations.interface import Attachment, Reply
from cbatch.conversations.problems import SessionEnded, StoreError, UnknownSession
from cbatch.conversations.store import SCHEMA, Store
from cbatch.schema import Usage

NOW = datetime(2026, 11, 20, 18, 4, 5, 678_901, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = Store(tmp_path / "data" / "sessions.sqlite")
    yield found
    found.close()


def start(store: Store, seed: int = 1, system: str | None = None) -> str:
    return store.add_session("ada", "gpt-oss-120b", system, NOW, random.Random(seed))


def test_reading_makes_no_file(store: Store) -> None:
    assert store.sessions() == []
    with pytest.raises(UnknownSession) as found:
        store.session("amber-falcon-42")
    assert "cbatch chat" in str(found.value.hint)
    assert not store.path.parent.exists()


def test_folder_and_files_are_the_users_alone(store: Store) -> None:
    mask = os.umask(0)
    try:
        start(store)
    finally:
        os.umask(mask)
    assert store.path.parent.stat().st_mode & 0o777 == 0o700
    files = list(store.path.parent.iterdir())
    assert len(files) == 3  # with the write-ahead log and its index
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


def test_a_folder_that_was_there_stays_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    store = Store(tmp_path / "s.sqlite")
    start(store)
    store.close()
    assert tmp_path.stat().st_mode & 0o777 == 0o755
    assert store.path.stat().st_mode & 0o777 == 0o600


def test_what_was_written_is_read_by_another_process(store: Store) -> None:
    session_id = start(store, system="be brief")
    attachment = Attachment(name="a.png", media_type="image/png", data=b"\x00\xff")
    n, session = store.begin(session_id, "Grüße \x00 🙂", [attachment], None, NOW)
    reply = Reply(reasoning="hm", usage=Usage(prompt_tokens=3, total_tokens=5), cost_usd=0.25, tool_calls=[{"a": 1}])
    store.finish(session_id, n, "answered", "ho", reply, NOW)
    other = Store(store.path)
    (turn,) = other.turns(session_id)
    assert (turn.message, turn.answer, turn.reply, turn.state) == ("Grüße \x00 🙂", "ho", reply, "answered")
    assert (turn.attachments, turn.asked_at) == ((attachment,), NOW)
    found = other.session(session_id)
    assert (found.system, found.user_id, found.turns, found.created_at) == ("be brief", "ada", 1, NOW)
    assert session.system == "be brief"
    other.close()


def test_a_commit_waits_for_the_disk(store: Store) -> None:
    """What a power cut would take otherwise; it cannot be tried here."""
    start(store)
    assert store._db is not None
    assert [store._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("synchronous", "journal_mode")] == [2, "wal"]


def test_ids_are_unique_even_where_chance_repeats(store: Store) -> None:
    assert len({start(store, seed=1) for _ in range(5)}) == 5


def test_half_an_emoji_is_no_reason_to_lose_a_message(store: Store) -> None:
    session_id = start(store)
    store.begin(session_id, "half \ud83d", [], None, NOW)
    assert store.turns(session_id)[0].message == "half ?"
    with pytest.raises(UnknownSession):
        store.session("\udcff")


def test_the_nearest_id_is_named(store: Store) -> None:
    session_id = start(store)
    for call in (store.session, store.turns, lambda name: store.begin(name, "hi", [], None, NOW)):
        with pytest.raises(UnknownSession) as found:
            call(session_id[:-1])
        assert f"did you mean {session_id}?" in str(found.value.hint)


def test_an_ended_session_takes_nothing_and_stays_readable(store: Store) -> None:
    session_id = start(store)
    store.end(session_id, NOW)
    store.end(session_id, NOW.replace(year=2030))
    assert store.session(session_id).ended_at == NOW
    with pytest.raises(SessionEnded, match="takes no more messages"):
        store.begin(session_id, "hi", [], None, NOW)
    with pytest.raises(SessionEnded):
        store.change(session_id, "model", "other", NOW)
    assert store.turns(session_id) == []


def test_a_turn_of_somebody_who_is_gone_is_unknown_once_another_begins(store: Store) -> None:
    session_id = start(store)
    store.begin(session_id, "killed", [], None, NOW)
    store.begin(session_id, "next", [], None, NOW)
    assert [turn.state for turn in store.turns(session_id)] == ["unknown", "pending"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(b"this is not a database, whatever its name says" * 50, "damaged", id="not a database"),
        pytest.param(b"SQLite format 3\x00" + b"\x00" * 4_000, "damaged", id="a header and nothing else"),
    ],
)
def test_a_damaged_file_is_named_and_left_as_it_is(store: Store, content: bytes, says: str) -> None:
    store.path.parent.mkdir()
    store.path.write_bytes(content)
    for call in (store.sessions, lambda: start(store)):
        with pytest.raises(StoreError) as found:
            call()
        assert str(store.path) in str(found.value)
        assert says in str(found.value)
        assert "move the file away" in str(found.value.hint)
        assert found.value.exit_code == 1
    assert store.path.read_bytes() == content


def test_a_page_of_rubbish_is_an_error_and_the_rest_can_be_read(store: Store) -> None:
    sessions = [start(store, seed) for seed in range(3)]
    for session_id in sessions:
        for _ in range(20):
            n, _session = store.begin(session_id, "x" * 3_000, [], None, NOW)
            store.finish(session_id, n, "answered", "y" * 3_000, Reply(), NOW)
    store.close()
    with store.path.open("r+b") as file:
        file.seek(store.path.stat().st_size // 2)
        file.write(b"\xa5" * 8_192)
    failed = 0
    for session_id in sessions:
        try:
            store.turns(session_id)
        except StoreError:
            failed += 1
    assert failed < 3
    assert len(store.sessions()) == 3


def test_another_programs_database_is_not_touched(store: Store) -> None:
    store.path.parent.mkdir()
    with closing(sqlite3.connect(store.path)) as db:
        db.execute("CREATE TABLE theirs(a)")
        db.commit()
    before = store.path.read_bytes()
    with pytest.raises(StoreError, match="of another program"):
        start(store)
    assert store.path.read_bytes() == before


def test_a_newer_format_is_not_touched(store: Store) -> None:
    start(store)
    store.close()
    with closing(sqlite3.connect(store.path)) as db:
        db.execute(f"PRAGMA user_version={SCHEMA + 1}")
    before = store.path.read_bytes()
    with pytest.raises(StoreError, match="of a newer cbatch") as found:
        store.sessions()
    assert found.value.hint == "upgrade cbatch"
    assert store.path.read_bytes() == before


def test_an_empty_file_becomes_a_store(store: Store) -> None:
    """A crash between making the file and its tables leaves one."""
    store.path.parent.mkdir()
    store.path.touch()
    assert store.sessions() == []
    assert start(store)


def test_fields_of_a_newer_cbatch_are_left_out(store: Store) -> None:
    session_id = start(store)
    n, _ = store.begin(session_id, "hi", [], None, NOW)
    store.finish(session_id, n, "answered", "ho", Reply(), NOW)
    with closing(sqlite3.connect(store.path)) as db:
        db.execute("""UPDATE turn SET reply='{"cost_usd":1.5,"usage":{"total_tokens":2,"soul":3},"mood":"good"}'""")
        db.commit()
    assert store.turns(session_id)[0].reply == Reply(cost_usd=1.5, usage=Usage(total_tokens=2))


def test_no_shared_memory_is_used_on_a_network_file_system(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "kind_of", lambda path: "nfs4")
    start(store)
    assert [file.name for file in store.path.parent.iterdir()] == [store.path.name]


def test_too_little_space_is_found_before_anything_is_paid_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    start(store)
    store.require_room()
    monkeypatch.setattr(store_module, "ROOM_BYTES", 1 << 62)
    with pytest.raises(StoreError, match="the disk is full; nothing was sent"):
        store.require_room()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file/x\.sqlite: cannot be used"):
        start(Store(tmp_path / "file" / "x.sqlite"))
