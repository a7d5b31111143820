"""Evidence -> the plots of the page, as the data that assets/page.js draws: few points, units, words.

A plot is None where its data was not measured. Its caption says when points were left out, and what a line means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from cbatch.report.evidence import Evidence, Floats, Mask, moment
from cbatch.report.figures import Figures, Level
from cbatch.report.sampling import Line, flow, line, rounded, shares, spread, thin

DOTS = 2_400  # of one figure, all groups together: as many as a screen shows apart
BINS = 120  # of time
PER_INTERVAL = 40  # requests, on average, or a line of medians is noise
TAILS = ((0.99, "p99", 200), (0.90, "p90", 20))  # the tail that is drawn: of so many requests in an interval or more
STEPS = 200  # answers up to which a share is drawn as the stairs it is
CUT_S = 2.0  # a pause between two sessions or blocks that is longer is not drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """What a page can be filtered by: one model, in a ladder at one level of load. Rows that are alike."""

    name: str
    level: Level
    rows: Mask


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line, or the dots, of one group (its number; None: of all)."""

    name: str
    group: int | None
    x: list[Any]
    y: list[Any]
    dots: bool = False
    dash: int = 0  # 0 solid, 1 dashed, 2 dotted


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """One plot. Plots of one `sync` share their x axis and its zoom."""

    name: str
    x_label: str
    y_label: str
    series: list[Series]
    captions: list[str] = field(default_factory=list)
    y_log: bool = False
    x_log: bool = False
    y_max: float | None = None
    sync: str = ""
    height: int = 260
    bands: list[list[Any]] = field(default_factory=list)  # shaded
    ticks: list[float] = field(default_factory=list)  # of x: refusals
    marks: list[float] = field(default_factory=list)  # of x: where a pause was left out

    def as_json(self) -> dict[str, Any]:
        """What page.js reads."""
        return {key: value for key, value in asdict(self).items() if key != "captions"}


@dataclass(frozen=True, slots=True)
class Clock:
    """Seconds since the epoch -> seconds of the run, pauses between sessions and blocks left out."""

    origin: float
    pauses: Floats  # ends of the pauses, since the epoch
    lengths: Floats  # what is left out of each

    def __call__(self, t: Floats) -> Floats:
        """The time of the run, in seconds."""
        before = np.concatenate([[0.0], np.cumsum(self.lengths)])
        return np.asarray(t - self.origin - before[np.searchsorted(self.pauses, t, side="right")])


def groups(evidence: Evidence, figures: Figures, *, trusted: bool = True) -> list[Group]:
    """One per model and level that has answers; of those whose figures can be trusted, unless all are wanted."""
    found = []
    for level in figures.levels:
        if level.ok and (level.reason is None or not trusted):
            rows = evidence.is_("model", level.model)
            if level.level is not None:
                rows &= evidence.is_("level", level.level)
            found.append(Group(name=name_of(level, figures), level=level, rows=rows))
    return found


def name_of(level: Level, figures: Figures) -> str:
    """What tells a level from the others of its run."""
    if not figures.is_ladder or level.level is None:
        return level.model
    load = f"{level.level:g} {level.unit}"
    return load if len(figures.models) == 1 else f"{level.model}, {load}"


