"""Runs and gates -> Comparison: what is alike enough to be compared, at which level, by which design."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cbatch.compare.gates import Gate
from cbatch.compare.history import Past, past
from cbatch.compare.likeness import differences
from cbatch.compare.metrics import LENGTH_FREE, RATES, SHOWN, TAILS, Measure, measure
from cbatch.compare.pairing import DRIFT_ALLOWANCE, Design, Difference, design, difference
from cbatch.compare.sides import Side, interleaved, levels, models, prompt_numbers, side, validity
from cbatch.compare.unlike import Unlike, UnlikeRuns
from cbatch.compare.verdict import Comparison, Pair, decided, lines_of
from cbatch.report.evidence import Evidence

SAME_SHARE = 0.5  # of the smaller prompt set in common: enough to compare prompt by prompt

_STREAMED = ("ttft_s", "ttfa_s", "tail_s", "net_s", "client_tokens_per_s", "max_gap_s")


def compare(
    runs: Sequence[Evidence],
    gates: Sequence[Gate] = (),
    *,
    allow: frozenset[str] = frozenset(),
    level: float | None = None,
    history: Path | None = None,
) -> Comparison:
    """Every run against the first; a single one against `history`, which else says how far two runs drift apart.

    Raises UnlikeRuns, JobError and JournalError.
    """
    first, *others = runs
    found = [one for run in others or [first] for one in differences(first, run)]
    refused = [one for one in found if one.allow not in allow]
    if refused:
        raise UnlikeRuns(list(dict.fromkeys(refused)))
    pairs: list[Pair] = []
    kept: Past | None = None
    for run in others or [first]:
        for model_a, model_b in _models(first, run):
            pair, kept = _pair(first, run, (model_a, model_b), gates, allow, level, history, alone=not others)
            pairs.append(pair)
    pairs = decided(pairs)
    return Comparison(runs=tuple(runs), pairs=tuple(pairs), allowed=tuple(dict.fromkeys(found)), history=kept)


def _pair(
    first: Evidence,
    run: Evidence,
    names: tuple[str, str],
    gates: Sequence[Gate],
    allow: frozenset[str],
    level: float | None,
    history: Path | None,
    *,
    alone: bool,
) -> tuple[Pair, Past | None]:
    codes_a, ids = prompt_numbers(first)
    codes_b, _ = prompt_numbers(run, ids)
    at = _level(first, run, names, level)
    notes = list(_valid({"A": first, "B": run}, names, at))
    a = side(first, codes_a, len(ids), model=names[0], level=at[0])
    b = side(run, codes_b, len(ids), model=names[1], level=at[1])
    if a.name == b.name and not alone:
        a, b = replace(a, name=str(first.folder)), replace(b, name=str(run.folder))
    notes += _level_notes(first, run, names, at)
    common, fewest = _common(a, b)
    same = common >= max(1, SAME_SHARE * fewest)
    how = design(a, b, turns=_took_turns(first, run, a, b), same_prompts=same, common_prompts=common)
    measures = list(_measures(a, b, gates, how, notes))
    old: Past | None = None
    if history is not None:
        old = past(history, run, b, ids, measures, allow)
        if alone:
            changes = [old.difference(one, b, difference(one, b, b, how).b) for one in measures]
        else:
            changes = [_with_history(one, a, b, how, old) for one in measures]
    else:
        changes = [difference(one, a, b, how) for one in measures]
    by_measure = dict(zip(measures, changes, strict=True))
    _check_gated(gates, by_measure, first, run, how)
    notes += _notes(a, b, how, old, alone=alone)
    if few := [found for found in changes if found.why.startswith("too few")]:
        notes.append(f"times and speeds are not compared: {few[0].why}")
    lines = lines_of(changes, gates)
    return Pair(a=a, b=b, design=how, lines=tuple(lines), notes=tuple(notes)), old


def _models(a: Evidence, b: Evidence) -> list[tuple[str, str]]:
    ours, theirs = models(a), models(b)
    common = [model for model in ours if model in theirs]
    if common:
        return [(model, model) for model in common]
    if len(ours) == len(theirs) == 1:
        return [(ours[0], theirs[0])]
    raise UnlikeRuns([Unlike(what="model", a=", ".join(ours), b=", ".join(theirs), allow=None)], "no model in common")


def _level(a: Evidence, b: Evidence, names: tuple[str, str], wanted: float | None) -> tuple[float | None, float | None]:
    """The level to compare at: the one that was asked for, or the highest that both runs have."""
    have = [levels(run, name) for run, name in zip((a, b), names, strict=True)]
    both = sorted(set(have[0]) & set(have[1]))
    if wanted is not None and wanted not in both:
        known = ", ".join(f"{one:g}" for one in both) or "none"
        raise UnlikeRuns([], f"--level {wanted:g} is not a level of both runs; common: {known}")
    if wanted is not None:
        return wanted, wanted
    if both:
        return both[-1], both[-1]
    return tuple(one[-1] if one else None for one in have)  # type: ignore[return-value]


def _valid(
    runs: Mapping[str, Evidence], names: tuple[str, str], at: tuple[float | None, float | None]
) -> Iterator[str]:
    """Notes on what makes a run SUSPECT. Raises UnlikeRuns where it is INVALID: its figures are the client's."""
    problems = []
    for (letter, run), model, level in zip(runs.items(), names, at, strict=True):
        found = validity(run).get((model, level))
        if found is not None and found.state == "INVALID" and found.client_bound:
            problems.append(Unlike(what=f"{run.folder.name} is INVALID", a=found.reasons[0], b="", allow=None))
        elif found is not None and found.state != "VALID":
            drifted = [reason for reason in found.reasons[1:] if reason.startswith("drift")]
            yield f"{letter} is {found.state}: {'; '.join([found.reasons[0], *drifted])}"
    if problems:
        raise UnlikeRuns(list(dict.fromkeys(problems)), "what was measured is the client, so there is no verdict")


