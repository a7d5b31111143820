"""Load runs as a user meets them: loads that are what was asked, blocks that survive, exit codes."""

from __future__ import annotations

import json
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cbatch.job import bound
from tests.integration.conftest import Forking, JobFolder, Result, Sim, questions, wait_for
from tests.integration.test_crash import die, small_disk

Sims = Callable[..., Sim]
SLOW = ("--answer-tokens", "64")  # about 45 ms an answer
DONE = (0, 6)  # on a busy machine a load of some 100 ms may be called not valid, and is done all the same


@pytest.fixture
def load(job: JobFolder, sims: Sims) -> JobFolder:
    """A closed loop of 4 for 0.3 s over streams of 45 ms."""
    job.sim = sims(*SLOW)
    job.settings |= {"params": {"stream": True, "max_completion_tokens": 200}, "limits": {}}
    return with_load(job, concurrency=4, duration_s=0.3)


def with_load(job: JobFolder, **keys: Any) -> JobFolder:
    """The job with another load: a short warm-up, and nothing calibrated where nobody looks at it."""
    job.settings["load"] = {"warmup_s": 0.1, "calibrate": False} | keys
    return job


def blocks(job: JobFolder) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = job.run.read_info()["load"]["blocks"]
    return found


def begun(block: dict[str, Any]) -> float:
    return datetime.fromisoformat(block["started_at"]).timestamp()


def intended(row: dict[str, Any]) -> float:
    """When an open loop was to send this row."""
    return float(row["started_at"] / 1e6 - row["sched_lag_s"])


def on_the_wire(rows: Iterable[dict[str, Any]]) -> list[tuple[float, float]]:
    """From when to when the last attempt of each row was under way."""
    sent = [(row, row["started_at"] / 1e6 + row["attempts_s"]) for row in rows if row["latency_s"] is not None]
    return [(at, at + row["latency_s"] + (row["tail_s"] or 0.0)) for row, at in sent]


def most_at_once(times: Iterable[tuple[float, float]]) -> int:
    """How many overlap by more than the microsecond that a timestamp is rounded to."""
    steps = sorted(step for start, end in times for step in ((start + 2e-6, 1), (end - 2e-6, -1)))
    most = now = 0
    for _, step in steps:
        now += step
        most = max(most, now)
    return most


def check_blocks(job: JobFolder) -> list[dict[str, Any]]:
    """What run.json says of each complete block, against the rows of the parts."""
    rows = job.results()
    assert len({(row["id"], row["model"], row["sample"]) for row in rows}) == len(rows)
    assert job.proof().blocks == len(blocks(job))
    for block in blocks(job):
        if not block["complete"]:
            continue
        mine = [row for row in rows if row["load_block"] == block["block"]]
        measured = [row for row in mine if row["load_phase"] == "measure"]
        assert {row["load_phase"] for row in mine} <= {"warmup", "measure"}
        assert {row["load_level"] for row in mine} == {block["level"]}
        assert {row["model"] for row in mine} == {block["model"]}
        assert block["requests"] == len(measured)
        assert block["failed"] == sum(row["status"] == "error" for row in measured)
        start = begun(block) + block["warmup_s"]
        end = start + block["measured_s"]
        asked = [row["started_at"] / 1e6 - (row["wait_s"] if row["sched_lag_s"] is None else row["sched_lag_s"])
                 for row in mine if row["load_phase"] == "warmup"]  # fmt: skip
        assert all(at <= start + 0.002 for at in asked)
        flying_s = sum(max(min(b, end) - max(a, start), 0.0) for a, b in on_the_wire(mine))
        assert flying_s / max(block["measured_s"], 1e-9) == pytest.approx(block["in_flight"], rel=0.02, abs=0.02)
        if block["measured_s"] > 0.1:
            assert block["cpu_s"] >= 0
            assert block["loop_lag_s"]["n"] > 0
        if block["unit"] == "in flight":
            assert most_at_once(on_the_wire(mine)) <= block["level"]
    return [block for block in blocks(job) if block["complete"]]


def command(job: JobFolder, forking: Forking, name: str, *args: str) -> Result:
    """`cbatch NAME` on the run directory of a job."""
    return forking.start([name, str(job.run.path), *args], key=None, cwd=job.path).wait()


# -- without `load` ---------------------------------------------------------------------------------


