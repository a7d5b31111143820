"""A row is the columns of the contract, each measured or None: the formulas as tables."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbatch.catalog import Price
from cbatch.measure import client_speed, cost_usd, ratio, record
from cbatch.schema import (
    COLUMN_INDEX,
    COLUMNS,
    Completion,
    Failure,
    Prompt,
    Request,
    StreamMarks,
    TimeInfo,
    Timeline,
    Usage,
)

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
STREAM = StreamMarks(
    first=20.0625, first_answer=20.125, last=20.1875, end=20.25, n_chunks=10, n_reads=5, first_share=0.2, max_gap_s=0.05
)
STREAMED = replace(ANSWER, stream=STREAM)
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
        "retry_after_s": None,
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
        "server_other_s": pytest.approx(0.006),
        "started_at": 1795176000_123457,
        "wait_s": 2.5,
        "backoff_s": 1.5,
        "attempts_s": 7.5,
        "latency_s": 0.25,
        "ttft_s": None,
        "ttfa_s": None,
        "tail_s": None,
        "response_s": 10.25,
        "sched_lag_s": None,
        "net_s": None,
        "attempts": 3,
        "server_tokens_per_s": pytest.approx(500.0),
        "server_prefill_tokens_per_s": pytest.approx(6_000.0),
        "client_tokens_per_s": None,
        "e2e_tokens_per_s": 260.0,
        "n_chunks": None,
        "n_reads": None,
        "n1_est": None,
        "max_gap_s": None,
        "loop_lag_ms": None,
        "tainted": None,
        "load_block": None,
        "load_level": None,
        "load_phase": None,
        "request_id": "chatcmpl-1",
        "served_model": "gpt-oss-120b",
        "system_fingerprint": "fp_1",
        "input": '{"a":1}',
    }


TYPES = {"string": str, "int64": int, "int32": int, "float64": float, "bool": bool, "timestamp": int}


def test_every_value_is_of_the_type_of_its_column() -> None:
    timeline = replace(MARKS, loop_lag_s=0.001, scheduled=12.0, block=1, level=8.0, phase="measure")
    told: set[str] = set()
    for outcome in (STREAMED, replace(REFUSED, retry_after_s=7.0)):
        values = row(outcome, timeline, tool_calls="[]")
        for name, kind, _ in COLUMNS:
            assert values[name] is None or type(values[name]) is TYPES[kind], name
        told |= {name for name, value in values.items() if value is not None}
    assert told == {name for name, _, _ in COLUMNS}


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
    "server_other_s",
    "latency_s",
    "response_s",
    "server_tokens_per_s",
    "server_prefill_tokens_per_s",
    "e2e_tokens_per_s",
    "request_id",
    "served_model",
    "system_fingerprint",
]
MEASURED_FROM_A_STREAM = [
    "ttft_s",
    "ttfa_s",
    "tail_s",
    "net_s",
    "client_tokens_per_s",
    "n_chunks",
    "n_reads",
    "n1_est",
    "max_gap_s",
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


# -- streams ----------------------------------------------------------------------------------------


def streamed(timeline: Timeline = MARKS, **change: Any) -> dict[str, Any]:
    """The row of an answer with these marks instead of STREAM's."""
    return row(replace(ANSWER, stream=replace(STREAM, **change)), timeline)


def test_a_stream_is_measured_until_its_last_token_and_not_until_its_end() -> None:
    """20 was the send, 20.0625 the first token, 20.125 the first of the answer, 20.1875 the last, 20.25 [DONE]."""
    values = row(STREAMED)
    assert {name: values[name] for name in ("ttft_s", "ttfa_s", "latency_s", "tail_s")} == {
        "ttft_s": 0.0625,
        "ttfa_s": 0.125,
        "latency_s": 0.1875,
        "tail_s": 0.0625,
    }
    assert values["response_s"] == 10.1875
    assert values["e2e_tokens_per_s"] == pytest.approx(65 / 0.1875)
    assert (values["n_chunks"], values["n_reads"], values["max_gap_s"]) == (10, 5, 0.05)
    assert values["n1_est"] == pytest.approx(13.0)
    assert values["net_s"] == pytest.approx(0.0625 - 0.003 - 0.011)


