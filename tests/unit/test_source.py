"""Rows are read from every format in the same way: streamed, each with a stable id, none dropped in silence."""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import io
import json
import tracemalloc
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from cbatch.errors import JobError, SourceError
from cbatch.formats import Row
from cbatch.job import Job
from cbatch.schema import Prompt
from cbatch.source import Source, Survey, carried, check_carry


def write(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def source(folder: Path, path: Any, *, carry: list[str] | None = None, cut: int | None = None, **keys: Any) -> Source:
    spec = {"path": path, **keys}
    made = {
        "name": "j",
        "model": "m",
        "input": spec,
        "prompt": "x",
        "folder": str(folder),
        "results": {"carry": carry or []},
    }
    return Source(Job.model_validate(made), limit=cut)


def rows(folder: Path, name: str, content: bytes | str, **keys: Any) -> list[Row]:
    write(folder, name, content)
    return list(source(folder, name, **keys).rows())


def fields(found: list[Row]) -> list[dict[str, Any] | None]:
    return [row.fields for row in found]


def prompts(made: Source) -> list[Prompt]:
    return list(made.prompts(made.survey(), ("m",)))


def ids(made: Source) -> list[str]:
    return [prompt.id for prompt in prompts(made)]


def lines(*objects: Any) -> str:
    return "".join(json.dumps(each) + "\n" for each in objects)


# -- JSON Lines ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(b'{"q": 1}\n{"q": 2}\n', [1, 2], id="a line is a row"),
        pytest.param(b'{"q": 1}\r\n{"q": 2}\r\n', [1, 2], id="CRLF ends a line"),
        pytest.param(b'\xef\xbb\xbf{"q": 1}\n', [1], id="a byte order mark is no part of it"),
        pytest.param(
            b'\n\n{"q": 1}\n   \n{"q": 2}', [1, 2], id="blank lines are nothing, and the last needs no newline"
        ),
        pytest.param('{"q": "a\u2028b\u0085c"}\n'.encode(), ["a\u2028b\u0085c"], id="U+2028 and U+0085 end no line"),
        pytest.param(b'{"q": "a\\u0000b"}\n', ["a\0b"], id="an escaped NUL is text"),
        pytest.param(b'{"q": "\\ud83d\\ude00"}\n', ["\U0001f600"], id="a surrogate pair is one character"),
        pytest.param(b'{"q": 18446744073709551615}\n', [2**64 - 1], id="64 bits are exact"),
    ],
)
def test_json_lines_are_read_line_by_line(tmp_path: Path, content: bytes, expected: list[Any]) -> None:
    assert [row["q"] for row in fields(rows(tmp_path, "a.jsonl", content)) if row] == expected


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        pytest.param(b'{"q":', "not valid JSON: unexpected end of data (column 6)", id="a broken object"),
        pytest.param(b"[1]", "not a JSON object but a list", id="a list"),
        pytest.param(b"3", "not a JSON object but a number", id="a number"),
        pytest.param(b'"x"', "not a JSON object but text", id="text"),
        pytest.param(b"null", "not a JSON object but null", id="null"),
        pytest.param(b'{"q": NaN}', "not valid JSON: unexpected character", id="NaN"),
        pytest.param(b'{"q": "\\ud800"}', "not valid JSON: no low surrogate in string", id="half a surrogate pair"),
        pytest.param(b'{"q": "a\0b"}', "not valid JSON: unexpected control character", id="a NUL"),
        pytest.param(b'{"q": "\xff"}', "not UTF-8 text", id="a byte that is not UTF-8"),
        pytest.param(b'{"q": 1' + b"0" * 400 + b"}", "not valid JSON: number is infinity", id="400 digits"),
        pytest.param(b'{"q": ' + b"[" * 2000 + b"]" * 2000 + b"}", "not valid JSON: depth limit", id="2,000 brackets"),
    ],
)
def test_a_broken_line_is_named_and_the_others_run(tmp_path: Path, line: bytes, problem: str) -> None:
    good, broken, last = rows(tmp_path, "a.jsonl", b'{"q": 1}\n' + line + b'\n{"q": 3}\n')
    assert (good.problem, last.problem, last.number, last.origin) == (None, None, 2, "a.jsonl:3")
    assert (broken.fields, broken.origin, broken.number) == (None, "a.jsonl:2", 1)
    assert (broken.problem or "").startswith(problem)


def test_a_line_of_ten_megabytes_is_a_row(tmp_path: Path) -> None:
    (row,) = fields(rows(tmp_path, "a.jsonl", b'{"q": "' + b"x" * 10_000_000 + b'"}\n'))
    assert row is not None
    assert len(row["q"]) == 10_000_000


