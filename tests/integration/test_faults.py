"""Every fault of the simulator once, by the real command line: what a user may count on when it happens.

Most of them pass through one pattern. First run: every prompt is sent once, and those that met the fault become
rows that say so. Second run, `--retry-failed`: only these are sent again, until each has its own answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.integration.conftest import JobFolder, Result, Sim, ask, belongs, questions, wait_for

Sims = Callable[..., Sim]
ROWS = 40
SOME = 0.3  # so that some rows meet the fault and some do not, and every retry draws again


def rows_of(job: JobFolder, count: int = ROWS) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(answered, failed): one row per prompt, every answer at its own prompt, journal and parts in agreement."""
    rows = job.results()
    assert sorted(row["index"] for row in rows) == list(range(count))
    assert len({row["id"] for row in rows}) == job.proof().rows == job.proof().prompts == count
    answered = [row for row in rows if row["status"] == "ok"]
    failed = [row for row in rows if row["status"] == "error"]
    assert len(answered) + len(failed) == count
    for row in answered:
        assert belongs(row, ask(json.loads(row["input"])))
        assert (row["error_kind"], row["error_code"], row["error_message"]) == (None, None, None)
    for row in failed:
        assert (row["text"], row["finish_reason"], row["request_id"]) == (None, None, None)
    return answered, failed


def told_then_cured(
    job: JobFolder, sims: Sims, fault: str, columns: tuple[str, str | None, int | None], said: str, *options: str
) -> None:
    """The pattern above; `columns` are error_kind, error_code and http_status of the rows that met the fault."""
    job.sim = sims("--speed", "inf", "--fault", f"{fault}={SOME}", *options)
    job.settings["retry"] = {"attempts": 1, "max_wait_s": 0.01}
    first = job.execute()
    answered, failed = rows_of(job)
    met = job.sim.stats()["faults"][fault]
    assert 0 < len(failed) == met < ROWS
    assert {(row["error_kind"], row["error_code"], row["http_status"]) for row in failed} == {columns}
    assert all(said in row["error_message"] for row in failed)
    assert {row["attempts"] for row in (*answered, *failed)} == {1}
    summary = first.summary
    assert (first.code, summary["exit_code"], summary["state"]) == (3, 3, "finished")
    assert (summary["done"], summary["failed"], summary["left"], summary["retries"]) == (ROWS - met, met, 0, 0)
    assert summary["errors"] == {columns[0]: met}
    assert said in summary["samples"][columns[0]]
    assert f"{ROWS - met} of {ROWS} prompts done, {met} failed" in first.err
    assert "--retry-failed sends the failed ones again" in first.err
    assert job.sim.requests == summary["sent"] == ROWS

    job.settings["retry"]["attempts"] = 30
    second = job.execute("--retry-failed")
    assert second.code == 0, second.err
    again, none = rows_of(job)
    assert not none
    assert second.summary["errors"] == {}
    assert job.sim.requests == ROWS + second.summary["sent"]
    assert sum(row["attempts"] for row in again) == second.summary["sent"] + len(answered)
    assert max(row["attempts"] for row in again) <= 30
    unchanged = {row["id"]: row["request_id"] for row in answered}
    assert unchanged.items() <= {row["id"]: row["request_id"] for row in again}.items()


def costs_nothing(job: JobFolder, sims: Sims, *options: str) -> tuple[Result, list[dict[str, Any]]]:
    """A run in which every prompt is sent once and answered."""
    job.sim = sims("--speed", "inf", *options)
    job.settings["retry"] = {"attempts": 1}
    result = job.execute()
    assert result.code == 0, result.err
    answered, failed = rows_of(job)
    assert not failed
    assert (result.summary["retries"], result.summary["errors"]) == (0, {})
    assert job.sim.requests == result.summary["sent"] == ROWS
    assert {row["http_status"] for row in answered} == {200}
    return result, answered


# -- 429 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [[], ["--headers", "none"], ["--headers", "extended", "--retry-after", "--clock-rate", "20"]],
    ids=["with reset headers", "with nothing", "with Retry-After"],
)
@pytest.mark.parametrize("fault", ["rate_limited_requests", "rate_limited_tokens"])
def test_a_used_up_quota(job: JobFolder, sims: Sims, fault: str, options: list[str]) -> None:
    """A 429 of the account's quota is waited out, whatever the server says about how long: every prompt is answered."""
    job.sim = sims("--speed", "inf", "--fault", f"{fault}={SOME}", *options)
    job.settings["retry"] = {"attempts": 20, "max_wait_s": 0.1}
    result = job.execute()
    assert result.code == 0, result.err
    answered, failed = rows_of(job)
    assert not failed
    met = job.sim.stats()["faults"][fault]
    assert met == result.summary["rate_limited"] == result.summary["retries"] > 0
    assert sum(row["attempts"] for row in answered) == result.summary["sent"] == job.sim.requests == ROWS + met
    assert result.summary["errors"] == {}