def test_a_batch_has_no_blocks(job: JobFolder) -> None:
    assert job.execute().code in DONE
    assert "load" not in job.run.read_info()
    assert {(row["load_block"], row["load_level"], row["load_phase"]) for row in job.results()} == {(None, None, None)}


# -- closed -----------------------------------------------------------------------------------------


def test_a_ladder_goes_round_all_levels_for_every_repeat(load: JobFolder) -> None:
    with_load(load, concurrency=[1, 6], duration_s=0.3, repeats=2)
    result = load.execute()
    assert result.code in DONE, result.err
    found = check_blocks(load)
    assert [(block["level"], block["repeat"]) for block in found] == [(1, 0), (6, 0), (1, 1), (6, 1)]
    for block, later in pairwise(found):
        assert begun(block) + block["warmup_s"] + block["measured_s"] <= begun(later) + 0.002
    for block in found:
        assert block["measured_s"] == pytest.approx(0.3, abs=0.05)
        assert block["warmup_s"] >= 0.1
        assert block["in_flight"] > 0.8 * block["level"]
    assert result.summary["done"] == len(load.results())
    assert load.sim.stats()["max_in_flight"] == 6
    assert load.run.read_info()["total"] == len(load.results())


def test_requests_are_counted_without_the_warm_up(load: JobFolder) -> None:
    """Once around warms the connections, unless the job says how long."""
    load.settings["load"] = {"concurrency": 4, "requests": 30, "calibrate": False}
    assert load.execute().code in DONE
    (block,) = check_blocks(load)
    assert block["requests"] == 30
    assert Counter(row["load_phase"] for row in load.results()) == {"measure": 30, "warmup": 4}


@pytest.mark.parametrize("requests", [1, 3, 4])
def test_fewer_requests_than_places_are_measured_to_their_end(load: JobFolder, requests: int) -> None:
    with_load(load, concurrency=4, requests=requests, warmup_s=0)
    assert load.execute().code in ((0, 6) if requests == 4 else (6,))  # fewer are not the load that was asked for
    (block,) = check_blocks(load)
    assert block["requests"] == requests
    assert block["measured_s"] > 0.02
    assert block["in_flight"] > 0.5


def test_answers_that_are_slower_than_the_warm_up_leave_the_window_its_length(job: JobFolder, sims: Sims) -> None:
    """The first request that counts begins the window: else there would be none of it left."""
    job.sim = sims("--fault", "slow_first_byte=1", "--slow-s", "0.4", "--speed", "inf")
    with_load(job, concurrency=2, duration_s=0.2, warmup_s=0.1)
    job.execute()
    (block,) = check_blocks(job)
    assert (block["requests"], block["measured_s"]) == (2, pytest.approx(0.2, abs=0.05))
    assert block["in_flight"] > 1.8


def test_every_model_has_its_own_blocks(load: JobFolder) -> None:
    load.settings["model"] = ["gpt-oss-120b", "zai-glm-4.7"]
    with_load(load, concurrency=3, duration_s=0.2, repeats=2)
    result = load.execute()
    assert result.code in DONE, result.err
    assert [block["model"] for block in check_blocks(load)] == ["gpt-oss-120b", "zai-glm-4.7"] * 2


def test_blocks_go_on_where_the_last_one_ended(load: JobFolder) -> None:
    """What was asked a moment ago would be answered from the server's cache."""
    load.settings["load"] = {"concurrency": 2, "requests": 8, "repeats": 2, "calibrate": False}
    assert load.execute().code in DONE
    asked = [row["index"] for row in sorted(load.results(), key=lambda row: row["started_at"])]
    assert sorted(asked) == list(range(20))


def test_made_prompts_are_asked_as_they_were_made(load: JobFolder) -> None:
    load.settings["input"] = {"synthetic": {"rows": 12, "tokens": [32, 64], "seed": 3}}
    del load.settings["prompt"]
    load.settings["load"] = {"concurrency": 2, "requests": 12, "warmup_s": 0, "calibrate": False}
    assert load.execute().code in DONE
    made = [json.loads(line) for line in (load.run.path / "prompts.jsonl").read_text().splitlines()]
    assert len({row["prompt"] for row in made}) == 12
    assert [json.loads(row["input"]) for row in sorted(load.results(), key=lambda row: row["index"])] == made
    assert load.execute().code in DONE
    assert load.sim.requests == 12


