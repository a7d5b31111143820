"""`cbatch verify`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from cbatch.cli.shared import json_option, print_json
from cbatch.cli.words import plural
from cbatch.rundir import open_run
from cbatch.runlock import is_locked
from cbatch.verify import Proof, verify


@click.command(epilog="Example: cbatch verify runs/hello")
@click.argument("run_dir", metavar="RUN", type=click.Path(path_type=Path))
@json_option
def command(run_dir: Path, as_json: bool) -> int:
    """Prove a run: one row per prompt and sample, journal and Parquet agree, nothing missing.

    Reads the input, the journal and every part again. Exit code 0 is the proof; 1 says what is
    missing or damaged.
    """
    folder = open_run(run_dir)
    proof = verify(folder.find_journal())
    if is_locked(*folder.locks):
        proof.notes.append("a cbatch is running here: what it has not done yet is missing")
    if as_json:
        print_json(asdict(proof))
    else:
        for line in lines(proof):
            click.echo(line)
    return 1 if proof.problems else 0


def lines(proof: Proof) -> list[str]:
    """The proof, for people."""
    verdict = "NOT PROVEN" if proof.problems else "proven" if not proof.pending else "proven so far"
    expected = f"{plural(proof.prompts, 'prompt')}, " if proof.prompts is not None else ""
    expected = f"{plural(proof.blocks, 'block')} of load, " if proof.blocks is not None else expected
    out = [
        f"{verdict}: {expected}{plural(proof.rows, 'row')} in {plural(proof.parts, 'part')}"
        + (f", {proof.failed:,} of them errors" if proof.failed else "")
    ]
    out += [f"  problem   {problem}" for problem in proof.problems]
    out += [f"  note      {note}" for note in proof.notes]
    return out
