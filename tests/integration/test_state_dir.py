"""Run directories on network file systems: no journal there, and `--state-dir` keeps it on a local disk."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cbatch.rundir import RunDir
from tests.integration.conftest import JobFolder, Result, Sim, questions, wait_for
from tests.integration.test_crash import die


def network(*folders: Path, kind: str = "nfs4") -> str:
    """Python that makes these folders mounts of a network file system."""
    text = "1 0 8:1 / / rw - ext4 /dev/a rw\n"
    text += "".join(f"{n} 1 0:{n} / {folder} rw - {kind} server:/ rw\n" for n, folder in enumerate(folders, 2))
    return f"""
import pathlib, tempfile, cbatch.filesystem
cbatch.filesystem.MOUNTINFO = pathlib.Path(tempfile.mkdtemp()) / "mountinfo"
cbatch.filesystem.MOUNTINFO.write_text({text!r})
"""


def no_locks(folder: Path) -> str:
    """Python that makes `flock` fail on the files right in this folder, as on NFS without a lock daemon."""
    return f"""
import errno, fcntl, os
flock = fcntl.flock
def without(fd, how):
    if os.path.dirname(os.readlink(f"/proc/self/fd/{{fd}}")) == {str(folder)!r}:
        raise OSError(errno.ENOLCK, "No locks available")
    flock(fd, how)
