"""Findings -> the block to paste: at most 25 lines of 100 columns, or the same as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

from cbatch.report.conditions import MIN_PER_SLICE, SLICES, Drift
from cbatch.report.evidence import Evidence
from cbatch.report.figures import Figures, is_speed
from cbatch.report.findings import Findings
from cbatch.report.gates import Outcome
from cbatch.report.measures import ROWS, Table, aligned, table
from cbatch.report.verdict import DRIFT_CHANGE, DRIFT_P
from cbatch.report.words import count, elapsed, large, money, ms, number, plural, printable, time

LINES, WIDTH = 25, 100
GATES_SHOWN = 5
_WHOLE: Any = {"break_long_words": False, "break_on_hyphens": False}  # nothing is cut within a word
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """What is said above the table, the table, and below it by how dispensable each line is (0: not at all)."""

    top: list[str]
    table: Table | None
    instead: str  # said where there is no table
    below: list[tuple[int, str, str]]  # (how dispensable, word, text)


def lines(evidence: Evidence, found: Findings, width: int | None = None) -> list[str]:
    """The report as text: at most 25 lines, cut to `width` where there is one. WIDTH is enough for all figures."""
    sheet = _sheet(evidence, found)
    middle = aligned(sheet.table) if sheet.table is not None else [sheet.instead] if sheet.instead else []
    below = list(sheet.below)
    blanks = 2 if middle else 1
    while (blanks or below) and len(sheet.top) + blanks + len(middle) + len(below) > LINES:
        if blanks:
            blanks -= 1
        else:
            below.remove(max(reversed(below), key=lambda line: line[0]))
    out = [*sheet.top, *([""] if blanks else []), *middle, *([""] if blanks > 1 else [])]
    out += [f"{word:<10}{text}" for _, word, text in below]
    return out if width is None else [_cut(line, width) for line in out]


def markdown(evidence: Evidence, found: Findings) -> list[str]:
    """The report as GitHub-flavoured Markdown."""
    sheet = _sheet(evidence, found)
    first, second, verdict, *more = sheet.top
    state, _, rest = verdict.partition("  ")
    out = [f"### cbatch report: {_escaped(first)}", "", f"**{state}** {_escaped(rest.strip())}  "]
    out += [f"{_escaped(line.strip())}  " for line in (*more, second)]
    if sheet.table is not None:
        head, *rows = sheet.table.rows
        out += ["", _piped(head), _piped(["---"] * sheet.table.left + ["---:"] * (len(head) - sheet.table.left))]
        # A line of words alone (a heading inside the table) is bold.
        width = len(head)
        out += [
            _piped([f"**{row[0]}**", *[""] * (width - 1)] if len(row) == 1 else [cell.strip() for cell in row])
            for row in rows
        ]
    elif sheet.instead:
        out += ["", f"**{sheet.instead}**"]
    out.append("")
    out += [f"- {word}: {_escaped(text)}" for _, word, text in sheet.below if word != "over time"]
    bars = [f"{word}  {text}" for _, word, text in sheet.below if word == "over time"]
    return [*out, "", "```", *bars, "```"] if bars else out


def _sheet(evidence: Evidence, found: Findings) -> Sheet:
    f = found.figures
    measured = table(f, found.levels)
    instead = ""
    if found.verdict.client_bound and f.spreads is None and not any(level.spreads for level in f.levels):
        measured, instead = None, "client-bound: no model speed"
    return Sheet(
        top=[_about(evidence, f), _counts(evidence, f), *_verdict(evidence, found)],
        table=measured,
        instead=instead,
        below=[
            *_system(evidence, found),
            *_gates(found.gates),
            *_search(evidence, found),
            *_sparks(f),
            *_tokens(f),
            *_failures(f),
            *_left_out(f),
        ],
    )


def _about(evidence: Evidence, f: Figures) -> str:
    info = evidence.info
    models = ", ".join(f.models) if len(f.models) <= 2 else f"{len(f.models)} models"
    # A session that was killed before its first heartbeat left no time.
    when = next((f"{one['started_at'][:16]}Z" for one in info.get("sessions") or () if one.get("started_at")), "")
    recipe = f"recipe {info['recipe'][:6]}" if info.get("recipe") else ""
    source = info.get("source") or {}
    prompts = f"prompts {source['sha256'][:4]} ({source.get('rows', 0):,})" if source.get("sha256") else ""
    where = "SIMULATED" if info.get("simulated") else str(info.get("endpoint", "?")).partition("://")[2].split("/")[0]
    where = where or str(info.get("endpoint"))
    parts = [str(info.get("name", "?")), models, when, recipe, prompts, f"cbatch {info.get('cbatch', '?')}", where]
    for spare in (recipe, prompts):  # the name of the model says more
        if len("  ".join(filter(None, parts))) > WIDTH and spare:
            parts.remove(spare)
    return "  ".join(filter(None, parts))


def _counts(evidence: Evidence, f: Figures) -> str:
    seconds = sum(session.get("elapsed_s") or 0.0 for session in evidence.sessions) or f.system.whole_s
    parts = [f"{plural(f.rows, 'request')}  {f.ok:,} ok  {f.failed:,} failed  {f.retried:,} retried"]
    if f.rate_limited:
        parts.append(f"{f.rate_limited:,}x 429")
    if len(f.levels) == 1 and f.levels[0].level is not None:
        level = f.levels[0]
        true = f.system.in_flight
        asked = f"{level.level:g} {level.unit} asked"
        if level.unit == "in flight":
            parts.append(f"{asked} / {count(true)} true")
        else:
            parts.append(f"{asked}, {count(true)} in flight")
    elif evidence.load is None and f.system.in_flight is not None:
        parts.append(f"{count(f.system.in_flight)} in flight")
    parts.append(elapsed(seconds))
    if evidence.state != "finished":
        parts.append(f"state {evidence.state}")
    return "   ".join(parts)


def _verdict(evidence: Evidence, found: Findings) -> list[str]:
    """Line 3, and what it is based on: beside VALID, below anything else."""
    verdict = found.verdict
    facts = "  ".join(_facts(evidence, found.figures))
    if not verdict.reasons:
        return [f"{verdict.state}  {facts}"]
    shown = [f"{verdict.state}  {verdict.reasons[0]}"]
    indent = " " * (len(verdict.state) + 2)
    for place, reason in enumerate(verdict.reasons[1:], 1):
        if len(shown[-1]) + len(reason) + 12 <= WIDTH:
            shown[-1] += f"; {reason}"
        elif len(shown) < 3:
            shown.append(indent + reason)
        else:
            shown[-1] += f" (+{len(verdict.reasons) - place} more)"
            break
    shown = [part for line in shown for part in wrap(line, WIDTH, subsequent_indent=f"{indent}  ", **_WHOLE)]
    return [*shown, f"  {facts}"] if found.figures.ok else shown


def _facts(evidence: Evidence, f: Figures) -> list[str]:
    out = []
    if evidence.load is not None:
        out.append(f"{elapsed(f.system.steady_s)} in {plural(len(evidence.measured), 'block')}")
    elif f.system.steady_from_s is not None and f.system.steady_until_s is not None:
        out.append(f"steady {f.system.steady_from_s:.1f}-{f.system.steady_until_s:.1f} s")
    drifts = [drift for level in f.levels for drift in level.health.drifts]
    worst = min(drifts, key=lambda drift: drift.p, default=None)
    if worst is None:
        out.append(f"drift not tested (n<{SLICES * MIN_PER_SLICE})")
    else:
        out.append(_drift(worst))
    health = [level.health for level in f.levels]
    p50 = max((h.overhead_p50_s for h in health if h.overhead_p50_s is not None), default=None)
    p99 = max((h.overhead_p99_s for h in health if h.overhead_p99_s is not None), default=None)
    if p50 is None or p99 is None:
        out.append("client not calibrated")
    else:
        out.append(f"client +{ms(p50)} ms p50 +{ms(p99)} p99 (calibrated)")
    return out


def _drift(worst: Drift) -> str:
    if worst.p >= DRIFT_P:
        return f"no drift (p={worst.p:.2g}, not <{DRIFT_P:g})"
    small = "" if abs(worst.change) >= DRIFT_CHANGE else f" of less than {100 * DRIFT_CHANGE:g} %"
    return f"drift {100 * worst.change:+.1f} % (p={worst.p:.2g})" if not small else f"drift{small} (p={worst.p:.2g})"


def _system(evidence: Evidence, found: Findings) -> list[tuple[int, str, str]]:
    f, s = found.figures, found.figures.system
    notes = []
    if f.is_ladder:
        notes.append("times in ms")
    elif f.spreads and any(is_speed(name) and name in ROWS for name in f.spreads):
        notes.append("speeds: *p10, p1, p1 at least")
    units = {level.blocks for level in f.levels}
    if any(s.unit == "blocks" for level in f.levels for s in (level.spreads or {}).values()):
        notes.append(f"±95% over {plural(min(units), 'block')}")
    if any(verdict.state == "SUSPECT" for verdict in found.levels) and f.is_ladder:
        notes.append("? suspect")
    if any(verdict.state == "INVALID" for verdict in found.levels) and f.is_ladder:
        notes.append("! invalid")
    out = [(6, "note", "; ".join(notes))] if notes else []
    if f.is_ladder or f.spreads is None or s.output_tokens_per_s is None:
        return out
    if evidence.load is not None:
        parts = [f"{count(s.output_tokens_per_s)} tok/s out", f"{count(s.completed_per_s)} req/s"]
    else:
        parts = [
            f"{count(s.output_tokens_per_s)} tok/s out steady, {count(s.output_tokens_per_s_whole)} whole run",
            f"{count(s.completed_per_s)} req/s steady, {count(s.completed_per_s_whole)} whole",
        ]
    goodputs = [o.goodput_per_s for o in found.gates if o.goodput_per_s is not None]
    if goodputs:
        parts.append(f"goodput {count(min(goodputs))} req/s")
    return [*out, (0, "system", "   ".join(parts))]


def _gates(outcomes: Sequence[Outcome]) -> list[tuple[int, str, str]]:
    """One line each, what was missed first: it is what the reader must not miss."""
    out = []
    ordered = sorted(outcomes, key=lambda o: o.passed is True)
    for o in ordered[:GATES_SHOWN]:
        word = {True: "ok", False: "MISSED", None: "NOT JUDGED"}[o.passed]
        value = "" if o.value is None else f"  is {_gate_value(o)}" + (f" at {o.at}" if o.at else "") + f"  n={o.n:,}"
        out.append((0, "gate", f"{o.gate}{value}  {word}" + (f"  ({o.note})" if o.note else "")))
    if rest := ordered[GATES_SHOWN:]:
        missed = sum(o.passed is not True for o in rest)
        out.append((0, "gate", f"and {len(rest)} more, {missed} of them missed or not judged: --json"))
    return out


def _gate_value(o: Outcome) -> str:
    assert o.value is not None
    if o.per_request:
        return f"met by {100 * o.value:.4g} %"
    if "%" in o.gate:
        return f"{100 * o.value:.3g} %"
    if o.gate.startswith("cost_usd"):
        return money(o.value)
    name = o.gate.split()[0]
    if name.endswith("_s") and not is_speed(name):
        return f"{ms(o.value)} ms" if o.value < 10 else f"{o.value:.4g} s"
    return number(o.value)


def _search(evidence: Evidence, found: Findings) -> list[tuple[int, str, str]]:
    search = (evidence.load or {}).get("search")
    if not search:
        return []
    unit, slo = search.get("unit", ""), ", ".join(search.get("slo") or ())
    best, passed = found.best, search.get("best")
    valid = "" if passed == best else "valid "
    said = f"{best:g} {unit} is the highest {valid}load that meets" if best is not None else f"no {valid}load meets"
    out = [(0, "search", f"{said} {slo}")]
    if passed is not None and passed != best:
        out.append((0, "search", f"{passed:g} {unit} passed too, but {_spoilt(passed, found)} there"))
    elif search.get("why"):
        out.append((1, "search", _why(search["why"])))
    return out


def _spoilt(passed: float, found: Findings) -> str:
    bound = any(
        level.level == passed and verdict.client_bound
        for level, verdict in zip(found.figures.levels, found.levels, strict=True)
    )
    return "the client was the bottleneck" if bound else "the load was not delivered"


def _why(why: str) -> str:
    """Why a load did not pass, its value as people read it: the run has it in the unit of the column."""
    about, between, value = why.rpartition(": ")
    name = about.rpartition(": ")[2].split(" ")[0]
    if not between or not name.endswith("_s") or is_speed(name) or not re.fullmatch(r"[\d.e+-]+", value):
        return why
    return f"{about}: {time(float(value))}"


def _sparks(f: Figures) -> list[tuple[int, str, str]]:
    words = {"output_speed": "speed", "client_tokens_per_s": "speed", "e2e_tokens_per_s": "speed"}
    words |= {"latency_s": "latency", "in_flight": "in flight"}
    parts = [f"{words.get(name, name)} {sparkline(values)}" for name, values in f.sparklines.items() if any(values)]
    return [(4, "over time", "   ".join(parts))] if parts else []


def sparkline(values: Sequence[float | None]) -> str:
    """Bars from zero to the largest value, so that noise is not drawn as a mountain; a blank where nothing is."""
    top = max((value for value in values if value is not None), default=0.0)
    if top <= 0:
        return ""
    return "".join(" " if v is None else _BARS[min(7, max(0, round(8 * v / top) - 1))] for v in values)


def _tokens(f: Figures) -> list[tuple[int, str, str]]:
    cached = f", {100 * f.cached_tokens / f.prompt_tokens:.0f} % cached" if f.prompt_tokens else ""
    reasoning = f", {100 * f.reasoning_tokens / f.completion_tokens:.0f} % reasoning" if f.completion_tokens else ""
    unpriced = f" and {plural(f.unpriced, 'answer')} of unknown price" if f.unpriced and f.cost_usd is not None else ""
    each = f" ({money(f.usd_per_1k_requests)}/1k requests)" if f.usd_per_1k_requests else ""
    tokens = f"{large(f.prompt_tokens)} in{cached}; {large(f.completion_tokens)} out{reasoning}"
    # All that is in no figure is in no sum of money either: nobody must take 0 for what a run cost.
    measured = " of what was measured" if f.cost_usd is not None and f.incomplete_usd else ""
    out = [(1, "tokens", f"{tokens}   cost {money(f.cost_usd)}{measured}{unpriced}{each}")]
    if f.finish_reasons:
        out.append((5, "finished", ", ".join(f"{reason} {n:,}" for reason, n in f.finish_reasons.items())))
    return out


def _failures(f: Figures) -> list[tuple[int, str, str]]:
    return [
        (2 if place < 2 else 7, "failed", f"{e.kind} {e.count:,}x: {printable(' '.join(e.example.split()))}")
        for place, e in enumerate(f.errors[:6])
    ]


def _left_out(f: Figures) -> list[tuple[int, str, str]]:
    parts = []
    if f.warmup_rows:
        parts.append(f"{plural(f.warmup_rows, 'request')} of warm-ups{_cost(f.warmup_usd)}")
    if f.incomplete_blocks:
        rows = plural(f.incomplete_rows, "request")
        blocks = plural(f.incomplete_blocks, "incomplete block")
        parts.append(f"{rows} of {blocks}{_cost(f.incomplete_usd)}")
    return [(1, "left out", ", ".join(parts))] if parts else []


def _cost(usd: float) -> str:
    return f" ({money(usd)})" if usd else ""


def _cut(text: str, width: int) -> str:
    """Between two words, for half a number is another number; within one only where it takes most of the line."""
    if len(text) <= width:
        return text
    place = text.rfind(" ", width // 2, width)
    return text[: place if place > 0 else width - 1].rstrip() + "…"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def _piped(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(_escaped(c) if not c.startswith("**") else c for c in cells) + " |"


__all__ = ["LINES", "WIDTH", "lines", "markdown", "sparkline"]
