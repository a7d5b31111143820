"""`cbatch compare`."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cbatch.cli import decided
from cbatch.cli.shared import json_option, print_json
from cbatch.cli.words import printable
from cbatch.compare.gates import Gate, parse
from cbatch.compare.unlike import ALLOWED, UnlikeRuns, allowed
from cbatch.errors import JobError
from cbatch.rundir import open_run

if TYPE_CHECKING:
    from cbatch.compare.verdict import Comparison

FORMATS = ("text", "md", "json", "junit", "github")
_COLOURS = {"FAIL": "red", "INCONCLUSIVE": "yellow", "open": "yellow", "PASS": "green", "ok": "green"}


@click.command(epilog="Example: cbatch compare runs/base runs/new --fail-on 'server_tokens_per_s < -3%'")
@click.argument("runs", metavar="A B [C]...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--fail-on", "fail_on", multiple=True, metavar="GATE", help="A change that is not accepted. Repeatable.")
@click.option("--strict", is_flag=True, help="An undecided gate fails too (exit 5).")
@click.option("--allow", multiple=True, metavar="NAMES", help=f"Accept a difference: {', '.join(ALLOWED)}.")
@click.option("--level", type=float, metavar="N", help="Load level to compare at [default: the highest of both].")
@click.option(
    "--against-history",
    "history",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="The last 10 runs of the same job in DIR say how far two runs drift apart; with one run alone, "
    "they are what it is compared with.",
)
@click.option("--format", "form", type=click.Choice(FORMATS), default="text", show_default=True)
@json_option
def command(
    runs: tuple[Path, ...],
    fail_on: tuple[str, ...],
    strict: bool,
    allow: tuple[str, ...],
    level: float | None,
    history: Path | None,
    form: str,
    as_json: bool,
) -> int:
    """Did it get slower, costlier, worse? Every run against the first, with intervals and an exit code.

    A gate names a metric and the change that is not accepted:

    \b
      server_tokens_per_s < -3%   lower by more than 3 %
      ttft_s p95 > +10%           any column of numbers; p50 where none is
                                  named, p90, p99.9, mean
      errors > +0.5pt             shares change in points: rate_limited,
                                  invalid, finish_length too

    \b
    FAIL          the 95 % interval of the change is beyond that, or the
                  change is and is significant (Holm over all gates): exit 5
    PASS          the interval is on the other side
    INCONCLUSIVE  neither; says how many more repeats would decide: exit 0,
                  or 5 with --strict

    What is compared are blocks, not requests: `cbatch run A.yaml --repeat 6 --interleave B.yaml` makes runs
    that take turns. Two single runs are cut into slices of time; how far runs drift apart they cannot see, so
    10 % is allowed for it at either end, and only a larger change fails a gate. Failures are counted, tokens
    and money do not drift: their gates need no repeats. p is the exact sign-flip test from 6 pairs on, else
    Student's t.

    Runs that differ in model, prompts, parameters, endpoint or load are refused, and so are those that
    measured their client, or not what a gate asks for: exit 6.
    """  # noqa: D301  (the \b is click's: leave these lines as they are)
    form = "json" if as_json else form
    gates = _gates(fail_on)
    names = allowed(allow)
    _check(runs, history)
    from cbatch.compare.runs import compare
    from cbatch.compare.sides import load

    try:
        evidence = [load(open_run(run).path) for run in runs]
        found = compare(evidence, gates, allow=names, level=level, history=history)
    except UnlikeRuns as exc:
        if form == "text":
            raise
        decided(exc.exit_code)
        _refuse(exc, form, gates)
        return exc.exit_code
    code = decided(found.exit_code(strict=strict))
    _print(found, form, strict=strict)
    return code


def _gates(texts: tuple[str, ...]) -> list[Gate]:
    try:
        return list(dict.fromkeys(parse(one) for one in texts))
    except ValueError as exc:
        raise JobError(f"--fail-on {exc}", hint="see `cbatch compare --help`") from None


def _check(runs: tuple[Path, ...], history: Path | None) -> None:
    if len(runs) == 1 and history is None:
        raise JobError(
            f"{runs[0]}: one run alone", hint="name two or more runs, or --against-history DIR with earlier ones"
        )
    if len(runs) > 2 and history is not None:
        raise JobError(f"--against-history goes with one or two runs; read {len(runs)}", hint="compare them in twos")
    seen: dict[Path, Path] = {}
    for run in runs:
        if run.resolve() in seen:
            raise JobError(f"{run}: the same run twice", hint="name two different run directories")
        seen[run.resolve()] = run


def _print(found: Comparison, form: str, *, strict: bool) -> None:
    from cbatch.compare import machine, text

    match form:
        case "json":
            print_json(machine.as_dict(found, strict=strict))
        case "junit":
            click.echo(machine.junit(found, strict=strict))
        case "md":
            click.echo("\n".join(text.markdown(found, strict=strict)))
        case "github":
            _summary(text.markdown(found, strict=strict))
            click.echo("\n".join(machine.workflow_commands(found, strict=strict)))
        case _:
            colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
            for line in text.lines(found, strict=strict):
                click.echo(_coloured(printable(line)) if colour else printable(line))


def _coloured(line: str) -> str:
    words = "|".join(_COLOURS)
    return re.sub(rf"\b({words})\b(?=$|:| )", lambda m: click.style(m[0], fg=_COLOURS[m[0]], bold=True), line)


def _refuse(exc: UnlikeRuns, form: str, gates: Sequence[Gate]) -> None:
    """No verdict, for machines: whoever reads a file of a known form must find the reason in it."""
    from cbatch.compare import machine

    first, *others = str(exc).splitlines()
    markdown = [f"**no verdict: {first}**", "", *(f"- {line}" for line in others)]
    match form:
        case "json":
            print_json(machine.refusal(exc))
        case "junit":
            click.echo(machine.junit_refusal(exc, gates))
        case "github":
            _summary(markdown)
            click.echo("\n".join(machine.workflow_refusal(exc)))
        case _:
            click.echo("\n".join(markdown))


def _summary(markdown: Sequence[str]) -> None:
    """To the page of the workflow's run; outside of one, to stdout."""
    if path := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write("\n".join([*markdown, "", ""]))
    else:
        click.echo("\n".join([*markdown, ""]))