fcntl.flock = without
"""


@pytest.fixture
def nfs(job: JobFolder) -> str:
    """Python that puts the run directory on NFS; rows are in parts of ten."""
    job.settings["results"] = {"part_rows": 10}
    return network(job.run.path)


def ran(job: JobFolder, *args: str, requests: int, **how: Any) -> Result:
    """Run to the end; `requests` reach the simulator."""
    job.sim.reset()
    result = job.execute(*args, **how)
    assert result.code == 0, result.err
    assert job.sim.requests == result.summary["sent"] == requests
    job.run = RunDir.at(job.run.path)
    return result


def complete(job: JobFolder, rows: int = 40) -> None:
    assert len({row["id"] for row in job.results()}) == len(job.results()) == rows
    assert job.proof().rows == rows


def killed_after(job: JobFolder, rows: int, *args: str, first: str = "") -> tuple[int, int]:
    """Kill a run that has `rows` rows; returns how many it left durable, and how many requests were sent."""
    job.sim.reset()
    process = job.start(*args, first=first)

    def durable() -> int:
        job.run = RunDir.at(job.run.path)
        return job.durable

    wait_for(lambda: durable() >= rows, f"{rows} rows")
    assert process.kill().code == -signal.SIGKILL
    return durable(), job.sim.requests


@pytest.mark.parametrize("kind", ["nfs4", "fuse.sshfs"])
def test_a_run_directory_on_a_network_file_system_is_refused(job: JobFolder, kind: str) -> None:
    """Exit 1 with folder, type and a way out, before anything is sent or made."""
    result = job.execute(first=network(job.run.path.parent, kind=kind))
    assert result.code == 1
    assert f"{job.run.path}: on a network file system ({kind})" in result.err
    assert "hint: --state-dir DIR " in result.err
    assert job.sim.requests == 0
    assert not job.run.path.exists()


def test_a_state_folder_on_a_network_file_system_is_refused_too(job: JobFolder, tmp_path: Path, nfs: str) -> None:
    result = job.execute("--state-dir", str(tmp_path / "also"), first=network(job.run.path, tmp_path / "also"))
    assert result.code == 1
    assert f"{tmp_path / 'also'}/" in result.err
    assert job.sim.requests == 0
    assert not (tmp_path / "also").exists()


def test_the_journal_is_in_the_state_folder_and_found_there_again(job: JobFolder, tmp_path: Path, nfs: str) -> None:
    """Results and run.json stay; the same line without the option, and every command, finds the journal."""
    ran(job, "--limit", "25", "--state-dir", "../local", requests=25, first=nfs)
    assert not list(job.run.path.rglob("*.sqlite*"))
    assert len(list((tmp_path / "local").rglob("journal.sqlite"))) == 1
    assert job.run.state is not None
    assert job.run.state.stat().st_mode & 0o077 == 0
    ran(job, requests=15, first=nfs)
    ran(job, "--state-dir", str(tmp_path / "local"), requests=0, first=nfs)
    complete(job)

    def said(*args: str) -> Any:
        done = job._forking.start([*args, "--json"], key=None, cwd=job.path, first=nfs).wait()
        assert done.code == 0, done.err
        return json.loads(done.out)

    status = said("status", str(job.run.path))
    assert (status["done"], status["parts"], status["state"]) == (40, 5, "finished")
    assert said("verify", str(job.run.path))["problems"] == []
    assert said("report", str(job.run.path))["rows"] == 40
    assert said("plan", str(job.path / "job.yaml"))["known"] == 40


def test_a_kill_loses_nothing_with_the_journal_elsewhere(job: JobFolder, sims: Callable[..., Sim], nfs: str) -> None:
    """Rows that are in no part yet are in the state folder: only what was not durable is sent again."""
    job.sim = sims("--speed", "5")
    job.rows(questions(200))
    durable, sent = killed_after(job, 25, "--state-dir", "../local", first=nfs)
    assert sent <= durable + 36
    ran(job, requests=200 - durable, first=nfs)
    complete(job, 200)


def test_a_state_folder_that_has_gone_costs_what_was_in_no_part(job: JobFolder, tmp_path: Path, nfs: str) -> None:
    """The rows of results/ are known again, a note says what happened, and `status` says what to do."""
    killed = job.execute("--state-dir", "../local", first=nfs + die("cbatch.publish:write_part", 3))
    assert killed.code == -signal.SIGKILL
    in_parts = len(job.results())
    assert in_parts >= 20
    shutil.rmtree(tmp_path / "local")
    asked = job._forking.start(["status", str(job.run.path)], key=None, cwd=job.path).wait()
    assert asked.code == 1
    assert "its journal is not there: " in asked.err
    assert "the same `cbatch run` line makes it again from results/" in asked.err
    said = ran(job, requests=40 - in_parts, first=nfs).err
    assert "the journal is not there any more" in said
    assert f"did not know {in_parts} rows: they were read from results/" in said
    assert "note: " not in ran(job, requests=0, first=nfs).err
    complete(job)


@pytest.mark.parametrize("locks", ["with locks", "without"])
def test_two_state_folders_do_not_make_two_runs(job: JobFolder, sims: Callable[..., Sim], nfs: str, locks: str) -> None:
    """The second refuses, whatever its options; also where only the lock beside the first one's journal works."""
    first_lines = nfs + (no_locks(job.run.path) if locks == "without" else "")
    job.sim = sims("--fault", "stall=1")
    first = job.start("--state-dir", "../one", first=first_lines)
    wait_for(lambda: job.sim.requests == 16, "all workers to be waiting")
    assert ("cannot be locked (No locks available)" in first.err) == (locks == "without")
    for extra in (["--state-dir", "../two"], ["--state-dir", "../one"], [], ["--state-dir", "../two", "--fresh"]):
        second = job.execute(*extra, first=first_lines)
        assert second.code == 1
        assert f"another cbatch is running this job (process {first.pid})" in second.err
    status = job._forking.start(["status", str(job.run.path), "--json"], key=None, cwd=job.path, first=first_lines)
    assert json.loads(status.wait().out)["state"] == "running"
    assert first.ended is None
    assert job.sim.requests == 16


@pytest.mark.parametrize("was", ["in the run directory", "in another state folder"])
@pytest.mark.parametrize(
    "kill",
    [
        pytest.param("", id="not killed"),
        pytest.param(die("shutil:copy", 2), id="killed while copying"),
        pytest.param(die("cbatch.rundir:_copy_journal", 1), id="killed before it is named"),
        pytest.param(die("cbatch.rundir:RunDir.write_info", 1), id="killed once it is named"),
        pytest.param(die("cbatch.rundir:_delete_journal", 1), id="killed while the old one is deleted"),
    ],
)
def test_a_journal_is_moved_to_a_new_state_folder(
    job: JobFolder, sims: Callable[..., Sim], was: str, kill: str
) -> None:
    """With the rows that are in no part yet, whenever it is cut off; nothing is left where it was."""
    job.settings["results"] = {"part_rows": 1000}
    job.sim = sims("--speed", "5")
    job.rows(questions(120))
    durable, _ = killed_after(job, 10, *([] if was == "in the run directory" else ["--state-dir", "../old"]))
    assert not job.results()
    if kill:
        assert job.execute("--state-dir", "../new", first=kill).code == -signal.SIGKILL
    assert "journal is not there" not in ran(job, "--state-dir", "../new", requests=120 - durable).err
    complete(job, 120)
    assert job.run.state is not None
    assert job.run.state.parent.parent == job.path.parent / "new"
    assert not list(job.run.path.glob("*.sqlite*"))
    if not kill:
        assert not list(job.path.parent.glob("old/*/*/*"))


