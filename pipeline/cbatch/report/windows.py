"""When things happened: groups of rows that may be pooled, requests in flight, rates, and cells of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from cbatch.report.clock import Clock
from cbatch.report.evidence import Block, Evidence, Floats, Mask

Places = NDArray[np.intp]

STEADY = 0.95  # of the target: from the first moment that so many are in flight until the last
REACHED = 0.05  # of the time at the asked concurrency, or what is asked for was never there

MOMENTS = 20_000  # at which requests in flight are counted; in a run of fewer sends and ends, at each of these


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Rows that may be pooled: one model at one level of load. A batch has one group per model, without blocks."""

    model: str
    level: float | None
    unit: str | None
    blocks: tuple[Block, ...]
    rows: Places
    answered: Places


def groups(evidence: Evidence, ok: Mask) -> list[Group]:
    """The groups of a run, by model and then by level."""
    if evidence.load is None:
        column = evidence.rows.column("model").combine_chunks()
        names = column.dictionary.to_pylist() if len(column) else []
        found = [(name, None, None, (), evidence.is_("model", name)) for name in names]
        return [_group(*about, ok) for about in found if about[-1].any()]
    keys = sorted({(block.model, block.level, block.unit) for block in evidence.measured})
    by_key = {key: tuple(b for b in evidence.measured if (b.model, b.level, b.unit) == key) for key in keys}
    return [
        _group(model, level, unit, blocks, evidence.is_("load_block", *(b.number for b in blocks)), ok)
        for (model, level, unit), blocks in by_key.items()
    ]


def _group(model: str, level: float | None, unit: str | None, blocks: tuple[Block, ...], mask: Mask, ok: Mask) -> Group:
    return Group(
        model=model,
        level=level,
        unit=unit,
        blocks=blocks,
        rows=np.flatnonzero(mask),
        answered=np.flatnonzero(mask & ok),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Flight:
    """The requests that were on the wire: when each was sent and when it had ended, in seconds since the epoch."""

    sent: Floats
    ended: Floats

    @property
    def span(self) -> tuple[float, float] | None:
        """From the first send to the last end; None where nothing was answered."""
        return (float(self.sent.min()), float(self.ended.max())) if len(self.sent) else None

    def mean(self, begin: float, end: float) -> float | None:
        """How many were in flight over a stretch of time: the integral of their number through its length."""
        if end <= begin or not len(self.sent):
            return None
        inside = np.minimum(self.ended, end) - np.maximum(self.sent, begin)
        return float(inside.clip(min=0.0).sum()) / (end - begin)

    def steady(self, asked: float | None) -> tuple[float, float] | None:
        """From the first moment at 95 % of `asked` until the last one; of the usual count where so many never were."""
        if self.span is None:
            return None
        if 2 * len(self.sent) > MOMENTS:
            at = np.linspace(*self.span, MOMENTS)
        else:
            at = np.sort(np.concatenate([self.sent, self.ended]))
        count = np.searchsorted(np.sort(self.sent), at[:-1], side="right")
        count -= np.searchsorted(np.sort(self.ended), at[:-1], side="right")
        lasting = np.diff(at)
        whole = lasting.sum()
        target = asked
        if target is None or lasting[count >= STEADY * target].sum() < REACHED * whole:
            # The count that half of all request time has seen: one straggler at the end has little of it.
            by_count = np.cumsum(np.bincount(count, weights=lasting * count))
            target = float(np.searchsorted(by_count, by_count[-1] / 2))
        there = np.flatnonzero((count >= STEADY * target) & (lasting > 0))
        return (float(at[there[0]]), float(at[there[-1] + 1])) if len(there) else None


def flight(sent: Floats, ended: Floats) -> Flight:
    """The requests that were answered, of which both times are known."""
    known = ~(np.isnan(sent) | np.isnan(ended))
    return Flight(sent=sent[known], ended=ended[known])


def share_within(sent: Floats, ended: Floats, window: tuple[float, float]) -> Floats:
    """Which share of each request's time lies in a window: what is counted of it for the window's rates."""
    inside = np.minimum(ended, window[1]) - np.maximum(sent, window[0])
    return np.clip(inside / np.maximum(ended - sent, 1e-9), 0.0, 1.0)


def cells(evidence: Evidence, ok: Mask, clock: Clock, many: int) -> dict[str, list[float | None]]:
    """Speed, time to first token and requests in flight in `many` equal parts of the time of the run."""
    sent = clock(evidence.sent_at())
    found = flight(sent, clock(evidence.ended_at()))
    known = ~np.isnan(sent)
    if not known.any():
        return {}
    begin, end = float(sent[known].min()), max(float(sent[known].max()), found.span[1] if found.span else 0.0)
    edges = np.linspace(begin, max(end, begin + 1e-6), many + 1)
    cell = np.clip(np.searchsorted(edges, sent, side="right") - 1, 0, many - 1)
    out: dict[str, list[float | None]] = {}
    for name, columns in {
        "output_speed": ("server_tokens_per_s", "client_tokens_per_s", "e2e_tokens_per_s"),
        "ttft": ("ttft_s", "latency_s"),
    }.items():
        for column in columns:
            values = evidence.numbers(column)
            usable = ok & known & ~np.isnan(values)
            if usable.any():
                parts = (values[usable & (cell == n)] for n in range(many))
                out[name if column in ("ttft_s", "server_tokens_per_s") else column] = [
                    float(np.median(part)) if len(part) else None for part in parts
                ]
                break
    out["in_flight"] = _in_flight_cells(evidence, clock, found, edges)
    return out


def _in_flight_cells(evidence: Evidence, clock: Clock, found: Flight, edges: Floats) -> list[float | None]:
    # The engine's own count has the warm-ups and failed attempts as well, but only every second or so.
    middles, counts = [np.empty(0)], [np.empty(0)]
    for series in evidence.series:
        middles.append(clock(series.started_at.timestamp() + series.columns["t_s"] - series.every_s / 2))
        counts.append(series.columns["in_flight"])
    middle, count = np.concatenate(middles), np.concatenate(counts)
    out: list[float | None] = []
    for low, high in pairwise(edges.tolist()):
        inside = count[(middle >= low) & (middle < high)]
        out.append(float(inside.mean()) if len(inside) else found.mean(low, high))
    return out


def slices(times: Floats, values: Floats, many: int, least: int) -> Sequence[float]:
    """The medians of `many` equally large parts in order of time; empty where a part has less than `least` values."""
    known = ~(np.isnan(times) | np.isnan(values))
    times, values = times[known], values[known]
    if len(values) < many * least:
        return ()
    return [float(np.median(part)) for part in np.array_split(values[np.argsort(times)], many)]
