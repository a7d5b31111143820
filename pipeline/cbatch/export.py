"""A run -> one file of its rows: JSON Lines, CSV, Parquet, or a provider's result lines; streamed, whole or not there.

Rows come in the order of their answers: that of results/, and as in a batch API any. `index` is the place in the
input. The journal numbers the rows in this order, so a run that is still going, or was killed, is read like any
other: what is in no part yet comes from the journal, and no row comes twice, even where a part is published
while we read.
"""

from __future__ import annotations

import errno
import io
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal

import orjson

from cbatch import batchfile
from cbatch.errors import CbatchError, JobError, JournalError, RunStopped
from cbatch.formats import compressing
from cbatch.journal import VISIBLE, Journal, Part
from cbatch.parquet import fsync_folder, read_rows, write_part
from cbatch.publish import carried_types
from cbatch.rundir import RunDir
from cbatch.schema import COLUMN_INDEX, COLUMNS

Form = Literal["jsonl", "csv", "parquet", "openai-batch", "cerebras-batch"]
FORMS: tuple[Form, ...] = ("jsonl", "csv", "parquet", "openai-batch", "cerebras-batch")
SUFFIXES: dict[str, Form] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}
AT_ONCE_BYTES = 1 << 20  # gathered before they are written
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_LANGUAGES = {"jsonl": "JSON Lines", "csv": "CSV", "parquet": "Parquet"}
_STATUS, _STARTED = COLUMN_INDEX["status"], COLUMN_INDEX["started_at"]
_JSON = tuple(COLUMN_INDEX[name] for name in ("tool_calls", "parsed", "input"))
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Values = list[Any]  # of one row: those of COLUMNS, then the carried ones


