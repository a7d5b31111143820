"""The commands around `run`: what they print is what is there, as text and as one JSON object."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.conftest import PIPELINE, Forking, JobFolder, Result, Sim, questions, wait_for
from tests.integration.test_crash import die

KEY = "csk-0123456789abcdef-secret"


@pytest.fixture
def cbatch(forking: Forking, tmp_path: Path) -> Callable[..., Result]:
    def run(*args: str | Path, key: str | None = KEY) -> Result:
        return forking.start([str(arg) for arg in args], key=key, cwd=tmp_path).wait()

    return run


def test_status_of_a_finished_run(job: JobFolder, cbatch: Callable[..., Result]) -> None:
    job.execute()
    found = cbatch("status", job.run.path, "--json").summary
    assert (found["state"], found["done"], found["failed"], found["left"]) == ("finished", 40, 0, 0)
    assert (found["sent"], found["rows_in_parts"], found["sent_outcome_unknown_at_most"]) == (40, 40, 0)
    assert found["cost_usd"] > 0
    text = cbatch("status", job.run.path).out
    assert text.startswith("job: finished, 40 of 40 done, 0 failed, 0 left")


def test_status_while_it_runs_and_after_a_kill(
    job: JobFolder, sims: Callable[..., Sim], cbatch: Callable[..., Result]
) -> None:
    """Reading disturbs nothing; a killed run is called so, with what may have been paid for."""
    job.sim = sims("--speed", "1")
    job.rows(questions(400))
    job.settings["limits"] = {"concurrency": 8}
    process = job.start()
    wait_for(lambda: job.durable >= 10, "10 rows")
    found = cbatch("status", job.run.path, "--json").summary
    assert found["state"] == "running"
    assert found["done"] >= 10
    assert found["total"] == 400
    process.kill()
    found = cbatch("status", job.run.path, "--json").summary
    assert (found["state"], found["sent_outcome_unknown_at_most"]) == ("killed", 26)
    assert found["sent"] >= found["answered"] == found["done"]  # however old its last heartbeat
    assert "at most 26 prompts sent without a saved answer" in cbatch("status", job.run.path).out


def test_a_report_counts_every_row(job: JobFolder, cbatch: Callable[..., Result]) -> None:
    job.rows([*questions(20), "{broken", {"other": 1}])
    job.execute()
    found = cbatch("report", job.run.path, "--json").summary
    assert (found["rows"], found["ok"], found["failed"]) == (22, 20, 2)
    assert {error["kind"]: error["count"] for error in found["errors"]} == {"source": 1, "render": 1}
    speed = found["spreads"]["server_tokens_per_s"]
    assert speed["n"] == 20
    assert speed["p10"] <= speed["p50"] <= speed["p90"] <= speed["p99"]
    tokens = sum(row["completion_tokens"] or 0 for row in job.results())
    assert found["completion_tokens"] == tokens
    text = cbatch("report", job.run.path).out
    assert len(text.splitlines()) <= 25
    assert "rows.jsonl:21: not valid JSON" in text


def test_a_report_of_a_killed_run_has_the_rows_of_its_journal(
    job: JobFolder, sims: Callable[..., Sim], cbatch: Callable[..., Result]
) -> None:
    job.sim = sims("--speed", "1")
    job.rows(questions(300))
    process = job.start()
    wait_for(lambda: job.durable >= 20, "20 rows")
    process.kill()
    assert cbatch("report", job.run.path, "--json").summary["rows"] == job.durable


@pytest.mark.parametrize("step", ["write_part", "Publisher._finish"])
def test_a_report_has_the_rows_of_a_part_that_was_being_made(
    job: JobFolder, cbatch: Callable[..., Result], step: str
) -> None:
    """Killed before a planned part is there, or when it just is: every row is reported, and once."""
    kill = die(f"cbatch.publish:{step}", 1, before=step != "write_part")
    assert job.execute(first=kill).code == -signal.SIGKILL
    assert len(job.run.parts) == (step == "write_part")
    assert cbatch("report", job.run.path, "--json").summary["rows"] == job.durable == 40


def test_verify_finds_what_is_missing_and_what_was_changed(job: JobFolder, cbatch: Callable[..., Result]) -> None:
    job.settings["results"] = {"part_rows": 10}
    job.execute()
    assert cbatch("verify", job.run.path).code == 0
    first, second = job.run.parts[:2]
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    changed = cbatch("verify", job.run.path)
    assert changed.code == 1
    assert "sha-256 differs" in changed.out
    assert "more than one row" in changed.out
    assert "rows that are others in the journal: 10, for example" in changed.out
    assert len(changed.out.splitlines()) < 10
    first.write_bytes(kept)
    second.unlink()
    missing = cbatch("verify", job.run.path)
    assert missing.code == 1
    assert "missing, with 10 rows" in missing.out
    assert "prompts without a row: 10" in missing.out


def test_plan_sends_nothing_and_names_the_binding_limit(job: JobFolder, cbatch: Callable[..., Result]) -> None:
    job.settings["limits"] = {"rpm": 10, "tpm": 1_000_000}
    path = job.path / "job.yaml"
    path.write_text(json.dumps(job.settings))
    found = cbatch("plan", path, "--json", key=None).summary
    assert (found["rows"], found["requests"], found["known"]) == (40, 40, 0)
    model = found["models"][0]
    assert model["binding"] == "requests/min"
    assert model["seconds"]["requests/min"] == pytest.approx(240, rel=0.01)
    low, middle, high = model["cost_usd"]
    assert 0 < low < middle < high
    assert found["first_body"]["messages"][0]["content"].startswith("Solve.")
    assert "binds   10 requests/min" in cbatch("plan", path, key=None).out
    assert not job.run.path.exists()
    assert job.sim.requests == 0


def test_plan_of_a_run_that_exists_counts_what_is_left_and_what_was_edited(
    job: JobFolder, cbatch: Callable[..., Result]
) -> None:
    job.execute("--limit", "30")
    path = job.path / "job.yaml"
    found = cbatch("plan", path, "--json").summary
    assert (found["requests"], found["known"], found["edited"]) == (10, 30, 0)
    found = cbatch("plan", path, "--json", "--set", "params.temperature=1").summary
    assert (found["requests"], found["known"], found["edited"]) == (10, 0, 30)
    assert "30 answers edited since" in cbatch("plan", path, "--set", "params.temperature=1").out


def test_plan_says_which_requests_never_fit(job: JobFolder, cbatch: Callable[..., Result]) -> None:
    job.execute("--limit", "1")
    path = job.path / "job.yaml"
    changed = ("--set", "limits.tpm=1000", "--set", "params.max_completion_tokens=2000", "--output", "elsewhere")
    found = cbatch("plan", path, "--json", *changed).summary
    assert found["models"][0]["never_fit"] == 40
    assert "40 requests reserve more than 1,000 tokens" in cbatch("plan", path, *changed).out


def test_plan_refuses_what_run_refuses(job: JobFolder, cbatch: Callable[..., Result]) -> None:
    """With the file, the line and the key."""
    path = job.path / "job.yaml"
    path.write_text('model: gpt-oss-120b\ninput: rows.jsonl\nprompt: "{{ qestion }}"\n')
    refused = cbatch("plan", path)
    assert refused.code == 2
    assert f"{path}:3: prompt: none of the first 20 rows can be rendered; rows.jsonl:1: 'qestion' is" in refused.err


def test_silence_is_for_when_all_is_well(job: JobFolder, cbatch: Callable[..., Result]) -> None:
    """--quiet says nothing on success, and one line with the reason when the exit code is not 0."""
    job.execute()
    path = job.path / "job.yaml"
    well = cbatch("run", path, "--base-url", job.sim.url, "--quiet")
    assert (well.code, well.out, well.err) == (0, "", "")
    job.rows([*questions(40), "{broken"])
    failed = cbatch("run", path, "--base-url", job.sim.url, "--quiet")
    assert (failed.code, failed.out) == (3, "")
    assert "40 of 41 prompts done, 1 failed" in failed.err
    assert "--retry-failed" in failed.err


def test_an_error_is_an_object_too_with_json(cbatch: Callable[..., Result]) -> None:
    found = cbatch("run", "nothing.yaml", "--json")
    assert found.summary["exit_code"] == found.code == 2
    assert "no such file" in found.summary["error"]
    assert cbatch("run", "--json").summary["exit_code"] == 2


def test_a_reader_who_has_seen_enough_is_no_error(job: JobFolder) -> None:
    """`cbatch report RUN | head -1` ends with 0 and without a complaint."""
    job.execute()
    command = f"{sys.executable} -m cbatch schema | head -c 1; echo ${{PIPESTATUS[0]}}"
    env = {"PYTHONPATH": str(PIPELINE), "PATH": os.environ["PATH"]}
    ended = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("{0\n", "")


def test_a_signal_while_the_input_is_read_ends_at_once(job: JobFolder) -> None:
    """Nothing was sent, nothing is open: nobody has to wait for a large input to be read to its end."""
    hang = "import time, cbatch.source as s; s.Source.survey = lambda self: time.sleep(60)"
    process = job.start(first=hang)
    wait_for(lambda: process.ended is not None or _is_reading(process.pid), "the survey to start")
    process.signal(2)
    ended = process.wait()
    assert ended.code == 130
    assert "nothing was sent" in ended.err
    assert not job.run.path.exists()


def _is_reading(pid: int) -> bool:
    """Whether the survey runs: it has a thread of its own, started after the signal handlers are set."""
    return len(list(Path(f"/proc/{pid}/task").glob("*"))) > 1


def test_an_archived_run_can_be_read(job: JobFolder, cbatch: Callable[..., Result]) -> None:
    """status, report and verify write nothing, so a folder that may only be read is enough."""
    job.settings["input"] = str(job.path / "rows.jsonl")
    job.execute()
    code = (
        "import os, sys, cbatch.cli.status, cbatch.cli.report, cbatch.cli.verify, pyarrow.dataset\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "from cbatch.cli import main; main(sys.argv[1:])"
    )
    if os.getuid() != 0:
        pytest.skip("only root can become somebody who may not write here")
    for folder in [job.path, *job.path.parents]:
        if folder.is_relative_to(tempfile.gettempdir()) and folder != Path(tempfile.gettempdir()):
            folder.chmod(0o755)
    for path in [*job.run.path.rglob("*"), job.run.path]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    for command in ("status", "report", "verify"):
        found = subprocess.run(
            [sys.executable, "-c", code, command, str(job.run.path)],
            env={"PYTHONPATH": str(PIPELINE), "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.returncode == 0, found.stderr


def test_sessions_add_up_over_a_kill(job: JobFolder, sims: Callable[..., Sim], cbatch: Callable[..., Result]) -> None:
    """What a killed session sent is not forgotten: never fewer requests than rows."""
    job.sim = sims("--speed", "1")
    job.rows(questions(120))
    process = job.start()
    wait_for(lambda: job.durable >= 30, "30 rows")
    process.kill()
    kept = job.durable
    job.execute()
    found = cbatch("status", job.run.path, "--json").summary
    assert found["done"] == found["answered"] == 120
    assert found["sent"] >= 120
    assert found["rows_per_s"] <= 120 / found["elapsed_s"]
    first, second = job.run.read_info()["sessions"]
    assert (first["killed"], first["answered"], second["answered"]) == (True, kept, 120 - kept)


def test_a_run_that_had_nothing_to_do_keeps_the_figures_of_the_last(job: JobFolder) -> None:
    job.rows([*questions(20), "{broken"])
    assert job.execute().code == 3
    before = job.run.read_info()
    again = job.execute()
    assert again.code == 3
    assert again.summary["errors"] == {"source": 1}
    assert again.summary["completion_tokens"] == before["summary"]["completion_tokens"] > 0
    assert job.run.read_info() == before


def test_several_models_are_reported_apart(job: JobFolder, cbatch: Callable[..., Result]) -> None:
    job.settings["model"] = ["gpt-oss-120b", "qwen-3.8-27b"]
    job.execute()
    found = cbatch("report", job.run.path, "--json").summary
    assert {m: s["server_tokens_per_s"]["n"] for m, s in found["by_model"].items()} == {
        "gpt-oss-120b": 40,
        "qwen-3.8-27b": 40,
    }
    text = cbatch("report", job.run.path).out
    assert len(text.splitlines()) <= 25
    assert text.count("\n  qwen-3.8-27b") == 3


def test_without_the_input_nothing_is_proven(job: JobFolder, cbatch: Callable[..., Result]) -> None:
    job.execute()
    (job.path / "rows.jsonl").unlink()
    unproven = cbatch("verify", job.run.path)
    assert unproven.code == 1
    assert "missing prompts cannot be looked for" in unproven.out


def test_models_and_ping(sim: Sim, cbatch: Callable[..., Result]) -> None:
    listed = {model["id"]: model for model in cbatch("models", "--base-url", sim.url, "--json").summary["models"]}
    assert listed["gpt-oss-120b"]["input_usd"] == 0.35
    pinged = cbatch("ping", "--base-url", sim.url, "--json").summary
    assert pinged["completion_tokens"] > 0
    assert pinged["server_tokens_per_s"] > 0
    assert "gpt-oss-120b" in cbatch("models", "--base-url", sim.url + "/v1").out


@pytest.mark.parametrize("command", ["ping", "models"])
def test_a_wrong_key_is_told_with_what_to_do(sim: Sim, cbatch: Callable[..., Result], command: str) -> None:
    refused = cbatch(command, "--base-url", sim.url, key="wrong-key-123456")
    assert refused.code == 1
    assert "Wrong API Key" in refused.err
    assert "CEREBRAS_API_KEY" in refused.err
    assert "wrong-key-123456" not in refused.err


def test_without_a_key_the_message_says_where_it_was_looked_for(job: JobFolder) -> None:
    refused = job.execute(key=None, to="https://api.cerebras.ai")
    assert refused.code == 1
    for place in ("--api-key-file", "CEREBRAS_API_KEY", ".env.local", "api_key"):
        assert place in refused.err


@pytest.mark.parametrize("place", ["file", "env.local", "env", "config"])
def test_the_key_is_found_in_every_place(job: JobFolder, place: str) -> None:
    """The simulator refuses a request without a key, so an answer is the proof."""
    options: list[str] = []
    if place == "file":
        (job.path / "key.txt").write_text(f"{KEY}\n")
        options = ["--api-key-file", str(job.path / "key.txt")]
    elif place == "config":
        folder = job.path / "home" / ".config" / "cerebras"
        folder.mkdir(parents=True)
        (folder / "api_key").write_text(f"{KEY}\n")
    else:
        (job.path / f".{place}").write_text(f'export CEREBRAS_API_KEY="{KEY}"\n')
    assert job.execute(*options, key=None).code == 0


@pytest.mark.parametrize(
    "key", ["abc\ndef", "abc\n", "abc def", "schlüssel"], ids=["newline", "newline at the end", "space", "no ASCII"]
)
def test_a_key_that_cannot_be_one_is_refused_unsaid(job: JobFolder, key: str) -> None:
    refused = job.execute(key=key)
    assert refused.code == 1
    assert "CEREBRAS_API_KEY" in refused.err
    assert key.strip() not in refused.err


def test_the_key_is_nowhere_in_what_a_run_leaves(job: JobFolder, sims: Callable[..., Sim]) -> None:
    """Not in the journal, the parts, run.json or any output, failures included; and the journal is ours alone."""
    job.sim = sims("--fault", "server_error=0.5", "--fault", "malformed_json=0.2", "--speed", "inf")
    job.settings["retry"] = {"attempts": 1}
    result = job.execute(key=KEY)
    assert result.summary["failed"] > 0
    files = [path for path in job.run.path.rglob("*") if path.is_file()]
    assert len(files) >= 4
    for path in files:
        assert KEY.encode() not in path.read_bytes(), path
    assert KEY not in result.out + result.err
    assert stat.S_IMODE(job.run.journal.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("args", "said"),
    [
        pytest.param(["status", "nowhere"], "not a run directory", id="status of nothing"),
        pytest.param(["report", "nowhere"], "not a run directory", id="report of nothing"),
        pytest.param(["run", "nothing.yaml"], "no such file", id="a job file that is not there"),
        pytest.param(["rnu"], "Did you mean 'run'", id="a misspelled command"),
        pytest.param(["sim", "--fault", "sever_error=0.1"], "server_error", id="a misspelled fault"),
        pytest.param(["sim", "--fault", "500=2"], "from 0 to 1", id="a probability above 1"),
        pytest.param(["run", "j.yaml", "--limit", "0"], "0 is not in the range", id="a limit of 0"),
    ],
)
def test_wrong_usage_is_one_clear_message(cbatch: Callable[..., Result], args: list[str], said: str) -> None:
    result = cbatch(*args)
    assert result.code in (1, 2)
    assert said in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_does_not_fit_is_an_error(tmp_path: Path, unbuffered: str) -> None:
    """Also with PYTHONUNBUFFERED, where Python itself takes half a write for a whole one."""
    command = f'ulimit -f 4; exec "{sys.executable}" -B -m cbatch schema > out'
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PIPELINE), "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(["bash", "-c", command], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "stdout: cannot be written: File too large" in done.stderr
