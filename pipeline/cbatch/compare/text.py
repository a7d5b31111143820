"""Comparison -> lines for people: a block of at most 100 columns to paste, and the same as Markdown."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime

from cbatch.compare.metrics import Measure, measure
from cbatch.compare.runs import overhead
from cbatch.compare.sides import Side
from cbatch.compare.verdict import Comparison, Line, Pair

WIDTH = 100
LETTERS = "BCDEFGHIJKLMNOPQRSTUVWXYZ"
ABREAST = 3  # runs beside the first that fit into 100 columns
_SHORT = {"PASS": "ok", "FAIL": "FAIL", "INCONCLUSIVE": "open"}
_NAME_LENGTH = 24


def value(of: Measure, number: float | None) -> str:
    """2113.4 -> "2,113 tok/s", 0.142 -> "142 ms", 0.003 -> "0.3 %"; "-" where nothing was measured."""
    if number is None:
        return "-"
    match of.kind:
        case "share":
            return f"{100 * number:.{1 if number >= 0.001 or not number else 2}f} %"
        case "money":
            return f"${1000 * number:.{4 if number < 0.001 else 2}f}"
        case "speed":
            unit = "req/s" if of.name == "completed_per_s" else "tok/s"
            if number >= 99_999.5:
                return f"{number / 1000:,.1f}k {unit}"
            return f"{number:,.{0 if number >= 99.95 else 1}f} {unit}"
        case "time" if number < 9.9995:
            ms = 1000 * number
            return f"{ms:,.{0 if ms >= 99.95 else 1 if ms >= 0.95 else 2}f} ms"
        case "time":
            return f"{number:,.1f} s"
    return f"{number:,.1f}"


def percent(of: Measure, change: float) -> float:
    """A change in the unit it is printed in: percent, or for a share points."""
    return 100 * (change if of.kind == "share" else math.expm1(change))


def change(line: Line) -> str:
    """Its size, such as -4.4 %, or "-" where there is none to speak of."""
    found = line.difference.change
    if found is None or line.note.startswith("below"):
        return "-"
    points = line.measure.kind == "share"
    return f"{_signed(percent(line.measure, found.point), points)} {'pt' if points else '%'}"


def interval(line: Line) -> str:
    """Its interval, such as -5.1 .. -3.7 %; empty where there is none."""
    found = line.difference.change
    if found is None or line.note.startswith("below"):
        return ""
    points = line.measure.kind == "share"
    low, high = (_signed(percent(line.measure, end), points) for end in (found.low, found.high))
    return f"{low} .. {high} {'pt' if points else '%'}"


def _signed(number: float, points: bool) -> str:
    text = f"{number:+.{0 if abs(number) >= 99.95 else 2 if points and abs(number) < 0.095 else 1}f}"
    return text if float(text) else text.replace("-", "+")


def p_value(line: Line) -> str:
    """The exact sign-flip p where there are six pairs, else that of the interval; empty where there is none."""
    found = line.difference.change
    if found is None or found.p is None or line.note.startswith("below"):
        return ""
    p = found.p if found.p_sign_flip is None else found.p_sign_flip
    return "<.001" if p < 0.001 else f"{p:.3f}" if p < 0.0995 else f"{p:.2f}"


def verdict_word(comparison: Comparison) -> str:
    """FAIL, INCONCLUSIVE or PASS over all gates; "no gates" where none was given."""
    if not comparison.gated:
        return "no gates"
    return "FAIL" if comparison.count("FAIL") else "INCONCLUSIVE" if comparison.count("INCONCLUSIVE") else "PASS"


def last_line(comparison: Comparison, *, strict: bool) -> str:
    """The verdict in one line, with the exit code."""
    word, gates = verdict_word(comparison), len(comparison.gated)
    code = comparison.exit_code(strict=strict)
    if not gates:
        return "no gates: nothing was demanded, so nothing failed (--fail-on 'server_tokens_per_s < -3%')"
    if word == "PASS":
        return f"PASS: {gates} gate{'s' * (gates > 1)}   exit {code}"
    failed, undecided = comparison.count("FAIL"), comparison.count("INCONCLUSIVE")
    parts = [f"{failed} failed"] * bool(failed) + [f"{undecided} undecided"] * bool(undecided)
    return f"{word}: {', '.join(parts)} of {gates} gate{'s' * (gates > 1)}   exit {code}"


def lines(comparison: Comparison, *, strict: bool = False) -> list[str]:
    """The comparison as text, at most 100 columns wide."""
    out = [*_header(comparison)]
    for group in _groups(comparison):
        if len({pair.b.model for pair in comparison.pairs}) > 1:
            out += ["", group[0].b.model]
        out += _table(group[0]) if len(comparison.runs) <= 2 else _columns(group)
    for text in _remarks(comparison):
        out += textwrap.wrap(text, WIDTH, subsequent_indent="  ")
    return [*(line.rstrip() for line in out), last_line(comparison, strict=strict)]


def _groups(comparison: Comparison) -> list[list[Pair]]:
    """The pairs of each model, as many as fit beside each other."""
    if len(comparison.runs) <= 2:
        return [[pair] for pair in comparison.pairs]
    models = list(dict.fromkeys(pair.b.model for pair in comparison.pairs))
    ours = [[pair for pair in comparison.pairs if pair.b.model == model] for model in models]
    return [pairs[n : n + ABREAST] for pairs in ours for n in range(0, len(pairs), ABREAST)]


def _letter(comparison: Comparison, pair: Pair) -> str:
    return LETTERS[[one for one in comparison.pairs if one.b.model == pair.b.model].index(pair) % len(LETTERS)]


def _header(comparison: Comparison) -> Iterator[str]:
    first = comparison.pairs[0]
    if len(comparison.runs) == 1:
        yield f"A earlier runs   B {_about(first.b)}"
    elif len(comparison.runs) == 2:
        text = f"A {_about(first.a)}   B {_about(first.b)}"
        yield from [text] if len(text) <= WIDTH else text.split("   ")
    else:
        yield f"A {_about(first.a)}"
        for pair in comparison.pairs:
            if pair.b.model == first.b.model:
                yield f"{_letter(comparison, pair)} {_about(pair.b)}"
    kinds = {
        "interleaved": f"interleaved, {len(first.design.pairs)} pairs",
        "apart": "one run after the other",
        "one run": "single runs",
    }
    facts = [kinds[first.design.kind]] if len(comparison.runs) > 1 else []
    common = first.design.common_prompts
    facts.append(
        f"same {common:,} prompts" if first.design.same_prompts else f"different prompts, {common:,} in common"
    )
    if len({pair.b.model for pair in comparison.pairs}) == 1 and first.a.model == first.b.model:
        facts.append(first.a.model)
    if first.a.level is not None:
        facts.append(f"level {first.a.level:g} {first.a.unit}")
    if (error := overhead(comparison.runs)) is not None:
        facts.append(f"client error {1000 * error:.1f} ms")
    yield "   ".join(facts)
    for one in comparison.allowed:
        yield f"allowed: {one}"


def _about(side: Side) -> str:
    begun, ended = (min(s.begun_s for s in side.stretches), max(s.ended_s for s in side.stretches))
    clock = [datetime.fromtimestamp(at, tz=UTC) for at in (begun, ended)]
    count = len(side.stretches)
    each = f"{count} x {side.requests // count:,}" if count > 1 else f"{side.requests:,}"
    name = side.name if len(side.name) <= _NAME_LENGTH else side.name[: _NAME_LENGTH - 1] + "…"
    return f"{name}  {each} requests {clock[0]:%m-%d %H:%M}-{clock[1]:%H:%M}"


def _table(pair: Pair) -> Iterator[str]:
    yield f"{'':<19}{'A':>12}{'B':>13}{'B vs A':>9}{'95% interval':>18}{'p':>6}  verdict  gate"
    for line in pair.lines:
        a, b = value(line.measure, line.difference.a), value(line.measure, line.difference.b)
        start = f"{line.measure.words[:19]:<19}{a:>12}{b:>13}{change(line):>9}"
        gate = f"{line.gate.shown} {_SHORT[line.outcome]}" if line.gate and line.outcome else "info"
        if line.note.startswith("below"):
            yield f"{start}  {line.note:<33}{gate}"
        else:
            yield f"{start}{interval(line):>18}{p_value(line):>6}  {line.word:<9}{gate}"


def _columns(pairs: list[Pair]) -> Iterator[str]:
    """The changes of several runs beside each other, and their mean as a speed."""
    yield f"{'':<20}{'A':>12}" + "".join(f"   {_name(pair):<20}" for pair in pairs)
    seen: dict[tuple[Measure, str], None] = {}
    for pair in pairs:
        seen |= dict.fromkeys((line.measure, line.gate.text if line.gate else "") for line in pair.lines)
    for key in seen:
        cells, first = [], None
        for pair in pairs:
            line = next((one for one in pair.lines if (one.measure, one.gate.text if one.gate else "") == key), None)
            if line is None:
                cells.append(f"{'-':>9}{'':<14}")
                continue
            first = line.difference.a if first is None else first
            short = _SHORT[line.outcome] if line.outcome else ""
            cells.append(f"{change(line):>9} {line.word:<9}{short:<4}")
        yield f"{key[0].words[:20]:<20}{value(key[0], first):>12}" + "".join(cells)
    means = [geomean(pair) for pair in pairs]
    cells = ["-" if mean is None else f"{_signed(100 * math.expm1(mean), False)} %" for mean in means]
    yield f"{'geomean, as speed':<20}{'':>12}" + "".join(f"{cell:>9}{'':<14}" for cell in cells)


def _name(pair: Pair) -> str:
    return f"{pair.b.name} vs A" if len(pair.b.name) <= 14 else f"{pair.b.name[:13]}… vs A"


def geomean(pair: Pair) -> float | None:
    """The mean change of all medians of times and speeds, as the log ratio of a speed: a time that falls is a gain."""
    measures: dict[Measure, float] = {}
    for line in pair.lines:
        found = line.difference.change
        if found is not None and line.measure.statistic == "p50" and not line.note.startswith("below"):
            measures[line.measure] = found.point if line.measure.kind == "speed" else -found.point
    return sum(measures.values()) / len(measures) if measures else None


def _remarks(comparison: Comparison) -> list[str]:
    """What would decide the undecided gates, notes, and what the design could have seen."""
    out: list[str] = []
    models = len({pair.b.model for pair in comparison.pairs}) > 1
    for pair in comparison.pairs:
        names = [pair.b.name] * (len(comparison.runs) > 2) + [pair.b.model] * models
        who = f"{' '.join(names)}: " if names else ""
        for line in pair.lines:
            if line.outcome == "INCONCLUSIVE" and line.gate is not None:
                out.append(f"INCONCLUSIVE {who}{line.gate.text}: {line.note}")
        out += [f"note: {who}{note}" for note in pair.notes]
    return [*dict.fromkeys(out), *_smallest(comparison)]


def _smallest(comparison: Comparison) -> Iterator[str]:
    """Of the first pair: for what is gated, or else for the usual three."""
    pair = comparison.pairs[0]
    wanted = [line.measure for line in pair.lines if line.gate is not None]
    wanted = wanted or [measure(name) for name in ("server_tokens_per_s", "ttft_s", "latency_s")]
    parts = []
    for one in dict.fromkeys(wanted):
        line = next((line for line in pair.lines if line.measure == one), None)
        found = line.difference.change if line else None
        if found is not None and found.smallest is not None:
            size = percent(one, found.smallest)
            parts.append(f"{one.words} {size:.{2 if size < 0.95 else 1}f} {'pt' if one.kind == 'share' else '%'}")
    if parts:
        yield f"smallest change this design could see (power 80 %): {', '.join(parts)}"


def markdown(comparison: Comparison, *, strict: bool = False) -> list[str]:
    """The comparison as GitHub-flavoured Markdown: the verdict first, then a table for each pair."""
    out = [f"**{last_line(comparison, strict=strict)}**", ""]
    out += [f"{line}  " for line in _header(comparison)]
    for pair in comparison.pairs:
        if len(comparison.pairs) > 1:
            out += ["", f"### {_cell(pair.b.name)} vs {_cell(pair.a.name)}, {pair.b.model}"]
        out += ["", "| | A | B | B vs A | 95 % interval | p | verdict | gate |", "|---|--:|--:|--:|--:|--:|---|---|"]
        for line in pair.lines:
            gate = f"`{line.gate.text}` **{line.outcome}**" if line.gate else "info"
            cells = [
                line.measure.words,
                value(line.measure, line.difference.a),
                value(line.measure, line.difference.b),
                *(change(line), interval(line) or line.note, p_value(line), line.word, gate),
            ]
            out.append("| " + " | ".join(cells) + " |")
    return [*out, "", *(f"- {text}" for text in _remarks(comparison))]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
