"""What a run directory survives from outside: two processes, a move, edits, a wrong clock, a foreign file."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from cbatch.journal import FORMAT
from cbatch.parquet import read_rows
from cbatch.rundir import RunDir
from cbatch.schema import COLUMNS
from tests.integration.conftest import JobFolder, Result, Sim, ask, belongs, questions, wait_for
from tests.integration.test_crash import die, small_disk

DURATIONS = [name for name, _, _ in COLUMNS if name.endswith("_s") and "_per_" not in name]


def tell(job: JobFolder, *args: str) -> Result:
    """Any command of cbatch."""
    return job._forking.start(args, key=None, cwd=job.path).wait()


def killed_at(job: JobFolder, rows: int) -> int:
    """Kill a run that has `rows` rows; returns how many are durable."""
    process = job.start()
    wait_for(lambda: job.durable >= rows, f"{rows} rows")
    assert process.kill().code == -signal.SIGKILL
    return job.durable


def prove(job: JobFolder, rows: int) -> None:
    """This many rows, none twice, each with the answer to its own prompt, and journal and parts agree."""
    results = job.results()
    assert len({row["id"] for row in results}) == len(results) == rows
    assert all(belongs(row, ask(json.loads(row["input"]))) for row in results)
    assert job.proof().rows == rows


# -- two processes ---------------------------------------------------------------------------


def test_a_refused_second_process_does_not_harm_the_first(job: JobFolder, sims: Callable[..., Sim]) -> None:
    """The second ends with 1 and the pid of the first; the first goes on to the end, with no request too many."""
    job.sim = sims("--speed", "5")
    job.rows(questions(200))
    job.settings |= {"limits": {"concurrency": 4}, "results": {"part_rows": 10}}
    first = job.start()
    wait_for(lambda: job.durable >= 20, "20 rows")
    for n in range(5):
        second = job.execute(*(["--fresh"] if n % 2 else []))
        assert second.code == 1
        assert f"another cbatch is running this job (process {first.pid})" in second.err
    assert first.wait().code == 0
    assert job.sim.requests == 200
    prove(job, 200)


def test_of_two_processes_started_at_the_same_moment_one_runs(job: JobFolder) -> None:
    """Ten times, in a new folder and in a known one: one sends everything, the other refuses with its pid."""
    go = job.path / "go"
    together = f"import os\nwhile not os.path.exists({str(go)!r}): pass\n"
    # The one that runs is there long enough for a slow start of the other.
    together += "import time, cbatch.engine as e\nclose = e.Run._close\n"
    together += "async def late(*a):\n    time.sleep(0.5)\n    return await close(*a)\ne.Run._close = late\n"
    for round in range(10):
        job.run = RunDir(job.path / f"run{round // 2}")
        job.settings["output"] = str(job.run.path)
        job.sim.reset()
        extra = ["--limit", "20"] if round % 2 == 0 else []
        pair = [job.start(*extra, first=together) for _ in range(2)]
        go.touch()
        results = {process.wait().code: process for process in pair}
        go.unlink()
        assert sorted(results) == [0, 1], [process.err for process in pair]
        pid = results[0].pid
        assert f"another cbatch is running this job (process {pid})" in results[1].err
        assert job.sim.requests == 20
        prove(job, 40 if round % 2 else 20)


# -- moved -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["with --output", "with the whole job"])
def test_a_killed_run_that_was_moved_sends_nothing_twice(
    job: JobFolder, sims: Callable[..., Sim], tmp_path: Path, how: str
) -> None:
    """Rows that are in no part yet move along: only what was not durable is sent at the new place."""
    job.sim = sims("--speed", "5")
    job.rows(questions(150))
    job.settings |= {"output": "run", "results": {"part_rows": 20}}
    durable, sent = killed_at(job, 50), job.sim.requests
    assert durable > len(job.results())
    args: list[str] = []
    if how == "with --output":
        shutil.move(job.run.path, tmp_path / "new place")
        job.run = RunDir(tmp_path / "new place")
        args = ["--output", str(job.run.path)]
    else:
        shutil.move(job.path, tmp_path / "new job")
        job.path = tmp_path / "new job"
        job.run = RunDir(job.path / "run")
    last = job.execute(*args)
    assert last.code == 0, last.err
    assert last.summary["sent"] == 150 - durable
    assert job.sim.requests == sent + 150 - durable
    assert job.execute(*args).summary["sent"] == 0
    prove(job, 150)


# -- the input between runs ------------------------------------------------------------------


def edited(rows: list[Any]) -> list[Any]:
    return [row | {"question": f"{row['question']} Why?"} if n in (3, 17) else row for n, row in enumerate(rows)]


def repeated(rows: list[Any]) -> list[Any]:
    return [*rows[:5], *rows]


EDITS: dict[str, Callable[[list[Any]], list[Any]]] = {
    "nothing": lambda rows: rows,
    "edited": edited,
    "reordered": lambda rows: [*rows[20:], *rows[:20]][::-1],
    "shortened at its end": lambda rows: rows[:30],
    "shortened at its start": lambda rows: rows[10:],
    "rows repeated": repeated,
    "a blank line": lambda rows: [rows[0], "", *rows[1:]],
    "keys in another order": lambda rows: [dict(reversed(row.items())) for row in rows],
    "all of it": lambda rows: [*edited(repeated(rows))[:-10][::-1], *questions(42)[40:]],
}


@pytest.mark.parametrize(
    ("edit", "sent", "total", "orphans"),
    [
        pytest.param("nothing", 0, 40, 0, id="nothing"),
        pytest.param("edited", 2, 40, 2, id="edited"),
        pytest.param("reordered", 0, 40, 0, id="reordered"),
        pytest.param("shortened at its end", 0, 30, 10, id="shortened at its end"),
        pytest.param("shortened at its start", 0, 30, 10, id="shortened at its start"),
        pytest.param("rows repeated", 5, 45, 0, id="rows repeated"),
        pytest.param("a blank line", 0, 40, 0, id="a blank line"),
        pytest.param("keys in another order", 0, 40, 0, id="keys in another order"),
        # Edited are the second place of row 3's and row 12: each leaves one behind; ten more left the end.
        pytest.param("all of it", 8, 37, 11, id="all of it"),
    ],
)
def test_an_edited_input_without_ids_sends_what_is_new(
    job: JobFolder, edit: str, sent: int, total: int, orphans: int
) -> None:
    """Rows are known by what they are: exact counts of requests, rows and orphans, and after that nothing to send."""
    rows = questions(40)
    job.rows(rows)
    assert job.execute().code == 0
    job.rows(EDITS[edit](rows))
    job.sim.reset()
    summary = job.execute().summary
    assert (summary["sent"], summary["total"], summary["orphaned"]) == (sent, total, orphans)
    assert job.sim.requests == sent
    assert job.execute().summary["sent"] == 0
    prove(job, 40 + sent)
    assert job.proof().orphaned == orphans


@pytest.mark.parametrize(
    ("edit", "options", "sent", "rows", "orphans"),
    [
        pytest.param("edited", ("--changed", "rerun"), 2, 40, 0, id="edited, rerun"),
        pytest.param("edited", ("--changed", "keep"), 0, 40, 0, id="edited, keep"),
        pytest.param("reordered", (), 0, 40, 0, id="reordered"),
        pytest.param("shortened at its end", (), 0, 40, 10, id="shortened at its end"),
        pytest.param("shortened at its start", (), 0, 40, 10, id="shortened at its start"),
        pytest.param("keys in another order", (), 0, 40, 0, id="keys in another order"),
    ],
)
def test_an_edited_input_with_ids_sends_what_was_edited(
    job: JobFolder, edit: str, options: tuple[str, ...], sent: int, rows: int, orphans: int
) -> None:
    """Rows are known by their id: a reordered or shortened input sends nothing, an edited row asks first."""
    named = [{"name": f"n{n}", **row} for n, row in enumerate(questions(40))]
    job.settings["input"] = {"path": "rows.jsonl", "id": "name"}
    job.rows(named)
    assert job.execute().code == 0
    job.rows(EDITS[edit](named))
    job.sim.reset()
    if options:
        asked = job.execute()
        assert asked.code == 2
        assert "2 of 40 known prompts were answered before" in asked.err
    summary = job.execute(*options).summary
    assert (summary["sent"], summary["orphaned"]) == (sent, orphans)
    assert job.sim.requests == sent
    assert job.execute().summary["sent"] == 0
    assert len(job.results()) == len({row["id"] for row in job.results()}) == rows
    assert job.proof().orphaned == orphans


def test_a_repeated_id_sends_nothing_and_names_both_lines(job: JobFolder) -> None:
    """It would be one row for two prompts; the answers that are there stay as they are."""
    named = [{"name": f"n{n}", **row} for n, row in enumerate(questions(40))]
    job.settings["input"] = {"path": "rows.jsonl", "id": "name"}
    job.rows(named)
    assert job.execute().code == 0
    job.rows([*named, named[4]])
    said = job.execute()
    assert said.code == 2
    assert "rows.jsonl:5" in said.err
    assert "rows.jsonl:41" in said.err
    assert job.sim.requests == 40
    job.rows(named)
    assert job.execute().summary["sent"] == 0


@pytest.mark.parametrize("ids", ["with ids", "without"])
@pytest.mark.parametrize("how", ["renamed over", "emptied", "deleted"])
def test_an_input_that_is_replaced_while_it_is_read(
    job: JobFolder, sims: Callable[..., Sim], how: str, ids: str
) -> None:
    """No answer is paired with another row's prompt; the same line again ends with every row once.

    A file that is emptied in place may cost error rows: those that were torn.
    """
    job.sim = sims("--speed", "5")
    # Longer than what is read ahead, or nobody would notice.
    long = {"padding": "x" * 3000}
    rows = [{"name": f"n{n}", **row, **long} for n, row in enumerate(questions(300))]
    if ids == "with ids":
        job.settings["input"] = {"path": "rows.jsonl", "id": "name"}
    job.rows(rows)
    process = job.start()
    wait_for(lambda: job.durable >= 20, "20 rows")
    file = job.path / "rows.jsonl"
    new = rows[10:160]
    if how == "renamed over":
        text = "".join(json.dumps(row) + "\n" for row in new)
        (job.path / "new").write_text(text)
        (job.path / "new").rename(file)
    elif how == "emptied":
        file.write_text("")
    else:
        file.unlink()
    ended = process.wait()
    assert ended.code in (0, 1), ended.err
    assert "bug" not in ended.err
    assert ended.summary["left"] == 0 or ended.code == 1
    results = job.results()
    assert all(belongs(row, ask(json.loads(row["input"]))) for row in results if row["status"] == "ok")
    torn = [row["error_message"] for row in results if row["status"] == "error"]
    if how in ("renamed over", "deleted"):
        assert torn == []
    else:  # what was read ahead ends within a row
        assert len(torn) <= 2
        assert all("not valid JSON" in message for message in torn)
    job.rows(new)
    known = {row["input"] for row in job.results()}
    lines = [json.dumps(row) for row in new]
    job.sim.reset()
    last = job.execute()
    assert last.code == 0, last.err
    assert job.sim.requests == sum(line not in known for line in lines)
    assert last.summary["orphaned"] == len(job.results()) - 150
    results = job.results()
    assert len({row["id"] for row in results}) == len(results) == job.proof().rows == len(known | set(lines))
    answered = [row for row in results if row["status"] == "ok"]
    assert len(answered) == len(results) - len(torn)
    assert all(belongs(row, ask(json.loads(row["input"]))) for row in answered)


def test_an_input_that_is_overwritten_in_place_repeats_no_row(job: JobFolder, sims: Callable[..., Sim]) -> None:
    """Rows that move to where the reading goes on are not read, sent and recorded a second time."""
    job.sim = sims("--speed", "5")
    rows = [row | {"padding": "x" * 3000} for row in questions(300)]
    job.rows(rows)
    process = job.start()
    wait_for(lambda: job.durable >= 20, "20 rows")
    with (job.path / "rows.jsonl").open("r+") as file:  # as an editor that does not write a new file
        file.writelines(json.dumps(row) + "\n" for row in [*rows[200:210], *rows[:290]])
        file.truncate()
    ended = process.wait()
    assert ended.code == 1
    assert "rows.jsonl: changed while it was read" in ended.err
    assert "every answer that was counted is safe" in ended.err
    assert len({row["id"] for row in job.results()}) == len(job.results())
    last = job.execute()
    assert last.code == 0, last.err


@pytest.mark.parametrize("published", [True, False], ids=["in parts", "in the journal"])
def test_two_rows_of_one_key_are_reported_and_stop_no_start(job: JobFolder, published: bool) -> None:
    """They should not be: `verify` finds them, and the same line again still runs."""
    job.settings["results"] = {"part_rows": 10 if published else 1000}
    how = {"first": "" if published else die("cbatch.publish:Publisher.cut_now", 1)}
    assert job.execute("--limit", "20", **how).code in (0, -signal.SIGKILL)
    with closing(sqlite3.connect(job.run.journal)) as db:
        db.execute("UPDATE result SET key=(SELECT key FROM result WHERE seq=3) WHERE seq=15")
        db.commit()
    said = tell(job, "verify", str(job.run.path))
    assert said.code == 1
    assert "1 prompts have more than one row in the journal" in said.out
    assert job.execute().code == 0


def test_a_refusal_names_the_run_directory_wherever_its_journal_is(job: JobFolder, tmp_path: Path) -> None:
    assert job.execute("--limit", "5", "--state-dir", str(tmp_path / "state")).code == 0
    job.settings["prompt"] = "Edited: {{ question }}"
    said = job.execute("--state-dir", str(tmp_path / "state"))
    assert said.code == 2
    assert f"{job.run.path}: 5 of 5 known prompts were answered before" in said.err


# -- the clock -------------------------------------------------------------------------------


def clock(shift_s: float, after_s: float = 0.0) -> str:
    """Python that sets this process's wall clock, `after_s` from its start: `time.time` and every `datetime.now`."""
    return f"""
import datetime as d, sys, time
import cbatch.cli.progress, cbatch.cli.run, cbatch.engine
set_at = time.monotonic() + {after_s}
def shift():
    return {shift_s} if time.monotonic() >= set_at else 0.0
real_time, real_ns = time.time, time.time_ns
time.time = lambda: real_time() + shift()
time.time_ns = lambda: real_ns() + int(shift() * 1e9)
class Shifted(d.datetime):
    @classmethod
    def now(cls, tz=None):
        return d.datetime.now(tz) + d.timedelta(seconds=shift())
for name, module in list(sys.modules.items()):
    if name.startswith("cbatch") and getattr(module, "datetime", None) is d.datetime:
        module.datetime = Shifted
"""


