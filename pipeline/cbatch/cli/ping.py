"""`cbatch ping`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from cbatch import catalog
from cbatch.cli.advice import advised
from cbatch.cli.answered import speed
from cbatch.cli.shared import connection_options, json_option, print_json, run_async
from cbatch.cli.words import duration
from cbatch.errors import RunStopped

PROMPT = "Count from one to ten."
TOKENS = 200  # enough for a reasoning model to get to its answer
ATTEMPTS = 2  # a test that tries until it works finds nothing; a connection may drop once


@click.command(
    epilog="Example: cbatch ping --model gpt-oss-120b\n\nThe key is looked for in --api-key-file, CEREBRAS_API_KEY, "
    ".env.local and .env in the current folder (and beside the job), ~/.config/cerebras/api_key."
)
@click.option("--model", metavar="ID", help="The model to ask [default: the first that the key sees].")
@connection_options
@json_option
def command(model: str | None, sim: bool, base_url: str | None, api_key_file: Path | None, as_json: bool) -> None:
    """Test key, endpoint and speed: lists the models, then sends one small request."""
    found = run_async(_ping(model, sim=sim, base_url=base_url, api_key_file=api_key_file))
    if as_json:
        print_json(found)
        return
    first = f"first token {duration(found['ttft_s'])}, all " if found["ttft_s"] is not None else ""
    told = speed(found["tokens_per_s"], found["tokens_per_s_source"])
    click.echo(f"ok: {found['model']} at {found['base_url']}")
    click.echo(
        f"  latency   {first}{duration(found['latency_s'])}; "
        f"connecting and listing models {duration(found['connect_s'])}"
    )
    click.echo(f"  speed     {told or 'not told by the server, and too short to be measured'}")
    click.echo(f"  tokens    {found['completion_tokens']} out")


async def _ping(model: str | None, **where: Any) -> dict[str, Any]:
    from cbatch.library import Client

    with advised():
        async with Client(attempts=ATTEMPTS, **where) as api:
            started = time.perf_counter()
            served = [card.id for card in await api.models()]
            connect_s = time.perf_counter() - started
            if model is None:
                model = next((name for name in served if catalog.card(name)), next(iter(served), None))
                if model is None:
                    raise RunStopped("this key sees no models", hint="name one with --model")
            answer = await api.ask(PROMPT, model=model, stream=True, max_completion_tokens=TOKENS)
            address = api.base_url
    metrics = answer.metrics
    return {
        "model": answer.served_model or model,
        "base_url": address,
        "latency_s": metrics.latency_s,
        "ttft_s": metrics.ttft_s,
        "connect_s": connect_s,
        "completion_tokens": answer.usage.completion_tokens,
        "tokens_per_s": answer.tokens_per_s,
        "tokens_per_s_source": answer.tokens_per_s_source,
        "server_tokens_per_s": answer.server_tokens_per_s,
        "client_tokens_per_s": answer.client_tokens_per_s,
        "server_total_s": answer.time_info.total_s,
    }
