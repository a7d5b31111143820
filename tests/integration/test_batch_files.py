"""Provider batch files, through real processes: in as they are, out as the provider's own clients read them."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from tests.integration.conftest import PIPELINE, Forking, JobFolder, Result, Sim, belongs, wait_for

MODEL, OTHER = "gpt-oss-120b", "qwen-3.8-27b"


def chat(number: int, **body: Any) -> dict[str, Any]:
    return {
        "custom_id": f"c{number}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": MODEL, "messages": [{"role": "user", "content": f"Question {number}?"}], **body},
    }


def response(number: int, **body: Any) -> dict[str, Any]:
    return {
        "custom_id": f"r{number}",
        "method": "POST",
        "url": "/v1/responses",
        "body": {"model": MODEL, "instructions": "Be brief.", "input": f"Question {number}?", **body},
    }


@pytest.fixture
def batch(job: JobFolder) -> JobFolder:
    """A job of two lines of YAML over a batch file of 20 lines for each endpoint, to two models, shuffled."""
    job.settings = {"input": "rows.jsonl", "output": str(job.run.path), "limits": {"concurrency": 16}}
    lines = [chat(n) for n in range(15)] + [chat(n, model=OTHER, temperature=0.5) for n in range(15, 20)]
    lines += [response(n) for n in range(20)]
    random.Random(7).shuffle(lines)
    job.rows(lines)
    return job


@pytest.fixture
def export(forking: Forking, tmp_path: Path) -> Callable[..., Result]:
    def call(job: JobFolder, *args: str) -> Result:
        return forking.start(["export", str(job.run.path), *args], key=None, cwd=tmp_path).wait()

    return call


def lines_of(text: str) -> dict[Any, dict[str, Any]]:
    """Result lines by custom_id, each there once."""
    found = [json.loads(line) for line in text.split("\n")[:-1]]
    by_id = {line["custom_id"]: line for line in found}
    assert len(by_id) == len(found)
    assert len({line["id"] for line in found}) == len(found)
    return by_id


def check(custom_id: str, line: dict[str, Any]) -> None:
    """A result line is of the right kind for its request, as the openai package reads it, and answers that one."""
    assert line["error"] is None
    assert line["response"]["status_code"] == 200
    body = line["response"]["body"]
    if custom_id.startswith("c"):
        completion = ChatCompletion.model_validate(body)
        text = completion.choices[0].message.content
        assert completion.usage is not None
        assert line["response"]["request_id"] == completion.id
    else:
        answer = Response.model_validate(body)
        text = answer.output_text
        assert (answer.status, answer.instructions) == ("completed", "Be brief.")
        assert answer.usage is not None
    assert belongs({"text": text}, f"Question {custom_id[1:]}?")


def test_a_batch_file_goes_in_as_it_is_and_comes_out_as_the_providers_result_lines(
    batch: JobFolder, export: Callable[..., Result]
) -> None:
    result = batch.execute()
    assert result.code == 0, result.err
    assert (result.summary["done"], batch.sim.requests) == (40, 40)
    batch.proof()
    models = {row["id"]: row["model"] for row in batch.results()}
    assert {name for name, model in models.items() if model == OTHER} == {f"c{n}" for n in range(15, 20)}
    done = export(batch, "-", "--format", "openai-batch")
    assert (done.code, done.err) == (0, "40 rows -> stdout\n")
    found = lines_of(done.out)
    assert set(found) == {f"{kind}{n}" for kind in "cr" for n in range(20)}
    for custom_id, line in found.items():
        check(custom_id, line)
    assert lines_of(export(batch, "-", "--format", "openai-batch").out) == found, "the same each time"


def test_the_same_line_again_knows_a_batch_files_answers(batch: JobFolder) -> None:
    batch.execute("--limit", "11")
    batch.sim.reset()
    result = batch.execute()
    assert (result.code, result.summary["done"], batch.sim.requests) == (0, 40, 29)
    batch.sim.reset()
    assert (batch.execute().code, batch.sim.requests) == (0, 0)


def test_lines_appended_while_it_runs_wait_for_the_next_start(batch: JobFolder, sims: Callable[..., Sim]) -> None:
    """Those of each model: a run is over the lines that it surveyed."""
    batch.sim = sims("--speed", "5")
    batch.rows([chat(n, model=(MODEL, OTHER)[n % 2]) for n in range(120)])
    process = batch.start()
    wait_for(lambda: batch.durable >= 20 or process.ended is not None, "20 rows")
    with (batch.path / "rows.jsonl").open("a") as file:
        file.writelines(json.dumps(chat(n, model=(MODEL, OTHER)[n % 2])) + "\n" for n in range(120, 130))
    summary = process.wait().summary
    assert (summary["total"], summary["done"], summary["left"]) == (120, 120, 0)
    result = batch.execute()
    assert (result.code, result.summary["total"], result.summary["done"]) == (0, 130, 130)
    assert batch.proof().rows == 130


def test_wrong_lines_are_error_lines_and_the_others_are_answered(
    batch: JobFolder, export: Callable[..., Result], tmp_path: Path
) -> None:
    """Whoever reads the file with the answers and the file with the errors has read every line once."""
    wrong: dict[str, Any] = {
        "url": {**chat(100), "url": "/v1/embeddings"},
        "method": {**chat(100), "method": "GET"},
        "body": {**chat(100), "body": "text"},
        "stream": chat(100, stream=True),
        "n": chat(100, n=2),
        "model": {**chat(100), "body": {"messages": []}},
        "input": {**response(100), "body": {"model": MODEL, "input": 5}},
        "refused": chat(100, temperature=99),
    }
    wrong = {name: {**line, "custom_id": name} for name, line in wrong.items()}
    nameless = {key: value for key, value in chat(100).items() if key != "custom_id"}
    batch.rows([chat(0), *wrong.values(), nameless, response(1)])
    result = batch.execute()
    assert (result.code, result.summary["done"], result.summary["failed"]) == (3, 2, 9)
    batch.proof()
    for status, count in (("ok", 2), ("error", 9)):
        file = tmp_path / f"{status}.jsonl"
        done = export(batch, str(file), "--format", "openai-batch", "--status", status)
        assert (done.code, done.err) == (0, f"{count} rows -> {file}\n")
    answered = lines_of((tmp_path / "ok.jsonl").read_text())
    assert set(answered) == {"c0", "r1"}
    for custom_id, line in answered.items():
        check(custom_id, line)
    failed = lines_of((tmp_path / "error.jsonl").read_text())
    assert failed.keys() == {*wrong, None}, "a line without a custom_id is given none"
    refused = failed.pop("refused")
    assert (refused["error"], refused["response"]["status_code"]) == (None, 400)
    assert "temperature" in refused["response"]["body"]["error"]["message"]
    for line in failed.values():
        assert line["response"] is None
        assert line["error"]["code"] == "invalid_request"
        assert "rows.jsonl:" in line["error"]["message"], "the line of the file"
    kinds = {row["error_kind"] for row in batch.results()}
    assert {"source", "render"} < kinds, "the columns tell them apart"


def test_a_model_in_job_yaml_runs_a_file_that_was_made_for_another_provider(
    batch: JobFolder, export: Callable[..., Result]
) -> None:
    batch.rows([chat(0, model="gpt-4o-mini"), response(1, model="gpt-5")])
    assert batch.execute().code == 3
    result = batch.execute("--fresh", "--set", f"model={MODEL}")
    assert result.code == 0, result.err
    for custom_id, line in lines_of(export(batch, "-", "--format", "openai-batch").out).items():
        assert line["response"]["body"]["model"] == MODEL
        check(custom_id, line)


def test_lines_for_a_model_that_is_not_served_fail_and_the_others_are_answered(
    batch: JobFolder, export: Callable[..., Result]
) -> None:
    """As a file for OpenAI has them. Not one request for each: once the server's list has said no, they fail unsent."""
    unserved = [chat(n, model="gpt-4o-mini") for n in range(100, 160)]
    batch.rows([line for pair in zip(unserved, [chat(n) for n in range(60)], strict=True) for line in pair])
    batch.settings["limits"] = {"concurrency": 4}
    result = batch.execute()
    assert (result.code, result.summary["done"], result.summary["failed"]) == (3, 60, 60)
    assert result.summary["errors"] == {"not_found": 60}
    assert 61 <= batch.sim.requests <= 64, "the answers, and what was on the wire at the first 404"
    assert "'gpt-4o-mini' is not served" in result.err
    assert "its 60 prompts fail" in result.err
    batch.proof()
    rows = [row for row in batch.results() if row["status"] == "error"]
    assert {(row["error_kind"], row["error_code"], row["model"]) for row in rows} == {
        ("not_found", "model_not_found", "gpt-4o-mini")
    }
    assert {(row["http_status"], row["attempts"]) for row in rows} == {(404, 1), (None, 0)}
    for row in rows:
        number = 2 * (int(row["id"][1:]) - 100) + 1
        assert row["error_message"].startswith(f"rows.jsonl:{number}: body.model: 'gpt-4o-mini' is not served")
        assert f"write `model: {MODEL}` in job.yaml" in row["error_message"]
    for line in lines_of(export(batch, "-", "--format", "openai-batch", "--status", "error").out).values():
        error = line["error"] or line["response"]["body"]["error"]
        assert error["code"] == "model_not_found"
    batch.sim.reset()
    assert (batch.execute().code, batch.sim.requests) == (3, 0), "known"
    result = batch.execute("--set", f"model={MODEL}")
    assert (result.code, result.summary["done"], batch.sim.requests) == (0, 120, 60), "as the hint said"


