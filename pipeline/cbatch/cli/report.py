"""`cbatch report`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cbatch.cli import decided
from cbatch.cli.shared import json_option, print_json
from cbatch.errors import JobError
from cbatch.gates import Gate, parse
from cbatch.report.block import WIDTH, lines, markdown
from cbatch.report.evidence import read
from cbatch.report.figures import READ
from cbatch.report.findings import as_json as plain
from cbatch.report.findings import demanded, find
from cbatch.rundir import open_run


def _gates(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> list[Gate]:
    try:
        return [parse(text) for text in value]
    except ValueError as exc:
        raise JobError(f"--slo: {exc}", hint="see `cbatch report --help`") from None


@click.command(epilog="Example: cbatch report runs/hello --slo 'latency_s p95 < 2s' --md")
@click.argument("run_dir", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--slo", multiple=True, metavar="EXPR", callback=_gates, help="Demand this as well; may be repeated.")
@click.option("--md", "as_markdown", is_flag=True, help="Print Markdown, for a pull request.")
@click.option("--html", "html_file", metavar="FILE", type=click.Path(path_type=Path), help="Write a page to FILE, too.")
@json_option
@click.pass_context
def command(
    ctx: click.Context, run_dir: Path, slo: list[Gate], as_markdown: bool, html_file: Path | None, as_json: bool
) -> None:
    """Print the measurements of a run: a verdict, percentiles, rates, tokens, cost, errors by kind.

    The third line says whether to believe them: VALID, SUSPECT or INVALID, and why. Where the client
    was the bottleneck no speed is printed.

    Output speed comes from the server's own clock (completion tokens / completion time), times from the
    client's, from the last attempt's send. ±95% is where the median is; `p99 certified<=` is what p99 is at most
    with 99 % confidence; n<662 stands where a percentile would be one or two requests. Client speed is
    undefined where the answer came in fewer than three reads.

    Gates are those of the job (`gates:`) and of --slo; in a ladder they hold at every level, in a search at
    the level it found:

    \b
      METRIC [STATISTIC] < | <= | > | >= NUMBER[UNIT] [for SHARE%]
      ttft_s p95 < 500ms              any column of numbers; us ms s min, K M;
                                      p50, p99.9, mean, min, max, sum
      server_tokens_per_s p50 > 1.8K
      ttft_s < 500ms for 99%          each request: so many must meet it (all,
                                      if not said)
      errors < 1%                     also rate_limited; without % a count
      cost_usd < 5                    the sum; also completed_per_s and
                                      output_tokens_per_s

    Exit code: 5 if a gate was missed, or what it asks was not measured; 6 if the measurement of a load run,
    or one that gates depend on, is INVALID.
    """  # noqa: D301  (the \b is click's: leave these lines as they are)
    folder = open_run(run_dir)
    if html_file is None:
        needed = {*READ, *(gate.metric for gate in demanded(folder.read_info(), slo))}
        evidence = read(folder, only=sorted(needed))
        found = find(evidence, slo)
    else:
        from cbatch.report import html

        evidence = read(folder, also=html.ALSO)
        found = find(evidence, slo)
        page = html.page(evidence, found, lines(evidence, found))
        try:
            html_file.write_text(page, "utf-8")
        except OSError as exc:
            raise JobError(f"{html_file}: cannot be written: {exc.strerror}", hint="name another FILE") from None
    decided(found.exit_code)
    if as_json:
        print_json(plain(evidence, found))
    else:
        # A file has no edge, and a pull request none that matters.
        width = WIDTH if sys.stdout.isatty() else None
        for line in markdown(evidence, found) if as_markdown else lines(evidence, found, width):
            click.echo(line)
    ctx.exit(found.exit_code)
