"""What a gateway did, for its last lines, for --json and for Prometheus."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from cbatch.gateway.counters import LATEST, MAX_KINDS, MAX_NAMES, OTHER, UNKNOWN, Counters

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
    "error": "upstream: cannot connect", "code": "upstream_error",
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
        "without_usage": 0,
        "failures": [
            {
                "status": 502,
                "code": "upstream_error",
                "message": "upstream: cannot connect",
                "requests": 1,
                "varies": False,
            }
        ],
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
        "  failed    502 upstream: cannot connect (1)",
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


REFUSED = FAILED | {"status": 404, "error": "model not found", "code": "model_not_found"}


def test_names_that_clients_make_up_take_no_place() -> None:
    """The name of a model is text of a request; so is a path that nobody serves. What is refused has no tally."""
    made_up = [REFUSED | {"model": f"m{n}", "route": f"/r{n}"} for n in range(3 * MAX_NAMES)]
    counters = counted(*made_up, REFUSED | {"model": ""}, {}, {})
    found = counters.summary()
    assert found["models"].keys() == {"gpt-oss-120b", UNKNOWN}
    assert found["models"]["gpt-oss-120b"]["requests"] == 2
    assert found["models"][UNKNOWN]["failed"] == 3 * MAX_NAMES + 1
    exchanges = {key for key in samples(counters) if key.startswith("cbatch_exchanges_total")}
    assert exchanges == {
        "cbatch_exchanges_total{model=gpt-oss-120b,outcome=ok,route=/responses,status=200}",
        f"cbatch_exchanges_total{{model={UNKNOWN},outcome=failed,route=/responses,status=404}}",
        f"cbatch_exchanges_total{{model={UNKNOWN},outcome=failed,route={OTHER},status=404}}",
    }
    model_lines = [line.strip() for line in counters.lines() if "model  " in line]
    assert model_lines == [
        "model     gpt-oss-120b: 2 requests, 2,000 in, 400 out",
        "model     (unknown): 301 requests, 301 failed",
    ], "the models that are served come first, however often others were asked for"


def test_what_fails_before_any_answer_adds_one_line_to_the_page() -> None:
    """No histograms of zeros, and no tokens."""
    before = len(counted({}).page().splitlines())
    assert len(counted({}, *[REFUSED | {"model": f"m{n}"} for n in range(300)]).page().splitlines()) == before + 1


def test_a_model_that_answered_keeps_its_failures() -> None:
    found = counted(FAILED, {}, FAILED).summary()["models"]
    assert (found["gpt-oss-120b"]["failed"], found[UNKNOWN]["failed"]) == (1, 1)
    cut = FAILED | {"model": "cut", "prompt_tokens": 5}
    assert counted(cut).summary()["models"].keys() == {"cut"}, "what has usage was answered, if not to the end"


@pytest.mark.parametrize("model", ["", UNKNOWN])
def test_a_model_without_a_name_of_its_own_is_counted_as_unknown(model: str) -> None:
    found = counted({"model": model}, REFUSED).summary()
    assert found["models"].keys() == {UNKNOWN}
    assert found["models"][UNKNOWN]["requests"] == found["requests"] == 2


def test_more_models_than_there_is_room_for_are_counted_together() -> None:
    found = counted(*[{"model": f"m{n}"} for n in range(MAX_NAMES + 3)]).summary()
    assert len(found["models"]) == MAX_NAMES + 1
    assert found["models"][OTHER]["ok"] == 3
    assert found["ok"] == MAX_NAMES + 3


def test_the_last_lines_say_why_requests_failed() -> None:
    """The three most frequent ways, each with how often; what varies under one code is an example."""
    wrong_key = FAILED | {"status": 401, "error": "Wrong API Key", "code": "wrong_api_key"}
    other_models = [REFUSED | {"error": f"model m{n} not found"} for n in range(4)]
    no_code = FAILED | {"status": 500, "error": "out of\n  order\x1b[2J", "code": None}
    lines = counted(*[wrong_key] * 31, *other_models, *[no_code] * 2, FAILED, {}).lines()
    assert lines[1:5] == [
        "  failed    401 Wrong API Key (31)",
        "  failed    404 model_not_found, such as: model m0 not found (4)",
        "  failed    500 out of order\\x1b[2J (2)",
        "  tokens    1,000 in (600 cached), 200 out; 2,000 tokens/s by the server's clock",
    ]


def test_messages_that_never_come_twice_do_not_hide_the_one_that_does() -> None:
    """Nor fill the memory."""
    once = [FAILED | {"error": f"request {n} failed", "code": None} for n in range(5 * MAX_KINDS)]
    for place in range(0, len(once), MAX_KINDS // 2):
        once.insert(place, FAILED | {"error": "the same", "code": None})
    counters = counted(*once)
    assert len(counters._failures._kinds) == MAX_KINDS
    first = counters.summary()["failures"][0]
    assert (first["message"], first["requests"]) == ("the same", 10)


def test_a_long_message_is_cut() -> None:
    counters = counted(FAILED | {"error": "x" * 10**6, "code": None})
    assert len(counters.summary()["failures"][0]["message"]) <= 300
    assert max(map(len, counters.lines())) <= 120


def test_answers_without_usage_are_told() -> None:
    """Then the tokens and the cost are not all."""
    silent = {"prompt_tokens": None, "cached_tokens": None, "completion_tokens": None, "cost_usd": None}
    counters = counted({}, silent, silent, FAILED)
    assert "  unknown   2 answers without usage: their tokens and cost are missing here" in counters.lines()
    assert counters.summary()["without_usage"] == 2
    assert samples(counters)["cbatch_without_usage_total{model=gpt-oss-120b}"] == 2
    assert not [line for line in counted({}, FAILED).lines() if "usage" in line]


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
