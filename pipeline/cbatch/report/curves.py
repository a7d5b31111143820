"""A few points -> a curve as SVG: what a plotting library adds nothing to, and what may turn back on itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 18, 14, 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Points in the order of their levels; `labels` (or "") stand beside them, `hints` under the pointer."""

    points: Sequence[tuple[float, float]]
    labels: Sequence[str]
    hints: Sequence[str]
    colour: int = 0
    dashed: bool = False
    knee: int | None = None  # the point with a ring


def svg(
    title: str, x_label: str, y_label: str, curves: Sequence[Curve], limits: Sequence[tuple[float, str]] = ()
) -> str:
    """The curves on axes that begin at zero; `limits` are values of y with their words."""
    xs = [x for curve in curves for x, _ in curve.points]
    ys = [y for curve in curves for _, y in curve.points]
    # A limit far above everything measured would press the curves to the ground.
    shown = [(y, words) for y, words in limits if y <= 3 * max(ys)]
    x_ticks, y_ticks = steps(max(xs)), steps(max([*ys, *(y for y, _ in shown)]))

    def px(x: float) -> float:
        return LEFT + x / x_ticks[-1] * (WIDTH - LEFT - RIGHT)

    def py(y: float) -> float:
        return HEIGHT - BOTTOM - y / y_ticks[-1] * (HEIGHT - TOP - BOTTOM)

    out = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for y in y_ticks:
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py(y):.1f}" y2="{py(y):.1f}"/>')
        out.append(f'<text x="{LEFT - 6}" y="{py(y) + 5:.1f}" text-anchor="end">{short(y)}</text>')
    for x in x_ticks:
        out.append(f'<line class="grid" x1="{px(x):.1f}" x2="{px(x):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        out.append(f'<text x="{px(x):.1f}" y="{HEIGHT - BOTTOM + 19}" text-anchor="middle">{short(x)}</text>')
    middle = (HEIGHT - BOTTOM + TOP) / 2
    out.append(f'<text x="{(WIDTH + LEFT - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    out.append(f'<text transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>')
    for y, words in shown:
        out.append(f'<line class="slo" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py(y):.1f}" y2="{py(y):.1f}"/>')
        out.append(f'<text class="slo" x="{LEFT + 4}" y="{py(y) - 5:.1f}">{escape(words)}</text>')
    for curve in curves:
        out += _drawn(curve, [(px(x), py(y)) for x, y in curve.points])
    return "".join([*out, "</svg>"])


def _drawn(curve: Curve, places: Sequence[tuple[float, float]]) -> list[str]:
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    out = [f'<g class="m{curve.colour % 8}">']
    out.append(f'<polyline{" class=dashed" if curve.dashed else ""} points="{line}"/>')
    taken: list[tuple[float, float]] = []
    for number, ((x, y), label, hint) in enumerate(zip(places, curve.labels, curve.hints, strict=True)):
        out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{escape(hint)}</title></circle>')
        if number == curve.knee:
            out.append(f'<circle class="knee" cx="{x:.1f}" cy="{y:.1f}" r="9"/>')
        # A label that would lie on another is left out: its point has the hint.
        if label and all(abs(x - a) > 8 * len(label) or abs(y - b) > 15 for a, b in taken):
            end = x > WIDTH - RIGHT - 9 * len(label)
            side = f'x="{x - 9:.1f}" text-anchor="end"' if end else f'x="{x + 8:.1f}"'
            out.append(f'<text class="level" {side} y="{max(y - 8, TOP + 10):.1f}">{escape(label)}</text>')
            taken.append((x, y))
    return [*out, "</g>"]


def steps(top: float) -> list[float]:
    """Round numbers from 0 to at least `top`, four to six of them."""
    if top <= 0:
        return [0.0, 1.0]
    power = 10 ** math.floor(math.log10(top / 4))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if top / (m * power) <= 5)
    return [n * step for n in range(math.ceil(top / step - 1e-9) + 1)]


def short(value: float) -> str:
    """A number for an axis: 0.5, 250, 12k."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:,g}"
