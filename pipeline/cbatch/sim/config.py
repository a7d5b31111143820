"""Everything about a simulated Cerebras that can be chosen."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from .buckets import HEADER_SETS
from .faults import resolve
from .models import MODELS, TIERS, Limits, Model
from .refusals import REFUSALS
from .script import Rule, to_rules
from .windows import WINDOWS

__all__ = ["OUTAGES", "RESET_STYLES", "SimConfig"]

OUTAGES = ("refuse", "503")
RESET_STYLES = ("wall-clock", "refill")
_LIMITS = ("rps", "rpm", "rph", "rpd", "tpm", "total_tpm", "tph", "tpd")
_TOTAL_PER_UNCACHED = 3  # the total-token bucket holds this many times the uncached one


@dataclass(frozen=True, slots=True, kw_only=True)
class SimConfig:
    """One simulated service. Same seed and same requests, same answers and same faults.

    `speed` multiplies the token rate and divides every delay; inf answers at once. The two fault delays
    `stall_s` and `slow_s` are not scaled by it: a test that wants a stall wants that stall.
    """

    tier: str = "developer"
    rpm: int | None = None  # the limits below replace the tier's for every model
    tpm: int | None = None  # uncached tokens; the total bucket follows at three times this, unless it is given
    total_tpm: int | None = None
    rps: int | None = None
    rph: int | None = None
    rpd: int | None = None
    tph: int | None = None
    tpd: int | None = None
    seed: int = 0
    faults: Mapping[str, float] = field(default_factory=dict)  # name -> probability
    api_key: str | None = None  # None: any key that does not start with "wrong"
    speed: float = 1.0
    refund: bool = True  # settle a reservation to actual usage when the answer is complete
    default_reserve: int | None = 16_384  # reserved without max_completion_tokens; None: all the context left
    reserve_cap: int | None = None  # the most that is reserved for one completion
    retry_after: bool = False  # send Retry-After with 429
    headers: str = "classic"
    reset_style: str = "wall-clock"
    quota_window: str = "bucket"  # how every limit is counted: bucket, fixed or sliding (windows.py)
    clock_rate: float = 1.0  # a minute's quota lasts 60 / clock_rate real seconds; headers are in real seconds
    max_in_flight: int | None = None  # more than this at once is answered with 429 queue_exceeded
    outage_after_s: float | None = None  # after the first chat request; once
    outage_for_s: float = 10.0
    outage_kind: str = "refuse"
    payment_required: bool = False  # 402 on every completion; the model lists still work
    models: Mapping[str, Model] = field(default_factory=lambda: MODELS)
    stall_s: float = 30.0
    slow_s: float = 2.0
    answer_tokens: int | None = None  # exact completion length of every text answer
    median_tokens: int = 80  # of the answer's text; reasoning comes on top
    script: Sequence[Rule | Mapping[str, Any]] = ()  # rules as in a script's JSON (script.py); kept as Rules
    refuse: Sequence[str] = ()  # what a stricter service does not take (refusals.py)
    record: bool = False  # keep the last requests for GET /_sim/requests

    def __post_init__(self) -> None:
        _one_of("tier", self.tier, TIERS)
        _one_of("headers", self.headers, HEADER_SETS)
        _one_of("reset_style", self.reset_style, RESET_STYLES)
        _one_of("quota_window", self.quota_window, WINDOWS)
        _one_of("outage_kind", self.outage_kind, OUTAGES)
        for name in (*_LIMITS, "answer_tokens", "median_tokens", "reserve_cap", "max_in_flight"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}\nleave it out, or give at least 1")
        if not self.speed > 0:
            raise ValueError(f"speed is {self.speed}\ngive a number above 0, or inf for no delay")
        if not 0 < self.clock_rate < math.inf:
            raise ValueError(f"clock_rate is {self.clock_rate}\ngive a number above 0")
        for name in ("stall_s", "slow_s", "outage_after_s", "outage_for_s"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}\ngive seconds, 0 or more")
        for name in self.refuse:
            _one_of("refuse", name, REFUSALS)
        object.__setattr__(self, "refuse", tuple(self.refuse))
        object.__setattr__(self, "script", self.rules)
        object.__setattr__(self, "faults", MappingProxyType(resolve(self.faults)))

    def limits(self, model: str) -> Limits:
        """The tier's limits for one model, with this configuration's own in their place."""
        table = TIERS[self.tier]
        limits = table.get(model) or table["gpt-oss-120b"]
        own = {name: getattr(self, name) for name in _LIMITS}
        changed = {name: value for name, value in own.items() if value is not None}
        if self.tpm is not None and self.total_tpm is None:
            changed["total_tpm"] = self.tpm * _TOTAL_PER_UNCACHED
        return dataclasses.replace(limits, **changed)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The script."""
        return to_rules((rule, "script: ") for rule in self.script)

    def context(self, model: Model) -> int:
        """The longest prompt plus completion this tier allows."""
        return model.trial_context if self.tier == "free-trial" else model.context

    def max_output(self, model: Model) -> int:
        """The longest completion this tier allows."""
        return model.trial_max_output if self.tier == "free-trial" else model.max_output


def _one_of(name: str, value: str, accepted: Mapping[str, object] | tuple[str, ...]) -> None:
    if value not in accepted:
        raise ValueError(f"{name} is {value!r}\naccepted: {', '.join(accepted)}")
