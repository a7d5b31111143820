"""What is publicly known of the models: prices and account limits, with the date they were read.

The figures live in `catalog.json` beside this file and nowhere else. Over it lies, where there is one,
the file that `cbatch models --refresh` wrote: newer prices and sizes, and models that came since. A
model that is in neither has an unknown price (None), never a price of 0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

TIERS = ("free-trial", "developer")
PACKAGED = "the catalog in cbatch"
MAX_MODELS = 1_000  # of a public list; the service has fewer than ten
MAX_BYTES = 1_000_000  # of a refreshed file: MAX_MODELS need a fifth of it
MAX_ID = 200  # characters
MAX_TOKENS = 100_000_000  # of a context
# USD per million tokens. Wide enough for any model ever sold, narrow enough that a server that changes
# its unit (per token, per thousand, per million) is caught. 0 is not in it: a budget would never end.
LEAST_USD, MOST_USD = 0.001, 1_000.0
MAX_ADDRESS = 2_000  # characters
ACCEPTED_ID = f"at most {MAX_ID} printable ASCII characters without a space"
ACCEPTED_USD = f"USD per million tokens, from {LEAST_USD:g} to {MOST_USD:,g}"
ACCEPTED_SIZES = f"whole numbers of tokens, at most {MAX_TOKENS:,}, and an answer no longer than the context"

_DATE = re.compile(r"20\d\d-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """USD per million tokens. Cached prompt tokens cost the same as others."""

    input_usd: float
    output_usd: float

    def cost_usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        """USD for one answer."""
        return (prompt_tokens * self.input_usd + completion_tokens * self.output_usd) / 1e6

    def most_usd(self, tokens: int) -> float:
        """USD for so many tokens of the dearer kind."""
        return tokens * max(self.input_usd, self.output_usd) / 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """Requests (r) and tokens (t) that a tier allows per minute, hour and day; None: none published.

    `tpm` counts uncached tokens only, the others all of them.
    """

    rpm: int | None = None
    rph: int | None = None
    rpd: int | None = None
    tpm: int | None = None
    total_tpm: int | None = None
    tph: int | None = None
    tpd: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """One model. `price` and `tokens_per_s` are None where unknown; a model newer than the limits has no `tiers`."""

    id: str
    price: Price | None
    prices_as_of: str  # of this model: one that a newer list does not have keeps its price and its date
    context_tokens: int
    max_output_tokens: int
    tokens_per_s: float | None
    tiers: dict[str, Quota]
    efforts: tuple[str, ...] | None = None  # values of reasoning_effort; None: unknown
    vision: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Catalog:
    cards: dict[str, ModelCard]
    dates: dict[str, str]
    source: str


_overlay: Path | None = None


def overlay(path: Path | None) -> None:
    """Say where the user's refreshed file lies, if there is one; it is read when something is asked."""
    global _overlay
    _overlay = path
    _refreshed.cache_clear()
    _merged.cache_clear()


def overlay_problem() -> str | None:
    """Why the refreshed file is ignored, with its path; None where it is fine or not there."""
    return _refreshed()[1]


def load() -> tuple[dict[str, ModelCard], dict[str, str]]:
    """The models by id, and the dates at which `prices` and `limits` were read."""
    found = _merged()
    return found.cards, found.dates


def prices_from() -> str:
    """Where the prices of `load` were read: an address, or PACKAGED."""
    return _merged().source


def card(model: str) -> ModelCard | None:
    """What is known of `model`, or None."""
    return load()[0].get(model)


def price(model: str) -> Price | None:
    """The price of `model`, or None where it is unknown."""
    known = card(model)
    return known.price if known else None


@cache
def _merged() -> _Catalog:
    packaged, (refreshed, _) = packaged_catalog(), _refreshed()
    if refreshed is None:
        return packaged
    date = refreshed["prices_as_of"]
    newer = is_newer(date)
    cards = dict(packaged.cards)
    for name, model in refreshed["models"].items():
        if newer or name not in cards:
            _lay(cards, name, model, date)
    if not newer:
        return replace(packaged, cards=cards)
    return _Catalog(cards=cards, dates=packaged.dates | {"prices": date}, source=refreshed["read_from"])


@cache
def packaged_catalog() -> _Catalog:
    """What came with cbatch, whatever was refreshed since."""
    raw = json.loads(Path(__file__).with_name("catalog.json").read_text("utf-8"))
    cards = {
        name: ModelCard(
            id=name,
            price=Price(input_usd=m["input_usd"], output_usd=m["output_usd"]),
            prices_as_of=raw["prices_as_of"],
            context_tokens=m["context"],
            max_output_tokens=m["max_output"],
            tokens_per_s=m["tokens_per_s"],
            tiers={tier: Quota(**quota) for tier, quota in m["tiers"].items()},
            efforts=tuple(m["efforts"]),
            vision=m["vision"],
        )
        for name, m in raw["models"].items()
    }
    return _Catalog(cards=cards, dates={"prices": raw["prices_as_of"], "limits": raw["limits_as_of"]}, source=PACKAGED)