def test_a_part_is_cut_in_the_middle_of_a_block(load: JobFolder) -> None:
    load.settings["results"] = {"part_rows": 10}
    assert load.execute().code in DONE
    check_blocks(load)
    assert len(load.run.parts) > 1


# -- open -------------------------------------------------------------------------------------------


def test_an_open_loop_keeps_to_its_clock(load: JobFolder) -> None:
    with_load(load, mode="open", rate=50, arrival="constant", duration_s=0.4)
    assert load.execute().code in DONE
    (block,) = check_blocks(load)
    assert (block["unit"], block["level"], block["requests"]) == ("requests/s", 50, 20)
    assert (block["measured_s"], block["warmup_s"]) == (0.4, 0.1)
    due = sorted(intended(row) for row in load.results())
    assert [b - a for a, b in pairwise(due)] == [pytest.approx(0.02, abs=1e-4)] * (len(due) - 1)
    assert all(row["sched_lag_s"] >= 0 for row in load.results())


def test_arrivals_are_those_of_the_seed(load: JobFolder) -> None:
    """The same for every run of a job, another one for another repeat; so many as the rate says, or as was counted."""
    offsets: list[list[float]] = []
    for _ in range(2):
        with_load(load, mode="open", rate=80, duration_s=0.3, repeats=2, seed=5)
        assert load.execute("--fresh").code in DONE
        for block in check_blocks(load):
            due = sorted(intended(row) for row in load.results() if row["load_block"] == block["block"])
            offsets.append([at - due[0] for at in due])
    assert offsets[0] == pytest.approx(offsets[2], abs=1e-4)
    assert offsets[1] == pytest.approx(offsets[3], abs=1e-4)
    assert offsets[0] != pytest.approx(offsets[1][: len(offsets[0])], abs=1e-3)
    with_load(load, mode="open", rate=80, requests=17, warmup_s=0.05)
    assert load.execute("--fresh").code in DONE
    assert check_blocks(load)[0]["requests"] == 17


def test_a_server_that_stalls_does_not_move_the_clock(job: JobFolder, sims: Sims) -> None:
    """No coordinated omission: what waited for a place is late by the schedule, and says by how much."""
    job.sim = sims("--speed", "inf", "--fault", "slow_first_byte=1", "--slow-s", "0.15")
    with_load(job, mode="open", rate=40, arrival="constant", duration_s=0.4, warmup_s=0, max_in_flight=2)
    job.execute()
    (block,) = check_blocks(job)
    rows = sorted(job.results(), key=intended)
    assert block["requests"] == len(rows) == 16
    due = [intended(row) for row in rows]
    assert [b - a for a, b in pairwise(due)] == [pytest.approx(0.025, abs=1e-4)] * 15
    assert most_at_once(on_the_wire(rows)) == 2
    for row in rows:
        assert row["response_s"] == pytest.approx(row["sched_lag_s"] + row["attempts_s"] + row["latency_s"], abs=1e-4)
    last = rows[-1]
    assert last["latency_s"] < 0.4
    assert last["sched_lag_s"] > 0.5  # 16 requests take 8 turns of 0.15 s, and were due within 0.4 s
    assert last["response_s"] > 2 * last["latency_s"]


# -- search -----------------------------------------------------------------------------------------


def test_a_search_ends_below_the_first_429(load: JobFolder, sims: Sims) -> None:
    load.sim = sims(*SLOW, "--max-in-flight", "5")
    with_load(load, mode="search", concurrency="1..16", slo=["latency_s p95 < 5"], duration_s=0.25)
    result = load.execute()
    found = load.run.read_info()["load"]["search"]
    trials = found["trials"]
    assert [trial["level"] for trial in trials][:4] == [1, 2, 4, 8]
    assert found["best"] == max(trial["level"] for trial in trials if trial["passed"])
    assert found["best"] <= 5
    assert "answered with 429" in found["why"]
    assert all("429" in trial["why"] for trial in trials if trial["level"] > 5)
    assert result.code in DONE, result.err
    assert len(check_blocks(load)) == len(trials)


