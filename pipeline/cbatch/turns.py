"""Several jobs, block by block: whose turn it is."""

from __future__ import annotations

import asyncio


class Turns:
    """Whose block is next, where several jobs are run in turns: A B, B A, A B.

    Every second round goes backwards, so that what drifts in the meantime drifts for all of them alike: with
    A always first, identical jobs under a steady trend of 2 % a block are told apart 26 times of 100. Whoever has
    fewer blocks is next, also where a kill took one. Nobody begins before all are there: reading another job's
    input would be measured with the block.
    """

    def __init__(self) -> None:
        self._done: dict[object, int | None] = {}  # blocks; None: has not come for its turn yet
        self._changed = asyncio.Event()

    def join(self, player: object) -> None:
        """Take part from now on; all do before the first turn."""
        self._done[player] = None

    async def take(self, player: object, done: int) -> None:
        """Wait for the turn of `player`, who has so many blocks behind it: one a round."""
        self._done[player] = done
        self._changed.set()
        while self._next() is not player:
            self._changed.clear()
            await self._changed.wait()

    def give(self, player: object) -> None:
        """The turn of `player` is over; it takes the next one, or leaves."""
        self._done[player] = None

    def leave(self, player: object) -> None:
        """No more turns for `player`."""
        self._done.pop(player, None)
        self._changed.set()

    def _next(self) -> object | None:
        known = [(done, player) for player, done in self._done.items() if done is not None]
        if len(known) < len(self._done):
            return None
        done = min(done for done, _ in known)
        behind = [player for blocks, player in known if blocks == done]
        return behind[-1 if done % 2 else 0]
