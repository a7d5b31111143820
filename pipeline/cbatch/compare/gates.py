"""Gates of a comparison: "server_tokens_per_s < -3%" -> does this change pass?

The operator says which way is bad: the example fails where the speed is lower by more than 3 %.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from cbatch.compare.metrics import Measure, measure

Outcome = Literal["PASS", "FAIL", "INCONCLUSIVE"]

_GATE = re.compile(r"\s*(\w+)(?:\s+([a-zA-Z][\w.]*))?\s*(<=|>=|<|>)\s*([+\-−]?)\s*(\d+(?:\.\d+)?|\.\d+)\s*(\S*)\s*")
_FORM = "METRIC [pNN|mean] < -N% or > +N%, such as 'server_tokens_per_s < -3%', 'ttft_s p95 > +10%', 'errors > +0.5pt'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """A change that is not accepted. `threshold` is a log ratio, or for a share the difference (0.005 for 0.5 pt)."""

    text: str
    measure: Measure
    below: bool  # whether lower is bad
    threshold: float
    shown: str  # "-3 %"

    def decide(self, point: float, low: float, high: float, significant: bool) -> Outcome:
        """The outcome for a change of `point`, with its 95 % interval; all in the unit of the threshold.

        FAIL: the whole interval is beyond the threshold; or the point is, and is significantly not zero.
        PASS: the whole interval is on the other side. INCONCLUSIVE: neither.
        """
        limit = self.threshold
        if self.below:
            point, low, high, limit = -point, -high, -low, -limit
        if low > limit:
            return "FAIL"
        if high <= limit:
            return "PASS"
        # A gate that asks for an improvement has its threshold on the good side of no change, and a change
        # that is significantly not zero says nothing about it.
        return "FAIL" if significant and point > limit >= 0 else "INCONCLUSIVE"


def parse(text: str) -> Gate:
    """A gate from its text. Raises ValueError that says what was read and what is accepted."""
    match = _GATE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no gate of a comparison; write {_FORM}")
    name, statistic, operator, sign, number, unit = match.groups()
    try:
        found = measure(name, statistic)
    except ValueError as exc:
        raise ValueError(f"{text!r}: {exc}") from None
    value = float(number)
    below = operator[0] == "<"
    accepted = ("pt", "pts") if found.kind == "share" else ("%",)
    if unit not in accepted:
        share = f"{name} is a share of requests: its change is in points, such as '{name} > +0.5pt'"
        other = (
            f"a change is relative, such as '{name} {operator} {'-' if below else '+'}5%'; "
            "a limit on the value itself is for `cbatch report --slo`"
        )
        raise ValueError(f"{text!r}: read the unit {unit!r}; {share if found.kind == 'share' else other}")
    if not sign and below and value:
        raise ValueError(
            f"{text!r}: write the sign of the change: '{name} < -{number}{unit}' fails where it is lower by more "
            f"than that, '{name} < +{number}{unit}' where it has not grown by as much"
        )
    value = -value if sign in ("-", "−") else value
    if found.kind != "share" and value <= -100:
        raise ValueError(f"{text!r}: nothing can fall by 100 % or more")
    return Gate(
        text=" ".join(text.split()),
        measure=found,
        below=below,
        threshold=value / 100 if found.kind == "share" else math.log1p(value / 100),
        shown=f"{value:+g} {'pt' if found.kind == 'share' else '%'}",
    )
