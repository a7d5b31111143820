"""Evidence and demands -> Findings: the figures, whether to believe them, what the gates say, the exit code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from cbatch.errors import JobError
from cbatch.gates import Gate, parse
from cbatch.report.evidence import Evidence
from cbatch.report.figures import Figures, Level, figures
from cbatch.report.gates import Outcome, evaluate, unjudged
from cbatch.report.verdict import Verdict, judge, judge_level, withhold

GATE_MISSED, NOT_VALID = 5, 6  # exit codes of the contract


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """All that the terminal, Markdown, JSON and HTML reports say of a run."""

    figures: Figures  # without those that are the client's
    verdict: Verdict
    levels: tuple[Verdict, ...]  # of figures.levels
    asked: tuple[Gate, ...]  # the gates of the job, then the further ones
    gates: tuple[Outcome, ...]  # what each came to
    exit_code: int
    best: float | None = None  # of a search: the highest load that passed and was measured


def find(evidence: Evidence, slo: Sequence[Gate] = ()) -> Findings:
    """The findings of a run, held to the gates of its job and to further ones. Raises JobError."""
    is_load = evidence.load is not None
    everything = figures(evidence)
    search = (evidence.load or {}).get("search") or {}
    # In a search it is about the load that was found: those above it were to fail.
    best = [level for level in everything.levels if level.level == search.get("best")]
    named = replace(everything, levels=best) if best else everything
    verdict = judge(named, is_load=is_load, named=everything.is_ladder)
    asked = demanded(evidence.info, slo)
    outcomes = evaluate(asked, evidence, everything)
    if verdict.client_bound:
        outcomes = [unjudged(outcome, gate) for outcome, gate in zip(outcomes, asked, strict=True)]
    verdicts = tuple(judge_level(level, is_load=is_load) for level in everything.levels)
    code = 0
    if verdict.state == "INVALID" and (outcomes or is_load):
        code = NOT_VALID
    elif any(outcome.passed is not True for outcome in outcomes) or (search and search.get("best") is None):
        code = GATE_MISSED
    return Findings(
        figures=withhold(everything, is_load=is_load),
        verdict=verdict,
        levels=verdicts,
        asked=asked,
        gates=tuple(outcomes),
        exit_code=code,
        best=_best(search, everything.levels, verdicts),
    )


def _best(search: Mapping[str, Any], levels: Sequence[Level], verdicts: Sequence[Verdict]) -> float | None:
    passed = {trial["level"] for trial in search.get("trials") or () if trial["passed"]} | {search.get("best")}
    invalid = {one.level for one, said in zip(levels, verdicts, strict=True) if said.state == "INVALID"}
    return max((one.level for one in levels if one.level is not None and one.level in passed - invalid), default=None)


def as_json(evidence: Evidence, found: Findings) -> dict[str, Any]:
    """The findings as `cbatch report --json` prints them; the names are stable."""
    info = evidence.info
    about = {name: info.get(name) for name in ("name", "cbatch", "metrics_version", "recipe", "endpoint", "simulated")}
    plain = asdict(found.figures)
    for level, verdict in zip(plain["levels"], found.levels, strict=True):
        level["verdict"] = asdict(verdict)
    load = evidence.load
    search = (load or {}).get("search")
    if search:
        search = search | {"best_valid": found.best}
    return (
        about
        | {"state": evidence.state, "verdict": asdict(found.verdict), "gates": [asdict(o) for o in found.gates]}
        | plain
        | {
            "load": None if load is None else {"mode": load.get("mode"), "search": search},
            "exit_code": found.exit_code,
        }
    )


def demanded(info: Mapping[str, Any], slo: Sequence[Gate] = ()) -> tuple[Gate, ...]:
    """The gates of the job in run.json, then further ones. Raises JobError."""
    found = []
    for text in (info.get("job") or {}).get("gates") or ():
        try:
            found.append(parse(text))
        except ValueError as exc:
            raise JobError(f"gates in run.json: {exc}", hint="was the run made by another version of cbatch?") from None
    return tuple({gate.text: gate for gate in (*found, *slo)}.values())


__all__ = ["GATE_MISSED", "NOT_VALID", "Findings", "as_json", "demanded", "find"]
