"""Sent, outcome unknown: the record on disk is never behind the truth."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbatch.errors import JournalError
from cbatch.journal import Journal, Writer
from cbatch.ledger import HEADROOM, ROWS, USD, Ledger, Unknown, unknown
from tests.conftest import VirtualLoop

Virtual = Callable[[Any], Any]


class Disk:
    """A journal's writer whose commits take `delay_s`; None: until `commit` is called. `saved` is what is durable."""

    def __init__(self, delay_s: float | None = 0.0) -> None:
        self.delay_s = delay_s
        self.saved: dict[str, Any] = {}
        self.history: list[tuple[str, Any]] = []
        self.broken: JournalError | None = None
        self._queued: list[tuple[str, Any, Future[None]]] = []

    def set(self, name: str, value: object) -> Future[None]:
        future: Future[None] = Future()
        self._queued.append((name, value, future))
        if self.delay_s == 0:
            self.commit()
        elif self.delay_s is not None:
            asyncio.get_running_loop().call_later(self.delay_s, self.commit, 1)
        return future

    def commit(self, most: int | None = None) -> None:
        """Make the oldest `most` values durable; None: all."""
        now, self._queued = self._queued[:most], self._queued[most:] if most else []
        for name, value, future in now:
            if self.broken:
                future.set_exception(self.broken)
            else:
                self.saved[name] = value
                self.history.append((name, value))
                future.set_result(None)

    @property
    def rows(self) -> int:
        found = self.saved.get(ROWS, 0)
        assert isinstance(found, int)
        return found

    @property
    def usd(self) -> float:
        return self.saved.get(USD) or 0.0


def ledger(disk: Disk, earlier: Unknown = Unknown(0, None), *, priced: bool = True) -> Ledger:  # noqa: B008
    return Ledger(cast(Writer, disk), earlier, priced=priced)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_more_rows_are_allowed_only_when_that_is_on_disk(virtual: Virtual) -> None:
    async def main() -> None:
        disk = Disk(None)
        task = asyncio.ensure_future(ledger(disk).allow(26))
        await turns()
        assert not task.done()
        disk.commit(1)  # the rows; their price is still on its way
        await turns()
        assert not task.done()
        disk.commit()
        await task
        assert (disk.rows, disk.usd) == (26, 0.0)

    virtual(main())


def test_a_dearer_request_is_covered_only_when_that_is_on_disk(virtual: Virtual) -> None:
    """Whoever looks at `row_usd` in between must not take the promise for the deed."""

    async def main() -> None:
        disk = Disk(0.0)
        of = ledger(disk)
        await of.allow(10)
        disk.delay_s = None
        task = asyncio.ensure_future(of.cover(0.02))
        await turns()
        assert (task.done(), of.row_usd, disk.usd) == (False, 0.0, 0.0)
        disk.commit()
        await task
        assert of.row_usd == pytest.approx(0.02 * HEADROOM)
        assert disk.usd == pytest.approx(10 * of.row_usd)

    virtual(main())


