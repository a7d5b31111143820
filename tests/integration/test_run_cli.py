"""`cbatch run` as a user meets it: exit codes, messages, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import PIPELINE, JobFolder, Sim, ask, belongs, questions, wait_for


def test_a_clone_runs_uninstalled_with_its_own_simulator(tmp_path: Path) -> None:
    """`python -m cbatch run JOB --sim` needs no key, no network and no installation."""
    (tmp_path / "rows.jsonl").write_text('{"q": "Why?"}\n{"q": "How?"}\n')
    (tmp_path / "job.yaml").write_text('model: gpt-oss-120b\ninput: rows.jsonl\nprompt: "{{ q }}"\n')
    done = subprocess.run(
        [sys.executable, "-m", "cbatch", "run", "job.yaml", "--sim", "--json"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(PIPELINE)},
        capture_output=True,
        timeout=60,
        check=True,
    )
    summary = json.loads(done.stdout)
    assert (summary["done"], summary["exit_code"]) == (2, 0)
    assert (tmp_path / "runs" / "job" / "results" / "part-00000.parquet").exists()


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT ends with 130", "SIGTERM with 143"]
)
def test_a_signal_drains(job: JobFolder, sims: Callable[..., Sim], signum: int, code: int) -> None:
    """No new prompts; what was sent is answered, saved and in a part; nothing is paid twice; the same line resumes."""
    job.sim = sims("--speed", "5")
    job.rows(questions(300))
    process = job.start()
    wait_for(lambda: job.durable >= 20, "20 rows")
    process.signal(signum)
    ended = process.wait()
    assert ended.code == code
    assert ended.summary["state"] == "interrupted"
    assert ended.summary["done"] == job.durable == job.sim.requests == len(job.results()) < 300
    last = job.execute()
    assert last.code == 0
    assert last.summary["paid_twice_at_most"] == 0
    assert job.sim.requests == job.proof().rows == 300


def test_an_interrupted_run_counts_only_prompts_of_its_input(job: JobFolder, sims: Callable[..., Sim]) -> None:
    """Rows that left the input are orphans: they are not `done`, and what is left is never negative."""
    assert job.execute().code == 0
    job.sim = sims("--speed", "5")
    job.rows(questions(300)[30:])
    process = job.start()
    wait_for(lambda: job.durable >= 60, "20 new rows")
    process.signal(signal.SIGINT)
    summary = process.wait().summary
    assert (summary["total"], summary["done"]) == (270, job.durable - 30)
    assert summary["left"] == 270 - summary["done"]


def test_a_second_signal_does_not_wait_for_answers(job: JobFolder, sims: Callable[..., Sim]) -> None:
    """What was on the wire is given up, and the next start says that it may be paid twice."""
    job.sim = sims("--fault", "stall=1")  # every answer takes 30 s
    say = "import sys, cbatch.engine as e\nreal = e.Run.drain\n"
    say += "def drain(run):\n    real(run)\n    print('draining', file=sys.stderr, flush=True)\ne.Run.drain = drain\n"
    process = job.start(first=say)
    wait_for(lambda: job.sim.requests == 16, "all workers to be waiting")
    process.signal(signal.SIGINT)
    wait_for(lambda: "draining" in process.err, "the first signal to be heard")
    assert process.ended is None
    process.signal(signal.SIGINT)
    began = time.monotonic()
    process.wait()
    assert time.monotonic() - began < 10
    assert process.wait().code == 130
    assert job.durable == 0
    job.sim = sims("--speed", "inf")
    last = job.execute()
    assert last.code == 0
    assert last.summary["paid_twice_at_most"] == 16
    assert job.proof().rows == 40


def test_a_signal_while_all_wait_for_a_retry_ends_at_once(job: JobFolder, sims: Callable[..., Sim]) -> None:
    """A prompt that only waits has no answer to wait for."""
    job.sim = sims("--fault", "unavailable=1")
    job.settings["retry"] = {"attempts": 50}
    process = job.start()
    wait_for(lambda: job.sim.requests >= 32, "second attempts")
    process.signal(signal.SIGINT)
    began = time.monotonic()
    assert process.wait().code == 130
    assert time.monotonic() - began < 5


def test_a_row_that_cannot_be_read_is_an_error_row_with_its_line(job: JobFolder) -> None:
    """The others run; exit 3; it counts neither as sent nor as paid."""
    rows: list[Any] = questions(1200)
    rows[999] = '{"question": "cut'
    job.rows(rows)
    job.settings["limits"] = {"concurrency": 64}
    result = job.execute()
    assert result.code == 3
    assert (result.summary["done"], result.summary["failed"], result.summary["sent"]) == (1199, 1, 1199)
    (bad,) = [row for row in job.results() if row["status"] == "error"]
    assert (bad["error_kind"], bad["index"], bad["input"]) == ("source", 999, rows[999])
    assert "rows.jsonl:1000: not valid JSON" in bad["error_message"]
    assert job.execute().code == 3
    assert job.sim.requests == 1199
    assert job.proof().rows == 1200


def test_a_row_that_the_template_does_not_fit_is_an_error_row(job: JobFolder) -> None:
    rows: list[Any] = questions(30)
    rows[7] = {"other": "column"}
    job.rows(rows)
    result = job.execute()
    assert result.code == 3
    (bad,) = [row for row in job.results() if row["status"] == "error"]
    assert bad["error_kind"] == "render"
    assert "rows.jsonl:8: 'question' is undefined; the row has: other" in bad["error_message"]


@pytest.mark.parametrize(
    ("fail_if", "code"),
    [("errors > 2", 0), ("errors > 1", 3), ("errors > 5%", 0), ("errors > 4%", 3), (None, 3)],
)
def test_fail_if_decides_between_0_and_3(job: JobFolder, fail_if: str | None, code: int) -> None:
    """2 of 40 rows are broken, which is 5 %; the default is that any failure is too many."""
    job.rows([*questions(38), "not json", "[1]"])
    job.settings |= {"fail_if": fail_if} if fail_if else {}
    assert job.execute().code == code
    assert job.execute().code == code  # the same verdict when there is nothing left to do


def test_a_refused_key_stops_the_run_and_records_nothing(job: JobFolder) -> None:
    """A wrong key is not a property of the prompts: with the right one all of them run."""
    result = job.execute(key="wrong-key")
    assert result.code == 1
    assert "401" in result.err
    assert "hint: the key was refused" in result.err
    assert "wrong-key" not in result.err + result.out
    assert (job.durable, job.results()) == (0, [])
    assert job.execute().code == 0
    assert job.proof().rows == 40
    assert b"wrong-key" not in b"".join(f.read_bytes() for f in job.run.path.rglob("*") if f.is_file())


def test_a_model_that_is_not_served_is_a_wrong_job(job: JobFolder) -> None:
    job.settings["model"] = "gpt-oss-120"
    result = job.execute()
    assert result.code == 2
    assert "'gpt-oss-120' is not served" in result.err
    assert "did you mean gpt-oss-120b?" in result.err
    assert job.durable == 0


@pytest.mark.parametrize("concurrency", [1, 1000])
def test_every_concurrency_gives_every_row_its_own_answer(job: JobFolder, concurrency: int) -> None:
    count = 20 if concurrency == 1 else 1200
    job.rows(questions(count))
    job.settings["limits"] = {"concurrency": concurrency}
    result = job.execute()
    assert result.code == 0
    assert job.sim.requests == count
    assert job.sim.stats()["max_in_flight"] <= concurrency
    assert all(belongs(row, ask(json.loads(row["input"]))) for row in job.results())
    assert job.proof().rows == count


def test_faults_that_pass_cost_no_row(job: JobFolder, sims: Callable[..., Sim]) -> None:
    """Whatever goes wrong on the way, every prompt is tried again until it has its own answer, and is asked no more."""
    faults = ["queue_exceeded", "timeout_408", "server_error", "unavailable", "bad_gateway_html", "html_200"]
    faults += ["empty_body_200", "drop_before", "drop_mid", "malformed_json", "close_connection"]
    job.sim = sims("--speed", "inf", *(part for fault in faults for part in ("--fault", f"{fault}=0.05")))
    job.rows(questions(300))
    job.settings["retry"] = {"attempts": 30, "max_wait_s": 0.01}
    result = job.execute()
    assert result.code == 0, result.err
    assert set(job.sim.stats()["faults"]) == set(faults)
    assert all(belongs(row, ask(json.loads(row["input"]))) for row in job.results())
    assert job.proof().rows == 300
    assert job.sim.requests == result.summary["sent"] == sum(row["attempts"] for row in job.results())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"modle": "x"}, "modle"),
        ({"prompt": "{{ nothing }}"}, "none of the first 20 rows can be rendered"),
        ({"input": "missing.jsonl"}, "missing.jsonl: no such file"),
    ],
    ids=["an unknown key", "a template that fits no row", "an input that is not there"],
)
def test_a_wrong_job_leaves_no_trace(job: JobFolder, change: dict[str, Any], said: str) -> None:
    """Exit 2, nothing sent, and no folder made."""
    job.settings |= change
    result = job.execute()
    assert result.code == 2
    assert said in result.err
    assert not job.run.path.exists()
    assert job.sim.requests == 0
