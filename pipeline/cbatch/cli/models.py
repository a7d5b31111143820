"""`cbatch models`."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from cbatch import catalog, environment
from cbatch.cli import refresh
from cbatch.cli.shared import (
    api_errors,
    connection_options,
    json_option,
    print_json,
    run_async,
)
from cbatch.cli.words import plural
from cbatch.connection import LOCAL, Connection
from cbatch.errors import APIError, JobError

Entries = list[dict[str, Any]]


@click.command(
    epilog="Example: cbatch models --json | jq -r '.models[].id'\n\nExample: cbatch models --refresh   (needs no key)"
)
@click.option("--refresh", "refreshing", is_flag=True, help="Keep the server's prices and sizes for later runs.")
@click.option(
    "--catalog",
    "catalog_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="With --refresh: write FILE, not your catalog. A simulator's prices can only go there.",
)
@connection_options
@json_option
def command(
    refreshing: bool,
    catalog_file: Path | None,
    sim: bool,
    base_url: str | None,
    api_key_file: Path | None,
    as_json: bool,
) -> None:
    """List the models this key sees, with context, prices and limits.

    Prices and context come from the server's public list, else from the catalog; the limits are the
    Developer tier's, and yours may differ. `?` is not known. The catalog came with cbatch, and
    --refresh lays the server's public list over it; plans and runs reckon costs with it.
    """
    connection = Connection(sim=sim, url=base_url, key_file=api_key_file)
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    if refreshing:
        _refresh(connection, catalog_file, today, as_json)
        return
    if catalog_file is not None:
        raise JobError("--catalog says where --refresh writes, and --refresh is not given", hint="add --refresh")
    found, address = run_async(_models(connection, today))
    if as_json:
        print_json({"models": found, "as_of": catalog.load()[1], "prices_from": catalog.prices_from()})
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
    for source, date in sorted({(m["prices_from"], m["prices_as_of"]) for m in found if m["prices_from"]}):
        names = [m["id"] for m in found if (m["prices_from"], m["prices_as_of"]) == (source, date)]
        which = "" if len(names) == len(found) else f" of {', '.join(names)}"
        click.echo(f"prices{which}: {date}, from {source}")
    dates = catalog.load()[1]
    click.echo(f"limits: {dates['limits']}, from {catalog.PACKAGED}")
    if address is not None:
        click.echo(f"runs reckon with prices of {dates['prices']}, from {catalog.prices_from()}")


async def _models(connection: Connection, today: str) -> tuple[list[dict[str, Any]], str | None]:
    async with connection.open() as api:
        with api_errors(api):
            served = await api.models()
        address, told = _address(api.endpoint.base_url), None
        with suppress(APIError):  # a server without a public list still has its models
            told = refresh.read(await api.public_models())
    public = told.models if told else {}
    names = sorted(entry["id"] for entry in served)
    return [_describe(name, public.get(name, {}), address, today) for name in names], address if told else None


def _describe(name: str, public: dict[str, Any], address: str, today: str) -> dict[str, Any]:
    card = catalog.card(name)
    quota = card.tiers.get("developer", catalog.Quota()) if card else catalog.Quota()
    input_usd, output_usd = public.get("input_usd"), public.get("output_usd")
    date, source = (today, address) if input_usd is not None else (None, None)
    if source is None and card is not None and card.price is not None:
        input_usd, output_usd = card.price.input_usd, card.price.output_usd
        packaged = card.prices_as_of == catalog.packaged_catalog().dates["prices"]
        date, source = card.prices_as_of, catalog.PACKAGED if packaged else catalog.prices_from()
    return {
        "id": name,
        "context_tokens": public.get("context") or (card.context_tokens if card else None),
        "max_output_tokens": public.get("max_output") or (card.max_output_tokens if card else None),
        "input_usd": input_usd,
        "output_usd": output_usd,
        "prices_as_of": date,
        "prices_from": source,
        "rpm": quota.rpm,
        "tpm": quota.tpm,
    }


def _refresh(connection: Connection, file: Path | None, today: str, as_json: bool) -> None:
    users = environment.catalog_file()
    target = file or users
    own = refresh.same_file(target, users)
    if own and connection.label == LOCAL:
        raise _invented(connection.label, target)
    before = catalog.load()[0]
    if not own:
        refresh.check_target(target)
    entries, address = run_async(_public(connection))
    if own and refresh.is_simulated(entries):
        raise _invented(f"{address} is a simulator", target)
    told = refresh.read(entries)
    refresh.write(target, refresh.document(entries, told, address, today))
    catalog.overlay(target)
    found = refresh.changes(before, catalog.load()[0], told.listed)
    if as_json:
        written = {"file": str(target), "prices_as_of": today, "read_from": address, "models": len(told.models)}
        print_json(written | asdict(found) | {"refused": told.refused})
        return
    click.echo(f"{address}: {plural(len(told.models), 'model')}")
    for word, lines in (*asdict(found).items(), ("refused", told.refused)):
        for line in lines:
            click.echo(f"  {word:<8}{line}")
    if not any(asdict(found).values()):
        click.echo("  no price, size or model has changed")
    click.echo(f"written: {target}, prices of {today}")


async def _public(connection: Connection) -> tuple[Entries, str]:
    async with connection.open(keyless=True) as api:
        with api_errors(api):
            return await api.public_models(), _address(api.endpoint.base_url)


def _address(base_url: str) -> str:
    return base_url.removesuffix("/v1") + "/public/v1/models"


def _invented(server: str, target: Path) -> JobError:
    return JobError(
        f"{server}: its prices may be invented, so they do not go into your catalog, {target}",
        hint="name another file: --catalog FILE; or leave out --sim and --base-url",
    )