def test_the_row_is_kept_as_it_was_written(tmp_path: Path) -> None:
    (row,) = rows(tmp_path, "a.jsonl", '{"b":  1.50, "a": "\\u00e9"}\n')
    assert row.raw == b'{"b":  1.50, "a": "\\u00e9"}'


# -- JSON arrays --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(b'[{"q": 1},\n {"q": 2}]', [{"q": 1}, {"q": 2}], id="an array of objects"),
        pytest.param(b'\xef\xbb\xbf \n[{"q": 1}]', [{"q": 1}], id="a byte order mark and blanks before it"),
        pytest.param(b'{"q": 1}\n{"q": 2}\n', [{"q": 1}, {"q": 2}], id="one object a line"),
        pytest.param(b'[{"q": 1.5, "a": [null, true]}]', [{"q": 1.5, "a": [None, True]}], id="values of every kind"),
        pytest.param(b'[{"q": 1}, 3]', [{"q": 1}, None], id="what is no object is a broken row"),
    ],
)
def test_a_json_file_is_an_array_or_json_lines(tmp_path: Path, content: bytes, expected: list[Any]) -> None:
    assert fields(rows(tmp_path, "a.json", content)) == expected


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(b'[{"q": 1}, {"q": 2}, {"q"', "a.json[2]: not valid JSON: ", id="cut off"),
        pytest.param(b'[{"q": 1}, {"q" 2}]', "a.json[1]: not valid JSON: ", id="a missing colon"),
        pytest.param(b'[{"q": 1}]\n[{"q": 2}]', "a.json[1]: not valid JSON: ", id="two arrays"),
        pytest.param(b"[{'q': 1}]", "a.json[0]: not valid JSON: ", id="Python instead of JSON"),
        pytest.param(b'[{"q": "\xff"}]', "a.json[0]: not valid JSON: lexical error: invalid bytes", id="not UTF-8"),
        pytest.param(b'{\n  "q": 1\n}', "a.json: one JSON object over several lines", id="one object, pretty-printed"),
    ],
)
def test_a_broken_array_is_refused_with_the_place(tmp_path: Path, content: bytes, said: str) -> None:
    """Past the break nothing can be told apart, so there are no rows to save."""
    with pytest.raises(SourceError) as caught:
        rows(tmp_path, "a.json", content)
    assert said in str(caught.value)


def test_an_element_that_is_nested_too_deeply_is_a_broken_row(tmp_path: Path) -> None:
    deep = b'[{"q": ' + b"[" * 2000 + b"]" * 2000 + b'}, {"q": 1}]'
    assert [row.problem for row in rows(tmp_path, "a.json", deep)] == ["nested too deeply", None]


# -- CSV ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        pytest.param(
            "a.csv", 'q,a\r\n"x, y","1\n2"\r\n', [{"q": "x, y", "a": "1\n2"}], id="quotes hold commas and newlines"
        ),
        pytest.param("a.csv", 'q\n"say ""hi"""\n', [{"q": 'say "hi"'}], id="two quotes are one"),
        pytest.param("a.csv", 'q,a\nx"y,2\n', [{"q": 'x"y', "a": "2"}], id="a quote inside a field is text"),
        pytest.param(
            "a.csv", "\ufeffq,a\n1,2\n", [{"q": "1", "a": "2"}], id="a byte order mark is no part of the header"
        ),
        pytest.param("a.csv", "\n\nq,a\n\n1,2\n\n", [{"q": "1", "a": "2"}], id="blank lines are nothing"),
        pytest.param("a.csv", 'q\n""\n', [{"q": ""}], id="an empty field is empty text"),
        pytest.param("a.csv", "q,a\r1,2\r", [{"q": "1", "a": "2"}], id="old Mac line ends"),
        pytest.param("a.csv", "q,,\n1,2,3\n", [{"q": "1", "": "3"}], id="columns without a name"),
        pytest.param("a.csv", f"q\n{'x' * 300_000}\n", [{"q": "x" * 300_000}], id="a field beyond csv's own limit"),
        pytest.param("a.tsv", "q\ta\n1\t2,3\n", [{"q": "1", "a": "2,3"}], id="tabs in .tsv"),
    ],
)
def test_csv_is_read_as_spreadsheets_write_it(tmp_path: Path, name: str, content: str, expected: list[Any]) -> None:
    assert fields(rows(tmp_path, name, content)) == expected


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        pytest.param(b"1,2,3", "more fields than the header names: 3 for 2", id="more fields"),
        pytest.param(b"1", "fewer fields than the header names: 1 for 2", id="fewer fields"),
        pytest.param(b"\xff,2", "not UTF-8 text", id="a byte that is not UTF-8"),
        pytest.param(b'"a"b,2', "not valid CSV: ", id="text after a quoted field"),
    ],
)
def test_a_broken_csv_row_is_named_and_the_others_run(tmp_path: Path, line: bytes, problem: str) -> None:
    good, broken, last = rows(tmp_path, "a.csv", b'q,a\n"1\n1",2\n' + line + b"\n5,6\n")
    assert (good.origin, good.problem, last.fields) == ("a.csv:2", None, {"q": "5", "a": "6"})
    assert (broken.fields, broken.origin) == (None, "a.csv:4")
    assert (broken.problem or "").startswith(problem)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(
            'q,a\n1,2\n"x,2\n3,4\n', "a.csv:3: a quote that opens in this row is never closed", id="an open quote"
        ),
        pytest.param("q,a,q\n1,2,3\n", "a.csv: two columns have the name 'q'", id="two columns of one name"),
    ],
)
def test_a_csv_that_would_lose_data_is_refused(tmp_path: Path, content: str, said: str) -> None:
    """An open quote would swallow the rows after it; of two columns with one name only the last would be seen."""
    with pytest.raises(SourceError) as caught:
        rows(tmp_path, "a.csv", content)
    assert said in str(caught.value)


