"""Which request meets which fault is decided by the seed, not by chance or order."""

from hashlib import sha256

import pytest

from cbatch.sim import FAULTS
from cbatch.sim.faults import ALIASES, FaultPlan, resolve


def _digests(count: int) -> list[bytes]:
    return [sha256(str(number).encode()).digest() for number in range(count)]


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_has_one_line_and_fires_when_certain(name: str) -> None:
    assert FAULTS[name]
    assert "\n" not in FAULTS[name]
    plan = FaultPlan({name: 1.0}, seed=0)
    assert {plan.draw(digest, digest) for digest in _digests(50)} == {name}


@pytest.mark.parametrize(
    ("short", "name"),
    [
        pytest.param("429", "rate_limited_requests", id="429"),
        pytest.param("500", "server_error", id="500"),
        pytest.param("503", "unavailable", id="503"),
        pytest.param("402", "payment_required", id="402"),
        pytest.param("drop", "drop_before", id="drop"),
        pytest.param("html", "bad_gateway_html", id="html"),
        pytest.param("Slow-First-Byte", "slow_first_byte", id="dashes and capitals do not matter"),
    ],
)
def test_short_names(short: str, name: str) -> None:
    assert resolve({short: 0.5}) == {name: 0.5}


def test_every_short_name_means_a_fault() -> None:
    assert set(ALIASES.values()) <= FAULTS.keys()
    assert not ALIASES.keys() & FAULTS.keys()


def test_an_unknown_fault_names_the_nearest_and_all() -> None:
    """The message alone is enough to correct the mistake."""
    with pytest.raises(ValueError, match="unknown fault 'serverror'") as caught:
        resolve({"serverror": 0.1})
    text = str(caught.value)
    assert "did you mean server_error" in text
    assert all(name in text for name in FAULTS)


def test_a_fault_of_probability_zero_is_off() -> None:
    assert resolve({"503": 0.0}) == {}


def test_the_share_of_faults_is_the_probability() -> None:
    plan = FaultPlan({"503": 0.1}, seed=3)
    hits = sum(plan.draw(digest, digest) is not None for digest in _digests(5000))
    assert 400 < hits < 600


def test_order_of_arrival_changes_nothing() -> None:
    """The same requests meet the same faults in any order, so a parallel run can be repeated."""
    faults = {"503": 0.2, "429": 0.2, "drop_mid": 0.2}
    digests = _digests(300)
    one, other = FaultPlan(faults, seed=1), FaultPlan(faults, seed=1)
    forwards = {digest: one.draw(digest, digest) for digest in digests}
    backwards = {digest: other.draw(digest, digest) for digest in reversed(digests)}
    assert forwards == backwards
    assert len(set(forwards.values())) == 4


def test_another_seed_chooses_other_requests() -> None:
    digests = _digests(200)
    one, other = FaultPlan({"503": 0.5}, seed=1), FaultPlan({"503": 0.5}, seed=2)
    assert [one.draw(d, d) for d in digests] != [other.draw(d, d) for d in digests]


def test_a_retry_draws_again() -> None:
    """With a probability below one, every request succeeds after enough attempts."""
    plan = FaultPlan({"503": 0.5}, seed=0)
    for digest in _digests(100):
        assert None in [plan.draw(digest, digest) for _ in range(40)]


def test_a_bad_prompt_stays_bad_and_a_good_one_good() -> None:
    """`bad_request` depends on the prompt alone: no retry and no other parameter changes it."""
    plan = FaultPlan({"bad_request": 0.3}, seed=0)
    for prompt in _digests(50):
        assert len({plan.draw(request, prompt) for request in _digests(20)}) == 1


def test_attempts_are_forgotten_when_there_are_too_many() -> None:
    """Memory is bounded, however many different requests come."""
    plan = FaultPlan({"503": 0.5}, seed=0)
    for number in range(70_000):
        plan.draw(number.to_bytes(32, "big"), b"")
    assert len(plan._attempts) == 65_536
