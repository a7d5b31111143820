"""`cbatch compare` as a user meets it: exit codes, what goes to stdout and stderr, and runs of the engine."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.integration.conftest import PIPELINE, Forking, JobFolder, Result, Sim, questions
from tests.made_runs import MadeBlock, made_batch, made_run

SPEED = ("--fail-on", "server_tokens_per_s < -3%")


@pytest.fixture
def cbatch(forking: Forking, tmp_path: Path) -> Callable[..., Result]:
    def run(*args: str | Path) -> Result:
        return forking.start([str(arg) for arg in args], key=None, cwd=tmp_path).wait()

    return run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """`base` and, in turns with it, `same`, `slow` and `failing`; `one` and `other` are single runs."""
    for name, speed, failed in (("base", 2_000, 0), ("same", 2_004, 0), ("slow", 1_900, 0), ("failing", 2_000, 4)):
        blocks = [
            MadeBlock(level=8, repeat=n, rows=100, speed=speed + 4 * n, failed=failed, spread=0.02) for n in range(6)
        ]
        made_run(tmp_path / name, blocks, seed=len(name), load={"interleaved_with": "base" if name != "base" else None})
    made_batch(tmp_path / "one", rows=80, seed=1)
    made_batch(tmp_path / "other", rows=80, models=["other"], seed=2)
    return tmp_path


@pytest.mark.parametrize(
    ("b", "gates", "code", "last"),
    [
        pytest.param("slow", SPEED, 5, "FAIL: 1 failed of 1 gate   exit 5", id="slower"),
        pytest.param("same", SPEED, 0, "PASS: 1 gate   exit 0", id="the same"),
        pytest.param("failing", ("--fail-on", "errors > +0.5pt"), 5, "FAIL: 1 failed of 1 gate   exit 5", id="failing"),
        pytest.param(
            "slow", ("--fail-on", "latency_s > +10%"), 0, "PASS: 1 gate   exit 0", id="within what is allowed"
        ),
        pytest.param("slow", (), 0, "no gates: nothing was demanded", id="no gate"),
    ],
)
def test_the_exit_code_is_the_verdict(
    runs: Path, cbatch: Callable[..., Result], b: str, gates: tuple[str, ...], code: int, last: str
) -> None:
    found = cbatch("compare", runs / "base", runs / b, *gates)
    assert (found.code, found.err) == (code, "")
    assert found.out.splitlines()[-1].startswith(last)
    assert max(map(len, found.out.splitlines())) <= 100
    assert "\x1b" not in found.out


def test_unlike_runs_are_exit_6_with_one_line_for_each_difference(runs: Path, cbatch: Callable[..., Result]) -> None:
    found = cbatch("compare", runs / "one", runs / "other", *SPEED)
    assert (found.code, found.out) == (6, "")
    assert "error: model: gpt-oss-120b in A, other in B  (--allow model)" in found.err
    assert "hint: --allow model compares them all the same" in found.err
    assert cbatch("compare", runs / "one", runs / "other", "--allow", "model").code == 0


@pytest.mark.parametrize(
    ("args", "says"),
    [
        pytest.param(("base", "base"), "the same run twice", id="the same run"),
        pytest.param(("base", "./base/"), "the same run twice", id="the same run by another name"),
        pytest.param(("base",), "one run alone", id="one run"),
        pytest.param((".", "base"), "runs in it: base, failing", id="the folder above"),
        pytest.param(("base", "nowhere"), "nowhere: not a run directory", id="no such folder"),
        pytest.param(("base", "slow", "--fail-on", "tfft_s > +1%"), "did you mean ttft_s?", id="a metric misspelt"),
        pytest.param(("base", "slow", "--allow", "modle"), "did you mean model?", id="a name misspelt"),
        pytest.param(("base", "slow", "same", "--against-history", "."), "goes with one or two runs", id="too many"),
        pytest.param(("base", "slow", "--format", "xml"), "'xml' is not one of", id="no such format"),
        pytest.param((), "Missing argument", id="no run"),
    ],
)
def test_wrong_usage_is_exit_2_and_says_what_to_do(
    runs: Path, cbatch: Callable[..., Result], args: tuple[str, ...], says: str
) -> None:
    found = cbatch("compare", *args)
    assert (found.code, found.out) == (2, "")
    assert says in found.err
    assert "hint: " in found.err


def test_strict_fails_what_is_not_decided(runs: Path, cbatch: Callable[..., Result]) -> None:
    made_batch(runs / "two", rows=80, seed=3)
    for extra, code in (((), 0), (("--strict",), 5)):
        found = cbatch("compare", runs / "one", runs / "two", *SPEED, *extra)
        assert found.code == code
        assert found.out.splitlines()[-1] == f"INCONCLUSIVE: 1 undecided of 1 gate   exit {code}"


def test_machines_read_the_same_verdict(runs: Path, cbatch: Callable[..., Result]) -> None:
    command = ("compare", runs / "base", runs / "slow", *SPEED)
    as_json, again = cbatch(*command, "--json"), cbatch(*command, "--format", "json")
    assert as_json.out == again.out
    assert (as_json.code, as_json.summary["verdict"], as_json.summary["exit_code"]) == (5, "FAIL", 5)
    junit = cbatch(*command, "--format", "junit")
    assert junit.code == 5
    assert len(ElementTree.fromstring(junit.out.partition("\n")[2]).findall(".//failure")) == 1
    markdown = cbatch(*command, "--format", "md")
    assert (markdown.code, markdown.out.splitlines()[0]) == (5, "**FAIL: 1 failed of 1 gate   exit 5**")


def test_machines_read_a_refusal_too(runs: Path, cbatch: Callable[..., Result]) -> None:
    """A file of a known form has the reason in it, whatever happened."""
    command = ("compare", runs / "one", runs / "other", *SPEED)
    found = cbatch(*command, "--json")
    assert (found.code, found.summary["verdict"], found.summary["differences"][0]["allow"]) == (6, "UNLIKE", "model")
    junit = cbatch(*command, "--format", "junit")
    assert junit.code == 6
    assert len(ElementTree.fromstring(junit.out.partition("\n")[2]).findall(".//error")) == 1


def test_github_gets_a_summary_and_annotations(runs: Path, tmp_path: Path, forking: Forking) -> None:
    summary = tmp_path / "summary.md"
    command = ["compare", str(runs / "base"), str(runs / "slow"), *SPEED, "--format", "github"]
    first = f"os.environ['GITHUB_STEP_SUMMARY'] = {str(summary)!r}"
    found = forking.start(command, key=None, cwd=tmp_path, first=first).wait()
    assert found.code == 5
    assert [line.split(" ")[0] for line in found.out.splitlines()] == ["::error", "::notice"]
    assert summary.read_text().startswith("**FAIL: 1 failed of 1 gate   exit 5**")
    bare = forking.start(command, key=None, cwd=tmp_path).wait()
    assert bare.out.startswith("**FAIL")
    assert bare.out.endswith(found.out)


def test_colours_are_for_terminals_and_never_alone(runs: Path) -> None:
    """Without its colours the text is the one that is piped."""
    command = [sys.executable, "-m", "cbatch", "compare", "base", "slow", *SPEED]
    env = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"PYTHONPATH": str(PIPELINE)}
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, cwd=runs, env=env, stdout=theirs)
    os.close(theirs)
    shown = b""
    while chunk := _read(ours):
        shown += chunk
    os.close(ours)
    assert process.wait(60) == 5
    assert b"\x1b[31m\x1b[1mFAIL\x1b[0m" in shown
    plain = subprocess.run(command, cwd=runs, env=env, capture_output=True, check=False)
    for code in (b"\x1b[31m", b"\x1b[32m", b"\x1b[33m", b"\x1b[1m", b"\x1b[0m", b"\r"):
        shown = shown.replace(code, b"")
    assert shown == plain.stdout


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 65_536)
    except OSError:  # Linux says EIO where the other end is closed
        return b""


def test_runs_of_the_engine_are_compared(job: JobFolder, cbatch: Callable[..., Result]) -> None:
    """Two batches, prompt by prompt: the simulator's answers are the same, so tokens and money are."""
    job.rows(questions(60))
    for name in ("a", "b"):
        job.settings["output"] = str(job.path / name)
        assert job.execute().code == 0
    gates = ("--fail-on", "completion_tokens > +1%", "--fail-on", "cost_usd > +1%")
    found = cbatch("compare", job.path / "a", job.path / "b", *gates)
    assert (found.code, found.err) == (0, "")
    assert "same 60 prompts" in found.out
    assert found.out.splitlines()[-1] == "PASS: 2 gates   exit 0"


