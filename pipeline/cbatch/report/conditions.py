"""What says whether the client or the conditions spoilt the figures of a group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cbatch.report.evidence import Evidence, Floats
from cbatch.report.intervals import trend
from cbatch.report.spreads import Spread
from cbatch.report.windows import Group, slices

SLICES = 12  # of time, for drift and sparklines
MIN_PER_SLICE = 5  # rows, or the median of a slice is noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """Whether a measure moved over the run: p of Mann-Kendall, and the change from first to last as a share."""

    measure: str
    p: float  # corrected for the number of measures looked at
    change: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What says whether the client or the conditions spoilt a level's figures; None: not known."""

    loop_lag_p99_s: float | None
    overhead_p50_s: float | None  # of the calibration
    overhead_p99_s: float | None
    cpu_share: float | None  # of one core
    delivered: float | None  # the load that was there, as a share of what was asked
    sent_per_s: float | None  # of an open loop: in the measured time
    max_in_flight: int | None  # of an open loop: what the job allows
    held_share: float | None  # of the requests' time: they waited for the account's limits
    held_by: str | None  # the limit that was waited for longest: "requests/min"
    starved_share: float | None  # of the measured time: less was in flight than asked although prompts were due
    speed_ratio: float | None  # client's speed / server's, the median
    tainted_share: float | None
    cut_share: float | None  # answers that ended by length, or by a filter
    sched_lag_p99_s: float | None
    drifts: list[Drift]


def health(
    evidence: Evidence, part: Group, sent: Floats, spreads: dict[str, Spread], tests: int, in_flight: float | None
) -> Health:
    """The conditions of a group. `tests` is how many groups are looked at for drift: more looks, more chance finds."""
    blocks = part.blocks
    lags = [b.loop_lag.p99 for b in blocks if b.loop_lag is not None]
    overheads = [b.overhead for b in blocks if b.overhead is not None]
    cpu = [b.cpu_s / b.measured_s for b in blocks if b.cpu_s is not None and b.measured_s > 0]
    if not blocks:
        lags = [s["loop_lag_s"]["p99"] for s in evidence.sessions if (s.get("loop_lag_s") or {}).get("p99") is not None]
        seconds = sum(session.get("elapsed_s") or 0.0 for session in evidence.sessions)
        cpu = [sum(session.get("cpu_s") or 0.0 for session in evidence.sessions) / seconds] if seconds else []
    measured_s = sum(block.measured_s for block in blocks)
    client, server = spreads.get("client_tokens_per_s"), spreads.get("server_tokens_per_s")
    lag = spreads.get("sched_lag_s")
    tainted = evidence.numbers("tainted")[part.answered]
    tainted = tainted[~np.isnan(tainted)]
    cut = evidence.is_("finish_reason", "length", "content_filter")[part.answered]
    return Health(
        loop_lag_p99_s=max(lags, default=None),
        overhead_p50_s=max((found.p50 for found in overheads), default=None),
        overhead_p99_s=max((found.p99 for found in overheads), default=None),
        cpu_share=max(cpu, default=None),
        delivered=_delivered(evidence, part, in_flight),
        sent_per_s=_sent_in_time(evidence, part) / measured_s if part.unit == "requests/s" and measured_s else None,
        max_in_flight=_max_in_flight(evidence) if part.unit == "requests/s" else None,
        held_share=_held_share(evidence, part) if blocks else None,
        held_by=_held_by(evidence) if blocks else None,
        starved_share=sum(block.starved_s for block in blocks) / measured_s if measured_s else None,
        speed_ratio=_speed_ratio(evidence, part) if client and server else None,
        tainted_share=float(tainted.mean()) if len(tainted) else None,
        cut_share=float(cut.mean()) if len(cut) and not _is_planned(evidence) else None,
        sched_lag_p99_s=lag.p99 if lag else None,
        drifts=_drifts(evidence, part, sent, spreads, tests),
    )


def _is_planned(evidence: Evidence) -> bool:
    """Whether answers are to end by length: a load run with a limit in tokens measures answers of that length."""
    params = evidence.info.get("job", {}).get("params") or {}
    return evidence.load is not None and isinstance(params.get("max_completion_tokens"), int)


def _delivered(evidence: Evidence, part: Group, in_flight: float | None) -> float | None:
    """The load that was there as a share of the one asked for; None for a batch, which asks for none."""
    if not part.level:
        return None
    if part.unit == "in flight":
        return in_flight / part.level if in_flight is not None else None
    if not len(part.rows):
        return None
    # Arrivals are random: what chance alone takes away (three standard deviations) is not missing.
    due = part.level * sum(block.measured_s for block in part.blocks)
    drawn = min(1.0, (len(part.rows) + 3 * due**0.5) / due) if due else 1.0
    return drawn * _sent_in_time(evidence, part) / len(part.rows)


def _sent_in_time(evidence: Evidence, part: Group) -> int:
    """How many were first sent in the measured windows: what is due in a block is sent, however late."""
    sent, number = evidence.numbers("started_at")[part.rows], evidence.numbers("load_block")[part.rows]
    late = sum(int((sent[number == b.number] > b.measured_from + b.measured_s).sum()) for b in part.blocks)
    return len(part.rows) - late


def _max_in_flight(evidence: Evidence) -> int | None:
    asked = ((evidence.info.get("job") or {}).get("load") or {}).get("max_in_flight")
    return asked if isinstance(asked, int) else None


def _held_share(evidence: Evidence, part: Group) -> float | None:
    """The time in which requests waited to be sent, as a share of that and of the time of their answers."""
    waited = float(np.nansum(evidence.numbers("wait_s")[part.rows]))
    whole = waited + float(np.nansum((evidence.ended_at() - evidence.sent_at())[part.rows]))
    return waited / whole if whole else None


def _held_by(evidence: Evidence) -> str | None:
    """The limit that cost the run most time; None where none did."""
    lost: dict[str, float] = {}
    for session in evidence.sessions:
        for cause, seconds in (session.get("time_lost_s") or {}).items():
            lost[cause] = lost.get(cause, 0.0) + (seconds or 0.0)
    return max(lost, key=lost.__getitem__) if any(lost.values()) else None


def _speed_ratio(evidence: Evidence, part: Group) -> float | None:
    """Client's speed through server's, of the answers that have both: their median."""
    ratio = (evidence.numbers("client_tokens_per_s") / evidence.numbers("server_tokens_per_s"))[part.answered]
    ratio = ratio[~np.isnan(ratio)]
    return float(np.median(ratio)) if len(ratio) else None


def _drifts(evidence: Evidence, part: Group, sent: Floats, spreads: dict[str, Spread], tests: int) -> list[Drift]:
    speed = next((n for n in ("server_tokens_per_s", "client_tokens_per_s", "e2e_tokens_per_s") if n in spreads), None)
    measures = [name for name in (speed, "ttft_s") if name in spreads and name is not None]
    out = []
    for name in measures:
        medians = slices(sent[part.answered], evidence.numbers(name)[part.answered], SLICES, MIN_PER_SLICE)
        if medians:
            p, change = trend(medians)
            out.append(Drift(measure=name, p=min(1.0, p * len(measures) * tests), change=change))
    return out


__all__ = ["MIN_PER_SLICE", "SLICES", "Drift", "Health", "health"]
