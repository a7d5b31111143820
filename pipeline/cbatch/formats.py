"""One file -> its rows: JSONL, JSON arrays, CSV and Parquet, plain or compressed, streamed.

A row that cannot be read is still a row, with a `problem`; only what makes the rows after it
unreadable too is a SourceError.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ijson
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from cbatch.errors import SourceError

BATCH_ROWS = 1024  # rows decoded at once from Parquet: 116 MB at the peak, against 341 MB with the defaults
MAX_ROW_BYTES = 64 << 20  # no context is longer; and 1 MB of gzip can be one line of 1 GB
EXCERPT_BYTES = 1_000  # of a row that is too long to be kept
END_BYTES = 64 << 10  # at each end of a file: rows that were moved, added or removed change one of them
LOOK_S = 1.0  # how often a file that is being appended to is compared: 0.2 ms each
_TOO_LONG = f"a row of more than {MAX_ROW_BYTES >> 20} MB"

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


def format_of(path: Path, wanted: str) -> str:
    """jsonl, json, csv or parquet, from `wanted` or from the name. Raises SourceError where neither says."""
    suffixes = [s.lower() for s in path.suffixes]
    compressed = bool(suffixes) and suffixes[-1] in (".gz", ".zst")
    if wanted == "openai-batch":  # lines by definition; an array of them does no harm
        wanted = "json" if ".json" in suffixes[-2:] else "jsonl"
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


@dataclass(frozen=True, slots=True)
class Stamp:
    """A file as it was: `facts` tell cheaply that nothing was written to it, the ends what was."""

    facts: tuple[int, int, int]  # inode, size, mtime in ns
    ends: bytes  # hash of the first and the last END_BYTES

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """The file as it is. Raises OSError."""
        with path.open("rb") as file:
            facts = _facts(file.fileno())
            return cls(facts, _ends(file.fileno(), facts[1]))


class Watch:
    """Says at every look whether an open file still holds what it held, and if more, only behind that.

    It looks at the open file and not at its name: one that is replaced by a rename, or deleted, is read to its end.
    """

    def __init__(self, stamp: Stamp, fd: int, path: Path) -> None:
        self._stamp = stamp
        self._fd = fd
        self._path = path
        self._facts = stamp.facts
        self._look_at = 0.0

    def look(self, *, at_end: bool = False) -> None:
        """After a read and before its bytes are used. Raises SourceError."""
        facts = _facts(self._fd)
        if facts == self._facts:
            return
        size = self._stamp.facts[1]
        now = time.monotonic()
        if facts[1] >= size and now < self._look_at and not at_end:
            return
        if facts[1] < size or _ends(self._fd, size) != self._stamp.ends:
            error = SourceError(
                f"{self._path}: changed while it was read",
                hint="every answer that was counted is safe: run the same line again, and it starts from the file as "
                "it is then; to edit the input of a running job, write a new file and rename it, or append",
            )
            error.exit_code = 1  # nothing has to be corrected first
            raise error
        self._facts = facts
        self._look_at = now + LOOK_S


class _Watched(io.FileIO):
    """A file with a look at it after every read."""

    def __init__(self, path: Path, stamp: Stamp) -> None:
        super().__init__(path)
        self._watch = Watch(stamp, self.fileno(), path)

    def readinto(self, buffer: Any, /) -> int | None:
        """As a file's."""
        count = super().readinto(buffer)
        self._watch.look(at_end=not count)
        return count

    def readall(self) -> bytes:
        """As a file's."""
        data = super().readall()
        self._watch.look(at_end=True)
        return data


def _facts(fd: int) -> tuple[int, int, int]:
    stat = os.fstat(fd)
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _ends(fd: int, size: int) -> bytes:
    first, last = os.pread(fd, min(END_BYTES, size), 0), os.pread(fd, min(END_BYTES, size), max(0, size - END_BYTES))
    return hashlib.blake2b(first + last).digest()


def read(path: Path, wanted: str, index: int, stamp: Stamp | None = None) -> Iterator[Row]:
    """The rows of one file, numbered from `index`. Raises SourceError if it is not what it was at its `stamp`."""
    kind = format_of(path, wanted)
    if kind == "parquet":
        yield from _read_parquet(path, index, stamp)
        return
    with closing(_open(path, stamp)) as file:
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


