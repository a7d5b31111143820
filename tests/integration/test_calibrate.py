"""The client's own lateness, against an echo that knows when it wrote: over real loopback sockets."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from cbatch import calibrate
from cbatch.client import Endpoint, connect


@pytest.fixture
def few_files() -> Iterator[None]:
    """A process that may open 150 files."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (150, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("in_flight", [1, 16])
async def test_an_idle_client_is_late_by_less_than_the_answer_takes(in_flight: int) -> None:
    """The echo's own delay is not in it: 50 ms to the first token leave a millisecond or two."""
    found = await calibrate.overhead(in_flight, 0.05, 0.02)
    assert found is not None
    assert 0 < found["p50"] <= found["p99"] <= found["max"]
    assert found["p50"] < 0.025
    assert found["n"] >= 20


async def test_every_place_is_asked_for_a_few_rounds() -> None:
    """The first answer of each connection is left out: it has the connecting in it."""
    found = await calibrate.overhead(50, 0.005, 0.002)
    assert found is not None
    assert calibrate.ROUNDS * 50 - 50 <= found["n"] <= calibrate.ROUNDS * 50 + 50


async def test_requests_are_not_in_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answered in one turn of the loop they would wait for each other, which those of a run do not."""
    asked: list[float] = []
    read = calibrate._Echo.data_received

    def noted(self: calibrate._Echo, data: bytes) -> None:
        asked.append(time.perf_counter())
        read(self, data)

    monkeypatch.setattr(calibrate._Echo, "data_received", noted)
    assert await calibrate.overhead(20, 0.05, 0.05) is not None
    assert asked[19] - asked[0] > 0.05


async def test_a_client_that_is_blocked_is_late() -> None:
    """What holds the event loop up is in the figure: the reason to look at it."""
    stop = False

    async def block() -> None:
        while not stop:
            time.sleep(0.02)  # noqa: ASYNC251 - that is the point
            await asyncio.sleep(0)  # every turn of the loop takes so long

    blocking = asyncio.create_task(block())
    found = await calibrate.overhead(4, 0.01, 0.01)
    stop = True
    await blocking
    assert found is not None
    assert found["p99"] > 0.01


@pytest.mark.parametrize("times", [(30.0, 60.0), (0.0, 30.0), (5.0, 0.0)])
async def test_a_slow_server_does_not_make_it_slow(times: tuple[float, float]) -> None:
    """The echo is as fast as it has to be for some rounds in the time there is."""
    began = time.monotonic()
    found = await calibrate.overhead(2, *times)
    assert time.monotonic() - began < calibrate.TIME_S + 1
    assert found is not None
    assert found["n"] >= 2


async def test_a_server_that_answers_at_once_is_no_division_by_zero() -> None:
    assert await calibrate.overhead(2, 0.0, 0.0) is not None


@pytest.mark.usefixtures("few_files")
async def test_where_so_many_files_may_not_be_open_nothing_is_known() -> None:
    """Rather than a figure of a lesser load, or a run that dies at its end."""
    assert await calibrate.overhead(200, 0.01, 0.01) is None
    assert await calibrate.overhead(4, 0.01, 0.01) is not None


async def test_nothing_is_left_behind() -> None:
    """No task, and no connection: the loop is as idle as before."""
    before = len(asyncio.all_tasks())
    assert await calibrate.overhead(20, 0.002, 0.001) is not None
    await asyncio.sleep(0.01)
    assert len(asyncio.all_tasks()) == before


async def test_the_echo_is_a_stream_like_any_other() -> None:
    """Its first token after the time it was given, ten reads, its last one when the generation is over."""
    async with calibrate._echo(0.05, 0.1) as url, connect(Endpoint(base_url=url)) as api:
        sent = time.perf_counter()
        answer = await api.complete(b'{"messages":[]}')
    assert answer.stream is not None
    assert answer.stream.n_reads >= 3
    assert 0.045 < answer.stream.first - sent < 0.2
    assert 0.05 < answer.stream.last - answer.stream.first < 0.3
    assert answer.time_info.queue_s is not None
    assert 0.045 < answer.time_info.queue_s < answer.stream.first - sent


async def test_more_in_flight_is_not_less_late() -> None:
    """On one core: the order is what a report is read for. Noise of a machine is allowed for."""
    found = [await calibrate.overhead(in_flight, 0.01, 0.01) for in_flight in (1, 300)]
    p50 = [one["p50"] for one in found if one is not None]
    assert len(p50) == 2
    assert all(b > 0.5 * a for a, b in pairwise(p50))
