"""Figures of a ladder -> its curves: load against latency, and what one user gets against what all get together."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from cbatch.gates import Gate
from cbatch.report.curves import Curve, svg
from cbatch.report.figures import Level, Spread
from cbatch.report.intervals import floor_of
from cbatch.report.plots import Group, duration

TAILS = {"p99": floor_of(0.01), "p90": floor_of(0.1)}  # and the requests of each level that it takes to draw it
TIMES = {"ttft_s": "time to first token", "latency_s": "request"}


def ladder(groups: Sequence[Group], gates: Sequence[Gate]) -> tuple[str, str]:
    """The curves as HTML, and in words where their knee is. Empty where no level has a throughput."""
    steps: dict[str, list[Level]] = {}
    for group in groups:
        if group.level.level and group.level.system.output_tokens_per_s and _at(group.level, "latency_s"):
            steps.setdefault(group.level.model, []).append(group.level)
    if not steps:
        return "", "No level has a throughput: no answer came with <code>usage</code>."
    for levels in steps.values():
        levels.sort(key=lambda level: level.level or 0.0)
    drawn = [_times(steps, column, words, gates) for column, words in TIMES.items() if _has(steps, column)]
    if _has(steps, "e2e_tokens_per_s"):
        drawn.append(_users(steps))
    unit = next(iter(steps.values()))[0].unit
    tail = _tail(steps)
    dashed = f"dashed: the {tail}" if tail else f"no tail: a level has fewer than {TAILS['p90']} requests"
    said = [f"Solid: the median, {dashed}; at each point the load asked ({unit})."]
    if tail == "p90":
        said.append(f"A p99 needs {TAILS['p99']} requests at each level.")
    for model, levels in steps.items():
        name = f"{model}: the" if len(steps) > 1 else "The"
        best = levels[_knee(levels)]
        said.append(f"{name} most throughput per time waited (ringed) is at {best.level:g} {best.unit}.")
    return f'<div class="pair">{"".join(drawn)}</div>', escape(" ".join(said))


def _knee(levels: Sequence[Level]) -> int:
    # Kleinrock's power: beyond its highest point more load buys more waiting than throughput.
    return max(range(len(levels)), key=lambda n: (levels[n].system.output_tokens_per_s or 0.0) / _p50(levels[n]))


def _tail(steps: dict[str, list[Level]]) -> str:
    """The tail that every level has requests enough for; empty where there is none."""
    fewest = min(spread.n for levels in steps.values() for level in levels for spread in _drawn(level))
    return next((name for name, least in TAILS.items() if fewest >= least), "")


def _drawn(level: Level) -> list[Spread]:
    return [(level.spreads or {})[column] for column in TIMES if column in (level.spreads or {})]


def _limit(gate: Gate) -> str:
    """What a line of a demand is a limit of: of one percentile, and not of the curves it lies on."""
    of = gate.statistic or f"{100 * (gate.share or 1.0):g} % of the requests"
    return f"{of} {gate.op} {duration(gate.threshold)}"


def _p50(level: Level) -> float:
    return max(_at(level, "latency_s"), 1e-9)


def _at(level: Level, column: str, name: str = "p50") -> float:
    spread = (level.spreads or {}).get(column)
    return float(getattr(spread, name)) if spread is not None else 0.0


def _has(steps: dict[str, list[Level]], column: str) -> bool:
    return all(_at(level, column) for levels in steps.values() for level in levels)


def _times(steps: dict[str, list[Level]], column: str, words: str, gates: Sequence[Gate]) -> str:
    tail = _tail(steps)
    highest = max(_at(level, column, tail or "p50") for levels in steps.values() for level in levels)
    factor, unit = (1.0, "s") if highest >= 10 else (1000.0, "ms")
    curves = []
    for number, levels in enumerate(steps.values()):
        for name in filter(None, ("p50", tail)):
            curves.append(
                Curve(
                    points=[
                        (level.system.output_tokens_per_s or 0.0, factor * _at(level, column, name)) for level in levels
                    ],
                    labels=[f"{level.level:g}" if name == "p50" else "" for level in levels],
                    hints=[_hint(level, f"{words} {name} {duration(_at(level, column, name))}") for level in levels],
                    colour=number,
                    dashed=name != "p50",
                    knee=_knee(levels) if name == "p50" else None,
                )
            )
    limits = [
        (factor * gate.threshold, _limit(gate)) for gate in gates if gate.metric == column and gate.op in ("<", "<=")
    ]
    return _panel(steps, svg(f"{words} by throughput", "all together, tokens/s", f"{words}, {unit}", curves, limits))


def _users(steps: dict[str, list[Level]]) -> str:
    curves = [
        Curve(
            points=[(_at(level, "e2e_tokens_per_s"), level.system.output_tokens_per_s or 0.0) for level in levels],
            labels=[f"{level.level:g}" for level in levels],
            hints=[_hint(level, f"{_at(level, 'e2e_tokens_per_s'):,.0f} tokens/s for one user") for level in levels],
            colour=number,
        )
        for number, levels in enumerate(steps.values())
    ]
    title = "throughput by what one user gets"
    return _panel(steps, svg(title, "one user, median tokens/s", "all together, tokens/s", curves))


def _hint(level: Level, words: str) -> str:
    whole = level.system.output_tokens_per_s or 0.0
    return f"{level.model}, {level.level:g} {level.unit}: {words}, {whole:,.0f} tokens/s all together"


def _panel(steps: dict[str, list[Level]], drawing: str) -> str:
    if len(steps) < 2:
        return f"<div>{drawing}</div>"
    marks = "".join(f'<span><i class="square m{n % 8}"></i>{escape(model)}</span>' for n, model in enumerate(steps))
    return f'<div><div class="legend">{marks}</div>{drawing}</div>'
