"""`cbatch sim`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress

import click

from cbatch.cli.shared import run_async
from cbatch.errors import JobError, RunStopped
from cbatch.sim import FAULTS, TIERS, SimConfig, serve


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
    epilog="Example: cbatch sim --port 8080 --tier free-trial --fault server_error=0.05\n\nFaults: " + ", ".join(FAULTS)
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, show_default=True, help="Port; 0 picks a free one.")
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
@click.option("--rpm", type=click.IntRange(1), help="Requests per minute, instead of the tier's.")
@click.option("--tpm", type=click.IntRange(1), help="Tokens per minute, instead of the tier's.")
@click.option("--rps", type=click.IntRange(1), help="Requests per second on top: bursts are refused.")
@click.option(
    "--headers",
    type=click.Choice(["none", "classic", "extended"]),
    default="classic",
    show_default=True,
    help="Which x-ratelimit headers answers have.",
)
@click.option("--retry-after", is_flag=True, help="Send Retry-After with every 429.")
@click.option("--key", "key", metavar="KEY", help="Accept only this made-up key [default: any but wrong…].")
@click.option("--until-stdin-closes", is_flag=True, hidden=True)
def command(
    host: str,
    port: int,
    tier: str,
    seed: int,
    fault: tuple[str, ...],
    speed: float,
    rpm: int | None,
    tpm: int | None,
    rps: int | None,
    headers: str,
    retry_after: bool,
    key: str | None,
    until_stdin_closes: bool,
) -> None:
    """Serve a local Cerebras: same wire format, limits, speeds and faults.

    Prints its address as the first line, runs in the foreground, and stops on Ctrl-C. The numbers
    of a run against it say nothing about the real service.
    """
    try:
        config = SimConfig(
            tier=tier,
            seed=seed,
            faults=_faults(fault),
            speed=speed,
            rpm=rpm,
            tpm=tpm,
            rps=rps,
            headers=headers,
            retry_after=retry_after,
            api_key=key,
        )
    except ValueError as exc:
        raise JobError(f"sim: {exc}") from None
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