def _level_notes(
    a: Evidence, b: Evidence, names: tuple[str, str], at: tuple[float | None, float | None]
) -> Iterator[str]:
    have = [levels(run, name) for run, name in zip((a, b), names, strict=True)]
    others = [f"{one:g}" for one in sorted(set(have[0]) & set(have[1])) if one != at[0]]
    if at[0] is not None and others:
        yield f"compared at level {at[0]:g}; both also have {', '.join(others)} (--level N)"
    searches = [(run.load or {}).get("search") for run in (a, b)]
    if all(searches):
        best = [f"{one['best']:g} {one['unit']}" if one.get("best") else "none" for one in searches if one]
        yield f"highest load within the SLO: {best[0]} in A, {best[1]} in B"


def _common(a: Side, b: Side) -> tuple[int, int]:
    """How many prompts both runs asked, and how many the one with fewer did."""
    asked, theirs = (np.bincount(one.codes[one.codes >= 0], minlength=a.prompts) > 0 for one in (a, b))
    known = int(theirs.sum())
    # Prompts that A never asked share the number -1: they are counted by their rows, which are at least as many.
    return known, max(1, min(int(asked.sum()), known + int((b.codes < 0).sum())))


def _took_turns(first: Evidence, run: Evidence, a: Side, b: Side) -> bool:
    if not (a.stretches and b.stretches):
        return False
    # One of them may have been run again since, alone or beside another.
    if min(s.begun_s for s in a.stretches) > max(s.ended_s for s in b.stretches):
        return False
    if min(s.begun_s for s in b.stretches) > max(s.ended_s for s in a.stretches):
        return False
    for one, other in ((first, run), (run, first)):
        named = (one.load or {}).get("interleaved_with")
        # By its last name too: the two may have been moved together.
        if named and (Path(named).name == other.folder.name or Path(named).resolve() == other.folder.resolve()):
            return True
    return interleaved(a.stretches, b.stretches)


