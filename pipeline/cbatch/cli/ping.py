"""`cbatch ping`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
import orjson

from cbatch import catalog
from cbatch.cli.shared import api_errors, connection_options, json_option, print_json, run_async
from cbatch.cli.words import duration, rate
from cbatch.connection import Connection
from cbatch.errors import RunStopped
from cbatch.measure import ratio

PROMPT = "Count from one to ten."
TOKENS = 200  # enough for a reasoning model to get to its answer


@click.command(
    epilog="Example: cbatch ping --model gpt-oss-120b\n\nThe key is looked for in --api-key-file, CEREBRAS_API_KEY, "
    ".env.local and .env in the current folder (and beside the job), ~/.config/cerebras/api_key."
)
@click.option("--model", metavar="ID", help="The model to ask [default: the first that the key sees].")
@connection_options
@json_option
def command(model: str | None, sim: bool, base_url: str | None, api_key_file: Path | None, as_json: bool) -> None:
    """Test key, endpoint and speed: lists the models, then sends one small request."""
    found = run_async(_ping(Connection(sim=sim, url=base_url, key_file=api_key_file), model))
    if as_json:
        print_json(found)
        return
    click.echo(f"ok: {found['model']} at {found['base_url']}")
    click.echo(
        f"  latency   {duration(found['latency_s'])}; connecting and listing models {duration(found['connect_s'])}"
    )
    speed = found["server_tokens_per_s"]
    click.echo(
        f"  speed     {rate(speed)} tokens/s by the server's clock" if speed else "  speed     not told by the server"
    )
    click.echo(f"  tokens    {found['completion_tokens']} out")


async def _ping(connection: Connection, model: str | None) -> dict[str, Any]:
    async with connection.open() as api:
        with api_errors(api):
            started = time.perf_counter()
            served = [entry["id"] for entry in await api.models()]
            connect_s = time.perf_counter() - started
            if model is None:
                model = next((name for name in served if catalog.card(name)), next(iter(served), None))
                if model is None:
                    raise RunStopped("this key sees no models", hint="name one with --model")
            body = {"model": model, "messages": [{"role": "user", "content": PROMPT}], "max_completion_tokens": TOKENS}
            started = time.perf_counter()
            answer = await api.complete(orjson.dumps(body))
            latency_s = time.perf_counter() - started
    return {
        "model": answer.served_model or model,
        "base_url": api.endpoint.base_url,
        "latency_s": latency_s,
        "connect_s": connect_s,
        "completion_tokens": answer.usage.completion_tokens,
        "server_total_s": answer.time_info.total_s,
        "server_tokens_per_s": ratio(answer.usage.completion_tokens, answer.time_info.completion_s),
    }
