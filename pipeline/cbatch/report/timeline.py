"""Evidence -> what happened when: first tokens, requests in flight, tokens/s and the client's lateness over the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cbatch.report.clock import Clock, clock_of, session_starts
from cbatch.report.evidence import Evidence, Floats, Mask
from cbatch.report.plots import DOTS, Group, Plot, Series, is_wide, scale_of, thinned
from cbatch.report.sampling import flow, rounded, spread, thin

BINS = 120  # of time
PER_INTERVAL = 40  # requests, on average, or a line of medians is noise
TAILS = ((0.99, "p99", 200), (0.90, "p90", 20))  # the tail that is drawn: of so many requests in an interval or more
CUT_S = 2.0  # a pause between two sessions or blocks that is longer is not drawn


def over_time(evidence: Evidence, groups: Sequence[Group], steady: Sequence[tuple[float, float]]) -> list[Plot]:
    """First token, requests in flight and tokens/s over the time of the run; `steady` is since the epoch."""
    sent, ended = evidence.sent_at(), evidence.ended_at()
    known = ~np.isnan(ended)
    if not known.any():
        return []
    clock = _clock(evidence, sent[known], ended[known])
    start, end = clock(sent), clock(ended)
    whole = float(end[known].max())
    edges = np.linspace(0.0, max(whole, 1e-3), min(BINS, max(12, int(np.sqrt(known.sum()) * 3))) + 1)
    middles = rounded((edges[1:] + edges[:-1]) / 2)
    shared: Mapping[str, Any] = {
        "sync": "time",
        "x_label": "seconds of the run",
        "bands": [rounded(clock(np.array(window))) for window in steady],
        "ticks": _refusals(evidence, clock, sent),
        "marks": rounded(clock(clock.pauses)),
    }
    masks = {number: group.rows & known for number, group in enumerate(groups)}
    plots = [_first_tokens(evidence, start, masks, shared)]
    lines = [
        Series(name="in flight", group=n, x=middles, y=_active(flow(start[m], end[m], None, edges)))
        for n, m in masks.items()
    ]
    plots.append(
        Plot(
            name="in_flight",
            y_label="requests in flight",
            series=lines + _asked(evidence, clock),
            height=150,
            captions=[
                "Requests between the send of their last attempt and their end; the mean of each interval."
                + (" Those of the warm-up are not counted." if evidence.warmup_rows else "")
            ],
            **shared,
        )
    )
    tokens, first = evidence.numbers("completion_tokens"), evidence.numbers("ttft_s")
    writing = end - np.nan_to_num(evidence.numbers("tail_s"))
    # Without a stream the server's own account says when it was writing; without that it is the whole request.
    alone = np.fmin(evidence.numbers("server_completion_s"), writing - start)
    begun = np.where(np.isnan(first), np.where(np.isnan(alone), start, writing - alone), start + first)
    begun = np.minimum(begun, writing)
    counted = ~np.isnan(tokens)
    lines = [
        Series(name="tokens/s", group=n, x=middles, y=_active(flow(begun[m], writing[m], tokens[m], edges)))
        for n, m in ((n, m & counted) for n, m in masks.items())
    ]
    if counted.any():
        plots.append(
            Plot(
                name="tokens",
                y_label="output tokens/s",
                series=lines,
                height=170,
                captions=["All answers together; the tokens of an answer are spread over the time it was written in."],
                **shared,
            )
        )
    return [plot for plot in plots if plot is not None]


def _first_tokens(
    evidence: Evidence, start: Floats, masks: Mapping[int, Mask], shared: Mapping[str, Any]
) -> Plot | None:
    ok = evidence.is_("status", "ok")
    column = "ttft_s" if not np.isnan(evidence.numbers("ttft_s")).all() else "latency_s"
    values = evidence.numbers(column)
    have = ok & ~np.isnan(values)
    if not have.any():
        return None
    factor, unit = scale_of(values[have])
    counts = {number: int((mask & have).sum()) for number, mask in masks.items()}
    many = {number: min(BINS // 2, max(3, count // PER_INTERVAL)) for number, count in counts.items()}
    share = sum(counts.values()) / sum(many.values())
    tail = next((tail for tail in TAILS if share >= tail[2]), TAILS[-1])
    series, drawn = [], 0
    blocks = evidence.numbers("load_block")
    for number, mask in masks.items():
        mine = mask & have
        if not mine.any():
            continue
        x, y = start[mine], values[mine] * factor
        kept = thin(x, y, DOTS // len(masks))
        drawn += len(kept)
        series.append(Series(name="one request", group=number, x=rounded(x[kept], 5), y=rounded(y[kept]), dots=True))
        for level, name, least in ((0.5, "median", 3), tail):
            at, found = _rolling(x, y, blocks[mine], many[number], level, least)
            if any(value is not None for value in found):
                series.append(Series(name=name, group=number, x=at, y=found, dash=int(name != "median")))
    what = "time to first token" if column == "ttft_s" else "request"
    caption = f"Each dot is a request at the moment it was sent{thinned(drawn, int(have.sum()))}; the lines are the"
    caption += f" median and the {tail[1]} of each interval that has {tail[2]} requests or more."
    return Plot(
        name="ttft",
        y_label=f"{what}, {unit}",
        series=series,
        height=240,
        y_log=is_wide(values[have]),
        captions=[caption],
        **shared,
    )


def loop_lag(evidence: Evidence) -> Plot | None:
    """How late the client's event loop was, at worst, in each interval of the run."""
    sent, ended = evidence.sent_at(), evidence.ended_at()
    known = ~np.isnan(ended)
    parts = [series for series in evidence.series if "loop_lag_s" in series.columns]
    if not parts or not known.any():
        return None
    clock = _clock(evidence, sent[known], ended[known])
    x = clock(np.concatenate([p.started_at.timestamp() + p.columns["t_s"] - p.every_s / 2 for p in parts]))
    y = np.concatenate([part.columns["loop_lag_s"] for part in parts]) * 1000
    here = (x >= 0) & ~np.isnan(y)
    if here.sum() < 2:
        return None
    kept = thin(x[here], y[here], BINS * 5)
    lag = Series(name="loop lag", group=None, x=rounded(x[here][kept]), y=rounded(y[here][kept]))
    return Plot(
        name="loop_lag",
        x_label="seconds of the run",
        y_label="loop lag, ms",
        series=[lag],
        height=170,
        captions=["The longest that the event loop was late in each interval."],
    )