def _measures(a: Side, b: Side, gates: Sequence[Gate], how: Design, notes: list[str]) -> Iterator[Measure]:
    """What to compare: what failed first, then what is gated, then all that is usually read."""
    wanted = [measure(name) for name in SHOWN if not (name in RATES and how.kind == "one run")]
    if a.unit != "requests/s":  # only an open loop has a schedule; a batch's rows wait for its pacer
        wanted = [one for one in wanted if one.name != "response_s"]
    for name in TAILS:
        wanted.insert(1 + wanted.index(measure(name)), measure(name, "p99"))
    gated = [gate.measure for gate in gates]
    for one in gated:
        if one not in wanted:
            same = [place for place, other in enumerate(wanted) if other.name == one.name]
            wanted.insert(same[-1] + 1 if same else len(wanted), one)
    if not how.same_prompts:
        kept = [one for one in wanted if one.kind == "share" or one.name in LENGTH_FREE or one in gated]
        if len(kept) < len(wanted):
            notes.append("different prompts: only what does not depend on lengths is compared")
        wanted = kept
    yield from wanted


def _with_history(one: Measure, a: Side, b: Side, how: Design, old: Past) -> Difference:
    allowance = old.allowance(one)
    return difference(one, a, b, how if allowance is None else replace(how, allowance=how.allowance and allowance))


def _check_gated(
    gates: Sequence[Gate], found: dict[Measure, Difference], a: Evidence, b: Evidence, how: Design
) -> None:
    """Raise UnlikeRuns for a gate on what was not measured: a gate that cannot fail must not look as if it passed."""
    problems = []
    for gate in gates:
        change = found[gate.measure]
        why = ""
        if change.a is None or change.b is None or change.change is None:
            why = _absent(change, a if change.a is None else b)
        elif not how.same_prompts and gate.measure.kind != "share" and gate.measure.name not in LENGTH_FREE:
            why = "depends on the lengths of prompts and answers, and the runs asked different prompts"
        if why:
            problems.append(Unlike(what=f"gate {gate.text!r}", a=why, b="", allow=None))
    if problems:
        raise UnlikeRuns(problems, "a gate asks for what these runs cannot say, so there is no verdict")


def _absent(change: Difference, run: Evidence) -> str:
    name = change.measure.name
    if change.why != "not measured":
        return change.why
    if not run.is_("status", "ok").any():
        return f"every request of {run.folder.name} failed"
    streamed = (run.info.get("job") or {}).get("params", {}).get("stream") or not _all_null(run, "ttft_s")
    if name in _STREAMED and not streamed:
        return f"{name} needs params.stream: true; {run.folder.name} has none"
    if name == "client_tokens_per_s":
        return f"the answers of {run.folder.name} are too short for the client's clock to tell their speed"
    if name.startswith("server_"):
        return f"the endpoint of {run.folder.name} sent no time_info"
    if name == "cost_usd":
        return f"no price is known for the model of {run.folder.name}"
    return f"{run.folder.name} did not measure {name}"


def _all_null(run: Evidence, name: str) -> bool:
    column = run.rows.column(name)
    return bool(column.null_count == len(column))


def _notes(a: Side, b: Side, how: Design, old: Past | None, *, alone: bool) -> Iterator[str]:
    if old is not None:
        skipped = f"; {len(old.skipped)} skipped ({old.skipped[0]})" if old.skipped else ""
        what = "against" if alone else "drift as in"
        yield f"{what} {len(old.names)} earlier runs of the same job: {old.names[-1]} to {old.names[0]}{skipped}"
    if how.kind == "one run" and not alone:
        by = "" if old else f", so {DRIFT_ALLOWANCE:.0%} is allowed for it at either end"
        yield f"blocks of one run: drift not covered{by}".replace("%", " %")
    if how.kind == "apart":
        yield "not interleaved: what changed between the runs looks like a change of B"
    for letter, one in (("A", a), ("B", b)):
        failed = sum(one.bursts)
        if len(one.bursts) >= 3 and failed >= 5 and max(one.bursts) > failed / 2:
            yield f"{max(one.bursts)} of {failed} failures of {letter} are in one block: they came together"


def overhead(runs: Sequence[Evidence]) -> float | None:
    """The clients' own error of a first token (median, the worst block), where all blocks were calibrated."""
    found: list[Any] = [block.overhead for run in runs for block in run.measured]
    return max((one.p50 for one in found), default=None) if all(found) else None
