"""The commands around `run`: what they print is what is there, as text and as one JSON object."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.conftest import Forking, JobFolder, Result, Sim, questions, wait_for

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
    assert (found["rows"], found["requests"], found["known_rows"]) == (40, 40, 0)
    model = found["models"][0]
    assert model["binding"] == "requests/min"
    assert model["seconds"]["requests/min"] == pytest.approx(240, rel=0.01)
    low, middle, high = model["cost_usd"]
    assert 0 < low < middle < high
    assert found["first_body"]["messages"][0]["content"].startswith("Solve.")
    assert "binds   10 requests/min" in cbatch("plan", path, key=None).out
    assert not job.run.path.exists()
    assert job.sim.requests == 0


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