def speed(evidence: Evidence, groups: Sequence[Group]) -> Plot | None:
    """The share of answers that were not faster, by the server's clock and by the client's."""
    ok = evidence.is_("status", "ok")
    found: list[tuple[int, str, Floats]] = []
    for number, group in enumerate(groups):
        mine = ok & group.rows
        for clock in ("server", "client"):
            values = evidence.values(f"{clock}_tokens_per_s", mine)
            if len(values):
                found.append((number, clock, values))
    if not found:
        return None
    axis, curves = shares([values for _, _, values in found])
    top = max(float(np.quantile(values, 0.999)) for _, _, values in found)
    low = min(float(values[0]) for _, _, values in found)
    series = []
    for (number, clock, values), curve in zip(found, curves, strict=True):
        here = ~np.isnan(curve)
        xs, ys = axis[here], 100 * curve[here]
        if len(values) <= STEPS:
            xs, ys = np.repeat(xs, 2)[1:], np.repeat(ys, 2)[:-1]
        # From nothing: the slowest answer is not faster than itself.
        xs, ys = np.append(xs[:1], xs), np.append(0.0, ys)
        name, dash = f"{clock}'s clock", int(clock == "client")
        series.append(Series(name=name, group=number, x=rounded(xs), y=rounded(ys), dash=dash))
    counts = {clock: sum(len(v) for _, c, v in found if c == clock) for clock in ("server", "client")}
    of_all = int(ok.sum())
    caption = f"Of {of_all:,} answers {counts['server']:,} have a speed by the server's clock"
    if counts["client"]:
        caption += f", {counts['client']:,} by the client's. The gap between the lines is the network and the client."
    else:
        caption += ". None has one by the client's clock: that needs a stream of three reads or more."
    return Plot(
        name="speed",
        x_label="output speed, tokens/s",
        y_label="% of answers not faster",
        series=series,
        captions=[caption],
        x_log=top > 20 * max(low, 1e-9),
        y_max=100.0,
        height=280,
    )


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
    plots = [_first_tokens(evidence, start, whole, masks, shared)]
    lines = [
        Series(name="in flight", group=n, x=middles, y=rounded(flow(start[m], end[m], None, edges)))
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
        Series(name="tokens/s", group=n, x=middles, y=rounded(flow(begun[m], writing[m], tokens[m], edges)))
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
    evidence: Evidence, start: Floats, whole: float, masks: Mapping[int, Mask], shared: Mapping[str, Any]
) -> Plot | None:
    ok = evidence.is_("status", "ok")
    column = "ttft_s" if not np.isnan(evidence.numbers("ttft_s")).all() else "latency_s"
    values = evidence.numbers(column)
    have = ok & ~np.isnan(values)
    if not have.any():
        return None
    factor, unit = scale_of(values[have])
    many = int(have.sum()) // PER_INTERVAL // len(masks)
    edges = np.linspace(0.0, max(whole, 1e-3), min(BINS // 2, max(6, many)) + 1)
    middles = rounded((edges[1:] + edges[:-1]) / 2)
    share = int(have.sum()) / (len(edges) - 1) / len(masks)
    tail = next((tail for tail in TAILS if share >= tail[2]), TAILS[-1])
    series, drawn = [], 0
    for number, mask in masks.items():
        mine = mask & have
        if not mine.any():
            continue
        x, y = start[mine], values[mine] * factor
        kept = thin(x, y, DOTS // len(masks))
        drawn += len(kept)
        series.append(Series(name="one request", group=number, x=rounded(x[kept]), y=rounded(y[kept]), dots=True))
        for level, name, least in ((0.5, "median", 3), tail):
            found = rounded(spread(x, y, edges, level, least))
            if any(value is not None for value in found):
                series.append(Series(name=name, group=number, x=middles, y=found, dash=int(name != "median")))
    what = "time to first token" if column == "ttft_s" else "request"
    caption = f"Each dot is a request at the moment it was sent{_thinned(drawn, int(have.sum()))}; the lines are the"
    caption += f" median and the {tail[1]} of each interval that has {tail[2]} requests or more."
    return Plot(
        name="ttft",
        y_label=f"{what}, {unit}",
        series=series,
        height=240,
        y_log=_wide(values[have]),
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


def scatter(evidence: Evidence, groups: Sequence[Group], x_column: str, y_column: str) -> Plot | None:
    """A time against a number of tokens, with the line through it: its slope is the time of one token."""
    x, y = evidence.numbers(x_column), evidence.numbers(y_column)
    have = evidence.is_("status", "ok") & ~np.isnan(x) & ~np.isnan(y)
    if not have.any():
        return None
    factor, unit = scale_of(y[have])
    kind = "prompt" if x_column == "prompt_tokens" else "output"
    what = "time to first token" if y_column == "ttft_s" else "request"
    series: list[Series] = []
    sentences: list[str] = []
    drawn = 0
    for number, group in enumerate(groups):
        mine = have & group.rows
        if not mine.any():
            continue
        xs, ys = x[mine], y[mine]
        kept = thin(xs, ys, DOTS // len(groups))
        drawn += len(kept)
        dots = Series(name="one request", group=number, x=rounded(xs[kept]), y=rounded(ys[kept] * factor), dots=True)
        series.append(dots)
        fitted = line(xs, ys)
        sentences.append(f"{group.name if len(groups) > 1 else 'The line'}: {_words(fitted, kind, xs)}.")
        if fitted is not None:
            ends = np.array([xs.min(), xs.max()])
            drawn_line = np.maximum(fitted.base + fitted.slope * ends, 0.0) * factor
            series.append(Series(name="line", group=number, x=rounded(ends), y=rounded(drawn_line)))
    dots_are = f"Each dot is a request{_thinned(drawn, int(have.sum()))}."
    return Plot(
        name=f"{y_column}_by_{x_column}",
        x_label=f"{kind} tokens",
        y_label=f"{what}, {unit}",
        series=series,
        captions=[dots_are, *sentences],
    )


def scale_of(values: Floats) -> tuple[float, str]:
    """Milliseconds, or seconds where a hundredth of the values or more takes ten of them."""
    return (1.0, "s") if float(np.quantile(values, 0.99)) >= 10 else (1000.0, "ms")


def duration(seconds: float) -> str:
    """A time as a reader says it: 41 µs, 142 ms, 2.31 s, 3 min 5 s."""
    if not seconds:
        return "0"
    size = abs(seconds)
    if size >= 120:
        return f"{int(seconds // 60):,} min {int(seconds % 60)} s"
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if size * factor >= 1 or unit == "µs":
            break
    value = seconds * factor
    return f"{value:.{0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2}f} {unit}"


def _words(fitted: Line | None, kind: str, x: Floats) -> str:
    if fitted is None:
        if len(x) < 10:
            return f"none, {len(x)} requests are too few"
        return f"none, the number of {kind} tokens hardly differs ({x.min():,.0f} to {x.max():,.0f})"
    if fitted.slope <= 0:
        return f"the time does not grow with the {kind} tokens"
    per = f"{duration(fitted.slope)} for each {kind} token ({1 / fitted.slope:,.0f} tokens/s)"
    base = f"{duration(fitted.base)} and " if fitted.base > 0 else ""
    return base + per


def _thinned(drawn: int, of: int) -> str:
    return f" ({drawn:,} of {of:,} are drawn, extremes always: they are rarer than they look)" if drawn < of else ""


def _wide(values: Floats) -> bool:
    low, high = np.quantile(values, [0.05, 1.0])
    return bool(low > 0 and high > 8 * low)


def _clock(evidence: Evidence, sent: Floats, ended: Floats) -> Clock:
    """Pauses that hold the start of a session or a block are no part of the run; waiting within one is."""
    order = np.argsort(sent)
    sent, busy_until = sent[order], np.maximum.accumulate(ended[order])
    starts = [moment(s["started_at"]).timestamp() for s in evidence.sessions if s.get("started_at")]
    begins = np.sort(np.array(starts + [block.measured_from for block in evidence.measured]))
    free_from, free_until = busy_until[:-1], sent[1:]
    # Sends a little before the stamp of their block are of that block: clocks are rounded to milliseconds.
    inside = np.searchsorted(begins, free_until + 0.01) > np.searchsorted(begins, free_from)
    cut = inside & (free_until - free_from > CUT_S)
    whole = float(busy_until[-1] - sent[0] - (free_until - free_from)[cut].sum())
    left = 0.01 * whole  # of a pause, so that it is seen
    lengths = (free_until - free_from)[cut] - left
    return Clock(float(sent[0]), free_until[cut] - left / 2, np.maximum(lengths, 0.0))


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
    blocks = [block for block in evidence.measured if block.unit == "in flight"]
    x: list[Any] = []
    y: list[Any] = []
    for block in sorted(blocks, key=lambda block: block.started_at):
        begin, end = rounded(clock(np.array([block.measured_from, block.measured_from + block.measured_s])), 7)
        if x:  # a gap, or the levels would be one line
            x.append((x[-1] + begin) / 2)
            y.append(None)
        x += [begin, end]
        y += [block.level, block.level]
    return [Series(name="asked", group=None, x=x, y=y, dash=2)] if x else []


def wall(t: float) -> str:
    """A moment, in seconds since the epoch, as text to the second; empty where there is none."""
    return "" if t != t else f"{datetime.fromtimestamp(t, tz=UTC):%Y-%m-%d %H:%M:%S}"
