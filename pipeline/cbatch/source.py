"""Job -> Iterator[Prompt]: JSONL, JSON arrays, CSV and Parquet, plain or compressed, with stable ids.

Rows are streamed; nothing here grows with their number but 8 bytes a row during the survey.
A row that cannot be read is still a row: it travels on with a `problem` and ends as an error
row with its line number, and the others run.

A row's id is the user's id column when the job names one, else a hash of the row's content with
its occurrence number. (Of the content and not of the rendered request: so an edited template
re-asks the same rows, and a row has one id for all models.)
"""

from __future__ import annotations

import codecs
import csv
import glob
import gzip
import hashlib
import io
import random
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import ijson
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cbatch.errors import JobError, SourceError
from cbatch.job import Input, Job
from cbatch.render import RenderError, condition
from cbatch.schema import COLUMN_INDEX, Prompt

BATCH_ROWS = 1024  # rows decoded at once from Parquet: 116 MB at the peak, against 341 MB with the defaults
MAX_FIELD_BYTES = 2**31 - 1  # csv's own limit is 128 KB, and prompts are longer

_FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}


class Row(NamedTuple):
    """One row, `number` in the whole input; `fields` is None where it could not be read: `problem` says why."""

    number: int
    fields: dict[str, Any] | None
    raw: bytes
    origin: str
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What one pass over the input tells: how many rows, which repeat, and what it is (a sha-256)."""

    rows: int
    problems: int
    fingerprint: str
    repeated: frozenset[bytes]  # content hashes that occur more than once
    chosen: frozenset[int] | None  # row indexes of input.sample
    carry_types: dict[str, str] = field(default_factory=dict)


class Source:
    """The input of a job. `survey()` once, then `prompts()` as often as needed."""

    def __init__(self, job: Job, *, limit: int | None = None) -> None:
        self._spec = job.input
        self._job = job
        self._where = condition(job.input.where) if job.input.where else None
        self._decided = False  # whether `where` said yes or no of any row
        limits = [n for n in (job.input.limit, limit) if n is not None]
        self._limit = min(limits) if limits else None
        self.files = find_files(job.input, Path(job.folder))

    def rows(self, chosen: frozenset[int] | None = None) -> Iterator[Row]:
        """The rows that `where`, `sample`, `shard` and `limit` leave, applied in this order."""
        picked: Iterator[Row] = (row for row in self._matching() if chosen is None or row.number in chosen)
        if (shard := self._spec.shard_of) is not None:
            picked = islice(picked, shard[0], None, shard[1])
        return islice(picked, self._limit)

    def survey(self) -> Survey:
        """Read everything once: count, find duplicate ids, learn the types of carried columns.

        Raises SourceError for an empty input, an unreadable file, and duplicate ids (both lines named).
        """
        chosen = self._choose()
        hashes = array("Q")
        problems = 0
        column, identified = self._spec.id, False
        for row in self.rows(chosen):
            identity = _row_id(row, column)
            identified = identified or identity is not None
            hashes.append(int.from_bytes(_hash(identity if identity is not None else _content(row)), "little"))
            if row.problem is not None or (column is not None and identity is None):
                problems += 1
        if not hashes:
            names = ", ".join(str(f) for f in self.files[:3])
            filters = [k for k in ("where", "sample", "shard", "limit") if getattr(self._spec, k) is not None]
            raise SourceError(
                f"{names}: no rows to run" + (f" after {', '.join(filters)}" if filters else "; the input is empty")
            )
        if self._where is not None and not self._decided:
            self._refuse_condition()
        if column is not None and not identified and not self._has_column(column):
            raise JobError(f"input.id: no row has a column {column!r}", hint=self._columns_hint())
        repeated = _repeated(hashes)
        if repeated and column is not None:
            self._refuse_duplicates(chosen, repeated)
        return Survey(
            rows=len(hashes),
            problems=problems,
            fingerprint=self.fingerprint(),
            repeated=frozenset(repeated),
            chosen=chosen,
            carry_types=self._carry_types(),
        )

    def fingerprint(self) -> str:
        """The sha-256 of the bytes of all files and of what selects from them."""
        total = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        chosen = self._spec.model_dump(include={"id", "where", "shard", "sample", "seed", "format"})
        total.update(orjson.dumps(chosen))
        return total.hexdigest()

    def prompts(self, survey: Survey, models: Sequence[str]) -> Iterator[Prompt]:
        """Every row for every one of `models` and every sample, with its id."""
        column = self._spec.id
        occurrences: dict[bytes, int] = {}
        samples = range(self._job.samples)
        for row in self.rows(survey.chosen):
            fields, problem = row.fields, row.problem
            identity = _row_id(row, column)
            if identity is not None:
                key = identity.decode("utf-8", "replace")
            else:
                if column is not None and problem is None:
                    fields, problem = None, f"id column {column!r} is missing, null, or not text or a number"
                digest = _hash(_content(row))
                key = digest.hex()
                if digest in survey.repeated:
                    occurrences[digest] = nth = occurrences.get(digest, 0) + 1
                    if nth > 1:
                        key = f"{key}-{nth}"
            for model in models:
                for sample in samples:
                    yield Prompt(
                        id=key,
                        index=row.number,
                        sample=sample,
                        model=model,
                        fields=fields,
                        raw=row.raw,
                        origin=row.origin,
                        problem=problem,
                    )

    def _all_rows(self) -> Iterator[Row]:
        index = 0
        for path in self.files:
            try:
                for row in _read(path, self._spec.format, index):
                    index = row.number + 1
                    yield row
            except (OSError, EOFError, zlib.error, pa.ArrowException, csv.Error, ValueError, OverflowError) as exc:
                reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else exc
                raise SourceError(f"{path}: cannot be read after row {index}: {reason}") from exc

    def _matching(self) -> Iterator[Row]:
        for row in self._all_rows():
            if self._where is not None and row.fields is not None:
                try:
                    holds = self._where(row.fields)
                    self._decided = True
                    if not holds:
                        continue
                except RenderError as exc:
                    row = row._replace(fields=None, problem=str(exc))
            yield row

    def _choose(self) -> frozenset[int] | None:
        """The indexes of the `input.sample` rows drawn with `input.seed`; counting them takes a pass."""
        wanted = self._spec.sample
        if wanted is None:
            return None
        matching = array("Q", (row.number for row in self._matching()))
        if len(matching) <= wanted:
            return None
        picks = random.Random(self._spec.seed).sample(range(len(matching)), wanted)
        return frozenset(matching[i] for i in picks)

    def _carry_types(self) -> dict[str, str]:
        """The types of the carried columns over *all* rows, so that `--limit` and shards make the same columns."""
        guesses = {name: _TypeGuess() for name in self._job.results.carry}
        if not guesses:
            return {}
        for row in self._matching():
            for name, guess in guesses.items():
                if row.fields is not None:
                    guess.see(name in row.fields, row.fields.get(name))
        for name, guess in guesses.items():
            if not guess.found:
                raise JobError(f"results.carry: no row has a column {name!r}", hint=self._columns_hint())
        return {name: guess.type for name, guess in guesses.items()}

    def _refuse_duplicates(self, chosen: frozenset[int] | None, repeated: set[bytes]) -> None:
        first: dict[bytes, str] = {}
        found: list[str] = []
        for row in self.rows(chosen):
            identity = _row_id(row, self._spec.id)
            if identity is None or _hash(identity) not in repeated:
                continue
            if identity in first:
                found.append(
                    f"{row.origin}: id {identity.decode('utf-8', 'replace')!r} again, first at {first[identity]}"
                )
                if len(found) == 3:
                    break
            else:
                first[identity] = row.origin
        if found:
            raise SourceError(
                "\n".join(found),
                hint=f"ids must be unique; `input.id: {self._spec.id}` may name the wrong column",
            )

    def _refuse_condition(self) -> None:
        """Raise JobError if `where` can be decided for no row at all: then it is wrong, not a row."""
        first: Row | None = None
        for row in self._matching():
            if self._decided:
                return
            if row.problem is not None and row.problem.startswith("input.where"):
                first = first or row
        if first is not None:
            raise JobError(f"{first.problem} ({first.origin}, and so every row)", hint=self._columns_hint())

    def _has_column(self, name: str) -> bool:
        """Whether any row has the column; also where no row could be read, for then nobody knows."""
        readable = False
        for row in self._all_rows():
            if row.fields is not None:
                readable = True
                if name in row.fields:
                    return True
        return not readable

    def _columns_hint(self) -> str:
        row = next((r for r in self._all_rows() if r.fields is not None), None)
        return f"columns are: {', '.join(row.fields)}" if row and row.fields else "no row could be read"


def find_files(spec: Input, folder: Path) -> list[Path]:
    """The files that the paths and globs of `spec` name, globs sorted. Raises SourceError where there is none."""
    files: list[Path] = []
    for name in spec.path:
        try:
            path = folder / Path(name).expanduser()
        except RuntimeError as exc:  # ~nobody
            raise SourceError(f"{name}: {exc}") from None
        if path.is_file():
            files.append(path)
        elif path.is_dir():
            raise SourceError(f"{path}: a folder, not a file", hint=f"name the files, for example {name}/*.jsonl")
        elif glob.has_magic(name):
            pattern = Path(name).expanduser()
            root = Path(pattern.anchor) if pattern.is_absolute() else folder
            found = sorted(p for p in root.glob(str(pattern.relative_to(pattern.anchor))) if p.is_file())
            if not found:
                raise SourceError(f"{path}: no file matches", hint="paths start at the folder of the job file")
            files += found
        else:
            raise SourceError(f"{path}: no such file", hint="paths start at the folder of the job file")
    for path in files:
        _format_of(path, spec.format)
    return files


def _format_of(path: Path, wanted: str) -> str:
    suffixes = [s.lower() for s in path.suffixes]
    compressed = bool(suffixes) and suffixes[-1] in (".gz", ".zst")
    if wanted == "auto":
        suffix = suffixes[-2] if compressed and len(suffixes) > 1 else (suffixes[-1] if suffixes else "")
        if suffix not in _FORMATS:
            raise SourceError(
                f"{path}: the format is not known from the name",
                hint=f"accepted: {' '.join(_FORMATS)} with .gz or .zst; or give input.format",
            )
        wanted = _FORMATS[suffix]
    if wanted == "parquet" and compressed:
        raise SourceError(f"{path}: a Parquet file is compressed inside; decompress it first")
    return wanted


def _read(path: Path, wanted: str, index: int) -> Iterator[Row]:
    kind = _format_of(path, wanted)
    if kind == "parquet":
        yield from _read_parquet(path, index)
        return
    with closing(_open(path)) as file:
        if file.peek(3).startswith(codecs.BOM_UTF8):
            file.read(3)
        if kind == "json":
            # Many .json files hold one object a line; an array starts with its bracket.
            head = file.peek(4096)[:4096].lstrip()
            kind = "array" if head[:1] == b"[" else "jsonl"
            if kind == "jsonl" and head.splitlines()[:1] == [b"{"]:
                raise SourceError(
                    f"{path}: one JSON object over several lines", hint="accepted: an array of objects, or one a line"
                )
        reader = {"jsonl": _read_jsonl, "array": _read_array, "csv": _read_csv}[kind]
        yield from reader(file, path, index)


def _open(path: Path) -> io.BufferedReader:
    """The decompressed bytes; `peek` and lines split at newlines only."""
    if path.suffix.lower() == ".gz":
        return io.BufferedReader(gzip.GzipFile(path), 1 << 16)
    if path.suffix.lower() == ".zst":
        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"), 1 << 16)
    return path.open("rb")


def _read_jsonl(file: io.BufferedReader, path: Path, index: int) -> Iterator[Row]:
    name = path.name
    for number, line in enumerate(file, 1):
        line = line.strip()
        if not line:
            continue
        origin = f"{name}:{number}"
        try:
            fields = orjson.loads(line)
        except orjson.JSONDecodeError as exc:
            problem = "not UTF-8 text" if "UTF-8" in exc.msg else f"not valid JSON: {exc.msg} (column {exc.colno})"
            yield Row(index, None, line, origin, problem)
        else:
            if type(fields) is dict:
                yield Row(index, fields, line, origin, None)
            else:
                yield Row(index, None, line, origin, f"not a JSON object but {_kind(fields)}")
        index += 1


def _read_array(file: io.BufferedReader, path: Path, index: int) -> Iterator[Row]:
    start = index
    try:
        for fields in ijson.items(file, "item", use_float=True):
            origin = f"{path.name}[{index - start}]"
            try:
                raw = _to_json(fields)
            except RecursionError:
                yield Row(index, None, b"null", origin, "nested too deeply")
            else:
                if isinstance(fields, dict):
                    yield Row(index, fields, raw, origin, None)
                else:
                    yield Row(index, None, raw, origin, f"not a JSON object but {_kind(fields)}")
            index += 1
    except ijson.JSONError as exc:
        # Past the break nothing can be told apart, so there are no rows to save: refuse it whole.
        said = exc.args[0] if exc.args else ""
        reason = (said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)).split("\n")[0].strip()
        raise SourceError(f"{path}[{index - start}]: not valid JSON: {reason}") from None


def _read_csv(file: io.BufferedReader, path: Path, index: int) -> Iterator[Row]:
    csv.field_size_limit(MAX_FIELD_BYTES)
    # surrogateescape: one bad byte must spoil its row, not the file.
    with io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        tab = ".tsv" in (s.lower() for s in path.suffixes)
        # strict: a quote that is never closed would swallow the rest of the file in silence.
        reader = csv.reader(text, delimiter="\t" if tab else ",", strict=True)
        header: list[str] = []
        while True:
            line = reader.line_num + 1
            origin = f"{path.name}:{line}"
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as exc:
                if "end of data" in str(exc):
                    raise SourceError(f"{path}:{line}: a quote that opens in this row is never closed") from None
                yield Row(index, None, b"null", origin, f"not valid CSV: {exc}")
                index += 1
                continue
            if not values:  # a blank line
                continue
            if not header:
                header = values
                _refuse_twins([name for name in header if name], path)
                continue
            fields = dict(zip(header, values, strict=False))
            problem: str | None = None
            if len(values) != len(header):
                more = "more" if len(values) > len(header) else "fewer"
                problem = f"{more} fields than the header names: {len(values)} for {len(header)}"
            try:
                raw = orjson.dumps(values if problem else fields)
            except TypeError:
                raw, problem = orjson.dumps([repr(value) for value in values]), "not UTF-8 text"
            yield Row(index, None if problem else fields, raw, origin, problem)
            index += 1


def _read_parquet(path: Path, index: int) -> Iterator[Row]:
    start = index
    with pq.ParquetFile(path, pre_buffer=False) as file:
        _refuse_twins(file.schema_arrow.names, path)
        for batch in file.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
            for fields in _microseconds(batch).to_pylist():
                yield Row(index, fields, _to_json(fields), f"{path.name}#{index - start}", None)
                index += 1


def _microseconds(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Times in ns, as pandas writes them, cut to µs: Python has no others, and without pandas they cannot be read."""
    for place, column in enumerate(batch.schema):
        kind = column.type
        if getattr(kind, "unit", None) != "ns":
            continue
        if pa.types.is_timestamp(kind):
            kind = pa.timestamp("us", kind.tz)
        else:
            kind = pa.duration("us") if pa.types.is_duration(kind) else pa.time64("us")
        batch = batch.set_column(place, column.name, batch.column(place).cast(kind, safe=False))
    return batch


