"""`cbatch sim`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from cbatch.cli.shared import run_async
from cbatch.errors import JobError, RunStopped
from cbatch.sim import (
    FAULTS,
    HEADER_SETS,
    OUTAGES,
    REFUSALS,
    RESET_STYLES,
    TIERS,
    WINDOWS,
    SimConfig,
    read_script,
    serve,
)


def _faults(values: tuple[str, ...]) -> dict[str, float]:
    faults: dict[str, float] = {}
    for value in values:
        name, equals, text = value.partition("=")
        try:
            probability = float(text) if equals else 1.0
        except ValueError:
            probability = -1.0
        if not 0 <= probability <= 1:
            raise JobError(f"--fault {value}: not like NAME=PROBABILITY with a number from 0 to 1")
        faults[name] = probability
    return faults


@click.command(
    epilog="Example: cbatch sim --port 8080 --tier free-trial --fault server_error=0.05\n\nFaults: "
    + ", ".join(FAULTS)
    + "\n\nTo refuse: "
    + ", ".join(REFUSALS)
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=8080, show_default=True, type=click.IntRange(0, 65_535), help="Port; 0 picks a free one."
)
@click.option("--tier", type=click.Choice(list(TIERS)), default="developer", show_default=True, help="Account limits.")
@click.option("--seed", default=0, show_default=True, help="Same seed, same answers and faults.")
@click.option(
    "--fault",
    "fault",
    multiple=True,
    metavar="NAME[=P]",
    help="Inject a fault, with this probability; repeatable.",
)
@click.option("--speed", default=1.0, show_default=True, help="Times the token rate; `inf` answers at once.")
@click.option("--rps", type=click.IntRange(1), help="Requests per second: bursts are refused.")
@click.option("--rpm", type=click.IntRange(1), help="Requests per minute, instead of the tier's.")
@click.option("--rph", type=click.IntRange(1), help="Requests per hour.")
@click.option("--rpd", type=click.IntRange(1), help="Requests per day.")
@click.option("--tpm", type=click.IntRange(1), help="Uncached tokens per minute, instead of the tier's.")
@click.option("--total-tpm", type=click.IntRange(1), help="Cached ones too  [default: 3 times --tpm].")
@click.option("--tph", type=click.IntRange(1), help="Tokens per hour, instead of the tier's.")
@click.option("--tpd", type=click.IntRange(1), help="Tokens per day, instead of the tier's.")
@click.option(
    "--quota-window",
    type=click.Choice(list(WINDOWS)),
    default="bucket",
    show_default=True,
    help="How limits count: refilled all the time, anew at every wall-clock boundary, or over the last window.",
)
@click.option("--clock-rate", default=1.0, show_default=True, help="A minute's quota passes in 60 s divided by this.")
@click.option("--no-refund", is_flag=True, help="Keep what was reserved, however short the answer.")
@click.option("--reserve-cap", metavar="N", type=click.IntRange(1), help="Reserve at most N tokens for an answer.")
@click.option("--max-in-flight", metavar="N", type=click.IntRange(1), help="429 queue_exceeded above N at once.")
@click.option(
    "--headers",
    type=click.Choice(list(HEADER_SETS)),
    default="classic",
    show_default=True,
    help="Which x-ratelimit headers answers have.",
)
@click.option(
    "--reset-style",
    type=click.Choice(RESET_STYLES),
    default="wall-clock",
    show_default=True,
    help="What reset headers count to: the next boundary, or a full bucket.",
)
@click.option("--retry-after", is_flag=True, help="Send Retry-After with every 429.")
@click.option("--answer-tokens", metavar="N", type=click.IntRange(1), help="Every text answer has N tokens.")
@click.option(
    "--median-tokens", metavar="N", type=click.IntRange(1), default=80, show_default=True, help="Of answers' texts."
)
@click.option("--stall-s", metavar="S", default=30.0, show_default=True, help="Silence of the fault `stall`.")
@click.option("--slow-s", metavar="S", default=2.0, show_default=True, help="Silence of `slow_first_byte`.")
@click.option(
    "--outage-after", "outage_after_s", metavar="S", type=float, help="Be gone once, S seconds after the first request."
)
@click.option("--outage-for", "outage_for_s", metavar="S", default=10.0, show_default=True, help="How long.")
@click.option(
    "--outage-kind",
    type=click.Choice(OUTAGES),
    default="refuse",
    show_default=True,
    help="Close every connection without an answer, or answer 503.",
)
@click.option(
    "--script",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Answer by the rules of this file, JSON or JSON Lines; see `python -m pydoc cbatch.sim.script`.",
)
@click.option(
    "--refuse",
    multiple=True,
    metavar="NAME",
    type=click.Choice(list(REFUSALS)),
    help="Be stricter: 400 for such requests; repeatable.",
)
@click.option("--record", is_flag=True, help="Show the last requests, without keys, at GET /_sim/requests.")
@click.option("--key", "api_key", metavar="KEY", help="Accept only this made-up key [default: any but wrong…].")
@click.option("--until-stdin-closes", is_flag=True, hidden=True)
def command(
    host: str,
    port: int,
    fault: tuple[str, ...],
    no_refund: bool,
    script: Path | None,
    until_stdin_closes: bool,
    **settings: Any,
) -> None:
    """Serve a local Cerebras: same wire format, limits, speeds and faults.

    Prints its address as the first line, runs in the foreground, and stops on Ctrl-C. The numbers
    of a run against it say nothing about the real service.
    """
    try:  # every other option is named like the field it sets
        rules = () if script is None else read_script(script)
        config = SimConfig(faults=_faults(fault), refund=not no_refund, script=rules, **settings)
    except ValueError as exc:
        message, _, hint = str(exc).partition("\n")
        raise JobError(f"sim: {message}", hint=hint or None) from None
    try:
        run_async(_serve(config, host, port, until_stdin_closes))
    except OSError as exc:
        raise RunStopped(f"cannot listen on {host}:{port}: {exc.strerror}", hint="--port 0 picks a free port") from None


async def _serve(config: SimConfig, host: str, port: int, until_stdin_closes: bool) -> None:
    loop = asyncio.get_running_loop()

    def on_ready(address: str) -> None:
        click.echo(address)
        sys.stdout.flush()

    server = asyncio.ensure_future(serve(config, host, port, on_ready))
    stopping = False

    def stop() -> None:
        nonlocal stopping
        if not stopping:  # a second signal must not cut the clean-up short
            stopping = True
            server.cancel()

    def on_stdin() -> None:
        if not os.read(sys.stdin.fileno(), 1):
            loop.remove_reader(sys.stdin.fileno())
            stop()

    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop)
    if until_stdin_closes:
        loop.add_reader(sys.stdin.fileno(), on_stdin)
    with suppress(asyncio.CancelledError):
        await server
