"""Sent, outcome unknown: what a crash right now may have paid for in vain, in rows and in dollars.

The third state between "answered" and "not sent". It is on disk before it is true, so that whoever
resumes can say "at most N prompts may be paid twice, at most $X", whatever ended the session.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from cbatch.journal import Journal, Writer

ROWS, USD = "unknown_at_most", "unknown_usd"
HEADROOM = 1.25  # a dearer prompt than any before may be followed by one that is dearer still


class Unknown(NamedTuple):
    """How many prompts may have been paid for without a saved answer, and what they cost; None: no price."""

    rows: int
    usd: float | None


def unknown(journal: Journal) -> Unknown:
    """What the journal says about sessions that ended without learning what became of their requests."""
    usd = journal.get(USD)
    return Unknown(journal.get(ROWS) or 0, usd if isinstance(usd, int | float) else None)


class Ledger:
    """Keeps the record ahead of the truth. `earlier` is what earlier sessions left unknown."""

    def __init__(self, writer: Writer, earlier: Unknown, *, priced: bool) -> None:
        self._writer = writer
        self._earlier = earlier
        self._priced = priced
        self._rows = 0
        self._row_usd = 0.0  # on its way to the disk
        self.row_usd = 0.0  # the dearest single request that is covered: on disk

    async def allow(self, rows: int) -> None:
        """So many rows may be sent and not yet durable from now on."""
        self._rows = rows
        await self._write()

    async def cover(self, usd: float) -> None:
        """A single request may cost so much."""
        self._row_usd = covered = max(self._row_usd, usd * HEADROOM)
        await self._write()
        self.row_usd = max(self.row_usd, covered)  # not before: others would send what is not on disk yet

    async def _write(self) -> None:
        self._writer.set(ROWS, max(self._rows, self._earlier.rows))
        usd = self._rows * self._row_usd if self._priced else None
        if usd is not None:
            usd = max(usd, self._earlier.usd or 0.0)
        # A worker that is cancelled here must not cancel the future that the journal's thread sets: that would end it.
        await asyncio.shield(asyncio.wrap_future(self._writer.set(USD, usd)))

    async def settle(self, abandoned: int, *, complete: bool) -> None:
        """The session ends in order: only what was given up on the wire is unknown.

        What earlier sessions may have paid for stays unknown while rows are left.
        """
        rows = abandoned if complete else max(abandoned, self._earlier.rows)
        usd = abandoned * self.row_usd if self._priced else None
        if usd is not None and not complete:
            usd = max(usd, self._earlier.usd or 0.0)
        self._writer.set(ROWS, rows)
        await asyncio.wrap_future(self._writer.set(USD, usd))


class NoLedger(Ledger):
    """For who keeps no journal: nothing is sent again, so nothing has to be remembered."""

    def __init__(self) -> None:
        """Covers everything."""
        self.row_usd = float("inf")

    async def allow(self, rows: int) -> None:
        """Any number."""

    async def cover(self, usd: float) -> None:
        """Any price."""

    async def settle(self, abandoned: int, *, complete: bool) -> None:
        """Nothing."""
