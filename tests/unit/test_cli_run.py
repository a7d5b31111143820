"""The end of a run in words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cbatch.cli.run import lines
from cbatch.session import Summary

EVERYTHING = Summary(
    name="j",
    folder="runs/j",
    state="finished",
    total=100,
    done=90,
    failed=10,
    left=0,
    orphaned=3,
    sent=150,
    answered=100,
    retries=50,
    rate_limited=20,
    elapsed_s=10.0,
    tokens_per_s=500.0,
    prompt_tokens=1_000,
    completion_tokens=5_000,
    cost_usd=0.01,
    unpriced=2,
    paid_twice_at_most=56,
    paid_twice_usd=0.25,
    abandoned=4,
    simulated=True,
    workers=32,
    pace_wait_s=100.0,
    backoff_s=50.0,
    time_lost_s={"tokens/min": 6.0, "requests/min": 1.0},
    cpu_s=0.5,
    server_queue_s=12.0,
    cuts={"busy": 2, "timeout": 1, "slower": 1},
    learned={"requests/min": 600.0},
    sizing={"requests": 100, "reserved_tokens": 25_600, "unsized_tokens": 1_638_400, "cut": 2, "cut_tokens": 512},
    outages=1,
    outage_s=31.0,
    hedged=3,
    errors={"server": 4, "timeout": 3, "source": 2, "render": 1},
    samples=dict.fromkeys(("server", "timeout", "source", "render"), "what happened"),
    exit_code=3,
)


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({}, id="everything at once"),
        pytest.param({"state": "interrupted", "left": 10}, id="interrupted"),
        pytest.param({"cost_usd": None, "unpriced": 100}, id="no known price"),
    ],
)
def test_a_summary_has_at_most_15_lines_and_the_verdict_first(changed: dict[str, Any]) -> None:
    found = lines(replace(EVERYTHING, **changed))
    assert len(found) <= 15
    assert found[0].startswith(f"j (simulated): {changed.get('state', 'finished')} in 10.0 s, 90 of 100 prompts done")


def test_an_unknown_price_is_said_to_be_unknown_and_never_0() -> None:
    found = lines(replace(EVERYTHING, cost_usd=None, unpriced=100, paid_twice_usd=None))
    assert "  cost      unknown" in found
    assert "$0" not in " ".join(found)


def test_a_run_with_nothing_to_do_says_so() -> None:
    idle: dict[str, Any] = {"sent": 0, "answered": 0, "retries": 0, "pace_wait_s": 0.0, "backoff_s": 0.0}
    assert "  nothing to send: every prompt has its row" in lines(replace(EVERYTHING, **idle))
    assert "  nothing to send: every prompt has its row" not in lines(replace(EVERYTHING, **idle, state="interrupted"))
