"""What is publicly known of the models: prices and account limits, with the date they were read.

The figures live in `catalog.json` beside this file and nowhere else. A model that is not in it
has an unknown price (None), never a price of 0.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TIERS = ("free-trial", "developer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """USD per million tokens. Cached prompt tokens cost the same as others."""

    input_usd: float
    output_usd: float

    def cost_usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        """USD for one answer."""
        return (prompt_tokens * self.input_usd + completion_tokens * self.output_usd) / 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """One model of the catalog; `tiers` maps a tier to its (requests, tokens) per minute."""

    id: str
    price: Price
    context_tokens: int
    max_output_tokens: int
    tokens_per_s: float
    tiers: dict[str, tuple[int, int]]


@cache
def load() -> tuple[dict[str, ModelCard], dict[str, str]]:
    """The models by id, and the dates at which `prices` and `limits` were read."""
    raw = json.loads(Path(__file__).with_name("catalog.json").read_text("utf-8"))
    cards = {
        name: ModelCard(
            id=name,
            price=Price(input_usd=m["input_usd"], output_usd=m["output_usd"]),
            context_tokens=m["context"],
            max_output_tokens=m["max_output"],
            tokens_per_s=m["tokens_per_s"],
            tiers={tier: (t["rpm"], t["tpm"]) for tier, t in m["tiers"].items()},
        )
        for name, m in raw["models"].items()
    }
    return cards, {"prices": raw["prices_as_of"], "limits": raw["limits_as_of"]}


def card(model: str) -> ModelCard | None:
    """What is known of `model`, or None."""
    return load()[0].get(model)


def price(model: str) -> Price | None:
    """The price of `model`, or None where it is unknown."""
    known = card(model)
    return known.price if known else None