def test_a_moved_run_directory_finds_its_journal(job: JobFolder, nfs: str) -> None:
    """Though the name of its state folder was made from its path; with the option and without."""
    ran(job, "--limit", "25", "--state-dir", "../local", requests=25, first=nfs)
    state, moved = job.run.state, job.path / "moved"
    shutil.move(job.run.path, moved)
    job.run = RunDir(moved)
    ran(job, "--output", str(moved), "--limit", "30", requests=5)
    ran(job, "--output", str(moved), "--state-dir", "../local", requests=10)
    assert job.run.state == state
    complete(job)


def test_a_copied_run_directory_does_not_share_the_journal(job: JobFolder, nfs: str) -> None:
    """Each goes on by itself: the copy from its own results/, with a journal of its own."""
    ran(job, "--limit", "25", "--state-dir", "../local", requests=25, first=nfs)
    original, copy = job.run, RunDir(job.path / "copy")
    shutil.copytree(original.path, copy.path)
    job.run = copy
    assert "is another folder's" in ran(job, "--output", str(copy.path), requests=15).err
    complete(job)
    assert job.run.state != original.state
    job.run = original
    ran(job, requests=15, first=nfs)
    complete(job)


def test_a_journal_left_on_another_machine_is_never_taken_for_the_newer_one(
    job: JobFolder, tmp_path: Path, nfs: str
) -> None:
    """Begun on one machine, continued on a second, finished on the first: every row once, and none mixed up."""
    local, first_disk, second_disk = (tmp_path / name for name in ("local", "first", "second"))
    ran(job, "--limit", "15", "--state-dir", "../local", requests=15, first=nfs)
    local.rename(first_disk)
    assert "the journal is not there any more" in ran(job, "--limit", "30", requests=15, first=nfs).err
    local.rename(second_disk)
    first_disk.rename(local)
    assert "the journal is not there any more" in ran(job, "--limit", "35", requests=5, first=nfs).err
    shutil.rmtree(local)
    second_disk.rename(local)
    ran(job, "--state-dir", "../local", requests=5, first=nfs)
    complete(job)


def test_a_lost_run_json_does_not_lose_the_journal(job: JobFolder, sims: Callable[..., Sim], nfs: str) -> None:
    """The state folder given again is enough; a run directory that was deleted as a whole begins anew."""
    job.settings["results"] = {"part_rows": 1000}
    job.sim = sims("--speed", "5")
    job.rows(questions(120))
    durable, _ = killed_after(job, 10, "--state-dir", "../local", first=nfs)
    job.run.info_file.unlink()
    ran(job, "--state-dir", "../local", requests=120 - durable, first=nfs)
    complete(job, 120)
    shutil.rmtree(job.run.path)
    ran(job, "--state-dir", "../local", "--limit", "20", requests=20, first=nfs)
    complete(job, 20)


def test_fresh_starts_over_with_the_journal_elsewhere(job: JobFolder, nfs: str) -> None:
    ran(job, "--state-dir", "../local", requests=40, first=nfs)
    job.rows(questions(45)[30:])
    assert "note: " not in ran(job, "--fresh", requests=15, first=nfs).err
    complete(job, 15)
    ran(job, "--fresh", "--state-dir", "../other", requests=15, first=nfs)
    ran(job, requests=0, first=nfs)
    complete(job, 15)


def test_a_state_folder_that_cannot_be_made_is_named(job: JobFolder) -> None:
    """Nothing is sent, and the hint names the option."""
    (job.path / "file").touch()
    result = job.execute("--state-dir", "file")
    assert result.code == 1
    assert "file/" in result.err
    assert "cannot be written: " in result.err
    assert "--state-dir" in result.err
    assert job.sim.requests == 0