def test_a_killed_run_is_refused_by_name(job: JobFolder, cbatch: Callable[..., Result], tmp_path: Path) -> None:
    made_batch(tmp_path / "whole", rows=30)
    made_batch(tmp_path / "killed", rows=30, state="running")
    found = cbatch("compare", tmp_path / "whole", tmp_path / "killed")
    assert found.code == 6
    assert "error: unfinished: killed is killed  (--allow unfinished)" in found.err


def test_repeats_in_turns_find_a_planted_slow_down(
    job: JobFolder, sims: Callable[..., Sim], cbatch: Callable[..., Result]
) -> None:
    """The engine runs two jobs block by block, one on a server that is slower by a fifth."""
    job.rows(questions(40))
    load = {"mode": "closed", "concurrency": 4, "warmup_s": 0.1, "duration_s": 0.6}
    job.settings |= {"params": {"stream": True, "max_completion_tokens": 64}, "load": load}
    job.settings.pop("limits")
    slower = job.settings | {"endpoint": sims("--speed", "0.8").url, "output": str(job.path / "b")}
    (job.path / "other.json").write_text(json.dumps(slower))
    job.settings |= {"endpoint": sims("--speed", "1").url, "output": str(job.path / "a")}
    done = job.execute("--repeat", "3", "--interleave", str(job.path / "other.json"), to="")
    assert done.code == 0, done.err
    gates = (*SPEED, "--fail-on", "errors > +50pt", "--fail-on", "completion_tokens > +20%")
    found = cbatch("compare", job.path / "a", job.path / "b", *gates, "--json")
    assert found.code == 5, found.out + found.err
    (pair,) = found.summary["comparisons"]
    assert (pair["design"], pair["pairs"]) == ("interleaved", 3)
    lines = {line["gate"]: line for line in pair["lines"] if line["gate"]}
    assert {gate: line["outcome"] for gate, line in lines.items()} == {
        SPEED[1]: "FAIL",
        "errors > +50pt": "PASS",
        "completion_tokens > +20%": "PASS",
    }
    assert lines[SPEED[1]]["change"] == pytest.approx(-0.2, abs=0.02)
