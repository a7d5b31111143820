"""Evidence -> the parts of the page that are HTML alone: where the time went, failures, slow requests, the client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from cbatch.report.curves import Curve, svg
from cbatch.report.evidence import Block, Evidence, Lag
from cbatch.report.phases import LEAST, RANGES, SHORT, WORDS, Phases, typical
from cbatch.report.plots import Group, duration, wall
from cbatch.report.sampling import Floats, Places

SLOWEST = 20
LONGEST_MESSAGE = 400  # characters of an error that are shown: some servers answer with a page
MOST_BLOCKS = 200  # in the table of the client's health
NEEDED = ("id", "request_id")  # columns that the page needs beside those of evidence.NAMES
_SHOWN = ("sample", "prompt_tokens", "completion_tokens", "attempts")


@dataclass(frozen=True, slots=True)
class Body:
    """Rows of one table under a heading ("" for none); `group` is what they are filtered by."""

    heading: str
    rows: Sequence[Sequence[str]]
    group: int | None = None


def table(head: Sequence[str], bodies: Sequence[Body], texts: Sequence[int] = (0,)) -> str:
    """A table of cells that are HTML already; the first cell of a row is its heading, `texts` are left-aligned."""
    cells = "".join(f'<th scope="col"{_left(n, texts)}>{text}</th>' for n, text in enumerate(head))
    # A wide table scrolls within its frame, which the keyboard reaches.
    out = [f'<div class="wide" tabindex="0"><table><thead><tr>{cells}</tr></thead>']
    for body in bodies:
        out.append("<tbody>" if body.group is None else f'<tbody data-group="{body.group}">')
        if body.heading:
            out.append(f'<tr class="group"><th colspan="{len(head)}" scope="rowgroup">{body.heading}</th></tr>')
        for row in body.rows:
            rest = "".join(f"<td{_left(n, texts)}>{cell}</td>" for n, cell in enumerate(row[1:], start=1))
            out.append(f'<tr><th scope="row" class="key">{row[0]}</th>{rest}</tr>')
        out.append("</tbody>")
    return "".join([*out, "</table></div>"])


def _left(place: int, texts: Sequence[int]) -> str:
    return ' class="text"' if place in texts else ""


def waterfall(groups: Sequence[Group], found: Phases) -> str:
    """Stacked bars of requests around the median, p90 and p99, and the percentiles of each phase."""
    answered = ~np.isnan(found.whole)
    out = []
    for number, group in enumerate(groups):
        places = np.flatnonzero(group.rows & answered)
        if not len(places):
            continue
        rows = typical(found, places)
        longest = max(sum(row.values()) for row in rows.values()) or 1.0
        title = f"<h3>{escape(group.name)}</h3>" if len(groups) > 1 else ""
        bars = "".join(
            f'<div class="fall"><b>{name}</b>{_stack(row, longest)}<span>{duration(sum(row.values()))}</span></div>'
            for name, row in rows.items()
        )
        out.append(f'<div data-group="{number}">{title}{bars}')
        lines = []
        for key, values in found.parts.items():
            mine = values[places]
            if mine.any():
                lines.append([f'<i class="key-mark k-{key}"></i>{WORDS[key]}', *_percentiles(mine)])
        lines.append(["all of it", *_percentiles(found.whole[places])])
        numbers = table(["phase", "median", "p90", "p99"], [Body("", lines)])
        if len(groups) > 1:
            numbers = f"<details><summary>percentiles of each phase</summary>{numbers}</details>"
        out.append(numbers + "</div>")
    if len(groups) > 1:
        keys = "".join(f'<span><i class="k-{key}"></i>{WORDS[key]}</span>' for key in found.parts)
        out.insert(0, f'<div class="legend keys">{keys}</div>')
    return "".join(out)


def _percentiles(values: Floats) -> list[str]:
    found = zip(LEAST.values(), np.quantile(values, [0.5, 0.9, 0.99]), strict=True)
    return [duration(float(value)) if len(values) >= least else f"n &lt; {least}" for least, value in found]


def _stack(row: dict[str, float], longest: float) -> str:
    bars = "".join(
        f'<i class="k-{key}" style="--w:{100 * value / longest:.2f}%" title="{WORDS[key]}: {duration(value)}"></i>'
        for key, value in row.items()
        if value > 0
    )
    words = ", ".join(f"{WORDS[key]} {duration(value)}" for key, value in row.items() if value > 0)
    return f'<div class="stack" role="img" aria-label="{words}">{bars}</div>'


def ranges() -> str:
    """What the bars of `waterfall` are means of, in words."""
    return ", ".join(f"{name}: ranks {100 * low:g} to {100 * high:g} %" for name, (low, high) in RANGES.items())


def failures(evidence: Evidence) -> str:
    """Each kind of failure: how many, the status, when, and one message."""
    sent = evidence.sent_at()
    everything = max(evidence.rows.num_rows, 1)
    rows = []
    for kind, (count, example) in evidence.failures.items():
        mine = evidence.is_("error_kind", kind)
        times, status = sent[mine], evidence.numbers("http_status")[mine]
        times = times[~np.isnan(times)]
        statuses = ", ".join(f"{int(code)}" for code in np.unique(status[~np.isnan(status)]))
        first, last = (wall(float(t)) for t in (times.min(), times.max())) if len(times) else ("", "")
        text = " ".join(example.split())
        shown = text if len(text) <= LONGEST_MESSAGE else text[:LONGEST_MESSAGE] + " …"
        share = f"{count:,} ({100 * count / everything:.3g} %)"
        when = first if first == last else f"{first}<br>{last}"
        rows.append((kind, share, statuses or "none", when or "never sent", f"<code>{escape(shown)}</code>"))
    head = ("kind", "requests", "HTTP status", "first and last, UTC", "one message")
    return _prose(table(head, [Body("", rows)], texts=(0, 3, 4)))


def _prose(html: str) -> str:
    # The last cell holds sentences: it may wrap, the others not.
    return html.replace('<td class="text"><code>', '<td class="prose"><code>')


def slowest(evidence: Evidence, groups: Sequence[Group], found: Phases) -> str:
    """The requests that took longest, each with its phases: of all, and of each group where that is asked for."""
    answered = ~np.isnan(found.whole)
    everything = np.flatnonzero(answered & np.logical_or.reduce([group.rows for group in groups]))
    out = [_slowest(evidence, groups, found, everything, SLOWEST)]
    if len(groups) > 1:
        out[0] = f'<div data-only="">{out[0]}</div>'
        for number, group in enumerate(groups):
            mine = np.flatnonzero(answered & group.rows)
            rows = _slowest(evidence, groups[number : number + 1], found, mine, SLOWEST // 2)
            out.append(f'<div data-only="{number}" hidden>{rows}</div>')
    return "".join(out)


def _slowest(evidence: Evidence, groups: Sequence[Group], found: Phases, among: Places, most: int) -> str:
    chosen = among[np.argsort(-found.whole[among], kind="stable")[:most]]
    columns = [c for c in (*NEEDED, *_SHOWN) if c in evidence.rows.column_names]
    rows = evidence.rows.select(columns).take(chosen.tolist()).to_pylist()
    sent = evidence.numbers("started_at")
    longest = float(found.whole[chosen].max(initial=0.0)) or 1.0
    several, again = len(groups) > 1, any(row["sample"] for row in rows)
    keys = [key for key, values in found.parts.items() if (values[chosen] > 5e-7).any()]
    lines = []
    for row, place in zip(rows, chosen.tolist(), strict=True):
        parts = {key: float(found.parts[key][place]) for key in keys}
        about = [escape(str(row.get("id")))]
        if again:
            about.append(_count(row["sample"]))
        if several:
            about.append(escape(next(group.name for group in groups if group.rows[place])))
        lines.append(
            (
                *about,
                duration(float(found.whole[place])),
                _stack(parts, longest),
                *(duration(value) for value in parts.values()),
                *(_count(row[name]) for name in _SHOWN[1:]),
                wall(float(sent[place]))[11:],
                escape(row.get("request_id") or ""),
            )
        )
    marks = [f'<i class="key-mark k-{key}"></i>{SHORT[key]}' for key in keys]
    head = ["id", *(["sample"] if again else []), *(["group"] if several else []), "time", "", *marks]
    head += ["tokens in", "out", "attempts", "sent, UTC", "server's id"]
    return table(head, [Body("", lines)], texts=(0, head.index("time") - 1 if several else 0, len(head) - 1))


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def health(evidence: Evidence) -> str:
    """The client's own figures: how late its loop was, its processor, and what the calibration found."""
    parts = []
    blocks = evidence.measured
    if blocks:
        level = {"in flight": "in flight", "requests/s": "requests/s"}[blocks[0].unit]
        rows = [_block(block) for block in blocks[:MOST_BLOCKS]]
        head = ("block", level, "really in flight", "starved", "loop lag p50", "p99", "max")
        parts.append(table((*head, "CPU", "late p50", "p99"), [Body("", rows)]))
        parts.append(_calibration(blocks))
    else:
        rows = []
        for number, session in enumerate(evidence.sessions):
            lag = session.get("loop_lag_s") or {}
            elapsed, cpu = session.get("elapsed_s") or 0.0, session.get("cpu_s")
            share = f"{100 * cpu / elapsed:.0f} %" if cpu is not None and elapsed else "not measured"
            started = str(session.get("started_at", ""))[:19].replace("T", " ")
            lags = [_time(lag.get(name)) for name in ("p50", "p99", "max")]
            rows.append((f"{number + 1}", escape(started), duration(elapsed), *lags, share))
        head = ("session", "started, UTC", "lasted", "loop lag p50", "p99", "max", "CPU")
        parts.append(table(head, [Body("", rows)], texts=(0, 1)))
    return "".join(parts)


