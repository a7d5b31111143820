"""The log of exchanges: no key, no line that is too long, no harm to the gateway, and a bound on the disk."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbatch.errors import JobError
from cbatch.gateway import exchange_log
from cbatch.gateway.exchange_log import FILES, RETRY_S, ExchangeLog, Files
from cbatch.gateway.redaction import MAX_DEPTH, REMOVED, Redaction

KEY = "csk-4f9wk2m8x3c5v6b7n8m9"
CLIENT_KEY = "open sesame, 42!"  # whatever the user chose


def logged(record: dict[str, Any], max_bytes: int = 100_000, secrets: tuple[str, ...] = (KEY, CLIENT_KEY)) -> Any:
    """What is in the log of a record."""
    line = Redaction(secrets, max_bytes=max_bytes).line(record)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert len(line) <= max_bytes
    return orjson.loads(line)


# --- what a line may hold


def test_a_record_is_written_as_it_is() -> None:
    record = {"id": "r1", "n": 1, "x": 0.5, "none": None, "ok": True, "list": [1, "a", {"b": []}], "ü": "…\n "}
    assert logged(record) == record


@pytest.mark.parametrize("secret", [KEY, CLIENT_KEY])
def test_a_secret_is_taken_out_wherever_it_stands(secret: str) -> None:
    found = logged(
        {
            "text": f"my key is {secret}.",
            "whole": secret,
            "deep": [{"a": [f"x{secret}{secret}y"]}],
            f"as a name {secret}": 1,
            "json": orjson.dumps({"k": secret}).decode(),
            "bytes": secret.encode(),
            "other": ValueError(secret),
        }
    )
    assert found["text"] == f"my key is {REMOVED}."
    assert found["deep"] == [{"a": [f"x{REMOVED}{REMOVED}y"]}]
    assert secret not in str(found)


def test_the_keys_of_others_are_taken_out_by_their_looks() -> None:
    for text in (
        "csk-abcdefghijklmnop",
        "export OPENAI_API_KEY=sk-proj-AAAAbbbbCCCCdddd",
        "'sk-ant-REDACTED'",
        "Authorization: Bearer eyJhbGciOi.eyJzdWIiOiIx.SflKxw",
        "authorization: bearer abc123",
    ):
        assert REMOVED in logged({"t": text})["t"], text
    for text in ("task-management-is-everything", "the bearer of news", "bearer authentication", "disk-sk-1"):
        assert logged({"t": text})["t"] == text


@given(
    text=st.text(st.sampled_from('ab1 \n\u00a0-._/"\\'), max_size=30),
    key=st.sampled_from(["", "Bearer", "bearer ", "sk-", "csk-", "EMPTY", "csk-4f9wk2m8x3c5v6b7n8m9", 'quoted"key\\n']),
    more=st.text(st.sampled_from("ab1 \n\t\u00a0-._/"), max_size=30),
    name=st.sampled_from(["text", "Cookie", "x-api-key", "Authorization", "headers"]),
)
def test_the_short_way_leaves_nothing_in_that_the_long_way_takes_out(text: str, key: str, more: str, name: str) -> None:
    """Most records have nothing to take out, which is found out in a tenth of the time."""
    redaction = Redaction(["EMPTY", KEY, 'quoted"key\\n'], max_bytes=10_000)
    record = {"a": [{name: text + key + more}, [name, text]]}
    assert orjson.loads(redaction.line(record)) == redaction._clean(record, 0)


def test_an_ordinary_exchange_takes_the_short_way() -> None:
    redaction = Redaction([KEY], max_bytes=10_000)
    assert redaction._as_it_is({"text": "task-management: the bearer of news\n", "properties": {"key": {}}}) is not None
    assert redaction._as_it_is({"text": KEY}) is None


def test_headers_that_authorise_are_left_out() -> None:
    """Also where a header is no key that anybody knows: a cookie, or the token of an MCP server."""
    found = logged(
        {
            "headers": {"Authorization": "Basic dTpw", "X-API-Key": "v", "Cookie": "a=b", "Accept": "*/*"},
            "pairs": [["authorization", "Basic dTpw"], ["accept", "*/*"]],
            "request": {"tools": [{"type": "mcp", "authorization": "token"}]},
        }
    )
    assert found["headers"] == {"Accept": "*/*"}
    assert found["pairs"] == [["authorization", REMOVED], ["accept", "*/*"]]
    assert found["request"] == {"tools": [{"type": "mcp"}]}


def test_a_schema_that_has_a_property_of_that_name_is_kept() -> None:
    schema = {"properties": {"cookie": {"type": "string"}, "api_key": {"type": "string"}}}
    assert logged(schema) == schema


def test_a_short_secret_is_taken_out_as_a_word_only() -> None:
    """A client key of `x` would leave nothing of any text."""
    found = logged({"t": "EMPTY or not EMPTYING", "v": "EMPTY"}, secrets=("EMPTY",))
    assert found == {"t": f"{REMOVED} or not EMPTYING", "v": REMOVED}


def test_one_secret_may_begin_like_another() -> None:
    assert logged({"t": "aaaabbbbccccdddd"}, secrets=("aaaabbbb", "aaaabbbbccccdddd")) == {"t": REMOVED}


def test_a_secret_may_become_known_later() -> None:
    redaction = Redaction([], max_bytes=10_000)
    assert b"later-secret" in redaction.line({"t": "later-secret"})
    redaction.hide("later-secret")
    assert b"later-secret" not in redaction.line({"t": "later-secret"})


def test_what_is_too_long_is_shortened_with_a_mark() -> None:
    record = {
        "id": "r1",
        "request": {"image": "data:image/png;base64," + "A" * 500_000, "model": "m"},
        "events": [{"type": f"event-{n}"} for n in range(20)],
    }
    found = logged(record, max_bytes=20_000)
    image = found["request"]["image"]
    assert image.startswith("data:image/png;base64,AAA")
    assert image.endswith(" characters left out)")
    assert len(found["events"]) == 20, "a long text is no reason to shorten lists"
    assert found["id"] == "r1"


def test_of_a_long_list_the_beginning_and_the_end_are_kept() -> None:
    """The last event says how the answer ended."""
    found = logged({"events": [{"type": f"event-{n}"} for n in range(10_000)]}, max_bytes=20_000)["events"]
    assert found[0] == {"type": "event-0"}
    assert found[-1] == {"type": "event-9999"}
    assert any(isinstance(one, str) and one.endswith(" items left out)") for one in found)


def test_a_secret_on_the_edge_of_what_is_cut_is_not_cut_in_two() -> None:
    """Half a key is recognised by nobody, and worth something."""
    secret = "".join(f"{n:03d}-" for n in range(50))
    for before in range(200):
        text = "x" * before + 20 * secret  # what is taken out makes room for what stands at the edge
        line = Redaction([secret], max_bytes=1_000).line({"t": text})
        assert b"000-001" not in line, before


def test_values_that_json_does_not_have_are_written_somehow() -> None:
    itself: dict[str, Any] = {}
    itself["self"] = itself
    found = logged(
        {
            "nan": float("nan"),
            "inf": float("inf"),
            "big": 10**30,
            "time": datetime(2026, 11, 20, tzinfo=UTC),
            "half": "\ud83d",
            **{5: "a number as a name"},  # type: ignore[dict-item]
            "tuple": (1, 2),
            "set": {1},
            "deep": itself,
        }
    )
    assert found["nan"] == "nan"
    assert found["big"] == str(10**30)
    assert found["5"] == "a number as a name"
    assert found["tuple"] == [1, 2]
    deep, depth = found["deep"], 0
    while isinstance(deep, dict):
        deep, depth = deep["self"], depth + 1
    assert depth < MAX_DEPTH
    assert "nested deeper" in deep


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=40),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=10), inner, max_size=8),
    max_leaves=20,
)


@given(
    record=st.dictionaries(st.text(max_size=10), JSON, max_size=8),
    place=st.sampled_from(["value", "name", "list", "long"]),
    filling=st.integers(0, 3_000),
    max_bytes=st.integers(200, 4_000),
)
def test_every_line_is_json_within_the_bound_and_without_the_secret(
    record: dict[str, Any], place: str, filling: int, max_bytes: int
) -> None:
    """Whatever is in the record, and wherever the key is in it."""
    text = "z" * filling + KEY
    places: dict[str, dict[str, Any]] = {
        "value": {"t": text},
        "name": {text: 1},
        "list": {"t": [text] * 5},
        "long": {"t": text * 4},
    }
    line = Redaction([KEY], max_bytes=max_bytes).line(record | places[place])
    assert len(line) <= max_bytes
    assert isinstance(orjson.loads(line), dict)
    assert line.count(b"\n") == 1
    for part in range(8, len(KEY) + 1):
        assert KEY[:part].encode() not in line


# --- the files


class Time:
    """A clock and a calendar that go on by a second at each look."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def clock(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        self.seconds += 1
        return datetime(2026, 11, 20, tzinfo=UTC) + timedelta(seconds=self.seconds)


