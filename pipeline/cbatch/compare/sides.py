"""Evidence of a run -> Side: the arrays and blocks of one model at one level, ready to be compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbatch.compare.stats import Floats
from cbatch.parquet import numbered
from cbatch.report.evidence import Block, Evidence, Mask, read
from cbatch.report.figures import figures
from cbatch.report.verdict import Verdict, judge_level
from cbatch.rundir import RunDir

Places = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stretch:
    """A block of a load run, or a whole batch: the unit that a change is measured in."""

    repeat: int
    begun_s: float  # since the epoch
    ended_s: float
    answered: Places  # rows of the answers
    completed: int | None = None  # answers that ended in it; None: nobody counted
    completed_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Side:
    """One run as a comparison sees it. `codes` numbers the prompt of each row as in the first run; -1: not there."""

    name: str
    model: str
    level: float | None  # None for a batch
    unit: str
    stretches: tuple[Stretch, ...]
    codes: Places
    prompts: int  # how many numbers there are
    numbers: Callable[[str], Floats]  # of all rows, NaN where nothing was measured
    requests: int
    counts: Mapping[str, tuple[int, int]]  # of each share: how many, of how many
    bursts: tuple[int, ...] = ()  # failures of each stretch

    @property
    def answered(self) -> Places:
        """The rows of all answers."""
        return np.concatenate([stretch.answered for stretch in self.stretches])


def load(path: Path) -> Evidence:
    """The evidence of the run at `path`. Raises JournalError."""
    return read(RunDir.at(path), also=("id",))


def prompt_numbers(evidence: Evidence, known: Any = None) -> tuple[Places, Any]:
    """The prompt of each row as a number, and the ids that have one: `known`, or else this run's."""
    return numbered(evidence.rows.column("id"), known)


def models(evidence: Evidence) -> list[str]:
    """The models that were asked, as the job names them."""
    column = evidence.rows.column("model")
    return sorted({text for text in column.unique().to_pylist() if text is not None})


def levels(evidence: Evidence, model: str) -> list[float]:
    """The levels of load at which a block of this model came to its end."""
    return sorted({block.level for block in evidence.measured if block.model == model})


def side(evidence: Evidence, codes: Places, prompts: int, *, model: str, level: float | None) -> Side:
    """One model at one level of a run."""
    ours = evidence.is_("model", model)
    ok = evidence.is_("status", "ok")
    started = evidence.numbers("started_at")
    stretches, bursts, unit = [], [], ""
    wanted: list[Block] = []
    if level is None:
        begun = started[ours & ~np.isnan(started)]
        ended = evidence.ended_at()[ours]
        ended = ended[~np.isnan(ended)]
        stretches.append(
            Stretch(
                repeat=0,
                begun_s=float(begun.min()) if len(begun) else 0.0,
                ended_s=float(ended.max() if len(ended) else begun.max() if len(begun) else 0.0),
                answered=np.flatnonzero(ours & ok),
            )
        )
    else:
        number = evidence.numbers("load_block")
        wanted = [block for block in evidence.measured if block.model == model and block.level == level]
        ours &= np.isin(number, [block.number for block in wanted])
        for block in wanted:
            unit = block.unit
            begun_s = block.measured_from
            here = number == block.number
            stretches.append(
                Stretch(
                    repeat=block.repeat,
                    begun_s=begun_s,
                    ended_s=begun_s + block.measured_s,
                    answered=np.flatnonzero(here & ours & ok),
                    completed=block.completed,
                    completed_tokens=block.completed_tokens,
                )
            )
            bursts.append(int((here & ours & ~ok).sum()))
    return Side(
        name=evidence.folder.name or str(evidence.folder),
        model=model,
        level=level,
        unit=unit,
        stretches=tuple(stretches),
        codes=codes,
        prompts=prompts,
        numbers=evidence.numbers,
        requests=int(ours.sum()),
        counts=_counts(evidence, ours, ok, wanted),
        bursts=tuple(bursts),
    )


def _counts(evidence: Evidence, ours: Mask, ok: Mask, blocks: Sequence[Block]) -> dict[str, tuple[int, int]]:
    requests, answered = int(ours.sum()), int((ours & ok).sum())
    refused = int((ours & evidence.is_("error_kind", "rate_limited")).sum())
    sent = max(requests, int(np.nansum(evidence.numbers("attempts")[ours])))
    if blocks:
        refused = max(refused, sum(block.rate_limited for block in blocks))
    elif ours.all():  # a session does not say which model its refusals were of
        refused = max(refused, sum(session.get("rate_limited") or 0 for session in evidence.sessions))
    out = {
        "errors": (requests - answered, requests),
        "rate_limited": (refused, max(sent, refused)),  # answers with 429, those that were retried included
        "invalid": (int((ours & (evidence.numbers("valid") == 0)).sum()), requests),
    }
    for reason in ("stop", "length", "tool_calls", "content_filter"):
        out[f"finish_{reason}"] = (int((ours & ok & evidence.is_("finish_reason", reason)).sum()), answered)
    return out


def validity(evidence: Evidence) -> dict[tuple[str, float | None], Verdict]:
    """Whether the figures of each model and level are the server's; {} for a batch, which is never client-bound."""
    if evidence.load is None or not evidence.measured:
        return {}
    return {(one.model, one.level): judge_level(one, is_load=True) for one in figures(evidence).levels}


def in_order(side: Side, rows: Places) -> Places:
    """These rows, the first sent first; what has no time stays where it is."""
    return rows[np.argsort(side.numbers("started_at")[rows], kind="stable")]


def interleaved(a: Sequence[Stretch], b: Sequence[Stretch]) -> bool:
    """Whether the blocks took turns: A B A B … or A B B A …, whatever happened to the network did to both."""
    if len(a) != len(b) or not a:
        return False
    turns = sorted([(s.begun_s, s.ended_s, 0) for s in a] + [(s.begun_s, s.ended_s, 1) for s in b])
    apart = all(turns[n][1] <= turns[n + 1][0] + 1e-3 for n in range(len(turns) - 1))
    return apart and all({turns[n][2], turns[n + 1][2]} == {0, 1} for n in range(0, len(turns), 2))
