"""`cbatch report`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from cbatch.cli.shared import json_option, open_run, print_json
from cbatch.cli.words import count, money, plural
from cbatch.report.figures import MEASURES, Figures, Spread, figures


@click.command(epilog="Example: cbatch report runs/hello")
@click.argument("run_dir", metavar="RUN", type=click.Path(path_type=Path))
@json_option
def command(run_dir: Path, as_json: bool) -> None:
    """Print the measurements of a run: counts, percentiles, tokens, cost, errors by kind.

    Speeds come from the server's own clock (completion tokens / completion time); latency is from
    the last attempt's send to its last byte.
    """
    folder = open_run(run_dir)
    info = folder.read_info()
    found = figures(folder)
    if as_json:
        about = {name: info.get(name) for name in ("name", "state", "cbatch", "endpoint", "simulated")}
        print_json(about | asdict(found))
        return
    for line in lines(info, found):
        click.echo(line)


def lines(info: dict[str, Any], f: Figures) -> list[str]:
    """The report as a block to paste: at most 25 lines."""
    models = ", ".join(f"{m} ({n:,})" for m, n in f.models.items()) if len(f.models) > 1 else "".join(f.models)
    sessions = info.get("sessions", [])
    when = f"  {sessions[0]['started_at'][:16]}Z" if sessions else ""
    where = "SIMULATED" if info.get("simulated") else info.get("endpoint", "?")
    out = [
        f"{info.get('name', '?')}  {models}{when}  cbatch {info.get('cbatch', '?')}  {where}",
        f"{plural(f.rows, 'prompt')}  {f.ok:,} ok  {f.failed:,} failed  {f.retried:,} retried"
        f"  state {info.get('state', 'unknown')}",
        "",
    ]
    if f.spreads:
        out.append(f"{'':<24}{'p10':>10}{'median':>10}{'p90':>10}{'p99':>10}{'n':>10}")
        if f.by_model:
            for name in ("server_tokens_per_s", "latency_s", "completion_tokens"):
                out.append(MEASURES[name])
                out += [_line(name, f"  {m}"[:24], s[name]) for m, s in list(f.by_model.items())[:4] if name in s]
        else:
            out += [_line(name, words, f.spreads[name]) for name, words in MEASURES.items() if name in f.spreads]
        out.append("")
    cached = f", {100 * f.cached_tokens / f.prompt_tokens:.0f} % cached" if f.prompt_tokens else ""
    reasoning = f", {100 * f.reasoning_tokens / f.completion_tokens:.0f} % reasoning" if f.completion_tokens else ""
    out.append(f"tokens    {count(f.prompt_tokens)} in{cached}; {count(f.completion_tokens)} out{reasoning}")
    unpriced = f" and {plural(f.unpriced, 'answer')} of unknown price" if f.unpriced and f.cost_usd is not None else ""
    out.append(f"cost      {money(f.cost_usd)}{unpriced}")
    if f.finish_reasons:
        out.append("finished  " + ", ".join(f"{reason} {n:,}" for reason, n in f.finish_reasons.items()))
    for error in f.errors[:6]:
        example = " ".join((error.example or "").split())
        out.append(f"error     {error.kind} {error.count:,} x: {example if len(example) < 100 else example[:99] + '…'}")
    return out


def _line(name: str, words: str, s: Spread) -> str:
    digits = 3 if name.endswith("_s") and "_per_" not in name else 0
    cells = "".join(f"{value:>10,.{digits}f}" for value in (s.p10, s.p50, s.p90, s.p99))
    return f"{words:<24}{cells}{s.n:>10,}"
