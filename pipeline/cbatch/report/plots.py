"""Evidence -> the plots of the page, as the data that assets/page.js draws: few points, units, words.

A plot is None where its data was not measured. Its caption says when points were left out, and what a line means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from cbatch.report.evidence import Evidence, Floats, Mask
from cbatch.report.figures import Figures, Level
from cbatch.report.sampling import Line, line, rounded, shares, thin

DOTS = 2_400  # of one figure, all groups together: as many as a screen shows apart
STEPS = 200  # answers up to which a share is drawn as the stairs it is


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


def groups(evidence: Evidence, figures: Figures, *, trusted: bool = True) -> list[Group]:
    """One per model and level that has answers; of those whose figures can be trusted, unless all are wanted."""
    found = []
    for level in figures.levels:
        if level.ok and (level.reason is None or not trusted):
            rows = evidence.is_("model", level.model)
            if level.level is not None:
                rows &= evidence.is_("load_level", level.level)
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
    dots_are = f"Each dot is a request{thinned(drawn, int(have.sum()))}."
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


def thinned(drawn: int, of: int) -> str:
    """That not all requests are drawn, where it is so."""
    return f" ({drawn:,} of {of:,} are drawn, extremes always: they are rarer than they look)" if drawn < of else ""


def is_wide(values: Floats) -> bool:
    """Whether the values are so far apart that a linear axis would hide most of them."""
    low, high = np.quantile(values, [0.05, 1.0])
    return bool(low > 0 and high > 8 * low)


def wall(t: float) -> str:
    """A moment, in seconds since the epoch, as text to the second; empty where there is none."""
    return "" if t != t else f"{datetime.fromtimestamp(t, tz=UTC):%Y-%m-%d %H:%M:%S}"