def test_a_late_done_makes_a_tail_and_nothing_else_longer() -> None:
    """40 ms of it cut the speed that one tool reports from 2,000 to 899."""
    fine, late = row(STREAMED), streamed(end=30.0)
    assert late["tail_s"] == pytest.approx(9.8125)
    assert {name for name in fine if fine[name] != late[name]} == {"tail_s"}


def test_without_a_stream_there_is_no_figure_of_one() -> None:
    values = row()
    assert {name: values[name] for name in MEASURED_FROM_A_STREAM} == dict.fromkeys(MEASURED_FROM_A_STREAM)
    values = row(STREAMED)
    assert None not in {name: values[name] for name in MEASURED_FROM_A_STREAM}.values()


def test_an_answer_that_was_all_reasoning_has_a_first_token_and_no_first_one_of_the_answer() -> None:
    values = streamed(first_answer=None)
    assert (values["ttft_s"], values["ttfa_s"]) == (0.0625, None)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(
            {"usage": Usage()}, {"n1_est", "client_tokens_per_s", "server_prefill_tokens_per_s"}, id="no usage"
        ),
        pytest.param(
            {"time_info": TimeInfo()}, {"net_s", "server_prefill_tokens_per_s", "server_other_s"}, id="no clock"
        ),
        pytest.param({"time_info": TimeInfo(queue_s=0.1)}, {"net_s", "server_other_s"}, id="half a clock"),
        pytest.param(
            {"time_info": replace(ANSWER.time_info, total_s=None)}, {"server_other_s"}, id="a clock without its total"
        ),
    ],
)
def test_what_was_not_told_makes_no_figure(change: dict[str, Any], expected: set[str]) -> None:
    """Null, and never what is left when the unknown is taken for 0."""
    values = row(replace(STREAMED, **change))
    assert {values[name] for name in expected} == {None}
    assert (values["ttft_s"], values["latency_s"]) == (0.0625, 0.1875)


def test_server_other_is_what_the_server_does_not_account_for() -> None:
    """The documentation's own sample: the parts add to 6.8 ms, the total is 22.2 ms."""
    clock = TimeInfo(queue_s=0.000073, prompt_s=0.00107, completion_s=0.00566, total_s=0.02222)
    values = row(replace(ANSWER, time_info=clock, usage=Usage(completion_tokens=10)))
    assert values["server_other_s"] == pytest.approx(0.015417)
    assert values["server_tokens_per_s"] == pytest.approx(1_767, abs=1)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        pytest.param(Usage(prompt_tokens=322, cached_tokens=256), 6_000.0, id="without those from the cache"),
        pytest.param(Usage(prompt_tokens=322, cached_tokens=0), 29_272.7, id="none from the cache"),
        pytest.param(Usage(prompt_tokens=322), 29_272.7, id="a server without a cache"),
        pytest.param(Usage(prompt_tokens=322, cached_tokens=322), 0.0, id="all from the cache"),
        pytest.param(Usage(cached_tokens=5), None, id="an unknown prompt"),
    ],
)
def test_the_speed_of_reading_a_prompt(usage: Usage, expected: float | None) -> None:
    found = row(replace(ANSWER, usage=usage))["server_prefill_tokens_per_s"]
    assert found == (None if expected is None else pytest.approx(expected, rel=1e-4))


# -- the client's speed ------------------------------------------------------------------------------


