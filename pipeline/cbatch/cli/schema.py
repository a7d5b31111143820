"""`cbatch schema`."""

from __future__ import annotations

import click

from cbatch.cli.shared import print_json
from cbatch.jobschema import json_schema


@click.command(epilog="Example: cbatch schema > cbatch.schema.json")
def command() -> None:
    """Print the JSON Schema of job.yaml.

    Editors complete and check job files with it: put the line
    `# yaml-language-server: $schema=./cbatch.schema.json` at the top of the job.
    """
    print_json(json_schema())
