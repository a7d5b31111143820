"""Are two runs alike but for what is to be compared? What differs, with the values of both.

A difference is refused unless the user allows it by name: a speed-up that is another model, a shorter
limit or another data centre is no speed-up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cbatch.compare.sides import levels, models
from cbatch.compare.unlike import Unlike
from cbatch.report.evidence import Evidence

SHOWN_LENGTH = 28  # of a value in a message


def differences(a: Evidence, b: Evidence) -> list[Unlike]:
    """All that differs, before anything is allowed."""
    return [*_unusable(a, first=True), *_unusable(b, first=False), *_unlike(a, b)]


def _unusable(run: Evidence, *, first: bool) -> Iterator[Unlike]:
    def one(what: str, text: str, allow: str | None) -> Unlike:
        text = f"{run.folder.name} {text}"
        return Unlike(what=what, a=text if first else "", b="" if first else text, allow=allow)

    if run.rows.num_rows == 0:
        yield one("empty", "has no measured rows", None)
    elif run.state != "finished":
        yield one("unfinished", f"is {run.state}", "unfinished")


def _unlike(a: Evidence, b: Evidence) -> Iterator[Unlike]:
    def pair(what: str, of: Callable[[Evidence], Any], allow: str) -> Iterator[Unlike]:
        first, second = of(a), of(b)
        if first != second:
            yield Unlike(what=what, a=_text(first), b=_text(second), allow=allow)

    yield from pair("model", models, "model")
    # Another model has another fingerprint, which says nothing more; and a run that only failed has none.
    if models(a) == models(b) and _fingerprints(a) and _fingerprints(b):
        yield from pair("system_fingerprint", _fingerprints, "system_fingerprint")
    yield from _prompts(a, b)
    for key in sorted({*_params(a), *_params(b)}):
        yield from pair(f"params.{key}", lambda run, key=key: _params(run).get(key), "params")  # type: ignore[misc]
    yield from pair("samples", lambda run: _job(run).get("samples") or 1, "params")
    yield from pair("endpoint", _endpoint, "endpoint")
    yield from pair("metrics_version", lambda run: run.info.get("metrics_version"), "metrics_version")
    yield from pair("load.mode", lambda run: (run.load or {"mode": "a batch"}).get("mode"), "load")
    common = [model for model in models(a) if model in models(b)]
    if a.load is None and b.load is None:
        yield from pair("limits.concurrency", lambda run: (_job(run).get("limits") or {}).get("concurrency"), "load")
    elif a.load and b.load and common and not any(set(levels(a, model)) & set(levels(b, model)) for model in common):
        yield from pair("load level", lambda run: levels(run, common[0]), "load")


def _job(run: Evidence) -> Mapping[str, Any]:
    found: Mapping[str, Any] = run.info.get("job") or {}
    return found


def _params(run: Evidence) -> Mapping[str, Any]:
    given: Mapping[str, Any] = _job(run).get("params") or {}
    return {key: value for key, value in given.items() if value is not None}


def _prompts(a: Evidence, b: Evidence) -> Iterator[Unlike]:
    job_a, job_b = _job(a), _job(b)
    sources = [run.info.get("source") or {} for run in (a, b)]
    if sources[0].get("sha256") != sources[1].get("sha256"):
        texts = [f"{str(s.get('sha256') or '?')[:8]} ({s.get('rows') or 0:,} rows)" for s in sources]
        yield Unlike(what="prompts", a=texts[0], b=texts[1], allow="prompts")
        return
    if a.info.get("limit") != b.info.get("limit"):
        yield Unlike(
            what="prompts --limit", a=_text(a.info.get("limit")), b=_text(b.info.get("limit")), allow="prompts"
        )
    if job_a.get("prompt") != job_b.get("prompt"):
        yield Unlike(what="prompt", a=_text(job_a.get("prompt")), b=_text(job_b.get("prompt")), allow="prompts")
    chosen = [_chosen(job.get("input")) for job in (job_a, job_b)]
    if chosen[0] != chosen[1]:
        yield Unlike(what="input", a=_text(chosen[0]), b=_text(chosen[1]), allow="prompts")


def _chosen(value: Any) -> Any:
    """Which rows of the input were asked; where the file lies is not what was asked."""
    return {k: v for k, v in value.items() if k != "path" and v is not None} if isinstance(value, dict) else None


def _fingerprints(run: Evidence) -> list[str]:
    return sorted(text for text in run.rows.column("system_fingerprint").unique().to_pylist() if text is not None)


def _endpoint(run: Evidence) -> str:
    return "simulated" if run.info.get("simulated") else str(run.info.get("endpoint") or "unknown")


def _text(value: Any) -> str:
    if isinstance(value, list):
        text = ", ".join(f"{one:g}" if isinstance(one, float) else str(one) for one in value) or "none"
    elif value is None:
        text = "not given"
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= SHOWN_LENGTH else text[: SHOWN_LENGTH - 1] + "…"
