"""How many requests may be in flight: slow start, then a little more while it helps, much less when it hurts.

Grows only by requests that were in flight while every place was taken, for an idle place proves
nothing; errors never raise the speed. What hurts is a busy server (`queue_exceeded`), a timeout, or
answers that wait longer than they used to: one cut per episode, for everything that was sent before
a cut was sent at the old speed. Pure: whoever calls says what time it is.
"""

from __future__ import annotations

from dataclasses import dataclass

START = 8  # in flight, before anything is known
SLOW_START = 0.5  # of a place more for every answer: half as many again a round
ENOUGH, LESS_SLOW = 64, 0.1  # from so many on less: all that is in flight when a quota ends is refused
CUT = 0.7  # of the places stay after a cut
SLOWER_CUT = 0.85  # and where answers only became slower
ROUND = 16  # answers at least that tell how long they wait
WAIT_TIMES, WAIT_S = 2.0, 0.1  # more waiting than this beyond the best round is a queue somewhere
FORGET = 1.01  # a round: the best round is not held against a server for ever


@dataclass(slots=True)
class Cuts:
    """Why places were taken away, for the summary."""

    busy: int = 0
    timeout: int = 0
    slower: int = 0


class Throttle:
    """Decides how many may be in flight, between `low` and `high`."""

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high
        self.limit = min(max(START, low), high)
        self.cuts = Cuts()
        self._slow_start = True
        self._cut_at = float("-inf")
        self._credit = 0.0
        self._full_at = float("-inf")  # when every place was last seen taken
        self._best_s: float | None = None  # the least mean waiting of a round
        self._round_s, self._round = 0.0, 0
        self._round_size = max(ROUND, self.limit)  # of its beginning: slow start would run away from it
        self._round_began = float("-inf")
        self._queueing = False  # answers wait: no growth until they do not

    def answered(self, now: float, sent_at: float, waited_s: float, in_flight: int) -> int:
        """An answer came that waited `waited_s` beside its generation; returns the new limit.

        `in_flight` counts this one, too.
        """
        if self.low == self.high:
            return self.limit
        if sent_at >= self._round_began:
            self._round_s += waited_s
            self._round += 1
        if self._round >= self._round_size:
            self._end_of_round(now)
        if in_flight >= self.limit:
            self._full_at = now
        # Not only who finds every place taken: answers come in bunches, and new workers a commit later.
        if sent_at < self._full_at and not self._queueing:
            steep = SLOW_START if self.limit < ENOUGH else LESS_SLOW
            self._credit += steep if self._slow_start else 1.0 / self.limit
            if self._credit >= 1:
                self.limit = min(self.limit + int(self._credit), self.high)
                self._credit -= int(self._credit)
        return self.limit

    def _end_of_round(self, now: float) -> None:
        mean_s = self._round_s / self._round
        self._begin_round(now)
        best_s = mean_s if self._best_s is None else min(mean_s, self._best_s * FORGET)
        self._best_s = best_s
        self._queueing = mean_s > 1.5 * best_s + WAIT_S / 2
        if self._queueing:
            self._slow_start = False
        if mean_s > WAIT_TIMES * best_s + WAIT_S:
            self.cuts.slower += 1
            self._cut(now, SLOWER_CUT)

    def busy(self, now: float, sent_at: float) -> int:
        """The server said that its queue is full; returns the new limit."""
        if sent_at > self._cut_at and self.low < self.high:
            self.cuts.busy += 1
            self._cut(now, CUT)
        return self.limit

    def timed_out(self, now: float, sent_at: float) -> int:
        """No answer came in time; returns the new limit."""
        if sent_at > self._cut_at and self.low < self.high:
            self.cuts.timeout += 1
            self._cut(now, CUT)
        return self.limit

    def restart(self) -> int:
        """After an outage: begin like on the first day."""
        if self.low < self.high:
            self.limit = min(max(START, self.low), self.limit)
            self._slow_start, self._credit, self._full_at = True, 0.0, float("-inf")
        return self.limit

    def _cut(self, now: float, part: float) -> None:
        self.limit = max(self.low, int(self.limit * part))
        self._cut_at = now
        self._slow_start = False
        self._credit, self._full_at = 0.0, float("-inf")
        self._begin_round(now)

    def _begin_round(self, now: float) -> None:
        self._round_s, self._round, self._round_began = 0.0, 0, now
        self._round_size = max(ROUND, self.limit)
