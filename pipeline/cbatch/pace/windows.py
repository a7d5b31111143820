"""One limit of an account: how much per second, minute, hour or day.

The server admits a request when its *reservation* (estimated prompt + max_completion_tokens) fits
what is left in every window, and corrects the charge to the real usage when the answer is done.
So a window has two parts, and both must say yes:

- `level` mirrors the server's bucket: refilled continuously, minus what is reserved, plus what is
  given back. A request needs its whole reservation there.
- what is expected to be *used* flows smoothly: the next free time moves on by cost / rate, and a
  late call makes up for at most 20 ms. With a reservation of 16,384 and answers of 300 tokens,
  pacing by reservations alone would use 2 % of the quota. Hours and days do not flow: their
  buckets may be emptied at once.

A bucket as deep as the server's is refused at every estimation error (8 % of requests against
0.08 %): a minute's bucket starts half full and is filled up only by the server's own word.
Source: generic cell rate algorithm, ITU-T I.371.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from typing import Literal, NamedTuple

MARGIN = 0.998  # of the limit; the rest is for clocks that differ
MAKE_UP_S = 0.020  # a timer that fires late may be made up for, up to this
TOKENS_MAKE_UP_S = 0.5  # and time in which requests/min or a large prompt held up small ones
START_SHARE = 0.5  # of a minute's bucket that is taken for full at the start

Kind = Literal["requests", "tokens", "total tokens"]
Period = Literal["second", "minute", "hour", "day"]
SECONDS: dict[str, float] = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86400.0}
WINDOWS: tuple[tuple[Kind, Period], ...] = (
    ("requests", "second"),
    ("requests", "minute"),
    ("requests", "hour"),
    ("requests", "day"),
    ("tokens", "minute"),
    ("tokens", "hour"),
    ("tokens", "day"),
    ("total tokens", "minute"),
)

# The floats of an account: a few of its own, a block for each kind of lesson, a block for each window.
VERSION, HELD, SPENT_REQUESTS, SPENT_TOKENS, LAST_TAKE = range(5)
LESSONS, LESSON = 5, 29
FIRST_WINDOW, WINDOW = LESSONS + 2 * LESSON, 7
TOLD, SAID, LEARNED, FREE_AT, LEVEL, LEVEL_AT, CONFIRMED_AT = range(WINDOW)
FLOATS = FIRST_WINDOW + len(WINDOWS) * WINDOW


class Cost(NamedTuple):
    """What one request is charged at admission, and what it is expected to use (tokens)."""

    reserve: float
    uncached: float
    total: float


class Used(NamedTuple):
    """What one answer used (tokens)."""

    uncached: float
    total: float


class Said(NamedTuple):
    """What the server said about one window; None where it did not."""

    kind: Kind
    period: Period
    limit: float | None
    remaining: float | None


class NeverFits(ValueError):
    """The reservation is larger than a whole window: no wait would ever be enough."""


class Window:
    """One limit. `own` is what this process was told, where it is lower than what the account has."""

    __slots__ = (
        "_base",
        "_floats",
        "_own_free_at",
        "_own_s",
        "flows",
        "kind",
        "limit",
        "make_up_s",
        "own",
        "period",
        "rate",
        "sure",
    )

    def __init__(self, floats: MutableSequence[float], which: int) -> None:
        self.kind, self.period = WINDOWS[which]
        self.flows = self.period in ("second", "minute")
        self.make_up_s = MAKE_UP_S if self.kind == "requests" else TOKENS_MAKE_UP_S
        self.limit = self.rate = self.own = 0.0
        self._own_s = self._own_free_at = self.sure = 0.0
        self._floats = floats
        self._base = FIRST_WINDOW + which * WINDOW

    def refresh(self, share: float) -> bool:
        """Read the limit again; whether there is one. `share` is the part of it that is ours."""
        told, said, learned = (self[slot] for slot in (TOLD, SAID, LEARNED))
        sure = min((limit for limit in (told, said) if limit), default=0.0)
        self.sure = sure * share
        self.limit = (min(sure, learned) if sure and learned else sure or learned) * share
        self.rate = self.limit * MARGIN / SECONDS[self.period]
        if self.kind == "requests" and learned and self.rate:  # measured by refusals: no room for a burst on top
            self.make_up_s = min(MAKE_UP_S, 0.5 / self.rate)
        elif self.kind == "requests":
            self.make_up_s = MAKE_UP_S
        own = self.own * share
        self._own_s = SECONDS[self.period] / (own * MARGIN) if own and own < self.limit else 0.0
        return self.limit > 0

    def __getitem__(self, slot: int) -> float:
        return self._floats[self._base + slot]

    def __setitem__(self, slot: int, value: float) -> None:
        self._floats[self._base + slot] = value

    def fill(self, now: float) -> None:
        """Begin: a short window may have been used by others, a long one is taken for full."""
        self[LEVEL] = self.limit * (START_SHARE if self.flows else 1.0)
        self[LEVEL_AT] = self[FREE_AT] = now

    def level(self, now: float) -> float:
        """What the server has left, as far as we know; refills on the way."""
        floats, base = self._floats, self._base
        level = floats[base + LEVEL] + (now - floats[base + LEVEL_AT]) * self.rate
        floats[base + LEVEL] = level = self.limit if level > self.limit else level
        floats[base + LEVEL_AT] = now
        return level

    @property
    def free_at(self) -> float:
        """When the flow lets the next one through."""
        return max(self[FREE_AT], self._own_free_at)

    def need(self, cost: Cost, *, alone: bool) -> float:
        """What must be left for the request. `alone`: nothing of ours is in flight.

        Raises NeverFits.
        """
        need = cost.reserve if self.kind != "requests" else min(1.0, self.limit)
        if need > self.limit:
            if 0 < self.sure < need:
                text = f"reserves {int(need):,} tokens at once, and the limit is {int(self.sure):,} a {self.period}"
                raise NeverFits(text)
            need = self.limit  # a limit that was guessed may be wrong: send it and see
        return min(need, START_SHARE * self.limit) if alone else need

    def full_at(self, now: float, need: float) -> float:
        """When so much is left."""
        level = self.level(now)
        return now if level >= need else now + (need - level) / self.rate

    def take(self, now: float, cost: Cost, *, burst: bool) -> None:
        """Spend one request; a burst is taken from what is left, not from the flow."""
        flow, reserve = self._amounts(cost)
        if not burst:
            self[FREE_AT] = max(self[FREE_AT], now - self.make_up_s) + flow / self.rate
        if self._own_s:
            self._own_free_at = max(self._own_free_at, now - self.make_up_s) + flow * self._own_s
        self[LEVEL] = self.level(now) - reserve

    def give_back(self, now: float, cost: Cost) -> None:
        """The request was refused, or never sent: it cost nothing."""
        flow, reserve = self._amounts(cost)
        self[FREE_AT] -= flow / self.rate
        self._own_free_at -= flow * self._own_s
        self[LEVEL] = min(self.limit, self.level(now) + reserve)

    def settle(self, now: float, cost: Cost, used: Used, refund: float) -> None:
        """The answer used so much; `refund` is the part of the rest that the server is believed to give back."""
        if self.kind == "requests":
            return
        flow, reserve = self._amounts(cost)
        spent = used.uncached if self.kind == "tokens" and self.flows else used.total
        spent += (1 - refund) * max(reserve - spent, 0.0)
        self[FREE_AT] += (spent - flow) / self.rate
        self._own_free_at += (spent - flow) * self._own_s
        self[LEVEL] = min(self.limit, self.level(now) + reserve - spent)

    def empty(self, now: float) -> None:
        """The server refused: nothing is left."""
        self[LEVEL] = min(self.level(now), 0.0)
        self[CONFIRMED_AT] = 0.0

    def _amounts(self, cost: Cost) -> tuple[float, float]:
        """(flow, reserve) of one request."""
        if self.kind == "requests":
            return 1.0, 1.0
        return (cost.uncached if self.kind == "tokens" and self.flows else cost.total), cost.reserve

    def __str__(self) -> str:
        """As people read it: tokens/min."""
        return f"{self.kind}/{'min' if self.period == 'minute' else self.period}"
