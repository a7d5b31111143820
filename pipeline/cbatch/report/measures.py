"""Figures -> the table of what was measured, as cells of text: of one level, of several models, of a ladder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cbatch.report.figures import MEASURES, Figures, Level, Spread, is_speed
from cbatch.report.intervals import floor_of
from cbatch.report.verdict import Verdict
from cbatch.report.words import count, ms, number, share

LEVELS_SHOWN, MODELS_SHOWN = 9, 4
WAITED = 1.05  # from schedule through the request alone: more is told apart

# The lines of the table: column -> words. What was not measured has no line.
ROWS = {
    "server_tokens_per_s": "output speed srv tok/s",
    "client_tokens_per_s": "output speed cli tok/s",
    "e2e_tokens_per_s": "end to end tok/s",
    "ttft_s": "time to first token",
    "ttfa_s": "time to first answer",
    "latency_s": "request total",
    "response_s": "from schedule",
    "server_prefill_tokens_per_s": "prefill tok/s",
}
_HEAD = ("", "median", "±95%", "p90", "p99", "p99 certified<=", "n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Cells of text, the first row the head; the first `left` columns are words."""

    rows: list[tuple[str, ...]]
    left: int = 1


def table(f: Figures, verdicts: Sequence[Verdict]) -> Table | None:
    """The table of a run; None where nothing was measured. `verdicts` are of its levels."""
    if f.is_ladder:
        return _ladder(f, verdicts)
    if len(f.levels) > 1:
        return _by_model(f)
    spreads = f.spreads or {}
    rows: list[tuple[str, ...]] = [_HEAD]
    for name, words in ROWS.items():
        if name not in spreads or (name == "ttfa_s" and _is_same(spreads[name], spreads.get("ttft_s"))):
            continue
        if name == "response_s" and f.levels[0].unit != "requests/s":
            continue  # a schedule is what an open loop has
        unit, scale = _unit(name, spreads[name])
        rows.append(_row(name, words + unit, spreads[name], scale))
        where = ("server_queue_s", "server_prompt_s", "net_s" if name == "ttft_s" else "server_completion_s")
        if name == ("ttft_s" if "ttft_s" in spreads else "latency_s") and all(part in spreads for part in where):
            words = "/".join(("queue", "prompt", "net" if name == "ttft_s" else "completion"))
            cells = "/".join(ms(spreads[part].p50) for part in where)
            rows.append((f"  {words} ms", cells, "", "", "", "", ""))
    return Table(rows=rows) if len(rows) > 1 else None


def _is_same(one: Spread, other: Spread | None) -> bool:
    """Whether a line would repeat another: no reasoning came before the answer."""
    return other is not None and (one.p50, one.p90, one.p99) == (other.p50, other.p90, other.p99)


def _row(name: str, words: str, s: Spread, scale: float) -> tuple[str, ...]:
    slow, worst = ("p10", "p1") if is_speed(name) else ("p90", "p99")
    star = "*" if is_speed(name) else ""

    def cell(level: str, value: float | None) -> str:
        # Below its floor a percentile is one or two requests: no number.
        least = _floor(level)
        return f"n<{least:,}" if s.n < least or value is None else number(value * scale) + star

    return (
        words,
        number(s.p50 * scale),
        share(s.half_width) if s.half_width is not None else "-",
        cell(slow, getattr(s, slow)),
        cell(worst, getattr(s, worst)),
        cell(worst, s.certified[worst]),
        f"{s.n:,}" + (f" ({s.undefined:,} undefined)" if s.undefined and name == "client_tokens_per_s" else ""),
    )


