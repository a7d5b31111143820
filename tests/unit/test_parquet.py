"""Parts: whole or not there, the same bytes for the same rows, and a plain dataset for everyone else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbatch import parquet
from cbatch.parquet import is_part, read_rows, schema, sha256, text_length, types_of, write_part
from cbatch.schema import COLUMN_INDEX, COLUMNS

CARRIED = {"grade": "int64", "score": "float64", "good": "bool", "note": "string"}
MICROSECONDS = 1_700_000_000_123_456

_VALUES = {
    "string": st.text(st.characters(codec="utf-8"), max_size=30),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "int32": st.integers(-(2**31), 2**31 - 1),
    "float64": st.floats(allow_nan=False),
    "bool": st.booleans(),
    "timestamp": st.integers(0, 4_000_000_000_000_000),
}
_TYPES = [*(kind for _, kind, _ in COLUMNS), *CARRIED.values()]
rows_of_any_kind = st.lists(st.tuples(*(st.none() | _VALUES[kind] for kind in _TYPES)).map(list), max_size=5)


def row(number: int, **values: Any) -> list[Any]:
    found: list[Any] = [None] * (len(COLUMNS) + len(CARRIED))
    values = {"id": f"p{number}", "index": number, "sample": 0, "started_at": MICROSECONDS + number} | values
    for name, value in values.items():
        found[COLUMN_INDEX[name]] = value
    return found


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parts")


def write(folder: Path, rows: Any, carried: dict[str, str] = CARRIED) -> tuple[Path, str]:
    final = folder / "results" / "part-00000.parquet"
    return final, write_part(rows, carried, folder / "staging" / final.name, final)


@given(rows=rows_of_any_kind)
def test_every_type_and_every_null_comes_back_as_it_was_given(scratch: Path, rows: list[list[Any]]) -> None:
    """All columns, all null or not, in the order given; the hash that is recorded is the file's."""
    final, digest = write(scratch, rows)
    assert list(read_rows(final)) == rows
    assert digest == sha256(final) == hashlib.sha256(final.read_bytes()).hexdigest()
    assert pq.read_schema(final).remove_metadata() == schema(CARRIED)


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    """A part that is made again after a crash is the part that was lost."""
    rows = [row(n, text="x" * n) for n in range(300)]
    first, second = write(tmp_path, rows)[1], write(tmp_path / ".", iter(rows))[1]
    assert first == second


def test_times_are_utc_to_the_microsecond(tmp_path: Path) -> None:
    final, _ = write(tmp_path, [row(0)])
    value = pq.read_table(final).column("started_at")
    assert value.type == pa.timestamp("us", tz="UTC")
    assert value[0].as_py() == datetime.fromtimestamp(MICROSECONDS // 10**6, UTC).replace(microsecond=123_456)


@pytest.mark.parametrize(
    ("rows", "groups"),
    [
        pytest.param([row(n) for n in range(25)], [10, 10, 5], id="many small rows are cut by number"),
        pytest.param([row(n, text="x" * 600) for n in range(5)], [2, 2, 1], id="long rows are cut by size"),
        pytest.param([row(0, text="x" * 5_000), row(1)], [1, 1], id="a row larger than a group stands alone"),
        pytest.param([], [], id="no row, no group"),
    ],
)
def test_a_row_group_is_bounded_in_rows_and_in_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[list[Any]], groups: list[int]
) -> None:
    """Memory does not grow with the size of a part."""
    monkeypatch.setattr(parquet, "GROUP_ROWS", 10)
    monkeypatch.setattr(parquet, "GROUP_BYTES", 1_000)
    pulled = 0

    def pull() -> Iterator[list[Any]]:
        nonlocal pulled
        for one in rows:
            pulled += 1
            yield one

    final, _ = write(tmp_path, pull())
    meta = pq.read_metadata(final)
    assert [meta.row_group(n).num_rows for n in range(meta.num_row_groups)] == groups
    assert pulled == len(rows)


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(row(1, index="not a number"), id="text in a number column"),
        pytest.param(row(1, index=2**63), id="a number over 64 bits"),
        pytest.param(row(1, text="half an emoji \ud83d"), id="text that is not Unicode"),
        pytest.param(row(1)[:-1], id="a column too few"),
    ],
)
def test_a_value_that_does_not_fit_leaves_the_old_part_as_it_was(tmp_path: Path, bad: list[Any]) -> None:
    """A part is replaced whole or not at all, and the reason is an OSError."""
    final, digest = write(tmp_path, [row(0)])
    with pytest.raises(OSError, match="does not fit its column"):
        write(tmp_path, [row(0), bad])
    assert sha256(final) == digest


def test_a_reader_never_meets_half_a_part(tmp_path: Path) -> None:
    """While a part is written and rewritten, results/ holds nothing, the old one, or the new one."""
    results = tmp_path / "results"
    seen: list[list[str]] = []

    def look(rows: list[list[Any]]) -> Iterator[list[Any]]:
        for one in rows:
            seen.append(sorted(p.name for p in results.glob("**/*")) if results.exists() else [])
            if seen[-1]:
                assert pq.read_table(results / "part-00000.parquet").num_rows == 1
            yield one

    write(tmp_path, look([row(0)]))
    write(tmp_path, look([row(n) for n in range(3)]))
    assert seen == [[]] + [["part-00000.parquet"]] * 3
    assert not list((tmp_path / "staging").iterdir())


def test_results_are_a_plain_dataset(tmp_path: Path) -> None:
    """Nothing but parts, all with one schema: what pandas, polars, duckdb and datasets expect of a folder."""
    results = tmp_path / "results"
    for n in range(3):
        name = f"part-{n:05d}.parquet"
        rows = [row(10 * n + m, text=None if n else "x") for m in range(4)]  # a column of nulls keeps its type
        write_part(rows, CARRIED, tmp_path / "staging" / name, results / name)
    assert sorted(p.name for p in results.rglob("*")) == [f"part-{n:05d}.parquet" for n in range(3)]
    table = ds.dataset(results).to_table()
    assert table.num_rows == 12
    assert table.schema.remove_metadata() == schema(CARRIED)
    assert types_of(results / "part-00001.parquet") == CARRIED


def test_a_file_that_is_no_part_is_recognised(tmp_path: Path) -> None:
    other, text = tmp_path / "other.parquet", tmp_path / "text.parquet"
    pq.write_table(pa.table({"a": [1]}), other)
    text.write_text("hello")
    assert not is_part(other)
    assert is_part(write(tmp_path, [row(0)])[0])
    for read in (is_part, lambda path: list(read_rows(path))):
        with pytest.raises(OSError, match="not a"):
            read(text)


def test_a_truncated_part_is_an_error_not_fewer_rows(tmp_path: Path) -> None:
    final, _ = write(tmp_path, [row(n) for n in range(50)])
    data = final.read_bytes()
    final.write_bytes(data[: len(data) - 20])
    with pytest.raises(OSError, match="not a readable Parquet file"):
        list(read_rows(final))


def test_the_length_of_a_row_is_that_of_its_long_columns_and_not_of_the_carried_ones() -> None:
    """Parts and row groups are cut by it: an input row counts, whatever columns stand behind it."""
    row: list[Any] = [None] * len(COLUMNS)
    for name, text in (("id", "0123456789"), ("text", "ab"), ("reasoning", "cde"), ("input", "fghi")):
        row[COLUMN_INDEX[name]] = text
    assert text_length([*row, "a carried column"]) == 9
