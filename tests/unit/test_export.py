"""Exports: every durable row once, at any moment of a run; files that are whole or not there."""

from __future__ import annotations

import csv
import errno
import gzip
import io
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cbatch import export as export_module
from cbatch import formats
from cbatch import journal as journal_module
from cbatch.cli import invoke
from cbatch.errors import JobError, JournalError, RunStopped
from cbatch.export import FORMS, Form, export, form_of, rows
from cbatch.journal import VISIBLE, Journal
from cbatch.parquet import write_part
from cbatch.rundir import RunDir
from cbatch.schema import COLUMNS
from tests.made_runs import MadeBlock, made_batch
from tests.unit.test_publish import CARRIED, ID, TEXT, Crashes, Session, play, step

NAMES = [*(name for name, _, _ in COLUMNS), *CARRIED]
ODD = 'a "quoted", \n two-line\r text with  and 東京 and \t and ; and \\'


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """200 rows, every tenth an error, with awkward values."""

    def change(row: dict[str, Any], number: int) -> None:
        if row["status"] == "ok":
            row["text"] = ["", ODD, None, "plain"][number % 4]
            row["tool_calls"] = (
                '[{"id": "c", "function": {"name": "f", "arguments": "{}"}}]' if number % 5 == 0 else None
            )
            row["parsed"] = "[12345678901234567890123]" if number % 7 == 0 else None
            row["valid"] = number % 2 == 0
        if number == 3:
            row["input"] = '{"broken": '

    return made_batch(tmp_path / "run", rows=200, block=MadeBlock(failed=20), change=change)


def stored(run: RunDir) -> list[dict[str, Any]]:
    names = [name for name, _, _ in COLUMNS]
    return [dict(zip(names, row, strict=True)) for row in rows(run, names)]


def moment(micros: int | None) -> str | None:
    """The time as the text formats write it."""
    if micros is None:
        return None
    found = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)
    return found.isoformat().replace("+00:00", "Z")


def change(session: Session, sql: str) -> None:
    """Change the journal behind everybody's back."""

    def command(db: sqlite3.Connection) -> None:
        db.execute(sql)

    session.writer.do(command).result(10)


