"""Jobs made ready to run, and run: by the command, and from Python by `cbatch.run` and `cbatch.arun`."""

from __future__ import annotations

import asyncio
import filecmp
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cbatch import environment, jobfile
from cbatch.connection import Connection, Shared
from cbatch.engine import Run
from cbatch.errors import JobError
from cbatch.job import MADE, Job, Load
from cbatch.load import LoadRun
from cbatch.loadplan import FIXED_CONCURRENCY
from cbatch.rundir import RunDir, open_run
from cbatch.runlock import is_locked
from cbatch.session import Changed, Options, Summary
from cbatch.turns import Turns

if TYPE_CHECKING:
    from cbatch.report.evidence import Evidence
    from cbatch.report.findings import Findings


async def arun(
    job: str | Path | Mapping[str, Any],
    *,
    output: str | Path | None = None,
    sim: bool = False,
    base_url: str | None = None,
    api_key_file: str | Path | None = None,
    overrides: Sequence[str] = (),
    limit: int | None = None,
    retry_failed: bool = False,
    changed: Changed | None = None,
    fresh: bool = False,
    state_dir: str | Path | None = None,
    notify: Callable[[str], None] = lambda message: None,
) -> Summary:
    """Run a job as `cbatch run` does, on this event loop; the same call again resumes it.

    `job` is a job.yaml, or its content as a mapping, paths relative to the current folder; the rest are the
    command's options. Returns how it ended; `exit_code` is the contract's, gates of the job included. Raises
    CbatchError where nothing could be started. Cancelling it loses nothing that was counted.
    """
    loaded = _load(job, overrides)
    runs = prepare(
        [as_load(loaded, None, interleaved=False)],
        [output_folder(loaded, Path(output) if output is not None else None)],
        sim=sim,
        base_url=base_url,
        api_key_file=Path(api_key_file) if api_key_file is not None else None,
        state_dir=Path(state_dir) if state_dir is not None else None,
        options=Options(limit=limit, retry_failed=retry_failed, changed=changed, fresh=fresh),
        notify=notify,
    )
    summary = await runs[0].execute()
    judged = await asyncio.to_thread(findings, loaded, runs[0].folder, summary)
    return replace(summary, exit_code=judged[1].exit_code or summary.exit_code) if judged else summary


def run(job: str | Path | Mapping[str, Any], **options: Any) -> Summary:
    """`arun` for code that is not async, also where an event loop is running already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(arun(job, **options))
    ended: list[Summary] = []
    failed: list[BaseException] = []

    def elsewhere() -> None:
        try:
            ended.append(asyncio.run(arun(job, **options)))
        except BaseException as exc:  # noqa: BLE001  it is raised below, in the thread that asked
            failed.append(exc)

    thread = threading.Thread(target=elsewhere, name="cbatch run")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return ended[0]


def _load(job: str | Path | Mapping[str, Any], overrides: Sequence[str]) -> Job:
    if isinstance(job, Mapping):
        return jobfile.of_mapping(job, overrides)
    return jobfile.load(Path(job), overrides)


def prepare(
    jobs: Sequence[Job],
    folders: Sequence[Path],
    *,
    sim: bool,
    base_url: str | None,
    api_key_file: Path | None,
    state_dir: Path | None,
    options: Options,
    notify: Callable[[str], None],
) -> list[Run]:
    """The runs of these jobs, to be executed together: several take turns, block by block. Raises CbatchError."""
    turns = Turns() if len(jobs) > 1 else None
    pools: dict[object, Shared] = {}
    runs: list[Run] = []
    for job, folder, other in zip(jobs, folders, [*folders[1:], *folders[:1]], strict=True):
        connection = Connection(
            sim=sim,
            url=base_url,
            key_file=api_key_file,
            endpoint=job.endpoint,
            folder=Path(job.folder),
            timeouts=job.timeouts,
            tier=job.limits.tier,
        )
        # Interleaved jobs to one endpoint share its connections: what is compared is not two pools.
        # The folder is where a key may be: a job is never sent with another's.
        pool = pools.setdefault((job.endpoint, job.timeouts, job.limits.tier, job.folder), Shared(connection.open))
        job, offsets = with_prompts(job, folder, notify, fresh=options.fresh)
        common: dict[str, Any] = {
            "connect": pool.open,
            "endpoint": connection.label,
            "simulated": connection.simulated,
            "accounts": None if connection.simulated else environment.state_folder(),
            "options": options,
            "warn": notify,
        }
        place = RunDir.at(folder, state_dir)
        if job.load is None:
            runs.append(Run(job, place, **common))
        else:
            with_ = str(other) if turns is not None else None
            runs.append(LoadRun(job, place, turns=turns, with_=with_, offsets=offsets, **common))
        calibrates = job.load is not None and job.load.calibrate
        allow_many_connections(most_in_flight(job), echo=2 if calibrates else 0)
    return runs


def findings(job: Job, folder: RunDir, summary: Summary) -> tuple[Evidence, Findings] | None:
    """What a finished run measured, where its job is a measurement or has gates; else None."""
    # A load run with failed requests has been measured all the same.
    if summary.state != "finished" or not (job.load or (job.gates and not summary.exit_code)):
        return None
    from cbatch.report.evidence import read
    from cbatch.report.findings import find

    evidence = read(folder)
    return evidence, find(evidence)


def most_in_flight(job: Job) -> int:
    """The most connections that the job may open."""
    load = job.load
    if load is None:
        return job.limits.in_flight[1]
    return int(max(load.concurrency or [load.max_in_flight]))


def output_folder(job: Job, output: Path | None) -> Path:
    """Where the run lives: --output, else the job's `output` with its placeholders filled in."""
    if output is not None:
        return output
    now = datetime.now().astimezone()
    text = job.output
    for name, value in (
        ("date", now.strftime("%Y-%m-%d")),
        ("time", now.strftime("%H%M%S")),
        ("model", "+".join(job.model).replace("/", "_")),
        ("name", job.name),
    ):
        text = text.replace(f"{{{name}}}", value)
    return Path(text).expanduser()


def allow_many_connections(concurrency: int, *, echo: int = 0) -> None:
    """Raise the soft limit of open files: 10,000 connections do not fit the usual 1,024.

    A calibration opens as many again, and the other end of each (`echo`); it is left out where they do not fit.
    """
    try:
        import resource
    except ImportError:  # not on Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = concurrency + 200
    if hard != resource.RLIM_INFINITY and wanted > hard:
        raise JobError(
            f"{concurrency:,} connections need more open files than this machine allows ({hard:,})",
            hint="lower limits.concurrency or the load, or raise the limit (ulimit -n)",
        )
    wanted += echo * concurrency
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


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
