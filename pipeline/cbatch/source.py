"""Job -> Iterator[Prompt]: JSONL, JSON arrays, CSV and Parquet, plain or compressed, with stable ids.

Rows are streamed; nothing here grows with their number but 8 bytes a row during the survey, and the
hashes of rows that occur more than once.
A row that cannot be read is still a row: it travels on with a `problem` and ends as an error
row with its line number, and the others run.

A row's id is the user's id column when the job names one, else a hash of the row's content with
its occurrence number. (Of the content and not of the rendered request: so an edited template
re-asks the same rows, and a row has one id for all models.)
"""

from __future__ import annotations

import csv
import glob
import hashlib
import random
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from cbatch import batchfile
from cbatch.errors import JobError, SourceError
from cbatch.formats import Row, Stamp, format_of, plain, read, to_json
from cbatch.job import Job
from cbatch.render import RenderError, condition
from cbatch.schema import COLUMN_INDEX, Prompt

MAX_MODELS = 32  # that the lines of a batch file may name: each is a pass over the file


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What one pass over the input tells: how many rows, which repeat, and what it is (a sha-256)."""

    rows: int
    problems: int
    fingerprint: str
    repeated: frozenset[bytes]  # content hashes that occur more than once
    chosen: frozenset[int] | None  # row indexes of input.sample
    carry_types: dict[str, str] = field(default_factory=dict)
    models: dict[str, int] = field(default_factory=dict)  # rows for each: the job's, or those that lines name


class Source:
    """The input of a job. `survey()` once, then `prompts()` as often as needed."""

    def __init__(self, job: Job, *, limit: int | None = None) -> None:
        self._spec = job.input
        self._job = job
        self._where = condition(job.input.where) if job.input.where else None
        self._decided = False  # whether `where` said yes or no of any row
        limits = [n for n in (job.input.limit, limit) if n is not None]
        self._limit = min(limits) if limits else None
        self.files = find_files(job)
        self._stamps: dict[Path, Stamp] = {}  # the files as they were at the survey

    def rows(self, chosen: frozenset[int] | None = None) -> Iterator[Row]:
        """The rows that `where`, `sample`, `shard` and `limit` leave, applied in this order."""
        return (row for row in self._steps(chosen) if row is not None)

    def _steps(self, chosen: frozenset[int] | None) -> Iterator[Row | None]:
        """The same, with None for every row passed over."""
        which, of = self._spec.shard_of or (0, 1)
        picked = taken = 0
        for row in self._looked_at():
            if row is None or (chosen is not None and row.number not in chosen):
                yield None
                continue
            picked += 1
            if (picked - 1) % of != which:
                yield None
                continue
            yield row
            taken += 1
            if taken == self._limit:
                return

    def survey(self) -> Survey:
        """Read everything once: count, find duplicate ids, learn the types of carried columns.

        Raises SourceError for an empty input, an unreadable file, and duplicate ids (both lines named). From
        here on a file must stay as it is, but for what is appended: what it says of repeated rows would be wrong,
        and two rows would have one id.
        """
        for path in self.files:
            with suppress(OSError):  # said with its reason when it is read
                self._stamps[path] = Stamp.of(path)
        chosen = self._choose()
        hashes = array("Q")
        problems = 0
        column, identified = self._spec.id, False
        models = Counter[str]()
        for row in self.rows(chosen):
            named = self._model(row)
            if self._by_line:
                models[named or ""] += 1
                self._refuse_many(models)
            identity = _row_id(row, column)
            identified = identified or identity is not None
            hashes.append(int.from_bytes(_hash(identity if identity is not None else _content(row)), "little"))
            nameless = self._by_line and named is None
            if row.problem is not None or (column is not None and identity is None) or nameless:
                problems += 1
        if not hashes:
            names = ", ".join(str(f) for f in self.files[:3])
            filters = [k for k in ("where", "sample", "shard", "limit") if getattr(self._spec, k) is not None]
            why = f" after {', '.join(filters)}" if filters and self._any() else "; the input is empty"
            raise SourceError(f"{names}: no rows to run{why}")
        if self._where is not None and not self._decided:
            self._refuse_condition()
        if column is not None and not identified and not self._has_column(column):
            raise JobError(f"{self._job.at('input.id')}: no row has a column {column!r}", hint=self._columns_hint())
        repeated = _repeated(hashes)
        if repeated and column is not None:
            self._refuse_duplicates(chosen, repeated)
        return Survey(
            rows=len(hashes),
            models=self._named(models) if self._by_line else dict.fromkeys(self._job.model, len(hashes)),
            problems=problems,
            fingerprint=self.fingerprint(),
            repeated=frozenset(repeated),
            chosen=chosen,
            carry_types=self._carry_types(),
        )

    @property
    def _by_line(self) -> bool:
        """Whether each row goes to the model that it names itself."""
        return not self._job.model

    def _model(self, row: Row) -> str | None:
        """The model that a row names; None where it names none, or is not asked."""
        return batchfile.model_of(row.fields) if self._by_line and row.fields is not None else None

    def _refuse_many(self, models: Counter[str]) -> None:
        if len(models) > MAX_MODELS:
            first = ", ".join(repr(name) for name in list(models)[:3])
            raise JobError(
                f"{self._job.at('input')}: the lines name more than {MAX_MODELS} models: {first}, …",
                hint="`model` in job.yaml replaces them",
            )

    def _named(self, models: Counter[str]) -> dict[str, int]:
        """The models that lines name, in the order they are met; lines without one are errors of the first."""
        nameless = models.pop("", 0)
        if not models:
            raise JobError(
                f"{self._job.at('model')}: no line names one in its body, and this key is missing",
                hint="give `model` in job.yaml",
            )
        for model in models:
            try:
                self._job.check_model(model)
            except ValueError as exc:
                key, _, text = str(exc).partition(": ")
                raise JobError(f"{self._job.at(key)}: {text}") from None
        models[next(iter(models))] += nameless
        return dict(models)

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
        """Every row for every one of `models` and every sample, with its id; a line that names its model for that."""
        return (prompt for prompt in self.prompts_and_gaps(survey, models) if prompt is not None)

    def prompts_and_gaps(self, survey: Survey, models: Sequence[str]) -> Iterator[Prompt | None]:
        """The same, with None for every row passed over, for who must not read a million of them in one go."""
        column = self._spec.id
        occurrences: dict[bytes, int] = {}
        samples = range(self._job.samples)
        for row in self._steps(survey.chosen):
            if row is None:
                yield None
                continue
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
            if self._by_line:
                named = self._model(row)
                if named is None and problem is None:
                    fields, problem = None, batchfile.why_no_model(fields or {})
                asked = [named or next(iter(survey.models))]
                asked = [model for model in asked if model in models]
            else:
                asked = list(models)
            if survey.carry_types and fields is not None:
                try:  # here and not when the answer is in: it would be paid for and could not be stored
                    carried(fields, survey.carry_types)
                except RecursionError:
                    fields, problem = None, "a column of results.carry is nested too deeply"
            for model in asked:
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
                for row in read(path, self._spec.format, index, self._stamps.get(path)):
                    index = row.number + 1
                    yield row
            except (OSError, EOFError, zlib.error, pa.ArrowException, csv.Error, ValueError, OverflowError) as exc:
                reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else exc
                raise SourceError(f"{path}: cannot be read after row {index}: {reason}") from exc

    def _matching(self) -> Iterator[Row]:
        return (row for row in self._looked_at() if row is not None)

    def _looked_at(self) -> Iterator[Row | None]:
        """Every row that `where` leaves, and None for every other."""
        for row in self._all_rows():
            if self._where is not None and row.fields is not None:
                try:
                    holds = self._where(row.fields)
                    self._decided = True
                    if not holds:
                        yield None
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
                raise JobError(
                    f"{self._job.at('results.carry')}: no row has a column {name!r}", hint=self._columns_hint()
                )
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
                hint="a custom_id stands for one line: give each its own"
                if self._spec.is_batch
                else f"ids must be unique; `input.id: {self._spec.id}` may name the wrong column",
            )

    def _any(self) -> bool:
        return next(self._all_rows(), None) is not None

    def _refuse_condition(self) -> None:
        """Raise JobError if `where` can be decided for no row at all: then it is wrong, not a row."""
        first: Row | None = None
        for row in self._matching():
            if self._decided:
                return
            if row.problem is not None and row.problem.startswith("input.where"):
                first = first or row
        if first is not None:
            problem = (first.problem or "").removeprefix("input.where ")
            raise JobError(
                f"{self._job.at('input.where')}: {problem} ({first.origin}, and so every row)",
                hint=self._columns_hint(),
            )

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


def find_files(job: Job) -> list[Path]:
    """The files that the input's paths and globs name, globs sorted. Raises SourceError where there is none."""
    spec, folder, at = job.input, Path(job.folder), job.at("input")
    files: list[Path] = []
    for name in spec.path:
        try:
            path = folder / Path(name).expanduser()
        except RuntimeError as exc:  # ~nobody
            raise SourceError(f"{name}: {exc}") from None
        if path.is_file():
            files.append(path)
        elif path.is_dir():
            raise SourceError(f"{at}: {path}: a folder, not a file", hint=f"name the files, for example {name}/*.jsonl")
        elif glob.has_magic(name):
            pattern = Path(name).expanduser()
            root = Path(pattern.anchor) if pattern.is_absolute() else folder
            found = sorted(p for p in root.glob(str(pattern.relative_to(pattern.anchor))) if p.is_file())
            if not found:
                raise SourceError(f"{at}: {path}: no file matches", hint="paths start at the folder of the job file")
            files += found
        else:
            raise SourceError(f"{at}: {path}: no such file", hint="paths start at the folder of the job file")
    for path in files:
        format_of(path, spec.format)
    return list(dict.fromkeys(files))  # a path and a glob may name the same file: its rows are not paid twice


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=8).digest()


def _content(row: Row) -> bytes:
    """The row in one spelling, so that JSONL, CSV and Parquet copies of it have the same id."""
    if row.fields is None:
        return row.raw
    try:
        return orjson.dumps(row.fields, default=plain, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
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
            value = to_json(value).decode("utf-8", "replace") if isinstance(value, dict | list | bool) else plain(value)
        values.append(value)
    return values


def check_carry(job: Job) -> None:
    """Raise JobError if a carried column has the name of a result column."""
    for name in job.results.carry:
        if name in COLUMN_INDEX:
            raise JobError(
                f"{job.at('results.carry')}: {name!r} is the name of a result column",
                hint="rename it in the input; the whole row is in the column `input` too",
            )