def check_durations(job: JobFolder) -> None:
    """Nothing negative, and nothing as long as the clock was moved."""
    for row in job.results():
        assert {name: row[name] for name in DURATIONS if row[name] is not None and not 0 <= row[name] < 600} == {}
    sessions = job.run.read_info()["sessions"]
    status = json.loads(tell(job, "status", str(job.run.path), "--json").out)
    for session in (*sessions, status):
        times = session | {f"{cause}_s": seconds for cause, seconds in session.pop("time_lost_s").items()}
        times |= {f"{name}_of_loop_lag_s": seconds for name, seconds in (times.pop("loop_lag_s", None) or {}).items()}
        times.pop("n_of_loop_lag_s", None)  # a count
        assert {k: v for k, v in times.items() if k.endswith("_s") and not 0 <= (v or 0) < 1000} == {}


@pytest.mark.parametrize("shift_s", [-3600.0, 86_400.0], ids=["an hour back", "a day forward"])
def test_a_clock_set_between_two_sessions(job: JobFolder, shift_s: float) -> None:
    """The second session resumes, its rows follow those of the first, and durations do not see the clock."""
    job.settings |= {"limits": {"concurrency": 1}, "results": {"part_rows": 10}}
    assert job.execute("--limit", "25").code == 0
    first = job.results()
    assert job.execute(first=clock(shift_s)).summary["sent"] == 15
    assert job.sim.requests == 40
    rows = job.results()
    assert rows[:25] == first
    assert [row["index"] for row in rows] == list(range(40))
    moved_s = (rows[25]["started_at"] - rows[24]["started_at"]) / 1e6
    assert abs(moved_s - shift_s) < 60
    check_durations(job)
    prove(job, 40)
    assert job.execute().summary["sent"] == 0


