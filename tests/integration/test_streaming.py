"""`params.stream: true` by the real command line: the same rows, measured by their tokens, whatever goes wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from cbatch.rundir import RunDir
from tests.integration.conftest import JobFolder, Sim, questions
from tests.integration.test_faults import ROWS, SCHEMA, SOME, costs_nothing, rows_of, told_then_cured

Sims = Callable[..., Sim]
ASKED = (
    "id",
    "index",
    "digest",
    "status",
    "text",
    "reasoning",
    "finish_reason",
    "parsed",
    "valid",
    "prompt_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "total_tokens",
    "cost_usd",
    "served_model",
    "system_fingerprint",
    "input",
)  # what does not depend on how an answer travels
OF_A_STREAM = ("ttft_s", "ttfa_s", "tail_s", "net_s", "n_chunks", "n_reads", "n1_est")


@pytest.fixture
def streaming(job: JobFolder) -> JobFolder:
    job.settings["params"] = {"stream": True}
    return job


def by_id(job: JobFolder) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in job.results()}


# -- the same answers -------------------------------------------------------------------------------

TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}},
    },
}


@pytest.mark.parametrize(
    ("model", "params"),
    [
        pytest.param("gpt-oss-120b", {}, id="reasoning and text"),
        pytest.param("gpt-oss-120b", {"max_completion_tokens": 40}, id="cut by a limit"),
        pytest.param("gpt-oss-120b", {"max_completion_tokens": "auto"}, id="right-sized"),
        pytest.param("gpt-oss-120b", {"response_format": SCHEMA}, id="JSON by a schema"),
        pytest.param("gpt-oss-120b", {"tools": [TOOL], "tool_choice": "required"}, id="tool calls"),
        pytest.param("zai-glm-4.7", {"tools": [TOOL], "tool_choice": "required"}, id="tool calls of another model"),
        pytest.param("gpt-oss-120b", {"reasoning_effort": "high", "reasoning_format": "hidden"}, id="hidden reasoning"),
        pytest.param("zai-glm-4.7", {"reasoning_format": "raw"}, id="reasoning in the text"),
    ],
)
def test_a_stream_is_the_same_answer(job: JobFolder, model: str, params: dict[str, Any]) -> None:
    """Text, reasoning, tool calls, tokens and cost, digest included: only what was measured differs."""
    streamed, whole = job.run, RunDir(job.path / "whole")
    job.settings |= {"model": model, "params": params, "output": str(whole.path)}
    result = job.execute()
    assert result.code == 0, result.err
    job.sim.reset()  # or the prompts would be in its cache
    job.settings |= {"params": {**params, "stream": True}, "output": str(streamed.path)}
    result = job.execute()
    assert result.code == 0, result.err
    rows = by_id(job)
    job.run = whole
    for id_, row in by_id(job).items():
        for name in ASKED:
            assert rows[id_][name] == row[name], name
        calls, expected = rows[id_]["tool_calls"], row["tool_calls"]
        assert (json.loads(calls) if calls else None) == _without_own_ids(calls, expected)
        assert {row[name] for name in OF_A_STREAM} == {None}
        assert rows[id_]["ttft_s"] is not None


def _without_own_ids(found: str | None, expected: str | None) -> Any:
    """`expected` with the ids of `found`: the simulator draws them anew with every request."""
    if expected is None or found is None:
        return None
    return [{**call, "id": own["id"]} for call, own in zip(json.loads(expected), json.loads(found), strict=True)]


def test_what_was_answered_whole_is_not_asked_again_as_a_stream_nor_the_other_way_round(job: JobFolder) -> None:
    """How an answer travels is no part of the question: half of each, and neither is sent twice."""
    assert job.execute("--limit", "15").code == 0
    job.settings["params"] = {"stream": True, "stream_options": {"include_usage": True}}
    assert job.execute("--limit", "30").code == 0
    assert job.sim.requests == 30
    job.settings["params"] = {"stream": False}
    assert job.execute().code == 0
    job.settings["params"] = {"stream": True}
    assert job.execute().code == 0
    assert job.sim.requests == ROWS
    answered, failed = rows_of(job)
    assert not failed
    assert [row["ttft_s"] is not None for row in sorted(answered, key=lambda row: row["index"])] == [
        15 <= index < 30 for index in range(ROWS)
    ]


def test_rows_with_bodies_may_stream_one_by_one(job: JobFolder) -> None:
    """`prompt.body`: files written for the Batch API, where some ask for a stream."""
    rows = questions(6)
    job.rows(
        [
            {"b": {"messages": [{"role": "user", "content": row["question"]}], **({"stream": True} if n % 2 else {})}}
            for n, row in enumerate(rows)
        ]
    )
    job.settings["prompt"] = {"body": "b"}
    result = job.execute()
    assert result.code == 0, result.err
    rows_by_index = sorted(job.results(), key=lambda row: row["index"])
    assert [row["ttft_s"] is not None for row in rows_by_index] == [False, True] * 3


# -- what is measured ---------------------------------------------------------------------------------


def test_every_figure_of_a_stream_is_measured_and_they_agree_with_each_other(streaming: JobFolder, sims: Sims) -> None:
    """At twice the real speed: a few reads per answer, so that the client's own speed has a window, too."""
    job = streaming
    job.sim = sims("--speed", "2")
    job.rows(questions(12))
    job.settings["limits"] = {"concurrency": 4}
    result = job.execute()
    assert result.code == 0, result.err
    rows = job.results()
    assert len(rows) == 12
    for row in rows:
        missing = {name for name in OF_A_STREAM if row[name] is None}
        assert not missing
        assert 0 < row["ttft_s"] <= row["ttfa_s"] <= row["latency_s"]
        assert row["tail_s"] >= 0
        assert row["response_s"] >= row["latency_s"] + row["attempts_s"]
        assert row["server_queue_s"] + row["server_prompt_s"] <= row["ttft_s"]
        assert row["net_s"] == pytest.approx(row["ttft_s"] - row["server_queue_s"] - row["server_prompt_s"])
        assert 1 <= row["n_reads"] <= row["n_chunks"]
        assert 0 < row["n1_est"] <= row["completion_tokens"]
        assert (row["max_gap_s"] is None) == (row["n_reads"] == 1)
        assert row["loop_lag_ms"] is not None
        assert row["tainted"] in (True, False)
    assert any(row["client_tokens_per_s"] for row in rows)
    assert any(row["ttft_s"] < row["ttfa_s"] for row in rows)  # reasoning comes first