def _by_model(f: Figures) -> Table:
    rows: list[tuple[str, ...]] = [_HEAD]
    first = "ttft_s" if any("ttft_s" in (level.spreads or {}) for level in f.levels) else "latency_s"
    for name in ("server_tokens_per_s", first, "completion_tokens"):
        found = [(level, (level.spreads or {}).get(name)) for level in f.levels]
        measured = [spread for _, spread in found if spread is not None]
        if not measured:
            continue
        unit, scale = _unit(name, measured[0])
        rows.append((ROWS.get(name, MEASURES[name]) + unit,))
        for level, spread in found[:MODELS_SHOWN]:
            words = f"  {level.model}"[:24]
            if spread is not None:
                rows.append(_row(name, words, spread, scale))
            elif level.reason:
                rows.append((f"{words}  client-bound: no model speed",))
    if len(f.levels) > MODELS_SHOWN:
        rows.append((f"  and {len(f.levels) - MODELS_SHOWN} more: --json",))
    return Table(rows=rows)


def _ladder(f: Figures, verdicts: Sequence[Verdict]) -> Table:
    several = len(f.models) > 1
    unit = f.levels[0].unit or ""
    # What the asked unit leaves open: how many were in flight; of those that were asked for, how many really.
    true = "true" if unit == "in flight" else "in flight"
    whole, name = ("resp", "response_s") if any(map(_waits, f.levels)) else ("total", "latency_s")
    head = (unit, true, "req/s", "tok/s out", "speed/req", "ttft p50", "ttft p99", f"{whole} p50", f"{whole} p99", "n")
    rows: list[tuple[str, ...]] = [head]
    model = None
    for level, verdict in list(zip(f.levels, verdicts, strict=True))[:LEVELS_SHOWN]:
        if several and level.model != model:
            rows.append((level.model,))
            model = level.model
        rows.append(_ladder_cells(level, verdict, name))
    if len(f.levels) > LEVELS_SHOWN:
        rows.append((f"and {len(f.levels) - LEVELS_SHOWN} more levels: --json",))
    return Table(rows=rows, left=0)


def _waits(level: Level) -> bool:
    """Whether requests of an open loop waited beyond their time: from schedule is then what a user sees."""
    response, latency = ((level.spreads or {}).get(name) for name in ("response_s", "latency_s"))
    if level.unit == "in flight" or response is None or latency is None:
        return False
    return any(getattr(response, at) > WAITED * getattr(latency, at) for at in ("p50", "p99"))


def _ladder_cells(level: Level, verdict: Verdict, whole: str) -> tuple[str, ...]:
    spreads, system = level.spreads, level.system
    mark = {"VALID": "", "SUSPECT": "?", "INVALID": "!"}[verdict.state]
    asked = f"{level.level:g}{mark}"
    if spreads is None:
        return (asked, count(system.in_flight), "client-bound: no model speed")

    def cell(name: str, at: str) -> str:
        spread = spreads.get(name)
        if spread is None:
            return "-"
        if at == "p99" and spread.n < _floor(at):
            return f"n<{_floor(at):,}"
        value = getattr(spread, at)
        return number(value) if is_speed(name) else f"{ms(value)}"

    return (
        asked,
        count(system.in_flight),
        count(system.completed_per_s),
        count(system.output_tokens_per_s),
        cell("server_tokens_per_s", "p50"),
        cell("ttft_s", "p50"),
        cell("ttft_s", "p99"),
        cell(whole, "p50"),
        cell(whole, "p99"),
        f"{level.ok:,}",
    )


def aligned(table: Table) -> list[str]:
    """The table in columns."""
    full = [row for row in table.rows if len(row) == len(table.rows[0])]
    widths = [max(len(row[place]) for row in full) for place in range(len(table.rows[0]))]
    out = []
    for row in table.rows:
        cells = [
            cell.ljust(width) if place < table.left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        if len(row) < len(widths):  # words that need more room than their column
            cells[-1] = row[-1]
        out.append("  ".join(cells).rstrip())
    return out


def _unit(name: str, s: Spread) -> tuple[str, float]:
    if not name.endswith("_s") or is_speed(name):
        return "", 1.0
    return (" ms", 1_000.0) if s.p90 < 30 else (" s", 1.0)


def _floor(level: str) -> int:
    """How many requests it takes to certify a percentile such as p99, or p1."""
    part = float(level[1:]) / 100
    return floor_of(round(min(part, 1 - part), 6))


__all__ = ["ROWS", "Table", "aligned", "table"]
