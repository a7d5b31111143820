"""What a block counts as measured: by the clock of the run, without a server."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from cbatch import load as loads
from cbatch.job import Load
from cbatch.load import _Block
from cbatch.loadplan import Stage
from cbatch.schema import COLUMN_INDEX, COLUMNS, Prompt, Record, Timeline
from cbatch.session import Activity


class FakeRun:
    """As much of a run as a block sees."""

    def __init__(self, **load: Any) -> None:
        self.load = Load.model_validate(load)
        self.now = 1_000.0
        self.progress = SimpleNamespace(activity=Activity())
        self.meter = SimpleNamespace(stretch=None, wanted=None, starved_s=0.0)
        self.rows = 4

    def clock(self) -> float:
        return self.now

    def wall(self, stamp: float) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=stamp)

    def prompts_of_block(self, model: str) -> Any:
        prompt = Prompt(id="a", index=0, sample=0, model=model, fields={}, raw=b"", origin="")
        return itertools.repeat(prompt)


def a_block(run: FakeRun, level: float, *, unit: Any = "in flight") -> _Block:
    return _Block(run, Stage(model="m", level=level, unit=unit), 0, ())  # type: ignore[arg-type]


def answer(run: FakeRun, block: _Block, timeline: Timeline, sent: float, latency_s: float, tokens: int = 10) -> None:
    run.now = sent + latency_s
    timeline.sent = timeline.first_sent = sent
    row: list[Any] = [None] * len(COLUMNS)
    for name, value in (("latency_s", latency_s), ("tail_s", 0.0), ("completion_tokens", tokens)):
        row[COLUMN_INDEX[name]] = value
    block.answered(Record(key=b"", sample=0, digest=b"", ok=True, attempts=1, row=row), timeline)


def take(block: _Block) -> Timeline:
    found = block.next()
    assert found is not None
    return found[1]


async def test_what_ended_in_the_window_was_completed_in_it_whenever_it_was_sent() -> None:
    run = FakeRun(mode="open", rate=1, arrival="constant", warmup_s=2, duration_s=4)
    block = a_block(run, 1, unit="requests/s")
    times = [take(block) for _ in range(6)]  # due after 0, 1 | 2, 3, 4, 5 s: the window is 2 .. 6
    for timeline, sent, latency_s in zip(times, [0, 1, 2, 3, 4, 9], [1.0, 1.5, 1.0, 1.0, 2.5, 1.0], strict=True):
        answer(run, block, timeline, 1_000 + sent, latency_s)
    assert block.next() is None
    found = block.found(complete=True)
    assert (found["requests"], found["completed"], found["completed_tokens"]) == (4, 3, 30)
    assert found["measured_s"] == pytest.approx(4)
    assert found["in_flight"] == pytest.approx((0.5 + 1 + 1 + 2) / 4, abs=0.01)


async def test_a_request_that_is_taken_early_is_ready_when_it_is_due() -> None:
    run = FakeRun(mode="open", rate=1, arrival="constant", warmup_s=0, duration_s=4)
    block = a_block(run, 1, unit="requests/s")
    assert [take(block).ready for _ in range(3)] == [1_000, 1_001, 1_002]
    run.now = 1_007.0
    assert take(block).ready == 1_007


async def test_a_long_block_keeps_no_value_of_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loads, "FEW_VALUES", 50)
    run = FakeRun(mode="closed", concurrency=1, warmup_s=0, duration_s=1_000)
    block = a_block(run, 1)
    for _ in range(200):
        answer(run, block, take(block), run.now, 1.0)
    assert {name: len(values) for name, values in block._values.items()} == {"latency_s": 50, "ttft_s": 0}
    found = block.found(complete=True)
    assert (found["requests"], found["completed"], found["times_s"]) == (200, 200, [1.0, 0.0])