# -- Parquet ------------------------------------------------------------------------------------


def test_parquet_values_of_every_type_are_rows_and_json(tmp_path: Path) -> None:
    noon = dt.datetime(2026, 1, 2, 12, tzinfo=dt.UTC)
    table = pa.table(
        {
            "text": ["é", None],
            "int": pa.array([2**63 - 1, None], pa.int64()),
            "unsigned": pa.array([2**64 - 1, 1], pa.uint64()),
            "time": pa.array([noon, None], pa.timestamp("us", "UTC")),
            "pandas": pa.array([1_000_000_001, None], pa.timestamp("ns")),
            "took": pa.array([1_500, None], pa.duration("ns")),
            "price": [Decimal("1.10"), None],
            "bytes": [b"\xff\x00", None],
            "nested": [{"a": [1, 2], "b": {"c": "d"}}, None],
            "nothing": pa.nulls(2),
            "nan": [float("nan"), 1.0],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    first, second = source(tmp_path, "a.parquet").rows()
    assert first.fields is not None
    assert (first.origin, second.origin) == ("a.parquet#0", "a.parquet#1")
    assert first.fields["text"] == "é"
    assert first.fields["time"] == noon
    assert first.fields["pandas"] == dt.datetime.fromisoformat("1970-01-01T00:00:01")
    assert first.fields["took"] == dt.timedelta(microseconds=1)
    written = json.loads(first.raw)
    assert written["int"] == 2**63 - 1
    assert written["unsigned"] == 2**64 - 1
    assert written["time"] == "2026-01-02T12:00:00+00:00"
    assert written["price"] == "1.10"
    assert written["nested"] == {"a": [1, 2], "b": {"c": "d"}}
    assert json.loads(second.raw)["nested"] is None


@pytest.mark.parametrize("content", [pytest.param(b"", id="nothing"), pytest.param(b"PAR1xxxxPAR1", id="not Parquet")])
def test_a_broken_parquet_file_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(SourceError, match=r"a\.parquet: cannot be read after row 0: "):
        rows(tmp_path, "a.parquet", content)


def test_parquet_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["q", "q"]), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match="two columns have the name 'q'"):
        list(source(tmp_path, "a.parquet").rows())


# -- compressed ---------------------------------------------------------------------------------


def _zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


PACKERS = [pytest.param(".gz", gzip.compress, id="gzip"), pytest.param(".zst", _zstd, id="zstd")]


@pytest.mark.parametrize(("suffix", "pack"), PACKERS)
def test_compressed_files_are_read_with_all_their_frames(tmp_path: Path, suffix: str, pack: Any) -> None:
    """`cat a.gz b.gz > c.gz` is a file of two frames; stopping after the first would lose rows."""
    assert fields(rows(tmp_path, f"a.jsonl{suffix}", pack(b'{"q": 1}\n') + pack(b'{"q": 2}\n'))) == [{"q": 1}, {"q": 2}]
    assert fields(rows(tmp_path, f"a.csv{suffix}", pack(b"q\n1\n"))) == [{"q": "1"}]
    assert fields(rows(tmp_path, f"a.TSV{suffix.upper()}", pack(b"q\ta\n1\t2\n"))) == [{"q": "1", "a": "2"}]
    assert fields(rows(tmp_path, f"a.json{suffix}", pack(b'[{"q": 1}]'))) == [{"q": 1}]


