"""What a run survives: an endpoint that goes away, a budget that ends, a lost answer, a key that is revoked.

Nothing of it may cost a row. A run that cannot go on stops before it wastes anything, and the same line resumes it.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from cbatch.sim import SimConfig, create_app
from tests.integration.conftest import Forking, JobFolder, Process, Result, Sim, ask, belongs, questions, wait_for

Sims = Callable[..., Sim]


@pytest.fixture
def folder(tmp_path: Path, forking: Forking, sim: Sim) -> Iterator[Callable[[str], JobFolder]]:
    """`folder("other")` is one more job."""
    made: list[JobFolder] = []

    def make(name: str) -> JobFolder:
        made.append(JobFolder(tmp_path / name, forking, sim))
        return made[-1]

    yield make
    for job in made:
        job.close()


class Server:
    """A simulator on a port that stays the same, to be killed and started again."""

    def __init__(self, forking: Forking, folder: Path) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        self.sim = Sim(f"http://127.0.0.1:{self.port}")
        self._forking, self._folder = forking, folder
        self._process: Process | None = None

    def start(self, *args: str) -> None:
        options = ["--port", str(self.port), "--tier", "unlimited", *args]
        self._process = process = self._forking.start(["sim", *options], key=None, cwd=self._folder)
        wait_for(lambda: process.first_line or process.ended is not None, "the simulator")
        assert process.first_line, process.err

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process = None


@pytest.fixture
def server(forking: Forking, tmp_path: Path) -> Iterator[Server]:
    found = Server(forking, tmp_path)
    yield found
    found.kill()


def whole(job: JobFolder, result: Result, count: int) -> dict[str, Any]:
    """The summary of a run that ended well: one row per prompt, each with its own answer."""
    assert result.code == 0, result.err
    rows = job.results()
    assert sorted(row["index"] for row in rows) == list(range(count))
    assert {row["status"] for row in rows} == {"ok"}
    assert all(belongs(row, ask(json.loads(row["input"]))) for row in rows)
    assert job.proof().rows == job.proof().prompts == count
    return result.summary


def status(job: JobFolder, forking: Forking) -> dict[str, Any]:
    """What `cbatch status --json` says."""
    return forking.start(["status", str(job.run.path), "--json"], key=None, cwd=job.path).wait().summary


# -- an endpoint that goes away -----------------------------------------------------------------


class Service:
    """A simulator in this process that is gone from its `last` request on, until it is told to be back.

    Not at a time and for a time: a fast run would be over before it, a slow one would begin after it.
    """

    def __init__(self, last: int, *, answers_503: bool) -> None:
        self.requests = self.refused = 0
        self.is_gone = False
        self._last, self._answers_503 = last, answers_503
        self._connections: set[asyncio.BaseTransport] = set()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Sim]:
        """Where it is."""
        app = create_app(SimConfig(tier="unlimited", speed=5))
        app.middlewares.append(self._stand_before)
        async with TestServer(app) as server:
            yield Sim(str(server.make_url("")).rstrip("/"))

    @web.middleware
    async def _stand_before(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        assert request.transport is not None
        self._connections.add(request.transport)
        self.requests += request.method == "POST"
        if self.requests == self._last and not self.refused:
            self.is_gone = True
            for connection in self._connections:
                connection.abort()  # type: ignore[attr-defined]  # of a socket, all of them
        if not self.is_gone:
            return await handler(request)
        self.refused += 1
        if not self._answers_503:
            request.transport.abort()
        return web.Response(status=503)


def survived(job: JobFolder, result: Result, count: int, *, away_s: tuple[float, float]) -> None:
    """The run paused once, said so once, and no prompt was blamed; it was away for these seconds, least and most."""
    summary = whole(job, result, count)
    assert (summary["state"], summary["failed"], summary["errors"], summary["left"]) == ("finished", 0, {}, 0)
    assert summary["outages"] == 1
    assert away_s[0] <= summary["outage_s"] < away_s[1] + 10  # the next try may be a few seconds away
    assert (
        result.err.count("the endpoint does not answer (") == result.err.count("the endpoint answers again after") == 1
    )
    assert "paused, trying until it does" in result.err
    assert max(row["attempts"] for row in job.results()) < 20  # nobody hammers an endpoint that is gone


async def test_the_endpoint_is_away_for_a_while(
    job: JobFolder, folder: Callable[[str], JobFolder], server: Server
) -> None:
    """Closed connections, 503 for everyone, or a server that died and came back: the run waits and goes on."""
    closing, unavailable = Service(100, answers_503=False), Service(100, answers_503=True)
    jobs = [job, folder("unavailable"), folder("killed")]
    killed = jobs[2]
    async with closing.serving() as jobs[0].sim, unavailable.serving() as jobs[1].sim:
        killed.sim = server.sim
        await asyncio.to_thread(server.start, "--speed", "1")  # slow enough to be killed in the middle
        begin = time.monotonic()
        runs = []
        for one in jobs:
            one.rows(questions(300))
            one.settings["retry"] = {"attempts": 3}
            runs.append(one.start())
        await asyncio.to_thread(wait_for, lambda: killed.durable >= 50, "50 rows")
        await asyncio.to_thread(server.kill)
        for run in runs:
            await asyncio.to_thread(wait_for, lambda run=run: "paused" in run.err, "a pause")
        await asyncio.sleep(1.5)  # three attempts would be used up by now
        closing.is_gone = unavailable.is_gone = False
        await asyncio.to_thread(server.start, "--speed", "inf")
        most_s = time.monotonic() - begin
        for one, run in zip(jobs, runs, strict=True):
            survived(one, await asyncio.to_thread(run.wait), 300, away_s=(1.5, most_s))
    assert 8 <= closing.refused < 100
    assert 8 <= unavailable.refused < 100


def test_the_endpoint_is_away_for_too_long(job: JobFolder, server: Server) -> None:
    """After retry.max_outage_s the run stops, blames no prompt, and the same line goes on when the endpoint is back."""
    job.sim = server.sim
    job.rows(questions(200))
    job.settings["retry"] = {"attempts": 3, "max_outage_s": 1}
    server.start("--speed", "5")
    run = job.start()
    wait_for(lambda: job.durable >= 30, "30 rows")
    server.kill()
    result = run.wait()
    summary = result.summary
    assert (result.code, summary["state"], summary["failed"], summary["errors"]) == (1, "stopped", 0, {}), result.err
    assert "no answer for" in result.err
    assert "retry.max_outage_s" in result.err
    assert summary["left"] == 200 - job.durable > 0
    server.start("--speed", "inf")
    done = job.durable
    assert whole(job, job.execute(), 200)["sent"] == job.sim.requests == 200 - done


def test_nothing_there_at_the_start(job: JobFolder, server: Server) -> None:
    """An address where nothing answers stops the run before it has failed its prompts one by one."""
    job.sim = server.sim
    job.settings["retry"] = {"attempts": 2}
    result = job.execute()
    summary = result.summary
    assert (result.code, summary["state"], summary["failed"], summary["done"]) == (1, "stopped", 0, 0), result.err
    assert f"cannot connect to 127.0.0.1:{server.port}" in result.err
    assert "hint: " in result.err
    server.start("--speed", "inf")
    assert whole(job, job.execute(), 40)["sent"] == 40


# -- budgets ------------------------------------------------------------------------------------


def paid(job: JobFolder, what: str) -> float:
    """What the rows paid: budget.usd or budget.tokens."""
    rows = job.results()
    if what == "usd":
        return sum(float(row["cost_usd"]) for row in rows)
    return sum(float(row["prompt_tokens"] + row["completion_tokens"]) for row in rows)


@pytest.mark.parametrize(("what", "small", "large"), [("tokens", 12_000, "1M"), ("usd", 0.012, 1.0)])
def test_a_budget_is_kept(job: JobFolder, sims: Sims, what: str, small: float, large: str | float) -> None:
    """The run stops before the request that could cross the budget; the same line sends nothing more."""
    job.sim = sims("--speed", "20", "--answer-tokens", "100")
    job.rows([{"question": f"What is {n} plus {n}?"} for n in range(100, 200)])  # all cost the same
    job.settings |= {"model": "gemma-4-31b", "params": {"max_completion_tokens": 2000}, "budget": {what: small}}
    first = job.execute()
    assert (first.code, first.summary["state"], first.summary["failed"]) == (4, "stopped", 0), first.err
    assert f"budget.{what}" in first.err
    assert "raise it and run the same line again" in first.err
    assert small / 2 < paid(job, what) <= small
    sent = first.summary["sent"]
    assert first.summary["done"] == sent == job.durable == job.sim.requests
    for _ in range(2):
        again = job.execute()
        assert (again.code, again.summary["sent"], job.sim.requests) == (4, 0, sent), again.err
        assert f"budget.{what}" in again.err
        assert "cut off" not in again.err  # nothing was sent, so nothing may be paid twice
    job.settings["budget"] = {what: large}
    whole(job, job.execute(), 100)
    assert job.sim.requests == 100


def test_a_budget_is_kept_to_the_last_that_fits(job: JobFolder, sims: Sims) -> None:
    """However prompts and answers differ, the budget is not crossed, and no long prompt keeps short ones from it."""
    job.sim = sims("--speed", "20", "--median-tokens", "200")
    job.rows([{"question": f"What is {n} plus {n}?" * (1 + 200 * (n % 20 == 0))} for n in range(100, 300)])
    job.settings |= {"params": {"max_completion_tokens": 1500}, "budget": {"tokens": 40_000}}
    first = job.execute()
    assert first.code == 4, first.err
    assert first.summary["done"] == first.summary["sent"]
    # A long prompt may cost 5,000 tokens more, but at most ten of 16 workers have one: the others have short ones.
    assert 0 <= 40_000 - paid(job, "tokens") < 1_500 + 250


def test_a_budget_of_time(job: JobFolder, sims: Sims) -> None:
    """budget.wall ends the session in time, and the next one has as much again."""
    job.sim = sims("--speed", "1")
    job.rows(questions(100))
    job.settings |= {"limits": {"concurrency": 4}, "budget": {"wall": 0.5}}
    first = job.execute()
    assert (first.code, first.summary["state"], first.summary["failed"]) == (4, "stopped", 0), first.err
    assert 0.4 < first.summary["elapsed_s"] < 3
    assert "budget.wall" in first.err
    assert 0 < first.summary["done"] < 100
    assert first.summary["abandoned"] == 0
    second = job.execute()
    assert second.summary["done"] > first.summary["done"]
    job.sim = sims("--speed", "inf")
    job.settings["budget"] = {}
    whole(job, job.execute(), 100)


def test_dollars_for_a_model_without_a_price(job: JobFolder) -> None:
    """A budget that could not be kept is an error of the job, which names the one that can be."""
    job.settings |= {"model": "someones-own-model", "budget": {"usd": 1.0}}
    result = job.execute()
    assert result.code == 2
    assert "budget.usd: no price is known for model 'someones-own-model'" in result.err
    assert "budget.tokens" in result.err
    assert job.sim.requests == 0
    assert not job.run.path.exists()


# -- answers that come late, or never -----------------------------------------------------------


def spent_twice(job: JobFolder) -> float:
    """The part of the tokens that went into answers that nobody has."""
    kept = sum(row["prompt_tokens"] + row["completion_tokens"] for row in job.results())
    stats = job.sim.stats()
    return float((stats["prompt_tokens"] + stats["completion_tokens"] - kept) / kept)


def test_a_late_answer_is_asked_for_again(job: JobFolder, sims: Sims) -> None:
    """With retry.hedge no stalled answer holds up a run, not even one of the first: each is asked for once more."""
    job.sim = sims("--speed", "inf", "--fault", "stall=0.02", "--stall-s", "20")
    job.rows(questions(500))
    job.settings["retry"] = {"hedge": "20%"}
    summary = whole(job, job.execute(), 500)
    assert summary["elapsed_s"] < 10
    assert (summary["retries"], summary["outages"]) == (0, 0)
    assert summary["hedged"] >= job.sim.stats()["faults"]["stall"] > 3
    assert summary["sent"] == 500 + summary["hedged"]
    assert summary["sent"] == job.sim.requests


def test_asking_again_keeps_to_its_share(job: JobFolder, sims: Sims) -> None:
    """retry.hedge: 1% is the most that may be paid twice, however many answers are late."""
    job.sim = sims("--speed", "inf", "--fault", "stall=0.1", "--stall-s", "0.5")
    job.rows(questions(500))
    job.settings["retry"] = {"hedge": "1%"}
    summary = whole(job, job.execute(), 500)
    assert 0 < summary["hedged"] < job.sim.stats()["faults"]["stall"] / 2
    assert 0 < spent_twice(job) < 0.02


def test_a_stall_is_given_up_when_all_others_are_long_done(job: JobFolder, sims: Sims) -> None:
    """How long an answer may take is learned from others: a stall is given up long before timeouts.total_s."""
    job.sim = sims("--speed", "inf", "--fault", "stall=0.01", "--stall-s", "60", "--seed", "5")
    job.rows(questions(300))
    job.settings |= {"timeouts": {"total_s": 50}, "params": {"max_completion_tokens": 2000}}
    # Ten seconds are given on top of what is learned: shortened here.
    result = job.execute(first="import cbatch.sizes; cbatch.sizes.DEADLINE_S = 0.5")
    summary = whole(job, result, 300)
    assert summary["elapsed_s"] < 10
    assert summary["retries"] == job.sim.stats()["faults"]["stall"] > 0


# -- a process, or a key, that ends -------------------------------------------------------------


def test_what_a_kill_may_cost_is_told(job: JobFolder, sims: Sims, forking: Forking) -> None:
    """After `kill -9`, status and the next run say how many prompts, and how many dollars, may be paid twice."""
    job.sim = sims("--speed", "5")
    job.rows(questions(300))
    job.settings["params"] = {"max_completion_tokens": 500}
    run = job.start()
    wait_for(lambda: job.durable >= 40, "40 rows")
    assert run.kill().code == -signal.SIGKILL
    found = status(job, forking)
    durable = job.durable
    assert (found["state"], found["done"]) == ("killed", durable)
    rows, usd = found["sent_outcome_unknown_at_most"], found["sent_outcome_unknown_usd"]
    lost = job.sim.requests - durable
    assert lost <= rows == 16 + 4 + 16
    dearest = max(row["cost_usd"] for row in job.results() or [{"cost_usd": 0.0001}])
    assert lost * dearest <= usd < 0.1
    again = job.execute()
    summary = whole(job, again, 300)
    assert (summary["paid_twice_at_most"], summary["paid_twice_usd"]) == (rows, pytest.approx(usd))
    assert f"at most {rows} prompts were sent and not saved" in again.err
    assert f"they are sent again and may be paid twice, at most ${usd:,.4f} in all" in again.err
    after = status(job, forking)
    assert (after["sent_outcome_unknown_at_most"], after["sent_outcome_unknown_usd"]) == (0, 0)


def test_a_key_that_is_revoked(job: JobFolder, server: Server) -> None:
    """401 in the middle stops the run, blames no prompt, and with a new key the same line goes on."""
    job.sim = server.sim
    job.rows(questions(300))
    server.start("--speed", "5", "--key", "csk-first")
    run = job.start(key="csk-first")
    wait_for(lambda: job.durable >= 40, "40 rows")
    server.kill()
    server.start("--speed", "5", "--key", "csk-second")
    result = run.wait()
    summary = result.summary
    assert (result.code, summary["state"], summary["failed"], summary["errors"]) == (1, "stopped", 0, {}), result.err
    assert "HTTP 401" in result.err
    assert "hint: the key was refused; check CEREBRAS_API_KEY" in result.err
    assert job.durable == summary["done"] >= 40
    assert "csk-first" not in result.err + result.out
    last = job.execute(key="csk-second")
    assert whole(job, last, 300)["sent"] == 300 - summary["done"]
