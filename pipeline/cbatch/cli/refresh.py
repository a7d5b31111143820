"""`cbatch models --refresh`: the server's public list -> the user's catalog file, and what that changes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cbatch import catalog
from cbatch.catalog import ACCEPTED_ID, ACCEPTED_SIZES, MAX_MODELS, ModelCard, are_sizes, is_id, is_usd, quote
from cbatch.cli.files import replace_whole
from cbatch.cli.words import plural
from cbatch.errors import JobError, RunStopped

SIMULATED = "simulated."  # how every description of cbatch sim ends, wherever it is reached
UNKNOWN: dict[str, float | None] = {"input_usd": None, "output_usd": None}
# Strict: `float` would also take "nan", "inf", "1_0" and the digits of other scripts.
_DECIMAL = re.compile(r"(\d{1,40}(\.\d{0,40})?|\.\d{1,40})([eE][+-]?\d{1,3})?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A public list: its models as the catalog file has them, and in words what was refused of it."""

    models: dict[str, dict[str, Any]]
    listed: frozenset[str]
    refused: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What a refresh changed, in words."""

    prices: list[str]
    sizes: list[str]
    new: list[str]
    gone: list[str]


def read(entries: Sequence[Mapping[str, Any]]) -> Told:
    """What a public list says.

    A price that is not told is None, unknown. One that cannot be is left out: what came with cbatch
    stays, with its date. So do sizes; a model of which nobody knows them is not added.
    """
    packaged = catalog.packaged_catalog().cards
    models: dict[str, dict[str, Any]] = {}
    refused: list[str] = []
    seen: set[str] = set()
    for entry in entries:
        name = entry.get("id")
        if not is_id(name):
            refused.append(f"id {quote(name)}; accepted: {ACCEPTED_ID}; the model is left out")
            continue
        assert isinstance(name, str)
        if name in seen:
            refused.append(f"{name}: listed more than once; the first is taken")
            continue
        seen.add(name)
        found, problem = _prices(entry.get("pricing"))
        if problem:
            found = {} if name in packaged else UNKNOWN
            refused.append(
                f"{name}: {problem}; {'the known price stays' if name in packaged else 'its price is unknown'}"
            )
        limits = entry.get("limits")
        limits = limits if isinstance(limits, Mapping) else {}
        context, output = limits.get("max_context_length"), limits.get("max_completion_tokens")
        if are_sizes(context, output):
            models[name] = {**found, "context": context, "max_output": output}
            continue
        if name in packaged:
            models[name] = dict(found)
            if context is None and output is None:  # nothing told, nothing refused
                continue
        refused.append(
            f"{name}: limits.max_context_length is {quote(context)} and limits.max_completion_tokens {quote(output)}; "
            f"accepted: {ACCEPTED_SIZES}; {'the known sizes stay' if name in packaged else 'the model is left out'}"
        )
    return Told(models=models, listed=frozenset(seen), refused=refused)


def document(entries: Sequence[Mapping[str, Any]], told: Told, address: str, today: str) -> dict[str, Any]:
    """The catalog file. Raises RunStopped for a list that no catalog should be made of."""
    nothing = "nothing was written; is this the address of the API?"
    if len(entries) > MAX_MODELS:
        raise RunStopped(f"{address}: lists {len(entries):,} models; accepted: at most {MAX_MODELS:,}", hint=nothing)
    if not any(model.get("input_usd") for model in told.models.values()):
        said = "".join(f"\n{line}" for line in told.refused[:5])
        raise RunStopped(
            f"{address}: not one usable price in a list of {plural(len(entries), 'model')}{said}", hint=nothing
        )
    if not catalog.is_newer(today):
        date = catalog.packaged_catalog().dates["prices"]
        raise RunStopped(
            f"today is {today}, and the prices that came with cbatch are of {date}: today's would not be used",
            hint="set this machine's clock; nothing was written",
        )
    return {
        "note": "Written by `cbatch models --refresh`. USD per million tokens; null is unknown.",
        "prices_as_of": today,
        "read_from": address,
        "models": told.models,
    }


def is_simulated(entries: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a public list is the simulator's, however far away it runs."""
    return any(str(entry.get("description", "")).endswith(SIMULATED) for entry in entries)


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths are one file, or would be."""
    with suppress(OSError):
        if one.samefile(other):
            return True
    return Path(os.path.realpath(one)) == Path(os.path.realpath(other))


def check_target(path: Path) -> None:
    """Raise JobError if something stands at `path` that is not a catalog: it would be lost."""
    if path.is_file() and not path.stat().st_size:  # as `mktemp` makes them
        return
    catalog.overlay(path)
    if problem := catalog.overlay_problem():
        raise JobError(f"--catalog {problem}; not overwritten", hint="name another file, or delete this one")


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Replace the file whole or leave it as it was. Raises RunStopped."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # a rename would replace a device
            raise RunStopped(f"{path}: not a file, so not replaced", hint="name another with --catalog FILE")
        replace_whole(path, json.dumps(content, indent=2).encode() + b"\n", 0o644)
    except OSError as exc:
        raise RunStopped(
            f"{path}: cannot be written: {exc.strerror or exc}; what was there is unchanged",
            hint="free some space or make the folder writable, or name another file with --catalog FILE",
        ) from None


def changes(before: Mapping[str, ModelCard], after: Mapping[str, ModelCard], listed: frozenset[str]) -> Changes:
    """What is different now, and which models the list no longer has."""
    prices, sizes, gone = [], [], []
    for name in sorted(before.keys() & after.keys()):
        old, new = before[name], after[name]
        if old.price != new.price:
            prices.append(f"{name}: {_price(old)} -> {_price(new)}")
        if (was := _sizes(old)) != (now := _sizes(new)):
            sizes.append(f"{name}: {was} -> {now}")
    for name in sorted(before.keys() - listed):
        stays = f"its entry of {after[name].prices_as_of} stays" if name in after else "its entry is dropped"
        gone.append(f"{name}: not in the list; {stays}")
    added = [
        f"{name}: {_price(after[name])}, {_sizes(after[name])}; no limits known: give limits.rpm and limits.tpm"
        for name in sorted(after.keys() - before.keys())
    ]
    return Changes(prices=prices, sizes=sizes, new=added, gone=gone)


def _price(card: ModelCard) -> str:
    price = card.price
    return f"${price.input_usd:g} in, ${price.output_usd:g} out" if price else "price unknown"


def _sizes(card: ModelCard) -> str:
    return f"context {card.context_tokens:,}, answers up to {card.max_output_tokens:,}"


def _prices(pricing: object) -> tuple[dict[str, float | None], str | None]:
    """USD per million tokens, from USD per token as text; or why not."""
    if pricing is None:
        return UNKNOWN, None
    if not isinstance(pricing, Mapping):
        return {}, f"pricing is {quote(pricing)}; accepted: an object with prompt and completion"
    found: dict[str, float | None] = {}
    for key, name in (("prompt", "input_usd"), ("completion", "output_usd")):
        told = pricing.get(key)
        text = told if isinstance(told, str) else "" if isinstance(told, bool) else repr(told)
        found[name] = None
        if told is not None:
            value = round(float(text) * 1e6, 6) if _DECIMAL.fullmatch(text) else None
            if not is_usd(value):
                least, most = (usd / 1e6 for usd in (catalog.LEAST_USD, catalog.MOST_USD))
                return {}, f"pricing.{key} is {quote(told)}; accepted: USD per token, from {least:.9f} to {most:g}"
            found[name] = value
    return (UNKNOWN if None in found.values() else found), None


__all__ = ["Changes", "Told", "changes", "check_target", "document", "is_simulated", "read", "same_file", "write"]
