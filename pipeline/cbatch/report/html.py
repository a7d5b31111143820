"""Evidence -> one page of HTML that needs nothing else: no network, no second file.

For `cbatch report RUN --html FILE`:

    evidence = read(folder, also=html.ALSO)
    found = find(evidence, slo)
    text = html.page(evidence, found, block.lines(evidence, found))

Ids, names and messages come from users and servers: all text is escaped, the data cannot end its script,
and a content security policy lets nothing run but the two scripts of this package and nothing load at all.

assets/uPlot.* are the files of https://www.npmjs.com/package/uplot 1.6.32 (MIT), unchanged.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np

from cbatch.gates import Gate, parse
from cbatch.report import plots, tables, timeline
from cbatch.report.clock import run_clock
from cbatch.report.evidence import Evidence
from cbatch.report.figures import MEASURES, Figures, Spread, is_speed
from cbatch.report.findings import Findings
from cbatch.report.intervals import floor_of
from cbatch.report.ladder import ladder
from cbatch.report.phases import Phases, phases
from cbatch.report.plots import Group, Plot, duration
from cbatch.report.verdict import Verdict

__all__ = ["ALSO", "page"]

ALSO = tables.NEEDED  # what `read` is to fetch beside its own columns
_ASSETS = files("cbatch.report") / "assets"

# A canvas is drawn for the screen it was made on. Twice that is what paper needs, and uPlot asks once, when it loads.
_SHARP = 'Object.defineProperty(window,"devicePixelRatio",{value:Math.max(2,window.devicePixelRatio)});\n'


def page(evidence: Evidence, found: Findings, lines: Sequence[str]) -> str:
    """The report of a run as a page. `evidence` was read with `also=ALSO`; `lines` is the block to paste."""
    figures, verdict = found.figures, found.verdict
    gates = [parse(outcome.gate) for outcome in found.gates]
    groups = plots.groups(evidence, figures)
    drawn: list[Plot] = []
    times = phases(evidence)
    sections = [*_withheld(evidence, figures, groups, drawn)]
    if groups:
        sections += _model_sections(evidence, figures, groups, gates, times, drawn)
    sections.append(_failures(evidence))
    if groups:
        sections.append(_slowest(evidence, groups, times))
    sections.append(_health(evidence, drawn))
    scripts = [f"{_SHARP}/*\n{_asset('uPlot.LICENSE')}*/\n{_asset('uPlot.iife.min.js')}", _asset("page.js")]
    data = {
        "groups": [group.name for group in groups],
        "band": "measured" if evidence.load else "steady",
        "plots": [plot.as_json() for plot in drawn],
    }
    name = str(evidence.info.get("name") or evidence.folder.name)
    return Template(_asset("page.html")).substitute(
        title=escape(name),
        policy=_policy(scripts),
        style=_asset("uPlot.min.css") + _asset("page.css"),
        select=_select(groups, figures),
        verdict=_verdict(verdict),
        block=escape("\n".join(lines)),
        provenance=_provenance(evidence),
        sections="".join(sections),
        footer=escape(
            f"cbatch {evidence.info.get('cbatch', '?')}, metrics version {evidence.info.get('metrics_version', 1)}"
        ),
        data=_json(data),
        uplot=scripts[0],
        script=scripts[1],
    )


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text("utf-8")


def _policy(scripts: Iterable[str]) -> str:
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}"


def _json(data: Any) -> str:
    # In a script element only "</script" and "<!--" mean something, and JSON has another way to write their "<".
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


def _select(groups: Sequence[Group], figures: Figures) -> str:
    if len(groups) < 2:
        return ""
    what = "level" if figures.is_ladder else "model"
    options = "".join(f'<option value="{n}">{escape(group.name)}</option>' for n, group in enumerate(groups))
    return f'<label for="group">Show</label><select id="group"><option value="">every {what}</option>{options}</select>'


def _verdict(verdict: Verdict) -> str:
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in verdict.reasons)
    return (
        f'<div class="verdict {verdict.state.lower()}"><b>{escape(verdict.state)}</b>'
        f"{f'<ul>{reasons}</ul>' if reasons else ''}</div>"
    )


def _provenance(evidence: Evidence) -> str:
    info = evidence.info
    source = info.get("source") or {}
    about = {
        "run directory": str(evidence.folder),
        "state": evidence.state,
        "cbatch": info.get("cbatch"),
        "metrics version": info.get("metrics_version"),
        "endpoint": "simulated" if info.get("simulated") else info.get("endpoint"),
        "prompts": ", ".join(str(file) for file in source.get("files") or ()),
        "prompts, rows": source.get("rows"),
        "prompts, sha256": source.get("sha256"),
        "limit": info.get("limit"),
        "recipe": info.get("recipe"),
        "sessions": ", ".join(str(session.get("started_at")) for session in evidence.sessions),
    }
    rows = [(escape(key), escape(str(value))) for key, value in about.items() if value not in (None, "")]
    job = escape(json.dumps(info.get("job"), indent=2, ensure_ascii=False))
    listed = "".join(f'<tr><th scope="row">{key}</th><td class="prose">{value}</td></tr>' for key, value in rows)
    return f"<table><tbody>{listed}</tbody></table><h3>Job</h3><pre>{job}</pre>"


def _section(title: str, body: str, note: str = "") -> str:
    words = f'<p class="note">{note}</p>' if note else ""
    return f"<section><h2>{title}</h2>{words}{body}</section>"


def _figure(found: Sequence[Plot], drawn: list[Plot]) -> str:
    """The place of plots that share an axis; page.js draws them."""
    hint = "" if drawn else '<p class="mouse">Drag to zoom; double-click for the whole range.</p>'
    drawn += found
    captions = "".join(f"<p>{escape(text)}</p>" for plot in found for text in plot.captions)
    places = ""
    for plot in found:
        what = escape(f"{plot.y_label} by {plot.x_label}")
        places += f'<div class="plot" id="plot-{plot.name}" role="img" aria-label="{what}"></div>'
    return (
        f'<figure><button class="reset" type="button" hidden>Whole range</button><div class="legend"></div>{places}'
        f"<figcaption>{captions}{hint}</figcaption></figure>"
    )


def _model_sections(
    evidence: Evidence,
    figures: Figures,
    groups: Sequence[Group],
    gates: Sequence[Gate],
    times: Phases,
    drawn: list[Plot],
) -> Iterable[str]:
    speed = plots.speed(evidence, groups)
    yield _section(
        "Output speed",
        _figure([speed], drawn) if speed else "",
        ""
        if speed
        else "No answer has a speed: neither <code>time_info</code> nor a stream says how long it was written.",
    )
    yield _section(
        "Where the time went",
        tables.waterfall(groups, times),
        f"Each bar is the mean of the requests around that rank of the whole time ({tables.ranges()}), so its parts add"
        " up; the percentiles in the table are of each phase alone, and do not."
        + (" Each group has its own scale." if len(groups) > 1 else ""),
    )
    stream = not np.isnan(evidence.numbers("ttft_s")).all()
    over_time = timeline.over_time(evidence, groups, _steady(evidence, figures))
    no_stream = "" if stream else "No time to first token: that needs <code>params.stream: true</code>."
    yield _section("Over time", _figure(over_time, drawn) if over_time else "", no_stream)
    pairs = (("ttft_s", "prompt_tokens"), ("latency_s", "completion_tokens"))
    scatters = [plot for y, x in pairs if (plot := plots.scatter(evidence, groups, x, y)) is not None]
    if scatters:
        yield _section("Time against tokens", "".join(_figure([plot], drawn) for plot in scatters), no_stream)
    else:
        yield _section("Time against tokens", "", "No token counts: no answer came with <code>usage</code>.")
    if figures.is_ladder:
        yield _section("Load against latency", *ladder(groups, gates))
    yield _section("Percentiles", _percentiles(groups), _PERCENTILES)


_PERCENTILES = (
    "± is the 95 % interval of the median. The bad tail of a speed is its low end, so a speed has p10 and p1 where a"
    " time has p90 and p99. Certified: with 99 % confidence the p99 of a time is at most this, and the p1 of a speed at"
    f" least this; it takes {floor_of(0.01)} requests."
)


def _withheld(evidence: Evidence, figures: Figures, groups: Sequence[Group], drawn: list[Plot]) -> Iterable[str]:
    """What is not on the page, and why; where that is everything, what was in flight all the same."""
    reasons = [f"{plots.name_of(level, figures)}: {level.reason}" for level in figures.levels if level.reason]
    if reasons:
        listed = "".join(f"<li>{escape(reason)}</li>" for reason in reasons)
        yield _section("Not shown", f"<ul>{listed}</ul>", "Figures of the client, which are not those of a model:")
    everything = plots.groups(evidence, figures, trusted=False)
    if not everything:
        yield _section("No figures", "", "No request was answered: there is nothing to draw.")
    if not groups and everything:
        found = timeline.over_time(evidence, everything, _steady(evidence, figures))
        in_flight = [plot for plot in found if plot.name == "in_flight"]
        yield _section("Over time", _figure(in_flight, drawn))


def _steady(evidence: Evidence, figures: Figures) -> list[tuple[float, float]]:
    if evidence.load is not None:
        return [(block.measured_from, block.measured_from + block.measured_s) for block in evidence.measured]
    system = figures.system
    if system.steady_from_s is None or system.steady_until_s is None:
        return []
    clock = run_clock(evidence)
    begun = float(np.nanmin(clock(evidence.sent_at()[evidence.is_("status", "ok")])))
    return [(clock.epoch(begun + system.steady_from_s), clock.epoch(begun + system.steady_until_s, ending=True))]


def _percentiles(groups: Sequence[Group]) -> str:
    bodies = []
    for number, group in enumerate(groups):
        spreads = group.level.spreads or {}
        rows = [_measured(name, words, spreads[name]) for name, words in MEASURES.items() if name in spreads]
        bodies.append(tables.Body(escape(group.name) if len(groups) > 1 else "", rows, number))
    head = ("", "median", "±", "p90<br>speed: p10", "p99<br>speed: p1", "p99 certified ≤<br>speed: p1 ≥", "requests")
    return tables.table(head, bodies)


def _measured(name: str, words: str, spread: Spread) -> tuple[str, ...]:
    def said(value: float) -> str:
        return duration(value) if name.endswith("_s") and not is_speed(name) else f"{value:,.0f}"

    def known(value: float | None, least: int) -> str:
        return f"n &lt; {least}" if value is None or spread.n < least else said(value)

    bad, worst, key = (spread.p10, spread.p1, "p1") if is_speed(name) else (spread.p90, spread.p99, "p99")
    return (
        escape(words.removesuffix(", s").strip()),
        said(spread.p50),
        "" if spread.half_width is None else f"{100 * spread.half_width:.1f} %",
        known(bad, floor_of(0.1)),
        known(worst, floor_of(0.01)),
        known(spread.certified.get(key), floor_of(0.01)),
        f"{spread.n:,}" + (f" ({spread.undefined:,} without)" if spread.undefined else ""),
    )


def _failures(evidence: Evidence) -> str:
    if not evidence.failures:
        return _section("Failures", "", "None: every request was answered.")
    return _section("Failures", tables.failures(evidence))


def _slowest(evidence: Evidence, groups: Sequence[Group], times: Phases) -> str:
    return _section(
        "Slowest requests",
        f'<div class="slow">{tables.slowest(evidence, groups, times)}</div>',
        "From when a request was due or first sent to the end of its answer. All columns of one:"
        " <code>SELECT * FROM 'results/*.parquet' WHERE id = '…'</code> (duckdb).",
    )


def _health(evidence: Evidence, drawn: list[Plot]) -> str:
    note = "Loop lag is how late the client's event loop was; CPU is of one core."
    if any(block.overhead for block in evidence.measured):
        note += " Late: how late it stamps a first token, calibrated against a built-in echo at the same load."
    elif not evidence.measured:
        note += " Not calibrated: only a load run is."
    lag = timeline.loop_lag(evidence)
    return _section("The client", (_figure([lag], drawn) if lag else "") + tables.health(evidence), note)