@pytest.mark.parametrize("shift_s", [-3600.0, 86_400.0], ids=["an hour back", "a day forward"])
@pytest.mark.parametrize("limits", [{}, {"rpm": 3000}], ids=["unlimited", "paced"])
def test_a_clock_set_in_the_middle_of_a_run(
    job: JobFolder, sims: Callable[..., Sim], shift_s: float, limits: dict[str, int]
) -> None:
    """It goes on at the same pace: no wait, no duration, no order and no time of a row comes from the clock but one."""
    job.sim = sims("--speed", "20", "--fault", "unavailable=0.1")
    job.rows(questions(150))
    job.settings |= {"limits": {"concurrency": 4, **limits}, "results": {"part_rows": 20}}
    job.settings["retry"] = {"attempts": 20}
    process = job.start(first=clock(shift_s, 1.0))
    moved = wait_for(lambda: job.durable >= 20 and job.durable, "20 rows")
    assert moved < 150
    result = process.wait()
    assert result.code == 0, result.err
    assert 1 < result.summary["elapsed_s"] < 60, "the clock was not set while it ran"
    started = [row["started_at"] for row in job.results()]
    assert max(started) - min(started) < 60e6  # it was read once: a report puts the rows in the order they were sent
    (session,) = job.run.read_info()["sessions"]
    assert 0 <= min(started) / 1e6 - datetime.fromisoformat(session["started_at"]).timestamp() < 30
    check_durations(job)
    prove(job, 150)
    assert [sum(1 for _ in read_rows(part)) for part in job.run.parts] == [20] * 7 + [10]


