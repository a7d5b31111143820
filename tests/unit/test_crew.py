"""Workers that come and go: as many as the throttle allows, and never more rows out than the ledger has on disk."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbatch.crew import Crew
from cbatch.errors import JournalError
from cbatch.feed import Places
from cbatch.job import bound
from cbatch.throttle import Throttle
from tests.conftest import VirtualLoop
from tests.unit.test_ledger import Disk, ledger

Virtual = Callable[[Any], Any]


class Office:
    """A crew that works off rows like the engine does: take a place, take a row, and a while later it is durable."""

    def __init__(
        self,
        rows: int,
        throttle: Throttle,
        disk: Disk,
        *,
        row_s: float = 1.0,
        durable_s: float = 0.0,
        grows: bool = True,
    ) -> None:
        self.left, self.throttle, self.disk = rows, throttle, disk
        self.row_s, self.durable_s, self.grows = row_s, durable_s, grows
        self.places = Places(0)
        self.errors: list[JournalError] = []
        self.crew = Crew(
            self.work, throttle=throttle, places=self.places, ledger=ledger(disk), on_error=self.errors.append
        )
        self.working = self.most_working = self.out = self.done = 0
        self.started: list[int] = []
        self.fail_at: int | None = None

    async def work(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        self.started.append(number)
        while self.left:
            if not self.crew.may_stay():
                return
            if not self.places.take():
                await self.places.wait()
            if not self.left:
                self.places.give_back(1)
                return
            self.left -= 1
            self.out += 1
            assert self.out <= self.disk.rows, "sent before it was on disk that so many may be"
            self.working += 1
            self.most_working = max(self.most_working, self.working)
            sent_at = loop.time()
            await asyncio.sleep(self.row_s)
            self.working -= 1
            self.done += 1
            if self.done == self.fail_at:
                raise RuntimeError("a bug")
            if self.grows:
                self.throttle.answered(loop.time(), sent_at, 0.1, self.working + 1)
            if self.durable_s:
                loop.call_later(self.durable_s, self._durable)
            else:
                self._durable()

    def _durable(self) -> None:
        self.out -= 1
        self.places.give_back(1)


def test_a_fixed_number_of_workers_does_all_rows(virtual: Virtual) -> None:
    async def main() -> None:
        office = Office(100, Throttle(7, 7), Disk())
        await office.crew.run(100)
        assert (office.done, office.most_working, office.crew.most, office.started) == (100, 7, 7, list(range(7)))
        assert office.disk.rows == bound(7)
        assert not office.crew.tasks

    virtual(main())


@pytest.mark.parametrize("rows", [1, 3])
def test_there_is_at_most_one_worker_a_row(virtual: Virtual, rows: int) -> None:
    async def main() -> None:
        office = Office(rows, Throttle(50, 512), Disk())
        await office.crew.run(rows)
        assert (office.done, office.crew.most, office.disk.rows) == (rows, rows, bound(rows))
        assert len(office.disk.history) == 2, "and nobody tries to grow again and again"

    virtual(main())


def test_no_rows_are_no_workers_for_long(virtual: Virtual) -> None:
    async def main() -> None:
        office = Office(0, Throttle(1, 512), Disk())
        await office.crew.run(0)
        assert (office.done, office.crew.tasks) == (0, set())

    virtual(main())


def test_it_grows_with_the_throttle(virtual: Virtual) -> None:
    async def main() -> None:
        office = Office(5_000, Throttle(1, 128), Disk())
        loop = asyncio.get_running_loop()
        started = loop.time()
        await office.crew.run(5_000)
        assert office.most_working == 128
        assert loop.time() - started < 10 + 5_000 / 128 + 3

    virtual(main())


def test_nobody_is_hired_before_the_larger_bound_is_on_disk(virtual: Virtual) -> None:
    """A disk that takes 20 s a commit: the crew works on with as many as are covered."""

    async def main() -> None:
        disk = Disk()
        office = Office(400, Throttle(1, 64), disk)
        task = asyncio.ensure_future(office.crew.run(400))
        await asyncio.sleep(0)
        disk.delay_s = 20.0
        await asyncio.sleep(19)
        assert (office.throttle.limit, office.most_working, disk.rows) == (12, 8, bound(8))
        disk.delay_s = 0.1
        await asyncio.sleep(3)
        assert office.working > 8
        await task
        assert office.done == 400

    virtual(main())


def test_a_cut_sends_workers_home_after_their_row_and_not_all_of_them(virtual: Virtual) -> None:
    async def main() -> None:
        throttle = Throttle(1, 100)
        throttle.limit = 100
        office = Office(2_000, throttle, Disk(), grows=False)
        task = asyncio.ensure_future(office.crew.run(2_000))
        await asyncio.sleep(2.5)
        assert office.working == 100
        throttle.limit = 30
        await asyncio.sleep(0.1)
        assert office.working == 100, "a row in flight is paid for: it is waited for"
        await asyncio.sleep(1)
        assert (office.working, len(office.crew.tasks)) == (30, 30)
        throttle.limit = 60
        await asyncio.sleep(1)
        assert office.working == 60, "and grows again"
        await task
        assert office.done == 2_000

    virtual(main())


def test_the_last_worker_stays(virtual: Virtual) -> None:
    async def main() -> None:
        office = Office(50, Throttle(1, 100), Disk(), grows=False)
        task = asyncio.ensure_future(office.crew.run(50))
        await asyncio.sleep(0.5)
        office.throttle.limit = 1
        await task
        assert office.done == 50

    virtual(main())


def test_rows_that_were_sent_under_a_larger_bound_stay_on_the_record(virtual: Virtual) -> None:
    """100 in flight, a slow disk for rows, a cut to 20, growth to 21: what is out is still up to 141."""

    async def main() -> None:
        throttle = Throttle(1, 100)
        throttle.limit = 100
        office = Office(3_000, throttle, Disk(), grows=False, durable_s=10.0)
        task = asyncio.ensure_future(office.crew.run(3_000))
        await asyncio.sleep(2.5)
        throttle.limit = 20
        await asyncio.sleep(9.0)
        throttle.limit = 21
        await asyncio.sleep(1.6)
        assert office.disk.rows >= office.out
        await task
        assert office.done == 3_000

    virtual(main())


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 400),
    row_s=st.sampled_from([0.0, 0.3, 2.0]),
    durable_s=st.sampled_from([0.0, 0.5, 30.0]),
    disk_s=st.sampled_from([0.0, 0.2, 7.0]),
)
def test_every_row_is_done_once_whatever_the_throttle_and_the_disk_do(
    seed: int, rows: int, row_s: float, durable_s: float, disk_s: float
) -> None:
    """Never more rows out than are on disk (asserted at every row), never more workers than bound, and an end."""

    async def main() -> None:
        rng = random.Random(seed)
        throttle = Throttle(1, 100)
        office = Office(rows, throttle, Disk(disk_s), row_s=row_s, durable_s=durable_s, grows=False)
        task = asyncio.ensure_future(office.crew.run(rows))
        async with asyncio.timeout(100_000):
            while not task.done():
                throttle.limit = rng.randint(1, 100)
                assert len(office.crew.tasks) <= max(office.disk.rows, 1)
                await asyncio.sleep(rng.random())
        await task
        assert (office.done, office.left, office.working) == (rows, 0, 0)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())


def test_an_error_in_one_worker_ends_all(virtual: Virtual) -> None:
    async def main() -> None:
        office = Office(10_000, Throttle(1, 64), Disk())
        office.fail_at = 300
        with pytest.raises(BaseExceptionGroup) as caught:
            await office.crew.run(10_000)
        assert [str(exc) for exc in caught.value.exceptions] == ["a bug"]
        assert office.done < 300 + 64
        await asyncio.sleep(0)
        assert not office.crew.tasks

    virtual(main())


@pytest.mark.parametrize("later", [False, True])
def test_a_ledger_that_cannot_be_written_is_told_once_and_hires_nobody(virtual: Virtual, later: bool) -> None:
    """At the start, and when the crew wants to grow: whoever is told ends the run, and rows on the wire are kept."""

    async def main() -> None:
        disk = Disk(0.1)
        office = Office(10_000, Throttle(1, 64), disk)
        if not later:
            disk.broken = JournalError("the disk is full")
        task = asyncio.ensure_future(office.crew.run(10_000))
        await asyncio.sleep(0.5)
        disk.broken = disk.broken or JournalError("the disk is full")
        await asyncio.sleep(20)
        assert office.errors == [disk.broken]
        assert task.done() != later, "a crew that has nobody is at its end"
        office.left = 0  # what the engine does: nothing more is given out
        await task
        assert (office.most_working, office.crew.most) == ((8, 8) if later else (0, 0))
        assert (office.working, office.crew.tasks) == (0, set())

    virtual(main())


def test_a_crew_that_is_cancelled_leaves_nobody_behind(virtual: Virtual) -> None:
    async def main() -> None:
        office = Office(10_000, Throttle(1, 64), Disk(), durable_s=50.0)
        task = asyncio.ensure_future(office.crew.run(10_000))
        await asyncio.sleep(5.5)
        task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0)
        assert task.cancelled()
        assert not office.crew.tasks

    virtual(main())