def _clock(evidence: Evidence, sent: Floats, ended: Floats) -> Clock:
    """Pauses between sessions or blocks are cut, but so that they are seen."""
    begins = [*session_starts(evidence), *(block.measured_from for block in evidence.measured)]
    return clock_of(sent, ended, begins, longest=CUT_S, seen=0.01)


def _refusals(evidence: Evidence, clock: Clock, sent: Floats) -> list[float]:
    found = [np.empty(0)]
    for series in evidence.series:
        t, refused = series.columns.get("t_s"), series.columns.get("rate_limited")
        if t is not None and refused is not None:
            found.append(series.started_at.timestamp() + t[refused > 0] - series.every_s / 2)
    if not evidence.series:  # those that were asked again have left no trace
        refused_rows = evidence.is_("http_status", 429.0) & ~np.isnan(sent)
        found.append(sent[refused_rows])
    ticks = np.unique(clock(np.concatenate(found)).round(2))
    return rounded(ticks[ticks >= 0][:: max(1, len(ticks) // 600)])


def _asked(evidence: Evidence, clock: Clock) -> list[Series]:
    found = []
    for block in evidence.measured:
        if block.unit == "in flight":
            window = clock(np.array([block.measured_from, block.measured_from + block.measured_s]))
            found.append(Series(name="asked", group=None, x=rounded(window, 7), y=[block.level] * 2, dash=2))
    return found


def _active(values: Floats) -> list[Any]:
    """A flow without the zeros before and after it: a group that is not asked has no line."""
    there = np.flatnonzero(values > 1e-6 * values.max(initial=0.0))  # sums of floats leave crumbs
    out = np.full(len(values), np.nan)
    if len(there):
        active = slice(max(there[0] - 1, 0), there[-1] + 2)
        out[active] = values[active]
    return rounded(out)


def _rolling(x: Floats, y: Floats, blocks: Floats, many: int, level: float, least: int) -> tuple[list[Any], list[Any]]:
    """A quantile over intervals of each block, with a gap between two blocks: nothing was asked there."""
    at: list[Any] = []
    found: list[Any] = []
    numbers = np.unique(blocks[~np.isnan(blocks)])
    parts = [blocks == number for number in numbers] if len(numbers) else [np.ones(len(x), bool)]
    for part in parts:
        edges = np.linspace(x[part].min(), np.nextafter(x[part].max(), np.inf), max(3, many // len(parts)) + 1)
        if at:
            at.append(rounded(edges[:1], 6)[0])
            found.append(None)
        at += rounded((edges[1:] + edges[:-1]) / 2, 6)
        found += rounded(spread(x[part], y[part], edges, level, least))
    return at, found