@pytest.mark.parametrize(("suffix", "pack"), PACKERS)
def test_a_compressed_file_that_is_cut_off_is_refused(tmp_path: Path, suffix: str, pack: Any) -> None:
    """Half a download must not pass for a short file."""
    packed = pack(lines(*({"q": number} for number in range(5_000))).encode())
    for broken in (packed[:-5], packed[: len(packed) // 2], b"not compressed"):
        with pytest.raises(SourceError, match="cannot be read after row"):
            rows(tmp_path, f"a.jsonl{suffix}", broken)


def test_zstd_frames_of_other_writers_are_read(tmp_path: Path) -> None:
    packed = zstandard.ZstdCompressor(write_content_size=False).compress(b'{"q": 1}\n')
    assert fields(rows(tmp_path, "a.jsonl.zst", packed * 2)) == [{"q": 1}, {"q": 1}]


# -- which files --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        pytest.param("a/1.jsonl", [1], id="a path"),
        pytest.param(["a/2.jsonl", "a/1.jsonl"], [2, 1], id="a list keeps its order"),
        pytest.param(["a/2.jsonl", "a/*.jsonl"], [2, 1], id="a file that is named twice is read once"),
        pytest.param("a/*.jsonl", [1, 2], id="a glob is sorted"),
        pytest.param("**/*.jsonl", [1, 2, 3], id="two stars go into folders"),
        pytest.param("a/[odd].jsonl", [4], id="a file whose name looks like a glob"),
    ],
)
def test_paths_and_globs_start_at_the_folder_of_the_job(tmp_path: Path, path: Any, expected: list[int]) -> None:
    write(tmp_path, "a/1.jsonl", lines({"q": 1}))
    write(tmp_path, "a/2.jsonl", lines({"q": 2}))
    write(tmp_path, "b/3.jsonl", lines({"q": 3}))
    if "odd" in path:
        write(tmp_path, "a/[odd].jsonl", lines({"q": 4}))
    found = list(source(tmp_path, path).rows())
    assert [row["q"] for row in fields(found) if row] == expected
    assert [row.number for row in found] == list(range(len(expected)))
    if isinstance(path, str):
        assert fields(list(source(Path("/"), str(tmp_path / path)).rows())) == fields(found)


@pytest.mark.parametrize(
    ("path", "keys", "said"),
    [
        pytest.param("no.jsonl", {}, "no.jsonl: no such file", id="a missing file"),
        pytest.param(["a.jsonl", "no.jsonl"], {}, "no.jsonl: no such file", id="a missing file in a list"),
        pytest.param("no/*.jsonl", {}, "no/*.jsonl: no file matches", id="a glob of nothing"),
        pytest.param(".", {}, "a folder, not a file", id="a folder"),
        pytest.param("a.txt", {}, "a.txt: the format is not known from the name", id="an unknown suffix"),
        pytest.param("noend", {}, "noend: the format is not known from the name", id="no suffix"),
        pytest.param("a.gz", {}, "a.gz: the format is not known from the name", id="only .gz"),
        pytest.param("a.parquet.gz", {}, "a Parquet file is compressed inside", id="Parquet in gzip"),
        pytest.param("a.jsonl", {"format": "parquet"}, "a.jsonl: cannot be read after row 0", id="the wrong format"),
        pytest.param("a\0b", {}, "no such file", id="a NUL in the path"),
        pytest.param("~nobody-here/a.jsonl", {}, "~nobody-here/a.jsonl: ", id="the home of nobody"),
        pytest.param("empty.jsonl", {}, "empty.jsonl: no rows to run; the input is empty", id="an empty file"),
        pytest.param("blank.jsonl", {}, "blank.jsonl: no rows to run; the input is empty", id="blank lines only"),
        pytest.param("empty.json", {}, "empty.json: no rows to run; the input is empty", id="an empty array"),
        pytest.param("header.csv", {}, "header.csv: no rows to run; the input is empty", id="a header only"),
        pytest.param("a.jsonl", {"where": "q > 5"}, "no rows to run after where", id="a condition that leaves nothing"),
        pytest.param("a.jsonl", {"shard": "2/2"}, "no rows to run after shard", id="a shard that is empty"),
    ],
)
def test_an_input_that_cannot_be_read_is_refused(tmp_path: Path, path: Any, keys: dict[str, Any], said: str) -> None:
    write(tmp_path, "a.jsonl", lines({"q": 1}))
    for name in ("a.txt", "noend", "a.gz", "a.parquet.gz", "empty.jsonl"):
        write(tmp_path, name, b"")
    write(tmp_path, "blank.jsonl", "\n \n")
    write(tmp_path, "empty.json", "[]")
    write(tmp_path, "header.csv", "q,a\n")
    with pytest.raises(SourceError) as caught:
        source(tmp_path, path, **keys).survey()
    assert said in str(caught.value)


