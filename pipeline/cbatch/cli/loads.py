"""What the options and keys of load runs mean before anything is sent: made prompts, repeats, interleaving."""

from __future__ import annotations

import filecmp
from collections.abc import Callable, Sequence
from pathlib import Path

from cbatch.cli.shared import open_run
from cbatch.errors import JobError
from cbatch.job import MADE, Job, Load
from cbatch.loadplan import FIXED_CONCURRENCY
from cbatch.rundir import RunDir
from cbatch.runlock import is_locked


def as_load(job: Job, repeats: int | None, *, interleaved: bool) -> Job:
    """The job with `--repeat`; a batch becomes a closed loop over its prompts. Raises JobError."""
    load = job.load
    if load is None:
        if repeats is None and not interleaved:
            return job
        option = "--interleave" if interleaved else "--repeat"
        if job.samples != 1:
            raise JobError(f"{job.at('samples')}: does not go with {option}, which asks every prompt again")
        if job.retry.hedge is not None:
            raise JobError(f"{job.at('retry.hedge')}: does not go with {option}, which asks nothing twice")
        load = Load(mode="closed", requests=None)
    if repeats is not None:
        if load.mode == "search":
            raise JobError("--repeat: a search decides itself what it runs", hint="leave it out")
        load = load.model_copy(update={"repeats": repeats})
    return job.model_copy(update={"load": _with_levels(job, load)})


def _with_levels(job: Job, load: Load) -> Load:
    """The load with its concurrency, where it has none of its own."""
    if load.mode != "closed" or load.concurrency is not None:
        return load
    fixed = job.limits.concurrency if isinstance(job.limits.concurrency, int) else FIXED_CONCURRENCY
    return load.model_copy(update={"concurrency": [fixed]})


def with_prompts(
    job: Job, folder: Path, notify: Callable[[str], None], *, fresh: bool = True
) -> tuple[Job, Sequence[float]]:
    """The job with its made or replayed prompts in `folder`, and the times of a replay (s).

    A file that is there already and the same is left alone: a run may be reading it. Another one is replaced
    only where the run starts over. Raises CbatchError.
    """
    made = job.input.synthetic
    replay = job.load is not None and job.load.mode == "replay"
    if made is None and not replay:
        return job, ()
    from cbatch import prompts

    path = folder / MADE
    new = path.with_suffix(".new")
    offsets: Sequence[float] = ()
    if made is not None:
        folder.mkdir(parents=True, exist_ok=True)
        prompts.write_synthetic(new, made.rows, made.tokens, made.seed)
    else:
        assert job.load is not None
        assert job.load.of is not None
        earlier = open_run(Path(job.folder) / job.load.of)
        if earlier.path.resolve() == folder.resolve():
            raise JobError(
                f"{job.at('load.of')}: {job.load.of} is where this run writes", hint="give it another `output`"
            )
        folder.mkdir(parents=True, exist_ok=True)
        from cbatch.report.evidence import pending_rows

        found = prompts.write_replay(
            new, earlier.path, earlier.parts, pending_rows(earlier), model=job.model[0], limit=job.input.limit
        )
        offsets = found.offsets_s
        if found.never_sent or found.without_input:
            notify(f"{earlier.path}: {found.never_sent + found.without_input:,} rows were never sent, or kept no input")
    if path.exists() and (is_locked(*RunDir(folder).locks) or filecmp.cmp(path, new, shallow=False)):
        new.unlink()
    elif path.exists() and not fresh and RunDir(folder).is_run():
        new.unlink()
        raise JobError(
            f"{folder}: holds a run with other prompts than the ones this job makes",
            hint="--output DIR starts beside it; --fresh deletes it and starts over",
        )
    else:
        new.replace(path)
    return job.model_copy(update={"input": job.input.model_copy(update={"path": [str(path.resolve())]})}), offsets