def test_a_search_finds_the_load_that_meets_the_slo(job: JobFolder, sims: Sims) -> None:
    """And one that meets it nowhere says so."""
    job.sim = sims(*SLOW)
    with_load(job, mode="search", concurrency="1..2", slo="latency_s p50 < 1ms", duration_s=0.2)
    assert job.execute().code == 5
    found = job.run.read_info()["load"]["search"]
    assert (found["best"], len(found["trials"])) == (None, 1)
    assert found["why"].startswith("1 in flight: latency_s p50 < 1ms: 0.0")
    with_load(job, mode="search", concurrency="1..2", slo="ttft_s p50 < 1", duration_s=0.2)
    job.execute("--fresh")
    assert "was not measured; it needs params.stream: true" in job.run.read_info()["load"]["search"]["why"]


def test_a_load_that_the_limits_hold_back_does_not_pass(load: JobFolder) -> None:
    """Pacing avoids every 429: without a look at what was delivered, any load would pass."""
    load.settings["limits"] = {"rpm": 600}
    with_load(load, mode="search", concurrency="2..64", slo="latency_s p95 < 5", duration_s=0.4)
    load.execute()
    found = load.run.read_info()["load"]["search"]
    assert found["best"] is None
    assert "waited for the account's limits" in found["why"]


def test_a_rate_is_searched_for(load: JobFolder) -> None:
    with_load(load, mode="search", rate="20..40", slo="errors < 1%", duration_s=0.2)
    assert load.execute().code in DONE
    found = load.run.read_info()["load"]["search"]
    assert (found["best"], found["unit"], found["why"]) == (40, "requests/s", "the highest load of the search passed")
    check_blocks(load)


# -- replay -----------------------------------------------------------------------------------------


def replay(job: JobFolder, **keys: Any) -> JobFolder:
    """The job that asks again what the run directory holds, in another one."""
    earlier = str(job.run.path)
    job.settings |= {"load": {"mode": "replay", "of": earlier, "calibrate": False} | keys}
    job.settings["output"] = str(job.path / "again")
    del job.settings["input"]
    job.run = type(job.run)(job.path / "again")
    return job


@pytest.mark.parametrize("speed", [1, 4])
def test_a_replay_sends_the_same_prompts_at_the_same_times(load: JobFolder, speed: int) -> None:
    with_load(load, mode="open", rate=60, duration_s=0.4)
    assert load.execute().code in DONE
    earlier = sorted((r for r in load.results() if r["load_phase"] == "measure"), key=lambda row: row["started_at"])
    result = replay(load, speed=speed).execute()
    assert result.code in DONE, result.err
    (block,) = check_blocks(load)
    again = sorted(load.results(), key=intended)
    assert [row["input"] for row in again] == [row["input"] for row in earlier]
    first, start = earlier[0]["started_at"] / 1e6, intended(again[0])
    wanted = [(row["started_at"] / 1e6 - first) / speed for row in earlier]
    assert [intended(row) - start for row in again] == pytest.approx(wanted, abs=2e-4)
    assert {row["load_phase"] for row in again} == {"measure"}
    assert block["requests"] == len(earlier)
    assert block["level"] == pytest.approx(len(earlier) / block["measured_s"], rel=0.02)


def test_a_batch_can_be_replayed_and_cut(load: JobFolder) -> None:
    batch = load.settings.pop("load")
    assert batch
    load.settings["limits"] = {"rpm": 1200}
    assert load.execute("--limit", "6").code in DONE
    load.settings["limits"] = {}
    replay(load, repeats=2)
    result = load.execute("--limit", "4")
    assert result.code in DONE, result.err
    assert [block["requests"] for block in check_blocks(load)] == [4, 4]


def test_one_prompt_can_be_replayed(load: JobFolder) -> None:
    del load.settings["load"]
    assert load.execute("--limit", "1").code in DONE
    assert replay(load).execute().code in DONE
    assert [block["requests"] for block in check_blocks(load)] == [1]


def test_a_replay_of_itself_or_of_nothing_is_refused(load: JobFolder) -> None:
    assert load.execute().code in DONE
    output = load.settings["output"]
    replay(load)
    load.settings["output"] = output
    result = load.execute()
    assert result.code == 2
    assert "is where this run writes" in result.err
    load.settings |= {"load": {"mode": "replay", "of": "no/such/run"}, "output": str(load.path / "new")}
    result = load.execute()
    assert result.code == 2
    assert "not a run directory" in result.err
    assert not (load.path / "new").exists()


# -- kept, and run again ----------------------------------------------------------------------------


