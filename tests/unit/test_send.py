"""One prompt's loop under a virtual clock, against an API that follows a script."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

import orjson
import pytest

from cbatch.answers import AnswerCheck
from cbatch.client import Client, Endpoint, Reply, read_error
from cbatch.errors import (
    APIConnectionError,
    APIError,
    APIResponseError,
    APIStatusError,
    APITimeoutError,
    JobError,
    RunStopped,
)
from cbatch.gate import Gate
from cbatch.job import Retry
from cbatch.pace import Pacer
from cbatch.schema import Completion, Failure, Request, TimeInfo, Timeline, Usage
from cbatch.send import Sender, send
from cbatch.session import Activity

Virtual = Callable[[Any], Any]

STARTED = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
TOOK_S = 0.1  # the scripted API's time for one answer
RESERVE = 1_000  # tokens of every request here
ENDPOINT = Endpoint(base_url="http://api.test/v1", key="csk-secret")
QUOTA, QUEUE = "request_quota_exceeded", "queue_exceeded"


def completion(text: str = "fine", *, finish: str = "stop", used: int | None = 10) -> Completion:
    return Completion(
        text=text,
        reasoning=None,
        tool_calls=None,
        finish_reason=finish,
        usage=Usage(prompt_tokens=4, completion_tokens=6, total_tokens=used),
        time_info=TimeInfo(),
        request_id=None,
        served_model=None,
        system_fingerprint=None,
    )


def status(code: int, name: str | None = None, **headers: str) -> APIStatusError:
    body = orjson.dumps({"message": "m", "code": name}) if name else b""
    return read_error(Reply(code, {key.replace("_", "-"): value for key, value in headers.items()}, body))


Step = Completion | BaseException | Callable[[], Any]


@dataclass
class ScriptedApi:
    """Answers by script, one step a request, `TOOK_S` each; the last step is repeated."""

    script: list[Step]
    served: list[str] | APIError = field(default_factory=list)
    endpoint: Endpoint = ENDPOINT
    bodies: list[bytes] = field(default_factory=list)
    sent: list[float] = field(default_factory=list)  # seconds since the start of the loop
    asked_for_models: int = 0

    async def complete(self, body: bytes) -> Completion:
        self.bodies.append(body)
        self.sent.append(round(asyncio.get_running_loop().time() - 1_000.0, 6))
        await asyncio.sleep(TOOK_S)
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if callable(step):
            step = step()
        if isinstance(step, BaseException):
            raise step
        assert isinstance(step, Completion)
        return step

    async def models(self) -> list[dict[str, Any]]:
        self.asked_for_models += 1
        await asyncio.sleep(TOOK_S)
        if isinstance(self.served, APIError):
            raise self.served
        return [{"id": name} for name in self.served]


class NoJitter(random.Random):
    def random(self) -> float:
        return 0.0


def sender(api: ScriptedApi, *, rpm: int | None = None, tpm: int | None = None, **given: Any) -> Sender:
    loop = asyncio.get_running_loop()
    arguments: dict[str, Any] = {
        "model": "gpt-oss-120b",
        "gate": Gate(Pacer(rpm, tpm, now=loop.time())),
        "policy": Retry(),
        "now": lambda: STARTED,
        "rng": NoJitter(),
        "activity": Activity(),
        "clock": loop.time,
        **given,
    }
    return Sender(api=cast(Client, api), **arguments)


def request(text: str = "hi") -> Request:
    body = orjson.dumps({"model": "gpt-oss-120b", "messages": [{"role": "user", "content": text}]})
    return Request(model="gpt-oss-120b", body=body, digest=b"d", prompt_tokens_estimate=4, reserve_tokens=RESERVE)


@dataclass
class Run:
    """One prompt sent to its end: what came of it, its marks, and what is left behind."""

    outcome: Completion | Failure
    paid: list[Completion]
    timeline: Timeline
    sender: Sender
    api: ScriptedApi

    @property
    def failure(self) -> Failure:
        assert isinstance(self.outcome, Failure)
        return self.outcome

    @property
    def activity(self) -> Activity:
        return self.sender.activity


def settled(by: Sender) -> bool:
    """Nothing is on the wire, nobody backs off, no reservation is in flight."""
    return not by.activity.on_the_wire and by.activity.backing_off == 0 and by.gate._pacer._reserved == 0


async def run(api: ScriptedApi, **given: Any) -> Run:
    by = sender(api, **given)
    timeline = Timeline(ready=by.clock())
    outcome, paid = await send(request(), by, timeline)
    assert settled(by)
    return Run(outcome, paid, timeline, by, api)


def go(virtual: Virtual, *script: Step, **given: Any) -> Run:
    served = given.pop("served", [])

    async def main() -> Run:
        return await run(ScriptedApi(list(script), served=served), **given)

    done = virtual(main())
    assert isinstance(done, Run)
    return done


def marks(timeline: Timeline) -> tuple[float | None, ...]:
    """ready, first_sent, sent, done in seconds since the loop started."""
    all_marks = (timeline.ready, timeline.first_sent, timeline.sent, timeline.done)
    return tuple(None if mark is None else round(mark - 1_000.0, 6) for mark in all_marks)


# -- attempts, backoff, marks -----------------------------------------------------------------


def test_an_answer_at_the_first_attempt_has_no_backoff_and_its_four_marks(virtual: Virtual) -> None:
    done = go(virtual, completion())
    assert (done.outcome, done.paid) == (completion(), [completion()])
    assert marks(done.timeline) == (0.0, 0.0, 0.0, 0.1)
    assert (done.timeline.attempts, done.timeline.backoff_s, done.timeline.started_at) == (1, 0.0, STARTED)
    assert (done.activity.sent, done.sender.succeeded, done.activity.retries) == (1, 1, 0)


def test_the_marks_are_of_the_last_attempt_and_of_the_first_send(virtual: Virtual) -> None:
    """Three attempts of 0.1 s, backoffs of 0.5 and 1 s between them."""
    done = go(virtual, status(500), APITimeoutError("t"), completion())
    assert done.api.sent == [0.0, 0.6, 1.7]
    assert marks(done.timeline) == (0.0, 0.0, 1.7, 1.8)
    assert done.timeline.attempts == 3
    assert done.timeline.backoff_s == pytest.approx(1.5)
    assert (done.activity.sent, done.sender.succeeded, done.activity.retries) == (3, 1, 2)
    assert done.activity.backoff_s == pytest.approx(1.5)


def test_the_wait_for_the_pacer_ends_with_the_first_send_and_holds_no_backoff(virtual: Virtual) -> None:
    async def main() -> None:
        api = ScriptedApi([status(500), completion()])
        by = sender(api, rpm=60)
        await by.gate.enter(RESERVE)  # another prompt was a moment earlier
        timeline = Timeline(ready=by.clock())
        await send(request(), by, timeline)
        first = 1 / 0.998
        assert timeline.first_sent is not None
        assert timeline.first_sent - timeline.ready == pytest.approx(first)
        assert timeline.backoff_s == pytest.approx(0.5)
        assert api.sent == pytest.approx([first, 2 * first], abs=1e-3)
        waited_again = first - TOOK_S - 0.5
        assert by.activity.pace_wait_s == pytest.approx(first + waited_again)
        assert by.activity.backoff_s == pytest.approx(0.5)

    virtual(main())


@pytest.mark.parametrize(
    ("error", "kind", "code", "http_status"),
    [
        pytest.param(status(500), "server", None, 500, id="500"),
        pytest.param(status(503, "busy"), "server", "busy", 503, id="503 with a code"),
        pytest.param(status(408), "timeout", None, 408, id="408"),
        pytest.param(status(429, QUEUE), "overloaded", QUEUE, 429, id="a full queue"),
        pytest.param(status(429, QUOTA), "rate_limited", QUOTA, 429, id="a quota used up, and nobody succeeds"),
        pytest.param(APIConnectionError("c"), "connection", None, None, id="no connection"),
        pytest.param(APITimeoutError("t"), "timeout", None, None, id="a timeout"),
        pytest.param(
            APIResponseError("cut", code="truncated", truncated=True), "truncated", "truncated", 200, id="a cut answer"
        ),
        pytest.param(APIResponseError("html", code="not_json"), "server", "not_json", 200, id="HTML with 200"),
    ],
)
def test_what_does_not_pass_is_a_failure_after_all_attempts(
    virtual: Virtual, error: APIError, kind: str, code: str | None, http_status: int | None
) -> None:
    done = go(virtual, error, policy=Retry(attempts=3))
    assert (done.failure.kind, done.failure.code, done.failure.http_status) == (kind, code, http_status)
    assert done.failure.message == f"{error} (failed 3 times)"
    assert (done.timeline.attempts, done.timeline.done, done.paid) == (3, None, [])
    assert (done.activity.sent, done.activity.retries, done.sender.succeeded) == (3, 2, 0)


@pytest.mark.parametrize("code", [400, 404, 413, 422])
def test_what_no_retry_can_help_fails_at_once(virtual: Virtual, code: int) -> None:
    done = go(virtual, status(code))
    assert (done.failure.http_status, done.timeline.attempts, done.timeline.backoff_s) == (code, 1, 0.0)
    assert done.failure.message == f"HTTP {code}: no body (a retry cannot help)"


def test_one_attempt_means_no_retry(virtual: Virtual) -> None:
    done = go(virtual, status(500), policy=Retry(attempts=1))
    assert (done.timeline.attempts, done.failure.message) == (1, "HTTP 500: no body (failed once)")


def test_a_stated_wait_is_slept_to_the_second(virtual: Virtual) -> None:
    done = go(virtual, status(503, retry_after="7"), completion())
    assert done.api.sent == [0.0, 7.1]
    assert done.timeline.backoff_s == pytest.approx(7.0)


# -- holds ------------------------------------------------------------------------------------


def test_a_429_holds_every_prompt_and_is_not_backoff_of_the_one_that_met_it(virtual: Virtual) -> None:
    async def main() -> None:
        api = ScriptedApi([status(429, QUOTA, retry_after="20"), completion()])
        by = sender(api)
        first, second = Timeline(ready=by.clock()), Timeline(ready=by.clock())
        async with asyncio.TaskGroup() as group:
            group.create_task(send(request(), by, first))
            await asyncio.sleep(1)
            group.create_task(send(request(), by, second))
        assert api.sent == [0.0, 20.1, 20.1]
        assert (first.attempts, first.backoff_s, second.attempts) == (2, 0.0, 1)
        assert by.activity.rate_limited == 1
        assert settled(by)

    virtual(main())


def test_a_429_holds_who_stands_next_in_the_same_turn(virtual: Virtual) -> None:
    """The tokens that a refused request gives back admit nobody before the hold."""

    async def main() -> None:
        api = ScriptedApi([status(429, QUOTA, retry_after="5"), completion()])
        # Two requests of 1,000 tokens do not fit the half of 3,000 that may be reserved at once.
        by = sender(api, tpm=3_000)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(2):
                tasks.create_task(send(request(), by, Timeline(ready=0.0)))
        assert api.sent[0] == 0
        assert min(api.sent[1:]) >= TOOK_S + 5

    virtual(main())


def test_who_met_the_429_queues_behind_those_who_wait_already(virtual: Virtual) -> None:
    async def main() -> None:
        api = ScriptedApi([status(429, QUOTA), completion()])
        by = sender(api, rpm=60)
        async with asyncio.TaskGroup() as group:
            for name in ("met it", "b", "c"):
                group.create_task(send(request(name), by, Timeline(ready=0.0)))
        order = [orjson.loads(body)["messages"][0]["content"] for body in api.bodies]
        assert order == ["met it", "b", "c", "met it"]

    virtual(main())


def test_a_429_while_others_succeed_is_not_counted_however_often(virtual: Virtual) -> None:
    """It says nothing about the prompt: 20 refusals, 2 attempts allowed, an answer in the end."""

    async def main() -> None:
        def refused_while_others_succeed() -> BaseException:
            by.succeeded += 1
            return status(429, QUOTA)

        by = sender(
            ScriptedApi([*[refused_while_others_succeed] * 20, status(500), completion()]), policy=Retry(attempts=2)
        )
        timeline = Timeline(ready=by.clock())
        outcome, _ = await send(request(), by, timeline)
        assert outcome == completion(), "the 500 is the first failure that counts"
        assert (timeline.attempts, by.activity.rate_limited, by.activity.retries) == (22, 20, 21)
        assert timeline.backoff_s == pytest.approx(0.5), "and has the first backoff"

    virtual(main())


@pytest.mark.parametrize(
    ("error", "end"),
    [
        pytest.param(status(429, QUOTA), "HTTP 429: m (failed 2 times)", id="a quota"),
        pytest.param(status(404, "model_not_found"), "'typo' is not served", id="an unknown model"),
    ],
)
def test_the_answers_of_another_model_say_nothing_about_this_one(
    virtual: Virtual, error: APIStatusError, end: str
) -> None:
    """Quotas and names are per model: a 429 counts, and an unknown model stops the run, whatever the others do."""

    async def main() -> str:
        activity = Activity()
        served = sender(ScriptedApi([completion()]), activity=activity)
        api = ScriptedApi([error], served=["gpt-oss-120b"])
        refused = sender(api, activity=activity, model="typo", policy=Retry(attempts=2))

        async def keep_answering() -> None:
            while True:
                await send(request(), served, Timeline(ready=0.0))

        others = asyncio.get_running_loop().create_task(keep_answering())
        await asyncio.sleep(1)
        try:
            async with asyncio.timeout(60):
                outcome, _ = await send(request(), refused, Timeline(ready=0.0))
        except JobError as exc:
            return str(exc)
        finally:
            others.cancel()
        assert isinstance(outcome, Failure)
        return outcome.message

    assert end in virtual(main())


def test_a_full_queue_delays_only_its_own_prompt(virtual: Virtual) -> None:
    async def main() -> None:
        api = ScriptedApi([status(429, QUEUE, retry_after="20"), completion()])
        by = sender(api)
        async with asyncio.TaskGroup() as group:
            group.create_task(send(request(), by, Timeline(ready=0.0)))
            await asyncio.sleep(1)
            group.create_task(send(request(), by, Timeline(ready=0.0)))
        assert api.sent == [0.0, 1.0, 20.1]

    virtual(main())


# -- tokens -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "used"),
    [
        pytest.param(completion(used=123), 123, id="an answer: what the server counted"),
        pytest.param(completion(used=None), None, id="an answer without usage: unknown"),
        pytest.param(status(500), 0, id="a refusal: nothing"),
        pytest.param(status(429, QUEUE), 0, id="a 429: nothing"),
        pytest.param(APITimeoutError("t"), None, id="a timeout: unknown"),
        pytest.param(APIConnectionError("c"), None, id="a lost connection: unknown"),
        pytest.param(APIResponseError("cut", code="truncated", truncated=True), None, id="a cut answer: unknown"),
        pytest.param(RuntimeError("a bug"), None, id="a bug: unknown"),
    ],
)
def test_each_attempt_is_settled_once_with_what_is_known_of_its_use(
    virtual: Virtual, first: Step, used: int | None
) -> None:
    async def main() -> None:
        settlements: list[tuple[int, int | None]] = []

        class Watched(Gate):
            def leave(self, reserve_tokens: int, charged: int, used: int | None, *, serve: bool = True) -> None:
                settlements.append((reserve_tokens, used))
                super().leave(reserve_tokens, charged, used, serve=serve)

        loop = asyncio.get_running_loop()
        by = sender(ScriptedApi([first, completion(used=5)]), gate=Watched(Pacer(None, 60_000, now=loop.time())))
        with suppress(RuntimeError):
            await send(request(), by, Timeline(ready=0.0))
        assert settlements[0] == (RESERVE, used)
        assert len(settlements) == len(cast(ScriptedApi, by.api).sent)
        assert settled(by)

    virtual(main())


def test_a_request_that_can_never_fit_fails_unsent_with_the_numbers_and_what_to_do(virtual: Virtual) -> None:
    done = go(virtual, completion(), tpm=RESERVE - 1)
    assert (done.failure.kind, done.failure.code, done.failure.http_status) == ("rate_limited", "never_fits", None)
    assert done.failure.message == (
        "reserves 1,000 tokens at once, and the limit is 999 a minute; "
        "lower params.max_completion_tokens, shorten the prompt, or raise limits.tpm"
    )
    assert (done.api.sent, done.timeline.attempts, done.timeline.first_sent) == ([], 0, None)
    assert done.activity.sent == 0


# -- what dooms every prompt ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words", "hint"),
    [
        pytest.param(status(401, "wrong_api_key"), "HTTP 401: m", "the key was refused", id="401"),
        pytest.param(status(402, x_should_retry="false"), "HTTP 402: no body", "add a payment method", id="402"),
        pytest.param(status(403), "HTTP 403: no body", "no key was sent", id="403"),
    ],
)
def test_what_dooms_every_prompt_stops_the_run_with_a_hint(
    virtual: Virtual, error: APIStatusError, words: str, hint: str
) -> None:
    async def main() -> None:
        by = sender(ScriptedApi([error]))
        with pytest.raises(RunStopped) as caught:
            await send(request(), by, Timeline(ready=0.0))
        assert str(caught.value) == words
        assert caught.value.hint is not None
        assert caught.value.hint.startswith(hint)
        assert settled(by)

    virtual(main())


UNKNOWN = status(404, "model_not_found")


def test_an_unknown_model_is_an_error_of_the_job_when_the_servers_list_confirms_it(virtual: Virtual) -> None:
    async def main() -> None:
        by = sender(ScriptedApi([UNKNOWN], served=["gpt-oss-20b", "qwen-3.8-27b"]))
        with pytest.raises(JobError) as caught:
            await send(request(), by, Timeline(ready=0.0))
        assert str(caught.value) == "model: 'gpt-oss-120b' is not served to this key at http://api.test/v1"
        assert caught.value.hint == "did you mean gpt-oss-20b? served: gpt-oss-20b, qwen-3.8-27b"
        assert "csk-secret" not in f"{caught.value!r} {caught.value.hint}"
        assert settled(by)

    virtual(main())


def test_without_a_similar_name_the_hint_is_the_list(virtual: Virtual) -> None:
    async def main() -> None:
        with pytest.raises(JobError) as caught:
            await run(ScriptedApi([UNKNOWN], served=["zz"]))
        assert caught.value.hint == "served: zz"

    virtual(main())


@pytest.mark.parametrize(
    ("error", "served", "succeeded", "asked"),
    [
        pytest.param(UNKNOWN, ["gpt-oss-120b"], 0, 1, id="the list has the model"),
        pytest.param(UNKNOWN, [], 0, 1, id="the list is empty"),
        pytest.param(UNKNOWN, status(500), 0, 1, id="the list is not to be had"),
        pytest.param(UNKNOWN, APIConnectionError("c"), 0, 1, id="the server is gone"),
        pytest.param(UNKNOWN, APIResponseError("?", code="invalid_response"), 0, 1, id="the list is no list"),
        pytest.param(UNKNOWN, ["other"], 1, 0, id="an answer has come before"),
        pytest.param(status(404), ["other"], 0, 0, id="a 404 without that code"),
        pytest.param(status(400, "model_not_found"), ["other"], 0, 0, id="that code without 404"),
    ],
)
def test_without_that_confirmation_a_404_fails_only_its_row(
    virtual: Virtual, error: APIStatusError, served: list[str] | APIError, succeeded: int, asked: int
) -> None:
    done = go(virtual, error, served=served, succeeded=succeeded)
    assert done.failure.http_status == error.status
    assert done.api.asked_for_models == asked


# -- draining and cancelling ------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(status(500), id="where it would back off"),
        pytest.param(status(429, QUOTA), id="where it would hold"),
    ],
)
def test_while_the_run_drains_a_retry_is_a_cancellation_and_holds_nobody(virtual: Virtual, error: APIError) -> None:
    """The prompt leaves no record and is sent again on resume."""

    async def main() -> None:
        api = ScriptedApi([error, completion()])
        by = sender(api, draining=lambda: bool(api.sent))
        task = asyncio.get_running_loop().create_task(send(request(), by, Timeline(ready=0.0)))
        await asyncio.wait([task])
        assert task.cancelled()
        assert (len(api.sent), by.activity.retries) == (1, 0)
        assert settled(by)

    virtual(main())


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        pytest.param([completion()], None, id="an answer"),
        pytest.param([status(400)], "bad_request", id="a failure that no retry can help"),
    ],
)
def test_while_the_run_drains_what_is_known_is_kept(virtual: Virtual, script: list[Step], kind: str | None) -> None:
    outcome = go(virtual, *script, draining=lambda: True).outcome
    assert (outcome.kind if isinstance(outcome, Failure) else None) == kind


@pytest.mark.parametrize(
    ("script", "at", "on_the_wire"),
    [
        pytest.param([completion()], 0.05, True, id="on the wire"),
        pytest.param([completion()], 0.0, True, id="just sent"),
        pytest.param([status(500)], 0.3, False, id="while it backs off"),
        pytest.param([status(429, QUOTA, retry_after="9")], 5.0, False, id="while the account is held"),
        pytest.param([UNKNOWN], 0.15, False, id="while it asks for the list of models"),
    ],
)
def test_a_cancelled_prompt_leaves_nothing_behind(
    virtual: Virtual, script: list[Step], at: float, on_the_wire: bool
) -> None:
    """No task on the wire, no reservation, nobody backing off; and the next prompt gets through."""

    async def main() -> None:
        api = ScriptedApi(script, served=["other"])
        by = sender(api, tpm=60_000)
        timeline = Timeline(ready=by.clock())
        task = asyncio.get_running_loop().create_task(send(request(), by, timeline))
        await asyncio.sleep(at)
        await asyncio.sleep(0)
        assert by.activity.on_the_wire == ({task} if on_the_wire else set())
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert settled(by)
        assert len(by.gate) == 0
        if by.activity.backoff_s:
            assert timeline.backoff_s == pytest.approx(at - TOOK_S), "the backoff it did sleep is told"
        api.script = [completion()]
        outcome, _ = await send(request(), by, Timeline(ready=by.clock()))
        assert outcome == completion()

    virtual(main())


def test_a_prompt_cancelled_while_it_waits_for_the_pacer_was_never_sent(virtual: Virtual) -> None:
    async def main() -> None:
        api = ScriptedApi([completion()])
        by = sender(api, rpm=1)
        await by.gate.enter(RESERVE)
        timeline = Timeline(ready=by.clock())
        task = asyncio.get_running_loop().create_task(send(request(), by, timeline))
        await asyncio.sleep(5)
        task.cancel()
        await asyncio.wait([task])
        assert (task.cancelled(), api.sent, timeline.attempts, timeline.first_sent) == (True, [], 0, None)
        assert settled(by)

    virtual(main())


# -- answers that do not fit ------------------------------------------------------------------

CITY = AnswerCheck({"type": "object", "required": ["city"]})
BAD, WORSE, GOOD = '{"town":1}', "no JSON", '{"city":1}'


def test_an_answer_that_does_not_fit_is_asked_again_with_what_is_wrong(virtual: Virtual) -> None:
    done = go(virtual, completion(BAD), completion(GOOD), check=CITY)
    assert isinstance(done.outcome, Completion)
    assert (done.outcome.parsed, done.outcome.valid) == ({"city": 1}, True)
    assert [answer.text for answer in done.paid] == [BAD, GOOD], "both were paid for"
    assert orjson.loads(done.api.bodies[1])["messages"] == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": BAD},
        {
            "role": "user",
            "content": "That answer cannot be used: does not fit the schema at $: 'city' is a required property. "
            "Answer again with only the JSON.",
        },
    ]
    assert orjson.loads(done.api.bodies[1])["model"] == "gpt-oss-120b"
    assert done.api.sent == [0.0, 0.1], "at once: the server did nothing wrong"
    assert marks(done.timeline) == (0.0, 0.0, 0.1, 0.2)
    assert (done.timeline.attempts, done.timeline.backoff_s, done.activity.retries) == (2, 0.0, 1)


def test_a_second_time_only_the_last_answer_is_shown(virtual: Virtual) -> None:
    """The conversation does not grow with every answer that cannot be used."""
    done = go(virtual, completion(BAD), completion(WORSE), completion(GOOD), check=CITY)
    messages = orjson.loads(done.api.bodies[2])["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant", "user"]
    assert messages[1]["content"] == WORSE


@pytest.mark.parametrize("reask", [0, 1, 3])
def test_after_the_last_reask_it_is_a_failure_with_the_answer_and_every_cost(virtual: Virtual, reask: int) -> None:
    done = go(virtual, completion(BAD), check=CITY, policy=Retry(reask=reask))
    assert (done.failure.kind, done.failure.http_status) == ("invalid_output", 200)
    assert done.failure.message == "does not fit the schema at $: 'city' is a required property"
    assert done.failure.completion is done.paid[-1]
    assert (len(done.paid), len(done.api.sent), done.timeline.attempts) == (reask + 1,) * 3


@pytest.mark.parametrize("text", [BAD, '{"city":', "", None])
def test_an_answer_cut_at_its_maximum_is_not_asked_again(virtual: Virtual, text: str | None) -> None:
    """It would be cut again, at full price."""
    cut = completion(finish="length")
    cut.text = text
    done = go(virtual, cut, check=CITY)
    assert done.failure.kind == "invalid_output"
    assert done.failure.message.startswith("cut at max_completion_tokens, ")
    assert (len(done.api.sent), done.paid) == (1, [cut])


def test_an_answer_cut_at_its_maximum_that_fits_all_the_same_is_an_answer(virtual: Virtual) -> None:
    assert isinstance(go(virtual, completion(GOOD, finish="length"), check=CITY).outcome, Completion)


def test_while_the_run_drains_nothing_is_asked_again_and_what_was_paid_is_kept(virtual: Virtual) -> None:
    done = go(virtual, completion(BAD), check=CITY, draining=lambda: True)
    assert (done.failure.kind, len(done.paid)) == ("invalid_output", 1)


def test_answers_that_do_not_fit_use_up_reasks_and_not_attempts(virtual: Virtual) -> None:
    """Two attempts, three answers that do not fit and one 500 in between: the 500 is the first failure."""
    script: list[Step] = [completion(BAD), completion(BAD), status(500), completion(BAD), completion(GOOD)]
    done = go(virtual, *script, check=CITY, policy=Retry(attempts=2, reask=3))
    assert isinstance(done.outcome, Completion)
    assert (len(done.paid), done.timeline.attempts, done.timeline.backoff_s) == (4, 5, 0.5)


def test_a_failure_after_a_reask_costs_what_was_paid(virtual: Virtual) -> None:
    done = go(virtual, completion(BAD), status(400), check=CITY)
    assert (done.failure.kind, [answer.text for answer in done.paid]) == ("bad_request", [BAD])


def test_a_retry_after_a_reask_repeats_the_question_with_the_answer_in_it(virtual: Virtual) -> None:
    done = go(virtual, completion(BAD), status(500), completion(GOOD), check=CITY)
    assert done.api.bodies[2] == done.api.bodies[1]
    assert done.api.bodies[1] != done.api.bodies[0]


def test_a_schema_that_cannot_be_applied_stops_the_run_and_settles_the_gate(virtual: Virtual) -> None:
    async def main() -> None:
        by = sender(ScriptedApi([completion(GOOD)]), check=AnswerCheck({"$ref": "#/gone"}))
        with pytest.raises(JobError):
            await send(request(), by, Timeline(ready=0.0))
        assert settled(by)

    virtual(main())


# -- many at once -----------------------------------------------------------------------------


def test_five_hundred_prompts_through_refusals_losses_and_cancellations_leave_nothing_behind(virtual: Virtual) -> None:
    """Every prompt ends as an answer, a failure or a cancellation, and the counts agree."""

    async def main() -> None:
        rng = random.Random(11)

        class Weather(ScriptedApi):
            async def complete(self, body: bytes) -> Completion:
                self.sent.append(0.0)
                await asyncio.sleep(rng.choice([0, 0.01, 2.0]))
                match rng.randrange(8):
                    case 0:
                        raise status(429, rng.choice([QUOTA, QUEUE]), retry_after=rng.choice(["", "1"]))
                    case 1:
                        raise rng.choice([APIConnectionError("c"), APITimeoutError("t"), status(500), status(400)])
                return completion(used=rng.choice([None, 5, 900, 5_000]))

        by = sender(Weather([]), rpm=6_000, tpm=10_000_000, policy=Retry(attempts=3))
        ends: list[Completion | Failure] = []

        async def one() -> None:
            timeline = Timeline(ready=by.clock())
            outcome, paid = await send(request(), by, timeline)
            ends.append(outcome)
            assert len(paid) == isinstance(outcome, Completion)
            assert timeline.attempts >= 1

        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(one()) for _ in range(500)]
        for number in range(0, 500, 10):
            loop.call_later(rng.uniform(0, 6), tasks[number].cancel)
        await asyncio.wait(tasks)
        cancelled = sum(task.cancelled() for task in tasks)
        assert cancelled > 10
        assert len(ends) + cancelled == 500
        assert sum(isinstance(end, Completion) for end in ends) == by.succeeded
        assert by.activity.sent == len(cast(Weather, by.api).sent)
        assert len(by.gate) == 0
        assert settled(by)

    virtual(main())