def test_a_file_for_one_model_that_is_not_served_stops_with_the_way_out(batch: JobFolder) -> None:
    """No line of it can be answered, and nothing is recorded: the file runs once job.yaml says where to."""
    batch.rows([chat(n, model="gpt-4o-mini") for n in range(30)])
    result = batch.execute()
    assert result.code == 2
    assert "rows.jsonl:" in result.err
    assert "body.model: 'gpt-4o-mini' is not served" in result.err
    assert f"hint: write `model: {MODEL}` in job.yaml" in result.err
    assert "resumes" not in result.err
    result = batch.execute("--set", f"model={MODEL}")
    assert (result.code, result.summary["done"]) == (0, 30)


def test_a_model_of_job_yaml_that_is_not_served_stops_a_batch_file_as_any_job(batch: JobFolder) -> None:
    result = batch.execute("--set", "model=[gpt-4o-mini, gpt-oss-120b]")
    assert result.code == 2
    assert "error: model: 'gpt-4o-mini' is not served" in result.err


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(("full", "rows"), [(False, 40), (True, 1)])
def test_rows_that_stdout_has_no_room_for_are_an_error(
    batch: JobFolder, tmp_path: Path, unbuffered: str, full: bool, rows: int
) -> None:
    """With a buffer, where few rows stay in it until the end, and without, where a part is taken and nothing said."""
    batch.execute("--limit", str(rows))
    most = 40_000  # bytes: SQLite needs 32 KB of them, and 40 rows are more
    code = f"""
import resource
from cbatch.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, {most}))
main()
"""
    command = [sys.executable, "-B", "-c", code, "export", str(batch.run.path), "-"]  # -B: or bytecode is cut as well
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PIPELINE), "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full" if full else tmp_path / "cut").open("wb") as file:
        done = subprocess.run(command, env=env, stdout=file, stderr=subprocess.PIPE, text=True, check=False)
    reason = "No space left on device" if full else "File too large"
    hint = "hint: free some space; the run itself is untouched"
    assert (done.returncode, done.stderr) == (1, f"error: stdout: {reason}\n{hint}\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_what_a_pipe_takes_is_not_counted(batch: JobFolder, unbuffered: str) -> None:
    """`… | head` says nothing, like any program: who reads may go before the end, and after it nobody could tell."""
    batch.execute()
    command = [sys.executable, "-m", "cbatch", "export", str(batch.run.path), "-"]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PIPELINE), "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 40)
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_cerebras_result_lines_have_a_status_and_a_completion(batch: JobFolder, export: Callable[..., Result]) -> None:
    batch.rows([chat(0), response(1), chat(2, temperature=99)])
    batch.execute()
    done = export(batch, "-", "--format", "cerebras-batch")
    found = {line["custom_id"]: line for line in map(json.loads, done.out.splitlines())}
    assert {name: line["status"] for name, line in found.items()} == {
        "c0": "succeeded",
        "r1": "succeeded",
        "c2": "failed",
    }
    for name in ("c0", "r1"):
        text = ChatCompletion.model_validate(found[name]["response"]).choices[0].message.content
        assert belongs({"text": text}, f"Question {name[1:]}?")
    assert set(found["c2"]["error"]) == {"code", "message"}


