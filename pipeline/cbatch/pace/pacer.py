"""All windows of one account and model together: when may the next request go, and what is it charged?"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, MutableSequence

from cbatch.catalog import Quota
from cbatch.pace.lessons import IDLE_S, OPENED, PAUSE_S, STREAK, WHICH, Lesson
from cbatch.pace.windows import (
    CONFIRMED_AT,
    FLOATS,
    HELD,
    LAST_TAKE,
    LEARNED,
    LEVEL,
    LEVEL_AT,
    MAKE_UP_S,
    SAID,
    SPENT_REQUESTS,
    SPENT_TOKENS,
    TOLD,
    VERSION,
    WINDOWS,
    Cost,
    Kind,
    Period,
    Said,
    Used,
    Window,
)

CERTAIN_SHARE = 0.9  # of what the server says is left that the rest of a job may use at once
CONFIRMED_S = 10.0  # how long the server's word about what is left is good for that
LIES = 5  # answers in a row that say "nothing left" and prove the opposite
WARY = 0.5  # what is left of the trust in refunds after a refusal that arithmetic had not foreseen
TRUST_GROWS = 0.01  # with every answer
REMEMBER_S = 86400.0  # how long what the server said is good without its saying it again
UNLIMITED = 1e9  # what the server's headers show where there is no limit
A_REFUSAL = "a 429 to pass"


class Pacer:
    """The budget of one account for one model. Times are seconds of one monotonic clock.

    `told` are the limits that a user or a tier gave, None being no limit; `share` is the part of every
    limit that is ours. Pacers with the same `floats` share everything.
    """

    def __init__(
        self, told: Quota | None = None, *, now: float, share: float = 1.0, floats: MutableSequence[float] | None = None
    ) -> None:
        told = told or Quota()
        self.floats = floats if floats is not None else array("d", bytes(8 * FLOATS))
        self.share = share
        self.in_flight = 0
        self._heard = False
        self._trying = False  # whether one that tries is in flight: after a refusal, of what nothing paces
        self._waited = False  # whether somebody had to wait since the last request went
        self._empty_words = [0] * len(WINDOWS)  # in a row, of each window
        self._refund = 1.0
        self._windows = [Window(self.floats, which) for which in range(len(WINDOWS))]
        self._lessons = Lesson(self.floats, 0), Lesson(self.floats, 1)
        self._active: list[Window] = []
        self._version = -1.0
        for window, limit in zip(self._windows, _by_window(told), strict=True):
            window.own = float(limit or 0)
            if limit and limit > window[TOLD]:  # others were told less: that is their own affair
                self._change(window, TOLD, float(limit), now)

    # -- asking -----------------------------------------------------------------------------

    def ready_at(self, now: float, cost: Cost, rest: tuple[int, float] | None = None) -> float:
        """The time from which the request may be sent; ≤ now means at once.

        `rest` is (requests, tokens to be reserved) of the whole rest of the job: where the server says
        that all of it fits what is left, it need not be spread. Raises NeverFits.
        """
        return self.look(now, cost, rest)[0]

    def look(self, now: float, cost: Cost, rest: tuple[int, float] | None = None) -> tuple[float, str]:
        """The same, and what binds until then."""
        ready, why = self._ready(now, cost, rest)
        self._waited = self._waited or ready > now
        return ready, why

    def waiting_for(self, now: float, cost: Cost) -> tuple[str, float]:
        """What binds right now, in words for a progress line, and for how long: ("tokens/min", 2.5)."""
        ready, why = self._ready(now, cost, None)
        return why, max(ready - now, 0.0)

    def limits(self) -> dict[str, float]:
        """The limits in force, as people read them: {"requests/min": 1000.0}."""
        return {str(window): window.limit for window in self._current()}

    def told_tokens(self) -> list[float]:
        """The token limits that users or the server told."""
        return [window.sure for window in self._current() if window.kind != "requests" and window.sure]

    def learned(self) -> dict[str, float]:
        """Those among them that refusals taught."""
        return {str(window): window[LEARNED] for window in self._current() if window[LEARNED]}

    def is_free(self, now: float) -> bool:
        """Whether nothing at all limits or holds the account: then nobody has to agree on anything."""
        first, second = self._lessons
        return not (
            self._active
            or self.floats[VERSION] != self._version  # somebody learned something
            or self.floats[HELD] > now
            or first.is_open
            or second.is_open
            or first[STREAK]
            or second[STREAK]
        )

    def _ready(self, now: float, cost: Cost, rest: tuple[int, float] | None) -> tuple[float, str]:
        if now >= self.floats[HELD]:
            for lesson in self._lessons:
                if lesson.is_open:
                    self._learn(now, lesson)
        ready, why = self.floats[HELD], A_REFUSAL
        if self._trying and any(lesson[STREAK] and self._unlimited(lesson) for lesson in self._lessons):
            return float("inf"), A_REFUSAL  # one at a time until one gets through: a crowd would be refused
        active = self._current()
        burst = rest is not None and self._all_fits(now, *rest)
        for window in active:
            if window.flows and not burst and window.free_at > ready:
                ready, why = window.free_at, str(window)
            full = window.full_at(now, window.need(cost, alone=not self.in_flight))
            if full > now and full > ready:
                ready, why = full, str(window)
        return ready, why

    def _unlimited(self, lesson: Lesson) -> bool:
        """Whether nothing paces what this lesson is about."""
        return not self._windows[int(lesson[WHICH])].limit

    def _all_fits(self, now: float, requests: int, tokens: float) -> bool:
        confirmed = False
        for window in self._current():
            if not window.flows:
                continue
            if not window[CONFIRMED_AT] or now - window[CONFIRMED_AT] > CONFIRMED_S or window[LEARNED]:
                return False
            if (requests if window.kind == "requests" else tokens) > CERTAIN_SHARE * window.level(now):
                return False
            confirmed = True
        return confirmed

    # -- spending ---------------------------------------------------------------------------

    def take(self, now: float, cost: Cost, rest: tuple[int, float] | None = None) -> None:
        """Spend one request."""
        floats = self.floats
        if not floats[LAST_TAKE] or now - floats[LAST_TAKE] > IDLE_S:
            for lesson, spent in zip(self._lessons, (SPENT_REQUESTS, SPENT_TOKENS), strict=True):
                lesson.begin(now, floats[spent], floats[SPENT_REQUESTS])
        elif now - floats[LAST_TAKE] > PAUSE_S and not self._waited:
            for lesson in self._lessons:  # nobody wanted anything: that time measures nothing
                lesson.pause(max(now - max(floats[LAST_TAKE], floats[HELD]), 0.0))
        waited, self._waited = self._waited, False
        floats[LAST_TAKE] = now
        self._lessons[0].look(now, floats[SPENT_REQUESTS])
        floats[SPENT_REQUESTS] += 1
        floats[SPENT_TOKENS] += cost.reserve
        self.in_flight += 1
        self._trying = any(lesson[STREAK] for lesson in self._lessons)
        active = self._current()
        if not active:
            return
        burst = rest is not None and self._all_fits(now, *rest)
        for window in active:
            # Used to the full, or nearly, or held up by reservations: only then is it worth a doubt.
            if (
                waited
                and window[LEARNED]
                and (
                    window.free_at > now - max(MAKE_UP_S, 1 / window.rate)
                    or (window.kind != "requests" and window.level(now) < 2 * cost.reserve)
                )
            ):
                lesson = self._lessons[window.kind != "requests"]
                if lesson.doubt(now, window):
                    floats[VERSION] += 1
            window.take(now, cost, burst=burst)

    def settle(self, now: float, cost: Cost, used: Used | None) -> None:
        """Correct the charge to what was really used; None is unknown, and keeps the reservation."""
        self.in_flight -= 1
        self._trying = False
        if used is None:
            return
        most = 2 * cost.reserve  # a server that lies must not stop the run for ever
        used = Used(min(used.uncached, most), min(used.total, most))
        self.floats[SPENT_TOKENS] += used.total - cost.reserve
        for window in self._current():
            window.settle(now, cost, used, self._refund)
        if self._refund < 1.0:
            self._refund = min(1.0, self._refund + TRUST_GROWS)

    def give_back(self, now: float, cost: Cost) -> None:
        """The request was refused, or never sent: nothing was spent."""
        self.in_flight -= 1
        self._trying = False
        self.floats[SPENT_REQUESTS] -= 1
        self.floats[SPENT_TOKENS] -= cost.reserve
        for window in self._current():
            window.give_back(now, cost)

    def hold(self, until: float) -> None:
        """Send nothing before `until`."""
        self.floats[HELD] = max(self.floats[HELD], until)

    # -- learning ---------------------------------------------------------------------------

    def succeeded(self, sent_at: float) -> None:
        """What was sent then got through: if that was after a refusal, the next one is a first one again."""
        for lesson in self._lessons:
            if lesson[STREAK] and sent_at > lesson[OPENED]:
                lesson[STREAK] = 0.0

    def listen(self, now: float, words: Iterable[Said]) -> None:
        """Take the server's word about its windows: for the limit as it is, for what is left with a doubt."""
        words = list(words)
        if words and not self._heard:  # what it said in an earlier run and says no more does not hold any more
            self._heard = True
            named = {(said.kind, said.period) for said in words}
            for window in self._windows:
                if window[SAID] and (window.kind, window.period) not in named:
                    window[SAID] = 0.0
                    self.floats[VERSION] += 1
        for said in words:
            if said.limit is None or not 1 <= said.limit < UNLIMITED:
                continue
            which = WINDOWS.index((said.kind, said.period))
            window = self._windows[which]
            if window[SAID] != said.limit:
                self._change(window, SAID, said.limit, now)
            # A remainder above its limit is not the word of a bucket.
            if said.remaining is None or not 0 <= said.remaining <= said.limit:
                continue
            self._current()
            level, left = window.level(now), min(said.remaining * self.share, window.limit)
            self._empty_words[which] = self._empty_words[which] + 1 if left < 0.01 * window.limit else 0
            if self._empty_words[which] > LIES:
                continue  # it says that nothing is left, and goes on answering: the flow is enough, until it says more
            on_the_way = self.in_flight if window.kind == "requests" else 0.0
            window[LEVEL] = min(max(level, CERTAIN_SHARE * left - on_the_way), left)
            window[CONFIRMED_AT] = now

    def refused(
        self,
        now: float,
        sent_at: float,
        cost: Cost,
        *,
        kind: Kind,
        period: Period | None,
        stated_s: float | None,
        full_in_s: float | None = None,
    ) -> bool:
        """A 429 of the quota, for `kind` per `period` (None: not said): learn, and hold the account.

        The server asks to wait `stated_s`, or says that its windows are full in `full_in_s`. Returns
        whether the account is held: refusals that come however slow we are concern only who was refused.
        """
        self.give_back(now, cost)
        floats = self.floats
        lesson = self._lessons[kind != "requests"]
        unit = 1.0 if kind == "requests" else cost.reserve
        if lesson.knows(sent_at):
            if lesson.is_open:
                lesson.late(unit)
                self.hold(now + (stated_s or 0.0))
            return True
        spent = floats[SPENT_REQUESTS if kind == "requests" else SPENT_TOKENS]
        if lesson.is_open:
            self._learn(now, lesson)
        if lesson.ignores(now, spent):
            return False
        which = self._which(kind, period, stated_s)
        window = self._windows[which]
        if self._current() and window.limit:
            if kind != "requests" and window.level(now) > cost.reserve:
                self._refund *= WARY  # there was room by our count: maybe it keeps what was reserved
            window.empty(now)
        self.hold(now + lesson.open(now, which, spent, unit, stated_s, full_in_s))
        return True

    def _which(self, kind: Kind, period: Period | None, stated_s: float | None) -> int:
        """The window that a refusal is about: the one it names, else the shortest that is known."""
        if period is None or (kind, period) not in WINDOWS:
            known = [window.period for window in self._current() if window.kind == kind]
            quick = kind == "requests" and stated_s is not None and stated_s <= 2
            period = known[0] if known else "second" if quick else "minute"
        return WINDOWS.index((kind, period))

    def _learn(self, now: float, lesson: Lesson) -> None:
        window = self._windows[int(lesson[WHICH])]
        lesson.close(now, window, self.share, self.floats[SPENT_REQUESTS])
        self.floats[VERSION] += 1

    # -- limits -----------------------------------------------------------------------------

    def _change(self, window: Window, slot: int, limit: float, now: float) -> None:
        window[slot] = limit
        window.refresh(self.share)
        self.floats[VERSION] += 1
        if not window[LEVEL_AT]:  # else what an earlier run, or another process, has spent still counts
            window.fill(now)

    def _current(self) -> list[Window]:
        """The windows that have a limit; read again where somebody changed one."""
        if self.floats[VERSION] != self._version:
            self._active = [window for window in self._windows if window.refresh(self.share)]
            self._version = self.floats[VERSION]
        return self._active


