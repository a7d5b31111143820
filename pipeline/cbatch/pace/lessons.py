"""What a refusal teaches: the limit that nobody told.

Between two refusals the server's bucket is empty at both ends, so what it admitted in between is
what it was refilled with: exact for a token bucket. A server that counts fixed or sliding seconds
forgets what was not used while we waited; there the last second before the refusal is exact. The
first refusal has no such beginning: the bucket was full, or a window had just begun. Everything
that was sent before a refusal was known belongs to its episode: one lesson, one hold.

Until two measurements agree, the limit doubles from lesson to lesson: a limit that is real is met
again at once. One that is settled is doubted once a minute, and less often every time the doubt was
wrong. Refusals that go on however slow we are (measured less than the last lesson, again and again)
are no matter of speed: then nothing is learned from them for a while, or every run would end in a
crawl.
"""

from __future__ import annotations

from collections.abc import MutableSequence

from cbatch.pace.windows import (
    FREE_AT,
    LEARNED,
    LESSON,
    LESSONS,
    LEVEL,
    LEVEL_AT,
    SAID,
    SECONDS,
    TOLD,
    Window,
)

NO_LIMIT = 1e9  # in a window: what is learned to be more than that is none
GUESS_GROWS = 1.05  # a second, from GUESS_S on: a limit that the server's own waiting time told
PROBE = 1.03  # how much more is tried, when a measured limit is doubted
PROBE_S = 60.0  # and how long after the refusal that measured it; twice as long after every wrong doubt
SOONEST_PROBE_S, LONGEST_PROBE_S = 4.0, 900.0  # half as long after every doubt that was right
FEEL = -1.0  # instead of a time: nothing is settled, so the limit doubles
FEEL_S, FEEL_REQUESTS = 1.0, 2  # after so long and so many requests
FEEL_AT = 0.7  # of the speed at which the first refusal came
AGREE = 1.25  # measurements that are no further apart are of the same limit
IDLE_S = 120.0  # after which the server's minute is full again, so that a measurement begins anew
PAUSE_S = 0.5  # without a request that could have gone
SLOWER = 0.95  # a refusal always means slower
GENTLE = 0.9  # and no more than this much slower, where the limit was told
CAREFUL = 0.99  # of what the first refusal says, where the server says when there is more
BURST_S = 0.25  # a first refusal that comes sooner says nothing about time
GUESS_S = 15.0  # before a guess grows
TRY_AFTER_S = 0.25  # doubles from refusal to refusal while nothing gets through and nobody says how long
LONGEST_TRY_S = 30.0
PLAUSIBLE = 0.9  # of the last lesson: a bucket that was measured well refuses nobody who is slower
IMPLAUSIBLE = 4  # refusals in a row of those who were: then speed is not what is refused
DISAGREE = 6  # measurements in a row that do not agree with the one before: there is no limit to measure
AGAIN_AND_AGAIN, AGAIN_S = 6, 60.0  # a settled limit that refuses so often in so long is none, slower each time
FAR_BELOW = 0.7  # the first measurement: refusals that go on here are no matter of speed either
IGNORE_S = 60.0  # nothing is learned for so long then
STORM, STORM_REQUESTS = 0.5, 20  # unless so large a part of so many requests is refused meanwhile

OPENED, OPENED_SPENT, LATE, OPEN, MARK, MARK_SPENT, MARK_FULL = range(7)
STREAK, GROW_AT, PROBE_WAIT_S, WHICH, STATED_S = range(7, 12)
ODD, MEASURED_FIRST, IGNORE_UNTIL, IGNORED, IGNORED_FROM, MEASURED = range(12, 18)
REFUSALS, MARK_COUNT, UNIT, REFUSED, LESSON_WAS, SINCE, AGAIN = range(18, 25)
LOOK_AT, LOOK, LOOK_BEFORE_AT, LOOK_BEFORE = range(25, LESSON)
EVIDENCE, EVIDENCE_S = 20, 5.0  # requests, or seconds, between refusals that measure anything
TOO_OFTEN = 4  # episodes in less than that, at a speed that was measured, are no matter of speed
FEW = 0.5  # of a crowd; a limit that is met refuses nearly all of it, so fewer are no matter of speed either
LOOK_S = 0.6  # two looks back are the last second, or a little more


