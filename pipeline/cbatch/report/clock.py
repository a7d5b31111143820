"""Seconds since the epoch -> seconds of the run: the pauses between its sessions are no part of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cbatch.report.evidence import Evidence, Floats, moment


@dataclass(frozen=True, slots=True)
class Clock:
    """Where the run begins, and what of its pauses is left out."""

    origin: float
    pauses: Floats  # ends of the pauses, since the epoch
    lengths: Floats  # what is left out of each

    def __call__(self, t: Floats) -> Floats:
        """The time of the run, in seconds."""
        return np.asarray(t - self.origin - self._before[np.searchsorted(self.pauses, t, side="right")])

    def epoch(self, seconds: float, *, ending: bool = False) -> float:
        """The moment, since the epoch, of a time of the run; of a pause its end, or its beginning for an `ending`."""
        seen = self.pauses - self.origin - np.cumsum(self.lengths)
        side = "left" if ending else "right"
        # A float that has been there and back is off by a microsecond.
        place = np.searchsorted(seen + (1e-5 if ending else -1e-5), seconds, side=side)  # type: ignore[call-overload]
        return float(seconds + self.origin + self._before[place])

    @property
    def _before(self) -> Floats:
        return np.concatenate([[0.0], np.cumsum(self.lengths)])


def session_starts(evidence: Evidence) -> list[float]:
    """When each session began, in seconds since the epoch; one that was killed at once has left no time."""
    return [moment(s["started_at"]).timestamp() for s in evidence.sessions if s.get("started_at")]


def clock_of(sent: Floats, ended: Floats, begins: Sequence[float], *, longest: float = 0.0, seen: float = 0.0) -> Clock:
    """The clock of a run whose requests were sent and ended at these times; NaN where there is no such time.

    Idle time that holds one of `begins` is a pause; idle time within a session is waiting, and stays. Pauses up to
    `longest` stay, too, and of the others so much as is `seen`, a share of the run.
    """
    known = ~np.isnan(sent)
    if not known.any():
        return Clock(0.0, np.empty(0), np.empty(0))
    sent, ended = sent[known], np.fmax(ended[known], sent[known])
    order = np.argsort(sent)
    sent, busy_until = sent[order], np.maximum.accumulate(ended[order])
    starts = np.sort(np.array(begins))
    free_from, free_until = busy_until[:-1], sent[1:]
    # Sends a little before the stamp of their session are of that session: clocks are rounded to milliseconds.
    inside = np.searchsorted(starts, free_until + 0.01) > np.searchsorted(starts, free_from)
    cut = inside & (free_until - free_from > longest)
    whole = float(busy_until[-1] - sent[0] - (free_until - free_from)[cut].sum())
    left = seen * whole
    lengths = (free_until - free_from)[cut] - left
    return Clock(float(sent[0]), free_until[cut] - left / 2, np.maximum(lengths, 0.0))


def run_clock(evidence: Evidence) -> Clock:
    """The clock that rates, windows and means go by: without any of the pauses between sessions."""
    return clock_of(evidence.sent_at(), evidence.ended_at(), session_starts(evidence))


__all__ = ["Clock", "clock_of", "run_clock", "session_starts"]