# -- the folder ------------------------------------------------------------------------------


def test_a_run_on_a_disk_that_became_read_only(job: JobFolder) -> None:
    """A run refuses and sends nothing; status, report and verify read it as it is, killed or finished."""
    job.settings["results"] = {"part_rows": 10}
    with small_disk(job.run.path, "20m"):
        assert job.execute("--limit", "25").code == 0
        subprocess.run(["mount", "-o", "remount,ro", str(job.run.path)], check=True)
        for extra in ((), ("--fresh",), ("--state-dir", str(job.path / "state"))):
            stopped = job.execute(*extra)
            assert stopped.code == 1
            assert "Read-only file system" in stopped.err
            assert "bug" not in stopped.err
        assert job.sim.requests == 25
        assert json.loads(tell(job, "status", str(job.run.path), "--json").out)["done"] == 25
        assert json.loads(tell(job, "report", str(job.run.path), "--json").out)["rows"] == 25
        assert tell(job, "verify", str(job.run.path)).code == 0
        subprocess.run(["mount", "-o", "remount,rw", str(job.run.path)], check=True)
        assert job.execute().summary["sent"] == 15
        prove(job, 40)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param("note.txt", "mine", None, id="a text"),
        pytest.param("other.parquet", "mine", "other.parquet: not a", id="something that is called Parquet"),
        pytest.param("copy.parquet", None, "copy.parquet: 10 of its rows are in another part", id="a copied part"),
    ],
)
def test_a_foreign_file_in_results_between_two_runs(
    job: JobFolder, name: str, content: str | None, message: str | None
) -> None:
    """It is never overwritten, deleted or counted: a run goes on beside it, or names it and sends nothing."""
    job.settings["results"] = {"part_rows": 10}
    assert job.execute("--limit", "25").code == 0
    file = job.run.results / name
    if content is None:
        shutil.copy(job.run.parts[0], file)
    else:
        file.write_text(content)
    before = file.read_bytes()
    result = job.execute()
    assert file.read_bytes() == before
    if message is None:
        assert result.summary["sent"] == 15
    else:
        assert result.code == 1
        assert message in result.err
        assert job.sim.requests == 25
    assert name in tell(job, "verify", str(job.run.path)).out
    file.unlink()
    assert job.execute().code == 0
    assert job.sim.requests == 40
    prove(job, 40)