def is_newer(date: str) -> bool:
    """Whether prices of `date` (2026-10-31) replace those that came with cbatch."""
    return date > packaged_catalog().dates["prices"]  # as texts: 2026-10-02 comes after 2026-10


def _lay(cards: dict[str, ModelCard], name: str, model: Mapping[str, Any], date: str) -> None:
    """Put what a refreshed file says of one model over what is known of it."""
    known = cards.get(name)
    if known is None:
        known = ModelCard(
            id=name,
            price=None,
            prices_as_of=date,
            context_tokens=model["context"],
            max_output_tokens=model["max_output"],
            tokens_per_s=None,
            tiers={},
        )
    if "context" in model:
        known = replace(known, context_tokens=model["context"], max_output_tokens=model["max_output"])
    if "input_usd" in model:
        usd = model["input_usd"], model["output_usd"]
        told = None if usd[0] is None else Price(input_usd=usd[0], output_usd=usd[1])
        known = replace(known, price=told, prices_as_of=date)
    cards[name] = known


@cache
def _refreshed() -> tuple[dict[str, Any] | None, str | None]:
    """What the refreshed file holds; and why it is ignored, if it is."""
    path = _overlay
    if path is None:
        return None, None
    try:
        if not path.exists():
            return None, None
        if not path.is_file():  # a pipe would be waited for
            return None, f"{path}: not a file"
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as exc:
        return None, f"{path}: cannot be read: {exc.strerror or exc}"
    if len(content) > MAX_BYTES:
        return None, f"{path}: larger than {MAX_BYTES:,} bytes, which no catalog is"
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return None, f"{path}: not JSON, or cut off"
    problem = _problem(document)
    return (None, f"{path}: {problem}") if problem else (document, None)


def _problem(document: object) -> str | None:
    """The first thing in a refreshed file that does not belong there, or None."""
    if not isinstance(document, dict):
        return f"the file is {quote(document)}; accepted: an object with prices_as_of, read_from and models"
    date, source, models = (document.get(key) for key in ("prices_as_of", "read_from", "models"))
    if not (isinstance(date, str) and _DATE.fullmatch(date)):
        return f"prices_as_of is {quote(date)}; accepted: a date like 2026-10-31"
    if not (isinstance(source, str) and source.isprintable() and 0 < len(source) <= MAX_ADDRESS):
        return f"read_from is {quote(source)}; accepted: the address that it was read from"
    if not isinstance(models, dict) or len(models) > MAX_MODELS:
        return f"models is {quote(models)}; accepted: an object of at most {MAX_MODELS:,} models"
    for name, model in models.items():
        if not is_id(name):
            return f"models has {quote(name)}; accepted: {ACCEPTED_ID}"
        if not isinstance(model, dict):
            return f"models.{name} is {quote(model)}; accepted: an object"
        usd = {key: model[key] for key in ("input_usd", "output_usd") if key in model}
        if usd and list(usd.values()) != [None, None]:  # null twice: the price is unknown
            for key in ("input_usd", "output_usd"):
                if not is_usd(usd.get(key)):
                    return f"models.{name}.{key} is {quote(usd.get(key))}; accepted: {ACCEPTED_USD}"
        sizes = model.get("context"), model.get("max_output")
        told = "context" in model or "max_output" in model or name not in packaged_catalog().cards
        if told and not are_sizes(*sizes):
            return (
                f"models.{name}.context is {quote(sizes[0])} and max_output {quote(sizes[1])}; "
                f"accepted: {ACCEPTED_SIZES}"
            )
    return None


def is_id(name: object) -> bool:
    """Whether this can be a model's id; it is printed, so it has nothing that a terminal would obey."""
    return isinstance(name, str) and 0 < len(name) <= MAX_ID and all(33 <= ord(c) < 127 for c in name)


def is_usd(value: object) -> bool:
    """Whether this can be a price, in USD per million tokens."""
    return isinstance(value, int | float) and not isinstance(value, bool) and LEAST_USD <= value <= MOST_USD


def are_sizes(context: object, max_output: object) -> bool:
    """Whether these can be a model's context and longest answer, in tokens."""
    return type(context) is int and type(max_output) is int and 0 < max_output <= context <= MAX_TOKENS


def quote(value: object) -> str:
    """A stranger's value for a message: short, and with nothing that a terminal would obey."""
    if value is None:
        return "missing"
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value):,}"
    # Cut before it is escaped: it may be a whole file.
    text = json.dumps(value[:60]) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