def test_a_quota_that_takes_longer_than_we_may_wait(job: JobFolder, sims: Sims) -> None:
    """A server that asks for a longer wait than retry.max_wait_s stops the run, with both numbers: no prompt fails."""
    job.sim = sims("--speed", "inf", "--fault", f"rate_limited_requests={SOME}", "--retry-after")
    job.settings["retry"] = {"attempts": 6, "max_wait_s": 0.01}
    result = job.execute()
    assert (result.code, result.summary["state"], result.summary["failed"]) == (1, "stopped", 0)
    assert "the server asks to wait 1 s, more than retry.max_wait_s (0.01)" in result.err
    assert "raise retry.max_wait_s" in result.err
    job.settings["retry"] = {"attempts": 6}
    again = job.execute()
    assert again.code == 0, again.err
    assert again.summary["done"] == ROWS


@pytest.mark.parametrize("options", [[], ["--retry-after", "--clock-rate", "200"]], ids=["plain", "with Retry-After"])
def test_a_busy_server(job: JobFolder, sims: Sims, options: list[str]) -> None:
    """`queue_exceeded` is told apart from a quota: only the prompt that met it waits, and no prompt fails for it."""
    job.sim = sims("--speed", "inf", "--fault", f"queue_exceeded={SOME}", *options)
    job.settings["retry"] = {"attempts": 2, "max_wait_s": 0.01}
    result = job.execute()
    assert result.code == 0, result.err
    answered, failed = rows_of(job)
    assert not failed
    met = job.sim.stats()["faults"]["queue_exceeded"]
    assert met == result.summary["rate_limited"] > 0
    assert result.summary["learned"] == {}
    assert sum(row["attempts"] for row in answered) == ROWS + met


def test_a_server_with_less_room_than_we_have_workers(job: JobFolder, sims: Sims) -> None:
    """Four places and sixteen workers: the refused ones come back until all are answered."""
    job.sim = sims("--speed", "20", "--max-in-flight", "4")
    job.settings["retry"] = {"attempts": 100, "max_wait_s": 0.05}
    result = job.execute()
    assert result.code == 0, result.err
    answered, failed = rows_of(job)
    assert not failed
    model = job.sim.stats()["models"]["gpt-oss-120b"]
    assert (model["admitted"], model["max_in_flight"]) == (ROWS, 4)
    assert model["rate_limited"]["queue_exceeded"] == result.summary["rate_limited"] > 0
    assert sum(row["attempts"] for row in answered) == job.sim.requests


# -- other refusals -----------------------------------------------------------------------------


def test_no_credit_left(job: JobFolder, sims: Sims) -> None:
    """402 stops the run and says what to do; what was answered is kept, no prompt is blamed, and the line resumes."""
    job.rows(questions(200))
    job.sim = sims("--speed", "inf", "--fault", "payment_required=0.02")
    result = job.execute()
    assert result.code == 1
    assert "HTTP 402: Payment required to access this resource" in result.err
    assert "hint: add a payment method or credit in the billing tab, then run the same line again" in result.err
    summary = result.summary
    assert (summary["state"], summary["failed"], summary["errors"]) == ("stopped", 0, {})
    assert summary["done"] == job.durable < 200
    assert summary["left"] == 200 - summary["done"]
    assert job.sim.requests - job.sim.stats()["faults"]["payment_required"] == summary["done"]
    job.sim = sims("--speed", "inf")
    last = job.execute()
    assert last.code == 0
    assert not rows_of(job, 200)[1]
    assert job.sim.requests == 200 - summary["done"]


def test_a_prompt_that_is_refused(job: JobFolder, sims: Sims) -> None:
    """400 is the prompt's own fault: it is sent once, its row says why, and `--retry-failed` sends only it again."""
    job.sim = sims("--speed", "inf", "--fault", f"bad_request={SOME}")
    result = job.execute()
    assert result.code == 3
    _, failed = rows_of(job)
    columns = {(row["error_kind"], row["error_code"], row["http_status"], row["attempts"]) for row in failed}
    assert columns == {("bad_request", "wrong_api_format", 400, 1)}
    assert all("This prompt was refused. (a retry cannot help)" in row["error_message"] for row in failed)
    assert job.sim.requests == ROWS
    assert job.execute().code == 3
    assert job.sim.requests == ROWS
    assert job.execute("--retry-failed").code == 3
    assert job.sim.requests == ROWS + len(failed) == ROWS + len(rows_of(job)[1])


def test_request_timeout_of_the_server(job: JobFolder, sims: Sims) -> None:
    """408 is tried again like a timeout of our own."""
    told_then_cured(job, sims, "timeout_408", ("timeout", "request_timeout", 408), "HTTP 408: Request timed out.")


