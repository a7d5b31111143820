"""A run directory -> Evidence: all that reports and comparisons are made of, read once.

Rows of a warm-up, and of blocks that did not come to their end, are counted here and are in no figure.
Only numbers and repeating texts are held: a million rows are some 300 MB, their answers would be gigabytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbatch.errors import JournalError
from cbatch.journal import PLANNED, Journal
from cbatch.parquet import error_examples, measured_rows, repeated_and_cached
from cbatch.rundir import RunDir
from cbatch.runlock import is_locked
from cbatch.schema import COLUMNS

# What no figure is made of: long texts, and numbers that say where a row is from. `read(also=...)` adds some.
_LEFT_OUT = {
    *("id", "digest", "text", "reasoning", "tool_calls", "parsed", "error_code", "error_message", "request_id"),
    *("input", "index", "total_tokens", "reserved_tokens"),
}
NAMES = tuple(name for name, _, _ in COLUMNS if name not in _LEFT_OUT)

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lag:
    """How late something was, in seconds, over `n` samples."""

    p50: float
    p99: float
    max: float | None
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One stretch of a load run at one level; its fields are those of run.json."""

    number: int
    model: str
    repeat: int
    level: float
    unit: str  # "in flight" or "requests/s"
    started_at: datetime
    warmup_s: float
    measured_s: float
    complete: bool
    requests: int
    failed: int
    rate_limited: int
    # Answers that ended in the measured window, also where they were sent before it: what the rates are made of, for
    # what is due in it may be sent long after it. None in runs of a version that did not count them.
    completed: int | None
    completed_tokens: int | None  # of those answers
    in_flight: float | None
    starved_s: float
    cpu_s: float | None
    loop_lag: Lag | None
    overhead: Lag | None  # the calibration; None: not calibrated

    @property
    def measured_from(self) -> float:
        """When its measured window began, in seconds since the epoch."""
        return self.started_at.timestamp() + self.warmup_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """What one session counted in equal intervals; `columns["t_s"]` are their ends since `started_at`."""

    started_at: datetime
    every_s: float
    columns: Mapping[str, Floats]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything read from one run. `rows` is an arrow table: of each measured request the columns of NAMES.

    Texts that repeat are dictionaries, counts are int32: read them through `values`, `numbers` and `is_`.
    """

    folder: Path
    info: Mapping[str, Any]
    state: str  # that of run.json, but "killed" where no one runs it any more
    blocks: tuple[Block, ...]
    series: tuple[Series, ...]
    rows: Any
    warmup_rows: int
    warmup_usd: float
    incomplete_rows: int  # of blocks that did not come to their end
    incomplete_usd: float
    failures: Mapping[str, tuple[int, str]]  # of measured rows: kind -> how many, one message; most frequent first
    repeated_cached: int  # measured rows whose very request was sent before, and that were served from the cache

    @property
    def load(self) -> Mapping[str, Any] | None:
        """run.json's account of the load; None for a batch."""
        load: Mapping[str, Any] | None = self.info.get("load")
        return load

    @property
    def sessions(self) -> Sequence[Mapping[str, Any]]:
        """The sessions of run.json."""
        sessions: Sequence[Mapping[str, Any]] = self.info.get("sessions") or ()
        return sessions

    @property
    def measured(self) -> tuple[Block, ...]:
        """The blocks that count: those that came to their end."""
        return tuple(block for block in self.blocks if block.complete)

    def numbers(self, column: str) -> Floats:
        """One value per row, NaN where it was not measured. A timestamp is seconds since the epoch."""
        found = self.rows.column(column)
        if str(found.type).startswith("timestamp"):
            found = found.cast("int64").to_numpy() / 1e6
        elif str(found.type) == "bool":
            found = found.cast("int8").to_numpy()
        else:
            found = found.to_numpy()
        return np.asarray(found, dtype=np.float64)

    def values(self, column: str, mask: Mask | None = None) -> Floats:
        """The measured values, sorted; of the rows of `mask` alone where it is given."""
        found = self.numbers(column)
        if mask is not None:
            found = found[mask]
        found = found[~np.isnan(found)]
        found.sort()
        return found

    def is_(self, column: str, *wanted: str | float) -> Mask:
        """Which rows have one of these values: a text of a repeating column, or a number."""
        found = self.rows.column(column)
        if not str(found.type).startswith("dictionary"):
            return np.isin(self.numbers(column), wanted)
        found = found.combine_chunks()
        codes = [code for code, text in enumerate(found.dictionary.to_pylist()) if text in wanted]
        # A null has no code: -1 is none.
        return np.isin(found.indices.fill_null(-1).to_numpy(zero_copy_only=False), codes)

    def tally(self, column: str, mask: Mask) -> dict[str, int]:
        """How often each text of a repeating column occurs in the rows of `mask`, the most frequent first."""
        found = self.rows.column(column).combine_chunks()
        codes = found.indices.fill_null(-1).to_numpy(zero_copy_only=False)[mask]
        counts = {text: int((codes == code).sum()) for code, text in enumerate(found.dictionary.to_pylist())}
        return {text: n for text, n in sorted(counts.items(), key=lambda item: -item[1]) if n}

    def sent_at(self) -> Floats:
        """When the last attempt of each row was sent, in seconds since the epoch; NaN for what was never sent."""
        return self.numbers("started_at") + np.nan_to_num(self.numbers("attempts_s"))

    def ended_at(self) -> Floats:
        """When its last answer had ended; NaN where none came."""
        return self.sent_at() + self.numbers("latency_s") + np.nan_to_num(self.numbers("tail_s"))


