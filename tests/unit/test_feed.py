"""What workers pull from: nothing is handed out twice, and nobody holds up the event loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from cbatch.feed import Pending, Places
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


def test_places_are_taken_and_waited_for_in_order(virtual: Virtual) -> None:
    async def main() -> None:
        places = Places(2)
        assert [places.take() for _ in range(3)] == [True, True, False]
        first, second, third = (asyncio.ensure_future(places.wait()) for _ in range(3))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.sleep(0)
        places.give_back(1)
        await asyncio.sleep(0)
        assert (first.done(), third.done()) == (True, False)
        places.give_back(5)
        await third
        assert (places.size, places.taken) == (2, -2)

    virtual(main())


def test_after_a_cut_nobody_goes_until_enough_was_given_back(virtual: Virtual) -> None:
    async def main() -> None:
        places = Places(100)
        assert all(places.take() for _ in range(100))
        places.resize(10)
        waiting = asyncio.ensure_future(places.wait())
        places.give_back(90)
        await asyncio.sleep(0)
        assert (places.taken, places.take(), waiting.done()) == (10, False, False)
        places.give_back(1)
        await waiting
        assert places.taken == 10
        places.resize(12)
        assert [places.take() for _ in range(3)] == [True, True, False]

    virtual(main())


def test_more_places_let_in_who_waits(virtual: Virtual) -> None:
    async def main() -> None:
        places = Places(0)
        waiting = [asyncio.ensure_future(places.wait()) for _ in range(5)]
        await asyncio.sleep(0)
        places.resize(3)
        await asyncio.sleep(0)
        assert [task.done() for task in waiting] == [True, True, True, False, False]
        places.resize(5)
        await asyncio.wait(waiting)

    virtual(main())
