"""Differences that make two runs incomparable, and the names that allow them all the same."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from cbatch.errors import CbatchError, JobError

ALLOWED = ("model", "system_fingerprint", "prompts", "params", "endpoint", "load", "metrics_version", "unfinished")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unlike:
    """One difference between two runs. `allow` is the name that accepts it; None: nothing does."""

    what: str
    a: str
    b: str
    allow: str | None

    def __str__(self) -> str:
        values = self.a if not self.b else self.b if not self.a else f"{self.a} in A, {self.b} in B"
        return f"{self.what}: {values}"


class UnlikeRuns(CbatchError):
    """No verdict: the runs are not alike, or one of them measured nothing; one line per difference."""

    exit_code = 6

    def __init__(self, differences: Sequence[Unlike], message: str = "") -> None:
        names = sorted({difference.allow or "" for difference in differences})  # "": one that nothing allows
        super().__init__(
            "\n".join([message or "these runs are not alike, so there is no verdict", *map(_with_name, differences)]),
            hint=f"--allow {','.join(names)} compares them all the same" if names and all(names) else None,
        )
        self.differences = tuple(differences)


def _with_name(difference: Unlike) -> str:
    return f"{difference}  (--allow {difference.allow})" if difference.allow else str(difference)


def allowed(text: Sequence[str]) -> frozenset[str]:
    """The names in `--allow model,prompts`. Raises JobError for an unknown one."""
    names = [name.strip() for one in text for name in one.split(",") if name.strip()]
    for name in names:
        if name not in ALLOWED:
            near = difflib.get_close_matches(name, ALLOWED, n=1)
            guess = f"did you mean {near[0]}? " if near else ""
            raise JobError(f"--allow {name}: unknown", hint=f"{guess}accepted: {', '.join(ALLOWED)}")
    return frozenset(names)