def read(folder: RunDir, also: Sequence[str] = (), only: Sequence[str] | None = None) -> Evidence:
    """The evidence of a run, rows that are still in the journal included.

    `also` names columns beside NAMES; `only` those of them that are needed: a million values are 8 MB.
    Raises JournalError.
    """
    info = folder.read_info()
    blocks = tuple(_block(entry) for entry in (info.get("load") or {}).get("blocks") or ())
    complete = [block.number for block in blocks if block.complete] if info.get("load") else None
    pending = pending_rows(folder)
    try:
        left_out = _left_out(folder, pending, complete) if complete is not None else {}
        names = [*(NAMES if only is None else [name for name in NAMES if name in {*only, "cached_tokens"}]), *also]
        rows = measured_rows(folder.parts, pending, names, complete)
        failures = error_examples(folder.parts, pending, complete)
        repeated = repeated_and_cached(folder.parts, pending, complete) if _any_cached(rows) else 0
    except OSError as exc:
        raise JournalError(f"{folder.results}: {exc}", hint="`cbatch verify` says which part is damaged") from None
    state = info.get("state", "unknown")
    nothing = (0, 0.0)
    return Evidence(
        folder=folder.path,
        info=info,
        state="killed" if state == "running" and not is_locked(*folder.locks) else state,
        blocks=blocks,
        series=tuple(found for session in info.get("sessions") or () if (found := _series(session)) is not None),
        rows=rows,
        warmup_rows=left_out.get("warmup", nothing)[0],
        warmup_usd=left_out.get("warmup", nothing)[1],
        incomplete_rows=left_out.get("incomplete", nothing)[0],
        incomplete_usd=left_out.get("incomplete", nothing)[1],
        failures=failures,
        repeated_cached=repeated,
    )


def _left_out(
    folder: RunDir, pending: Sequence[Sequence[Any]], complete: Sequence[int]
) -> dict[str, tuple[int, float]]:
    """How many rows are in no figure, and what they cost, by why."""
    rows = measured_rows(folder.parts, pending, ("load_block", "load_phase", "cost_usd"), None)
    grouped = rows.group_by(["load_block", "load_phase"]).aggregate([([], "count_all"), ("cost_usd", "sum")])
    found: dict[str, tuple[int, float]] = {}
    for group in grouped.to_pylist():
        is_warmup = group["load_phase"] == "warmup"
        if is_warmup or group["load_block"] not in complete:
            why = "warmup" if is_warmup else "incomplete"
            count, usd = found.get(why, (0, 0.0))
            found[why] = (count + group["count_all"], usd + (group["cost_usd_sum"] or 0.0))
    return found


def pending_rows(folder: RunDir) -> list[list[Any]]:
    """The rows that are safe in the journal and not in a part yet."""
    if not folder.journal.exists():
        return []
    journal = Journal(folder.journal)
    try:
        # A part that was planned when the run was killed has a file only if it came as far as the rename.
        planned = (part for part in journal.parts() if part.state == PLANNED)
        ranges = [(p.first_seq, p.last_seq) for p in planned if not (folder.results / p.name).exists()]
        return [row for first, last in (*ranges, journal.unplaced()) for _, row in journal.bodies(first, last)]
    finally:
        journal.close()


def _any_cached(rows: Any) -> bool:
    column = rows.column("cached_tokens")
    return bool(column.null_count < len(column) and column.drop_null().to_numpy().any())


def _lag(value: Mapping[str, Any] | None) -> Lag | None:
    if not value or value.get("p50") is None or value.get("p99") is None:
        return None
    return Lag(p50=value["p50"], p99=value["p99"], max=value.get("max"), n=value.get("n") or 0)


def _block(entry: Mapping[str, Any]) -> Block:
    return Block(
        number=entry["block"],
        model=entry["model"],
        repeat=entry.get("repeat") or 0,
        level=float(entry["level"]),
        unit=entry.get("unit") or "in flight",
        started_at=moment(entry["started_at"]),
        warmup_s=entry.get("warmup_s") or 0.0,
        measured_s=entry.get("measured_s") or 0.0,
        complete=bool(entry.get("complete")),
        requests=entry.get("requests") or 0,
        failed=entry.get("failed") or 0,
        rate_limited=entry.get("rate_limited") or 0,
        completed=entry.get("completed"),
        completed_tokens=entry.get("completed_tokens"),
        in_flight=entry.get("in_flight"),
        starved_s=entry.get("starved_s") or 0.0,
        cpu_s=entry.get("cpu_s"),
        loop_lag=_lag(entry.get("loop_lag_s")),
        overhead=_lag(entry.get("overhead_s")),
    )


def _series(session: Mapping[str, Any]) -> Series | None:
    found = session.get("series")
    if not found or not found.get("rows") or not session.get("started_at"):
        return None
    table = np.array(found["rows"], dtype=np.float64)
    return Series(
        started_at=moment(session["started_at"]),
        every_s=found["every_s"],
        columns={name: table[:, place] for place, name in enumerate(found["columns"])},
    )


def moment(text: str) -> datetime:
    """An aware UTC time from run.json's text."""
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)