def test_a_kill_in_a_block_costs_that_block(load: JobFolder) -> None:
    """Its rows are kept under its number, and it is run again under the next one."""
    with_load(load, concurrency=4, duration_s=0.4, repeats=3)
    process = load.start()
    wait_for(
        lambda: len([b for b in load.run.read_info().get("load", {}).get("blocks", []) if b["complete"]]), "a block"
    )
    before = load.durable
    wait_for(lambda: load.durable > before + 4, "rows of the second one")
    process.kill()
    kept = load.durable
    last = load.execute()
    assert last.code in DONE, last.err
    found = check_blocks(load)
    assert [(block["block"], block["repeat"]) for block in found] == [(0, 0), (2, 1), (3, 2)]
    assert [block["complete"] for block in blocks(load)] == [True, False, True, True]
    assert {row["load_block"] for row in load.results()} == {0, 1, 2, 3}
    assert kept <= sum(row["load_block"] < 2 for row in load.results()) <= kept + bound(4)
    assert "the last session was cut off" in last.err


def test_a_kill_in_the_first_block_leaves_a_run_that_goes_on(load: JobFolder) -> None:
    process = load.start()
    wait_for(lambda: load.durable > 4, "rows")
    process.kill()
    assert load.execute().code in DONE
    check_blocks(load)
    assert [block["complete"] for block in blocks(load)] == [False, True]


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(die("cbatch.load:LoadRun._note", 1), id="after a block"),
        pytest.param(die("cbatch.load:LoadRun._run_block", 2, before=True), id="before the next"),
        pytest.param(die("cbatch.load:LoadRun._calibrate", 1, before=True), id="after the last"),
        pytest.param(die("cbatch.publish:Publisher.finish", 1, before=True), id="before the parts"),
    ],
)
def test_a_kill_between_blocks_costs_none(load: JobFolder, first: str) -> None:
    with_load(load, concurrency=2, duration_s=0.2, repeats=2, calibrate=True)
    assert load.start(first=first).wait().code == -signal.SIGKILL
    last = load.execute()
    assert last.code in DONE, last.err
    found = check_blocks(load)
    assert [(block["block"], block["repeat"]) for block in found] == [(0, 0), (1, 1)]
    assert all(block["overhead_s"] for block in found)
    assert load.sim.requests == len(load.results())


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_block_and_the_same_line_goes_on(load: JobFolder, signum: int, code: int) -> None:
    with_load(load, concurrency=4, duration_s=0.5, repeats=2)
    process = load.start()
    wait_for(lambda: load.durable > 8, "rows")
    process.signal(signum)
    ended = process.wait()
    assert (ended.code, ended.summary["state"], ended.summary["left"]) == (code, "interrupted", 0)
    assert load.durable == load.sim.requests == len(load.results())
    assert not blocks(load)[-1]["complete"]
    last = load.execute()
    assert last.code in DONE, last.err
    assert last.summary["paid_twice_at_most"] == 0
    assert [block["repeat"] for block in check_blocks(load)] == [0, 1]


def test_an_open_loop_is_interrupted_while_it_waits(load: JobFolder) -> None:
    """Thousands of requests may wait for their time: none of them is sent, or counted as left."""
    with_load(load, mode="open", rate=20, duration_s=30, max_in_flight=500)
    process = load.start()
    wait_for(lambda: load.durable > 4, "rows")
    process.signal(signal.SIGINT)
    ended = process.wait()
    assert (ended.code, ended.summary["left"]) == (130, 0)
    assert len(load.results()) == load.sim.requests < 100


def test_a_budget_of_time_ends_with_4_and_the_rest_is_run_later(load: JobFolder) -> None:
    with_load(load, concurrency=2, duration_s=0.25, repeats=4)
    load.settings["budget"] = {"wall": 0.9}
    codes = [load.execute().code]
    assert load.run.read_info()["state"] == "stopped"
    while codes[-1] == 4:
        codes.append(load.execute().code)
        assert len(codes) < 10
    assert codes[-1] in DONE
    assert len(codes) > 1
    assert [block["repeat"] for block in check_blocks(load)] == [0, 1, 2, 3]


def test_a_budget_of_dollars_ends_with_4(load: JobFolder) -> None:
    load.settings["budget"] = {"usd": 0.001}
    result = load.execute()
    assert result.code == 4
    assert "budget" in result.err
    assert result.summary["cost_usd"] <= 0.001
    load.settings["budget"] = {"usd": 5.0}
    assert load.execute().code in DONE
    check_blocks(load)


