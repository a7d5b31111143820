"""What a run reports of answers whose timing is known, over real sockets and in every shape that misleads.

The server notes when it really wrote each token, so what must hold does so however slow the machine is: a client
cannot have read a token before it was sent. How close the figures come is `python -m tests.bench.timing`.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pytest

from tests.bench.timing_log import Sent, read_log
from tests.bench.timing_plans import NAMES, PLANS, TOKEN, TOKENS_PER_S, WIDE, Plan
from tests.bench.timing_server import serving
from tests.integration.conftest import Forking, JobFolder, Sim, questions

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the server's timer is Linux's")

ROWS = 12
STREAMED = [name for name in NAMES if name != "refusing"]
IN_ONE_PIECE = ["plain", "reasoning", "no-usage", "no-time-info", "queue", "cut"]  # where that is not all the same
KINDS = [*((name, True) for name in NAMES), *((name, False) for name in IN_ONE_PIECE)]


@dataclass(frozen=True, slots=True)
class Run:
    """One run against one plan: its rows, each with the answer it is of, and all that was sent."""

    plan: Plan
    rows: list[tuple[dict[str, Any], Sent]]
    log: list[Sent]

    def values(self, column: str) -> list[Any]:
        return [row[column] for row, _ in self.rows]


Runs = Callable[..., Run]


@pytest.fixture(scope="module")
def runs(forking: Forking, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """`runs("reasoning")` is a run of 12 rows against that plan, made once; `runs("plain", stream=False)` too."""
    made: dict[tuple[str, bool], Run] = {}

    def find(name: str, *, stream: bool = True) -> Run:
        if (name, stream) not in made:
            job = JobFolder(tmp_path_factory.mktemp("job"), forking, Sim(f"{address}/{name}"))
            job.rows(questions(ROWS))
            job.settings |= {"params": {"stream": stream}, "limits": {"concurrency": 4}}
            try:
                ended = job.execute()
            finally:
                job.close()
            assert ended.code == 0, ended.err
            log = read_log(address)
            sent = {one.id: one for one in log if one.complete}
            made[name, stream] = Run(PLANS[name], [(row, sent[row["request_id"]]) for row in job.results()], log)
        return made[name, stream]

    with serving() as address:
        yield find


@pytest.mark.parametrize(("name", "stream"), KINDS)
def test_every_answer_is_there_whole(runs: Runs, name: str, stream: bool) -> None:
    run = runs(name, stream=stream)
    plan = run.plan
    token = WIDE if plan.cut else TOKEN
    assert len({sent.id for _, sent in run.rows}) == ROWS
    assert {sent.streamed for sent in run.log} == {stream}
    assert set(run.values("status")) == {"ok"}
    assert set(run.values("finish_reason")) == {"stop"}
    assert set(run.values("text")) == {token * (plan.tokens - plan.reasoning)}
    assert set(run.values("reasoning")) == {token * plan.reasoning or None}
    assert set(run.values("completion_tokens")) == {plan.tokens if plan.usage else None}
    assert set(run.values("reasoning_tokens")) == {plan.reasoning if plan.usage else None}


@pytest.mark.parametrize(("name", "stream"), KINDS)
def test_the_server_is_quoted_exactly_or_not_at_all(runs: Runs, name: str, stream: bool) -> None:
    """No arithmetic of ours comes between `time_info` and the row; without usage or `time_info` there is no speed."""
    run = runs(name, stream=stream)
    plan = run.plan
    assert set(run.values("server_tokens_per_s")) == {TOKENS_PER_S if plan.usage and plan.time_info else None}
    assert set(run.values("server_queue_s")) == {plan.queue_s if plan.time_info else None}
    assert set(run.values("server_prompt_s")) == {plan.prompt_s if plan.time_info else None}
    assert set(run.values("server_completion_s")) == {plan.completion_s if plan.time_info else None}


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_read_before_it_is_sent(runs: Runs, name: str) -> None:
    """Headers, a role, comments and half an event are no token; what follows the last token is the tail's."""
    for row, sent in runs(name).rows:
        tokens = sent.tokens_ns
        answers = [at for at, done in _after(tokens) if done > sent_reasoning(sent)]
        assert row["ttft_s"] >= _since(sent, tokens[0][0])
        assert row["ttfa_s"] >= _since(sent, answers[0])
        assert row["latency_s"] >= _since(sent, tokens[-1][0])
        assert row["latency_s"] + row["tail_s"] >= _since(sent, sent.stamps_ns[-1])
        assert 0 < row["ttft_s"] <= row["ttfa_s"] <= row["latency_s"]
        assert row["tail_s"] >= 0


