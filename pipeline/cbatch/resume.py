"""Which prompts have no row yet, and whether a run directory belongs to this job at all.

A row is known by (id, model, sample) and compared by the digest of its request. As long as the
recipe (template, parameters, models) and the input are byte for byte those of the finished run,
no digest is computed and known rows are skipped by their key alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from itertools import groupby, islice
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import orjson

from cbatch.errors import JobError
from cbatch.job import Job
from cbatch.journal import Journal, Known, Writer, key_of
from cbatch.render import Renderer, RenderError
from cbatch.schema import Prompt
from cbatch.session import Options, Progress
from cbatch.source import Source, Survey

BREATHE_ROWS = 256  # rows skipped in one go before the event loop may serve others
TRIAL_ROWS = 20  # rows rendered before anything is sent: if none can be, the template is wrong


class Work(NamedTuple):
    """One prompt to be sent; `replaces` is the seq of the row whose place its outcome takes."""

    prompt: Prompt
    key: bytes
    replaces: int | None


class Resume:
    """What the journal of a run directory already holds for a job."""

    def __init__(self, job: Job, journal: Journal, renderers: Mapping[str, Renderer], options: Options) -> None:
        self._job = job
        self._journal = journal
        self._renderers = renderers
        self._options = options
        self._check_digests = False
        self.known_before = sum(journal.counts())
        self.known_seen = 0
        self.orphaned = journal.get("orphaned") or 0  # known rows that come from no prompt of this input

    @property
    def not_seen(self) -> int:
        """Known rows that no prompt asked for; at the end of the input these are the orphaned ones."""
        return self.known_before - self.known_seen

    @property
    def may_replace(self) -> bool:
        """Whether rows that are already on disk may be run again."""
        return self._check_digests or self._options.retry_failed

    def compare(self, source: Source, survey: Survey, endpoint: str, endpoint_said: str | None) -> None:
        """Decide whether digests must be compared.

        Raises JobError where going on would mix two jobs, or would silently keep or repeat answers
        to requests that were edited since.
        """
        if not self.known_before:
            return
        self._journal.index()  # here, off the event loop
        folder = _run_folder(self._journal)
        label = self._journal.get("endpoint") or endpoint_said
        if label is not None and label != endpoint:
            raise JobError(
                f"{folder}: holds answers from {label}, and this run would add answers from {endpoint}",
                hint="--output DIR keeps both; --fresh deletes these and starts over"
                + ("; answers of the simulator and of the real API never mix" if "local" in label else ""),
            )
        unchanged = (
            self._journal.get("recipe") == recipe(self._job) and self._journal.get("source") == survey.fingerprint
        )
        # `--changed rerun` also means what was kept before.
        if unchanged and self._options.changed != "rerun":
            return
        self._check_digests = True
        known = changed = 0
        for prompt in source.prompts(survey, list(survey.models)):
            found = self._journal.lookup(key_of(prompt.id, prompt.model), prompt.sample)
            if found is not None:
                known += 1
                changed += found.ok and self._digest(prompt) != found.digest
        self.orphaned = self.known_before - known
        if not known and self._options.limit is None:  # a limit may just not reach the known rows
            raise JobError(
                f"{folder}: belongs to another job: none of its {self.known_before:,} rows comes from this input "
                f"and model {', '.join(survey.models)}",
                hint="use another folder with --output, or start over with --fresh",
            )
        if changed and self._options.changed is None:
            raise JobError(
                f"{folder}: {changed:,} of {known:,} known prompts were answered before the template, "
                "the params or their rows were edited",
                hint="--changed rerun sends them again, --changed keep keeps their answers, --output DIR starts beside",
            )

    def unanswered(self, source: Source, survey: Survey, model: str, progress: Progress) -> Iterator[Work | None]:
        """The prompts of `model` to be sent; counts the known ones into `progress`.

        Yields None now and then, so that skipping a million rows lets the event loop breathe.
        """
        skipped = seen = 0
        for prompt in source.prompts_and_gaps(survey, (model,)):
            # Rows appended since the survey wait for the next start: it does not know which of them repeat others.
            if seen == survey.models[model] * self._job.samples:
                return
            if prompt is None:
                skipped += 1
                if skipped % BREATHE_ROWS == 0:
                    yield None
                continue
            seen += 1
            key = key_of(prompt.id, prompt.model)
            known = self._journal.lookup(key, prompt.sample) if self.known_before else None
            if known is None:
                yield Work(prompt, key, None)
                continue
            self.known_seen += 1
            if self._must_run_again(known, prompt):
                yield Work(prompt, key, known.seq)
                continue
            progress.left_by_model[model] -= 1
            progress.done += known.ok
            progress.failed += not known.ok
            skipped += 1
            if skipped % BREATHE_ROWS == 0:
                yield None

    def unsettle(self, writer: Writer) -> None:
        """Forget the recipe before rows of another one are added: until all are, every start compares digests."""
        if self._check_digests:
            writer.set("recipe", None).result()

    def settle(self, writer: Writer, survey: Survey, endpoint: str) -> None:
        """Remember what the rows of this folder were made from."""
        for name, value in (
            ("recipe", recipe(self._job)),
            ("source", survey.fingerprint),
            ("endpoint", endpoint),
            ("orphaned", self.not_seen),
        ):
            writer.set(name, value).result()

    def _must_run_again(self, known: Known, prompt: Prompt) -> bool:
        if not known.ok and self._options.retry_failed:
            return True
        if not self._check_digests or (known.ok and self._options.changed == "keep"):
            return False
        # A failed row whose request was edited is simply tried again: nothing was paid for it.
        return self._digest(prompt) != known.digest

    def _digest(self, prompt: Prompt) -> bytes:
        """The digest that a row made now would have; empty where no request can be made."""
        if prompt.problem is not None:
            return b""
        try:
            return self._renderers[prompt.model](prompt).digest
        except RenderError:
            return b""


def recipe(job: Job) -> str:
    """What makes answers those of the same job, as a sha-256: model, prompt and parameters, not the input."""
    parts: dict[str, object] = {
        "prompt": job.prompt.model_dump(),
        "params": job.params.body(),
        "model": sorted(job.model),
    }
    if job.load is not None:
        parts["load"] = job.load.model_dump()
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _run_folder(journal: Journal) -> Path:
    """The run directory of a journal, which may lie elsewhere: then a file beside it says whose it is."""
    folder = journal.path.parent
    try:
        return Path(os.fsdecode((folder / "run").read_bytes()))
    except OSError:
        return folder


def try_template(source: Source, survey: Survey, renderers: Mapping[str, Renderer], at: str) -> None:
    """Raise JobError if none of the first rows can be rendered: then the template is wrong, not a row."""
    problem: tuple[str, str] | None = None
    by_row = groupby(source.prompts(survey, list(survey.models)), key=attrgetter("index"))
    for row in islice((next(prompts) for _, prompts in by_row), TRIAL_ROWS):
        if row.problem is None:
            try:
                renderers[row.model](row)
            except RenderError as exc:
                problem = problem or (row.origin, str(exc))
            else:
                return
    if problem is not None:
        tried = "no row" if survey.rows <= TRIAL_ROWS else f"none of the first {TRIAL_ROWS} rows"
        raise JobError(f"{at}: {tried} can be rendered; {problem[0]}: {problem[1]}")
