"""The catalog says what is known of a model, and says nothing of the others."""

from __future__ import annotations

import re

import pytest

from cbatch import catalog


def test_a_model_that_is_not_in_the_catalog_has_no_price_rather_than_a_price_of_zero() -> None:
    assert catalog.price("nobody/knows-this") is None
    assert catalog.card("nobody/knows-this") is None


def test_every_model_has_a_price_a_size_and_the_limits_of_every_tier() -> None:
    cards, _ = catalog.load()
    assert cards
    for name, card in cards.items():
        assert card.id == name
        assert card.price.input_usd > 0
        assert card.price.output_usd > 0
        assert 0 < card.max_output_tokens <= card.context_tokens
        assert card.tokens_per_s > 0
        assert set(card.tiers) == set(catalog.TIERS)
        assert all(rpm > 0 and tpm > 0 for rpm, tpm in card.tiers.values())


def test_the_figures_say_when_they_were_read() -> None:
    _, dates = catalog.load()
    assert set(dates) == {"prices", "limits"}
    assert all(re.fullmatch(r"20\d\d-[01]\d(-[0-3]\d)?", date) for date in dates.values())


def test_prices_are_per_million_tokens() -> None:
    price = catalog.Price(input_usd=0.35, output_usd=0.75)
    assert price.cost_usd(1_000_000, 1_000_000) == pytest.approx(1.10)
    assert price.cost_usd(0, 0) == 0.0
