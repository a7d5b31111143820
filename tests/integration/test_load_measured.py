"""Load runs whose figures are easily wrong: loads that were not delivered, inputs slow to read, ends in between."""

from __future__ import annotations

import signal
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from tests.integration.conftest import Forking, JobFolder, Sim, questions
from tests.integration.test_crash import die
from tests.integration.test_interleave import Pair
from tests.integration.test_load import DONE, SLOW, blocks, on_the_wire, with_load

Sims = Callable[..., Sim]


@pytest.fixture
def load(job: JobFolder, sims: Sims) -> JobFolder:
    """Streams of 45 ms."""
    job.sim = sims(*SLOW)
    job.settings |= {"params": {"stream": True, "max_completion_tokens": 200}, "limits": {}}
    return job


def test_an_open_loop_that_cannot_keep_up_is_not_valid_and_reads_no_rate_it_never_had(load: JobFolder) -> None:
    """4 places of 45 ms are 90 requests/s at most; those that were due at 400 are all sent, after the window."""
    with_load(load, mode="open", rate=400, duration_s=0.5, max_in_flight=4)
    result = load.execute()
    assert result.code == 6, result.err
    assert "of 400 requests/s asked were sent on time" in result.err
    (block,) = blocks(load)
    start = datetime.fromisoformat(block["started_at"]).timestamp() + block["warmup_s"]
    ends = [end for _, end in on_the_wire(load.results())]
    assert block["completed"] == pytest.approx(sum(start <= end <= start + 0.5 for end in ends), abs=1)
    assert block["completed"] < 60 < block["requests"]


def test_a_request_that_is_not_due_yet_does_not_wait_to_be_sent(load: JobFolder) -> None:
    with_load(load, mode="open", rate=20, duration_s=0.5, max_in_flight=8, arrival="constant")
    assert load.execute().code in DONE
    assert all(row["wait_s"] <= row["sched_lag_s"] + 1e-6 for row in load.results())


def test_few_prompts_of_a_long_input_are_looked_for_once(load: JobFolder) -> None:
    """Each round over them would hold up the loop for as long as it takes to read all of it."""
    load.rows(questions(12))
    load.settings["input"] = {"path": load.settings["input"], "sample": 3, "seed": 7}
    with_load(load, concurrency=4, duration_s=0.3)
    say = "import sys, cbatch.source as s\nreal = s.Source._all_rows\n"
    say += "def read(self):\n    print('reads', file=sys.stderr)\n    return real(self)\ns.Source._all_rows = read\n"
    result = load.execute(first=say)
    assert result.code in DONE, result.err
    uses = sorted(row["sample"] for row in load.results())
    assert len({(row["id"], row["sample"]) for row in load.results()}) == len(uses) > 12
    assert uses[-1] == (len(uses) - 1) // 3 > 4
    assert result.err.count("reads\n") <= 4  # to count, to draw, to try the template, to keep the prompts


def test_a_signal_while_it_calibrates_leaves_that_for_later(load: JobFolder) -> None:
    with_load(load, concurrency=[1, 2], duration_s=0.2, calibrate=True)
    say = "import os, signal, cbatch.calibrate as c\nreal = c.overhead\n"
    say += "async def overhead(*args):\n    os.kill(os.getpid(), signal.SIGINT)\n    return await real(*args)\n"
    result = load.execute(first=say + "c.overhead = overhead\n")
    assert (result.code, result.summary["state"]) == (130, "interrupted")
    assert [block["overhead_s"] is None for block in blocks(load)] == [False, True]
    sent = load.sim.requests
    assert load.execute().code in DONE
    assert all(block["overhead_s"] for block in blocks(load))
    assert load.sim.requests == sent


def test_a_pair_that_was_killed_still_takes_turns(tmp_path: Path, forking: Forking, sims: Sims) -> None:
    """The third block of B is lost: it is run before anything else, or no pair after it would be one."""
    pair = Pair(tmp_path, forking, sims(*SLOW))
    ended = pair.execute("--repeat", "4", first=die("cbatch.load:_Block.found", 12))
    assert ended.code == -signal.SIGKILL
    assert pair.execute("--repeat", "4").code in DONE
    assert pair.order() == "abbaabba"