def test_two_who_are_dearer_at_once_are_both_covered_whoever_comes_first(virtual: Virtual) -> None:
    async def main(prices: tuple[float, float]) -> None:
        disk = Disk(0.01)
        of = ledger(disk)
        await of.allow(10)
        async with asyncio.TaskGroup() as group:
            for usd in prices:
                group.create_task(of.cover(usd))
        assert of.row_usd == pytest.approx(0.02 * HEADROOM)
        assert disk.usd == pytest.approx(10 * of.row_usd)

    virtual(main((0.02, 0.01)))
    virtual(main((0.01, 0.02)))


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("allow"), st.integers(1, 1_000).map(float)),
            st.tuples(st.just("cover"), st.floats(0.0, 1.0, allow_nan=False)),
        ),
        max_size=12,
    ),
    st.lists(st.floats(0.0, 0.1), min_size=12, max_size=12),
)
def test_what_is_true_is_on_disk_at_every_moment(steps: list[tuple[str, float]], pauses: list[float]) -> None:
    """Whatever is asked in whatever order, and however slow the disk is."""

    async def main() -> None:
        disk = Disk(0.04)
        of = ledger(disk)
        await of.allow(1)
        allowed = 1

        async def step(what: str, value: float) -> None:
            nonlocal allowed
            if what == "cover":
                await of.cover(value)
                assert of.row_usd >= value
            else:
                await of.allow(int(value))
                allowed = int(value)

        async def look() -> None:
            while True:
                assert disk.usd >= min(disk.rows, allowed) * of.row_usd - 1e-9
                await asyncio.sleep(0.001)

        watcher = asyncio.ensure_future(look())
        async with asyncio.TaskGroup() as group:
            for (what, value), pause in zip(steps, pauses, strict=False):
                group.create_task(step(what, value))
                await asyncio.sleep(pause)
        watcher.cancel()
        await asyncio.wait([watcher])
        assert watcher.cancelled()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())


def test_without_a_price_the_dollars_are_unknown_and_never_0(virtual: Virtual) -> None:
    async def main() -> None:
        disk = Disk()
        of = ledger(disk, priced=False)
        await of.allow(10)
        await of.cover(0.5)
        assert disk.saved == {ROWS: 10, USD: None}
        await of.settle(2, complete=False)
        assert disk.saved == {ROWS: 2, USD: None}

    virtual(main())


@pytest.mark.parametrize(
    ("complete", "abandoned", "rows", "usd"),
    [
        pytest.param(True, 0, 0, 0.0, id="every prompt has its row: nothing is unknown"),
        pytest.param(True, 2, 2, 0.25, id="only what was given up on the wire"),
        pytest.param(False, 0, 50, 7.0, id="rows are left: what earlier sessions sent stays unknown"),
        pytest.param(False, 80, 80, 10.0, id="more was given up than was unknown before"),
    ],
)
def test_a_session_that_ends_in_order_leaves_what_it_does_not_know(
    virtual: Virtual, complete: bool, abandoned: int, rows: int, usd: float
) -> None:
    async def main() -> None:
        disk = Disk()
        of = ledger(disk, Unknown(50, 7.0))
        await of.allow(26)
        await of.cover(0.1)
        assert (disk.rows, disk.usd) == (50, 7.0), "an earlier crash stays unknown while this session runs"
        await of.settle(abandoned, complete=complete)
        assert disk.rows == rows
        assert disk.usd == pytest.approx(usd)

    virtual(main())


def test_a_disk_that_is_full_stops_who_waits_for_it(virtual: Virtual) -> None:
    async def main() -> None:
        disk = Disk(0.1)
        of = ledger(disk)
        await of.allow(10)
        disk.broken = JournalError("the disk is full")
        with pytest.raises(JournalError):
            await of.allow(100)
        with pytest.raises(JournalError):
            await of.cover(1.0)
        assert (disk.rows, of.row_usd) == (10, 0.0), "nothing may be sent on the strength of what was not written"

    virtual(main())


def test_whoever_resumes_reads_what_was_written(tmp_path: Path) -> None:
    """The real journal: nothing there, a price, no price."""

    async def main() -> list[Unknown]:
        found = []
        with closing(Journal(tmp_path / "journal.sqlite", create=True)) as journal:
            found.append(unknown(journal))
            writer = Writer(journal, on_durable=lambda records: None, on_error=lambda error: None)
            try:
                for priced in (True, False):
                    of = Ledger(writer, Unknown(0, None), priced=priced)
                    await of.allow(26)
                    await of.cover(0.01)
                    found.append(unknown(journal))
            finally:
                writer.stop()
        return found

    nothing, priced, unpriced = asyncio.run(main())
    assert (nothing, unpriced) == (Unknown(0, None), Unknown(26, None))
    assert priced.rows == 26
    assert priced.usd == pytest.approx(26 * 0.01 * HEADROOM)
