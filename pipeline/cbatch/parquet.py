"""Iterable[row] -> one Parquet part, staged, fsynced and published by rename; and back again.

`results/` holds parts and nothing else: a hidden file or a _SUCCESS marker beside them breaks
polars, duckdb or a Hugging Face loader. A part is written in row groups, so memory does not
depend on its size, and always with the same settings, so the same rows give the same bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cbatch.schema import COLUMN_INDEX, COLUMNS

GROUP_ROWS = 2_048  # a row group: 2-4 MB of answers
GROUP_BYTES = 16 << 20  # or this much text, whichever comes first
PART_COLUMNS = ("id", "model", "sample", "digest", "status", "attempts")  # enough to know which rows a part holds

# Columns whose values repeat. A dictionary of values that are all different costs time and 15 % more bytes.
REPEATING = ["model", "status", "finish_reason", "error_kind", "error_code", "served_model", "system_fingerprint"]

_LONG = [COLUMN_INDEX[name] for name in ("text", "reasoning", "tool_calls", "input")]  # where the bytes are

_TYPES = {
    "string": pa.string(),
    "int64": pa.int64(),
    "int32": pa.int32(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}


def schema(carried: Mapping[str, str]) -> pa.Schema:
    """The schema of every part of a run: COLUMNS, then the carried columns with their types."""
    described = [pa.field(name, _TYPES[kind], metadata={"description": text}) for name, kind, text in COLUMNS]
    return pa.schema([*described, *(pa.field(name, _TYPES[kind]) for name, kind in carried.items())])


def write_part(rows: Iterable[Sequence[Any]], carried: Mapping[str, str], staged: Path, final: Path) -> str:
    """Write `rows` to `staged`, make it durable, rename it to `final`; returns its sha-256.

    Both paths are on one file system. A reader sees the old file, the new file, or none: never half.
    Raises OSError.
    """
    layout = schema(carried)
    staged.parent.mkdir(0o700, exist_ok=True)
    try:
        with pq.ParquetWriter(
            staged, layout, compression="zstd", compression_level=3, use_dictionary=REPEATING
        ) as writer:
            for group in _groups(rows):
                columns = [_column(*pair) for pair in zip(zip(*group, strict=True), layout.types, strict=True)]
                writer.write_table(pa.Table.from_arrays(columns, schema=layout), row_group_size=len(group))
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as exc:
        raise OSError(f"a value does not fit its column: {exc}") from exc
    with staged.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not final.parent.exists():
        final.parent.mkdir()
        fsync_folder(final.parent.parent)
    staged.replace(final)
    fsync_folder(final.parent)
    return digest


def _column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    # A third of the columns is empty in most runs, and pyarrow takes its time to find out.
    if values[0] is None and values.count(None) == len(values):
        return pa.nulls(len(values), kind)
    return pa.array(values, kind)


def _groups(rows: Iterable[Sequence[Any]]) -> Iterator[list[Sequence[Any]]]:
    group: list[Sequence[Any]] = []
    size = 0
    for row in rows:
        group.append(row)
        size += text_length(row)
        if len(group) == GROUP_ROWS or size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def text_length(row: Sequence[Any]) -> int:
    """The characters of a row in the columns that can be long."""
    return sum([len(row[place] or "") for place in _LONG])


def read_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[list[Any]]:
    """The rows of a part as lists, timestamps as µs: what `write_part` was given. Raises OSError."""
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=GROUP_ROWS, columns=columns, use_threads=False):
                lists = [
                    (column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column).to_pylist()
                    for column in (batch.select(columns) if columns else batch).columns
                ]
                yield from map(list, zip(*lists, strict=True))
    except pa.ArrowException as exc:
        raise OSError(f"{path}: not a readable Parquet file: {exc}") from None


def is_part(path: Path) -> bool:
    """Whether a Parquet file has the columns of a part. Raises OSError if it is not a Parquet file."""
    try:
        return set(PART_COLUMNS) <= set(pq.read_schema(path).names)
    except pa.ArrowException as exc:
        raise OSError(f"not a Parquet file: {exc}") from None


def types_of(path: Path) -> dict[str, str]:
    """The carried columns of a part and their types, as `schema` takes them."""
    names = {name for name, _, _ in COLUMNS}
    back = {kind: name for name, kind in _TYPES.items()}
    return {field.name: back.get(field.type, "string") for field in pq.read_schema(path) if field.name not in names}


def sha256(path: Path) -> str:
    """The sha-256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_folder(path: Path) -> None:
    """Make a rename in `path` durable: the name is data of the folder, not of the file."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def table(parts: Sequence[Path], pending: Sequence[Sequence[Any]], columns: Sequence[str]) -> pa.Table:
    """The named result columns of all parts, and of rows that are not in a part yet."""
    import pyarrow.dataset as ds  # only reports need it, and it imports pandas where that is installed (25 MB)

    everything = schema({})
    layout = pa.schema([everything.field(name) for name in columns])
    tables = []
    if parts:
        tables.append(
            ds.dataset([str(p) for p in parts], format="parquet").to_table(columns=list(columns)).cast(layout)
        )
    if pending:
        places = [everything.get_field_index(name) for name in columns]
        tables.append(
            pa.Table.from_arrays(
                [pa.array([row[i] for row in pending], layout.field(n).type) for n, i in enumerate(places)],
                schema=layout,
            )
        )
    return pa.concat_tables(tables) if tables else layout.empty_table()


def quantiles(column: pa.ChunkedArray, levels: Sequence[float]) -> list[float] | None:
    """The quantiles of the measured values (nulls left out); None where nothing was measured."""
    found = pc.quantile(column, q=list(levels), interpolation="linear", skip_nulls=True).to_pylist()
    return None if not found or found[0] is None else found


def where(rows: pa.Table, column: str, value: str) -> pa.Table:
    """The rows whose column has this value."""
    return rows.filter(pc.equal(rows.column(column), value))


def tally(column: pa.ChunkedArray) -> dict[str, int]:
    """How often each value occurs, nulls left out."""
    counts = pc.value_counts(column.drop_null()).to_pylist()
    return {str(entry["values"]): entry["counts"] for entry in sorted(counts, key=lambda e: -e["counts"])}


def failures(rows: pa.Table) -> dict[str, tuple[int, str]]:
    """How often each `error_kind` occurs and one message of it, the most frequent first."""
    kinds = tally(rows.column("error_kind"))
    return {
        kind: (count, where(rows, "error_kind", kind).column("error_message")[0].as_py() or "")
        for kind, count in kinds.items()
    }


def total(column: pa.ChunkedArray) -> float:
    """The sum of the measured values; 0 where nothing was measured."""
    found = pc.sum(column).as_py()
    return float(found or 0)