def _by_window(quota: Quota) -> tuple[int | None, ...]:
    return (None, quota.rpm, quota.rph, quota.rpd, quota.tpm, quota.tph, quota.tpd, quota.total_tpm)


def forget(floats: MutableSequence[float], now: float, *, age_s: float) -> None:
    """Nobody else uses these numbers, and they are so old: drop what only a living process can know.

    What users told goes at once. What was learned stays; after a day it is a guess again, and what
    the server said is asked anew.
    """
    for which in range(len(WINDOWS)):
        window = Window(floats, which)
        window[TOLD] = 0.0
        if age_s > REMEMBER_S:
            window[SAID] = 0.0
    floats[LAST_TAKE] = 0.0  # measure anew: who was killed has left requests that nobody will settle
    for kind in (0, 1):
        lesson = Lesson(floats, kind)
        lesson.distrust() if age_s > REMEMBER_S else lesson.remembered(now)
    floats[VERSION] += 1


def rebase(floats: MutableSequence[float], now: float, *, idle_s: float) -> None:
    """The monotonic clock began anew: short windows start over, long ones have refilled for `idle_s`."""
    floats[HELD] = floats[LAST_TAKE] = 0.0
    for kind in (0, 1):
        Lesson(floats, kind).restart()
    for which in range(len(WINDOWS)):
        window = Window(floats, which)
        if not window.refresh(1.0):
            window[LEVEL_AT] = 0.0  # begins when its limit is known
        elif window.flows:
            window.fill(now)
        else:
            window[LEVEL_AT] = now - idle_s
        window[CONFIRMED_AT] = 0.0
