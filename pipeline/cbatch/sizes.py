"""Request, usage -> what the next request will cost: sizes and times that are learned from answers.

One `Sizes` per model of a run, so per model and template. Four things are learned: how many tokens
our byte count is really worth, how long answers are, which share of a prompt comes from the cache,
and how long an answer takes by its tokens. Nothing here waits, sends or looks at a clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cbatch.pace import Cost, Used
from cbatch.schema import Completion, Request

LEARNING_RATE = 0.1  # weight of one answer in a running mean
WARM_UP = 20  # answers before a size or a deadline is learned well enough to be used
RIGHT_SIZE_QUANTILE = 0.995  # of the answers fit; the others are cut, and run again with more room
ROOM = 1.5  # times that quantile, because the next answer may be the longest yet
STEP_TOKENS = 64  # right sizes are multiples of this, so that they change rarely
MORE_ROOM = 4  # times as much for an answer that was cut
DEADLINE_S = 10.0  # of every learned deadline, for what no answer has shown yet: a busy server, a slow network
DEADLINE_TIMES = 5.0  # slower than all that was seen is given up
ALL_ANSWERS, ONE_IN = 200, 8  # so many answers are all learned from, later ones in part
PER_OCTAVE = 8  # buckets of a histogram


class Mean:
    """A running mean and how far single values are from it."""

    __slots__ = ("count", "far", "mean")

    def __init__(self, start: float) -> None:
        self.mean, self.far, self.count = start, 0.0, 0

    def add(self, value: float) -> None:
        """Learn one value; the first one replaces the assumption."""
        self.count += 1
        weight = max(LEARNING_RATE, 1.0 / self.count)
        self.far += weight * (abs(value - self.mean) - self.far) if self.count > 1 else 0.0
        self.mean += weight * (value - self.mean)

    @property
    def high(self) -> float:
        """What most values stay under."""
        return self.mean + 3 * self.far


class Histogram:
    """How often which size came, in buckets of 9 %: a quantile costs a few µs and no memory."""

    __slots__ = ("_buckets", "count")

    def __init__(self) -> None:
        self.count = 0
        self._buckets = [0] * (24 * PER_OCTAVE)

    def add(self, size: float) -> None:
        """Count one size (≥ 0)."""
        self.count += 1
        place = int(math.log2(size) * PER_OCTAVE) + 1 if size >= 1 else 0
        self._buckets[min(place, len(self._buckets) - 1)] += 1

    def quantile(self, part: float) -> float:
        """A size that at least this part of all sizes does not exceed; 0 where there are none."""
        if not self.count:
            return 0.0
        left = math.ceil(part * self.count)
        for place, number in enumerate(self._buckets):
            left -= number
            if left <= 0:
                return 2 ** (place / PER_OCTAVE)
        return 0.0


@dataclass(slots=True)
class Gain:
    """What right-sized reservations did: counts of requests and tokens."""

    requests: int = 0
    reserved_tokens: int = 0  # for completions, as sent
    unsized_tokens: int = 0  # the same without right-sizing
    cut: int = 0  # answers that were cut, and run again
    cut_tokens: int = 0  # that were paid for answers that were thrown away


class Sizes:
    """What is known about the requests of one model.

    `auto` is whether max_completion_tokens is ours to choose, up to `ceiling`; `default` is what the
    server reserves for a request that does not say.
    """

    def __init__(self, *, auto: bool, ceiling: int, default: int, cap: int | None = None) -> None:
        """`cap` is what an earlier session of the run had learned."""
        self.auto = auto
        self.gain = Gain()
        self._ceiling = ceiling
        self._prompt = Mean(1.0)  # real tokens per estimated one
        self._cached = Mean(0.0)  # share of a prompt
        self._completion = Mean(0.0)
        self._lengths = Histogram()
        self._overhead_s = Mean(0.0)  # beside the generation of tokens
        self._token_s = Mean(0.0)
        self._cap = min(cap or default, ceiling)
        self._seen = 0
        self.mean_reserve = float(min(default, ceiling))  # of the requests so far

    # -- before a request -------------------------------------------------------------------

    def cap(self, room: int | None = None) -> int:
        """max_completion_tokens for the next request; `room` is what the last try of this prompt had."""
        if room is not None:
            return min(room * MORE_ROOM, self._ceiling)
        return self._cap

    @property
    def ceiling(self) -> int:
        """The most that a completion may ever have."""
        return self._ceiling

    def completion_tokens(self, request: Request, cap: int | None) -> int:
        """What is reserved for the completion."""
        return cap if cap is not None else request.reserve_tokens - request.prompt_tokens_estimate

    def cost(self, request: Request, cap: int | None = None) -> Cost:
        """What the request reserves, and what it will probably use."""
        most = self.completion_tokens(request, cap)
        prompt = request.prompt_tokens_estimate
        expected = min(self._completion.mean, most) if self._completion.count else most
        mean = prompt * self._prompt.mean
        uncached = mean * (1 - self._cached.mean)
        reserve = math.ceil(prompt * self._prompt.high) + most
        self.mean_reserve += LEARNING_RATE * (reserve - self.mean_reserve)
        return Cost(reserve, uncached + expected, mean + expected)

    def deadline_s(self, most_tokens: int, tries: int, at_most_s: float) -> float:
        """How long an answer of so many tokens may take; every retry has twice as long, up to `at_most_s`."""
        if self._token_s.count < WARM_UP:
            return at_most_s
        expected_s = self._overhead_s.high + most_tokens * self._token_s.high
        return min(at_most_s, (DEADLINE_S + DEADLINE_TIMES * expected_s) * 2.0 ** min(tries, 10))

    def slow_after_s(self, quantile: float) -> float | None:
        """The time that this part of the answers did not exceed, by what they were; None: not known yet."""
        if self._lengths.count < 5 * WARM_UP:
            return None
        return self._overhead_s.high + self._lengths.quantile(quantile) * self._token_s.high

    # -- after an answer --------------------------------------------------------------------

    @staticmethod
    def used(answer: Completion) -> Used | None:
        """What the answer used of the account's tokens; None where the server does not say."""
        usage = answer.usage
        total = usage.total_tokens
        if total is None:
            if usage.prompt_tokens is None or usage.completion_tokens is None:
                return None
            total = usage.prompt_tokens + usage.completion_tokens
        return Used(max(total - (usage.cached_tokens or 0), 0), total)

    def learn(self, request: Request, answer: Completion, latency_s: float, *, cut: bool) -> None:
        """Learn from one answer; `cut` ones say nothing about how long answers are."""
        self._seen += 1
        if self._seen > ALL_ANSWERS and self._seen % ONE_IN:
            return  # enough is known: 3 µs a request saved
        usage = answer.usage
        if usage.prompt_tokens is not None and request.prompt_tokens_estimate > 0:
            ratio = usage.prompt_tokens / request.prompt_tokens_estimate
            self._prompt.add(min(max(ratio, 0.05), 20.0))
            if usage.prompt_tokens and usage.cached_tokens is not None:
                self._cached.add(min(usage.cached_tokens / usage.prompt_tokens, 1.0))
        tokens = usage.completion_tokens
        if tokens is None:
            return
        generated_s = answer.time_info.completion_s
        if generated_s is None or not 0 <= generated_s <= latency_s:
            generated_s = latency_s if tokens else 0.0
        self._overhead_s.add(latency_s - generated_s)
        self._token_s.add(generated_s / max(tokens, 1))
        if not cut:
            self._completion.add(tokens)
            self._lengths.add(tokens)
        if self.auto and self._lengths.count >= WARM_UP:
            wanted = self._lengths.quantile(RIGHT_SIZE_QUANTILE) * ROOM
            self._cap = min(math.ceil(wanted / STEP_TOKENS) * STEP_TOKENS, self._ceiling)

    def booked(self, cap: int, unsized: int, *, cut: bool, tokens: int) -> None:
        """Count what right-sizing one request gained, or cost."""
        gain = self.gain
        gain.requests += 1
        gain.reserved_tokens += cap
        gain.unsized_tokens += unsized
        if cut:
            gain.cut += 1
            gain.cut_tokens += tokens