Made = Callable[..., Files]


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    """Makes Files in one folder, and closes them."""
    all_of_them: list[Files] = []

    def make(max_total_bytes: int = 80_000, said: list[str] | None = None, time: Time | None = None) -> Files:
        time = time or Time()
        notify = (said if said is not None else []).append
        files = Files(tmp_path / "log", max_total_bytes, notify, time.clock, time.now)
        all_of_them.append(files)
        return files

    yield make
    for files in all_of_them:
        files.close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def total_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_files_and_folder_are_this_users_alone(made: Made, tmp_path: Path) -> None:
    made().write(b"{}\n")
    (path,) = (tmp_path / "log").iterdir()
    assert path.name == f"exchanges-20261120T000001.000000Z-{os.getpid()}.jsonl"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_full_file_is_followed_by_another_and_the_oldest_go(made: Made, tmp_path: Path) -> None:
    files, folder = made(8_000), tmp_path / "log"
    for number in range(300):
        files.write(b'{"n":%03d,"x":"%s"}\n' % (number, b"x" * 80))
        assert total_bytes(folder) <= 8_000
    kept = [orjson.loads(line)["n"] for name in names(folder) for line in (folder / name).read_bytes().splitlines()]
    assert kept == list(range(kept[0], 300)), "the newest, all of them, in the order of the files' names"
    assert len(kept) > 50
    assert len(names(folder)) <= FILES


