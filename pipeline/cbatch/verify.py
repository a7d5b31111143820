"""The proof of a run: one row per prompt, model and sample, and journal and Parquet agree.

Every claim is checked against the files, not against what the run said about itself: the input
is read again, every part is hashed and read, and the two are compared key by key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cbatch.errors import JobError, SourceError
from cbatch.job import Job
from cbatch.journal import VISIBLE, Journal, key_of
from cbatch.parquet import read_rows, sha256
from cbatch.render import RenderError, Renderers
from cbatch.rundir import RunDir
from cbatch.source import Source

EXAMPLES = 5  # of each kind of problem
_IDENTITY = ("id", "model", "sample", "digest", "status")


@dataclass(slots=True)
class Proof:
    """What was found: `problems` break a promise, `notes` do not."""

    rows: int = 0
    parts: int = 0
    pending: int = 0
    prompts: int | None = None  # expected rows; None where the input cannot be read
    blocks: int | None = None  # of a load run, which has no fixed number of rows
    orphaned: int = 0
    failed: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, kind: str, cases: list[str], count: int) -> None:
        """Add a problem with its first cases."""
        if count:
            self.problems.append(f"{kind}: {count:,}, for example {'; '.join(cases[:EXAMPLES])}")


def verify(folder: RunDir) -> Proof:
    """Check everything. Raises JournalError if there is no readable journal."""
    proof = Proof()
    journal = Journal(folder.journal)
    try:
        journal.index()
        doubles = _doubles(journal)
        seen = _check_parts(folder, journal, doubles, proof)
        _check_journal(journal, seen, proof)
        if load := folder.read_info().get("load") or journal.get("load"):
            _check_blocks(folder, load["blocks"], proof)
        else:
            _check_input(folder, journal, seen, proof)
    finally:
        journal.close()
    return proof


def _doubles(journal: Journal) -> set[tuple[bytes, int]]:
    """The keys with more than one row in the journal."""
    keys = ((key, sample) for key, sample, _, _ in journal.entries())
    return {one for one, next_one in pairwise(keys) if one == next_one}


def _check_parts(
    folder: RunDir, journal: Journal, doubles: set[tuple[bytes, int]], proof: Proof
) -> set[tuple[bytes, int]]:
    """Read every part; the keys that have a row, in a part or waiting in the journal for one."""
    in_parts: set[tuple[bytes, int]] = set()  # of those with more than one row there
    seen: set[tuple[bytes, int]] = set()
    twice: list[str] = []
    unknown: list[str] = []
    other: list[str] = []
    parts = journal.parts()
    known = {part.name: part for part in parts}
    for path in sorted(folder.results.glob("*")):
        if path.name not in known:
            proof.problems.append(f"{path}: a file that the journal does not know")
    for part in parts:
        path = folder.results / part.name
        if part.state != VISIBLE:
            proof.notes.append(f"{part.name} is planned and not published; the next `cbatch run` finishes it")
            continue
        if not path.exists():
            proof.problems.append(f"{path}: missing, with {part.rows:,} rows")
            continue
        proof.parts += 1
        rewritten = journal.count_bodies(part.first_seq, part.last_seq)
        if rewritten:
            proof.notes.append(
                f"{part.name} has {rewritten:,} newer rows in the journal; the next `cbatch run` puts them in"
            )
        elif sha256(path) != part.sha256:
            proof.problems.append(f"{path}: changed since it was written (sha-256 differs)")
        rows = 0
        try:
            for seq, (key, sample, name, digest, status) in enumerate(_rows(path), part.first_seq):
                rows += 1
                name = f"{name} in {part.name}"
                if (key, sample) in seen:
                    twice.append(name)
                    in_parts.add((key, sample))
                seen.add((key, sample))
                proof.failed += status == "error"
                if not rewritten and (key, sample) not in doubles:
                    known_row = journal.lookup(key, sample)
                    if known_row is None:
                        unknown.append(name)
                    elif known_row.seq != seq or known_row.digest.hex() != digest:
                        other.append(name)
        except OSError as exc:
            proof.problems.append(str(exc))
            continue
        proof.rows += rows
        if rows != part.rows:
            proof.problems.append(f"{path}: {rows:,} rows, and the journal says {part.rows:,}")
    proof.add("prompts with more than one row", twice, len(twice))
    if hidden := len(doubles - in_parts):  # their rows, or all but one, are in no part yet
        proof.problems.append(f"{hidden:,} prompts have more than one row in the journal")
    proof.add("rows that are not in the journal", unknown, len(unknown))
    proof.add("rows that are others in the journal", other, len(other))
    return seen


def _rows(path: Path) -> Iterator[tuple[bytes, int, str, str, str]]:
    for prompt_id, model, sample, digest, status in read_rows(path, _IDENTITY):
        yield key_of(prompt_id, model), sample, f"{prompt_id!r} ({model}, sample {sample})", digest or "", status


def _check_journal(journal: Journal, seen: set[tuple[bytes, int]], proof: Proof) -> None:
    first, last = journal.unplaced()
    planned = [part for part in journal.parts() if part.state != VISIBLE]
    missing = 0
    for key, sample, _, seq in journal.entries():
        if (key, sample) in seen:
            continue
        if first <= seq <= last or any(part.first_seq <= seq <= part.last_seq for part in planned):
            seen.add((key, sample))
            proof.pending += 1
        else:
            missing += 1
    if missing:
        proof.problems.append(f"{missing:,} rows of the journal are in no part")
    if proof.pending:
        proof.notes.append(
            f"{proof.pending:,} rows are safe in the journal and not in a part yet; `cbatch run` puts them in"
        )


def _check_blocks(folder: RunDir, blocks: list[dict[str, Any]], proof: Proof) -> None:
    """A load run asks a prompt as often as its blocks take: each must have the rows that it counted."""
    proof.blocks = len(blocks)
    if proof.pending:
        return
    rows: Counter[int] = Counter()
    for part in folder.parts:
        with suppress(OSError):  # said already
            rows.update(block for block, phase in read_rows(part, ["load_block", "load_phase"]) if phase == "measure")
    for block in blocks:
        if block["complete"] and rows[block["block"]] != block["requests"]:
            proof.problems.append(
                f"block {block['block']}: {rows[block['block']]:,} rows, and run.json counted {block['requests']:,}"
            )


def _check_input(folder: RunDir, journal: Journal, seen: set[tuple[bytes, int]], proof: Proof) -> None:
    info = folder.read_info()
    try:
        job = Job.model_validate(info.get("job"))
        source = Source(job, limit=info.get("limit"))
        survey = source.survey()
    except (ValidationError, JobError, SourceError) as exc:
        proof.problems.append(f"the input cannot be read again, so missing prompts cannot be looked for: {exc}")
        return
    if survey.fingerprint != info.get("source", {}).get("sha256"):
        proof.notes.append("the input was edited since the last run")
    renderers = Renderers(job)
    proof.prompts = 0
    missing: list[str] = []
    other: list[str] = []
    matched = 0
    for prompt in source.prompts(survey, list(survey.models)):
        proof.prompts += 1
        key = (key_of(prompt.id, prompt.model), prompt.sample)
        if key not in seen:
            missing.append(prompt.origin) if len(missing) < EXAMPLES else None
            continue
        matched += 1
        known = journal.lookup(*key)
        if known is not None and known.ok and prompt.problem is None:
            try:
                if renderers[prompt.model](prompt).digest != known.digest:
                    other.append(prompt.origin) if len(other) < EXAMPLES else None
            except RenderError:
                other.append(prompt.origin) if len(other) < EXAMPLES else None
    if matched < proof.prompts:
        proof.add("prompts without a row", missing, proof.prompts - matched)
    if other:
        proof.notes.append(f"some answers are to an older request (edited since), for example {'; '.join(other)}")
    proof.orphaned = len(seen) - matched
    if proof.orphaned:
        proof.notes.append(f"{proof.orphaned:,} rows no longer come from this input")
