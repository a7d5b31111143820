"""When the tokens of an answer exist. Pure arithmetic on seconds; nothing here sleeps."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["EVENTS_PER_S", "Timing", "due_count", "event_count", "plan"]

EVENTS_PER_S = 200  # the service batches a stream's tokens to about this many events
_QUEUE_S = 0.004  # recorded 0.004-0.007 without load
_PROMPT_S = 0.002  # recorded 0.002-0.007 for 69-233 tokens
_PROMPT_TOKENS_PER_S = 30_000.0
_SPREAD = 0.1  # prompt and token rates of single answers lie this far around the nominal ones
_OVERHEAD_S = (0.002, 0.010)  # total_time exceeds the sum of its parts by this much
_INSTANT_S = 1e-6  # reported at infinite speed: a client may divide by it


@dataclass(frozen=True, slots=True)
class Timing:
    """The `time_info` of one answer, seconds; `instant` answers are sent without any wait."""

    queue_s: float
    prompt_s: float
    completion_s: float
    total_s: float
    instant: bool = False

    @property
    def first_s(self) -> float:
        """From arrival to the start of generation."""
        return self.queue_s + self.prompt_s


def plan(tokens_per_s: float, uncached_tokens: int, completion_tokens: int, chance: int, speed: float) -> Timing:
    """The times of one answer; `chance` is at least 32 bits that jitter them, the same bits the same times.

    Cached prompt tokens need no time. `speed` divides everything.
    """
    if math.isinf(speed):
        return Timing(_INSTANT_S, _INSTANT_S, _INSTANT_S, 3 * _INSTANT_S, instant=True)
    queue = _QUEUE_S * (0.8 + 0.8 * _part(chance, 0)) / speed
    prompt = (_PROMPT_S + uncached_tokens / _PROMPT_TOKENS_PER_S) * _jitter(chance, 8) / speed
    completion = completion_tokens / (tokens_per_s * _jitter(chance, 16) * speed)
    low, high = _OVERHEAD_S
    overhead = (low + (high - low) * _part(chance, 24)) / speed
    return Timing(queue, prompt, completion, queue + prompt + completion + overhead)


def _part(chance: int, shift: int) -> float:
    """Eight of the bits as a number in [0, 1)."""
    return (chance >> shift & 0xFF) / 256


def _jitter(chance: int, shift: int) -> float:
    return 1 - _SPREAD + 2 * _SPREAD * _part(chance, shift)


def event_count(tokens: int, tokens_per_s: float) -> int:
    """How many stream events carry `tokens`: at most 200 per second of generation, several tokens each.

    Not scaled by speed, so that a fast simulator's stream has the events of a real one.
    """
    if tokens <= 0:
        return 0
    return max(1, math.floor(tokens * EVENTS_PER_S / (tokens_per_s * (1 + _SPREAD))))


def due_count(elapsed_s: float, every_s: float, total: int) -> int:
    """How many of `total` events, the first due at 0 and the others `every_s` apart, are due; at least one.

    A late sender sends all that is due in one write, so that a busy loop never falls behind by more than one.
    """
    if every_s <= 0:
        return total
    return max(1, min(total, int(elapsed_s / every_s + 1e-9) + 1))