def test_only_files_of_its_own_naming_are_deleted(made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    for name in ("notes.txt", "exchanges-.jsonl", "exchanges-20200101T000000.000000Z-1.jsonl.bak"):
        (folder / name).write_bytes(b"x" * 100_000)
    target = tmp_path / "elsewhere"
    target.write_bytes(b"x" * 100_000)
    (folder / "exchanges-20200101T000000.000000Z-2.jsonl").symlink_to(target)
    (folder / "exchanges-20200101T000000.000000Z-3.jsonl").write_bytes(b"x" * 100_000)
    files = made(8_000)
    for _ in range(30):
        files.write(b"x" * 900 + b"\n")
    left = [name for name in names(folder) if f"-{os.getpid()}." not in name]
    assert left == [
        "exchanges-.jsonl",
        "exchanges-20200101T000000.000000Z-1.jsonl.bak",
        "exchanges-20200101T000000.000000Z-2.jsonl",
        "notes.txt",
    ]
    assert target.exists()


def test_the_file_that_another_gateway_writes_is_left_alone(made: Made, tmp_path: Path) -> None:
    """Its lock says so; once it has ended, its files are like any others."""
    folder, time = tmp_path / "log", Time()
    other, mine = made(8_000, time=time), made(8_000, time=time)
    other.write(b"other\n")
    (its,) = names(folder)
    for _ in range(30):
        mine.write(b"x" * 900 + b"\n")
    assert its in names(folder)
    other.write(b"again\n")
    assert (folder / its).read_bytes() == b"other\nagain\n"
    other.close()
    for _ in range(30):
        mine.write(b"x" * 900 + b"\n")
    assert its not in names(folder)


def test_a_file_without_a_line_is_not_left_behind(made: Made, tmp_path: Path) -> None:
    files = made()
    files.begin()
    assert len(names(tmp_path / "log")) == 1
    files.close()
    assert names(tmp_path / "log") == []


class FullDisk:
    """`os.write` that writes half of what it is given and then finds no room, while `is_full`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_full = True
        self.write = os.write
        monkeypatch.setattr(os, "write", self)

    def __call__(self, fd: int, data: bytes | memoryview) -> int:
        if not self.is_full:
            return self.write(fd, data)
        if len(data) <= 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.write(fd, data[: len(data) // 2])


def test_a_full_disk_is_told_once_and_tried_again_later(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    time, folder = Time(), tmp_path / "log"
    files = made(said=said, time=time)
    files.write(b'{"n":1}\n')
    disk = FullDisk(monkeypatch)
    for _ in range(5):
        files.write(b'{"n":2}\n')
    assert len(said) == 1
    assert said[0].startswith(f"{folder}: the log cannot be written: No space left on device; serving goes on")
    time.seconds += RETRY_S
    files.write(b'{"n":3}\n')
    assert len(said) == 1, "still full is no news"
    disk.is_full = False
    files.write(b'{"n":4}\n')
    assert len(said) == 1, "not before RETRY_S"
    time.seconds += RETRY_S
    files.write(b'{"n":5}\n')
    assert said[1:] == [f"{folder}: the log is written again; 7 exchanges are missing"]
    lines = [line for name in names(folder) for line in (folder / name).read_bytes().splitlines()]
    assert [orjson.loads(line)["n"] for line in lines] == [1, 5], "half a line is taken back"
    assert len(names(folder)) == 2, "an attempt leaves no empty file"


def test_a_folder_that_is_gone_is_made_again(made: Made, tmp_path: Path) -> None:
    said: list[str] = []
    files, folder = made(said=said), tmp_path / "log"
    files.write(b'{"n":1}\n')
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    files.write(b'{"n":2}\n')
    (path,) = folder.iterdir()
    assert path.read_bytes() == b'{"n":2}\n'
    assert len(said) == 1
    assert said[0].endswith("the log was deleted; a new one begins")


# --- the thread


def read_all(folder: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for name in names(folder) for line in (folder / name).read_bytes().splitlines()]


def test_what_was_written_before_the_end_is_on_the_disk_in_order(tmp_path: Path) -> None:
    said: list[str] = []
    log = ExchangeLog(tmp_path, secrets=[KEY], notify=said.append)
    for number in range(500):
        log.write({"n": number, "key": KEY})
    log.close()
    log.close()
    log.write({"n": "after the end"})
    assert read_all(tmp_path) == [{"n": number, "key": REMOVED} for number in range(500)]
    assert said == []


def test_a_folder_that_cannot_be_written_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JobError, match=r"--log .*/file: cannot be written: ") as caught:
        ExchangeLog(tmp_path / "file", notify=lambda _: None)
    assert caught.value.exit_code == 2


class SlowDisk:
    """`os.write` that waits for `go`, and says by `reached` that it does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        self.write = os.write
        monkeypatch.setattr(os, "write", self)

    def __call__(self, fd: int, data: bytes) -> int:
        self.reached.set()
        assert self.go.wait(20)
        return self.write(fd, data)


@pytest.mark.parametrize("by", ["count", "size"])
def test_a_disk_that_stands_still_never_stops_the_gateway(
    by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not fit into the queue is left out, counted, and told at the first and at the end."""
    said: list[str] = []
    keeps_up = threading.Event()

    def notify(message: str) -> None:
        said.append(message)
        if "keeps up" in message:
            keeps_up.set()

    size_bytes = 0 if by == "count" else 100
    monkeypatch.setattr(exchange_log, "MAX_WAITING", 10 if by == "count" else 1_000)
    monkeypatch.setattr(exchange_log, "MAX_WAITING_BYTES", 1_000)
    disk = SlowDisk(monkeypatch)
    log = ExchangeLog(tmp_path, notify=notify)
    for number in range(50):
        log.write({"n": number}, size_bytes)
    assert disk.reached.wait(20)
    assert len(said) == 1
    assert "the disk is too slow" in said[0]
    disk.go.set()
    assert keeps_up.wait(20)
    assert said[1:] == [f"{tmp_path}: the log keeps up again; 40 exchanges were left out of it"]
    for number in range(50, 60):
        log.write({"n": number}, size_bytes)
    log.close()
    assert [record["n"] for record in read_all(tmp_path)] == [*range(10), *range(50, 60)]
    assert len(said) == 2


def test_a_disk_that_never_answers_does_not_hold_up_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(exchange_log, "CLOSE_S", 0.01)
    disk = SlowDisk(monkeypatch)
    log = ExchangeLog(tmp_path, notify=said.append)
    log.write({"n": 1})
    log.close()
    assert said == [f"{tmp_path}: the disk does not answer: 1 exchanges are not logged"]
    disk.go.set()
    log._thread.join()


def test_a_record_that_breaks_the_log_breaks_only_its_own_line(tmp_path: Path) -> None:
    class Odd:
        def __str__(self) -> str:
            raise RuntimeError("no text of mine")

    said: list[str] = []
    log = ExchangeLog(tmp_path, notify=said.append)
    log.write({"n": 1})
    log.write({"n": Odd()})
    log.write({"n": 3})
    log.close()
    assert [record["n"] for record in read_all(tmp_path)] == [1, 3]
    assert said == [f"{tmp_path}: an exchange cannot be logged (RuntimeError)"]
