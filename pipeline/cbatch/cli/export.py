"""`cbatch export`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import click

from cbatch.cli.shared import json_option, print_json
from cbatch.cli.words import plural
from cbatch.errors import JobError
from cbatch.export import FORMS, Form, export, form_of
from cbatch.rundir import open_run


@click.command(epilog="Example: cbatch export runs/hello rows.csv")
@click.argument("run_dir", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--format", "form", type=click.Choice(FORMS), help="What to write  [default: as FILE's name says].")
@click.option(
    "--status",
    type=click.Choice(["ok", "error", "all"]),
    default="all",
    show_default=True,
    help="Which rows: a batch API has one file for each.",
)
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@json_option
def command(
    run_dir: Path,
    file: Path,
    form: Form | None,
    status: Literal["ok", "error", "all"],
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Write the rows of a run to FILE: .jsonl, .csv (both also .gz and .zst) or .parquet; - is stdout.

    All columns, those carried from the input under their own names. What is JSON in a column is
    nested in .jsonl and text in .csv, where a null is an empty cell and a text is in quotes.

    openai-batch and cerebras-batch are the result lines of these providers' batch APIs, made from
    the columns. custom_id is the row's id; :MODEL and :SAMPLE follow where a prompt has several.

    Rows stand in the order of their answers; `index` is the place in the input. A run that is still
    going, or was killed, is exported as far as it is. FILE appears when all is written.
    """
    is_stdout = str(file) == "-"
    if is_stdout and as_json:
        raise JobError("--json: stdout is where the rows go", hint="name a FILE, or leave --json out")
    form = form or "jsonl" if is_stdout else form_of(file, form)
    folder = open_run(run_dir)
    if not quiet and not folder.journal.exists() and folder.read_info().get("state") != "finished":
        click.echo("note: the run's journal is not here: rows that are in no part yet are left out", err=True)
    rows = export(folder, sys.stdout.buffer if is_stdout else file, form, status=status, force=force)
    if as_json:
        print_json({"rows": rows, "file": str(file), "format": form, "status": status})
    elif not quiet:
        click.echo(f"{plural(rows, 'row')} -> {'stdout' if is_stdout else file}", err=True)
