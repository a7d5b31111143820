"""What a gateway did, for its last lines, for --json and for Prometheus."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from cbatch.gateway.counters import LATEST, MAX_NAMES, NAMELESS, OTHER, Counters

ANSWER: dict[str, Any] = {
    "route": "/responses",
    "model": "gpt-oss-120b",
    "status": 200,
    "outcome": "ok",
    "prompt_tokens": 1_000,
    "cached_tokens": 600,
    "completion_tokens": 200,
    "reasoning_tokens": 50,
    "cost_usd": 0.01,
    "ttft_s": 0.12,
    "latency_s": 0.4,
    "wait_s": 0.0,
    "server_tokens_per_s": 2_000.0,
    "attempts": 1,
}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def counted(*exchanges: dict[str, Any]) -> Counters:
    clock = Clock()
    counters = Counters(clock)
    for exchange in exchanges:
        counters.observe(**(ANSWER | exchange))
    clock.now += 61.0
    return counters


def samples(counters: Counters) -> dict[str, float]:
    """Every sample as `name{label=value,…}` -> value, read as Prometheus would read the page."""
    found = {}
    for family in text_string_to_metric_families(counters.page().decode()):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
    return found


FAILED = {
    "status": 502, "outcome": "failed", "prompt_tokens": None, "cached_tokens": None, "completion_tokens": None,
    "reasoning_tokens": None, "cost_usd": None, "latency_s": None, "ttft_s": None, "server_tokens_per_s": None,
}  # fmt: skip


def test_the_summary_adds_up_what_was_observed() -> None:
    found = counted(
        {},
        {"server_tokens_per_s": 3_000.0, "attempts": 3, "rate_limited": 2, "wait_s": 1.5},
        {"server_tokens_per_s": 1_000.0, "model": "gemma-4-31b", "cost_usd": None},
        FAILED,
        FAILED | {"status": 499, "outcome": "cancelled", "prompt_tokens": 10},
    ).summary()
    models = found.pop("models")
    assert found == {
        "elapsed_s": 61.0,
        "requests": 5,
        "ok": 3,
        "failed": 1,
        "cancelled": 1,
        "prompt_tokens": 3_010,
        "cached_tokens": 1_800,
        "completion_tokens": 600,
        "reasoning_tokens": 150,
        "tokens_per_s": 2_000.0,
        "cost_usd": pytest.approx(0.02),
        "unpriced": 2,
        "retries": 2,
        "rate_limited": 2,
        "wait_s": 1.5,
    }
    assert models["gemma-4-31b"]["requests"] == 1
    assert models["gemma-4-31b"]["cost_usd"] is None, "an unknown price is no price of 0"
    assert models["gpt-oss-120b"]["tokens_per_s"] == 2_500.0


def test_nothing_happened() -> None:
    counters = counted()
    assert counters.lines() == ["gateway: 0 requests in 61.0 s"]
    found = counters.summary()
    assert (found["requests"], found["tokens_per_s"], found["cost_usd"], found["models"]) == (0, None, None, {})
    assert samples(counters)["cbatch_uptime_seconds"] == 61.0


def test_the_last_lines_say_what_a_person_asks_for() -> None:
    lines = counted(
        *[{"attempts": 2, "rate_limited": 1, "wait_s": 0.5}] * 3,
        {"cost_usd": None, "model": "lab-model"},
        FAILED,
        {"outcome": "cancelled", "status": 499},
    ).lines()
    assert lines == [
        "gateway: 6 requests in 61.0 s, 1 failed, 1 cancelled",
        "  retried   3 times, 3 answered with 429",
        "  tokens    5,000 in (3,000 cached), 1,000 out; 2,000 tokens/s by the server's clock",
        "  cost      $0.04 and 1 answer of unknown price",
        "  waited    250 ms a request for the account's limits",
        "  model     gpt-oss-120b: 5 requests, 1 failed, 4,000 in, 800 out",
        "  model     lab-model: 1 request, 1,000 in, 200 out",
    ]


def test_one_answered_request_takes_three_lines() -> None:
    assert counted({"cached_tokens": None}).lines() == [
        "gateway: 1 request in 61.0 s",
        "  tokens    1,000 in, 200 out; 2,000 tokens/s by the server's clock",
        "  cost      $0.01",
    ]


def test_the_name_of_a_model_does_not_move_the_cursor() -> None:
    assert not any("\x1b" in line for line in counted({}, {"model": "\x1b[2Jx"}).lines())


def test_prometheus_reads_the_page() -> None:
    counters = counted(
        {}, {"attempts": 2, "rate_limited": 1, "wait_s": 0.5}, FAILED | {"latency_s": 9.0, "ttft_s": 8.0}
    )
    counters.in_flight, counters.waiting = lambda: 7, lambda: 2
    found = samples(counters)
    ok = "cbatch_exchanges_total{model=gpt-oss-120b,outcome=ok,route=/responses,status=200}"
    assert found[ok] == 2
    assert found["cbatch_exchanges_total{model=gpt-oss-120b,outcome=failed,route=/responses,status=502}"] == 1
    assert found["cbatch_tokens_total{kind=prompt,model=gpt-oss-120b}"] == 2_000
    assert found["cbatch_tokens_total{kind=completion,model=gpt-oss-120b}"] == 400
    assert found["cbatch_cached_tokens_total{model=gpt-oss-120b}"] == 1_200
    assert found["cbatch_cost_usd_total{model=gpt-oss-120b}"] == pytest.approx(0.02)
    assert found["cbatch_retries_total"] == found["cbatch_rate_limited_total"] == 1
    assert found["cbatch_waiting_seconds_total"] == 0.5
    assert (found["cbatch_in_flight"], found["cbatch_waiting"]) == (7, 2)
    assert found["cbatch_ttft_seconds_count{model=gpt-oss-120b}"] == 2, "a failure has no time of an answer"
    assert found["cbatch_ttft_seconds_bucket{le=0.1,model=gpt-oss-120b}"] == 0
    assert found["cbatch_ttft_seconds_bucket{le=0.15,model=gpt-oss-120b}"] == 2
    assert found["cbatch_latency_seconds_sum{model=gpt-oss-120b}"] == pytest.approx(0.8)


def test_names_that_clients_make_up_do_not_fill_the_memory() -> None:
    """The name of a model is text of a request; so is a path that nobody serves."""
    made_up = [FAILED | {"model": f"m{n}", "route": f"/r{n}", "status": 404} for n in range(3 * MAX_NAMES)]
    counters = counted({}, *made_up, {}, {"model": ""})
    found = counters.summary()
    assert len(found["models"]) == MAX_NAMES + 1
    assert found["models"][OTHER]["requests"] == 2 * MAX_NAMES + 2
    assert found["models"]["gpt-oss-120b"]["requests"] == 2
    assert found["requests"] == 3 * MAX_NAMES + 3
    routes = {key.split("route=")[1] for key in samples(counters) if "route=" in key}
    assert len(routes) == MAX_NAMES + 1
    assert counted({"model": ""}).summary()["models"].keys() == {NAMELESS}


def test_the_median_is_of_the_latest_answers() -> None:
    counters = counted(*[{"server_tokens_per_s": 1.0}] * 10, *[{"server_tokens_per_s": 2_000.0}] * LATEST)
    assert counters.summary()["tokens_per_s"] == 2_000.0
    assert len(counters._models["gpt-oss-120b"].speeds) == LATEST


COUNT = st.none() | st.integers(0, 10**6)


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "model": st.sampled_from(["a", "b"]),
                "outcome": st.sampled_from(["ok", "failed", "cancelled"]),
                "prompt_tokens": COUNT,
                "completion_tokens": COUNT,
                "cost_usd": st.none() | st.floats(0, 10),
                "attempts": st.none() | st.integers(0, 5),
            }
        ),
        max_size=20,
    )
)
def test_the_models_together_are_the_whole_and_the_page_says_the_same(exchanges: list[dict[str, Any]]) -> None:
    counters = counted(*exchanges)
    found, page = counters.summary(), samples(counters)
    assert found["requests"] == len(exchanges) == found["ok"] + found["failed"] + found["cancelled"]
    for name in ("requests", "ok", "prompt_tokens", "completion_tokens", "unpriced"):
        assert found[name] == sum(model[name] for model in found["models"].values())
    assert sum(v for k, v in page.items() if k.startswith("cbatch_exchanges_total")) == len(exchanges)
    assert sum(v for k, v in page.items() if k.startswith("cbatch_tokens_total{kind=prompt")) == found["prompt_tokens"]
    assert (found["cost_usd"] is None) == all(exchange["cost_usd"] is None for exchange in exchanges)