# -- which rows -------------------------------------------------------------------------------------


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(step, min_size=1, max_size=8), where=st.sets(st.integers(1, 40), min_size=1, max_size=4))
def test_a_run_cut_off_anywhere_is_exported_with_every_acknowledged_row_once(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]], where: set[int]
) -> None:
    """As the kill left it, without a resume: one row each, and never an older one than was counted."""
    top = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(journal_module, "GARBAGE_ROWS", 2)
        crashes = Crashes(monkeypatch, top, where)

        def watch(session: Session) -> None:
            crashes.session = session

        session = Session(top / "run")
        watch(session)
        play(session, steps, 0, watch).abandon()
    for copy, acknowledged in crashes.copies:
        if not RunDir(copy).journal.exists():
            continue
        found = list(rows(RunDir(copy), NAMES))
        versions = {row[ID]: int(row[TEXT]) for row in found}
        assert len(versions) == len(found), "a row twice"
        assert versions.keys() >= acknowledged.keys(), "a row lost"
        assert all(versions[name] >= version for name, version in acknowledged.items()), "an older outcome"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    before=st.lists(step, min_size=1, max_size=6),
    during=st.lists(st.tuples(st.integers(0, 6), step), min_size=1, max_size=6),
)
@example(before=[("put", 1), ("restart", 0), ("put", 1)], during=[(1, ("put", 1)), (0, ("again", 0))])
def test_a_run_that_goes_on_while_it_is_exported_gives_what_it_had_once(
    tmp_path_factory: pytest.TempPathFactory,
    before: list[tuple[str, int]],
    during: list[tuple[int, tuple[str, int]]],
) -> None:
    """Parts are published, and bodies cleared, between any two rows that are read."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(journal_module, "GARBAGE_ROWS", 2)
        session = play(Session(folder), before, 0, lambda session: None)
        had = set(session.acknowledged)
        reading = rows(RunDir(folder), NAMES)
        found: list[list[Any]] = []
        for count, action in during:
            found += islice(reading, count)
            if action[0] != "restart":
                session = play(session, [action], 100, lambda session: None)
        found += list(reading)
        session.abandon()
    names = [row[ID] for row in found]
    assert len(set(names)) == len(names), "a row twice"
    if any(count for count, _ in during[:1]):  # reading began before anything else happened
        assert set(names) == had
    else:
        assert set(names) >= had


@pytest.mark.parametrize(
    "cleared",
    [
        pytest.param("1=1", id="all"),
        pytest.param("seq <= 3", id="the first"),
        pytest.param("seq BETWEEN 3 AND 4", id="some between"),
        pytest.param("1=0", id="none yet"),
    ],
)
def test_a_part_published_at_the_worst_moment_neither_loses_nor_doubles_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cleared: str
) -> None:
    """Between the look for a part and the look into the journal, both of which know the rows."""
    session = Session(tmp_path / "run")
    session.put(*"abcdef")
    real = Journal.bodies

    def publish_first(journal: Journal, first: int, last: int) -> Iterator[tuple[int, list[Any]]]:
        monkeypatch.setattr(Journal, "bodies", real)
        part = session.folder / "results" / "part-00000.parquet"
        digest = write_part([row for _, row in real(journal, 1, 6)], CARRIED, tmp_path / "staged", part)
        add = f"INSERT INTO part VALUES(1, '{part.name}', {VISIBLE}, 1, 6, '{digest}')"
        for sql in (add, f"DELETE FROM body WHERE {cleared}"):
            change(session, sql)
        return real(journal, first, last)

    monkeypatch.setattr(Journal, "bodies", publish_first)
    found = [row[ID] for row in rows(RunDir(tmp_path / "run"), NAMES)]
    session.abandon()
    assert found == list("abcdef")


def test_a_row_that_is_nowhere_is_an_error(tmp_path: Path) -> None:
    session = Session(tmp_path / "run")
    session.put(*"abc")
    change(session, "DELETE FROM body WHERE seq = 2")
    with pytest.raises(JournalError, match="row 2 is in no part, and not in the journal"):
        list(rows(RunDir(tmp_path / "run"), NAMES))
    session.abandon()


def test_rows_that_are_in_no_part_yet_come_with_their_carried_columns(tmp_path: Path) -> None:
    session = Session(tmp_path / "run")
    session.writer.set("carry", CARRIED).result(10)
    session.put("a", "b")
    count = export(RunDir(tmp_path / "run"), tmp_path / "x.jsonl", "jsonl")
    session.abandon()
    found = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert (count, [(row["id"], row["grade"]) for row in found]) == (2, [("a", 7), ("b", 7)])


def test_a_run_whose_journal_is_gone_is_exported_from_its_parts(run: RunDir) -> None:
    assert not run.journal.exists()
    assert len(stored(run)) == 200


@pytest.mark.parametrize("damage", ["cut short", "gone", "fewer rows"])
def test_a_damaged_part_is_an_error_and_leaves_no_file(tmp_path: Path, damage: str) -> None:
    session = Session(tmp_path / "run")
    session.put("a", "b", "c")
    session.finish()
    folder = RunDir(tmp_path / "run")
    part = folder.parts[0]
    if damage == "cut short":
        part.write_bytes(part.read_bytes()[:-40])
    elif damage == "gone":
        part.unlink()
    else:
        write_part(list(rows(folder, NAMES))[:2], CARRIED, tmp_path / "staged", part)
    with pytest.raises(JournalError) as caught:
        export(folder, tmp_path / "x.csv", "csv")
    assert part.name in str(caught.value)
    assert "cbatch verify" in str(caught.value.hint)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize("status", ["ok", "error", "all"])
def test_a_status_chooses_rows(run: RunDir, tmp_path: Path, status: Any) -> None:
    wanted = [row["id"] for row in stored(run) if status in ("all", row["status"])]
    assert (
        export(run, tmp_path / "x.jsonl", "jsonl", status=status)
        == len(wanted)
        == {"ok": 180, "error": 20}.get(status, 200)
    )
    assert [json.loads(line)["id"] for line in (tmp_path / "x.jsonl").read_bytes().split(b"\n")[:-1]] == wanted


# -- what is written --------------------------------------------------------------------------------


def test_json_lines_hold_every_column_with_json_nested(run: RunDir, tmp_path: Path) -> None:
    """Numbers keep their digits, nulls stay, and an input row that is no JSON is a text."""
    export(run, tmp_path / "x.jsonl", "jsonl")
    lines = (tmp_path / "x.jsonl").read_bytes().split(b"\n")[:-1]
    for line, row in zip(lines, stored(run), strict=True):
        found = json.loads(line)
        assert list(found) == [name for name, _, _ in COLUMNS]
        for name in ("tool_calls", "parsed"):
            assert found[name] == (json.loads(row[name]) if row[name] is not None else None)
            row[name] = found[name]
        broken = row["input"].startswith('{"broken')
        row |= {"input": row["input"] if broken else json.loads(row["input"]), "started_at": moment(row["started_at"])}
        assert found == row
    assert b"[12345678901234567890123]" in b"".join(lines)


def test_what_is_json_over_several_lines_stays_in_its_line(tmp_path: Path) -> None:
    run = made_batch(tmp_path / "run", rows=1, change=lambda row, _: row.update(input='{"a":\n1,\r"b": [2]}'))
    export(run, tmp_path / "x.jsonl", "jsonl")
    (line,) = (tmp_path / "x.jsonl").read_text().splitlines()
    assert json.loads(line)["input"] == {"a": 1, "b": [2]}


def test_csv_is_read_back_as_it_was_and_tells_nothing_from_an_empty_text(run: RunDir, tmp_path: Path) -> None:
    export(run, tmp_path / "x.csv", "csv")
    text = (tmp_path / "x.csv").read_bytes().decode()
    header, *found = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    assert header == [name for name, _, _ in COLUMNS]
    for values, row in zip(found, stored(run), strict=True):
        row["started_at"] = moment(row["started_at"])
        for value, was in zip(values, row.values(), strict=True):
            assert value == ("" if was is None else str(was).lower() if isinstance(was, bool) else str(was))
    assert ',"ok",,,' in text, "a null"
    assert ',"ok","",' in text, "an empty text"


def test_csv_and_json_lines_are_an_input_of_cbatch(run: RunDir, tmp_path: Path) -> None:
    for name in ("x.csv", "x.jsonl.gz"):
        export(run, tmp_path / name, form_of(Path(name), None))
        found = list(formats.read(tmp_path / name, "auto", 0))
        assert [row.problem for row in found] == [None] * 200
        assert [row.fields["id"] for row in found if row.fields] == [row["id"] for row in stored(run)]


def test_parquet_holds_the_columns_of_a_part_and_their_types(run: RunDir, tmp_path: Path) -> None:
    assert export(run, tmp_path / "x.parquet", "parquet") == 200
    assert pq.read_table(tmp_path / "x.parquet").equals(pq.read_table(run.parts[0]))
    assert pq.read_schema(tmp_path / "x.parquet").equals(pq.read_schema(run.parts[0]), check_metadata=False)


def test_compressed_files_hold_the_same_bytes_and_are_the_same_each_time(run: RunDir, tmp_path: Path) -> None:
    export(run, tmp_path / "x.csv", "csv")
    plain = (tmp_path / "x.csv").read_bytes()
    for name, unpack in (("x.csv.gz", gzip.decompress), ("x.csv.zst", _unzstd)):
        export(run, tmp_path / name, "csv")
        packed = (tmp_path / name).read_bytes()
        assert unpack(packed) == plain
        export(run, tmp_path / name, "csv", force=True)
        assert (tmp_path / name).read_bytes() == packed


def _unzstd(data: bytes) -> bytes:
    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)) as reader:
        return bytes(reader.read())


@pytest.mark.parametrize("form", FORMS)
def test_no_rows_make_a_file_without_rows(tmp_path: Path, form: Form) -> None:
    run = made_batch(tmp_path / "run", rows=3)
    assert export(run, tmp_path / "x", form, status="error") == 0
    content = (tmp_path / "x").read_bytes()
    if form == "parquet":
        assert pq.read_table(tmp_path / "x").num_rows == 0
    else:
        assert content.count(b"\n") == (form == "csv")


# -- files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wanted", "form"),
    [
        ("a.jsonl", None, "jsonl"),
        ("a.b.NDJSON", None, "jsonl"),
        ("a.csv.gz", None, "csv"),
        ("a.jsonl.ZST", None, "jsonl"),
        ("a.parquet", None, "parquet"),
        ("a.jsonl", "openai-batch", "openai-batch"),
        ("a.txt", "openai-batch", "openai-batch"),
        ("a", "csv", "csv"),
        ("a.gz", "cerebras-batch", "cerebras-batch"),
    ],
)
def test_the_name_says_what_is_written_unless_a_format_does(name: str, wanted: Form | None, form: Form) -> None:
    assert form_of(Path(name), wanted) == form


@pytest.mark.parametrize(
    ("name", "wanted", "said", "hint"),
    [
        ("a", None, "the format is not known", "--format"),
        ("a.txt", None, "the format is not known", "--format"),
        ("a.gz", None, "the format is not known", "--format"),
        ("a.parquet.gz", None, "compressed inside", "leave the last ending away"),
        (
            "a.csv",
            "openai-batch",
            "a.csv: the name says .csv, and --format openai-batch writes JSON Lines",
            "name it a.jsonl, or leave --format out",
        ),
        (
            "x/a.b.csv.gz",
            "jsonl",
            "the name says .csv, and --format jsonl writes JSON Lines",
            "name it a.b.jsonl.gz, or leave --format out",
        ),
        ("a.json", "jsonl", "the name says .json, and --format jsonl writes JSON Lines", "name it a.jsonl"),
        ("a.jsonl", "parquet", "the name says .jsonl, and --format parquet writes Parquet", "name it a.parquet, or"),
        ("a.jsonl.gz", "csv", "the name says .jsonl, and --format csv writes CSV", "name it a.csv.gz, or"),
    ],
)
def test_a_name_that_says_something_else_is_refused(name: str, wanted: Form | None, said: str, hint: str) -> None:
    with pytest.raises(JobError, match=said) as caught:
        form_of(Path(name), wanted)
    assert hint in str(caught.value.hint)


def test_a_file_that_exists_is_replaced_only_when_told_so(run: RunDir, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("mine")
    with pytest.raises(JobError, match="exists already"):
        export(run, path, "csv")
    assert path.read_text() == "mine"
    assert export(run, path, "csv", force=True) == 200
    assert path.read_text() != "mine"


def test_a_link_stays_a_link(run: RunDir, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "x.csv").symlink_to(tmp_path / "there" / "y.csv")
    export(run, tmp_path / "x.csv", "csv")
    assert (tmp_path / "x.csv").is_symlink()
    assert (tmp_path / "there" / "y.csv").is_file()


@pytest.mark.parametrize("name", ["results/x.parquet", "results/part-00000.parquet", "run.json", "journal.sqlite"])
def test_files_of_the_run_are_never_written_over(run: RunDir, name: str) -> None:
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(JobError, match="belongs to the run itself"):
        export(run, run.path / name, "jsonl", force=True)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("name", "said"), [("nowhere/x.csv", "no such folder"), (".", "a folder"), ("/dev/null", "not a regular file")]
)
def test_a_place_that_cannot_be_written_is_named(run: RunDir, tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(JobError, match=said) as caught:
        export(run, tmp_path / name, "csv", force=True)
    assert caught.value.hint


def test_a_full_disk_leaves_what_was_there(run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.csv"
    path.write_text("mine")

    def full(pieces: Any, file: Any) -> None:
        file.write(next(pieces))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export_module, "_write", full)
    with pytest.raises(RunStopped, match="No space left") as caught:
        export(run, path, "csv", force=True)
    assert caught.value.exit_code == 1
    assert path.read_text() == "mine"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["run", "x.csv"]


class Sips(io.RawIOBase):
    """A file that takes no more than `most` bytes at a time, and `room` in all: stdout without a buffer, at worst."""

    def __init__(self, most: int, room: int) -> None:
        super().__init__()
        self.most, self.room = most, room
        self.found = b""
        self.blocks = True

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int | None:
        taken = bytes(data[: min(self.most, self.room - len(self.found))])
        if data and not taken:
            if not self.blocks:
                return None
            raise OSError(errno.ENOSPC, "No space left on device")
        self.found += taken
        return len(taken)


@pytest.mark.parametrize("form", ["jsonl", "csv", "openai-batch"])
def test_a_file_that_takes_less_than_it_is_given_is_given_the_rest(run: RunDir, tmp_path: Path, form: Form) -> None:
    export(run, tmp_path / "x", form)
    stdout = Sips(1_000, 10**9)
    assert export(run, cast(BinaryIO, stdout), form) == 200
    assert stdout.found == (tmp_path / "x").read_bytes()


def test_rows_that_do_not_fit_any_more_are_no_success(run: RunDir) -> None:
    """Without a buffer a full disk shows as bytes that are not taken, and an error only when it is asked again."""
    with pytest.raises(RunStopped, match="No space left") as caught:
        export(run, cast(BinaryIO, Sips(10**9, 10_000)), "jsonl")
    assert caught.value.exit_code == 1
    stdout = Sips(10**9, 10_000)
    stdout.blocks = False
    with pytest.raises(JobError, match="too slow"):
        export(run, cast(BinaryIO, stdout), "jsonl")


def test_an_interrupted_export_leaves_nothing(run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(pieces: Any, file: Any) -> None:
        file.write(next(pieces))
        raise KeyboardInterrupt

    monkeypatch.setattr(export_module, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(run, tmp_path / "x.csv", "csv")
    assert [one.name for one in tmp_path.iterdir()] == ["run"]


# -- the command ------------------------------------------------------------------------------------


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*args: object) -> tuple[int, str, str]:
        code = invoke(["export", *map(str, args)])
        return (code, *capfd.readouterr())

    return call


def test_the_command_says_what_it_wrote(run: RunDir, tmp_path: Path, said: Callable[..., tuple[int, str, str]]) -> None:
    file = tmp_path / "x.csv"
    assert said(run.path, file) == (0, "", f"200 rows -> {file}\n")
    code, out, err = said(run.path, file, "--force", "--json", "--status", "error")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"rows": 20, "file": str(file), "format": "csv", "status": "error"}
    assert said(run.path, file, "--force", "--quiet") == (0, "", "")


def test_rows_go_to_stdout_and_words_to_stderr(run: RunDir, said: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = said(run.path, "-")
    assert (code, err) == (0, "200 rows -> stdout\n")
    assert len([json.loads(line) for line in out.split("\n")[:-1]]) == 200
    code, out, _ = said(run.path, "-", "--format", "csv")
    assert (code, out.split(",")[0]) == (0, '"id"')


def test_a_pipe_is_told_of_as_what_the_user_named(run: RunDir, tmp_path: Path) -> None:
    """As /dev/stdout before a pipe: where a link leads, in /proc, tells nobody anything."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "stdout").symlink_to(tmp_path / "pipe")
    with pytest.raises(JobError) as caught:
        export(run, tmp_path / "stdout", "jsonl")
    assert (str(caught.value), caught.value.hint) == (
        f"{tmp_path / 'stdout'}: not a regular file",
        "`-` writes to stdout",
    )


