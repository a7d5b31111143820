"""A row is the columns of the contract, each measured or None: the formulas as tables."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbatch.catalog import Price
from cbatch.measure import cost_usd, ratio, record
from cbatch.schema import COLUMN_INDEX, COLUMNS, Completion, Failure, Prompt, Request, TimeInfo, Timeline, Usage

STARTED = datetime(2026, 11, 20, 12, 0, 0, 123457, tzinfo=UTC)
PROMPT = Prompt(id="q7", index=7, sample=1, model="gpt-oss-120b", fields={"a": 1}, raw=b'{"a":1}', origin="p.jsonl:8")
REQUEST = Request(
    model="gpt-oss-120b", body=b"{}", digest=b"\x01" * 32, prompt_tokens_estimate=300, reserve_tokens=1_300
)
ANSWER = Completion(
    text="It is sunny.",
    reasoning="Weather.",
    tool_calls=None,
    finish_reason="stop",
    usage=Usage(prompt_tokens=322, cached_tokens=256, completion_tokens=65, reasoning_tokens=58, total_tokens=387),
    time_info=TimeInfo(queue_s=0.003, prompt_s=0.011, completion_s=0.13, total_s=0.15),
    request_id="chatcmpl-1",
    served_model="gpt-oss-120b",
    system_fingerprint="fp_1",
    parsed={"a": 1},
    valid=True,
)
MARKS = Timeline(ready=10.0, first_sent=12.5, sent=20.0, done=20.25, backoff_s=1.5, attempts=3, started_at=STARTED)


def row(outcome: Completion | Failure = ANSWER, timeline: Timeline = MARKS, **given_as: Any) -> dict[str, Any]:
    """The row as name -> value."""
    arguments: dict[str, Any] = {
        "key": b"k",
        "prompt": PROMPT,
        "request": REQUEST,
        "cost": 0.25,
        "tool_calls": None,
        "parsed": '{"a":1}',
        "input_json": '{"a":1}',
        "carried": [],
        **given_as,
    }
    made = record(outcome=outcome, timeline=timeline, **arguments)
    return dict(zip((name for name, _, _ in COLUMNS), made.row, strict=True))


def test_every_column_holds_its_own_value_in_the_order_of_the_contract() -> None:
    assert row() == {
        "id": "q7",
        "index": 7,
        "sample": 1,
        "model": "gpt-oss-120b",
        "digest": "01" * 32,
        "status": "ok",
        "text": "It is sunny.",
        "reasoning": "Weather.",
        "tool_calls": None,
        "finish_reason": "stop",
        "parsed": '{"a":1}',
        "valid": True,
        "error_kind": None,
        "error_code": None,
        "error_message": None,
        "http_status": 200,
        "prompt_tokens": 322,
        "cached_tokens": 256,
        "completion_tokens": 65,
        "reasoning_tokens": 58,
        "total_tokens": 387,
        "reserved_tokens": 1_300,
        "cost_usd": 0.25,
        "server_queue_s": 0.003,
        "server_prompt_s": 0.011,
        "server_completion_s": 0.13,
        "server_total_s": 0.15,
        "started_at": 1795176000_123457,
        "wait_s": 2.5,
        "backoff_s": 1.5,
        "latency_s": 0.25,
        "ttft_s": None,
        "ttfa_s": None,
        "tail_s": None,
        "attempts": 3,
        "server_tokens_per_s": pytest.approx(500.0),
        "client_tokens_per_s": None,
        "e2e_tokens_per_s": 260.0,
        "request_id": "chatcmpl-1",
        "served_model": "gpt-oss-120b",
        "system_fingerprint": "fp_1",
        "input": '{"a":1}',
    }


TYPES = {"string": str, "int64": int, "int32": int, "float64": float, "bool": bool, "timestamp": int}


def test_every_value_is_of_the_type_of_its_column() -> None:
    values = row(ANSWER, tool_calls="[]")
    for name, kind, _ in COLUMNS:
        assert values[name] is None or type(values[name]) is TYPES[kind], name


def test_carried_columns_follow_the_measured_ones_in_their_order() -> None:
    made = record(
        key=b"k",
        prompt=PROMPT,
        request=REQUEST,
        outcome=ANSWER,
        timeline=MARKS,
        cost=None,
        tool_calls=None,
        parsed=None,
        input_json=None,
        carried=["x", None, 3],
    )
    assert made.row[len(COLUMNS) :] == ["x", None, 3]
    assert (made.key, made.sample, made.digest, made.ok, made.attempts) == (b"k", 1, b"\x01" * 32, True, 3)


MEASURED_FROM_AN_ANSWER = [
    "text",
    "reasoning",
    "finish_reason",
    "valid",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "total_tokens",
    "server_queue_s",
    "server_prompt_s",
    "server_completion_s",
    "server_total_s",
    "latency_s",
    "server_tokens_per_s",
    "e2e_tokens_per_s",
    "request_id",
    "served_model",
    "system_fingerprint",
]
REFUSED = Failure(kind="server", message="HTTP 500: m", code="c", http_status=500)
UNFIT = Failure(kind="invalid_output", message="not valid JSON", http_status=200, completion=ANSWER)


def test_a_failure_without_an_answer_has_nothing_measured_from_one() -> None:
    """Not even a latency, though an earlier answer to the same prompt left its mark."""
    values = row(REFUSED, parsed=None)
    assert {name: values[name] for name in MEASURED_FROM_AN_ANSWER} == dict.fromkeys(MEASURED_FROM_AN_ANSWER)
    said = [values[name] for name in ("status", "error_kind", "error_code", "error_message", "http_status")]
    assert said == ["error", "server", "c", "HTTP 500: m", 500]
    assert (values["wait_s"], values["backoff_s"], values["attempts"]) == (2.5, 1.5, 3)
    assert values["reserved_tokens"] == 1_300


def test_a_failure_with_a_paid_answer_keeps_everything_that_was_paid_for() -> None:
    values, fine = row(UNFIT), row()
    assert {name: values[name] for name in MEASURED_FROM_AN_ANSWER} == {n: fine[n] for n in MEASURED_FROM_AN_ANSWER}
    assert (values["status"], values["error_kind"], values["http_status"]) == ("error", "invalid_output", 200)


def test_a_row_that_was_never_sent_has_no_times_and_no_request() -> None:
    failure = Failure(kind="source", message="p.jsonl:8: no")
    values = row(failure, Timeline(ready=10.0), request=None, cost=None, parsed=None)
    told = {name for name, value in values.items() if value is not None}
    assert told == {"id", "index", "sample", "model", "status", "error_kind", "error_message", "attempts", "input"}
    assert values["attempts"] == 0


@pytest.mark.parametrize(("outcome", "ok"), [(ANSWER, True), (REFUSED, False), (UNFIT, False)])
def test_only_an_answer_that_fits_is_ok(outcome: Completion | Failure, ok: bool) -> None:
    assert row(outcome)["status"] == ("ok" if ok else "error")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param({"usage": Usage()}, (None, None), id="no usage, no rates"),
        pytest.param({"usage": Usage(completion_tokens=0)}, (0.0, 0.0), id="zero tokens are a rate of zero"),
        pytest.param({"time_info": TimeInfo()}, (None, 260.0), id="no server clock, no server rate"),
        pytest.param({"time_info": TimeInfo(completion_s=0.0)}, (None, 260.0), id="no time passed on the server"),
        pytest.param({"time_info": TimeInfo(completion_s=-0.1)}, (None, 260.0), id="a server clock that went back"),
    ],
)
def test_rates_are_tokens_by_their_own_clock(change: dict[str, Any], expected: tuple[float | None, ...]) -> None:
    values = row(replace(ANSWER, **change))
    assert (values["server_tokens_per_s"], values["e2e_tokens_per_s"]) == expected


@pytest.mark.parametrize(
    ("change", "name", "expected"),
    [
        pytest.param({"done": 20.0}, "latency_s", 0.0, id="an answer in no time has a latency of zero"),
        pytest.param({"done": 20.0}, "e2e_tokens_per_s", None, id="and no rate"),
        pytest.param({"done": None}, "latency_s", None, id="no last byte, no latency"),
        pytest.param({"first_sent": 10.0}, "wait_s", 0.0, id="no wait is zero"),
        pytest.param({"first_sent": None}, "wait_s", None, id="never sent is not measured"),
        pytest.param({"backoff_s": 0.0}, "backoff_s", 0.0, id="no backoff is zero"),
        pytest.param({"started_at": None}, "started_at", None, id="never started"),
        pytest.param(
            {"started_at": STARTED.astimezone(timezone(timedelta(hours=5)))},
            "started_at",
            1795176000_123457,
            id="the start is UTC whatever the zone",
        ),
    ],
)
def test_a_mark_that_is_missing_is_none_and_no_time_is_zero(
    change: dict[str, Any], name: str, expected: object
) -> None:
    assert row(timeline=replace(MARKS, **change))[name] == expected


@given(st.datetimes(datetime(2001, 1, 1), datetime(2100, 1, 1)))  # noqa: DTZ001 - made aware below
def test_the_start_is_kept_to_the_microsecond(moment: datetime) -> None:
    moment = moment.replace(tzinfo=UTC)
    stored = row(timeline=replace(MARKS, started_at=moment))["started_at"]
    assert datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=stored) == moment


@pytest.mark.parametrize(
    ("tokens", "seconds", "expected"),
    [
        pytest.param(10, 2.0, 5.0, id="tokens by seconds"),
        pytest.param(0, 2.0, 0.0, id="none in some time"),
        pytest.param(10, 0.0, None, id="some in no time"),
        pytest.param(10, -1.0, None, id="some in less than no time"),
        pytest.param(10, None, None, id="unknown time"),
        pytest.param(None, 2.0, None, id="unknown tokens"),
        pytest.param(None, None, None, id="nothing known"),
    ],
)
def test_ratio(tokens: int | None, seconds: float | None, expected: float | None) -> None:
    assert ratio(tokens, seconds) == expected


PRICE = Price(input_usd=0.35, output_usd=0.75)


@pytest.mark.parametrize(
    ("usage", "price", "expected"),
    [
        pytest.param(
            Usage(prompt_tokens=1_000_000, completion_tokens=2_000_000), PRICE, 1.85, id="USD per million, each side"
        ),
        pytest.param(
            Usage(prompt_tokens=1_000_000, cached_tokens=999_936, completion_tokens=0),
            PRICE,
            0.35,
            id="cached tokens cost the same",
        ),
        pytest.param(
            Usage(prompt_tokens=0, completion_tokens=1_000_000, reasoning_tokens=900_000),
            PRICE,
            0.75,
            id="reasoning is in the completion and not added",
        ),
        pytest.param(Usage(prompt_tokens=0, completion_tokens=0), PRICE, 0.0, id="nothing costs nothing"),
        pytest.param(Usage(prompt_tokens=5, completion_tokens=5), None, None, id="an unknown price is no price of 0"),
        pytest.param(Usage(prompt_tokens=5), PRICE, None, id="unknown completion tokens"),
        pytest.param(Usage(completion_tokens=5), PRICE, None, id="unknown prompt tokens"),
        pytest.param(Usage(total_tokens=10), PRICE, None, id="a total alone has no price"),
    ],
)
def test_cost(usage: Usage, price: Price | None, expected: float | None) -> None:
    assert cost_usd(replace(ANSWER, usage=usage), price) == (None if expected is None else pytest.approx(expected))


def test_the_index_of_a_column_is_its_place_in_the_row() -> None:
    assert [COLUMN_INDEX[name] for name, _, _ in COLUMNS] == list(range(len(COLUMNS)))


def test_the_reservation_is_that_of_the_last_attempt_where_it_was_learned() -> None:
    """`max_completion_tokens: auto` sends less than the request was rendered with."""
    assert row(ANSWER, replace(MARKS, reserved_tokens=350))["reserved_tokens"] == 350
