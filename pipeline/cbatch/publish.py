"""Journal rows -> visible parts: steps P2 to P5, and what a crash between them leaves to do.

    P2  one transaction gives a range of rows a part and its name (PLANNED)
    P3  the part is staged, fsynced, and its sha-256 taken
    P4  it is renamed into results/, and the folder fsynced
    P5  one transaction makes it VISIBLE; its bodies are cleared

Killed anywhere in between, the next start does the rest again from the bodies, under the same
name. A part whose rows were run again is rewritten in place: its new rows lie as bodies in its
range. So at every moment each prompt has at most one row in results/.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cbatch.errors import JournalError
from cbatch.journal import PLANNED, VISIBLE, Journal, Part, Writer, key_of
from cbatch.parquet import columns_of, read_rows, sha256, types_of, write_part


class Publisher:
    """Makes parts of one run directory, one at a time, away from the event loop."""

    def __init__(self, folder: Path, journal: Journal, writer: Writer, carried: Mapping[str, str]) -> None:
        self._results = folder / "results"
        self._staging = folder / "staging"
        self._journal = journal
        self._writer = writer
        self._carried = carried
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="parts")
        self._running: Future[None] | None = None

    def recover(self) -> None:
        """P0: finish the parts that were planned and never became visible; clear what was staged."""
        shutil.rmtree(self._staging, ignore_errors=True)
        for part in self._journal.parts():
            if part.state == PLANNED:
                self._finish(part, self._journal)

    def cut(self, first_seq: int, last_seq: int) -> None:
        """Start making a part of the rows in a range; errors arrive at `close`, or at the next `cut`."""
        self._raise_if_failed()
        self._running = self._thread.submit(self.cut_now, first_seq, last_seq)

    def _raise_if_failed(self) -> None:
        if self._running is not None and self._running.done():
            self._running.result()

    def cut_now(self, first_seq: int, last_seq: int) -> None:
        """Make a part of the rows in a range, and wait for it. Raises JournalError."""
        journal = self._journal.reader()
        try:
            number = len(journal.parts())
            self._writer.plan_part(f"part-{number:05d}.parquet", first_seq, last_seq).result()
            self._finish(journal.parts()[-1], journal)
        finally:
            journal.close()

    def cut_unplaced(self) -> None:
        """Make a part of all rows that no part has taken yet. Blocks."""
        first, last = self._journal.unplaced()
        if first <= last:
            self.cut_now(first, last)

    def finish(self) -> None:
        """Cut what is left, wait for it, and rewrite the parts whose rows were run again. Blocks."""
        self._thread.shutdown(wait=True)
        self._raise_if_failed()
        self.cut_unplaced()
        for part in self._journal.parts():
            if part.state == VISIBLE and self._journal.count_bodies(part.first_seq, part.last_seq):
                self._finish(part, self._journal)

    def close(self) -> None:
        """Wait for the part being made, and forget the rest: the next start makes it."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _finish(self, part: Part, journal: Journal) -> None:
        final = self._results / part.name
        try:
            digest = write_part(self._rows(part, journal), self._carried, self._staging / part.name, final)
        except OSError as exc:
            raise JournalError(
                f"{final}: cannot be written: {exc.strerror or exc}",
                hint="every answer is safe in the journal; free some space and run the same line again",
            ) from None
        self._writer.part_visible(part, digest).result()

    def _rows(self, part: Part, journal: Journal) -> Iterator[list[Any]]:
        bodies = journal.bodies(part.first_seq, part.last_seq)
        if part.state == PLANNED:
            yield from (row for _, row in bodies)
            return
        newer = next(bodies, None)
        for seq, row in enumerate(read_rows(self._results / part.name), part.first_seq):
            if newer is not None and newer[0] == seq:
                yield newer[1]
                newer = next(bodies, None)
            else:
                yield row


def rebuild(folder: Path, writer: Writer) -> int:
    """Learn the known rows from the parts in results/ when the journal is lost; returns how many.

    Raises JournalError if a file there is no part of ours.
    """
    paths = sorted((folder / "results").glob("*"))
    seq = 1
    for number, path in enumerate(paths):
        wanted = ["id", "model", "sample", "digest", "status", "attempts"]
        try:
            if not set(wanted) <= set(columns_of(path)):
                raise OSError("not a part of a cbatch run")
            rows = [
                (key_of(row[0], row[1]), row[2], bytes.fromhex(row[3] or ""), row[4] == "ok", row[5] or 0)
                for row in read_rows(path, wanted)
            ]
        except OSError as exc:
            raise JournalError(
                f"{path}: {exc}",
                hint="results/ must hold nothing but parts; choose another --output, or move it away",
            ) from None
        part = Part(number + 1, path.name, VISIBLE, seq, seq + len(rows) - 1, sha256(path))
        writer.adopt_part(part, rows).result()
        seq += len(rows)
    return seq - 1


def carried_types(folder: Path) -> dict[str, str] | None:
    """The carried columns of the parts in results/; None when there are none."""
    first = next(iter(sorted((folder / "results").glob("*.parquet"))), None)
    return types_of(first) if first else None
