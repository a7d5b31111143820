"""Run directories with figures that are known beforehand: run.json and parts, without an engine.

    run = made_run(tmp_path / "a", [MadeBlock(level=8, repeat=r, speed=2_000) for r in range(6)])
    run = made_batch(tmp_path / "b", rows=500, stream=False)

Times are drawn from `random.Random(seed)`, so the same call gives the same run. Each request's server
speed is around `speed`, its ttft around `ttft_s`; everything else follows from these.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cbatch.parquet import write_part
from cbatch.rundir import RunDir
from cbatch.schema import COLUMN_INDEX, COLUMNS

START = datetime(2026, 11, 20, 9, 12, tzinfo=UTC)
MODEL = "gpt-oss-120b"
PART_ROWS = 50_000
Change = Callable[[dict[str, Any], int], None]  # of one row (by column name) and its number: in place


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeBlock:
    """One block of a load run; or a whole batch, which is one block without a number."""

    level: float = 8.0
    model: str = MODEL
    repeat: int = 0
    rows: int = 100  # of the measured window
    warmup_rows: int = 5
    failed: int = 0  # of the measured rows: server errors, spread evenly
    refused: int = 0  # of the measured rows: rate_limited
    speed: float = 2_000.0  # server tokens/s, the median
    ttft_s: float = 0.050
    spread: float = 0.05  # of speed and ttft: the standard deviation of their logarithm
    tokens: int = 128
    prompts: int = 50  # different prompts, asked in turn
    in_flight: float | None = None  # None: as asked
    starved_s: float = 0.0
    cpu_share: float = 0.2  # of one core
    overhead_s: tuple[float, float] | None = (0.0003, 0.0021)  # p50 and p99; None: not calibrated
    loop_lag_s: tuple[float, float] | None = (0.0001, 0.001)
    rate_limited: int = 0
    complete: bool = True
    stream: bool = True
    unit: str = "in flight"


def made_run(
    path: Path,
    blocks: Sequence[MadeBlock],
    *,
    mode: str = "closed",
    seed: int = 7,
    change: Change | None = None,
    recipe: str = "f" * 64,
    load: dict[str, Any] | None = None,
    **info: Any,
) -> RunDir:
    """A load run with these blocks, one after the other. `info` replaces keys of run.json, `load` of its load."""
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    described: list[dict[str, Any]] = []
    uses: dict[tuple[str, str], int] = {}
    now = START
    made_of: list[list[dict[str, Any]]] = []
    for number, block in enumerate(blocks):
        begun = now
        made = []
        for n in range(block.warmup_rows + block.rows):
            row = _row(rng, block, n)
            phase = "warmup" if n < block.warmup_rows else "measure"
            row |= {"load_block": number, "load_level": block.level, "load_phase": phase, "index": n % block.prompts}
            key = (row["id"], block.model)
            row["sample"] = uses.get(key, 0)
            uses[key] = row["sample"] + 1
            made.append(row)
        now = _schedule(made, begun, block)
        measured = [row for row in made if row["load_phase"] == "measure"]
        warmup_s = (_time(measured[0]) - begun).total_seconds() if measured else 0.0
        measured_s = (now - begun).total_seconds() - warmup_s
        described.append(_described(number, block, begun, warmup_s, measured_s))
        rows += made
        made_of.append(made)
        now += timedelta(seconds=0.5)
    for number, row in enumerate(rows):
        if change is not None:
            change(row, number)
    for entry, made in zip(described, made_of, strict=True):
        entry |= _completed(made, entry)
    extra = {"mode": mode, "interleaved_with": None, "blocks": described, "search": None} | (load or {})
    return _write(path, rows, now, None, {"load": extra, "recipe": recipe, **info})


def made_batch(
    path: Path,
    *,
    rows: int = 200,
    concurrency: int = 8,
    stream: bool = False,
    models: Sequence[str] = (MODEL,),
    seed: int = 7,
    change: Change | None = None,
    state: str = "finished",
    block: MadeBlock | None = None,
    **info: Any,
) -> RunDir:
    """A batch of `rows` prompts to each model; `block` says speeds and failures (of each model)."""
    rng = random.Random(seed)
    made: list[dict[str, Any]] = []
    for model in models:
        about = replace(block or MadeBlock(), model=model, level=float(concurrency), rows=rows, prompts=rows)
        about = replace(about, stream=stream, warmup_rows=0)
        made += [_row(rng, about, n) | {"index": n, "sample": 0} for n in range(rows)]
    rng.shuffle(made)
    end = _schedule(made, START, MadeBlock(level=float(concurrency)))
    return _write(path, made, end, change, {"state": state, **info})


def _row(rng: random.Random, block: MadeBlock, n: int) -> dict[str, Any]:
    """One request, as its columns; what was not measured is left out."""
    place = n - block.warmup_rows
    bad = _spread(place, block.rows, block.failed + block.refused) if place >= 0 else None
    row: dict[str, Any] = {
        "id": f"p{n % block.prompts}",
        "model": block.model,
        "digest": f"{n % block.prompts:064x}",
        "wait_s": 0.001,
        "backoff_s": 0.0,
        "attempts_s": 0.0,
        "attempts": 1,
        "input": json.dumps({"question": f"question {n % block.prompts}"}),
    }
    if bad is not None:
        refused = bad < block.refused
        return row | {
            "status": "error",
            "error_kind": "rate_limited" if refused else "server",
            "error_message": "429: too many requests" if refused else "500: something broke",
            "http_status": 429 if refused else 500,
            "retry_after_s": 1.0 if refused else None,
        }
    tokens = max(8, round(block.tokens * math.exp(rng.gauss(0, 0.1))))
    speed = block.speed * math.exp(rng.gauss(0, block.spread))
    ttft_s = block.ttft_s * math.exp(rng.gauss(0, block.spread))
    queue_s, prompt_s, completion_s = 0.05 * ttft_s, 0.3 * ttft_s, tokens / speed
    latency_s = ttft_s + completion_s
    tail_s = 0.0005 if block.stream else None
    row |= {
        "status": "ok",
        "text": f"answer {n}",
        "finish_reason": "stop",
        "http_status": 200,
        "prompt_tokens": 100,
        "cached_tokens": 0,
        "completion_tokens": tokens,
        "reasoning_tokens": tokens // 4,
        "total_tokens": 100 + tokens,
        "cost_usd": (100 * 0.35 + tokens * 0.75) / 1e6,
        "server_queue_s": queue_s,
        "server_prompt_s": prompt_s,
        "server_completion_s": completion_s,
        "server_total_s": queue_s + prompt_s + completion_s + 0.001,
        "server_other_s": 0.001,
        "latency_s": latency_s,
        "tail_s": tail_s,
        "response_s": 0.001 + latency_s,
        "server_tokens_per_s": speed,
        "server_prefill_tokens_per_s": 100 / prompt_s,
        "e2e_tokens_per_s": tokens / latency_s,
        "request_id": f"req-{n}",
        "served_model": block.model,
        "system_fingerprint": "fp_1",
    }
    if block.unit == "requests/s":
        row["sched_lag_s"] = 0.0002
    if block.stream:
        row |= {
            "ttft_s": ttft_s,
            "ttfa_s": ttft_s + 0.25 * completion_s,
            "net_s": ttft_s - queue_s - prompt_s,
            "client_tokens_per_s": speed * math.exp(rng.gauss(0, 0.01)),
            "n_chunks": tokens // 4,
            "n_reads": tokens // 4,
            "n1_est": 4.0,
            "max_gap_s": 0.004,
            "loop_lag_ms": 0.2,
            "tainted": False,
        }
    return row


def _spread(place: int, rows: int, bad: int) -> int | None:
    """Which of `bad` evenly spread places this is; None if it is none of them."""
    before, after = place * bad // rows, (place + 1) * bad // rows
    return before if after > before else None


def _schedule(rows: Sequence[dict[str, Any]], begun: datetime, block: MadeBlock) -> datetime:
    """Give the rows their times: `level` of them at once, or at an even rate; returns when the last one ended."""
    if block.unit == "requests/s":
        free = [n / block.level for n in range(len(rows))]
        for at, row in zip(free, rows, strict=True):
            row["started_at"] = _micros(begun + timedelta(seconds=at))
        return begun + timedelta(seconds=max(at + _takes(row) for at, row in zip(free, rows, strict=True)))
    slots = [0.0] * max(1, int(block.level if block.in_flight is None else block.in_flight))
    for row in rows:
        place = min(range(len(slots)), key=slots.__getitem__)
        row["started_at"] = _micros(begun + timedelta(seconds=slots[place]))
        slots[place] += _takes(row)
    return begun + timedelta(seconds=max(slots))


def _takes(row: dict[str, Any]) -> float:
    return float(row.get("latency_s") or 0.01) + float(row.get("tail_s") or 0.0)


def _micros(at: datetime) -> int:
    return round(at.timestamp() * 1e6)


def _time(row: dict[str, Any]) -> datetime:
    return datetime.fromtimestamp(row["started_at"] / 1e6, tz=UTC)


def _described(number: int, block: MadeBlock, begun: datetime, warmup_s: float, measured_s: float) -> dict[str, Any]:
    def pair(found: tuple[float, float] | None) -> dict[str, Any] | None:
        return None if found is None else {"p50": found[0], "p99": found[1], "max": 2 * found[1], "n": 500}

    return {
        "block": number,
        "model": block.model,
        "repeat": block.repeat,
        "level": block.level,
        "unit": block.unit,
        "started_at": begun.isoformat(timespec="milliseconds"),
        "warmup_s": warmup_s,
        "measured_s": measured_s,
        "complete": block.complete,
        "requests": block.rows,
        "failed": block.failed + block.refused,
        "rate_limited": block.rate_limited,
        "in_flight": block.level if block.in_flight is None else block.in_flight,
        "starved_s": block.starved_s,
        "cpu_s": block.cpu_share * measured_s,
        "loop_lag_s": pair(block.loop_lag_s),
        "overhead_s": pair(block.overhead_s),
    }


def _completed(rows: Sequence[dict[str, Any]], block: dict[str, Any]) -> dict[str, int]:
    """What the engine counts for the rates: answers that ended in the measured window, sent in the warm-up or not."""
    begin = datetime.fromisoformat(block["started_at"]).timestamp() + block["warmup_s"] - 1e-3
    end = begin + block["measured_s"] + 2e-3
    ended = [(row["started_at"] / 1e6 + _takes(row), row) for row in rows if row["status"] == "ok"]
    within = [row for at, row in ended if begin <= at <= end]
    return {"completed": len(within), "completed_tokens": sum(row["completion_tokens"] for row in within)}


def _series(rows: Sequence[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """What the engine would have counted, in intervals of a second (or more, for at most 600)."""
    every_s = 1.0
    while seconds / every_s > 600:
        every_s *= 2
    count = max(1, math.ceil(seconds / every_s))
    names = ["t_s", "in_flight", "waiting", "sent", "answered", "failed", "rate_limited", "completion_tokens"]
    table = [[every_s * (n + 1), *([0.0] * len(names[1:])), 0.001] for n in range(count)]
    for row in rows:
        start = row["started_at"] / 1e6 - START.timestamp()
        end = start + _takes(row)
        first, last = (min(count - 1, max(0, int(at / every_s))) for at in (start, end))
        table[first][3] += 1
        table[last][4] += 1
        table[last][5] += row["status"] == "error"
        table[last][6] += row.get("http_status") == 429
        table[last][7] += row.get("completion_tokens") or 0
        for n in range(first, last + 1):
            table[n][1] += max(0.0, min(end, every_s * (n + 1)) - max(start, every_s * n)) / every_s
    return {"every_s": every_s, "columns": [*names, "loop_lag_s"], "rows": table}


def _write(
    path: Path, rows: list[dict[str, Any]], end: datetime, change: Change | None, info: dict[str, Any]
) -> RunDir:
    run = RunDir(path)
    path.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(rows):
        if change is not None:
            change(row, number)
    for part, first in enumerate(range(0, len(rows), PART_ROWS)):
        lists = (_values(row) for row in rows[first : first + PART_ROWS])
        write_part(lists, {}, path / "staging" / "part", run.results / f"part-{part:05}.parquet")
    elapsed_s = (end - START).total_seconds()
    failed = sum(row["status"] == "error" for row in rows)
    session = {
        "started_at": START.isoformat(timespec="seconds"),
        "elapsed_s": elapsed_s,
        "sent": sum(row["attempts"] for row in rows),
        "answered": len(rows),
        "retries": sum(row["attempts"] - 1 for row in rows),
        "rate_limited": sum(row.get("http_status") == 429 for row in rows),
        "pace_wait_s": 0.0,
        "backoff_s": 0.0,
        "time_lost_s": {},
        "cpu_s": 0.2 * elapsed_s,
        "server_queue_s": 0.0,
        "hedged": 0,
        "series": _series(rows, elapsed_s),
        "loop_lag_s": {"p50": 0.0001, "p99": 0.001, "max": 0.002, "n": 1_000},
    }
    job = {"name": path.name, "model": sorted({row["model"] for row in rows}), "gates": []}
    run.write_info(
        {
            "cbatch": "1.0",
            "name": path.name,
            "state": "finished",
            "metrics_version": 1,
            "endpoint": "https://api.cerebras.ai/v1",
            "simulated": False,
            "recipe": "f" * 64,
            "job": job,
            "source": {"files": ["prompts.jsonl"], "rows": len({row["id"] for row in rows}), "sha256": "8a21" * 16},
            "limit": None,
            "total": len(rows),
            "summary": {"failed": failed, "done": len(rows) - failed, "elapsed_s": elapsed_s},
            "sessions": [session],
        }
        | info
    )
    return run


def _values(row: dict[str, Any]) -> list[Any]:
    values: list[Any] = [None] * len(COLUMNS)
    for name, value in row.items():
        values[COLUMN_INDEX[name]] = value
    return values