def test_an_account_that_is_refused_in_a_block_stops_the_run(load: JobFolder, sims: Sims) -> None:
    load.sim = sims(*SLOW, "--fault", "payment_required=0.1")
    with_load(load, concurrency=4, duration_s=2)
    result = load.execute()
    assert result.code == 1
    assert load.run.read_info()["state"] == "stopped"
    load.sim = sims(*SLOW)
    with_load(load, concurrency=4, duration_s=2)
    load.settings["load"]["duration_s"] = 2
    done = load.execute()
    assert done.code in DONE, done.err
    assert [block["complete"] for block in blocks(load)] == [False, True]


def test_a_refused_key_records_nothing(load: JobFolder) -> None:
    result = load.execute(key="wrong-key")
    assert result.code == 1
    assert "401" in result.err
    assert load.durable == 0
    assert load.execute().code in DONE
    check_blocks(load)


def test_an_endpoint_that_goes_away_is_waited_for(load: JobFolder, sims: Sims) -> None:
    """The block is long then, and not full: its figures tell."""
    load.sim = sims(*SLOW, "--outage-after", "0.3", "--outage-for", "1")
    with_load(load, concurrency=4, duration_s=0.6)
    result = load.execute()
    assert result.code in (3, 6), result.err
    (block,) = check_blocks(load)
    assert block["in_flight"] < 3
    assert block["starved_s"] > 0.1


def test_an_endpoint_that_stays_away_stops_the_run(load: JobFolder, sims: Sims) -> None:
    load.sim = sims(*SLOW, "--outage-after", "0.2", "--outage-for", "600")
    load.settings["retry"] = {"max_outage_s": 0.5}
    with_load(load, concurrency=8, duration_s=0.5)
    result = load.execute()
    assert (result.code, load.run.read_info()["state"]) == (1, "stopped"), result.err
    load.sim = sims(*SLOW)
    assert load.execute().code in DONE
    check_blocks(load)


def test_a_full_disk_stops_the_block_and_loses_nothing(load: JobFolder, sims: Sims) -> None:
    load.sim = sims("--speed", "inf")
    load.settings["results"] = {"part_rows": 100}
    with_load(load, concurrency=16, duration_s=20, warmup_s=0.1)
    with small_disk(load.run.path, "1m"):
        stopped = load.execute()
        assert stopped.code == 1
        assert "every answer that was counted is safe" in stopped.err
        assert "bug" not in stopped.err
        kept = load.durable
        assert stopped.summary["done"] <= kept
        assert load.sim.requests <= kept + bound(16)
        subprocess.run(["mount", "-o", "remount,size=100m", str(load.run.path)], check=True)
        with_load(load, concurrency=16, duration_s=20, warmup_s=0.1)
        process = load.start()
        wait_for(lambda: load.durable > kept + 50, "new rows")
        process.signal(signal.SIGINT)
        assert process.wait().code == 130
        assert [block["complete"] for block in blocks(load)] == [False, False]
        check_blocks(load)


def test_a_broken_row_is_an_error_of_every_round(load: JobFolder) -> None:
    """It is counted as failed, holds nothing up, and is no reason for 0."""
    load.rows([*questions(9), '{"question": "cut'])
    load.settings["load"] = {"concurrency": 2, "requests": 30, "warmup_s": 0, "calibrate": False}
    result = load.execute()
    assert result.code == 3
    (block,) = check_blocks(load)
    assert (block["requests"], block["failed"]) == (30, 3)
    assert load.sim.requests == 27
    load.settings["fail_if"] = "errors > 10%"
    assert load.execute().code in DONE


@pytest.mark.parametrize(
    "change",
    [
        {"load": {"concurrency": 5, "duration_s": 0.3}},
        {"prompt": "Other.\n\n{{ question }}"},
        {"params": {"stream": False, "max_completion_tokens": 200}},
        {"params": {"stream": True, "max_completion_tokens": 100}},
        {"input": {"path": "rows.jsonl", "limit": 10}},
    ],
    ids=["another load", "another prompt", "no stream", "another parameter", "fewer rows"],
)
def test_a_job_that_was_edited_is_refused(load: JobFolder, change: dict[str, Any]) -> None:
    assert load.execute().code in DONE
    sent = load.sim.requests
    load.settings |= change
    result = load.execute()
    assert result.code == 2
    assert "holds the answers of another " in result.err
    assert "--output DIR starts beside it; --fresh" in result.err
    assert load.sim.requests == sent
    fresh = load.execute("--fresh")
    assert fresh.code in DONE, fresh.err
    assert {row["load_block"] for row in load.results()} == {0}


