"""`cbatch plan`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click
import orjson

from cbatch import catalog, jobfile
from cbatch.cli.run import output_folder
from cbatch.cli.shared import Connection, connection_options, json_option, print_json
from cbatch.cli.words import count, duration, money, plural
from cbatch.job import Job
from cbatch.journal import Journal
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
    job = jobfile.load(job_file, overrides)
    folder = RunDir.at(output_folder(job, output))
    journal = Journal(folder.journal) if folder.journal.exists() else None
    connection = Connection(
        sim=sim, url=base_url, key_file=api_key_file, endpoint=job.endpoint, folder=Path(job.folder)
    )  # fmt: skip
    try:
        found = plan(job, limit, journal, connection.learned_limits(job.model))
    finally:
        if journal is not None:
            journal.close()
    if as_json:
        body = orjson.loads(found.first_body) if found.first_body else None
        models = [asdict(m) | {"binding": m.binding} for m in found.models]
        print_json(asdict(found) | {"first_body": body, "models": models})
        return
    for line in lines(job, found, folder):
        click.echo(line)


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