def test_the_format_may_be_given_where_the_name_does_not_tell(tmp_path: Path) -> None:
    assert fields(rows(tmp_path, "a.txt", '{"q": 1}\n', format="jsonl")) == [{"q": 1}]


# -- ids ----------------------------------------------------------------------------------------


def test_the_users_ids_are_text_or_numbers_and_rows_without_one_are_broken_rows(tmp_path: Path) -> None:
    objects = [{"id": "a"}, {"id": 1}, {"id": 1.5}, {"id": None}, {"id": True}, {}, {"id": ""}, {"id": [1]}]
    write(tmp_path, "a.jsonl", lines(*objects) + "{broken\n")
    made = source(tmp_path, "a.jsonl", id="id")
    survey = made.survey()
    found = list(made.prompts(survey, ("m",)))
    assert [prompt.id for prompt in found[:3]] == ["a", "1", "1.5"]
    assert all("id column 'id' is missing" in (prompt.problem or "") for prompt in found[3:8])
    assert "not valid JSON" in (found[8].problem or "")
    assert (survey.rows, survey.problems, len({prompt.id for prompt in found})) == (9, 6, 9)


def test_an_id_column_that_no_row_has_is_an_error_of_the_job(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", lines({"key": 1, "q": 2}))
    with pytest.raises(JobError, match=r"input\.id: no row has a column 'id'") as caught:
        source(tmp_path, "a.jsonl", id="id").survey()
    assert caught.value.hint == "columns are: key, q"


@pytest.mark.parametrize(
    ("objects", "said"),
    [
        pytest.param([{"id": "a"}, {"id": "b"}, {"id": "a"}], "a.jsonl:3: id 'a' again, first at a.jsonl:1", id="text"),
        pytest.param([{"id": "1"}, {"id": 1}], "a.jsonl:2: id '1' again, first at a.jsonl:1", id="text and a number"),
    ],
)
def test_an_id_that_comes_twice_is_refused_with_both_places(tmp_path: Path, objects: list[Any], said: str) -> None:
    write(tmp_path, "a.jsonl", lines(*objects))
    with pytest.raises(SourceError) as caught:
        source(tmp_path, "a.jsonl", id="id").survey()
    assert said in str(caught.value)


def test_an_id_that_comes_twice_in_two_files_names_both(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", lines({"id": 7}))
    write(tmp_path, "b.csv", "id\n7\n")
    with pytest.raises(SourceError, match=r"b\.csv:2: id '7' again, first at a\.jsonl:1"):
        source(tmp_path, ["a.jsonl", "b.csv"], id="id").survey()


OBJECTS: list[dict[str, Any]] = [{"q": f"question {n}", "a": "é\n"} for n in range(7)]


def test_copies_of_a_row_in_other_formats_have_its_id(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", lines(*OBJECTS))
    write(tmp_path, "b.jsonl.gz", gzip.compress(lines(*({"a": o["a"], "q": o["q"]} for o in OBJECTS)).encode()))
    write(tmp_path, "c.json", json.dumps(OBJECTS, indent=1, ensure_ascii=False))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["a", "q"])
    writer.writeheader()
    writer.writerows(OBJECTS)
    write(tmp_path, "d.csv", text.getvalue())
    pq.write_table(pa.Table.from_pylist(OBJECTS), tmp_path / "e.parquet")
    expected = ids(source(tmp_path, "a.jsonl"))
    assert len(set(expected)) == len(OBJECTS)
    for name in ("b.jsonl.gz", "c.json", "d.csv", "e.parquet"):
        assert ids(source(tmp_path, name)) == expected, name


def test_reordering_the_input_changes_no_id(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", lines(*OBJECTS))
    write(tmp_path, "b.jsonl", lines(*reversed(OBJECTS)))
    assert ids(source(tmp_path, "b.jsonl")) == ids(source(tmp_path, "a.jsonl"))[::-1]


def test_identical_rows_stay_separate_rows_and_each_occurrence_keeps_its_id(tmp_path: Path) -> None:
    twin, other = {"q": "same"}, {"q": "other"}
    write(tmp_path, "a.jsonl", lines(twin, other, twin, twin) + "{broken\n{broken\n")
    write(tmp_path, "b.jsonl", lines(other, twin, twin, twin, {"q": "new"}) + "{broken\n{broken\n")
    first, second = ids(source(tmp_path, "a.jsonl")), ids(source(tmp_path, "b.jsonl"))
    assert len(set(first)) == 6
    assert first[2] == f"{first[0]}-2"
    assert first[3] == f"{first[0]}-3"
    assert set(second) - {second[4]} == set(first)
    assert ids(source(tmp_path, "a.jsonl")) == first


def test_a_row_has_one_id_for_all_models_and_samples(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", lines({"q": 1}, {"q": 2}))
    made = {"name": "j", "model": ["m", "n"], "input": "a.jsonl", "prompt": "x", "folder": str(tmp_path), "samples": 3}
    reader = Source(Job.model_validate(made))
    found = list(reader.prompts(reader.survey(), ("m", "n")))
    assert len(found) == 2 * 2 * 3
    assert len({prompt.id for prompt in found}) == 2
    assert len({(prompt.id, prompt.model, prompt.sample) for prompt in found}) == 12


# -- which rows ---------------------------------------------------------------------------------

NUMBERS = lines(*({"n": number, "even": number % 2 == 0} for number in range(100)))


def chosen(folder: Path, *, cut: int | None = None, **keys: Any) -> list[int]:
    write(folder, "a.jsonl", NUMBERS)
    made = source(folder, "a.jsonl", cut=cut, **keys)
    survey = made.survey()
    found = [row.fields["n"] for row in made.rows(survey.chosen) if row.fields is not None]
    assert survey.rows == len(found)
    return found


def test_shards_partition_the_rows_exactly(tmp_path: Path) -> None:
    for count in (1, 3, 7):
        shards = [chosen(tmp_path, shard=f"{which}/{count}") for which in range(1, count + 1)]
        assert sorted(number for shard in shards for number in shard) == list(range(100))
        assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_a_sample_has_its_size_keeps_the_order_and_depends_on_its_seed_alone(tmp_path: Path) -> None:
    first = chosen(tmp_path, sample=30, seed=1)
    assert first == sorted(set(first))
    assert len(first) == 30
    assert chosen(tmp_path, sample=30, seed=1) == first
    assert chosen(tmp_path, sample=30, seed=2) != first
    assert chosen(tmp_path, sample=500) == list(range(100))


def test_where_sample_shard_and_limit_apply_in_this_order(tmp_path: Path) -> None:
    even = chosen(tmp_path, where="even")
    assert even == list(range(0, 100, 2))
    sampled = chosen(tmp_path, where="even", sample=20, seed=3)
    assert set(sampled) <= set(even)
    shards = [chosen(tmp_path, where="even", sample=20, seed=3, shard=f"{which}/3") for which in (1, 2, 3)]
    assert sorted(shards[0] + shards[1] + shards[2]) == sampled
    assert shards[1] == sampled[1::3]
    assert chosen(tmp_path, where="even", sample=20, seed=3, shard="2/3", limit=4) == sampled[1::3][:4]


def test_the_smaller_limit_wins(tmp_path: Path) -> None:
    assert len(chosen(tmp_path, limit=5, cut=3)) == 3
    assert len(chosen(tmp_path, limit=3, cut=5)) == 3
    assert len(chosen(tmp_path, limit=500)) == 100


def test_a_row_of_which_the_condition_cannot_be_decided_is_a_broken_row(tmp_path: Path) -> None:
    """It is neither kept nor dropped in silence."""
    write(tmp_path, "a.jsonl", lines({"n": 1}, {"n": "x"}, {"m": 1}, {"n": 5}))
    found = list(source(tmp_path, "a.jsonl", where="n > 2").rows())
    assert [row.number for row in found] == [1, 2, 3]
    assert [row.fields for row in found] == [None, None, {"n": 5}]
    assert all((row.problem or "").startswith("input.where cannot be decided: ") for row in found[:2])


def test_a_condition_that_can_be_decided_of_no_row_is_an_error_of_the_job(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", lines({"level": 1}, {"level": 2}))
    with pytest.raises(JobError, match=r"input\.where: cannot be decided: 'levle' is undefined \(a\.jsonl:1") as caught:
        source(tmp_path, "a.jsonl", where="levle > 1").survey()
    assert caught.value.hint == "columns are: level"


def test_limit_one_does_not_judge_a_condition_by_one_row(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", lines({"x": 1}, {"level": 2}))
    assert source(tmp_path, "a.jsonl", where="level > 1", limit=1).survey().problems == 1


# -- carried columns ----------------------------------------------------------------------------

MIXED = lines(
    {"i": 1, "f": 1, "b": True, "m": 1, "n": None, "l": [1], "big": 2**63, "d": "x"},
    {"i": 2, "f": 1.5, "b": False, "m": "x", "n": None, "l": {"a": True}, "big": 1, "d": None},
)


def types(folder: Path, **keys: Any) -> dict[str, str]:
    write(folder, "a.jsonl", MIXED)
    return source(folder, "a.jsonl", carry=["i", "f", "b", "m", "n", "l", "big", "d"], **keys).survey().carry_types


def test_carried_columns_have_the_narrowest_type_that_holds_every_value(tmp_path: Path) -> None:
    assert types(tmp_path) == {
        **{"i": "int64", "f": "float64", "b": "bool", "m": "string"},
        **{"n": "string", "l": "string", "big": "string", "d": "string"},
    }


@pytest.mark.parametrize("keys", [{"limit": 1}, {"cut": 1}, {"shard": "1/2"}, {"shard": "2/2"}, {"sample": 1}])
def test_carried_columns_have_the_same_types_whatever_part_is_run(tmp_path: Path, keys: dict[str, Any]) -> None:
    """Every part of a dataset has the same columns, and so have the shards of one job."""
    assert types(tmp_path, **keys) == types(tmp_path)


def test_a_carried_column_that_no_row_has_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", MIXED)
    with pytest.raises(JobError, match=r"results\.carry: no row has a column 'answer'") as caught:
        source(tmp_path, "a.jsonl", carry=["i", "answer"]).survey()
    assert caught.value.hint == "columns are: i, f, b, m, n, l, big, d"


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        pytest.param("x", "string", "x", id="text stays text"),
        pytest.param(3, "string", "3", id="a number among text is text"),
        pytest.param(True, "string", "true", id="true among text is JSON"),
        pytest.param([1, {"a": None}], "string", '[1,{"a":null}]', id="a list is JSON"),
        pytest.param(Decimal("1.10"), "string", "1.10", id="a decimal keeps its digits"),
        pytest.param(2**60 + 1, "float64", float(2**60 + 1), id="a large number among floats is a float"),
        pytest.param(None, "int64", None, id="null stays null"),
    ],
)
def test_a_carried_value_fits_its_column(value: Any, kind: str, expected: Any) -> None:
    (found,) = carried({"a": value}, {"a": kind})
    assert found == expected
    assert type(found) is type(expected)
    arrow = {"string": pa.string(), "float64": pa.float64(), "int64": pa.int64()}[kind]
    assert pa.array([found], arrow).to_pylist() == [expected]


def test_a_row_that_could_not_be_read_carries_nulls() -> None:
    assert carried(None, {"a": "int64", "b": "string"}) == [None, None]
    assert carried({}, {"a": "int64"}) == [None]


def test_a_carried_column_with_the_name_of_a_result_column_is_refused() -> None:
    made = {"name": "j", "model": "m", "input": "a", "prompt": "x", "folder": "/", "results": {"carry": ["text"]}}
    with pytest.raises(JobError, match="'text' is the name of a result column"):
        check_carry(Job.model_validate(made))


# -- the fingerprint ----------------------------------------------------------------------------


def test_the_fingerprint_changes_with_the_content_and_the_selection_and_with_nothing_else(tmp_path: Path) -> None:
    def survey(content: str, name: str = "a.jsonl", **keys: Any) -> Survey:
        write(tmp_path, name, content)
        return source(tmp_path, name, **keys).survey()

    base = survey(NUMBERS).fingerprint
    assert survey(NUMBERS).fingerprint == base
    assert survey(NUMBERS, "moved/b.jsonl").fingerprint == base
    assert survey(NUMBERS, limit=5).fingerprint == base  # a larger limit only adds rows
    others = [
        survey(NUMBERS.replace('"n": 99', '"n": 100')).fingerprint,
        survey(NUMBERS, where="even").fingerprint,
        survey(NUMBERS, shard="1/2").fingerprint,
        survey(NUMBERS, sample=5).fingerprint,
        survey(NUMBERS, sample=5, seed=1).fingerprint,
        survey(NUMBERS, id="n").fingerprint,
        base,
    ]
    assert len(set(others)) == len(others)


# -- laziness -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_ten_rows_of_a_large_file_cost_ten_rows(tmp_path: Path, name: str) -> None:
    """Rows are streamed: 20 MB on disk, and less than 2 MB in memory."""
    padding = "x" * 1000
    if name.endswith("csv"):
        content = "q\n" + f"{padding}\n" * 20_000
    elif name.endswith("jsonl"):
        content = f'{{"q": "{padding}"}}\n' * 20_000
    else:
        content = "[" + ",".join([f'{{"q": "{padding}"}}'] * 20_000) + "]"
    write(tmp_path, name, content)
    made = source(tmp_path, name)
    tracemalloc.start()
    try:
        assert len(list(islice(made.rows(), 10))) == 10
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_the_limit_stops_reading(tmp_path: Path) -> None:
    """Nothing after the last row that is wanted is read: here it would be an error."""
    write(tmp_path, "a.jsonl", lines({"q": 1}, {"q": 2}))
    write(tmp_path, "b.parquet", b"broken")
    assert len(list(source(tmp_path, ["a.jsonl", "b.parquet"], limit=2).rows())) == 2
    with pytest.raises(SourceError, match=r"b\.parquet: cannot be read after row 2"):
        list(source(tmp_path, ["a.jsonl", "b.parquet"], limit=3).rows())


# -- files that change while they are read ---------------------------------------------------------


def _jsonl(first: int, last: int) -> bytes:
    return b"".join(json.dumps({"q": n, "padding": "x" * 1000}).encode() + b"\n" for n in range(first, last))


def _csv(first: int, last: int) -> bytes:
    return b"q,padding\n" + b"".join(b"%d,%s\n" % (n, b"x" * 1000) for n in range(first, last))


def _array(first: int, last: int) -> bytes:
    return b"[" + b",".join(_jsonl(first, last).splitlines()) + b"]"


@pytest.mark.parametrize("new", [(10, 510), (0, 100), (400, 1000)], ids=["as long", "shorter", "longer"])
@pytest.mark.parametrize(("name", "write_rows"), [("a.jsonl", _jsonl), ("a.csv", _csv), ("a.json", _array)])
def test_a_file_that_is_overwritten_in_place_ends_the_reading_before_a_new_byte_is_used(
    tmp_path: Path, name: str, write_rows: Any, new: tuple[int, int]
) -> None:
    path = write(tmp_path, name, write_rows(0, 500))
    made = source(tmp_path, name)
    reading = made.prompts(made.survey(), ("m",))
    seen = [next(reading).fields for _ in range(50)]
    path.write_bytes(write_rows(*new))
    with pytest.raises(SourceError, match=f"{name}: changed while it was read") as caught:
        seen += [prompt.fields for prompt in reading]
    assert [int(row["q"]) for row in seen if row] == list(range(len(seen)))
    assert "every answer that was counted is safe" in str(caught.value.hint)
    assert caught.value.exit_code == 1
    with pytest.raises(SourceError, match="changed while it was read"):  # nor may another model's rows be of it
        list(made.prompts(Survey(rows=500, problems=0, fingerprint="", repeated=frozenset(), chosen=None), ("m",)))


@pytest.mark.parametrize("how", ["appended to", "touched", "renamed over", "deleted"])
def test_a_file_that_still_says_the_same_is_read_on(tmp_path: Path, how: str) -> None:
    """What is appended, or is of another file, is not what was being read."""
    path = write(tmp_path, "a.jsonl", _jsonl(0, 500))
    made = source(tmp_path, "a.jsonl")
    reading = made.prompts(made.survey(), ("m",))
    first = [next(reading) for _ in range(50)]
    if how == "appended to":
        with path.open("ab") as file:
            file.write(_jsonl(500, 510))
    elif how == "touched":
        path.touch()
    elif how == "renamed over":
        write(tmp_path, "b.jsonl", _jsonl(7, 300)).rename(path)
    else:
        path.unlink()
    numbers = [prompt.fields["q"] for prompt in [*first, *reading] if prompt.fields]
    assert numbers == list(range(510 if how == "appended to" else 500))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_other_formats_notice_it_too(tmp_path: Path, name: str) -> None:
    def packed(shift: int) -> bytes:
        if name.endswith("parquet"):
            sink = io.BytesIO()
            pq.write_table(pa.table({"q": [f"{n + shift} {n * 7919 % 1013}" for n in range(9000)]}), sink)
            return sink.getvalue()
        rows = lines(*({"q": n + shift, "x": f"{n * 7919**3:x}" * 20} for n in range(9000))).encode()
        return gzip.compress(rows) if name.endswith("gz") else _zstd(rows)

    path = write(tmp_path, name, packed(0))
    made = source(tmp_path, name)
    reading = made.prompts(made.survey(), ("m",))
    next(reading)
    path.write_bytes(packed(500))
    with pytest.raises(SourceError, match=r"changed while it was read"):
        list(reading)