def test_a_finished_load_run_sends_nothing(load: JobFolder) -> None:
    assert load.execute().code in DONE
    info, sent = load.run.read_info(), load.sim.requests
    result = load.execute()
    assert result.code in DONE
    assert (result.summary["sent"], load.sim.requests) == (0, sent)
    assert load.run.read_info() == info


@pytest.mark.parametrize("option", [("--retry-failed",), ("--changed", "rerun")])
def test_options_of_batches_leave_no_trace(load: JobFolder, option: tuple[str, ...]) -> None:
    result = load.execute(*option)
    assert result.code == 2
    assert "are for batches" in result.err
    assert not load.run.path.exists()


def test_a_batch_and_a_load_run_do_not_share_a_folder(load: JobFolder) -> None:
    keys = load.settings.pop("load")
    assert load.execute().code in DONE
    load.settings["load"] = keys
    result = load.execute()
    assert result.code == 2
    assert "holds the answers of a batch" in result.err
    assert load.execute("--fresh").code in DONE
    del load.settings["load"]
    result = load.execute()
    assert result.code == 2
    assert "holds a load run, and this job is a batch" in result.err
    assert "load" in load.run.read_info()


def test_made_prompts_of_another_run_are_not_overwritten(load: JobFolder) -> None:
    load.settings["input"] = {"synthetic": {"rows": 8, "tokens": 32}}
    del load.settings["prompt"]
    assert load.execute().code in DONE
    made = (load.run.path / "prompts.jsonl").read_bytes()
    load.settings["input"] = {"synthetic": {"rows": 8, "tokens": 32, "seed": 1}}
    result = load.execute()
    assert result.code == 2
    assert "holds a run with other prompts" in result.err
    assert (load.run.path / "prompts.jsonl").read_bytes() == made
    assert load.execute("--fresh").code in DONE


def test_two_at_once_are_one_too_many(load: JobFolder) -> None:
    with_load(load, concurrency=2, duration_s=1)
    first = load.start()
    wait_for(lambda: load.durable > 2, "rows")
    second = load.execute()
    assert second.code == 1
    assert "another cbatch" in second.err
    assert first.wait().code in DONE
    check_blocks(load)


# -- what it says -----------------------------------------------------------------------------------


def test_a_gate_that_is_missed_ends_with_5(load: JobFolder) -> None:
    """Also when there is nothing left to do; in --json, too."""
    with_load(load, concurrency=1, duration_s=0.3)
    load.settings["gates"] = ["latency_s p50 < 1ms", "errors < 1%"]
    for _ in range(2):
        result = load.execute()
        assert (result.code, result.summary["exit_code"]) == (5, 5)
    assert "latency_s p50 < 1ms" in result.err
    load.settings["gates"] = ["latency_s p50 < 5"]
    assert load.execute().code == 0


def test_a_load_that_was_not_delivered_is_not_valid(load: JobFolder) -> None:
    load.settings["limits"] = {"rpm": 600}
    with_load(load, concurrency=32, duration_s=0.4)
    result = load.execute()
    assert result.code == 6, result.err
    assert "INVALID" in result.err
    (block,) = check_blocks(load)
    assert block["in_flight"] < 8
    assert block["starved_s"] == pytest.approx(block["measured_s"], rel=0.2)


def test_silence_is_for_when_all_is_well(load: JobFolder, forking: Forking) -> None:
    with_load(load, concurrency=1, duration_s=0.3)
    (load.path / "job.yaml").write_text(json.dumps(load.settings))
    args = ["run", str(load.path / "job.yaml"), "--base-url", load.sim.url]
    quiet = forking.start([*args, "--quiet"], key="key", cwd=load.path).wait()
    assert quiet == Result(0, "", "")
    loud = forking.start(args, key="key", cwd=load.path).wait()
    assert "nothing to send: every block is complete" in loud.out
    assert "in flight" in loud.out