@pytest.mark.parametrize("lost", ["*", "*-wal", "*-shm", ""], ids=["all of it", "its WAL", "its index", "the file"])
def test_the_journal_of_a_killed_run_is_deleted(job: JobFolder, lost: str) -> None:
    """At most the rows that were in no part are sent again; none is there twice, none is missing."""
    job.settings["results"] = {"part_rows": 10}
    assert job.execute(first=die("cbatch.publish:Publisher.cut_now", 3)).code == -signal.SIGKILL
    in_parts, sent = len(job.results()), job.sim.requests
    for file in job.run.path.glob(f"journal.sqlite{lost}"):
        file.unlink()
    last = job.execute()
    assert last.code == 0, last.err
    assert job.sim.requests <= sent + 40 - in_parts
    prove(job, 40)
    assert job.execute().summary["sent"] == 0


def test_a_journal_of_a_newer_format_is_left_alone(job: JobFolder) -> None:
    """Every command names the two formats and changes nothing; nothing is sent. `--fresh` starts over."""
    assert job.execute("--limit", "25").code == 0
    with closing(sqlite3.connect(job.run.journal)) as db:
        db.execute("UPDATE meta SET v=? WHERE k='format'", (FORMAT + 1,))
        db.execute("ALTER TABLE result ADD COLUMN new")
        db.commit()
    before = {file: file.read_bytes() for file in (job.run.journal, job.run.info_file, *job.run.parts)}
    words = f"written by another version of cbatch (format {FORMAT + 1}, this one reads {FORMAT})"
    for said in (
        job.execute(),
        job.execute("--retry-failed"),
        *(tell(job, command, str(job.run.path)) for command in ("status", "report", "verify")),
        tell(job, "plan", str(job.path / "job.yaml")),
    ):
        assert said.code == 1
        assert words in said.err
    assert {file: file.read_bytes() for file in before} == before
    assert job.sim.requests == 25
    assert job.execute("--fresh").code == 0
    prove(job, 40)
