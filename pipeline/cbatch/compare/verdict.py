"""Changes and gates -> lines: each with its word, and PASS, FAIL or INCONCLUSIVE where there is a gate. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cbatch.compare.gates import Gate, Outcome
from cbatch.compare.history import Past
from cbatch.compare.metrics import Measure
from cbatch.compare.pairing import RESOLUTION_S, Design, Difference
from cbatch.compare.sides import Side
from cbatch.compare.stats import holm, repeats_needed, requests_needed
from cbatch.compare.unlike import Unlike
from cbatch.report.evidence import Evidence

ALPHA = 0.05
NOTABLE = math.log1p(0.02)  # a smaller change gets no word of its own, however sure: nobody acts on it
NOTABLE_SHARE = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One change, and the gate on it where there is one."""

    difference: Difference
    word: str  # "slower", "~" for no change to speak of, "slower?" where drift may be the cause
    gate: Gate | None = None
    outcome: Outcome | None = None
    p_holm: float | None = None  # adjusted over all gates
    note: str = ""

    @property
    def measure(self) -> Measure:
        """What was compared."""
        return self.difference.measure


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pair:
    """One run against the first, for one model."""

    a: Side
    b: Side
    design: Design
    lines: tuple[Line, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Comparison:
    """All of it. `allowed` are the differences that the user accepted."""

    runs: tuple[Evidence, ...]
    pairs: tuple[Pair, ...]
    allowed: tuple[Unlike, ...]
    history: Past | None

    @property
    def gated(self) -> list[tuple[Pair, Line]]:
        """The lines that have a gate."""
        return [(pair, line) for pair in self.pairs for line in pair.lines if line.gate is not None]

    def count(self, outcome: Outcome) -> int:
        """How many gates ended so."""
        return sum(line.outcome == outcome for _, line in self.gated)

    def exit_code(self, *, strict: bool) -> int:
        """5 where a gate failed, or with `strict` was not decided; else 0."""
        return 5 if self.count("FAIL") or (strict and self.count("INCONCLUSIVE")) else 0


def lines_of(changes: Sequence[Difference], gates: Sequence[Gate]) -> list[Line]:
    """A line for each gate, and one for each other change worth showing; their outcomes are left to `decided`."""
    lines = []
    for found in changes:
        ours: list[Gate | None] = [gate for gate in gates if gate.measure == found.measure]
        lines += [_line(found, gate) for gate in ours or [None]]
    return [line for line in lines if _worth_showing(line)]


def _line(found: Difference, gate: Gate | None) -> Line:
    """A line without its outcome, which depends on all p-values together."""
    change = found.change
    if change is None:
        return Line(difference=found, word="", gate=gate, note=found.why)
    if _below_resolution(found):
        return Line(difference=found, word="~", gate=gate, note=f"below {RESOLUTION_S * 1000:g} ms resolution")
    kind = found.measure.kind
    floor = NOTABLE_SHARE if kind == "share" else NOTABLE
    if gate is not None:
        floor = min(floor, abs(gate.threshold))
    word = found.measure.worse[change.point > 0]
    if abs(change.point) < floor:
        return Line(difference=found, word="~", gate=gate)
    sure = change.p < ALPHA if change.p is not None else not change.low <= 0 <= change.high
    if not sure:
        maybe = change.p is None and not change.low + found.allowance <= 0 <= change.high - found.allowance
        word = f"{word}?" if maybe else "~"
    return Line(difference=found, word=word, gate=gate)


def _below_resolution(found: Difference) -> bool:
    clock = found.measure.name == "server_queue_s" and found.a is not None and found.b is not None
    return clock and abs((found.b or 0.0) - (found.a or 0.0)) < RESOLUTION_S


def _worth_showing(line: Line) -> bool:
    """What was not measured, what is zero on both sides, and what is certified on neither, is no line."""
    found = line.difference
    if line.gate is not None:
        return True
    if found.change is None:
        return False
    if found.measure.kind == "share" and found.measure.name != "errors":
        return bool(found.a or found.b)
    return True


def decided(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs with the outcomes of their gates; Holm's correction is over all gates of the comparison."""
    gated = [line for pair in pairs for line in pair.lines if line.gate is not None]
    p_values = [line.difference.change.p if line.difference.change else None for line in gated]
    adjusted = iter(holm(p_values))
    out = []
    for pair in pairs:
        lines = [_with_outcome(line, next(adjusted), pair) if line.gate else line for line in pair.lines]
        out.append(replace(pair, lines=tuple(lines)))
    return out


def _with_outcome(line: Line, p: float | None, pair: Pair) -> Line:
    gate, change = line.gate, line.difference.change
    assert gate is not None
    assert change is not None
    if _below_resolution(line.difference):
        return replace(line, outcome="PASS", p_holm=p)
    outcome = gate.decide(change.point, change.low, change.high, p is not None and p < ALPHA)
    word = line.word.upper() if outcome == "FAIL" and line.word != "~" else line.word
    note = _what_would_decide(line, pair) if outcome == "INCONCLUSIVE" else line.note
    return replace(line, outcome=outcome, p_holm=p, word=word, note=note)


def _what_would_decide(line: Line, pair: Pair) -> str:
    """How many more repeats, or requests, an undecided gate needs."""
    gate, found = line.gate, line.difference
    change = found.change
    assert gate is not None
    assert change is not None
    distance = change.point - gate.threshold
    if found.measure.kind == "share":
        number = requests_needed(found.a or 0.0, found.b or 0.0, distance)
        if number is None or number <= min(found.n):
            return "the difference is at the threshold: more requests may not decide it"
        return f"about {number:,} requests a side would decide, if the difference stays"
    if change.noise is None or pair.design.kind == "one run":
        return "interleaved repeats would decide: cbatch run JOB --repeat 6 --interleave OTHER"
    number = repeats_needed(change.noise, distance)
    done = min(change.units)
    if number is None:
        return "the change is at the threshold: more repeats may not decide it"
    more = max(1, number - done)
    return f"{more} more repeat{'s' if more > 1 else ''} a side would decide, if the change stays"