def test_an_internal_error(job: JobFolder, sims: Sims) -> None:
    """500 is tried again; the row keeps the server's code and words."""
    columns = ("server", "internal_server_error", 500)
    told_then_cured(job, sims, "server_error", columns, "HTTP 500: Encountered a server error")


def test_a_service_that_is_unavailable(job: JobFolder, sims: Sims) -> None:
    """503 is tried again."""
    columns = ("server", "service_unavailable", 503)
    told_then_cured(job, sims, "unavailable", columns, "HTTP 503: Service is temporarily unavailable.")


def test_html_with_status_502(job: JobFolder, sims: Sims) -> None:
    """An edge proxy's page is an error of the server, and its beginning is in the message."""
    told_then_cured(job, sims, "bad_gateway_html", ("server", None, 502), "HTTP 502: <html> <head><title>502 Bad")


# -- answers that are none ----------------------------------------------------------------------


def test_html_with_status_200(job: JobFolder, sims: Sims) -> None:
    """A page instead of an answer is never taken for one, even with status 200."""
    said = "status 200 with something else than JSON: <html>"
    told_then_cured(job, sims, "html_200", ("server", "not_json", 200), said)


def test_an_empty_body(job: JobFolder, sims: Sims) -> None:
    """Nothing with status 200 is not an empty answer."""
    told_then_cured(job, sims, "empty_body_200", ("truncated", "empty_body", 200), "status 200 with an empty body")


def test_malformed_json(job: JobFolder, sims: Sims) -> None:
    """Half a JSON object is not half an answer."""
    said = "the JSON of the answer breaks off or is malformed"
    told_then_cured(job, sims, "malformed_json", ("truncated", "malformed_json", 200), said)


def test_a_connection_dropped_before_the_answer(job: JobFolder, sims: Sims) -> None:
    """A connection that is closed without a byte is tried again."""
    columns = ("connection", None, None)
    told_then_cured(job, sims, "drop_before", columns, "the server closed the connection without an answer")


def test_a_connection_dropped_in_the_middle(job: JobFolder, sims: Sims) -> None:
    """An answer that stops before its end is not stored as an answer."""
    told_then_cured(job, sims, "drop_mid", ("truncated", "truncated", 200), "the answer stopped before its end")


def test_an_answer_that_stalls(job: JobFolder, sims: Sims) -> None:
    """No request lasts longer than timeouts.total_s, though bytes of its answer have come."""
    job.settings["timeouts"] = {"total_s": 2}  # more than a whole answer takes on a busy machine
    told_then_cured(job, sims, "stall", ("timeout", None, None), "no whole answer within 2 s")
    wait_for(lambda: job.sim.stats()["in_flight"] == 0, "the simulator to see that nobody waits")


# -- answers that are odd -----------------------------------------------------------------------


def test_a_slow_first_byte(job: JobFolder, sims: Sims) -> None:
    """A late answer within timeouts.total_s is an answer, and its latency is measured."""
    _, rows = costs_nothing(job, sims, "--fault", f"slow_first_byte={SOME}", "--slow-s", "0.4")
    late = 0.4 - 0.001  # the simulator's timers may be that much early: uvloop's are in whole ms
    assert sum(row["latency_s"] >= late for row in rows) >= job.sim.stats()["faults"]["slow_first_byte"] > 0


def test_an_answer_without_usage(job: JobFolder, sims: Sims) -> None:
    """Tokens that the server does not tell are unknown, not 0, and the summary says how many prices are."""
    result, rows = costs_nothing(job, sims, "--fault", f"missing_usage={SOME}")
    unknown = [row for row in rows if row["total_tokens"] is None]
    assert len(unknown) == job.sim.stats()["faults"]["missing_usage"] == result.summary["unpriced"] > 0
    for row in unknown:
        for column in ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "cost_usd"):
            assert row[column] is None
        assert (row["server_total_s"], row["server_tokens_per_s"]) == (None, None)
    told = sum(row["completion_tokens"] for row in rows if row not in unknown)
    assert result.summary["completion_tokens"] == told
    assert result.summary["cost_usd"] == pytest.approx(sum(row["cost_usd"] or 0 for row in rows))


def test_another_model_answers(job: JobFolder, sims: Sims) -> None:
    """`model` is who was asked, `served_model` who answered: a difference is there to be seen."""
    _, rows = costs_nothing(job, sims, "--fault", f"wrong_model={SOME}")
    assert {row["model"] for row in rows} == {"gpt-oss-120b"}
    others = [row for row in rows if row["served_model"] != row["model"]]
    assert len(others) == job.sim.stats()["faults"]["wrong_model"] > 0
    assert None not in {row["served_model"] for row in rows}