def _refuse_twins(names: Sequence[str], path: Path) -> None:
    if twins := [name for name, times in Counter(names).items() if times > 1]:
        raise SourceError(f"{path}: two columns have the name {twins[0]!r}", hint="only one of them could be used")


def _kind(value: object) -> str:
    """What a JSON value is, in words."""
    names: dict[type, str] = {list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _to_json(value: Any) -> bytes:
    try:
        return orjson.dumps(value, default=_plain, option=orjson.OPT_NON_STR_KEYS)
    except TypeError:  # lone surrogates, integers over 64 bits
        return repr(value).encode("utf-8", "backslashreplace")


def _plain(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=8).digest()


def _content(row: Row) -> bytes:
    """The row in one spelling, so that JSONL, CSV and Parquet copies of it have the same id."""
    if row.fields is None:
        return row.raw
    try:
        return orjson.dumps(row.fields, default=_plain, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    except TypeError:
        return row.raw


def _row_id(row: Row, column: str | None) -> bytes | None:
    """The user's id of the row; None where the job names no column or the row has no usable value."""
    if column is None or row.fields is None:
        return None
    value = row.fields.get(column)
    if isinstance(value, str):
        return value.encode("utf-8", "replace") or None
    return str(value).encode() if isinstance(value, int | float) and not isinstance(value, bool) else None


def _repeated(hashes: array[int]) -> set[bytes]:
    """The hashes that occur more than once, found by sorting: 24 bytes a row, for a moment."""
    column = pa.Array.from_buffers(pa.uint64(), len(hashes), [None, pa.py_buffer(hashes)])
    ordered = column.take(pc.sort_indices(column))
    same = pc.equal(ordered[1:], ordered[:-1])
    return {value.to_bytes(8, "little") for value in ordered[1:].filter(same).unique().to_pylist()}


class _TypeGuess:
    """The narrowest column type that holds every value seen."""

    def __init__(self) -> None:
        self.found = False
        self.type = "string"
        self._kinds: set[type] = set()

    def see(self, present: bool, value: object) -> None:
        self.found = self.found or present
        if value is None:
            return
        kind = type(value)
        if kind is int and not -(2**63) <= value < 2**63:  # type: ignore[operator]
            kind = str
        if kind in self._kinds:
            return
        self._kinds.add(kind)
        if self._kinds == {bool}:
            self.type = "bool"
        elif self._kinds == {int}:
            self.type = "int64"
        elif self._kinds <= {int, float}:
            self.type = "float64"
        else:
            self.type = "string"


def carried(fields: Mapping[str, Any] | None, types: Mapping[str, str]) -> list[Any]:
    """The values of the carried columns; what is not of the column's type becomes JSON text."""
    if fields is None:
        return [None] * len(types)
    values: list[Any] = []
    for name, kind in types.items():
        value = fields.get(name)
        if value is not None and kind == "float64":
            value = float(value)  # Arrow refuses integers beyond 2^53 in a column of floats
        elif value is not None and kind == "string" and not isinstance(value, str):
            value = (
                _to_json(value).decode("utf-8", "replace") if isinstance(value, dict | list | bool) else _plain(value)
            )
        values.append(value)
    return values


def check_carry(job: Job) -> None:
    """Raise JobError if a carried column has the name of a result column."""
    for name in job.results.carry:
        if name in COLUMN_INDEX:
            raise JobError(
                f"results.carry: {name!r} is the name of a result column",
                hint="rename it in the input; the whole row is in the column `input` too",
            )
