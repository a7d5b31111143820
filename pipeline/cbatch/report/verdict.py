"""Figures -> whether they can be believed: VALID, SUSPECT or INVALID, and why.

INVALID: what was measured is the client, or nothing. SUSPECT: somebody should look before quoting a number.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from cbatch.report.figures import Drift, Figures, Level, System

State = Literal["VALID", "SUSPECT", "INVALID"]

# INVALID: the instrument is coarser than what it measures.
OVERHEAD_P50 = 0.05  # of the median ttft: a client this late shifts every figure by as much
OVERHEAD_P99 = 0.50  # of it: a tail made by the client, not by the server
CPU_BUSY = 0.95  # of one core: the event loop has one, so answers wait for it
DELIVERED_LEAST = 0.80  # of the load asked for: the point on the curve is another one than its name

# SUSPECT: larger than what repeats of one and the same run differ by.
LOOP_LAG = 0.05  # p99, of the median ttft
SCHED_LAG = 0.05  # p99, of the median latency: an open loop that sends late is not open
SPEED_RATIO = (0.9, 1.1)  # the two clocks disagree: lost tokens, or chunks that came together
DELIVERED_MOST = 0.95
STARVED = 0.01  # of the measured time: less than this is the start of a block
TAINTED = 0.01
REFUSED = 0.01  # 429s of all requests: the account's limit was measured, at least in part
FAILED = 0.01  # the percentiles are of those that survived
CACHED = 0.05  # the prompt was asked before and came from the cache
CUT = 0.05  # some answers ended by length and some did not: two kinds of work in one figure
CUT_ALL = 0.95  # all of them: a benchmark of a fixed length
DRIFT_P = 0.01
DRIFT_CHANGE = 0.05  # significant and small is no reason to measure again


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The state and its reasons, the worst first; of a run, or of one of its levels."""

    state: State
    reasons: tuple[str, ...]
    client_bound: bool = False


def judge(figures: Figures, *, is_load: bool) -> Verdict:
    """The verdict on a run: that of its worst level, with what concerns the run as a whole.

    A batch is never INVALID for its client: it asks for no load, its headline speed is by the server's clock,
    and what it waited for (the account's limit) is in no latency.
    """
    if not figures.ok:
        return Verdict(state="INVALID", reasons=("nothing was measured: no request was answered",))
    found = [(level, judge_level(level, is_load=is_load)) for level in figures.levels]
    invalid = _by_kind([(level, verdict) for level, verdict in found if verdict.state == "INVALID"], len(found))
    suspect = _of_the_run(figures)
    suspect += _by_kind([(level, verdict) for level, verdict in found if verdict.state == "SUSPECT"], len(found))
    if invalid:
        bound = any(verdict.client_bound for _, verdict in found)
        return Verdict(state="INVALID", reasons=(*invalid, *suspect), client_bound=bound)
    return Verdict(state="SUSPECT" if suspect else "VALID", reasons=tuple(suspect))


def judge_level(level: Level, *, is_load: bool) -> Verdict:
    """The verdict on one level of load."""
    if not level.ok:
        return Verdict(state="INVALID", reasons=("nothing was measured: no request was answered",))
    bound = _client_bound(level) if is_load else []
    suspect = [*_late(level), *_work(level), *_drifted(level.health.drifts)]
    if not bound and not is_load and (level.health.cpu_share or 0.0) >= CPU_BUSY:
        suspect.insert(0, f"client CPU {_percent(level.health.cpu_share)} of a core: its latencies include the client")
    if bound:
        return Verdict(state="INVALID", reasons=(*bound, *suspect), client_bound=True)
    return Verdict(state="SUSPECT" if suspect else "VALID", reasons=tuple(suspect))


def withhold(figures: Figures, *, is_load: bool) -> Figures:
    """The figures without those that are the client's and not the model's: null, with the reason."""
    levels = []
    for level in figures.levels:
        verdict = judge_level(level, is_load=is_load)
        reason = f"client-bound: {verdict.reasons[0]}" if verdict.client_bound else None
        if reason:
            level = replace(level, system=_without_rates(level.system), spreads=None, reason=reason)
        levels.append(level)
    reason = next((level.reason for level in levels if level.reason), None)
    if reason is None:
        return figures
    # What pools levels is no better than the worst of them; by_model keeps the models that were measured.
    kept = {level.model: level.spreads for level in levels if level.spreads is not None}
    by_model = {model: kept[model] for model in figures.by_model if model in kept}
    sparklines = {"in_flight": figures.sparklines["in_flight"]} if "in_flight" in figures.sparklines else {}
    return replace(
        figures,
        levels=levels,
        system=_without_rates(figures.system),
        spreads=None,
        by_model=by_model,
        sparklines=sparklines,
        reason=reason,
    )


def _without_rates(system: System) -> System:
    return replace(
        system,
        output_tokens_per_s=None,
        output_tokens_per_s_whole=None,
        completed_per_s=None,
        completed_per_s_whole=None,
    )