def of_reads(*tokens: int, every_s: float = 0.002, first_at: float = 20.05) -> StreamMarks:
    """The marks of a stream whose reads hold so many tokens of four characters, one read every so often."""
    last = first_at + every_s * (len(tokens) - 1)
    return StreamMarks(
        first=first_at,
        first_answer=first_at,
        last=last,
        end=last,
        n_chunks=len(tokens),
        n_reads=len(tokens),
        first_share=tokens[0] / sum(tokens),
        max_gap_s=every_s if len(tokens) > 1 else None,
    )


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        pytest.param([4] * 16, 2_000.0, id="four tokens a read"),
        pytest.param([32, *[4] * 8], 2_000.0, id="32 of 64 in the first read"),
        pytest.param([1, *[4] * 15], 2_000.0, id="one in the first read"),
        pytest.param([4] * 3, 2_000.0, id="three reads"),
        pytest.param([4] * 2, None, id="two reads"),
        pytest.param([64], None, id="the whole answer in one read"),
    ],
)
def test_the_speed_by_the_clients_clock_is_the_true_one_or_none(tokens: list[int], expected: float | None) -> None:
    """4 tokens every 2 ms are 2,000 a second. Others read 2,107, 3,966 and 2,000,000 of the first, second and last."""
    values = row(replace(ANSWER, stream=of_reads(*tokens), usage=Usage(completion_tokens=sum(tokens))))
    assert values["client_tokens_per_s"] == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("window_s", "lag_s", "is_told"),
    [
        pytest.param(0.0021, None, True, id="ten times the jitter of an idle loop"),
        pytest.param(0.0019, None, False, id="less"),
        pytest.param(0.0021, 0.0, True, id="a loop that was never late"),
        pytest.param(0.0021, 0.0001, True, id="a lag below the jitter changes nothing"),
        pytest.param(0.0099, 0.001, False, id="under ten times the lag of the loop"),
        pytest.param(0.0101, 0.001, True, id="over ten times the lag"),
        pytest.param(0.0, None, False, id="no time at all"),
    ],
)
def test_a_window_must_be_ten_times_as_long_as_its_edges_are_unsure(
    window_s: float, lag_s: float | None, is_told: bool
) -> None:
    marks = of_reads(4, 4, 4, 4, 4, every_s=window_s / 4)
    assert (client_speed(marks, 20, lag_s) is not None) is is_told
    values = row(replace(ANSWER, stream=marks), replace(MARKS, loop_lag_s=lag_s))
    assert (values["client_tokens_per_s"] is not None) is is_told


def test_no_usage_is_no_speed_and_no_token_is_a_speed_of_zero() -> None:
    assert client_speed(STREAM, None, None) is None
    assert client_speed(STREAM, 0, None) == 0.0


@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=50),
    st.floats(1e-6, 0.5),
    st.none() | st.floats(0, 0.1),
)
def test_the_speed_is_never_infinite_negative_or_of_an_empty_window(
    tokens: list[int], every_s: float, lag_s: float | None
) -> None:
    """And where it is told, no less time was seen than ten times what it may be wrong by."""
    marks = of_reads(*tokens, every_s=every_s)
    speed = client_speed(marks, sum(tokens), lag_s)
    if speed is None:
        return
    assert len(tokens) >= 3
    assert 0 < speed <= sum(tokens) / (10 * max(lag_s or 0, 0.0002))


# -- attempts, schedules and the loop ------------------------------------------------------------------


def test_failed_attempts_are_no_part_of_what_the_last_one_took() -> None:
    """12.5 was the first send, 20 the last one: the time between is attempts_s, with 1.5 s of backoff in it."""
    values = row(STREAMED)
    assert (values["attempts_s"], values["backoff_s"], values["ttft_s"]) == (7.5, 1.5, 0.0625)
    once = row(STREAMED, replace(MARKS, first_sent=20.0, attempts=1, backoff_s=0.0))
    assert (once["attempts_s"], once["backoff_s"], once["latency_s"]) == (0.0, 0.0, 0.1875)


