"""`cbatch serve`."""

from __future__ import annotations

import asyncio
import errno
import json
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cbatch.cli import decided
from cbatch.cli.shared import connection_options, json_option, print_json, run_async
from cbatch.cli.words import plural
from cbatch.errors import JobError, RunStopped

if TYPE_CHECKING:
    from cbatch.gateway.counters import Counters
    from cbatch.gateway.serving import Options

PORT = 8787


@click.command(
    epilog="Example: cbatch serve --sim\n\n"
    "Codex: mkdir -p ~/.codex-cbatch; cbatch serve --print-codex-config > ~/.codex-cbatch/config.toml; "
    "CODEX_HOME=~/.codex-cbatch codex\n\n"
    "Any OpenAI client on this machine: OPENAI_BASE_URL=http://127.0.0.1:8787/v1, and any key."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=PORT, show_default=True, type=click.IntRange(0, 65_535), help="Port; 0 picks a free one."
)
@connection_options
@click.option(
    "--client-key",
    metavar="KEY",
    envvar="CBATCH_CLIENT_KEY",
    help="Clients must send this key; also by CBATCH_CLIENT_KEY  [default: they may send anything].",
)
@click.option(
    "--config",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Models and providers; read again when it changes.",
)
@click.option(
    "--log", metavar="DIR", type=click.Path(path_type=Path), help="Write every exchange to DIR as JSONL, without keys."
)
@click.option(
    "--print-codex-config", is_flag=True, help="Print a config.toml for the Codex CLI, write its model catalog."
)
@click.option("--quiet", is_flag=True, help="Print the address and errors only.")
@json_option
def command(print_codex_config: bool, quiet: bool, as_json: bool, **settings: Any) -> None:
    """Serve OpenAI clients on this machine: Codex, the Responses API, chat completions.

    POST /v1/responses is translated to Cerebras chat completions, /v1/chat/completions and /v1/models are
    passed on, all under the account's limits, with retries. The key stays here. Also /health and /metrics.

    Prints its address as the first line, runs in the foreground, and stops on Ctrl-C.
    """
    from cbatch.gateway.serving import Options

    options = Options(**settings)
    if options.client_key == "":
        raise JobError("--client-key: is empty", hint="give a key, or leave it out: then clients may send anything")
    if print_codex_config:
        _print_codex_config(options, as_json)
        return
    counters = run_async(_serve(options, quiet=quiet or as_json, first=not as_json))
    decided(0)
    if as_json:
        print_json(counters.summary())
    elif not quiet:
        for line in counters.lines():
            say(line)


async def _serve(options: Options, *, quiet: bool, first: bool) -> Counters:
    """Serve until a signal; the second does not wait for what is being answered."""
    from cbatch.gateway.serving import running

    stop = asyncio.Event()
    main = asyncio.current_task()
    assert main is not None
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set():
            main.cancel()
        stop.set()

    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, on_signal)
    counters: Counters | None = None
    try:
        async with running(options, say) as (address, counters):
            click.echo(address, err=not first)
            sys.stdout.flush()
            if not quiet:
                say(f"serving {address}/v1 (Responses, chat completions, models); Ctrl-C stops")
            await stop.wait()
            busy = (counters.in_flight() if counters.in_flight else 0) + (counters.waiting() if counters.waiting else 0)
            if busy and not quiet:
                say(f"stopping: {plural(busy, 'request')} still to be answered; Ctrl-C again stops at once")
    except OSError as exc:
        raise RunStopped(
            f"cannot listen on {options.host}:{options.port}: {exc.strerror or exc}", hint=_listen_hint(exc)
        ) from None
    except asyncio.CancelledError:
        if counters is None or not stop.is_set():
            raise
        main.uncancel()
    return counters


def _listen_hint(exc: OSError) -> str:
    if isinstance(exc, socket.gaierror):
        return "--host names an address of this machine, such as 127.0.0.1"
    if exc.errno == errno.EADDRINUSE:
        return "another `cbatch serve` may be running there; --port 0 picks a free port"
    return "--port takes another port, 0 a free one; --host an address of this machine"


def say(message: str) -> None:
    """What happens, on stderr."""
    click.echo(message, err=True)


def _print_codex_config(options: Options, as_json: bool) -> None:
    """The config.toml on stdout; the catalog that it names is written where cbatch keeps its data."""
    from cbatch import catalog, environment
    from cbatch.cli.files import replace_whole
    from cbatch.gateway.codex import config_toml, model_catalog
    from cbatch.gateway.config import Watched
    from cbatch.gateway.serving import reachable
    from cbatch.library import DEFAULT_MODEL

    route = Watched(options.config, say).current().route(DEFAULT_MODEL)
    card = catalog.card(route.model)
    models = model_catalog(catalog.load()[0].values())
    path = environment.catalog_file().with_name("codex-models.json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_whole(path, json.dumps(models, ensure_ascii=False, indent=1).encode(), 0o644)
    except OSError as exc:
        raise RunStopped(
            f"{path}: cannot be written: {exc.strerror or exc}", hint="it is the model catalog that Codex reads"
        ) from None
    toml = config_toml(
        f"http://{reachable(options.host)}:{options.port}/v1",
        route.model,
        path,
        bool(options.client_key),
        card.context_tokens if card else None,
    )
    if as_json:
        print_json({"config_toml": toml, "model_catalog": models, "model_catalog_json": str(path)})
        return
    click.echo(toml, nl=False)
    say(f"model catalog written to {path}")