def test_a_server_that_closes_every_connection(job: JobFolder, sims: Sims) -> None:
    """Without keep-alive no request is lost and none is sent twice."""
    costs_nothing(job, sims, "--fault", "close_connection=1")
    assert job.sim.stats()["faults"]["close_connection"] == ROWS


def test_a_stream_without_its_end(job: JobFolder, sims: Sims) -> None:
    """Where we do not stream there is no [DONE] to miss."""
    costs_nothing(job, sims, "--fault", "missing_done=1")


def test_a_stream_without_its_end_while_streaming(job: JobFolder, sims: Sims) -> None:
    """A stream without [DONE] may have been cut anywhere: it is asked for again."""
    job.settings["params"] = {"stream": True}
    columns = ("truncated", "truncated", 200)
    told_then_cured(job, sims, "missing_done", columns, "the stream ended without [DONE]")


@pytest.mark.parametrize("fault", ["error_in_stream", "event_error_in_stream"])
def test_an_error_in_a_stream(job: JobFolder, sims: Sims, fault: str) -> None:
    """Where we do not stream, what would break a stream is an ordinary 500, and is tried again."""
    columns = ("server", "internal_server_error", 500)
    told_then_cured(job, sims, fault, columns, "HTTP 500: Encountered a server error")


@pytest.mark.parametrize("fault", ["error_in_stream", "event_error_in_stream"])
def test_an_error_in_a_stream_while_streaming(job: JobFolder, sims: Sims, fault: str) -> None:
    """The error is the row's, with the status that it names or that its code stands for, though HTTP said 200."""
    job.settings["params"] = {"stream": True}
    columns = ("server", "service_unavailable", 503)
    told_then_cured(job, sims, fault, columns, "HTTP 503: Service is temporarily unavailable.")


def test_an_empty_answer(job: JobFolder, sims: Sims) -> None:
    """An empty answer is what the model said: it is stored as an empty text, not as none and not as an error."""
    job.sim = sims("--speed", "inf", "--fault", f"empty_answer={SOME}")
    result = job.execute()
    assert (result.code, result.summary["done"], job.sim.requests) == (0, ROWS, ROWS)
    empty = [row for row in job.results() if row["text"] == ""]
    assert len(empty) == job.sim.stats()["faults"]["empty_answer"] > 0
    assert {(row["status"], row["finish_reason"]) for row in empty} == {("ok", "stop")}
    assert all(belongs(row, ask(json.loads(row["input"]))) for row in job.results() if row["text"])
    assert job.proof().rows == ROWS


SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "answer",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"answer": {"type": "integer"}},
            "required": ["answer"],
            "additionalProperties": False,
        },
    },
}


def test_an_answer_that_does_not_fit(job: JobFolder, sims: Sims) -> None:
    """An answer that breaks response_format is asked for again; in the end it fits or its row says that it does not."""
    job.sim = sims("--speed", "inf", "--fault", "invalid_output=0.5")
    job.settings |= {"params": {"response_format": SCHEMA}, "retry": {"attempts": 1, "reask": 1}}
    result = job.execute()
    assert result.code == 3
    rows = job.results()
    assert sorted(row["index"] for row in rows) == list(range(ROWS))
    failed = [row for row in rows if row["status"] == "error"]
    assert 0 < len(failed) < job.sim.stats()["faults"]["invalid_output"]
    assert {(row["error_kind"], row["http_status"], row["valid"], row["attempts"]) for row in failed} == {
        ("invalid_output", 200, False, 2)
    }
    for row in rows:
        if row["status"] == "ok":
            assert row["valid"] is True
            assert isinstance(json.loads(row["parsed"])["answer"], int)
        assert row["cost_usd"] > 0  # every answer is paid, fitting or not
    assert sum(row["attempts"] for row in rows) == job.sim.requests == job.sim.stats()["prompts_seen"]["answered"]
    assert result.summary["errors"] == {"invalid_output": len(failed)}


# -- no server at all ---------------------------------------------------------------------------


def test_a_host_that_does_not_exist(job: JobFolder) -> None:
    """A name that cannot be resolved is told with the name; nothing is taken for answered."""
    result = job.execute("--set", "retry.attempts=1", to="http://cbatch-test.invalid")
    assert result.code in (1, 3)
    assert "cannot connect to cbatch-test.invalid:80" in result.err + result.out
    assert (result.summary["done"], job.sim.requests) == (0, 0)


def test_a_server_that_does_not_speak_tls(job: JobFolder) -> None:
    """https:// to a port that speaks plain HTTP is told as a failed connection; with http:// the job runs."""
    result = job.execute("--set", "retry.attempts=1", to=job.sim.url.replace("http:", "https:"))
    assert result.code in (1, 3)
    assert "cannot connect to 127.0.0.1:" in result.err + result.out
    assert (result.summary["done"], job.sim.requests) == (0, 0)
    assert job.execute("--retry-failed").code == 0
    assert not rows_of(job)[1]
