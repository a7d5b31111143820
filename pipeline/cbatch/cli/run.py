"""`cbatch run`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from cbatch import jobfile
from cbatch.cli import decided, say
from cbatch.cli.progress import watch
from cbatch.cli.shared import connection_options, json_option, print_json, run_async
from cbatch.cli.words import count, duration, money, plural, printable, rate, where_time_went
from cbatch.engine import Run
from cbatch.errors import JobError
from cbatch.job import Job
from cbatch.jobs import as_load, findings, output_folder, prepare
from cbatch.metrics import Metrics, serve
from cbatch.rundir import RunDir
from cbatch.session import Options, Summary


@click.command(epilog="Example: cbatch run jobs/hello.yaml --sim --limit 10")
@click.argument("job_file", metavar="JOB.yaml", type=click.Path(path_type=Path))
@connection_options
@json_option
@click.option("--quiet", is_flag=True, help="Print nothing but warnings and errors.")
@click.option("--limit", metavar="N", type=click.IntRange(1), help="Run only the first N rows.")
@click.option(
    "--output",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="The run directory, instead of the job's.",
)
@click.option(
    "--state-dir",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="A local folder for the journal, where the run directory is on a network file system.",
)
@click.option(
    "--set", "overrides", metavar="KEY.PATH=VALUE", multiple=True, help="Override a job.yaml key; repeatable."
)
@click.option("--retry-failed", is_flag=True, help="Send failed prompts again.")
@click.option(
    "--changed",
    type=click.Choice(["rerun", "keep"]),
    help="Answered prompts whose request was edited: send again, or keep their answers.",
)
@click.option(
    "--fresh", is_flag=True, help="Start over: delete this run's results first (with --interleave, both runs')."
)
@click.option(
    "--limit-share",
    metavar="SHARE",
    help="Use this part of the account's limits, such as 0.5: other machines use the rest.",
)
@click.option("--repeat", metavar="N", type=click.IntRange(1, 1000), help="Measure every load N times, in blocks.")
@click.option(
    "--interleave",
    metavar="OTHER.yaml",
    type=click.Path(path_type=Path),
    help="Run another job in turns with this one, block by block: the way to compare two.",
)
@click.option(
    "--metrics-port",
    metavar="PORT",
    type=click.IntRange(0, 65535),
    help="Serve Prometheus metrics on 127.0.0.1 while it runs; 0 picks a free port.",
)
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", hidden=True)
def command(
    job_file: Path,
    sim: bool,
    base_url: str | None,
    api_key_file: Path | None,
    as_json: bool,
    quiet: bool,
    limit: int | None,
    output: Path | None,
    state_dir: Path | None,
    overrides: tuple[str, ...],
    retry_failed: bool,
    changed: Any,
    fresh: bool,
    limit_share: str | None,
    repeat: int | None,
    interleave: Path | None,
    metrics_port: int | None,
    engine: str,
) -> int:
    """Run a job; the same line again resumes it, and sends nothing when it is finished.

    Answers are on disk before they are counted: kill it at any time. Ctrl-C waits for the answers
    in flight; a second Ctrl-C does not.
    """
    if engine == "ray":
        raise JobError("--engine ray: running on Ray comes in a later release of cbatch")
    if limit_share is not None:
        overrides = (*overrides, f"limits.share={limit_share}")
    if metrics_port is not None and interleave is not None:
        raise JobError(
            "--metrics-port: does not go with --interleave, which runs two jobs", hint="leave one of them out"
        )
    files = [job_file] if interleave is None else [job_file, interleave]
    jobs = [as_load(jobfile.load(file, overrides), repeat, interleaved=interleave is not None) for file in files]
    folders = [output_folder(job, output if place == 0 else None) for place, job in enumerate(jobs)]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise JobError(
            f"--interleave: both jobs write to {folders[0]}", hint="give one of them another `output`, or a --output"
        )

    def warn(message: str) -> None:
        tqdm.write(f"note: {message}", file=sys.stderr)  # above the bar, where there is one

    runs = prepare(
        jobs,
        folders,
        sim=sim,
        base_url=base_url,
        api_key_file=api_key_file,
        state_dir=state_dir,
        options=Options(limit=limit, retry_failed=retry_failed, changed=changed, fresh=fresh),
        notify=warn,
    )
    simulated = any(run.simulated for run in runs)
    summaries = run_async(_execute(runs, quiet=quiet, simulated=simulated, metrics_port=metrics_port))
    ends = [
        _tell(job, run.folder, summary, as_json=as_json, quiet=quiet)
        for job, run, summary in zip(jobs, runs, summaries, strict=True)
    ]
    if as_json:
        found = [asdict(summary) | end for summary, end in zip(summaries, ends, strict=True)]
        print_json(found[0] if len(found) == 1 else {"runs": found})
    return next((int(end["exit_code"]) for end in ends if end["exit_code"]), 0)


def _tell(job: Job, folder: RunDir, summary: Summary, *, as_json: bool, quiet: bool) -> dict[str, Any]:
    """Print how a run ended, and what its gates say; returns what --json adds: its exit code, and what was measured."""
    decided(summary.exit_code)
    if not as_json and not quiet and (summary.error is None or summary.answered):
        for line in lines(summary, is_load=job.load is not None):
            click.echo(line)
    if summary.error is not None:
        say(summary.error, summary.hint)
    elif summary.exit_code and (quiet or as_json):
        # Silence is for when all is well: cron sends what stands here.
        again = summary.state == "finished" and job.load is None
        say(lines(summary)[0], "--retry-failed sends the failed ones again" if again else None)
    if (judged := findings(job, folder, summary)) is None:
        return {"exit_code": summary.exit_code}
    from cbatch.report import block
    from cbatch.report.findings import as_json as plain

    evidence, found = judged
    decided(found.exit_code or summary.exit_code)
    if not (quiet or as_json):
        told = block.lines(evidence, found, block.WIDTH if sys.stdout.isatty() else None)
        click.echo()
        for line in told if job.load else [line for line in told if line.startswith(_JUDGED)]:
            click.echo(line)
    elif found.exit_code:
        say("; ".join(line for line in block.lines(evidence, found) if line.startswith(_JUDGED)), None)
    return {"exit_code": found.exit_code or summary.exit_code, "report": plain(evidence, found) if as_json else None}


_JUDGED = ("VALID", "SUSPECT", "INVALID", "gate")  # how the lines of a report begin that a batch with gates is about


async def _execute(runs: Sequence[Run], *, quiet: bool, simulated: bool, metrics_port: int | None) -> list[Summary]:
    loop = asyncio.get_running_loop()
    interrupted = False

    def on_signal(signum: int) -> None:
        nonlocal interrupted
        if not any(run.progress.total or run.is_sending for run in runs):
            click.echo("interrupted while reading the input: nothing was sent", err=True)
            os._exit(128 + signum)  # nothing is open yet, and a thread that reads cannot be stopped
        if interrupted and not any(run.is_sending for run in runs):
            # Reading a large input, or writing the last part: nobody has to wait for that. What was
            # counted is on disk, and the next start finishes the part.
            os._exit(128 + signum)
        if not interrupted and not quiet:
            waiting = sum(len(run.progress.activity.on_the_wire) for run in runs)
            tqdm.write(f"stopping: {plural(waiting, 'answer')} in flight; once more to stop at once", file=sys.stderr)
        interrupted = True
        for run in runs:
            run.interrupt(signum)

    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, on_signal, signum)
    async with AsyncExitStack() as stack:
        if metrics_port is not None:
            metrics = Metrics(runs[0].progress)
            runs[0].observe = metrics.observe
            address = await stack.enter_async_context(serve(metrics, metrics_port))
            if metrics_port == 0 or not quiet:
                click.echo(f"metrics: {address}", err=True)
        watcher = None if quiet else asyncio.create_task(watch(runs, simulated=simulated))
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(run.execute()) for run in runs]
            return [task.result() for task in tasks]
        finally:
            if watcher is not None:
                watcher.cancel()
                with suppress(asyncio.CancelledError, Exception):  # a display must not decide how a run ends
                    await watcher


def lines(s: Summary, *, is_load: bool = False) -> list[str]:
    """The end of a run, for people: at most 15 lines, the verdict first."""
    name = f"{s.name} (simulated)" if s.simulated else s.name
    done = f"{plural(s.done, 'request')} answered" if is_load else f"{s.done:,} of {s.total:,} prompts done"
    out = [f"{name}: {s.state} in {duration(s.elapsed_s)}, {done}"]
    out[0] += f", {s.failed:,} failed" if s.failed else ""
    out[0] += f", {s.left:,} left" if s.left else ""
    if not s.sent and not s.answered and s.state == "finished":
        out.append(f"  nothing to send: every {'block is complete' if is_load else 'prompt has its row'}")
    if s.sent:
        seconds = s.elapsed_s or 1.0
        retried = f"; {s.retries:,} retried, {s.rate_limited:,} answered with 429" if s.retries else ""
        out.append(f"  sent      {plural(s.sent, 'request')}, {rate(s.answered / seconds)}/s{retried}")
        out.append(f"  tokens    {count(s.completion_tokens)} out in all; now {rate(s.tokens_per_s)} tokens/s")
    if s.cost_usd is None or s.cost_usd or s.unpriced:
        unpriced = (
            f" and {plural(s.unpriced, 'answer')} of unknown price" if s.unpriced and s.cost_usd is not None else ""
        )
        out.append(f"  cost      {money(s.cost_usd)}{unpriced}")
    if s.sent and (waited := where_time_went(asdict(s))):
        out.append(f"  waited    {waited}")
    out += _learned(s)
    for kind, number in sorted(s.errors.items(), key=lambda item: -item[1])[:3]:
        sample = printable(" ".join(s.samples[kind].split()))
        out.append(f"  error     {kind} {number:,} x: {sample if len(sample) <= 200 else sample[:199] + '…'}")
    if s.paid_twice_at_most:
        dollars = f", at most {money(s.paid_twice_usd)}" if s.paid_twice_usd is not None else ""
        out.append(f"  resumed   at most {plural(s.paid_twice_at_most, 'prompt')} may have been paid twice{dollars}")
    if s.abandoned:
        out.append(f"  unknown   {plural(s.abandoned, 'request')} given up in flight; they may have been paid")
    if s.orphaned > 0:
        out.append(
            f"  orphaned  {plural(s.orphaned, 'row')} of the output, from prompts that left the input or were edited"
        )
    if s.state == "finished":
        again = "; --retry-failed sends the failed ones again" if s.failed and not is_load else ""
        out.append(f"results in {s.folder}/results{again}")
    else:
        again = "" if s.exit_code in (2, 4) else "; the same line resumes it"  # the error says what to do first
        out.append(f"saved in {s.folder}{again}")
    return out


def _learned(s: Summary) -> list[str]:
    """What the run found out about the account, and what it gained from that."""
    out = []
    if s.sizing and s.sizing["unsized_tokens"] > 1.05 * s.sizing["reserved_tokens"]:
        cap = s.sizing["reserved_tokens"] / s.sizing["requests"]
        times = s.sizing["unsized_tokens"] / max(s.sizing["reserved_tokens"], 1)
        cut = s.sizing["cut"]
        rerun = f"; {plural(cut, 'cut answer')} run again ({count(s.sizing['cut_tokens'])} tokens)" if cut else ""
        out.append(f"  auto      {count(cap)} tokens reserved for an answer, {times:.1f} x less than without{rerun}")
    if s.learned:
        limits = ", ".join(f"{count(limit)} {name}" for name, limit in s.learned.items())
        out.append(f"  learned   {limits} from 429s; kept for the next run")
    if s.outages:
        out.append(
            f"  paused    {plural(s.outages, 'time')}, {duration(s.outage_s)} in all: the endpoint did not answer"
        )
    return out