def _client_bound(level: Level) -> list[str]:
    health = level.health
    reasons = []
    ttft_s = _median(level, "ttft_s")
    for share, limit, name in (
        (health.overhead_p50_s, OVERHEAD_P50, "p50"),
        (health.overhead_p99_s, OVERHEAD_P99, "p99"),
    ):
        if share is not None and ttft_s and share > limit * ttft_s:
            reasons.append(
                f"client overhead {name} {_ms(share)} is {_percent(share / ttft_s)} of ttft {_ms(ttft_s)}"
                f" (at most {_percent(limit)})"
            )
    if health.cpu_share is not None and health.cpu_share >= CPU_BUSY:
        reasons.append(f"client CPU {_percent(health.cpu_share)} of a core")
    if _short(level, DELIVERED_LEAST):
        reasons.append(_shortage(level))
    return reasons


def _late(level: Level) -> list[str]:
    """Signs that the client's clock was late."""
    health = level.health
    reasons = []
    first_s = _median(level, "ttft_s") or _median(level, "latency_s")
    name = "ttft" if _median(level, "ttft_s") else "latency"
    if health.loop_lag_p99_s is not None and first_s and health.loop_lag_p99_s > LOOP_LAG * first_s:
        reasons.append(
            f"event loop lag p99 {_ms(health.loop_lag_p99_s)} is {_percent(health.loop_lag_p99_s / first_s)} of {name}"
        )
    if health.speed_ratio is not None and not SPEED_RATIO[0] <= health.speed_ratio <= SPEED_RATIO[1]:
        reasons.append(f"client speed / server speed is {health.speed_ratio:.2f}")
    if _short(level, DELIVERED_MOST) and not _short(level, DELIVERED_LEAST):
        reasons.append(_shortage(level))
    if health.tainted_share is not None and health.tainted_share > TAINTED:
        reasons.append(f"{_percent(health.tainted_share)} of the rows tainted by event loop lag")
    latency_s = _median(level, "latency_s")
    if health.sched_lag_p99_s is not None and latency_s and health.sched_lag_p99_s > SCHED_LAG * latency_s:
        reasons.append(f"sent {_ms(health.sched_lag_p99_s)} behind schedule (p99)")
    return reasons


def _work(level: Level) -> list[str]:
    """Signs that not every request was the same kind of work."""
    cut = level.health.cut_share
    reasons = []
    if level.requests and level.failed > FAILED * level.requests:
        reasons.append(f"{_percent(level.failed / level.requests)} failed: the figures are of the others")
    if cut is not None and CUT < cut < CUT_ALL:
        reasons.append(f"{_percent(cut)} of the answers were cut (finish_reason length or content_filter)")
    return reasons


def _of_the_run(figures: Figures) -> list[str]:
    reasons = []
    if figures.sent and figures.rate_limited > REFUSED * figures.sent:
        reasons.append(f"429s are {_percent(figures.rate_limited / figures.sent)} of the requests")
    if figures.repeated_cached > CACHED * figures.rows:
        reasons.append(f"{_percent(figures.repeated_cached / figures.rows)} repeated prompts came from the cache")
    return reasons


def _drifted(drifts: Sequence[Drift]) -> list[str]:
    return [
        f"drift: {drift.measure} {100 * drift.change:+.0f} % from start to end (p={drift.p:.2g})"
        for drift in drifts
        if drift.p < DRIFT_P and abs(drift.change) >= DRIFT_CHANGE
    ]


def _short(level: Level, least: float) -> bool:
    """Whether less was delivered than asked although prompts were due."""
    health = level.health
    if health.delivered is None or health.delivered >= least:
        return False
    return level.unit != "in flight" or (health.starved_share or 0.0) > STARVED


def _shortage(level: Level) -> str:
    assert level.level is not None
    assert level.health.delivered is not None
    if level.unit == "in flight":
        return f"{level.system.in_flight:.1f} in flight of {level.level:g} asked"
    return f"{_percent(level.health.delivered)} of the {level.level:g} requests/s asked were sent"


def _by_kind(found: Sequence[tuple[Level, Verdict]], levels: int) -> list[str]:
    """The reasons of several levels, each kind once: as the first level has it, and where else it is met."""
    where: dict[str, list[tuple[Level, str]]] = {}
    for level, verdict in found:
        for reason in verdict.reasons:
            # A kind is its words: reasons of one kind differ in their numbers.
            where.setdefault(re.sub(r"[-+]?\d[\d.,e+-]*", "#", reason), []).append((level, reason))
    if levels == 1:
        return [reason for _, verdict in found for reason in verdict.reasons]
    out = []
    for (level, reason), *others in where.values():
        also = f" (also {', '.join(_name(other, level) for other, _ in others)})" if others else ""
        at = level.model if level.level is None else f"at {level.level:g} {level.unit}"
        out.append(f"{at}: {reason}{also}")
    return out


def _name(level: Level, beside: Level) -> str:
    """What tells a level from another one."""
    if level.level is None:
        return level.model
    return f"{level.level:g}" if level.model == beside.model else f"{level.model} {level.level:g}"


def _median(level: Level, name: str) -> float | None:
    spread = (level.spreads or {}).get(name)
    return spread.p50 if spread else None


def _ms(seconds: float) -> str:
    return f"{1_000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:,.2f} s"


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{100 * share:.3g} %"


__all__ = ["State", "Verdict", "judge", "judge_level", "withhold"]
