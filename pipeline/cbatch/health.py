"""Is the endpoint there? Failures in a row, without an answer in between, are its own and not the prompts'.

A prompt that fails while others are answered has used up an attempt. When nobody is answered any
more, the run pauses: one request at a time tries the endpoint, nobody's attempts are counted, and
after `patience_s` the run stops, to be resumed. Before the first answer of a session there is no
such proof that the endpoint was ever there: prompts then fail like prompts do, and after GIVE_UP of
them the run stops. Pure.
"""

from __future__ import annotations

from typing import Literal

DISTINCT = 8  # different prompts that fail in a row: 20 % of random errors do that once in 400,000 times
QUIET_S = 1.0  # without any answer, too: failures are faster than answers, and a crowd of them comes first
UNREACHABLE = 3  # connections in a row that could not be made say nothing about any prompt
FIRST_TRY_S = 1.0  # doubles from try to try
LONGEST_TRY_S = 30.0
GIVE_UP = 100  # prompts that failed before anything was answered; one, where there was no connection at all

Verdict = Literal["counts", "paused", "over"]


class Health:
    """What the answers and failures of one model say about its endpoint."""

    def __init__(self, patience_s: float) -> None:
        """`patience_s`: how long an outage is waited for; 0: not at all, every failure counts."""
        self.patience_s = patience_s
        self.answers = 0
        self.failed_before_any = 0
        self.down_since: float | None = None
        self.outages = 0
        self.down_s = 0.0
        self._tries = 0
        self._tried_at = float("-inf")
        self._unreachable = 0
        self._prompts: set[int] = set()
        self._first_failure: float | None = None

    @property
    def is_down(self) -> bool:
        """Whether the run is paused."""
        return self.down_since is not None

    def answered(self, now: float) -> float | None:
        """An answer came; returns how long the endpoint was away, if it was."""
        self.answers += 1
        self._unreachable = self._tries = 0
        self._tried_at = float("-inf")
        self._prompts.clear()
        self._first_failure = None
        if self.down_since is None:
            return None
        away_s = now - self.down_since
        self.down_s += away_s
        self.down_since = None
        return away_s

    def failed(self, now: float, prompt: int, *, unreachable: bool) -> Verdict:
        """Prompt number `prompt` got no usable answer: does that count as its own failure?

        "paused": it does not, and the run is to try again when `next_try` says. "over": the patience has run out.
        """
        if self._first_failure is None:
            self._first_failure = now
        self._prompts.add(prompt)
        self._unreachable = self._unreachable + 1 if unreachable else 0
        if not self.answers or not self.patience_s:
            return "counts"
        if not self.is_down:
            many = len(self._prompts) >= DISTINCT and now - self._first_failure >= QUIET_S
            if not many and self._unreachable < UNREACHABLE:
                return "counts"
            self.down_since = self._first_failure
            self.outages += 1
        return "over" if now - (self.down_since or now) > self.patience_s else "paused"

    def away_s(self, now: float) -> float:
        """How long it was away in all, the current outage included."""
        return self.down_s + (now - self.down_since if self.down_since is not None else 0.0)

    def next_try(self, now: float, sent_at: float) -> float | None:
        """Seconds until the next try, longer from try to try; None if what failed was sent before the last one."""
        if sent_at < self._tried_at:
            return None
        self._tries += 1
        self._tried_at = now
        return min(FIRST_TRY_S * 2.0 ** (self._tries - 1), LONGEST_TRY_S)

    def gave_up(self, *, unreachable: bool) -> bool:
        """A prompt used up its attempts; whether nothing was ever answered, so that going on is vain."""
        if self.answers or not self.patience_s:
            return False
        self.failed_before_any += 1
        return unreachable or self.failed_before_any >= GIVE_UP
