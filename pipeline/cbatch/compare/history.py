"""Earlier runs of the same job -> how far two runs of it are apart when nothing changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from cbatch.compare.likeness import differences
from cbatch.compare.metrics import Measure
from cbatch.compare.pairing import Column, Difference, log_ratio, share
from cbatch.compare.sides import Side, load, prompt_numbers, side
from cbatch.compare.stats import Floats, predicted, run_allowance
from cbatch.compare.unlike import UnlikeRuns
from cbatch.errors import CbatchError, JobError
from cbatch.report.evidence import Evidence, moment
from cbatch.rundir import RunDir

LAST = 10  # runs: what is older was another server
LEAST = 3


@dataclass(slots=True, kw_only=True)
class Past:
    """What earlier runs measured: each is one unit. `changes` are log ratios from each of them to the new run."""

    names: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # "name: why"
    changes: dict[Measure, list[float]] = field(default_factory=dict)
    values: dict[Measure, list[float]] = field(default_factory=dict)
    requests: int = 0
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)

    def allowance(self, measure: Measure) -> float | None:
        """How far two runs may be apart for no reason; None where too few runs measured it."""
        known = self.changes.get(measure, [])
        return run_allowance(np.array(known)) if len(known) >= LEAST else None

    def difference(self, measure: Measure, new: Side, value: float | None) -> Difference:
        """Is the new run one more of these?"""
        if measure.kind == "share":
            return share(measure, self.counts.get(measure.name, (0, 0)), new.counts.get(measure.name, (0, 0)))
        known = self.changes.get(measure, [])
        old = float(np.median(self.values[measure])) if measure in self.values else None
        sizes = (self.requests, new.requests)
        if len(known) < LEAST:
            why = f"{len(known)} of {len(self.names)} earlier runs measured it; {LEAST} are needed"
            why = "not measured" if value is None else why
            return Difference(measure=measure, a=old, b=value, n=sizes, change=None, why=why)
        changes: Floats = np.array(known)
        return Difference(measure=measure, a=old, b=value, n=sizes, change=predicted(changes))


def candidates(folder: Path, new: Evidence) -> list[Path]:
    """The runs under `folder` with the recipe of `new` that began before it, the oldest first.

    Raises JobError where `folder` is not one.
    """
    if not folder.is_dir():
        raise JobError(
            f"--against-history {folder}: not a folder", hint="name the folder that holds the run directories"
        )
    recipe = new.info.get("recipe")
    if not recipe:
        raise JobError(f"{new.folder}: run.json has no recipe", hint="it is of an older cbatch: run the job again")
    found: list[tuple[datetime, Path]] = []
    for path in folder.iterdir():
        info = RunDir(path).read_info()
        began = _began(info)
        if info.get("recipe") == recipe and began is not None and began < (_began(new.info) or began):
            found.append((began, path))
    return [path for _, path in sorted(found)]


def _began(info: Mapping[str, Any]) -> datetime | None:
    sessions = info.get("sessions") or [{}]
    text = sessions[0].get("started_at")
    return moment(text) if isinstance(text, str) else None


def past(folder: Path, new: Evidence, ours: Side, ids: Any, measures: Sequence[Measure], allow: frozenset[str]) -> Past:
    """What the last runs under `folder` measured, each read and let go: ten runs of a million rows do not fit at once.

    Raises UnlikeRuns where fewer than LEAST can be used.
    """
    out = Past()
    for path in reversed(candidates(folder, new)):
        if len(out.names) == LAST:
            break
        try:
            run = load(path)
        except CbatchError as exc:
            out.skipped.append(f"{path.name}: {exc}")
            continue
        unlike = [one for one in differences(run, new) if one.allow not in allow]
        if unlike:
            out.skipped.append(f"{path.name}: {unlike[0]}")
            continue
        codes, _ = prompt_numbers(run, ids)
        before = side(run, codes, ours.prompts, model=ours.model, level=ours.level)
        if not before.stretches:
            out.skipped.append(f"{path.name}: no block of {ours.model} at level {ours.level:g}")
            continue
        out.names.append(path.name)
        out.requests += before.requests
        for name, (bad, total) in before.counts.items():
            known = out.counts.get(name, (0, 0))
            out.counts[name] = (known[0] + bad, known[1] + total)
        for measure in measures:
            if measure.statistic in ("share", "rate"):
                continue
            ratio = log_ratio(measure, before, ours, same_prompts=True)
            value = Column(measure, before).all
            if ratio is not None and value is not None:
                out.changes.setdefault(measure, []).append(ratio)
                out.values.setdefault(measure, []).append(value)
    if len(out.names) < LEAST:
        raise UnlikeRuns(
            [],
            f"the history has {len(out.names)} runs of this recipe that can be used, and {LEAST} are needed"
            + "".join(f"\n{text}" for text in out.skipped[:5]),
        )
    return out
