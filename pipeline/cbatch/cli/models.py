"""`cbatch models`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from cbatch import catalog
from cbatch.cli.shared import Connection, api_errors, connection_options, json_option, print_json, run_async
from cbatch.errors import APIError


@click.command(epilog="Example: cbatch models --json | jq -r '.models[].id'")
@connection_options
@json_option
def command(sim: bool, base_url: str | None, api_key_file: Path | None, as_json: bool) -> None:
    """List the models this key sees, with context, prices and limits.

    Prices and context come from the server's public list, else from the catalog in cbatch; the
    limits are the Developer tier's, and yours may differ. `?` is not known.
    """
    found = run_async(_models(Connection(sim=sim, url=base_url, key_file=api_key_file)))
    if as_json:
        print_json({"models": found, "as_of": catalog.load()[1]})
        return
    click.echo(f"{'model':<24}{'context':>10}{'max out':>10}{'in $/M':>9}{'out $/M':>9}{'req/min':>9}{'tok/min':>11}")
    for model in found:
        cells = [
            f"{value:>{width},.{digits}f}" if value is not None else f"{'?':>{width}}"
            for value, width, digits in (
                (model["context_tokens"], 10, 0),
                (model["max_output_tokens"], 10, 0),
                (model["input_usd"], 9, 2),
                (model["output_usd"], 9, 2),
                (model["rpm"], 9, 0),
                (model["tpm"], 11, 0),
            )
        ]
        click.echo(f"{model['id']:<24}{''.join(cells)}")


async def _models(connection: Connection) -> list[dict[str, Any]]:
    async with connection.open() as api:
        with api_errors(api):
            served = await api.models()
        public: dict[str, dict[str, Any]] = {}
        with suppress(APIError):  # a server without a public list still has its models
            public = {entry["id"]: entry for entry in await api.public_models()}
    return [_describe(name, public.get(name, {})) for name in sorted(entry["id"] for entry in served)]


def _describe(name: str, public: dict[str, Any]) -> dict[str, Any]:
    card = catalog.card(name)
    limits, pricing = _mapping(public.get("limits")), _mapping(public.get("pricing"))
    rpm, tpm = card.tiers["developer"] if card else (None, None)
    return {
        "id": name,
        "context_tokens": limits.get("max_context_length") or (card.context_tokens if card else None),
        "max_output_tokens": limits.get("max_completion_tokens") or (card.max_output_tokens if card else None),
        "input_usd": _per_million(pricing.get("prompt")) or (card.price.input_usd if card else None),
        "output_usd": _per_million(pricing.get("completion")) or (card.price.output_usd if card else None),
        "rpm": rpm,
        "tpm": tpm,
    }


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _per_million(text: object) -> float | None:
    """The public list gives USD per single token, as text."""
    try:
        return round(float(text) * 1e6, 6) if isinstance(text, str) else None
    except ValueError:
        return None
