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

# Reports hold every row of these at once: a code for a repeating text, half the bytes for a count.
_TEXT = pa.dictionary(pa.int32(), pa.string())
_SMALL: dict[str, pa.DataType] = {
    **dict.fromkeys((*REPEATING, "status", "load_phase"), _TEXT),
    **{name: pa.int32() for name, kind, _ in COLUMNS if kind == "int64"},
}

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
    """The rows of a part as lists, timestamps as µs: what `write_part` was given. Raises OSError.

    Of `columns` that a part of an older version does not have, the values are None.
    """
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            there = file.schema_arrow.names if columns is None else [n for n in columns if n in file.schema_arrow.names]
            for batch in file.iter_batches(batch_size=GROUP_ROWS, columns=there, use_threads=False):
                lists = [
                    (column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column).to_pylist()
                    for column in batch.select(there).columns
                ]
                if columns is not None and len(there) < len(columns):
                    found = dict(zip(there, lists, strict=True))
                    lists = [found.get(name, [None] * batch.num_rows) for name in columns]
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


def _small(names: Sequence[str]) -> pa.Schema:
    full = schema({})
    return pa.schema([pa.field(name, _SMALL.get(name, full.field(name).type)) for name in names])


def _scan(
    parts: Sequence[Path], pending: Sequence[Sequence[Any]], names: Sequence[str], complete: Sequence[int] | None
) -> Iterator[pa.Table]:
    """The named columns part by part, in small types; of measured rows alone where the `complete` blocks are named.

    A column that a part of an older version does not have is null. Not a dataset: one keeps the metadata of all
    its parts, and reads ahead.
    """
    # Arrow's own pool keeps what reading frees: 150 MB after a million rows, as much again as half of what is kept.
    pool = pa.system_memory_pool()
    pa.set_memory_pool(pool)
    filtered = ("load_phase", "load_block") if complete is not None else ()
    layout = _small([*names, *(name for name in filtered if name not in names)])
    for path in parts:
        yield _measured(_read_part(path, layout), complete).select(list(names))
        pool.release_unused()
    if pending:
        full = schema({})
        places = [full.get_field_index(name) for name in layout.names]
        arrays = [
            pa.array([row[place] for row in pending], full.field(place).type).cast(small.type)
            for place, small in zip(places, layout, strict=True)
        ]
        yield _measured(pa.Table.from_arrays(arrays, schema=layout), complete).select(list(names))


def _read_part(path: Path, layout: pa.Schema) -> pa.Table:
    try:
        about = pq.read_metadata(path)
        there = set(about.schema.to_arrow_schema().names)
        texts = [field.name for field in layout if field.name in there and pa.types.is_dictionary(field.type)]
        with pq.ParquetFile(path, metadata=about, pre_buffer=False, read_dictionary=texts) as file:
            found = file.read([name for name in layout.names if name in there], use_threads=False)
    except pa.ArrowException as exc:
        raise OSError(f"{path}: not a readable Parquet file: {exc}") from None
    columns = [
        found.column(field.name).cast(field.type) if field.name in there else pa.nulls(found.num_rows, field.type)
        for field in layout
    ]
    return pa.Table.from_arrays(columns, schema=layout)


def _measured(rows: pa.Table, complete: Sequence[int] | None) -> pa.Table:
    if complete is None:
        return rows
    blocks = pc.is_in(rows.column("load_block"), value_set=pa.array(list(complete), pa.int32()))
    return rows.filter(pc.and_(pc.equal(rows.column("load_phase"), "measure"), blocks))


def measured_rows(
    parts: Sequence[Path], pending: Sequence[Sequence[Any]], names: Sequence[str], complete: Sequence[int] | None
) -> pa.Table:
    """The named columns: of all rows, or of the measured ones of the `complete` blocks.

    Repeating texts are dictionaries, one for the whole table, and counts are int32.
    """
    found = list(_scan(parts, pending, names, complete))
    return pa.concat_tables(found).unify_dictionaries() if found else _small(names).empty_table()


def error_examples(
    parts: Sequence[Path], pending: Sequence[Sequence[Any]], complete: Sequence[int] | None
) -> dict[str, tuple[int, str]]:
    """As `failures`, without holding a message per row."""
    found: dict[str, tuple[int, str]] = {}
    for rows in _scan(parts, pending, ("status", "error_kind", "error_message"), complete):
        bad = rows.filter(pc.equal(rows.column("status"), "error"))
        for kind, count in tally(bad.column("error_kind")).items():
            before, example = found.get(kind, (0, ""))
            if not example:
                example = where(bad, "error_kind", kind).column("error_message")[0].as_py() or ""
            found[kind] = (before + count, example)
    return dict(sorted(found.items(), key=lambda item: -item[1][0]))


def repeated_and_cached(parts: Sequence[Path], pending: Sequence[Sequence[Any]], complete: Sequence[int] | None) -> int:
    """How many rows came from the server's cache and had the same request as a row before."""
    seen: set[int] = set()
    count = 0
    for rows in _scan(parts, pending, ("digest", "cached_tokens"), complete):
        for digest, cached in zip(*(column.to_pylist() for column in rows.columns), strict=True):
            key = hash(digest)  # a million digests as text would be 120 MB
            if key in seen:
                count += bool(cached)
            else:
                seen.add(key)
    return count


def numbered(column: pa.ChunkedArray, first: pa.Array | None = None) -> tuple[Any, pa.Array]:
    """Each value as its place among the different ones, those of `first` where given (-1: not there); and these."""
    known = column.unique() if first is None else first
    places = pc.index_in(column, value_set=known).fill_null(-1)
    return places.to_numpy().astype("int64"), known