def form_of(path: Path, wanted: Form | None) -> Form:
    """What to write into a file of this name. Raises JobError where the name does not say, or says something else."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compressed = bool(suffixes) and suffixes[-1] in (".gz", ".zst")
    suffix = "".join(suffixes[-2:-1] if compressed else suffixes[-1:])
    form = wanted or SUFFIXES.get(suffix)
    if form is None:
        raise JobError(
            f"{path}: the format is not known from the name",
            hint=f"accepted: {' '.join(SUFFIXES)}, the first three with .gz or .zst; or say --format",
        )
    kind = form if form in ("csv", "parquet") else "jsonl"
    if suffix == ".json" or SUFFIXES.get(suffix, kind) != kind:
        raise JobError(
            f"{path}: the name says {suffix}, and --format {form} writes {_LANGUAGES[kind]}",
            hint=f"name it {_renamed(path, kind)}" + (", or leave --format out" if suffix in SUFFIXES else ""),
        )
    if form == "parquet" and compressed:
        raise JobError(f"{path}: a Parquet file is compressed inside", hint="leave the last ending away")
    return form


def _renamed(path: Path, kind: str) -> str:
    """The name with the ending of this kind; Parquet is compressed inside."""
    packed = path.suffix if path.suffix.lower() in (".gz", ".zst") else ""
    plain = path.with_suffix("") if packed else path
    return f"{plain.with_suffix(f'.{kind}').name}{packed if kind != 'parquet' else ''}"


def export(
    folder: RunDir,
    target: Path | BinaryIO,
    form: Form,
    *,
    status: Literal["ok", "error", "all"] = "all",
    force: bool = False,
) -> int:
    """Write the rows of a run with this `status` to a file, or as they come to an open one; returns how many.

    A file is replaced, and only with `force`, once all is written. Raises JobError where it cannot be, RunStopped
    where the disk is full, JournalError for a run that cannot be read.
    """
    if isinstance(target, Path):
        if target.exists() and not (target.is_file() or target.is_dir()):  # before /dev/stdout is /proc/1/fd/pipe:[2]
            raise JobError(f"{target}: not a regular file", hint="`-` writes to stdout")
        target = target.resolve()  # of a link, what it names
        _check(folder, target, force=force)
    carried = _carried(folder)
    names = [*(name for name, _, _ in COLUMNS), *carried]
    count = 0

    def chosen() -> Iterator[Values]:
        nonlocal count
        for row in rows(folder, names):
            if status in (row[_STATUS], "all"):
                count += 1
                yield row

    if form == "parquet":
        if not isinstance(target, Path):
            raise JobError("a Parquet file cannot be written to a pipe", hint="name a FILE, or use --format jsonl")
        with _staged(target) as staged:
            write_part(chosen(), carried, staged, target)
        return count
    pieces = _pieces(folder, form, names, chosen())
    if isinstance(target, Path):
        with _staged(target) as staged:
            with staged.open("xb") as file, closing(compressing(file, target)) as packed:
                _write(pieces, packed)
            with staged.open("rb") as written:
                os.fsync(written.fileno())
            staged.replace(target)
            fsync_folder(target.parent)
        return count
    try:
        _write(pieces, target)
    except BrokenPipeError:  # who reads has seen enough
        raise
    except OSError as exc:
        raise _unwritable("stdout", exc) from None
    return count


# -- rows -------------------------------------------------------------------------------------------


def rows(folder: RunDir, names: Sequence[str]) -> Iterator[Values]:
    """Every row of a run that is durable now, once, in the order of the answers. Raises JournalError."""
    try:
        if not folder.journal.exists():  # a copy of results/ and run.json: all there is
            yield from chain.from_iterable(read_rows(path, names) for path in folder.parts)
            return
        journal = Journal(folder.journal)
        try:
            yield from _numbered(folder, journal, names)
        finally:
            journal.close()
    except OSError as exc:
        raise _damaged(folder.results, exc) from None


def _numbered(folder: RunDir, journal: Journal, names: Sequence[str]) -> Iterator[Values]:
    """The rows from number 1 to what is the last one now, each from its part, or else from the journal."""
    seq, last, stuck = 1, journal.last_seq(), False
    while seq <= last:
        began = seq
        part = next((part for part in journal.parts() if part.first_seq <= seq <= part.last_seq), None)
        if part is not None and part.state == VISIBLE:
            for number, row in _of_part(folder, journal, part, names):
                if seq <= number <= last:  # it may end with rows that came since
                    yield row
            seq = part.last_seq + 1
            continue
        for number, row in journal.bodies(seq, last):
            if number != seq:  # those between are in a part by now
                break
            yield row
            seq += 1
        if stuck and seq == began:
            raise JournalError(
                f"{journal.path}: row {seq:,} is in no part, and not in the journal",
                hint="`cbatch verify` says what is missing",
            )
        stuck = seq == began  # it may have gone into a part since we asked: ask once more


def _of_part(folder: RunDir, journal: Journal, part: Part, names: Sequence[str]) -> Iterator[tuple[int, Values]]:
    """The rows of a visible part; where one was run again and the part not written anew yet, the newer row."""
    # Before the file is opened: should it be replaced in between, then by one that holds these rows.
    newer = journal.bodies(part.first_seq, part.last_seq)
    fresh = next(newer, None)
    number = part.first_seq
    for row in read_rows(folder.results / part.name, names):
        if fresh is not None and fresh[0] == number:
            row, fresh = fresh[1], next(newer, None)
        yield number, row
        number += 1
    if (found := number - part.first_seq) != part.rows:
        raise OSError(f"{part.name}: {found:,} rows, and the journal says {part.rows:,}")


def _carried(folder: RunDir) -> dict[str, str]:
    """The carried columns and their types: the journal's word, else that of the first part."""
    found: dict[str, str] | None = None
    if folder.journal.exists():
        journal = Journal(folder.journal)
        try:
            found = journal.get("carry")
        finally:
            journal.close()
    try:
        return carried_types(folder.path) or {} if found is None else found
    except (OSError, ValueError) as exc:
        raise _damaged(folder.parts[0], exc) from None


def _damaged(path: Path, exc: Exception) -> JournalError:
    return JournalError(f"{path}: {exc}", hint="`cbatch verify` says what is damaged")


# -- one row ----------------------------------------------------------------------------------------


def _pieces(folder: RunDir, form: Form, names: Sequence[str], chosen: Iterable[Values]) -> Iterator[bytes]:
    """What is written, piece by piece."""
    if form == "csv":
        return chain([_csv(names)], map(_csv_row, chosen))
    if form == "jsonl":
        return (_json_row(names, row) for row in chosen)
    encode = _result_line(folder, form)
    return (encode(dict(zip(names, row, strict=True))) for row in chosen)


def _json_row(names: Sequence[str], row: Values) -> bytes:
    """A row as one object; what is JSON in a column is JSON in it, too."""
    values = dict(zip(names, row, strict=True))
    for place in (_STARTED, *_JSON):
        if row[place] is not None:
            values[names[place]] = _time(row[place]) if place == _STARTED else _nested(row[place])
    return orjson.dumps(values, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z)