def sent_reasoning(sent: Sent) -> int:
    return PLANS[sent.plan].reasoning


def _since(sent: Sent, at_ns: int) -> float:
    return (at_ns - sent.read_ns) / 1e9 - 1e-6  # the client's clock is a float


def _after(tokens: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """When, and how many tokens were sent by then."""
    return list(zip([at for at, _ in tokens], accumulate(count for _, count in tokens), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_chunks_and_reads_are_counted(runs: Runs, name: str) -> None:
    """Events that carry tokens, and reads: on a busy machine one read may bring several events, never the reverse."""
    for row, sent in runs(name).rows:
        tokens = sent.tokens_ns
        assert row["n_chunks"] == len(tokens) * PLANS[name].events
        assert 1 <= row["n_reads"] <= len(tokens)
        if PLANS[name].usage:  # the first read ended where one of the writes did
            assert min(abs(row["n1_est"] - done) for _, done in _after(tokens)) < 1e-6


@pytest.mark.parametrize("name", STREAMED)
def test_the_client_speed_is_near_the_truth_or_null(runs: Runs, name: str) -> None:
    """Half of the tokens in the first chunk would double the speed, and all of them make it infinite."""
    run = runs(name)
    speeds = [speed for speed in run.values("client_tokens_per_s") if speed is not None]
    assert all(speed > 0 for speed in speeds)
    if not run.plan.usage or name in ("one-chunk", "chunk-32"):  # no tokens are known; no window
        assert not speeds
    elif speeds:
        assert statistics.median(speeds) < 1.5 * TOKENS_PER_S


@pytest.mark.parametrize("name", ["reasoning", "mixed"])
def test_reasoning_comes_before_the_answer(runs: Runs, name: str) -> None:
    run = runs(name)
    assert any(row["ttfa_s"] > row["ttft_s"] for row, _ in run.rows)
    assert all(row["ttfa_s"] == row["ttft_s"] for row, _ in runs("plain").rows)


def test_a_late_end_is_in_the_tail_alone(runs: Runs) -> None:
    """The end comes 40 ms after the last token; a busy machine can only hide that, not make it up."""
    run = runs("done-late")
    assert max(run.values("tail_s")) > run.plan.done_late_s / 2
    assert all(row["e2e_tokens_per_s"] == pytest.approx(run.plan.tokens / row["latency_s"]) for row, _ in run.rows)


def test_the_servers_queue_is_not_the_network(runs: Runs) -> None:
    run = runs("queue")
    assert set(run.values("server_queue_s")) == {0.02}
    for row, _ in run.rows:
        assert row["net_s"] == pytest.approx(row["ttft_s"] - run.plan.queue_s - run.plan.prompt_s)
    assert set(runs("no-time-info").values("net_s")) == {None}


def test_a_refusal_is_tried_again_and_is_no_part_of_the_answer(runs: Runs) -> None:
    run = runs("refusing")
    refused = [sent for sent in run.log if sent.status == 429]
    assert refused
    assert sum(run.values("attempts")) == len(run.log) == ROWS + len(refused)
    for row, _ in run.rows:
        assert (row["attempts"] > 1) == (row["attempts_s"] > 0)


def test_without_a_stream_there_is_no_first_token(runs: Runs) -> None:
    run = runs("plain", stream=False)
    for column in ("ttft_s", "ttfa_s", "tail_s", "client_tokens_per_s", "n_chunks", "n_reads", "n1_est", "net_s"):
        assert set(run.values(column)) == {None}, column
    for row, sent in run.rows:
        assert row["latency_s"] >= _since(sent, sent.stamps_ns[-1])


@pytest.mark.parametrize("name", NAMES)
def test_the_server_keeps_to_its_plan(runs: Runs, name: str) -> None:
    """Nothing is sent before it is due, and the answers tell the truth about that."""
    run = runs(name)
    for _, sent in run.rows:
        for at_ns, write in zip(sent.stamps_ns, sent.writes, strict=True):
            assert at_ns - sent.read_ns >= write.at_ns
    plan = run.plan
    assert plan.queue_s + plan.prompt_s + plan.first_tokens / TOKENS_PER_S == pytest.approx(0.05)
    assert plan.prompt_s > 0
    assert sum(count for _, count in run.rows[0][1].tokens_ns) == plan.tokens