def test_the_client_is_calibrated_at_every_level(load: JobFolder) -> None:
    with_load(load, concurrency=[1, 8], duration_s=0.2, repeats=2, calibrate=True)
    assert load.execute().code in DONE
    for block in check_blocks(load):
        assert 0 < block["overhead_s"]["p50"] <= block["overhead_s"]["p99"] < 0.5
        assert block["overhead_s"]["n"] >= 4


def test_the_commands_know_a_load_run_in_every_state(load: JobFolder, forking: Forking) -> None:
    with_load(load, concurrency=2, duration_s=0.4, repeats=3)
    process = load.start()
    wait_for(lambda: load.run.read_info().get("load", {}).get("blocks"), "a block")
    before = load.durable
    wait_for(lambda: load.durable > before, "rows of the next")
    for state in ("running", "killed"):
        found = json.loads(command(load, forking, "status", "--json").out)
        assert (found["state"], found["total"]) == (state, None)
        assert found["done"] > 4
        assert found["complete_blocks"] >= 1
        assert "measured, 1 under way or cut off" in command(load, forking, "status").out
        for name in ("verify", "report"):
            result = command(load, forking, name)
            assert result.code in DONE, (state, name, result)
            assert "block" in result.out
        process.kill()
    before = load.durable
    process = load.start()
    wait_for(lambda: load.durable > before, "more rows")
    process.signal(signal.SIGINT)
    assert process.wait().code == 130
    assert json.loads(command(load, forking, "status", "--json").out)["state"] == "interrupted"
    assert command(load, forking, "verify").code == command(load, forking, "report").code == 0
    assert load.execute().code in DONE
    found = json.loads(command(load, forking, "status", "--json").out)
    assert (found["state"], found["left"], found["complete_blocks"]) == ("finished", 0, 3)
    assert command(load, forking, "verify").out.startswith("proven: ")
    assert json.loads(command(load, forking, "report", "--json").out)["verdict"]["state"] in ("VALID", "SUSPECT")


def test_verify_misses_a_row_of_a_block(load: JobFolder) -> None:
    assert load.execute().code in DONE
    info = load.run.read_info()
    info["load"]["blocks"][0]["requests"] += 1
    load.run.write_info(info)
    from cbatch.verify import verify

    assert any("block 0" in problem for problem in verify(load.run).problems)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"concurrency": [2, 4], "repeats": 3, "duration_s": 60}, "6 blocks: 2, 4 in flight, 3 times"),
        ({"mode": "open", "rate": 5, "requests": 7}, "1 block: 5 requests/s"),
        ({"mode": "search", "concurrency": "1..64", "slo": "errors < 1%"}, "as many as the search takes: 1..64 in"),
    ],
)
def test_a_plan_tells_the_blocks_and_sends_nothing(
    load: JobFolder, forking: Forking, keys: dict[str, Any], said: str
) -> None:
    with_load(load, **keys)
    (load.path / "job.yaml").write_text(json.dumps(load.settings))
    args = ["plan", str(load.path / "job.yaml"), "--base-url", load.sim.url]
    result = forking.start(args, key=None, cwd=load.path).wait()
    assert result.code in DONE, result.err
    assert said in result.out
    assert load.sim.requests == 0
    assert not load.run.path.exists()
    assert forking.start([*args, "--json"], key=None, cwd=load.path).wait().summary


def test_memory_does_not_grow_with_the_requests(job: JobFolder, sims: Sims) -> None:
    """20,000 requests more cost a few MB: what a block needs for its medians."""
    peaks = []
    say = "import atexit, resource, sys\n"
    say += "import cbatch.cli.run as r\nreal = r._tell\n"
    say += (
        "def tell(*a, **k):\n    print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)\n"
    )
    say += "    return real(*a, **k)\nr._tell = tell\n"
    for requests in (2_000, 12_000):
        with_load(job, concurrency=32, requests=requests, warmup_s=0)
        job.settings["results"] = {"part_rows": 1_000}
        result = job.execute("--fresh", first=say)
        peaks.append(int(result.err.split("peak ")[1].split()[0]))
    assert peaks[1] - peaks[0] < 15_000, peaks  # KB


def test_the_folder_of_a_run_that_was_deleted_is_not_needed(load: JobFolder, tmp_path: Path) -> None:
    """A moved load run is still one: nothing in it names where it was."""
    assert load.execute().code in DONE
    there = tmp_path / "moved"
    load.run.path.rename(there)
    load.run = type(load.run)(there)
    check_blocks(load)
