"""`cbatch init`."""

from __future__ import annotations

from pathlib import Path

import click

from cbatch.errors import JobError

_JOB = """\
# A cbatch job. Try it without a key:  cbatch run {job} --sim
# With a key:  export CEREBRAS_API_KEY=…  then  cbatch run {job}
# The same line again resumes it; `cbatch plan {job}` shows what it would send and cost.

name: {name}
model: gpt-oss-120b            # or a list: every prompt goes to every model
input: {{path: prompts.jsonl, id: id}}   # .jsonl .json .csv .parquet, also .gz .zst, globs and lists
prompt:                        # Jinja2: {{{{ column }}}} is filled in from each row
  system: You answer in one sentence.
  user: "{{{{ question }}}}"

params:                        # any field of a Cerebras chat completion request
  max_completion_tokens: auto  # the rate limit charges it at admission: auto reserves what answers need; or a number
  temperature: 0

limits:
  tier: developer              # or free-trial; or your own numbers: rpm: 1000, tpm: 1M; or `limits: auto`: learned

# budget: {{usd: 5.00}}          # stops before the request that could cross it; exit code 4

# samples: 3                   # answers per prompt
# fail_if: errors > 1%         # exit code 3 when more fail; the default is any
# results: {{carry: [topic]}}    # input columns to copy into the results
# output: runs/{{name}}-{{date}}   # default: runs/<name>
"""

_ROWS = """\
{"id": "sky", "topic": "physics", "question": "Why is the sky blue?"}
{"id": "moon", "topic": "astronomy", "question": "Why does the Moon always show us the same side?"}
{"id": "ice", "topic": "physics", "question": "Why does ice float on water?"}
{"id": "leaf", "topic": "biology", "question": "Why do leaves change colour in autumn?"}
{"id": "bread", "topic": "chemistry", "question": "What makes bread rise?"}
{"id": "salt", "topic": "chemistry", "question": "Why does salt melt ice on roads?"}
{"id": "echo", "topic": "physics", "question": "Why is there an echo in an empty hall?"}
{"id": "tide", "topic": "astronomy", "question": "What causes the tides?"}
"""


@click.command(epilog="Example: cbatch init my-first-job")
@click.argument("folder", metavar="[DIR]", default=".", type=click.Path(path_type=Path))
def command(folder: Path) -> None:
    """Write a commented job.yaml and sample rows that run as they are.

    Nothing that exists is overwritten.
    """
    job, rows = folder / "job.yaml", folder / "prompts.jsonl"
    for path in (job, rows):
        if path.exists():
            raise JobError(f"{path} exists already", hint="choose another folder: cbatch init DIR")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        rows.write_text(_ROWS, "utf-8")
        job.write_text(_JOB.format(job=job, name=folder.resolve().name or "job"), "utf-8")
    except OSError as exc:
        raise JobError(f"{folder}: cannot be written: {exc.strerror}") from None
    click.echo(f"wrote {job} and {rows}")
    click.echo(f"try it: cbatch run {job} --sim")
