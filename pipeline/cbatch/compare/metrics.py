"""What can be compared: columns of a run and shares of its requests, with their words and units."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Literal

from cbatch.schema import COLUMNS

Kind = Literal["time", "speed", "count", "money", "share"]

# Fewest requests, of both sides together for each side, from which a percentile is certified at 99 % confidence.
# Source: MLPerf inference rules; a percentile near 0 needs as many as its mirror image near 1.
FLOORS = {90.0: 64, 95.0: 130, 99.0: 662, 99.9: 6_636}

_WORDS = {
    "server_tokens_per_s": "output speed srv",
    "client_tokens_per_s": "output speed cli",
    "e2e_tokens_per_s": "end to end speed",
    "server_prefill_tokens_per_s": "prefill speed",
    "ttft_s": "time to 1st token",
    "ttfa_s": "time to 1st answer",
    "latency_s": "request total",
    "response_s": "from schedule",
    "server_queue_s": "server queue",
    "server_prompt_s": "server prompt",
    "server_completion_s": "server completion",
    "completion_tokens": "output tokens",
    "reasoning_tokens": "reasoning tokens",
    "cost_usd": "cost per 1k req",
    "completed_per_s": "requests per second",
    "output_tokens_per_s": "total output speed",
    "errors": "failed",
    "rate_limited": "rate limited",
    "invalid": "invalid answers",
}
_SHARES = (
    "errors",
    "rate_limited",
    "invalid",
    "finish_stop",
    "finish_length",
    "finish_tool_calls",
    "finish_content_filter",
)
_TYPES = {name: kind for name, kind, _ in COLUMNS}
# Waiting for the own pacer and for retries says something about an account, not about a server.
_NUMBERS = tuple(
    name
    for name, kind in _TYPES.items()
    if name.endswith(("_s", "_tokens")) and kind in ("int64", "float64") and name not in ("retry_after_s",)
)
RATES = ("completed_per_s", "output_tokens_per_s")  # of a whole block, all its requests together
NAMES = (*_NUMBERS, "cost_usd", *RATES, *_SHARES)

# What does not depend on how long prompts and answers are: the only figures two prompt sets have in common.
LENGTH_FREE = ("server_tokens_per_s", "client_tokens_per_s", "server_prefill_tokens_per_s", "server_queue_s", "net_s")

# Shown without being asked for, in this order, where both runs measured them.
SHOWN = (
    *("errors", "rate_limited", "server_tokens_per_s", "client_tokens_per_s", "e2e_tokens_per_s", "ttft_s", "ttfa_s"),
    *("latency_s", "response_s", "server_queue_s", *RATES, "completion_tokens", "cost_usd", "invalid"),
    *("finish_length", "finish_tool_calls", "finish_content_filter"),
)
TAILS = ("ttft_s", "latency_s")  # whose p99 is shown as well, where both sides have the requests for it


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric and the statistic of it that is compared: "p50", "p99" … , "mean", "share" or "rate"."""

    name: str
    statistic: str

    @property
    def kind(self) -> Kind:
        """What it is a quantity of, which decides how it is printed and which way is worse."""
        if self.statistic == "share":
            return "share"
        if self.name == "cost_usd":
            return "money"
        return "speed" if self.name.endswith("_per_s") else "time" if self.name.endswith("_s") else "count"

    @property
    def percentile(self) -> float | None:
        """99.0 for p99; None for a mean or a share."""
        return float(self.statistic[1:]) if self.statistic[0] == "p" else None

    @property
    def floor(self) -> int:
        """How many requests a side must have for this statistic to be certified; 1 for a median."""
        tail = self.percentile
        if tail is None:
            return 1
        tail = max(tail, 100 - tail)
        return next((FLOORS[level] for level in sorted(FLOORS) if tail <= level), 10 * FLOORS[99.9]) if tail > 75 else 1

    @property
    def words(self) -> str:
        """What people call it."""
        if self.name in TAILS and self.percentile != 50:  # the table has 20 columns for it
            return f"{'1st token' if self.name == 'ttft_s' else 'request total'} {self.statistic}"
        name = _WORDS.get(self.name) or self.name.removesuffix("_s").replace("_", " ").replace("finish ", "finish: ")
        return name if self.statistic in ("share", "rate", usual(self.name)) else f"{name} {self.statistic}"

    @property
    def worse(self) -> tuple[str, str]:
        """The words for a lower and for a higher value."""
        return {
            "time": ("faster", "slower"),
            "speed": ("slower", "faster"),
            "count": ("fewer", "more"),
            "money": ("cheaper", "costlier"),
            "share": ("fewer", "more"),
        }[self.kind]

    def __str__(self) -> str:
        return self.name if self.statistic in ("share", usual(self.name)) else f"{self.name} {self.statistic}"


def usual(name: str) -> str:
    """The statistic that is compared where none is named: sums matter for tokens and money, else the median."""
    if name in _SHARES:
        return "share"
    if name in RATES:
        return "rate"
    return "mean" if name == "cost_usd" or name.endswith("_tokens") else "p50"


def measure(name: str, statistic: str | None = None) -> Measure:
    """The measure of this name. Raises ValueError naming what is accepted, the nearest first."""
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.5)
        guess = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"no metric {name!r}; {guess}accepted: {', '.join((*SHOWN[:9], 'cost_usd', '…'))}")
    found = Measure(name, {None: usual(name), "median": "p50"}.get(statistic, statistic or ""))
    if usual(name) in ("share", "rate") and found.statistic != usual(name):
        raise ValueError(f"{name} is one figure of all requests and has no {found.statistic}")
    if found.statistic not in ("mean", "share", "rate") and not (
        re.fullmatch(r"p\d\d?(\.\d+)?", found.statistic) and 0 < float(found.statistic[1:]) < 100
    ):
        raise ValueError(f"{found.statistic!r} is no statistic; accepted: p50, p90, p95, p99, p99.9, … or mean")
    return found
