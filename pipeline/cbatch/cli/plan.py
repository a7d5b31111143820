"""`cbatch plan`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
import orjson

from cbatch import catalog, jobfile
from cbatch.cli.shared import connection_options, json_option, print_json
from cbatch.cli.words import count, duration, money, plural
from cbatch.connection import Connection
from cbatch.job import Job, Load
from cbatch.jobs import as_load, output_folder, with_prompts
from cbatch.journal import Journal
from cbatch.load import WARMUP_S
from cbatch.loadplan import SEARCH_S, stages
from cbatch.plan import TYPICAL_TOKENS, ModelPlan, Plan, plan
from cbatch.rundir import RunDir

EXCERPT = 600  # characters of the first request that are shown


@click.command(epilog="Example: cbatch plan jobs/hello.yaml")
@click.argument("job_file", metavar="JOB.yaml", type=click.Path(path_type=Path))
@connection_options
@json_option
@click.option("--limit", metavar="N", type=click.IntRange(1), help="Plan only the first N rows.")
@click.option(
    "--output", metavar="DIR", type=click.Path(path_type=Path), help="The run directory, instead of the job's."
)
@click.option(
    "--set", "overrides", metavar="KEY.PATH=VALUE", multiple=True, help="Override a job.yaml key; repeatable."
)
def command(
    job_file: Path,
    sim: bool,
    base_url: str | None,
    api_key_file: Path | None,
    as_json: bool,
    limit: int | None,
    output: Path | None,
    overrides: tuple[str, ...],
) -> None:
    """Show what a job would send, what it may cost and take, and which limit binds.

    Reads and renders everything, sends nothing, needs no key.
    """
    job = as_load(jobfile.load(job_file, overrides), None, interleaved=False)
    folder = RunDir.at(output_folder(job, output))
    with tempfile.TemporaryDirectory() as made:
        job, offsets = with_prompts(job, Path(made), lambda message: click.echo(f"note: {message}", err=True))
        found = _found(
            job,
            folder,
            limit,
            Connection(sim=sim, url=base_url, key_file=api_key_file, endpoint=job.endpoint, folder=Path(job.folder)),
        )
    if as_json:
        body = orjson.loads(found.first_body) if found.first_body else None
        models = [asdict(m) | {"binding": m.binding} for m in found.models]
        print_json(asdict(found) | {"first_body": body, "models": models})
        return
    for line in lines(job, found, folder) if job.load is None else load_lines(job, job.load, found, folder, offsets):
        click.echo(line)


def _found(job: Job, folder: RunDir, limit: int | None, connection: Connection) -> Plan:
    # A load run asks whatever it holds already again.
    journal = Journal(folder.journal) if folder.journal.exists() and job.load is None else None
    try:
        return plan(job, limit, journal, connection.learned_limits(job.model))
    finally:
        if journal is not None:
            journal.close()


def load_lines(job: Job, load: Load, found: Plan, folder: RunDir, offsets: Sequence[float]) -> list[str]:
    """The plan of a load run, for people."""
    if load.mode == "search":
        bounds = load.rate or load.concurrency or (1, 256)
        what = f"{bounds[0]:g}..{bounds[1]:g} {'requests/s' if load.rate else 'in flight'}, for {', '.join(load.slo)}"
        blocks = None
    else:
        planned = list(stages(load, job.model))
        levels = list(dict.fromkeys(stage.level for stage in planned))
        unit = "times the speed it had" if load.mode == "replay" else planned[0].unit
        what = ", ".join(f"{level:g}" for level in levels) + f" {unit}"
        what += f", {load.repeats} times" if load.repeats > 1 else ""
        blocks = len(planned)
    seconds = load.duration_s or (SEARCH_S if load.mode == "search" and not load.requests else None)
    each = duration(seconds) if seconds else plural(load.requests or len(offsets) or found.rows, "request")
    warmup_s = load.warmup_s if load.warmup_s is not None else WARMUP_S if seconds or load.mode == "open" else 0
    warm = f" after {duration(warmup_s)} of warm-up" if warmup_s else ""
    out = [
        f"{job.name}: {load.mode} load over {plural(found.rows, 'prompt')}, into {folder.path}",
        f"  blocks    {plural(blocks, 'block') if blocks else 'as many as the search takes'}: {what}",
        f"  each      {each}{warm}",
    ]
    if blocks and seconds:
        out.append(f"  time      {duration(blocks * (seconds + warmup_s))} and a calibration")
    counted = blocks // len(job.model) * (load.requests or len(offsets) or found.rows) if blocks else 0
    counted = 0 if load.duration_s else counted
    for m in found.models:
        if m.cost_usd is not None and m.requests:
            low, _, high = ((counted or 1_000) * usd / m.requests for usd in m.cost_usd)
            warm = "" if load.mode == "replay" else ", the warm-ups not among them"
            what = f"{plural(counted, 'request')} to {m.model}{warm}" if counted else f"1,000 requests to {m.model}"
            out.append(f"  cost      {money(low)} to {money(high)} for {what}")
        else:
            out.append(f"  cost      unknown: no price is known for {m.model}")
    return out


def lines(job: Job, found: Plan, folder: RunDir) -> list[str]:
    """The plan, for people."""
    spread = []
    if len(job.model) > 1:
        spread.append(plural(len(job.model), "model"))
    if job.samples > 1:
        spread.append(plural(job.samples, "sample"))
    times = f" x {' x '.join(spread)}" if spread else ""
    requests = plural(found.requests, "request")
    out = [f"{job.name}: {plural(found.rows, 'row')}{times}, {requests} to send, into {folder.path}"]
    if found.known:
        out.append(f"  known     {plural(found.known, 'answer')} in {folder.path} already, not sent again")
    if found.edited:
        out.append(f"  edited    {plural(found.edited, 'answer')} edited since; run asks for --changed")
    if found.broken_rows:
        out.append(f"  broken    {plural(found.broken_rows, 'row')} cannot be read and will be error rows")
    if found.unrenderable_rows:
        out.append(f"  broken    {plural(found.unrenderable_rows, 'row')} cannot be rendered: {found.first_problem}")
    if found.unknown_models:
        names = ", ".join(repr(name) for name in found.unknown_models)
        out.append(
            f"  unknown   {names}: not in the catalog; if the server does not have it either, its lines will be error "
            "rows: write `model: NAME` in job.yaml to send all lines to one model"
        )
    for model in found.models:
        out += _model_lines(job, model) if model.requests else []
    if found.first_body is not None:
        text = found.first_body.decode()
        out.append(f"first request ({found.first_origin}):")
        out.append("  " + (text if len(text) <= EXCERPT else text[: EXCERPT - 1] + "…"))
    return out


def _model_lines(job: Job, m: ModelPlan) -> list[str]:
    given = job.params.completion_limit is not None
    auto = ", right-sized to what answers need" if job.params.right_sized else ""
    assumed = "" if given or auto else ", as no max_completion_tokens is given"
    out = [
        f"  {m.model}",
        f"    tokens  about {count(m.prompt_tokens)} in; out at most {count(m.limit_tokens)} an answer{assumed}{auto}",
    ]
    typical = min(TYPICAL_TOKENS, m.limit_tokens)
    if m.cost_usd is None:
        out.append("    cost    unknown: no price is known for this model")
    else:
        low, middle, high = m.cost_usd
        card = catalog.card(m.model)
        out.append(
            f"    cost    {money(low)} to {money(high)}; {money(middle)} with answers of {typical} tokens"
            f" (prices of {card.prices_as_of if card else 'nobody'})"
        )
    if m.limits:
        out.append(
            f"    time    {duration(max(m.seconds.values()))} with such answers; at most {duration(m.longest_s)}"
        )
    else:
        out.append(f"    time    {duration(max(m.seconds.values()))} or more: the account's limits are not known yet")
    others = [
        f"{_named(job, m, name)} alone {duration(seconds)}"
        for name, seconds in sorted(m.seconds.items(), key=lambda i: -i[1])
        if name != m.binding and seconds >= 0.05 * m.seconds[m.binding]
    ]
    out.append(f"    binds   {_named(job, m, m.binding)}" + (f"; {', '.join(others)}" if others else ""))
    out.append(f"    change  {_advice(job, m)}")
    if m.never_fit:
        largest = min(limit for name, limit in m.limits.items() if "tokens" in name)
        out.append(
            f"    never   {plural(m.never_fit, 'request')} reserve more than {count(largest)} tokens and will fail: "
            "lower params.max_completion_tokens or raise the limit"
        )
    if not m.limits:
        out.append(
            "    note    no limit is told or learned yet: the run starts carefully and learns it, or give limits.tier"
        )
    elif m.learned:
        out.append("    note    limits that earlier runs learned are among them")
    return out


def _named(job: Job, m: ModelPlan, name: str) -> str:
    if name != "concurrency":
        return f"{count(m.limits[name])} {name}"
    low, high = job.limits.in_flight
    return f"limits.concurrency ({high if low == high else f'{low}..{high}'})"


def _advice(job: Job, m: ModelPlan) -> str:
    """What would make it faster: the binding limit's own lever, and how far it reaches."""
    seconds = dict(m.seconds)
    binding = seconds.pop(m.binding)
    best = max(seconds.values(), default=0.0)
    upto = f", up to {binding / best:.1f} x faster" if best and binding / best >= 1.1 else ""
    if m.binding == "concurrency":
        return f"more limits.concurrency{upto}" if m.limits else "more limits.concurrency, as far as the account allows"
    if m.binding.startswith("requests"):
        return f"a higher tier, or fewer and longer prompts{upto}; more concurrency does not help"
    if m.reserve_s > 2 * binding and not job.params.right_sized:
        return f"a higher tier{upto}; max_completion_tokens: auto reserves less, so that more are in flight"
    return f"a higher tier, or shorter prompts and answers{upto}; more concurrency does not help"
