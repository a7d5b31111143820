"""What a run finds out about an account and remembers, and what it shares with other processes of the same key."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Forking, JobFolder, Process, Result, Sim, questions, wait_for

Sims = Callable[..., Sim]
Beside = Callable[[JobFolder, str], JobFolder]
MODEL = "gpt-oss-120b"
GAP_S = 60 / 1200  # between requests at 1,200/min


@pytest.fixture
def beside(tmp_path: Path, forking: Forking) -> Iterator[Beside]:
    """`beside(job, "other")` is the same job in another folder, of the same user: both have one HOME."""
    made: list[JobFolder] = []

    def make(job: JobFolder, name: str) -> JobFolder:
        other = JobFolder(tmp_path / name, forking, job.sim)
        (job.path / "home").mkdir(exist_ok=True)
        (other.path / "home").symlink_to(job.path / "home")
        (other.path / "rows.jsonl").write_text((job.path / "rows.jsonl").read_text())
        other.settings = job.settings | {"output": str(other.run.path)}
        made.append(other)
        return other

    yield make
    for other in made:
        other.close()


def finished(process: Process, rows: int, refused: int = 0) -> dict[str, Any]:
    """The summary of a run in which every row was answered, and no more than so many requests met a 429."""
    return well(process.wait(), rows, refused)


def well(result: Result, rows: int, refused: int = 0) -> dict[str, Any]:
    summary = result.summary
    assert (result.code, summary["done"], summary["failed"]) == (0, rows, 0), result.err
    assert summary["rate_limited"] <= refused
    return summary


def plan(job: JobFolder, forking: Forking, *args: str) -> str:
    """What `cbatch plan` prints."""
    command = ["plan", str(job.path / "job.yaml"), "--base-url", job.sim.url, *args]
    (job.path / "job.yaml").write_text(json.dumps(job.settings))
    result = forking.start(command, key="key", cwd=job.path).wait()
    assert result.code == 0, result.err
    return result.out


# -- learned ------------------------------------------------------------------------------------


def test_an_untold_limit_is_learned_once(job: JobFolder, sims: Sims) -> None:
    """50 requests/s that nobody told: the first run finds out, the next one begins with it."""
    job.sim = sims("--speed", "inf", "--rps", "50", "--retry-after", "--headers", "none")
    job.rows(questions(130))
    job.settings["limits"] = "auto"
    first = well(job.execute(), 130, refused=200)
    print(first)
    again = well(job.execute("--fresh"), 130, refused=200)
    print(again)
    assert 0


def test_limits_in_headers_are_enough(job: JobFolder, sims: Sims) -> None:
    """Where answers say what the account has, nothing is refused."""
    job.sim = sims("--speed", "inf", "--rpm", "600", "--headers", "extended", "--clock-rate", "5")
    job.rows(questions(150))
    job.settings["limits"] = "auto"
    s = well(job.execute(), 150, refused=1000)
    print(s)
    assert 0


def test_two_processes_share_a_told_limit(job: JobFolder, sims: Sims, beside: Beside) -> None:
    job.sim = sims("--speed", "inf", "--rpm", "1200", "--headers", "none")
    job.rows(questions(30))
    job.settings["limits"] = {"concurrency": 16, "rpm": 1200}
    other = beside(job, "other")
    both = [job.start(), other.start()]
    for p in both:
        print(finished(p, 30, 100))
    assert 0


def test_concurrency_auto(job: JobFolder, sims: Sims) -> None:
    job.sim = sims("--speed", "5", "--max-in-flight", "8")
    job.rows(questions(200))
    job.settings["limits"] = {"concurrency": "auto"}
    s = well(job.execute(), 200, refused=1000)
    print(s)
    print(job.sim.stats()["models"][MODEL])
    assert 0


def test_range(job: JobFolder, sims: Sims) -> None:
    job.sim = sims("--speed", "20")
    job.settings["limits"] = {"concurrency": "2..6"}
    s = well(job.execute(), 40, refused=1000)
    print(s, job.sim.stats()["max_in_flight"])
    assert 0


def test_auto_tokens(job: JobFolder, sims: Sims) -> None:
    job.sim = sims("--speed", "20", "--median-tokens", "300", "--seed", "3")
    job.rows(questions(300))
    job.settings["params"] = {"max_completion_tokens": "auto", "reasoning_effort": "low"}
    s = well(job.execute(), 300, refused=1000)
    print(s)
    rows = job.results()
    print(sorted((r["started_at"], r["reserved_tokens"], r["completion_tokens"], r["attempts"]) for r in rows))
    print({r["finish_reason"] for r in rows})
    assert 0