def _time(seconds: float | None) -> str:
    return "not measured" if seconds is None else duration(seconds)


def _block(block: Block) -> tuple[str, ...]:
    lag, overhead = block.loop_lag, block.overhead
    cpu = f"{100 * block.cpu_s / block.measured_s:.0f} %" if block.cpu_s is not None and block.measured_s else ""
    return (
        f"{block.number}",
        f"{block.level:g}",
        "" if block.in_flight is None else f"{block.in_flight:.4g}",
        duration(block.starved_s),
        *((duration(lag.p50), duration(lag.p99), _time(lag.max)) if lag else ("", "", "")),
        cpu,
        *((duration(overhead.p50), duration(overhead.p99)) if overhead else ("not calibrated", "")),
    )


def _calibration(blocks: Sequence[Block]) -> str:
    """How late the client stamps a first token, by load: a curve where there are several loads."""
    by_level: dict[float, Lag] = {block.level: block.overhead for block in blocks if block.overhead}
    if len(by_level) < 2:
        return ""
    levels = sorted(by_level)
    curves = []
    for name, late in (
        ("p50", [by_level[level].p50 for level in levels]),
        ("p99", [by_level[level].p99 for level in levels]),
    ):
        curves.append(
            Curve(
                points=[(level, 1000 * s) for level, s in zip(levels, late, strict=True)],
                labels=["" for _ in levels[:-1]] + [name],
                hints=[f"{level:g}: {name} {duration(s)}" for level, s in zip(levels, late, strict=True)],
                dashed=name == "p99",
            )
        )
    return f'<div class="pair">{svg("calibration by load", blocks[0].unit, "late by, ms", curves)}</div>'
