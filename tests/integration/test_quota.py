"""What a run finds out about an account and remembers, and what it shares with other processes of the same key."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Forking, JobFolder, Result, Sim, questions
from tests.integration.test_crash import die

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


def well(result: Result, rows: int, *, refused: int = 0) -> dict[str, Any]:
    """The summary of a run in which every row was answered, and at most so many requests met a 429."""
    summary = result.summary
    assert (result.code, summary["done"], summary["failed"]) == (0, rows, 0), result.err
    assert summary["rate_limited"] <= refused
    assert summary["sent"] == rows + summary["retries"]
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
    """50 requests/s that nobody told: the first run finds out by being refused, and the next one begins with it."""
    job.sim = sims("--speed", "inf", "--rps", "50", "--retry-after", "--headers", "none")
    job.rows(questions(115))
    job.settings["limits"] = "auto"
    first = well(job.execute(), 115, refused=40)
    assert first["rate_limited"] > 2
    assert 30 <= first["learned"]["requests/second"] <= 55
    again = well(job.execute("--fresh"), 115, refused=first["rate_limited"] // 3)
    assert 30 <= again["learned"]["requests/second"] <= 55
    # 114 gaps of 20 ms at the least, and twice as long would be half of the limit.
    assert 2.0 < again["elapsed_s"] < 4.6


def test_limits_in_headers_are_enough(job: JobFolder, sims: Sims) -> None:
    """What answers say about the account is obeyed like what a user says: nothing is refused."""
    job.sim = sims("--speed", "inf", "--tpm", "200000", "--headers", "extended")
    job.settings["limits"] = "auto"
    summary = well(job.execute(), 40)
    assert summary["learned"] == {}  # by a 429, that is
    # 12 reservations of 16,500 tokens fit, and 40 would follow at once.
    assert summary["time_lost_s"]["tokens/min"] > 0.3


def test_a_plan_says_what_binds(job: JobFolder, sims: Sims, forking: Forking) -> None:
    """`cbatch plan` names the limit that the job will wait for: the told one, and after a run the learned one."""
    job.sim = sims("--speed", "inf", "--rps", "50", "--retry-after", "--headers", "none")
    job.rows(questions(80))
    job.settings["limits"] = "auto"
    assert "no limit is told or learned yet" in plan(job, forking)
    learned = well(job.execute(), 80, refused=40)["learned"]["requests/second"]
    after = plan(job, forking, "--output", "elsewhere")
    assert f"binds   {learned:,.0f} requests/second" in after
    assert "limits that earlier runs learned are among them" in after
    job.settings["limits"] = {"rpm": 60}
    assert "binds   60 requests/min" in plan(job, forking, "--output", "elsewhere")
    assert job.sim.requests == 80 + sum(job.sim.stats()["rate_limited"].values())  # a plan sends nothing


# -- shared -------------------------------------------------------------------------------------


def test_two_processes_share_a_limit(job: JobFolder, sims: Sims, beside: Beside) -> None:
    """Two runs of one key together send what the account allows: nothing is refused, and nothing is left unused."""
    job.sim = sims("--speed", "inf", "--rpm", "1200", "--headers", "none")
    job.rows(questions(25))
    job.settings["limits"] = {"concurrency": 16, "rpm": 1200}
    both = [job.start(), beside(job, "other").start()]
    summaries = [well(process.wait(), 25) for process in both]
    # 49 gaps of 50 ms, one run after the other or both at once; 25 of them would be a limit of its own for each.
    assert 48 * GAP_S < max(summary["elapsed_s"] for summary in summaries) < 49 * GAP_S + 1.5


def test_other_keys_and_models_have_limits_of_their_own(job: JobFolder, sims: Sims, beside: Beside) -> None:
    """A limit is of one key and one model: others are not slowed down by it."""
    job.sim = sims("--speed", "inf", "--rpm", "1200", "--headers", "none")
    job.rows(questions(25))
    job.settings["limits"] = {"concurrency": 16, "rpm": 1200}
    other_key, other_model = beside(job, "key"), beside(job, "model")
    other_model.settings["model"] = "qwen-3.8-27b"
    runs = [job.start(), other_key.start(key="another"), other_model.start()]
    for run in runs:
        assert 23 * GAP_S < well(run.wait(), 25)["elapsed_s"] < 24 * GAP_S + 0.9  # all three in turn: 3.7 s


def test_half_of_a_limit(job: JobFolder, sims: Sims, forking: Forking, tmp_path: Path) -> None:
    """Two machines with `--limit-share 0.5` each use half of what was told, and together meet no 429."""
    job.sim = sims("--speed", "inf", "--rpm", "1200", "--headers", "none")
    job.rows(questions(15))
    job.settings["limits"] = {"concurrency": 16, "rpm": 1200}
    machine = JobFolder(tmp_path / "machine", forking, job.sim)  # with a HOME of its own
    machine.rows(questions(15))
    machine.settings |= {"limits": job.settings["limits"]}
    runs = [job.start("--limit-share", "0.5"), machine.start("--limit-share", "0.5")]
    for run in runs:
        assert well(run.wait(), 15)["elapsed_s"] > 13 * 2 * GAP_S


def test_a_killed_process_leaves_the_budget_usable(job: JobFolder, sims: Sims, beside: Beside) -> None:
    """Killed while it writes to the shared numbers, with requests in flight: the next one waits for nobody."""
    job.sim = sims("--speed", "inf", "--rpm", "1200", "--headers", "none")
    job.rows(questions(20))
    job.settings["limits"] = {"concurrency": 16, "rpm": 1200}
    killed = job.execute(first=die("cbatch.pace.pacer:Pacer.take", 10))
    assert killed.code == -9
    sent = job.sim.requests
    assert 5 < sent < 10
    assert well(beside(job, "other").execute(), 20)["elapsed_s"] < 21 * GAP_S + 1.5
    again = job.execute()
    assert (again.code, again.summary["done"], again.summary["rate_limited"]) == (0, 20, 0), again.err


def test_a_state_folder_that_cannot_be_written(job: JobFolder, sims: Sims) -> None:
    """Without the shared numbers a run is on its own: it says so once, and keeps to its limits all the same."""
    job.sim = sims("--speed", "inf", "--rpm", "1200", "--headers", "none")
    job.rows(questions(15))
    job.settings["limits"] = {"concurrency": 16, "rpm": 1200}
    folder = job.path / "home" / ".local" / "state"
    folder.parent.mkdir(parents=True)
    folder.write_text("not a folder")
    result = job.execute()
    assert well(result, 15)["elapsed_s"] > 13 * GAP_S
    assert result.err.count("limits are not shared with other processes of this key") == 1
    assert f"{folder}/cbatch/budgets: Not a directory" in result.err


# -- in flight ----------------------------------------------------------------------------------


def test_a_range_is_kept(job: JobFolder, sims: Sims) -> None:
    """`concurrency: 2..6` begins low, and never has more than 6 requests in flight."""
    job.sim = sims("--speed", "10")
    job.settings["limits"] = {"concurrency": "2..6"}
    summary = well(job.execute(), 40)
    assert job.sim.stats()["max_in_flight"] == summary["workers"] == 6


def test_the_room_of_a_busy_server_is_found(job: JobFolder, sims: Sims) -> None:
    """`concurrency: auto` comes close to what a server has room for, and is rarely refused."""
    job.sim = sims("--speed", "5", "--max-in-flight", "8")
    job.rows(questions(200))
    job.settings["limits"] = {"concurrency": "auto"}
    summary = well(job.execute(), 200, refused=20)
    assert job.sim.stats()["max_in_flight"] >= 7
    assert summary["cuts"]["busy"] <= summary["rate_limited"]


# -- right-sized --------------------------------------------------------------------------------


def test_reservations_follow_the_answers(job: JobFolder, sims: Sims) -> None:
    """`max_completion_tokens: auto` reserves what answers need, once some are known."""
    job.sim = sims("--speed", "20", "--answer-tokens", "100")
    job.rows(questions(120))
    job.settings["params"] = {"max_completion_tokens": "auto", "reasoning_effort": "low"}
    summary = well(job.execute(), 120)
    sizing = summary["sizing"]
    assert sizing["requests"] == summary["sent"]
    assert sizing["reserved_tokens"] < sizing["unsized_tokens"] / 2
    rows = sorted(job.results(), key=lambda row: row["started_at"])
    assert all(row["reserved_tokens"] > 16_000 for row in rows[:16])  # nothing is known yet: the server's default
    assert all(row["reserved_tokens"] < 1_000 for row in rows[60:])
    assert {row["finish_reason"] for row in rows} == {"stop"}


def test_no_answer_is_cut_by_a_limit_of_ours(job: JobFolder, sims: Sims) -> None:
    """An answer that is longer than what was reserved for it is run again with more room, and nothing of it is lost."""
    job.sim = sims("--speed", "20", "--median-tokens", "300", "--seed", "3")
    job.rows(questions(300))
    job.settings["params"] = {"max_completion_tokens": "auto", "reasoning_effort": "low"}
    sizing = well(job.execute(), 300)["sizing"]
    rows = job.results()
    assert {row["finish_reason"] for row in rows} == {"stop"}
    again = [row for row in rows if row["attempts"] > 1]
    assert 0 < len(again) <= sizing["cut"] < 15
    assert sizing["cut_tokens"] > 0
    usual = sorted(row["reserved_tokens"] for row in rows)[150]
    assert all(row["reserved_tokens"] > usual for row in again)
    assert len({row["completion_tokens"] for row in rows}) > 100  # lengths vary, or this test says nothing
    # What was cut was paid for, too: the price of a row is that of all its answers.
    once = {row["id"]: (row["prompt_tokens"] * 0.35 + row["completion_tokens"] * 0.75) / 1e6 for row in again}
    assert all(row["cost_usd"] > once[row["id"]] * 1.01 for row in again)


def test_a_limit_of_the_row_stays(job: JobFolder, sims: Sims) -> None:
    """A max_tokens that a row brings in its own body is what it asked for: not raised, not run again."""
    job.sim = sims("--speed", "20", "--answer-tokens", "100")
    bodies: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": row["question"]}]} | ({"max_tokens": 30} if n % 4 == 0 else {})
        for n, row in enumerate(questions(80))
    ]
    job.rows([{"request": body} for body in bodies])
    job.settings |= {"prompt": {"body": "request"}, "params": {"max_completion_tokens": "auto"}}
    summary = well(job.execute(), 80)
    assert summary["sizing"]["requests"] == 60
    for row in job.results():
        own = row["index"] % 4 == 0
        assert (row["finish_reason"], row["attempts"]) == ("length" if own else "stop", 1)
        assert row["completion_tokens"] == 30 if own else row["completion_tokens"] >= 100
        if own:
            assert row["reserved_tokens"] < 30 + 300
