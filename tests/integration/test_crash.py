"""No paid answer is ever lost: tested by `kill -9`, by a full disk, and by two processes on one folder."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from cbatch.journal import VISIBLE, Journal
from tests.integration.conftest import JobFolder, Sim, ask, belongs, questions, wait_for


def die(what: str, nth: int, *, before: bool = False) -> str:
    """Python that makes a process kill itself with SIGKILL at the nth call of `what`."""
    module, _, path = what.partition(":")
    owner, _, name = path.rpartition(".")
    return f"""
import os, signal, {module}
owner = {f"{module}.{owner}" if owner else module}
real, calls = owner.{name}, 0
def dying(*args, **kwargs):
    global calls
    calls += 1
    if calls == {nth} and {before}:
        os.kill(os.getpid(), signal.SIGKILL)
    found = real(*args, **kwargs)
    if calls == {nth}:
        os.kill(os.getpid(), signal.SIGKILL)
    return found
owner.{name} = dying
"""


def prove(job: JobFolder, count: int) -> None:
    """One row per prompt, each with the answer to its own prompt, and journal and parts agree."""
    results = job.results()
    assert len({row["id"] for row in results}) == len(results) == count
    assert sorted(row["index"] for row in results) == list(range(count))
    assert all(belongs(row, ask(json.loads(row["input"]))) for row in results)
    assert job.proof().rows == job.proof().prompts == count


def test_three_kills_at_random_moments(job: JobFolder, sims: Callable[..., Sim]) -> None:
    """Every prompt ends with one row, and a kill costs at most 1.25 x concurrency + 16 requests."""
    job.sim = sims("--speed", "5")
    rows = questions(1319)
    job.rows(rows)
    job.settings |= {"limits": {"concurrency": 64}, "results": {"part_rows": 50}}
    bound = 64 * 5 // 4 + 16
    chance = random.Random()
    moments = sorted(chance.sample(range(10, len(rows) - 100), 3))
    durable = 0
    for kills, moment in enumerate(moments, 1):
        process = job.start()
        wait_for(lambda at=moment: job.durable >= at, f"row {moment} of {moments}")  # type: ignore[misc]
        assert process.kill().code == -signal.SIGKILL
        assert job.durable >= max(moment, durable), moments
        durable = job.durable
        assert job.sim.requests <= durable + kills * bound, moments
    last = job.execute()
    assert last.code == 0
    prove(job, len(rows))
    assert job.sim.requests <= len(rows) + 3 * bound, moments
    assert f"at most {bound} prompts were sent and not saved; they are sent again and may be paid twice" in last.err
    assert last.summary["paid_twice_at_most"] == bound
    assert last.summary["sent"] == len(rows) - durable


@pytest.mark.parametrize(
    ("what", "nth", "before"),
    [
        *(pytest.param("cbatch.journal:Writer._commit", n, b, id=f"{'around'[: 6 * b]} commit {n}".strip())
          for n in (1, 2, 4, 7, 12) for b in (False, True)),
        *(pytest.param("os:fsync", n, b, id=f"{'before' if b else 'after'} fsync {n}")
          for n in (1, 3, 4, 5, 6) for b in (False, True)),
        pytest.param("cbatch.publish:Publisher.cut_now", 1, False, id="after the first part"),
        pytest.param("cbatch.publish:Publisher.finish", 1, True, id="before the last part"),
        pytest.param("cbatch.publish:Publisher.finish", 1, False, id="after the last part"),
        pytest.param("cbatch.rundir:RunDir.write_info", 2, True, id="before run.json says finished"),
    ],
)  # fmt: skip
def test_a_kill_at_a_chosen_step(job: JobFolder, what: str, nth: int, before: bool) -> None:
    """From the first commit to the last rename: the next start needs only what was not durable."""
    job.settings["results"] = {"part_rows": 10}
    assert job.execute(first=die(what, nth, before=before)).code == -signal.SIGKILL
    durable, sent = job.durable, job.sim.requests
    assert sent <= durable + 36
    last = job.execute()
    assert last.code == 0
    prove(job, 40)
    assert job.sim.requests == sent + 40 - durable
    assert last.summary["paid_twice_at_most"] >= sent - durable
    assert not (job.run.path / "staging").exists()


def test_kills_with_several_models_and_samples(job: JobFolder, sims: Callable[..., Sim]) -> None:
    """One row per prompt, model and sample; the bound is of the whole run, not of a model."""
    job.sim = sims("--speed", "5")
    job.settings |= {"model": ["gpt-oss-120b", "zai-glm-4.7"], "samples": 2, "params": {"temperature": 1.0}}
    job.settings |= {"results": {"part_rows": 30}}
    for kills, moment in enumerate((15, 90), 1):
        process = job.start()
        wait_for(lambda at=moment: job.durable >= at, f"row {moment}")  # type: ignore[misc]
        process.kill()
        assert job.sim.requests <= job.durable + kills * 36
    assert job.execute().code == 0
    rows = {(row["id"], row["model"], row["sample"]) for row in job.results()}
    assert len(rows) == len(job.results()) == job.proof().rows == 160


def test_a_bug_in_the_program_loses_nothing(job: JobFolder) -> None:
    """What was answered is saved, the message says that it is a bug, and the same line goes on."""
    bug = "import cbatch.engine as e\nreal, calls = e.record, 0\n"
    bug += "def record(**k):\n    global calls\n    calls += 1\n"
    bug += "    if calls == 25:\n        raise KeyError('oops')\n    return real(**k)\ne.record = record\n"
    stopped = job.execute(first=bug)
    assert stopped.code == 1
    assert "cbatch has a bug: KeyError: 'oops'" in stopped.err
    durable = job.durable
    assert 24 <= durable < 40
    sent = job.sim.requests
    last = job.execute()
    assert last.code == 0
    assert last.summary["paid_twice_at_most"] >= sent - durable
    prove(job, 40)


def test_the_bound_holds_when_every_answer_comes_at_once(job: JobFolder) -> None:
    """The journal is slower than the answers: what is sent and not durable stays bounded all the same."""
    job.rows(questions(400))
    slow = "import time, cbatch.journal as j\nreal = j.Writer._commit\n"
    slow += "def commit(*a):\n    time.sleep(0.03)\n    return real(*a)\nj.Writer._commit = commit\n"
    process = job.start(first=slow)
    wait_for(lambda: job.durable >= 100, "100 rows")
    process.kill()
    assert job.sim.requests <= job.durable + 36
    assert job.execute().code == 0
    prove(job, 400)


def test_what_may_be_paid_twice_is_remembered_over_sessions(job: JobFolder, sims: Callable[..., Sim]) -> None:
    """A short session in between with few workers does not make the requests of the first one forgotten."""
    job.sim = sims("--fault", "stall=1")
    job.rows(questions(200))
    job.settings["limits"] = {"concurrency": 100}
    process = job.start()
    wait_for(lambda: job.sim.requests >= 100, "100 requests")
    process.kill()
    job.settings["limits"] = {"concurrency": 1}
    process = job.start()
    wait_for(lambda: job.sim.requests >= 101, "one more request")
    process.kill()
    sent = job.sim.requests
    job.sim = sims("--speed", "inf")
    last = job.execute()
    assert last.code == 0
    assert last.summary["paid_twice_at_most"] >= sent - 1 == 100


def test_a_kill_while_known_rows_are_replaced_says_what_may_be_paid_twice(job: JobFolder) -> None:
    """Every prompt has a row already, and yet what was sent anew and not saved is sent again."""
    assert job.execute().code == 0
    job.settings["prompt"] = "Again.\n\n{{ question }}"
    killed = job.execute("--changed", "rerun", first=die("cbatch.engine:send", 17, before=True))
    assert killed.code == -signal.SIGKILL
    result = job.execute("--changed", "rerun")
    assert result.code == 0
    assert result.summary["paid_twice_at_most"] == 16 * 5 // 4 + 16
    assert "may be paid twice" in result.err
    assert job.execute().summary["paid_twice_at_most"] == 0


def test_a_kill_before_the_first_heartbeat_does_not_count_an_earlier_session_again(
    job: JobFolder, sims: Callable[..., Sim]
) -> None:
    """What is known of a killed session is its own, never the last figures of the one before."""
    job.sim = sims("--fault", "stall=1")
    first = job.start()
    wait_for(lambda: job.sim.requests, "requests")
    with closing(Journal(job.run.journal)) as journal:
        wait_for(lambda: journal.get("live"), "a heartbeat")
    first.kill()
    killed = job.execute(first=die("cbatch.engine:Run._send_all", 1, before=True))
    assert killed.code == -signal.SIGKILL
    job.sim = sims("--speed", "inf")
    assert job.execute().code == 0
    assert [session["sent"] for session in job.run.read_info()["sessions"]] == [16, 0, 40]


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_a_kill_while_failed_rows_are_replaced(job: JobFolder, sims: Callable[..., Sim], nth: int) -> None:
    """`--retry-failed` rewrites parts; cut off between staging and rename, no row is lost or there twice."""
    job.settings |= {"results": {"part_rows": 10}, "retry": {"attempts": 1}}
    job.sim = sims("--speed", "inf", "--fault", "server_error=0.4")
    failed = job.execute()
    assert failed.code == 3
    assert failed.summary["failed"] > 5
    job.sim = sims("--speed", "inf")
    killed = job.execute("--retry-failed", first=die("cbatch.publish:write_part", nth, before=nth % 2 > 0))
    assert killed.code == -signal.SIGKILL
    assert len(job.results()) == len({row["id"] for row in job.results()}) == 40
    assert job.execute("--retry-failed").code == 0
    prove(job, 40)
    assert job.sim.requests == failed.summary["failed"]  # all were durable before the parts were rewritten


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_kill_while_a_lost_journal_is_rebuilt(job: JobFolder, nth: int) -> None:
    """Nothing is sent again and no part is overwritten, however far the rebuild came."""
    job.settings["results"] = {"part_rows": 15}
    assert job.execute().code == 0
    before = {part.name: part.read_bytes() for part in job.run.parts}
    for file in job.run.path.glob("journal.sqlite*"):
        file.unlink()
    rebuilding = die("cbatch.journal:Writer.adopt_part", nth)
    assert job.execute(first=rebuilding).code == -signal.SIGKILL
    last = job.execute()
    assert last.code == 0
    assert "rows: they were read from results/" in last.err
    assert job.sim.requests == 40
    assert {part.name: part.read_bytes() for part in job.run.parts} == before
    prove(job, 40)


def test_a_kill_while_starting_over(job: JobFolder) -> None:
    """`--fresh` cut off in the middle leaves a folder in which every prompt still gets its row."""
    job.settings["results"] = {"part_rows": 10}
    assert job.execute().code == 0
    assert job.execute("--fresh", first=die("pathlib:Path.unlink", 5)).code == -signal.SIGKILL
    assert 0 < len(job.run.parts) < 4
    assert job.execute().code == 0
    prove(job, 40)


def test_the_second_process_on_a_folder_refuses(job: JobFolder, sims: Callable[..., Sim]) -> None:
    """It says who is there, sends nothing and touches nothing, not even with --fresh."""
    job.sim = sims("--fault", "stall=1")
    first = job.start()
    wait_for(lambda: job.sim.requests == 16, "all workers to be waiting")
    before = {file: file.read_bytes() for file in job.run.path.rglob("*") if file.is_file()}
    for extra in ((), ("--fresh",)):
        second = job.execute(*extra)
        assert second.code == 1
        assert f"another cbatch is running this job (process {first.pid})" in second.err
        assert "hint: " in second.err
    assert {file: file.read_bytes() for file in before} == before
    assert first.ended is None
    assert job.sim.requests == 16


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A file system of `size` at `folder`; skips where this process may not mount one."""
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("size", ["100k", "900k", "1800k"])
def test_a_full_disk_stops_the_run_and_loses_nothing(job: JobFolder, size: str) -> None:
    """Exit 1 with the reason; nothing more is asked than can be stored; with space again the same line ends it."""
    job.rows(questions(1319))
    job.settings["results"] = {"part_rows": 40}
    with small_disk(job.run.path, size):
        stopped = job.execute()
        assert stopped.code == 1
        assert "the disk is full; every answer that was counted is safe" in stopped.err
        assert "hint: free some space, then run the same line again" in stopped.err
        counted, sent = job.durable, job.sim.requests
        assert counted == stopped.summary["done"] < 1319
        assert sent <= counted + 36
        assert job.execute().code == 1  # nothing was freed: it stops again, and again loses nothing
        assert job.durable >= counted
        sent, counted = job.sim.requests, job.durable
        assert sent <= counted + 2 * 36
        subprocess.run(["mount", "-o", "remount,size=100m", str(job.run.path)], check=True)
        last = job.execute()
        assert last.code == 0
        assert job.sim.requests == sent + 1319 - counted
        prove(job, 1319)


