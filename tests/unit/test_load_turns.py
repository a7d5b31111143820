"""Whose block is next, where several jobs are run in turns."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from cbatch.turns import Turns


async def played(*players: tuple[str, Sequence[int], float]) -> str:
    """The order of the blocks of (name, numbers of its blocks, seconds until it is there); capitals calibrate."""
    turns = Turns()
    order = ""
    objects = [object() for _ in players]
    for player in objects:
        turns.join(player)

    async def play(player: object, name: str, blocks: Sequence[int], late_s: float) -> None:
        nonlocal order
        await asyncio.sleep(late_s)
        try:
            for number in blocks:
                await turns.take(player, number)
                order += name
                await asyncio.sleep(1)
                turns.give(player)
            await turns.take(player, sys.maxsize)
            order += name.upper()
            await asyncio.sleep(1)
        finally:
            turns.leave(player)

    async with asyncio.TaskGroup() as group:
        for player, about in zip(objects, players, strict=True):
            group.create_task(play(player, *about))
    return order


@pytest.mark.parametrize(
    ("players", "order"),
    [
        pytest.param([("a", range(4), 0), ("b", range(4), 0)], "abbaabba", id="every second round goes backwards"),
        pytest.param([("a", range(2), 0), ("b", range(2), 9)], "abba", id="who comes late is waited for"),
        pytest.param([("a", range(3, 5), 0), ("b", range(2, 5), 0)], "bbaab", id="who is behind after a kill is first"),
        pytest.param([("a", range(1), 0), ("b", range(3), 0)], "abbb", id="who has no more does not hold the other"),
        pytest.param([("a", (), 0), ("b", range(2), 0)], "bb", id="nor who had none"),
        pytest.param([(name, range(3), 0) for name in "abc"], "abccbaabc", id="three"),
    ],
)
def test_turns(virtual: Callable[[Any], str], players: Sequence[Any], order: str) -> None:
    """And nobody calibrates while another one measures."""
    found = virtual(played(*players))
    assert found.rstrip("ABC") == order
    assert sorted(found[len(order) :].lower()) == sorted(name for name, *_ in players)


def test_who_is_cancelled_does_not_hold_the_other(virtual: Callable[[Any], None]) -> None:
    async def main() -> None:
        turns, a, b = Turns(), object(), object()
        turns.join(a)
        turns.join(b)
        waiting = asyncio.create_task(turns.take(b, 0))
        await turns.take(a, 0)
        turns.leave(a)  # as a run does whose block raised
        await asyncio.wait_for(waiting, 1)

    virtual(main())