class Lesson:
    """What the refusals of one kind (0: requests, 1: tokens) teach; kept in the account's floats."""

    __slots__ = ("_base", "_floats")

    def __init__(self, floats: MutableSequence[float], kind: int) -> None:
        self._floats = floats
        self._base = LESSONS + kind * LESSON

    def __getitem__(self, slot: int) -> float:
        return self._floats[self._base + slot]

    def __setitem__(self, slot: int, value: float) -> None:
        self._floats[self._base + slot] = value

    @property
    def is_open(self) -> bool:
        """Whether a refusal waits to be learned from."""
        return self[OPEN] > 0

    def begin(self, now: float, spent: float, count: float) -> None:
        """The bucket is full, or nearly: measure from here. `count` are the requests in `spent`."""
        self[MARK], self[MARK_SPENT], self[MARK_COUNT], self[MARK_FULL] = now, spent, count, 1.0
        self[REFUSALS] = self[REFUSED] = 0.0

    def pause(self, seconds: float) -> None:
        """For so long nothing was asked for."""
        self[MARK] += seconds

    def knows(self, sent_at: float) -> bool:
        """Whether a refusal of what was sent then is part of an episode that is known."""
        return self[OPENED] > 0 and sent_at <= self[OPENED]

    def open(
        self, now: float, which: int, spent: float, unit: float, stated_s: float | None, full_in_s: float | None
    ) -> float:
        """A refusal by window `which` of `unit` (requests, tokens) begins an episode; returns the seconds to wait.

        `spent` is what was charged until now. The server asks to wait `stated_s`, or says that its
        windows are full in `full_in_s`; None: it does not say.
        """
        longer_s = min(TRY_AFTER_S * 2 ** min(self[STREAK], 10.0), LONGEST_TRY_S)
        if stated_s is not None:  # obeyed in vain again and again, it is not the whole truth
            wait_s = max(stated_s, longer_s if self[STREAK] >= 3 else 0.0)
        else:
            wait_s = longer_s if full_in_s is None else min(longer_s, max(full_in_s, 0.05))
        self[OPENED], self[OPENED_SPENT], self[LATE], self[OPEN] = now, spent, 0.0, 1.0
        self[WHICH], self[STATED_S], self[UNIT] = which, stated_s or 0.0, unit
        self[STREAK] += 1
        self[REFUSED] += 1
        return wait_s

    def late(self, amount: float) -> None:
        """So much of what was charged before the refusal was refused, too."""
        self[LATE] += amount
        self[REFUSED] += 1

    def close(self, now: float, window: Window, share: float, count: float) -> None:
        """Learn, now that everything that was sent before the refusal is answered."""
        opened, spent = self[OPENED], self[OPENED_SPENT] - self[LATE]
        admitted = spent - self[MARK_SPENT]
        elapsed_s = max(opened - self[MARK], 1e-3)
        seconds = SECONDS[window.period]
        first = self[MARK_FULL] > 0
        self[OPEN] = 0.0
        window[LEVEL], window[LEVEL_AT] = 0.0, opened
        limits = [limit for limit in (window[TOLD], window[SAID], window[LEARNED]) if limit]
        known = min(limits, default=0.0)
        if admitted < 1:  # nothing got through: only waiting longer tells more
            if not known:  # and then one at a time, twice as often every second, until it refuses again
                window[LEARNED] = self[UNIT] * seconds / max(now - opened, TRY_AFTER_S) / share
                self[PROBE_WAIT_S] = FEEL
                self._grow_later(now, window)
            return
        self[REFUSALS] += 1
        seen = count - self[MARK_COUNT]
        often = self[REFUSALS] >= TOO_OFTEN
        if seen < EVIDENCE and elapsed_s < EVIDENCE_S:
            if known and often:
                self._ignore(now, window, spent)
            return
        if often and not known and self[REFUSED] < FEW * (self[REFUSED] + seen):
            self._ignore(now, window, spent)
            return
        self[MARK], self[MARK_SPENT], self[MARK_FULL] = opened, spent, 0.0
        self[MARK_COUNT], self[REFUSALS], self[REFUSED] = count, 0.0, 0.0
        told = window[TOLD] or window[SAID]
        if window.kind != "requests":
            admitted += self[UNIT]  # up to one reservation was left when the next one was refused
        if not first and window.period == "second" and self[LOOK_BEFORE_AT] > 0:
            admitted, elapsed_s = spent - self[LOOK_BEFORE], max(opened - self[LOOK_BEFORE_AT], 1e-3)
        settled = bool(told) or self[PROBE_WAIT_S] != FEEL
        if first:  # a burst out of a full bucket tells little, unless the server says when there is more
            settled = bool(told) or self[STATED_S] >= 1
            elapsed_s = (
                max(elapsed_s, self[STATED_S]) / CAREFUL if self[STATED_S] >= 1 else max(elapsed_s, BURST_S) / FEEL_AT
            )
        measured = max(admitted, 1.0) * seconds / elapsed_s / share
        if self._is_odd(now, measured, known, first=first, settled=settled):
            self._ignore(now, window, spent)
            return
        compared = measured / self[MEASURED] if self[MEASURED] else 0.0
        self[MEASURED] = 0.0 if first else measured
        agrees = 1 / AGREE <= compared <= AGREE
        learned = min(known * SLOWER, measured) if known else measured
        if first and known:  # remembered: a beginning measures too little to overrule it
            learned = known * SLOWER
        if not settled and not first and not agrees:
            # Measure again, at twice the speed: a real limit lets as much through as before.
            learned = 2 * measured
        if told:  # one refusal does not overrule what is known: others may have used the account for a moment
            learned = max(learned, known * GENTLE)
        window[LEARNED] = self[LESSON_WAS] = learned
        # The flow goes on from the refusal, when the bucket was empty.
        window[FREE_AT] = min(window[FREE_AT], opened + seconds / (learned * share)) if known else opened
        if first or told:
            self[PROBE_WAIT_S] = 0.0 if settled else FEEL
        elif settled or agrees:
            if not settled:
                self[ODD] = 0.0
            self[PROBE_WAIT_S] = min(max(2 * self[PROBE_WAIT_S], PROBE_S), LONGEST_PROBE_S)
        self._grow_later(now, window)

    def _grow_later(self, now: float, window: Window) -> None:
        wait_s = self[PROBE_WAIT_S]
        if wait_s == FEEL:
            wait_s = max(FEEL_S, FEEL_REQUESTS * SECONDS[window.period] / window[LEARNED])
        self[GROW_AT] = now + (wait_s or GUESS_S)

    def _grow_soon(self, now: float) -> None:
        self[GROW_AT] = now + (self[PROBE_WAIT_S] or 1.0)

    def look(self, now: float, spent: float) -> None:
        """Remember now and then what was spent, for a look back at the last second."""
        if now - self[LOOK_AT] >= LOOK_S:
            self[LOOK_BEFORE_AT], self[LOOK_BEFORE] = self[LOOK_AT], self[LOOK]
            self[LOOK_AT], self[LOOK] = now, spent

    def _is_odd(self, now: float, measured: float, known: float, *, first: bool, settled: bool) -> bool:
        """Whether this refusal cannot be about speed, after several that could not."""
        if first or not known:
            self[ODD] = self[MEASURED_FIRST] = 0.0
            return False
        if not settled:  # measurements of a real limit agree soon
            self[ODD] += 1
            odd = self[ODD] >= DISAGREE
        else:
            self[MEASURED_FIRST] = self[MEASURED_FIRST] or measured
            was = min(known, self[LESSON_WAS] or known)  # without what was tried on top
            self[ODD] = self[ODD] + 1 if measured < PLAUSIBLE * was else 0.0
            if now - self[SINCE] > AGAIN_S:
                self[SINCE], self[AGAIN] = now, 0.0
            self[AGAIN] += 1
            odd = (
                self[ODD] >= IMPLAUSIBLE or self[AGAIN] >= AGAIN_AND_AGAIN or known <= FAR_BELOW * self[MEASURED_FIRST]
            )
        if odd:
            self[ODD] = self[MEASURED_FIRST] = self[AGAIN] = 0.0
        return odd

    def _ignore(self, now: float, window: Window, spent: float) -> None:
        window[LEARNED] = self[MEASURED] = self[REFUSALS] = self[REFUSED] = 0.0
        self[IGNORE_UNTIL], self[IGNORED], self[IGNORED_FROM] = now + IGNORE_S, 0.0, spent

    def ignores(self, now: float, spent: float) -> bool:
        """Whether this refusal teaches nothing, because refusals were no matter of speed a moment ago."""
        if now >= self[IGNORE_UNTIL]:
            return False
        self[IGNORED] += 1
        seen = self[IGNORED] + spent - self[IGNORED_FROM]
        if seen < STORM_REQUESTS or self[IGNORED] < STORM * seen:
            return True
        self[IGNORE_UNTIL] = 0.0
        return False

    def remembered(self, now: float) -> None:
        """An earlier run learned: begin with that, and doubt it like a guess that was just made."""
        self[GROW_AT] = max(self[GROW_AT], now + GUESS_S)

    def distrust(self) -> None:
        """What was measured is old: a guess again."""
        self[PROBE_WAIT_S] = self[GROW_AT] = 0.0

    def restart(self) -> None:
        """The clock began anew: forget every moment, keep what was learned."""
        for slot in (
            OPENED,
            OPEN,
            MARK,
            MARK_SPENT,
            STREAK,
            GROW_AT,
            ODD,
            IGNORE_UNTIL,
            LOOK_AT,
            LOOK_BEFORE_AT,
            SINCE,
            AGAIN,
        ):
            self[slot] = 0.0

    def doubt(self, now: float, window: Window) -> bool:
        """Try a little more than was learned, if its time has come; whether the limit changed."""
        if now < self[GROW_AT] or not window[LEARNED] or self.is_open:
            return False
        feeling = self[PROBE_WAIT_S] == FEEL
        if self[PROBE_WAIT_S] > 0:  # nothing was refused since: be back sooner
            self[PROBE_WAIT_S] = max(self[PROBE_WAIT_S] / 2, SOONEST_PROBE_S)
        window[LEARNED] *= 2.0 if feeling else PROBE if self[PROBE_WAIT_S] else GUESS_GROWS
        known = min([limit for limit in (window[TOLD], window[SAID]) if limit], default=NO_LIMIT)
        if window[LEARNED] >= known:
            window[LEARNED] = self[PROBE_WAIT_S] = 0.0  # back at what was told, or nothing was there
            return True
        self._grow_later(now, window) if feeling else self._grow_soon(now)
        return True
