"""`cbatch export`."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Literal, TextIO

import click

from cbatch.cli.shared import json_option, print_json
from cbatch.cli.words import plural
from cbatch.errors import CbatchError, JobError
from cbatch.export import FORMS, Form, export, form_of
from cbatch.rundir import RunDir, open_run


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
    folder = _run_at(run_dir)
    if not quiet and not folder.journal.exists() and folder.read_info().get("state") != "finished":
        click.echo("note: the run's journal is not here: rows that are in no part yet are left out", err=True)
    try:
        rows = export(folder, sys.stdout.buffer if is_stdout else file, form, status=status, force=force)
    except CbatchError:
        try:
            sys.stdout.flush()
        except OSError:
            # Or Python's flush at exit fails once more, with exit code 120.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise
    if as_json:
        print_json({"rows": rows, "file": str(file), "format": form, "status": status})
    elif not quiet and not (is_stdout and _is_pipe(sys.stdout)):  # `… | head`: nobody knows how many it took
        click.echo(f"{plural(rows, 'row')} -> {'stdout' if is_stdout else file}", err=True)


def _run_at(path: Path) -> RunDir:
    """The run directory at `path`. Raises JobError where there is none, naming the run that `path` is a piece of."""
    try:
        return open_run(path)
    except JobError as exc:
        for folder in path.absolute().parents[:2]:  # of results/ and run.json, and of a part
            if RunDir.at(folder).is_run():
                meant = folder if path.is_absolute() else os.path.relpath(folder)
                raise JobError(str(exc), hint=f"it belongs to the run {meant}: name that one") from None
        raise


def _is_pipe(file: TextIO) -> bool:
    try:
        mode = os.fstat(file.fileno()).st_mode
    except OSError:  # not a file at all
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