@pytest.mark.parametrize(
    ("scheduled", "response_s", "sched_lag_s"),
    [
        pytest.param(None, 10.1875, None, id="without a schedule: since it was ready"),
        pytest.param(12.0, 8.1875, 0.5, id="with one: since it was due"),
        pytest.param(12.5, 7.6875, 0.0, id="sent when it was due"),
        pytest.param(0.0, 20.1875, 12.5, id="due at 0"),
    ],
)
def test_a_schedule_is_where_a_response_is_counted_from(
    scheduled: float | None, response_s: float, sched_lag_s: float | None
) -> None:
    values = row(STREAMED, replace(MARKS, scheduled=scheduled))
    assert (values["response_s"], values["sched_lag_s"]) == (response_s, sched_lag_s)
    assert values["latency_s"] == 0.1875


@pytest.mark.parametrize(
    ("lag_s", "first", "tainted"),
    [
        pytest.param(None, 20.1, None, id="not watched is not known"),
        pytest.param(0.0, 20.1, False, id="never late"),
        pytest.param(0.0009, 20.001, False, id="under a millisecond never is"),
        pytest.param(0.0049, 20.1, False, id="under a twentieth of ttft_s"),
        pytest.param(0.0051, 20.1, True, id="over it"),
        pytest.param(0.0011, 20.001, True, id="over a millisecond, of a ttft_s of one"),
    ],
)
def test_a_row_is_tainted_where_the_loop_was_late_for_its_first_token(
    lag_s: float | None, first: float, tainted: bool | None
) -> None:
    values = streamed(replace(MARKS, loop_lag_s=lag_s), first=first)
    assert values["tainted"] is tainted
    assert values["loop_lag_ms"] == (None if lag_s is None else pytest.approx(lag_s * 1e3))


def test_without_a_stream_the_latency_is_what_the_lag_is_held_against() -> None:
    assert row(ANSWER, replace(MARKS, loop_lag_s=0.012))["tainted"] is False
    assert row(ANSWER, replace(MARKS, loop_lag_s=0.013))["tainted"] is True
    assert row(REFUSED, replace(MARKS, loop_lag_s=0.002))["tainted"] is True


def test_a_load_run_says_where_a_row_belongs() -> None:
    values = row(ANSWER, replace(MARKS, block=3, level=32.0, phase="warmup"))
    assert (values["load_block"], values["load_level"], values["load_phase"]) == (3, 32.0, "warmup")


# -- failures ----------------------------------------------------------------------------------------


def test_a_failure_keeps_how_long_it_was_asked_to_wait_and_how_long_it_tried() -> None:
    values = row(replace(REFUSED, retry_after_s=7.0), replace(MARKS, scheduled=12.0))
    assert (values["retry_after_s"], values["attempts_s"], values["sched_lag_s"]) == (7.0, 7.5, 0.5)
    assert {values[name] for name in (*MEASURED_FROM_A_STREAM, "latency_s", "response_s")} == {None}


def test_a_stream_that_was_paid_for_and_does_not_fit_keeps_its_figures() -> None:
    values, fine = row(replace(UNFIT, completion=STREAMED)), row(STREAMED)
    for name in (*MEASURED_FROM_AN_ANSWER, *MEASURED_FROM_A_STREAM):
        assert values[name] == fine[name]


def test_an_answer_of_an_earlier_attempt_has_no_times_of_the_last_one() -> None:
    """Re-asked, then refused for good: the text was paid for and is kept, its marks are of another send."""
    failure = replace(REFUSED, completion=STREAMED)
    values = row(failure, replace(MARKS, sent=25.0))
    assert (values["text"], values["completion_tokens"], values["server_completion_s"]) == ("It is sunny.", 65, 0.13)
    assert {values[name] for name in (*MEASURED_FROM_A_STREAM, "latency_s", "response_s", "e2e_tokens_per_s")} == {None}
    assert values["attempts_s"] == 12.5