def test_a_killed_run_is_exported_as_far_as_it_came_and_goes_on(
    batch: JobFolder, sims: Callable[..., Sim], export: Callable[..., Result]
) -> None:
    """Before a kill, after it, and after the resume: every row that is durable, once."""
    batch.sim = sims("--speed", "3")
    batch.rows([chat(n) for n in range(150)] + [response(n) for n in range(150)])
    batch.settings["results"] = {"part_rows": 40}
    batch.settings["limits"] = {"concurrency": 8}
    process = batch.start()
    wait_for(lambda: batch.durable >= 100 or process.ended is not None, "100 rows")
    before = batch.durable
    live = lines_of(export(batch, "-", "--format", "openai-batch").out)
    after = batch.durable
    assert process.ended is None, process.err
    assert before <= len(live) <= after
    process.kill()
    known = batch.durable
    killed = lines_of(export(batch, "-", "--format", "openai-batch").out)
    assert live.keys() <= killed.keys()
    assert len(killed) == known < 300
    result = batch.execute()
    assert result.code == 0, result.err
    found = lines_of(export(batch, "-", "--format", "openai-batch").out)
    assert set(found) == {f"{kind}{n}" for kind in "cr" for n in range(150)}
    assert {name: found[name] for name in killed} == killed, "answers that were there stay as they were"
    for custom_id, line in found.items():
        check(custom_id, line)


def test_rows_are_exported_from_a_run_that_had_no_batch_file(job: JobFolder, export: Callable[..., Result]) -> None:
    """Two samples each: the custom_id says which."""
    job.settings["samples"] = 2
    job.settings["results"] = {"carry": ["question"]}
    assert job.execute().code == 0
    rows = {f"{row['id']}:{row['sample']}": row for row in job.results()}
    found = lines_of(export(job, "-", "--format", "openai-batch").out)
    assert found.keys() == rows.keys()
    for name, line in found.items():
        read = ChatCompletion.model_validate(line["response"]["body"])
        assert read.choices[0].message.content == rows[name]["text"]
    done = export(job, str(job.path / "x.csv"))
    assert done.code == 0
    assert (job.path / "x.csv").read_text().partition("\n")[0].endswith(',"input","question"')