def test_a_part_that_cannot_be_written_stops_the_run(job: JobFolder) -> None:
    """Answers with nowhere to go are not asked for; those that were given wait in the journal."""
    job.rows(questions(400))
    job.settings["results"] = {"part_rows": 20}
    full = "import cbatch.publish as p\nreal, calls = p.write_part, 0\n"
    full += "def write(*a):\n    global calls\n    calls += 1\n"
    full += "    if calls == 2:\n        raise OSError(28, 'No space left on device')\n"
    full += "    return real(*a)\np.write_part = write\n"
    stopped = job.execute(first=full)
    assert stopped.code == 1
    assert "part-00001.parquet: cannot be written: No space left on device" in stopped.err
    assert "every answer is safe in the journal; free some space and run the same line again" in stopped.err
    assert job.sim.requests <= job.durable + 36
    sent, durable = job.sim.requests, job.durable
    assert job.execute().code == 0
    assert job.sim.requests == sent + 400 - durable
    prove(job, 400)


def test_a_disk_that_is_full_from_the_start_sends_nothing(job: JobFolder) -> None:
    with small_disk(job.run.path, "64k"):
        (job.run.path / "filler").write_bytes(b"x" * 65_536)
        stopped = job.execute()
        assert stopped.code == 1
        assert "bug" not in stopped.err
        assert "disk is full" in stopped.err or "No space left on device" in stopped.err
        assert job.sim.requests == 0


def test_a_folder_that_may_only_be_read_sends_nothing(job: JobFolder) -> None:
    with small_disk(job.run.path, "4m"):
        subprocess.run(["mount", "-o", "remount,ro", str(job.run.path)], check=True)
        stopped = job.execute()
        assert stopped.code == 1
        assert "cannot be written: Read-only file system" in stopped.err
        assert job.sim.requests == 0


def test_the_journal_of_a_killed_run_can_be_read_elsewhere(job: JobFolder, tmp_path: Path) -> None:
    """A copy of the folder, taken after the kill, is as good as the folder: it resumes with nothing lost."""
    job.settings["results"] = {"part_rows": 10}
    job.execute(first=die("cbatch.journal:Writer._commit", 8))
    durable, sent = job.durable, job.sim.requests
    shutil.copytree(job.run.path, tmp_path / "elsewhere")
    journal = Journal(tmp_path / "elsewhere" / "journal.sqlite")
    assert sum(journal.counts()) == durable
    assert all(part.state <= VISIBLE for part in journal.parts())
    journal.close()
    last = job.execute("--output", str(tmp_path / "elsewhere"))
    assert last.code == 0
    assert job.sim.requests == sent + 40 - durable
