"""Evidence -> where the time of each request went: phases that follow one another and add up to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cbatch.report.evidence import Evidence, Floats
from cbatch.report.intervals import floor_of
from cbatch.report.sampling import Places

RANGES = {"median": (0.45, 0.55), "p90": (0.88, 0.92), "p99": (0.985, 0.995)}  # by rank of the whole time
LEAST = {"median": 1, "p90": floor_of(0.1), "p99": floor_of(0.01)}  # requests, or it is not said

# Key (its colour in page.css), words, and a word for the head of a column.
PHASES = (
    ("schedule", "behind schedule", "late"),
    ("attempts", "failed attempts", "failed"),
    ("queue", "server: queue", "queue"),
    ("prompt", "server: prompt", "prompt"),
    ("net", "network and client", "network"),
    ("first", "until first token", "first"),
    ("write", "writing the answer", "writing"),
    ("other", "server: other", "other"),
    ("tail", "end of the stream", "tail"),
    ("whole", "request", "request"),
)
WORDS = {key: words for key, words, _ in PHASES}
SHORT = {key: word for key, _, word in PHASES}


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """Per row the seconds of each phase (0 where it has none), and their sum; NaN where the row was not answered."""

    parts: dict[str, Floats]  # those that any request has, in the order they happen
    whole: Floats


def phases(evidence: Evidence) -> Phases:
    """The phases of every row.

    With a stream the client saw the first token: what the server does not account for until then is network and
    client. Without one the server's own total is taken from the whole, and the rest is network and client.
    """
    n = {name: evidence.numbers(name) for name in ("latency_s", "ttft_s", "server_queue_s", "server_prompt_s")}
    latency, first, queue, prompt = n.values()
    writing, total = evidence.numbers("server_completion_s"), evidence.numbers("server_total_s")
    streamed = ~np.isnan(first)
    told = ~np.isnan(queue) & ~np.isnan(prompt)
    accounted = ~streamed & told & ~np.isnan(writing) & ~np.isnan(total)
    parts = {
        "schedule": evidence.numbers("sched_lag_s"),
        "attempts": evidence.numbers("attempts_s"),
        "queue": np.where((streamed & told) | accounted, queue, 0.0),
        "prompt": np.where((streamed & told) | accounted, prompt, 0.0),
        "net": np.where(streamed & told, first - queue - prompt, np.where(accounted, latency - total, 0.0)),
        "first": np.where(streamed & ~told, first, 0.0),
        "write": np.where(streamed, latency - first, np.where(accounted, writing, 0.0)),
        "other": np.where(accounted, total - queue - prompt - writing, 0.0),
        "tail": evidence.numbers("tail_s"),
        "whole": np.where(~streamed & ~accounted, latency, 0.0),
    }
    # Two clocks may disagree by microseconds: a phase is never negative.
    parts = {key: np.nan_to_num(np.maximum(values, 0.0)) for key, values in parts.items()}
    answered = ~np.isnan(latency)
    kept = {key: values for key, values in parts.items() if (values[answered] > 5e-7).any()}
    whole = np.sum(list(kept.values()), axis=0) if kept else np.zeros_like(latency)
    return Phases(parts=kept, whole=np.where(answered, whole, np.nan))


def typical(found: Phases, places: Places) -> dict[str, dict[str, float]]:
    """The mean of each phase, of those requests of `places` that are around the median, p90 and p99 of the whole time.

    Unlike percentiles of single phases these add up, and show what slow requests wait for.
    """
    order = places[np.argsort(found.whole[places], kind="stable")]
    count = len(order)
    rows: dict[str, dict[str, float]] = {}
    for name, (low, high) in RANGES.items():
        if count < LEAST[name]:
            continue
        from_, to = int(low * count), max(int(low * count) + 1, int(np.ceil(high * count)))
        rows[name] = {key: float(values[order[from_:to]].mean()) for key, values in found.parts.items()}
    return rows
