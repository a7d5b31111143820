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

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from cbatch.errors import JournalError
from cbatch.journal import PLANNED, VISIBLE, Journal, Part, Writer, key_of
from cbatch.parquet import PART_COLUMNS, is_part, read_rows, sha256, types_of, write_part


class Publisher:
    """Makes parts of one run directory, one at a time, away from the event loop."""

    def __init__(self, folder: Path, journal: Journal, writer: Writer, carried: Mapping[str, str]) -> None:
        self._results = folder / "results"
        self._staging = folder / "staging"
        self._journal = journal
        self._writer = writer
        self._carried = carried
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="parts")
        self._running: list[Future[None]] = []

    def recover(self) -> None:
        """P0: finish the parts that were planned and never became visible; clear what was staged.

        Raises JournalError if a visible part is no longer there: its rows are known, so they would
        be neither in results/ nor sent again.
        """
        for part in self._journal.parts():
            # By name: with `--output .` there may be a staging/ that is not ours.
            (self._staging / part.name).unlink(missing_ok=True)
            if part.state == PLANNED:
                self._finish(part, self._journal)
            elif not (self._results / part.name).is_file():
                raise JournalError(
                    f"{self._results / part.name}: missing, and {part.rows:,} answered rows with it",
                    hint="put it back, or move the journal files away: then its rows, and rows in no part yet, "
                    "are sent again",
                )

    def cut(self, first_seq: int, last_seq: int) -> None:
        """Start making a part of the rows in a range; errors arrive at `close`, or at the next `cut`."""
        self._raise_if_failed()
        self._running.append(self._thread.submit(self.cut_now, first_seq, last_seq))

    def _raise_if_failed(self) -> None:
        # In order: a later cut may have succeeded, and must not hide that an earlier one did not.
        while self._running and self._running[0].done():
            self._running.pop(0).result()

    def cut_now(self, first_seq: int, last_seq: int) -> None:
        """Make a part of the rows in a range, and wait for it. Raises JournalError."""
        journal = self._journal.reader()
        try:
            parts = journal.parts()
            # Not just the number of parts: after a rebuild, part 3 may be the only one there is.
            taken = {part.name for part in parts}
            name = next(name for n in count(len(parts)) if (name := f"part-{n:05d}.parquet") not in taken)
            self._writer.plan_part(name, first_seq, last_seq).result()
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
        # Bodies of parts just made are still being cleared; only what remains after that was run again.
        self._writer.clear_bodies().result()
        for part in self._journal.parts():
            if self._journal.count_bodies(part.first_seq, part.last_seq):
                self._finish(part, self._journal)
        with suppress(OSError):
            self._staging.rmdir()

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
        old = iter(()) if part.state == PLANNED else read_rows(self._results / part.name)
        newer = next(bodies, None)
        for seq in range(part.first_seq, part.last_seq + 1):
            row = next(old, None)
            if newer is not None and newer[0] == seq:
                row, newer = newer[1], next(bodies, None)
            if row is None:  # published like this, every later row would stand in the wrong place
                raise JournalError(
                    f"{self._results / part.name}: row {seq - part.first_seq + 1:,} of {part.rows:,} is missing",
                    hint="the part was changed by something else: put it back as it was",
                )
            yield row


def rebuild(folder: Path, writer: Writer) -> int:
    """Learn the known rows from the parts in results/ that the journal does not name; returns how many.

    Without a loss there are none: a part is planned before it is published. After one it may be all
    of them, or the rest, if an earlier rebuild was killed. Raises JournalError if a file there is no
    part of ours.
    """
    journal = Journal(writer.path)
    parts = journal.parts()
    last = journal.last_seq()
    journal.close()
    named = {part.name for part in parts}
    learnt = 0
    for path in sorted((folder / "results").glob("*.parquet")):
        if path.name in named:
            continue
        try:
            if not is_part(path):
                raise OSError("not a part of a cbatch run")
            rows = [
                (key_of(row[0], row[1]), row[2], bytes.fromhex(row[3] or ""), row[4] == "ok", row[5] or 0)
                for row in read_rows(path, PART_COLUMNS)
            ]
        except OSError as exc:
            raise JournalError(
                f"{path}: {exc}",
                hint="results/ must hold nothing but parts; choose another --output, or move it away",
            ) from None
        writer.adopt_part(Part(0, path.name, VISIBLE, last + 1, last + len(rows), sha256(path)), rows).result()
        last += len(rows)
        learnt += len(rows)
    return learnt


def carried_types(folder: Path) -> dict[str, str] | None:
    """The carried columns of the parts in results/; None when there are none."""
    first = next(iter(sorted((folder / "results").glob("*.parquet"))), None)
    return types_of(first) if first else None
