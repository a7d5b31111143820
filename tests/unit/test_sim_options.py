"""`cbatch sim`: what its options set."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from click.testing import CliRunner

import cbatch.cli.sim as cli
from cbatch.errors import JobError
from cbatch.sim import SimConfig

NO_OPTION = {"models", "payment_required", "default_reserve"}  # `--fault payment_required` does it
NAMED_OTHERWISE = {"faults": "fault", "refund": "no_refund"}
GIVEN = {
    "tier": "free-trial", "seed": 3, "rps": 1, "rpm": 2, "rph": 3, "rpd": 4, "tpm": 5, "total_tpm": 6, "tph": 7,
    "tpd": 8, "api_key": "k", "speed": 2.0, "reserve_cap": 9, "headers": "none", "reset_style": "refill",
    "quota_window": "sliding", "clock_rate": 60.0, "max_in_flight": 10, "outage_after_s": 1.5, "outage_for_s": 2.5,
    "outage_kind": "503", "stall_s": 3.5, "slow_s": 4.5, "answer_tokens": 11, "median_tokens": 12,
}  # fmt: skip


def test_every_setting_has_an_option() -> None:
    """What the tests can make the simulator do a user can, too."""
    options = {parameter.name for parameter in cli.command.params}
    for field in dataclasses.fields(SimConfig):
        assert field.name in NO_OPTION or NAMED_OTHERWISE.get(field.name, field.name) in options


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[SimConfig]:
    """The configurations that would have been served."""
    found: list[SimConfig] = []
    monkeypatch.setattr(cli, "_serve", lambda config, *_: config)
    monkeypatch.setattr(cli, "run_async", found.append)
    return found


def test_every_option_sets_its_field(served: list[SimConfig]) -> None:
    arguments: list[str] = ["--retry-after", "--no-refund", "--fault", "drop=0.5", "--fault", "503"]
    names = {parameter.name: parameter.opts[0] for parameter in cli.command.params}
    for name, value in GIVEN.items():
        arguments += [names[name], str(value)]
    result = CliRunner().invoke(cli.command, arguments, standalone_mode=False)
    assert result.exception is None
    expected: dict[str, Any] = GIVEN | {"retry_after": True, "refund": False, "faults": {"drop": 0.5, "503": 1.0}}
    assert served == [SimConfig(**expected)]


def test_without_options_the_defaults_are_those_of_the_configuration(served: list[SimConfig]) -> None:
    assert CliRunner().invoke(cli.command, [], standalone_mode=False).exception is None
    assert served == [SimConfig()]


def test_a_wrong_value_says_what_is_accepted(served: list[SimConfig]) -> None:
    with pytest.raises(JobError, match="clock_rate is 0") as caught:
        CliRunner().invoke(cli.command, ["--clock-rate", "0"], standalone_mode=False, catch_exceptions=False)
    assert caught.value.hint == "give a number above 0"
    assert not served
