"""Three readings of "N per minute": what is left of a limit, and when more will be.

The documentation says bucket, some answers' headers count down to the wall-clock minute, and other services
log the last window. A client must hold under all three. Pure arithmetic: `now` is an argument (seconds, any
origin, never going back), and so is `at`, the moment at which something was taken that is given back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol

__all__ = ["DAY_S", "SLACK", "WINDOWS", "Bucket", "FixedWindow", "SlidingWindow", "Window"]

DAY_S = 86_400.0
SLACK = 1e-6  # float dust must not refuse a caller that waited exactly as long as it was told
_SLOTS = 4_096  # a sliding window's log has this many entries at most; at 60 s each is 15 ms wide


class Window(Protocol):
    """A limit of `limit` units, however it is counted."""

    limit: float

    def available(self, now: float) -> float:
        """What may be taken at `now`; below zero after a request cost more than was reserved."""

    def take(self, now: float, amount: float) -> None:
        """Use `amount`, whether or not it is there."""

    def give(self, now: float, at: float, amount: float) -> None:
        """Correct what was taken at `at`: give back `amount`, or take more of it where it is below zero."""

    def wait(self, now: float, amount: float) -> float:
        """Seconds until `amount` is there; inf when it is more than there can ever be."""

    def full_s(self, now: float) -> float:
        """Seconds until nothing is used any more."""


# ruff: noqa: D102 - what the methods do stands in Window
class Bucket:
    """Holds its whole limit and refills continuously at limit / window_s per second; no boundary, no reset."""

    __slots__ = ("at", "level", "limit", "per_s")

    def __init__(self, limit: float, window_s: float, now: float, offset_s: float = 0.0) -> None:
        self.limit = limit
        self.per_s = limit / window_s
        self.level = limit
        self.at = now

    def available(self, now: float) -> float:
        level = self.level + (now - self.at) * self.per_s
        self.level = level if level < self.limit else self.limit
        self.at = now
        return self.level

    def take(self, now: float, amount: float) -> None:
        self.level = self.available(now) - amount

    def give(self, now: float, at: float, amount: float) -> None:
        self.level = min(self.limit, self.available(now) + amount)

    def wait(self, now: float, amount: float) -> float:
        if amount > self.limit + SLACK:
            return math.inf
        return max(0.0, (amount - self.available(now)) / self.per_s)

    def full_s(self, now: float) -> float:
        return (self.limit - self.available(now)) / self.per_s


class FixedWindow:
    """Counts from one boundary to the next, and starts there at zero; `now + offset_s` is wall time."""

    __slots__ = ("_index", "_offset_s", "_used", "_window_s", "limit")

    def __init__(self, limit: float, window_s: float, now: float, offset_s: float = 0.0) -> None:
        self.limit = limit
        self._window_s = window_s
        self._offset_s = offset_s
        self._index = self._number(now)
        self._used = 0.0

    def _number(self, now: float) -> int:
        return math.floor((now + self._offset_s + SLACK) / self._window_s)

    def available(self, now: float) -> float:
        if (index := self._number(now)) != self._index:
            self._index, self._used = index, 0.0
        return self.limit - self._used

    def take(self, now: float, amount: float) -> None:
        self.available(now)
        self._used += amount

    def give(self, now: float, at: float, amount: float) -> None:
        self.available(now)
        # What an earlier window was charged too much is gone with it.
        if amount < 0 or self._number(at) == self._index:
            self._used = max(0.0, self._used - amount)

    def wait(self, now: float, amount: float) -> float:
        if amount > self.limit + SLACK:
            return math.inf
        return 0.0 if self.available(now) >= amount - SLACK else self._left_s(now)

    def full_s(self, now: float) -> float:
        return self._left_s(now) if self.available(now) < self.limit else 0.0

    def _left_s(self, now: float) -> float:
        return (self._index + 1) * self._window_s - self._offset_s - now


class SlidingWindow:
    """Counts what the last `window_s` seconds took, from a log of slots of window_s / 4,096."""

    __slots__ = ("_log", "_slot_s", "_used", "_window_s", "limit")

    def __init__(self, limit: float, window_s: float, now: float, offset_s: float = 0.0) -> None:
        self.limit = limit
        self._window_s = window_s
        self._slot_s = window_s / _SLOTS
        self._log: dict[int, float] = {}  # slot -> taken in it; in the order of time
        self._used = 0.0

    def _slot(self, now: float) -> int:
        return math.floor(now / self._slot_s)

    def _gone_at(self, slot: int) -> float:
        return (slot + 1) * self._slot_s + self._window_s

    def available(self, now: float) -> float:
        while self._log and self._gone_at(slot := next(iter(self._log))) <= now + SLACK:
            self._used -= self._log.pop(slot)
        if not self._log:
            self._used = 0.0  # no dust from adding and subtracting
        return self.limit - self._used

    def take(self, now: float, amount: float) -> None:
        self.available(now)
        slot = self._slot(now)
        self._log[slot] = self._log.get(slot, 0.0) + amount
        self._used += amount

    def give(self, now: float, at: float, amount: float) -> None:
        self.available(now)
        slot = self._slot(at)
        if slot in self._log:
            self._log[slot] -= amount
            self._used -= amount
        elif amount < 0:
            self.take(now, -amount)

    def wait(self, now: float, amount: float) -> float:
        if amount > self.limit + SLACK:
            return math.inf
        missing = amount - self.available(now)
        for slot, taken in self._log.items():
            if missing <= SLACK:
                break
            missing -= taken
            if missing <= SLACK:
                return self._gone_at(slot) - now
        return 0.0

    def full_s(self, now: float) -> float:
        self.available(now)
        return self._gone_at(next(reversed(self._log))) - now if self._log else 0.0


WINDOWS: Mapping[str, Callable[[float, float, float, float], Window]] = MappingProxyType(
    {"bucket": Bucket, "fixed": FixedWindow, "sliding": SlidingWindow}
)