def _nested(text: str) -> Any:
    """JSON text as it is written, and what is no JSON, such as a broken input row, as a text."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
    # As it stands, numbers of any size keep their digits; but it must not break the line.
    return value if "\n" in text or "\r" in text else orjson.Fragment(text)


def _csv_row(row: Values) -> bytes:
    if row[_STARTED] is not None:
        row[_STARTED] = _time(row[_STARTED]).isoformat().replace("+00:00", "Z")
    return _csv(row)


def _csv(values: Iterable[Any]) -> bytes:
    """A line of CSV: a null is nothing, and a text in quotes, so that an empty one is not a null."""
    cells = []
    for value in values:
        if value is None:
            cells.append("")
        elif isinstance(value, str):
            cells.append('"' + value.replace('"', '""') + '"')
        elif isinstance(value, bool):
            cells.append("true" if value else "false")
        else:
            cells.append(repr(value))
    return (",".join(cells) + "\n").encode()


def _time(micros: int) -> datetime:
    return _EPOCH + timedelta(microseconds=micros)


def _result_line(folder: RunDir, form: Form) -> Callable[[Mapping[str, Any]], bytes]:
    """A row as a result line of a batch API."""
    info = folder.read_info()
    job = info.get("job") or {}
    name = batchfile.several(job, load=bool(info.get("load")))
    if form == "cerebras-batch":

        def answer(row: batchfile.Row) -> dict[str, Any] | None:
            return batchfile.completion(row) if row["status"] == "ok" else None  # it has no other endpoint

        line = batchfile.cerebras_line
    else:
        if (job.get("input") or {}).get("format") == "openai-batch" and not (job.get("results") or {}).get("input"):
            raise JobError(
                f"{folder.path}: its rows were stored without their input, so nobody knows which lines were for "
                f"{batchfile.RESPONSES}",
                hint="`results: {input: true}` in job.yaml keeps it; --format cerebras-batch and the rows need none",
            )
        answer = _answer
        line = batchfile.openai_line
    return lambda row: orjson.dumps(line(row, name(row), answer(row)), option=orjson.OPT_APPEND_NEWLINE)


def _answer(row: batchfile.Row) -> dict[str, Any] | None:
    """The body of the endpoint that the row's request was for; None for an error."""
    if row["status"] != "ok":
        return None
    completion = batchfile.completion(row)
    request = batchfile.request_of(row)
    if request is None:
        return completion
    # Only now: most runs have no such line.
    from cbatch.responses import target, to_chat, to_response

    translation = to_chat(request, target(row["model"]))
    return to_response(
        translation, completion, response_id=batchfile.response_id(row), created_at=batchfile.created(row)
    )


# -- files ------------------------------------------------------------------------------------------


def _check(folder: RunDir, path: Path, *, force: bool) -> None:
    """Raise JobError for a file that cannot, or must not, be written."""
    run = folder.path.resolve()
    ours = path.parent == run and (path.name.startswith("journal.") or path.name == "run.json")
    if ours or run / "results" in path.parents or run / "staging" in path.parents:
        raise JobError(f"{path}: belongs to the run itself", hint="name a file beside the run directory")
    if path.is_dir():
        raise JobError(f"{path}: a folder, not a file", hint=f"for example {path / 'rows.jsonl'}")
    if path.exists() and not force:
        raise JobError(f"{path}: exists already", hint="--force replaces it")
    if not path.parent.is_dir():
        raise JobError(f"{path.parent}: no such folder", hint="make it, or name another file")


@contextmanager
def _staged(path: Path) -> Iterator[Path]:
    """A name beside `path` for a file in the making: gone, whatever happens, and errors told as what they are."""
    staged = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}")
    try:
        yield staged
    except OSError as exc:
        raise _unwritable(path, exc) from None
    finally:
        with suppress(OSError):
            staged.unlink(missing_ok=True)


def _unwritable(path: Path | str, exc: OSError) -> CbatchError:
    reason = exc.strerror or exc
    if exc.errno in FULL:
        return RunStopped(f"{path}: {reason}", hint="free some space; the run itself is untouched")
    return JobError(f"{path}: cannot be written: {reason}", hint="name another FILE")


def _write(pieces: Iterator[bytes], file: BinaryIO) -> None:
    gathered: list[bytes] = []
    size = 0
    for piece in pieces:
        gathered.append(piece)
        size += len(piece)
        if size >= AT_ONCE_BYTES:
            _write_all(b"".join(gathered), file)
            gathered, size = [], 0
    _write_all(b"".join(gathered), file)
    file.flush()


def _write_all(data: bytes, file: BinaryIO) -> None:
    """Write it to the end: stdout with PYTHONUNBUFFERED=1 takes what fits, and does not fail where that is less."""
    if not isinstance(file, io.RawIOBase):
        file.write(data)
        return
    rest = memoryview(data)
    while rest:
        taken = file.write(rest)
        if taken is None:  # a pipe that does not block, and is full
            raise BlockingIOError(errno.EAGAIN, "it does not block, and who reads it is too slow")
        rest = rest[taken:]
