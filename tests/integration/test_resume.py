"""The same line again: what was answered is never asked again, what changed is never mixed in silently."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from tests.integration.conftest import JobFolder, Sim, ask, belongs, questions, wait_for


def finish(job: JobFolder, *args: str, sent: int, **how: Any) -> dict[str, Any]:
    """Run to the end; `sent` requests reach the simulator. Returns the summary."""
    job.sim.reset()
    result = job.execute(*args, **how)
    assert result.code == 0, result.err
    assert job.sim.requests == result.summary["sent"] == sent
    return result.summary


def refused(job: JobFolder, *args: str, **how: Any) -> str:
    """Run what must be refused: exit 2 with a hint, nothing sent, nothing changed in results/. Returns the message."""
    before = {part: part.read_bytes() for part in job.run.parts}
    job.sim.reset()
    result = job.execute(*args, **how)
    assert result.code == 2
    assert json.loads(result.out)["exit_code"] == 2
    assert "hint: " in result.err
    assert job.sim.requests == 0
    assert {part: part.read_bytes() for part in job.run.parts} == before
    return result.err


def texts(job: JobFolder) -> dict[str, str]:
    found = {row["id"]: row["text"] for row in job.results()}
    assert len(found) == len(job.results())
    return found


def test_a_finished_job_sends_nothing_and_needs_no_key(job: JobFolder) -> None:
    finish(job, sent=40)
    before = {part: part.read_bytes() for part in job.run.parts}
    summary = finish(job, sent=0, key=None)
    assert (summary["state"], summary["done"], summary["left"], summary["paid_twice_at_most"]) == ("finished", 40, 0, 0)
    assert {part: part.read_bytes() for part in job.run.parts} == before


def test_a_finished_job_needs_no_server_either(job: JobFolder) -> None:
    finish(job, sent=40)
    assert job.execute(to="http://127.0.0.1:9", key=None).code == 0


def test_a_run_directory_can_be_moved(job: JobFolder) -> None:
    """Half done here, the rest there: nothing in it names its own place."""
    finish(job, "--limit", "25", sent=25)
    moved = job.path / "moved" / "deeper"
    moved.parent.mkdir()
    shutil.move(job.run.path, moved)
    finish(job, "--output", str(moved), sent=15)
    assert not job.run.path.exists()


def test_an_edited_template_is_not_mixed_in_silently(job: JobFolder) -> None:
    """The run stops and says how many of how many; `rerun` sends exactly those again, in place."""
    finish(job, sent=40)
    old, places = texts(job), [row["id"] for row in job.results()]
    job.settings["prompt"] = "{% if question|length > 200 %}Think. {% endif %}Solve.\n\n{{ question }}"
    longer = {row["id"] for row in job.results() if len(json.loads(row["input"])["question"]) > 200}
    assert 0 < len(longer) < 40
    said = refused(job)
    assert f"{len(longer)} of 40 known prompts were answered before the template" in said
    assert "--changed rerun" in said
    finish(job, "--changed", "rerun", sent=len(longer))
    assert [row["id"] for row in job.results()] == places
    assert {name for name, text in texts(job).items() if text != old[name]} == longer
    for row in job.results():
        prompt = ask(json.loads(row["input"]))
        assert belongs(row, f"Think. {prompt}" if row["id"] in longer else prompt)
    assert job.proof().rows == 40
    finish(job, sent=0)  # and from now on this is the job


def test_an_edit_that_was_kept_is_kept_for_good(job: JobFolder) -> None:
    finish(job, "--limit", "30", sent=30)
    job.settings["params"] = {"temperature": 0.5}
    assert "30 of 30 known prompts" in refused(job, "--limit", "30")
    finish(job, "--changed", "keep", sent=10)
    finish(job, sent=0)
    assert job.proof().rows == 40


def test_what_was_kept_can_still_be_sent_again(job: JobFolder) -> None:
    finish(job, sent=40)
    job.settings["prompt"] = "Solve this.\n\n{{ question }}"
    finish(job, "--changed", "keep", sent=0)
    finish(job, sent=0)
    finish(job, "--changed", "rerun", sent=40)
    assert job.proof().rows == 40


def test_an_edit_taken_back_half_way_is_not_mixed_in_silently(job: JobFolder) -> None:
    """Answers to the edited template are told apart from those to the old one, though the job is the old one again."""
    finish(job, sent=40)
    old = job.settings["prompt"]
    job.settings["prompt"] = "Solve this.\n\n{{ question }}"
    finish(job, "--changed", "rerun", "--limit", "10", sent=10)
    job.settings["prompt"] = old
    assert "10 of 40 known prompts were answered before the template" in refused(job)
    finish(job, "--changed", "rerun", sent=10)
    assert all(belongs(row, ask(json.loads(row["input"]))) for row in job.results())


def test_an_edited_row_is_another_row_without_an_id_and_a_changed_one_with(job: JobFolder) -> None:
    """Without ids the old row is orphaned and the new one added; with ids the run asks what to do."""
    rows = [{"name": f"n{n}", **row} for n, row in enumerate(questions(10))]
    job.rows(rows)
    finish(job, sent=10)
    rows[3] = rows[3] | {"question": "What else?"}
    job.rows(rows)
    assert finish(job, sent=1)["orphaned"] == 1
    job.settings["input"] = {"path": "rows.jsonl", "id": "name"}
    finish(job, "--fresh", sent=10)
    rows[4] = rows[4] | {"question": "And what now?"}
    job.rows(rows)
    assert "1 of 10 known prompts" in refused(job)
    finish(job, "--changed", "rerun", sent=1)
    assert job.proof().rows == 10


def test_reordered_input_sends_nothing(job: JobFolder) -> None:
    """Rows are known by what they are, not by where they stand; equal rows stay separate rows."""
    rows = questions(20)
    job.rows(rows + rows[:5])
    finish(job, sent=25)
    job.rows((rows[:5] + rows)[::-1])
    summary = finish(job, sent=0)
    assert (summary["done"], summary["orphaned"]) == (25, 0)
    assert max(Counter(row["input"] for row in job.results()).values()) == 2


def test_shortened_input_reports_the_rows_that_left_it(job: JobFolder) -> None:
    """They stay in the output: they were paid for. New rows beside them are added."""
    finish(job, sent=40)
    job.rows(questions(45)[10:])
    summary = finish(job, sent=5)
    assert (summary["total"], summary["done"], summary["left"], summary["orphaned"]) == (35, 35, 0, 10)
    assert len(job.results()) == 45
    assert job.proof().orphaned == 10


def test_rows_appended_while_it_runs_wait_for_the_next_start(job: JobFolder, sims: Callable[..., Sim]) -> None:
    """A run is over the rows it surveyed: no row twice when an appended one repeats an earlier one."""
    job.sim = sims("--speed", "5")
    job.rows(questions(200))
    process = job.start()
    wait_for(lambda: job.durable >= 20, "20 rows")
    with (job.path / "rows.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in questions(30))
    summary = process.wait().summary
    assert (summary["total"], summary["done"], summary["left"]) == (200, 200, 0)
    finish(job, sent=30)
    assert job.proof().rows == 230


def test_an_input_that_shrinks_while_it_is_read_is_not_a_finished_run(job: JobFolder, sims: Callable[..., Sim]) -> None:
    """Exit 0 means that every prompt has its row; here the next start says what is true of the new input."""
    job.sim = sims("--speed", "5")
    job.rows([{"question": f"{n} {'x' * 300}"} for n in range(3000)])
    process = job.start()
    wait_for(lambda: job.durable >= 20, "20 rows")
    with (job.path / "rows.jsonl").open("r+b") as file:
        file.truncate(sum(len(file.readline()) for _ in range(500)))
    stopped = process.wait()
    assert stopped.code == 1
    assert "changed while it was read" in stopped.err
    last = job.execute()
    assert (last.code, last.summary["done"]) == (0, 500), last.err
    assert job.proof().rows >= 500  # rows of what was cut off stay, as orphans


def test_more_samples_add_only_the_new_ones(job: JobFolder) -> None:
    job.settings["params"] = {"temperature": 1.0}
    finish(job, sent=40)
    job.settings["samples"] = 3
    finish(job, sent=80)
    assert Counter(row["sample"] for row in job.results()) == {0: 40, 1: 40, 2: 40}
    assert job.proof().rows == 120


def test_another_model_adds_its_rows(job: JobFolder) -> None:
    finish(job, sent=40)
    job.settings["model"] = ["gpt-oss-120b", "zai-glm-4.7"]
    finish(job, sent=40)
    assert Counter(row["model"] for row in job.results()) == {"gpt-oss-120b": 40, "zai-glm-4.7": 40}


def test_limit_then_all(job: JobFolder) -> None:
    """A trial of ten rows is the first part of the run, not a run of its own."""
    assert finish(job, "--limit", "10", sent=10)["total"] == 10
    finish(job, "--limit", "10", sent=0)
    assert finish(job, sent=30)["total"] == 40
    assert job.proof().rows == 40


def test_failed_rows_are_sent_again_only_on_request_and_take_their_old_place(
    job: JobFolder, sims: Callable[..., Sim]
) -> None:
    """Exit 3 stays exit 3 until they succeed; every other row and its place stay as they are."""
    job.settings |= {"retry": {"attempts": 1}, "results": {"part_rows": 16}}
    job.sim = sims("--speed", "inf", "--fault", "server_error=0.4")
    first = job.execute()
    failed = [row["id"] for row in job.results() if row["status"] == "error"]
    assert first.code == 3
    assert first.summary["failed"] == len(failed) > 0
    places, old = [row["id"] for row in job.results()], texts(job)
    job.sim = sims("--speed", "inf")
    again = job.execute()
    assert again.code == 3
    assert again.summary["sent"] == 0
    finish(job, "--retry-failed", sent=len(failed))
    assert [row["id"] for row in job.results()] == places
    assert {name for name, text in texts(job).items() if text != old[name]} == set(failed)
    assert all(belongs(row, ask(json.loads(row["input"]))) for row in job.results())
    assert job.proof().failed == 0
    finish(job, "--retry-failed", sent=0)


def test_a_retry_that_fails_again_leaves_one_row(job: JobFolder, sims: Callable[..., Sim]) -> None:
    job.settings["retry"] = {"attempts": 1}
    job.sim = sims("--fault", "unavailable=1")
    for _ in range(2):
        result = job.execute("--retry-failed")
        assert result.code == 3
        assert result.summary["sent"] == result.summary["failed"] == 40
    assert job.proof().rows == 40


@pytest.mark.parametrize("loss", ["deleted", "emptied"])
def test_a_lost_journal_costs_nothing(job: JobFolder, loss: str) -> None:
    """The rows are read back from the parts, and the run says so; an edit is still noticed afterwards."""
    job.settings["results"] = {"part_rows": 15}
    finish(job, "--limit", "30", sent=30)
    for file in job.run.path.glob("journal.sqlite*"):
        file.unlink()
    if loss == "emptied":
        job.run.journal.touch()
    job.sim.reset()
    result = job.execute()
    assert result.code == 0
    assert "30 rows: they were read from results/" in result.err
    assert job.sim.requests == 10
    assert job.proof().rows == 40
    job.settings["params"] = {"temperature": 0.5}
    assert "40 of 40 known prompts" in refused(job)


def test_a_damaged_journal_is_named_and_the_hint_works(job: JobFolder) -> None:
    finish(job, sent=40)
    job.run.journal.write_bytes(b"damaged" * 1000)
    damaged = job.execute()
    assert damaged.code == 1
    assert "journal.sqlite: unreadable: file is not a database" in damaged.err
    assert "move the journal files away and run the same line again" in damaged.err
    for file in job.run.path.glob("journal.sqlite*"):
        file.unlink()
    finish(job, sent=0)
    assert job.proof().rows == 40


def test_a_vanished_part_is_not_nothing_to_send(job: JobFolder) -> None:
    job.settings["results"] = {"part_rows": 15}
    finish(job, sent=40)
    job.run.parts[1].unlink()
    result = job.execute()
    assert result.code == 1
    assert "part-00001.parquet: missing, and 15 answered rows with it" in result.err


def test_fresh_starts_over(job: JobFolder) -> None:
    """Everything is sent again, and nothing of the run before is left."""
    job.settings["results"] = {"part_rows": 10}
    finish(job, sent=40)
    job.rows(questions(50)[30:])
    finish(job, "--fresh", sent=20)
    assert job.proof().orphaned == 0
    assert len(job.results()) == 20


def test_the_folder_of_another_job_is_refused(job: JobFolder) -> None:
    """Different rows altogether: nothing is mixed in, with or without a journal."""
    finish(job, sent=40)
    job.rows([{"question": f"Another question {n}?"} for n in range(40)])
    assert "belongs to another job: none of its 40 rows comes from this input" in refused(job)
    assert "belongs to another job" in refused(job, "--changed", "keep")
    job.rows(questions(40))
    finish(job, sent=0)


def test_files_that_are_not_ours_are_left_alone(job: JobFolder) -> None:
    """`--output` on a folder that is in use for something else overwrites and deletes nothing, even with --fresh."""
    theirs = [job.run.path / name for name in ("results/mine.parquet", "results/note.txt", "staging/a.parquet")]
    for file in theirs:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
    for extra in ((), (), ("--fresh",)):
        result = job.execute(*extra)
        assert result.code == 1
        assert "mine.parquet: not a" in result.err
        assert all(file.read_text() == "mine" for file in theirs)
    theirs.pop(0).unlink()
    assert job.execute("--fresh").code == 0
    assert all(file.read_text() == "mine" for file in theirs)


@pytest.mark.parametrize("how", ["another address", "CEREBRAS_BASE_URL is the real one"])
def test_answers_of_the_simulator_and_of_a_server_elsewhere_never_mix(job: JobFolder, how: str) -> None:
    """In both directions, before a key is looked for and before anything is sent."""
    finish(job, "--limit", "5", sent=5)
    remote = "https://api.example.com" if how == "another address" else ""
    said = refused(job, to=remote, key=None)
    assert "holds answers from a local server" in said
    assert "and this run would add answers from https://api." in said
    with closing(sqlite3.connect(job.run.journal)) as db:  # as if the first rows had come from there
        db.execute("UPDATE meta SET v=? WHERE k='endpoint'", (json.dumps("https://api.cerebras.ai/v1").encode(),))
        db.commit()
    said = refused(job, "--sim", to="")
    assert "holds answers from https://api.cerebras.ai/v1, and this run would add answers from a local server" in said


def test_carried_columns_cannot_change_halfway(job: JobFolder) -> None:
    """All parts of a dataset have the same columns."""
    finish(job, "--limit", "5", sent=5)
    job.settings["results"] = {"carry": ["question"]}
    assert "its rows carry nothing, and this job carries question (string)" in refused(job)


def test_a_lost_run_json_is_written_again(job: JobFolder) -> None:
    finish(job, sent=40)
    job.run.info_file.unlink()
    finish(job, sent=0)
    assert job.run.read_info()["state"] == "finished"
    job.run.info_file.write_text("{ broken")
    finish(job, sent=0)
    assert job.run.read_info()["total"] == 40


def test_one_bad_row_does_not_refuse_a_job_of_many_samples(job: JobFolder) -> None:
    """It is the template that is tried out on the first rows, not the first row on every sample."""
    job.rows([{"other": 1}, *questions(3)])
    job.settings["samples"] = 20
    result = job.execute()
    assert result.code == 3, result.err
    assert (result.summary["done"], result.summary["failed"]) == (60, 20)


def test_a_run_that_finds_no_key_was_not_killed(job: JobFolder) -> None:
    """Nothing was sent: the state says stopped, no session is added, and the next start adds only its own."""
    assert job.execute(key=None, to="http://api.example.invalid").code == 1
    info = job.run.read_info()
    assert (info["state"], info["sessions"]) == ("stopped", [])


def test_ctrl_c_does_not_read_the_rest_of_the_input(job: JobFolder, sims: Callable[..., Sim]) -> None:
    """Where no known row is left to be counted, a file that is long, or gone, is of no interest."""
    job.sim = sims("--speed", "1")
    first = "import cbatch.feed; cbatch.feed.Pending.exhaust = lambda self: open('exhausted', 'w').close()"
    process = job.start(first=first)
    wait_for(lambda: job.durable, "a row")
    process.signal(signal.SIGTERM)
    assert process.wait().code == 143
    assert not (job.path / "exhausted").exists()