def test_a_piece_of_a_run_is_no_run_and_the_hint_names_the_one_it_is_of(
    run: RunDir, tmp_path: Path, said: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("results", "run.json", "results/part-00000.parquet"):
        code, _, err = said(run.path / name, tmp_path / "x.csv")
        assert code == 2
        assert err == (
            f"error: {run.path / name}: not a run directory\nhint: it belongs to the run {run.path}: name that one\n"
        )
    monkeypatch.chdir(tmp_path)
    assert "belongs to the run run: name" in said("run/results", "x.csv")[2], "in the user's words"
    monkeypatch.chdir(run.path / "results")
    assert "belongs to the run ..: name" in said(".", "x.csv")[2]


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["x.txt"], "the format is not known"),
        (["-", "--json"], "stdout is where the rows go"),
        (["-", "--format", "parquet"], "cannot be written to a pipe"),
        (["x.csv", "--format", "xml"], "xml"),
    ],
)
def test_wrong_usage_is_exit_2(
    run: RunDir, said: Callable[..., tuple[int, str, str]], args: list[str], word: str
) -> None:
    code, _, err = said(run.path, *args)
    assert code == 2
    assert word in err
    assert "hint: " in err


def test_a_run_that_is_not_one_is_exit_2(tmp_path: Path, said: Callable[..., tuple[int, str, str]]) -> None:
    assert said(tmp_path, tmp_path / "x.csv")[0] == 2


def test_a_journal_that_is_missed_is_told(tmp_path: Path, said: Callable[..., tuple[int, str, str]]) -> None:
    """A copy of a killed run without its journal may lack rows, and nobody would see it."""
    run = made_batch(tmp_path / "run", rows=5, state="running")
    code, _, err = said(run.path, tmp_path / "x.csv")
    assert code == 0
    assert err.startswith("note: the run's journal is not here")
