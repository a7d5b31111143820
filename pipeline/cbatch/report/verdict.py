"""Figures -> whether they can be believed: VALID, SUSPECT or INVALID, and why.

INVALID: what was measured is the client, or nothing. SUSPECT: somebody should look before quoting a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from cbatch.report.figures import Drift, Figures, Level, System
from cbatch.report.words import count, plural, time

State = Literal["VALID", "SUSPECT", "INVALID"]

# INVALID: the instrument is coarser than what it measures.
OVERHEAD_P50 = 0.05  # of the median ttft: a client this late shifts every figure by as much
OVERHEAD_P99 = 0.50  # of it: a tail made by the client, not by the server
CPU_BUSY = 0.95  # of one core: the event loop has one, so answers wait for it
FULL = 0.90  # of max_in_flight: an open loop that has so many in flight sends no more
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
    client_bound: bool = False  # INVALID otherwise: nothing was measured, or at a load that is not the one asked for


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that is wrong with a level. `size` compares reasons of a kind: of the largest is the worst."""

    kind: str
    size: float
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What is wrong with a level."""

    nothing: list[Reason]  # was measured
    bound: list[Reason]  # by the client
    missed: list[Reason]  # the load that was asked for, and not by the client's fault
    suspect: list[Reason]

    @property
    def invalid(self) -> list[Reason]:
        return [*self.nothing, *self.bound, *self.missed]


def judge(figures: Figures, *, is_load: bool, named: bool = False) -> Verdict:
    """The verdict on a run: that of its worst level, with what concerns the run as a whole.

    Reasons name their level where there are several, or where it is one of several (`named`).

    A batch is never INVALID for its client: it asks for no load, its headline speed is by the server's clock,
    and what it waited for (the account's limit) is in no latency.
    """
    if not figures.ok:
        nothing = "nothing was measured: no request was answered"
        if not figures.rows and figures.incomplete_blocks:
            nothing = f"nothing was measured: {plural(figures.incomplete_blocks, 'block')} did not come to an end"
        return Verdict(state="INVALID", reasons=(nothing,))
    found = [(level, _found(level, is_load=is_load)) for level in figures.levels]
    several = len(found) > 1 or named
    invalid = _by_kind([(level, one.invalid) for level, one in found], several)
    suspect = _of_the_run(figures)
    suspect += _by_kind([(level, one.suspect) for level, one in found if not one.invalid], several)
    if invalid:
        # What else is wrong with an invalid level says perhaps why.
        invalid += _by_kind([(level, one.suspect) for level, one in found if one.invalid], several)
        bound = any(one.bound for _, one in found)
        return Verdict(state="INVALID", reasons=(*invalid, *suspect), client_bound=bound)
    return Verdict(state="SUSPECT" if suspect else "VALID", reasons=tuple(suspect))


def judge_level(level: Level, *, is_load: bool) -> Verdict:
    """The verdict on one level of load."""
    found = _found(level, is_load=is_load)
    reasons = tuple(reason.words for reason in (*found.invalid, *found.suspect))
    if found.invalid:
        return Verdict(state="INVALID", reasons=reasons, client_bound=bool(found.bound))
    return Verdict(state="SUSPECT" if reasons else "VALID", reasons=reasons)


def _found(level: Level, *, is_load: bool) -> _Found:
    if not level.ok:
        nothing = Reason("nothing", 0.0, "nothing was measured: no request was answered")
        return _Found(nothing=[nothing], bound=[], missed=[], suspect=[])
    bound = _client_bound(level) if is_load else []
    suspect = [*_late(level), *_work(level), *_drifted(level.health.drifts)]
    busy = level.health.cpu_share
    if not is_load and busy is not None and busy >= CPU_BUSY:
        words = f"client CPU {_percent(busy)} of a core: its latencies include the client"
        suspect.insert(0, Reason("cpu", busy, words))
    missed: list[Reason] = []
    if is_load and _short(level, DELIVERED_LEAST):
        # An open loop is held up by what the job or the server allows, a closed one by its limits or by the client.
        (missed if level.unit != "in flight" or _is_held(level) else bound).append(_shortage(level))
    return _Found(nothing=[], bound=bound, missed=missed, suspect=suspect)


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


def _client_bound(level: Level) -> list[Reason]:
    health = level.health
    reasons = []
    ttft_s = _median(level, "ttft_s")
    for share, limit, name in (
        (health.overhead_p50_s, OVERHEAD_P50, "p50"),
        (health.overhead_p99_s, OVERHEAD_P99, "p99"),
    ):
        if share is not None and ttft_s and share > limit * ttft_s:
            part = share / ttft_s
            words = f"client overhead {name} {time(share)} is {_percent(part)} of ttft {time(ttft_s)}"
            reasons.append(Reason(f"overhead {name}", part, f"{words} (at most {_percent(limit)})"))
    if health.cpu_share is not None and health.cpu_share >= CPU_BUSY:
        reasons.append(Reason("cpu", health.cpu_share, f"client CPU {_percent(health.cpu_share)} of a core"))
    return reasons


def _late(level: Level) -> list[Reason]:
    """Signs that the client's clock was late."""
    health = level.health
    reasons = []
    first_s = _median(level, "ttft_s") or _median(level, "latency_s")
    name = "ttft" if _median(level, "ttft_s") else "latency"
    if health.loop_lag_p99_s is not None and first_s and health.loop_lag_p99_s > LOOP_LAG * first_s:
        part = health.loop_lag_p99_s / first_s
        words = f"event loop lag p99 {time(health.loop_lag_p99_s)} is {_percent(part)} of {name}"
        reasons.append(Reason("lag", part, words))
    if health.speed_ratio is not None and not SPEED_RATIO[0] <= health.speed_ratio <= SPEED_RATIO[1]:
        words = f"client speed / server speed is {health.speed_ratio:.2f}"
        reasons.append(Reason("clocks", abs(health.speed_ratio - 1), words))
    if _short(level, DELIVERED_MOST) and not _short(level, DELIVERED_LEAST):
        reasons.append(_shortage(level))
    if health.tainted_share is not None and health.tainted_share > TAINTED:
        words = f"{_percent(health.tainted_share)} of the rows tainted by event loop lag"
        reasons.append(Reason("tainted", health.tainted_share, words))
    latency_s = _median(level, "latency_s")
    if health.sched_lag_p99_s is not None and latency_s and health.sched_lag_p99_s > SCHED_LAG * latency_s:
        words = f"sent {time(health.sched_lag_p99_s)} behind schedule (p99)"
        reasons.append(Reason("schedule", health.sched_lag_p99_s, words))
    return reasons


def _work(level: Level) -> list[Reason]:
    """Signs that not every request was the same kind of work."""
    cut = level.health.cut_share
    reasons = []
    if level.requests and level.failed > FAILED * level.requests:
        share = level.failed / level.requests
        reasons.append(Reason("failed", share, f"{_percent(share)} failed: the figures are of the others"))
    if cut is not None and CUT < cut < CUT_ALL:
        words = f"{_percent(cut)} of the answers were cut (finish_reason length or content_filter)"
        reasons.append(Reason("cut", cut, words))
    return reasons


def _of_the_run(figures: Figures) -> list[str]:
    reasons = []
    if figures.sent and figures.rate_limited > REFUSED * figures.sent:
        reasons.append(f"429s are {_percent(figures.rate_limited / figures.sent)} of the requests")
    if figures.repeated_cached > CACHED * figures.rows:
        share = figures.repeated_cached / figures.rows
        reasons.append(f"{_percent(share)} of the requests repeated a prompt and came from the cache")
    return reasons


def _drifted(drifts: Sequence[Drift]) -> list[Reason]:
    return [
        Reason(
            f"drift {drift.measure}",
            abs(drift.change),
            f"drift: {drift.measure} {100 * drift.change:+.0f} % from start to end (p={drift.p:.2g})",
        )
        for drift in drifts
        if drift.p < DRIFT_P and abs(drift.change) >= DRIFT_CHANGE
    ]


def _short(level: Level, least: float) -> bool:
    """Whether less was delivered than asked although prompts were due."""
    health = level.health
    if health.delivered is None or health.delivered >= least:
        return False
    return level.unit != "in flight" or (health.starved_share or 0.0) > STARVED


def _is_held(level: Level) -> bool:
    """Whether what is missing of the load waited for the account's limits, most of it."""
    health = level.health
    if health.delivered is None or health.held_by is None or health.held_share is None:
        return False
    return health.held_share >= (1 - health.delivered) / 2


def _shortage(level: Level) -> Reason:
    health = level.health
    assert level.level is not None
    assert health.delivered is not None
    missing = 1 - health.delivered
    if level.unit == "in flight":
        words = f"{count(level.system.in_flight)} in flight of {level.level:g} asked"
        if _is_held(level):
            return Reason("held", missing, f"held back by limits ({health.held_by}): {words}")
        return Reason("shortage", missing, words)
    words = f"{count(health.sent_per_s)} of {level.level:g} requests/s asked were sent on time"
    if _is_held(level):
        return Reason("held", missing, f"held back by limits ({health.held_by}): {words}")
    most, there = health.max_in_flight, level.system.in_flight
    if most is None:
        return Reason("shortage", missing, f"{words}: max_in_flight is too low or the server too slow")
    if there is not None and there >= FULL * most:
        return Reason("shortage", missing, f"{words}: max_in_flight {most} is too low or the server too slow")
    return Reason("shortage", missing, f"{words}, {count(there)} in flight of max_in_flight {most}")


def _by_kind(found: Sequence[tuple[Level, Sequence[Reason]]], named: bool) -> list[str]:
    """The reasons of several levels, each kind once: of the level where it is worst, and where else it is met."""
    where: dict[str, list[tuple[Level, Reason]]] = {}
    for level, reasons in found:
        for reason in reasons:
            where.setdefault(reason.kind, []).append((level, reason))
    if not named:
        return [reason.words for _, reasons in found for reason in reasons]
    out = []
    for met in where.values():
        worst, reason = max(met, key=lambda one: one[1].size)
        others = [_name(level, worst) for level, _ in met if level is not worst]
        also = f" (also at {', '.join(others)})" if others else ""
        out.append(f"{_at(worst, found)}: {reason.words}{also}")
    return out


def _at(level: Level, found: Sequence[tuple[Level, Sequence[Reason]]]) -> str:
    if level.level is None:
        return level.model
    model = f"{level.model} " if len({one.model for one, _ in found}) > 1 else ""
    return f"{model}at {level.level:g} {level.unit}"


def _name(level: Level, beside: Level) -> str:
    """What tells a level from another one."""
    if level.level is None:
        return level.model
    return f"{level.level:g}" if level.model == beside.model else f"{level.model} {level.level:g}"


def _median(level: Level, name: str) -> float | None:
    spread = (level.spreads or {}).get(name)
    return spread.p50 if spread else None


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{100 * share:.3g} %"


__all__ = ["State", "Verdict", "judge", "judge_level", "withhold"]
