"""What the simulator saw, in counters; nothing here grows beyond a fixed bound."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

__all__ = ["ModelStats", "Stats"]

_MAX_DISTINCT = 500_000  # about 120 bytes each; above it `distinct` is a lower bound and `exact` is false
_TIMELINE_S = 600.0  # real seconds
_MAX_TIMELINE = 36_000  # entries, however fast the clock runs
_COLUMNS = ("second", "admitted", "uncached_tokens", "total_tokens", "refused")


@dataclass(slots=True)
class ModelStats:
    """What one model's quota was used for, all organizations together.

    Tokens are those really used, counted when the request was admitted. Seconds of the timeline are of the
    clock that drives the limits; only those in which something happened are listed.
    """

    admitted: int = 0
    uncached_tokens: int = 0
    total_tokens: int = 0
    reserved_tokens: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    rate_limited: Counter[str] = field(default_factory=Counter)
    _timeline: deque[list[int]] = field(default_factory=lambda: deque(maxlen=_MAX_TIMELINE))

    def admit(self, second: int, reserved: int, uncached: int, total: int) -> None:
        """Count a request that may be answered, in the second it was admitted."""
        self.admitted += 1
        self.reserved_tokens += reserved
        self.uncached_tokens += uncached
        self.total_tokens += total
        entry = self._entry(second)
        entry[1] += 1
        entry[2] += uncached
        entry[3] += total

    def refuse(self, second: int, code: str) -> None:
        """Count a 429."""
        self.rate_limited[code] += 1
        self._entry(second)[4] += 1

    def enter(self) -> None:
        """One more is being answered; `in_flight` goes down by whoever is done."""
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)

    def _entry(self, second: int) -> list[int]:
        if not self._timeline or self._timeline[-1][0] != second:
            self._timeline.append([second, 0, 0, 0, 0])
        return self._timeline[-1]

    def snapshot(self, since: float) -> dict[str, object]:
        """As JSON; the timeline from the second `since` on."""
        while self._timeline and self._timeline[0][0] < since:
            self._timeline.popleft()
        return {
            "admitted": self.admitted,
            "uncached_tokens": self.uncached_tokens,
            "total_tokens": self.total_tokens,
            "reserved_tokens": self.reserved_tokens,
            "rate_limited": dict(self.rate_limited),
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
            "timeline_columns": _COLUMNS,
            "timeline": list(self._timeline),
        }


class Stats:
    """Counters since the start or the last reset."""

    def __init__(self) -> None:
        self.routes: Counter[str] = Counter()
        self.status: Counter[int] = Counter()
        self.rate_limited: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.chat_requests = 0
        self.answered = 0
        self.disconnected = 0
        self.outage_refused = 0
        self.max_in_flight = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.reasoning_tokens = 0
        self.models: dict[str, ModelStats] = {}
        self._seen: set[int] = set()
        self._answered: set[int] = set()

    def saw(self, body: bytes) -> int:
        """Count one chat request; returns its 8-byte hash, for `done`.

        Python's own hash: differs from process to process, and is all that is needed to tell bodies apart.
        """
        self.chat_requests += 1
        return _remember(self._seen, hash(body))

    def done(self, body_hash: int, prompt: int, cached: int, completion: int, reasoning: int) -> None:
        """Count one answer that was generated, and charged, whether or not it arrived."""
        self.prompt_tokens += prompt
        self.cached_tokens += cached
        self.completion_tokens += completion
        self.reasoning_tokens += reasoning
        self.answered += 1
        _remember(self._answered, body_hash)

    def model(self, name: str) -> ModelStats:
        """The counters of one model."""
        if name not in self.models:
            self.models[name] = ModelStats()
        return self.models[name]

    def snapshot(self, in_flight: int, now: float, rate: float, script: list[int]) -> dict[str, object]:
        """What `GET /_sim/stats` answers; `now` is of the limits' clock, which runs `rate` times as fast.

        `script` is how often each rule was used.
        """
        since = now - _TIMELINE_S * rate
        return {
            "requests": dict(self.routes),
            "chat_requests": self.chat_requests,
            "status": {str(status): count for status, count in sorted(self.status.items())},
            "rate_limited": dict(self.rate_limited),
            "faults": dict(self.faults),
            "script": script,
            "in_flight": in_flight,
            "max_in_flight": self.max_in_flight,
            "disconnected": self.disconnected,
            "outage_refused": self.outage_refused,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "completion_tokens": self.completion_tokens,
            "reasoning_tokens": self.reasoning_tokens,
            "prompts_seen": {
                "total": self.chat_requests,
                "distinct": len(self._seen),
                "answered": self.answered,
                "answered_distinct": len(self._answered),
                "exact": len(self._seen) < _MAX_DISTINCT,
            },
            "models": {name: model.snapshot(since) for name, model in self.models.items()},
        }


def _remember(known: set[int], value: int) -> int:
    if len(known) < _MAX_DISTINCT:
        known.add(value)
    return value
