"""What workers pull from: nothing is handed out twice, and nobody holds up the event loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from cbatch.feed import Pending
from cbatch.job import Job
from cbatch.journal import Journal
from cbatch.resume import BREATHE_ROWS, Resume
from cbatch.session import Options, Progress
from cbatch.source import Source

Virtual = Callable[[Any], Any]


def test_rows_passed_over_let_the_loop_breathe_as_known_ones_do(tmp_path: Path) -> None:
    """`where` leaves one row of 10,000: no step reads more than BREATHE_ROWS of the others."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"n": n}) + "\n" for n in range(10_000)))
    spec = {"path": "rows.jsonl", "where": "n == 9999"}
    job = Job.model_validate({"name": "j", "model": "m", "input": spec, "prompt": "x", "folder": str(tmp_path)})
    source = Source(job)
    survey = source.survey()
    with closing(Journal(tmp_path / "journal.sqlite", create=True)) as journal:
        works = list(Resume(job, journal, {}, Options()).unanswered(source, survey, "m", Progress()))
    assert [work.prompt.index for work in works if work] == [9_999]
    assert len(works) == 9_999 // BREATHE_ROWS + 1


def test_one_of_all_workers_looks_for_what_is_left(virtual: Virtual) -> None:
    """A turn of the event loop skips one stretch of rows, however many workers wait for the next prompt."""
    turns = 0
    stretches: list[int] = []

    def works() -> Iterator[int | None]:
        for _ in range(20):
            stretches.append(turns)
            yield None
        yield from range(100)

    async def main() -> list[int]:
        nonlocal turns
        pending, found = Pending(works()), []

        async def worker() -> None:
            while not await pending.is_empty():
                if (work := pending.pull()) is not None:
                    found.append(work)

        async with asyncio.TaskGroup() as group:
            for _ in range(50):
                group.create_task(worker())
            while len(found) < 100:
                turns += 1
                await asyncio.sleep(0)
        return found

    assert sorted(virtual(main())) == list(range(100))
    assert len(set(stretches)) == len(stretches)
