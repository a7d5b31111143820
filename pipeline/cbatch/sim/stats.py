"""What the simulator saw, in counters; nothing here grows beyond a fixed bound."""

from __future__ import annotations

from collections import Counter

__all__ = ["Stats"]

_MAX_DISTINCT = 500_000  # about 120 bytes each; above it `distinct` is a lower bound and `exact` is false


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
        self.max_in_flight = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.reasoning_tokens = 0
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

    def snapshot(self, in_flight: int) -> dict[str, object]:
        """What `GET /_sim/stats` answers."""
        return {
            "requests": dict(self.routes),
            "chat_requests": self.chat_requests,
            "status": {str(status): count for status, count in sorted(self.status.items())},
            "rate_limited": dict(self.rate_limited),
            "faults": dict(self.faults),
            "in_flight": in_flight,
            "max_in_flight": self.max_in_flight,
            "disconnected": self.disconnected,
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
        }


def _remember(known: set[int], value: int) -> int:
    if len(known) < _MAX_DISTINCT:
        known.add(value)
    return value