def _open(path: Path, stamp: Stamp | None) -> io.BufferedReader:
    """The decompressed bytes; `peek` and lines split at newlines only."""
    file: io.BufferedReader = io.BufferedReader(io.FileIO(path) if stamp is None else _Watched(path, stamp))
    if path.suffix.lower() == ".gz":
        return io.BufferedReader(_Gzip(file), 1 << 16)
    if path.suffix.lower() == ".zst":
        return io.BufferedReader(pa.input_stream(file, compression="zstd"), 1 << 16)
    return file


def compressing(file: BinaryIO, path: Path) -> BinaryIO:
    """What is written to it is compressed into `file` as the name says; to be closed before `file` is."""
    if path.suffix.lower() == ".gz":
        return gzip.GzipFile("", "wb", 6, file, mtime=0)  # type: ignore[return-value]  # no name, no time: same bytes
    if path.suffix.lower() == ".zst":
        return pa.CompressedOutputStream(file, "zstd")  # type: ignore[no-any-return]
    return file


class _Gzip(gzip.GzipFile):
    """One that also closes the file it was given."""

    def __init__(self, file: io.BufferedReader) -> None:
        super().__init__(fileobj=file)
        self._file = file

    def close(self) -> None:
        """As a file's."""
        super().close()
        self._file.close()


def _read_jsonl(file: io.BufferedReader, path: Path, index: int) -> Iterator[Row]:
    name = path.name
    for number, line in enumerate(iter(partial(file.readline, MAX_ROW_BYTES), b""), 1):
        origin = f"{name}:{number}"
        if len(line) == MAX_ROW_BYTES and not line.endswith(b"\n"):
            while (rest := file.readline(MAX_ROW_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield Row(index, None, line[:EXCERPT_BYTES], origin, _TOO_LONG)
            index += 1
            continue
        line = line.strip()
        if not line:
            continue
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


class _Bounded:
    """A file that refuses to be read any further where one row takes more than MAX_ROW_BYTES."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self.since_row = 0

    def read(self, size: int = -1) -> bytes:
        """As a file's."""
        # Ever more at once: the parser starts a value over at each piece, 9 s for a text of 64 MB in pieces of 64 KB.
        data = self._file.read(max(size, self.since_row // 4) if size > 0 else size)
        self.since_row += len(data)
        if self.since_row > MAX_ROW_BYTES:
            raise ValueError(_TOO_LONG)
        return data


def _read_array(file: io.BufferedReader, path: Path, index: int) -> Iterator[Row]:
    start = index
    bounded = _Bounded(file)
    try:
        for fields in ijson.items(bounded, "item", use_float=True):
            bounded.since_row = 0
            origin = f"{path.name}[{index - start}]"
            try:
                raw = to_json(fields)
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
    csv.field_size_limit(MAX_ROW_BYTES)  # its own is 128 KB, and prompts are longer
    # surrogateescape: one bad byte must spoil its row, not the file.
    with io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        tab = ".tsv" in (s.lower() for s in path.suffixes)
        # strict: a quote that is never closed would swallow the rest of the file in silence.
        reader = csv.reader(_short_lines(text), delimiter="\t" if tab else ",", strict=True)
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


def _short_lines(text: io.TextIOWrapper) -> Iterator[str]:
    while line := text.readline(MAX_ROW_BYTES):
        if len(line) == MAX_ROW_BYTES:
            raise ValueError(_TOO_LONG)
        yield line


def _read_parquet(path: Path, index: int, stamp: Stamp | None) -> Iterator[Row]:
    start = index
    with path.open("rb") as opened, pq.ParquetFile(path, pre_buffer=False) as file:
        watch = Watch(stamp, opened.fileno(), path) if stamp is not None else None
        _refuse_twins(file.schema_arrow.names, path)
        for batch in file.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
            if watch is not None:
                watch.look()
            for fields in _microseconds(batch).to_pylist():
                yield Row(index, fields, to_json(fields), f"{path.name}#{index - start}", None)
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


def to_json(value: Any) -> bytes:
    """A row or a value as JSON, whatever is in it."""
    try:
        return orjson.dumps(value, default=plain, option=orjson.OPT_NON_STR_KEYS)
    except TypeError as exc:  # lone surrogates, integers over 64 bits
        if "Recursion" in str(exc):
            raise RecursionError("nested too deeply") from None
        return repr(value).encode("utf-8", "backslashreplace")


def plain(value: object) -> str:
    """The text of a value that JSON has no form for."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _kind(value: object) -> str:
    """What a JSON value is, in words."""
    names: dict[type, str] = {list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")