def test_an_answer_that_comes_in_one_read_has_a_first_token_and_no_speed(streaming: JobFolder, sims: Sims) -> None:
    _, rows = costs_nothing(streaming, sims)
    for row in rows:
        assert row["ttft_s"] == row["latency_s"] > 0
        assert (row["n_reads"], row["client_tokens_per_s"], row["max_gap_s"]) == (1, None, None)


# -- faults -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "columns", "said"),
    [
        ("malformed_json", ("truncated", "malformed_json", 200), "a chunk of the stream is not JSON"),
        ("drop_before", ("connection", None, None), "the server closed the connection without an answer"),
        ("drop_mid", ("truncated", "truncated", 200), "the answer stopped before its end"),
        ("empty_body_200", ("truncated", "empty_body", 200), "status 200 with an empty body"),
        ("html_200", ("server", "not_json", 200), "status 200 with something else than JSON: <html>"),
        ("timeout_408", ("timeout", "request_timeout", 408), "HTTP 408: Request timed out."),
        ("server_error", ("server", "internal_server_error", 500), "HTTP 500: Encountered a server error"),
        ("unavailable", ("server", "service_unavailable", 503), "HTTP 503: Service is temporarily unavailable."),
        ("bad_gateway_html", ("server", None, 502), "HTTP 502: <html> <head><title>502 Bad"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_a_stream_that_breaks_is_a_row_that_says_so_and_is_cured_by_asking_again(
    streaming: JobFolder, sims: Sims, fault: str, columns: tuple[str, str | None, int | None], said: str
) -> None:
    told_then_cured(streaming, sims, fault, columns, said)
    assert {row["ttft_s"] is None for row in streaming.results()} == {False}


@pytest.mark.parametrize("fault", ["error_in_stream", "missing_done", "drop_mid", "malformed_json"])
def test_a_stream_that_breaks_while_it_is_slow(streaming: JobFolder, sims: Sims, fault: str) -> None:
    """Here the first half has long been read when it breaks: it is no answer for that."""
    job = streaming
    job.sim = sims("--speed", "20", "--fault", f"{fault}=0.5")
    job.rows(questions(20))
    job.settings["retry"] = {"attempts": 1}
    assert job.execute().code == 3
    answered, failed = rows_of(job, 20)
    assert len(failed) == job.sim.stats()["faults"][fault] > 0
    for row in failed:
        assert {row[name] for name in (*OF_A_STREAM, "latency_s", "completion_tokens", "text")} == {None}
    job.settings["retry"] = {"attempts": 30, "max_wait_s": 0.01}
    assert job.execute("--retry-failed").code == 0
    assert len(rows_of(job, 20)[0]) == 20
    assert len(answered) + len(failed) == 20


def test_a_stream_that_stalls(streaming: JobFolder, sims: Sims) -> None:
    """No request lasts longer than timeouts.total_s, though tokens of its answer have come."""
    streaming.settings["timeouts"] = {"total_s": 0.3}
    told_then_cured(streaming, sims, "stall", ("timeout", None, None), "no whole answer within 0.3 s")
    assert streaming.sim.stats()["in_flight"] == 0


@pytest.mark.parametrize("fault", ["rate_limited_requests", "rate_limited_tokens", "queue_exceeded"])
def test_a_refusal_is_waited_out_and_is_no_part_of_the_time_to_the_first_token(
    streaming: JobFolder, sims: Sims, fault: str
) -> None:
    job = streaming
    job.sim = sims("--speed", "inf", "--fault", f"{fault}={SOME}")
    job.settings["retry"] = {"attempts": 20, "max_wait_s": 0.1}
    result = job.execute()
    assert result.code == 0, result.err
    answered, failed = rows_of(job)
    assert not failed
    assert job.sim.stats()["faults"][fault] == result.summary["rate_limited"] > 0
    for row in answered:
        assert (row["attempts_s"] > 0) == (row["attempts"] > 1)
        assert row["ttft_s"] <= row["latency_s"]
        assert row["response_s"] >= row["attempts_s"] + row["latency_s"]


def test_a_slow_first_byte_is_a_slow_first_token(streaming: JobFolder, sims: Sims) -> None:
    """Timers of the simulator's loop are of whole milliseconds, and may come one early."""
    _, rows = costs_nothing(streaming, sims, "--fault", f"slow_first_byte={SOME}", "--slow-s", "0.4")
    assert sum(row["ttft_s"] >= 0.395 for row in rows) >= streaming.sim.stats()["faults"]["slow_first_byte"] > 0


def test_a_stream_without_usage_has_times_and_no_speed(streaming: JobFolder, sims: Sims) -> None:
    result, rows = costs_nothing(streaming, sims, "--fault", f"missing_usage={SOME}")
    unknown = [row for row in rows if row["completion_tokens"] is None]
    assert len(unknown) == streaming.sim.stats()["faults"]["missing_usage"] == result.summary["unpriced"] > 0
    for row in unknown:
        assert row["ttft_s"] > 0
        assert {row[name] for name in ("n1_est", "net_s", "e2e_tokens_per_s", "server_tokens_per_s")} == {None}


def test_a_server_that_closes_after_every_stream(streaming: JobFolder, sims: Sims) -> None:
    costs_nothing(streaming, sims, "--fault", "close_connection=1")
    assert streaming.sim.stats()["faults"]["close_connection"] == ROWS


def test_another_model_that_streams(streaming: JobFolder, sims: Sims) -> None:
    _, rows = costs_nothing(streaming, sims, "--fault", f"wrong_model={SOME}")
    others = [row for row in rows if row["served_model"] != row["model"]]
    assert len(others) == streaming.sim.stats()["faults"]["wrong_model"] > 0


def test_an_empty_stream_is_an_empty_answer(streaming: JobFolder, sims: Sims) -> None:
    """What the model said: an empty text, and no token of an answer to stamp."""
    job = streaming
    job.sim = sims("--speed", "inf", "--fault", f"empty_answer={SOME}")
    assert job.execute().code == 0
    empty = [row for row in job.results() if row["text"] == ""]
    assert len(empty) == job.sim.stats()["faults"]["empty_answer"] > 0
    assert {(row["status"], row["finish_reason"]) for row in empty} == {("ok", "stop")}
    assert {row["ttfa_s"] for row in empty} == {None}


def test_a_streamed_answer_that_does_not_fit_is_asked_again(streaming: JobFolder, sims: Sims) -> None:
    job = streaming
    job.sim = sims("--speed", "inf", "--fault", "invalid_output=0.5")
    job.settings |= {
        "params": {"stream": True, "response_format": SCHEMA},
        "retry": {"attempts": 1, "reask": 8},
    }
    result = job.execute()
    assert result.code == 0, result.err
    rows = job.results()
    assert {row["valid"] for row in rows} == {True}
    assert max(row["attempts"] for row in rows) > 1
    for row in rows:
        assert isinstance(json.loads(row["parsed"])["answer"], int)
        assert (row["attempts_s"] > 0) == (row["attempts"] > 1)
        assert row["ttft_s"] is not None


def test_a_prompt_that_is_refused_before_its_stream(streaming: JobFolder, sims: Sims) -> None:
    """Before the first byte a refusal is an ordinary status: 400 is not asked again."""
    job = streaming
    job.sim = sims("--speed", "inf", "--fault", f"bad_request={SOME}")
    assert job.execute().code == 3
    _, failed = rows_of(job)
    columns = {(row["error_kind"], row["error_code"], row["http_status"], row["attempts"]) for row in failed}
    assert columns == {("bad_request", "wrong_api_format", 400, 1)}
    assert job.sim.requests == ROWS


@pytest.mark.parametrize("transport", ["plain", "session"])
def test_both_transports_measure_a_stream(streaming: JobFolder, sims: Sims, transport: str) -> None:
    """CBATCH_TRANSPORT=session is the way out where the plain one meets a server that it cannot."""
    job = streaming
    job.sim = sims("--speed", "inf")
    result = job.execute(first=f"os.environ['CBATCH_TRANSPORT'] = {transport!r}")
    assert result.code == 0, result.err
    answered, failed = rows_of(job)
    assert not failed
    assert all(0 < row["ttft_s"] <= row["latency_s"] for row in answered)
