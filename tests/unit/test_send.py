"""One prompt's loop under a virtual clock, against an API that follows a script."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, cast

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbatch.answers import AnswerCheck
from cbatch.catalog import Price, Quota
from cbatch.client import Client, Endpoint, Reply, read_error
from cbatch.errors import (
    APIConnectionError,
    APIError,
    APIResponseError,
    APIStatusError,
    APITimeoutError,
    APIUnreachableError,
    BudgetReached,
    JobError,
    RunStopped,
)
from cbatch.gate import Gate
from cbatch.health import DISTINCT, GIVE_UP, Health
from cbatch.hedge import Hedge
from cbatch.job import Retry
from cbatch.pace import Cost, Pacer, Used
from cbatch.purse import Bill, Purse
from cbatch.schema import Completion, Failure, Request, TimeInfo, Timeline, Usage
from cbatch.send import Sender, UnservedModel, send
from cbatch.session import Activity
from cbatch.sizes import DEADLINE_S, WARM_UP, Sizes
from cbatch.throttle import Throttle
from tests.conftest import VirtualLoop
from tests.unit.test_ledger import Disk, ledger

Virtual = Callable[[Any], Any]

STARTED = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)
TOOK_S = 0.1  # the scripted API's time for one answer
RESERVE = 1_000  # tokens of every request here
CEILING = 40_960  # what the model writes at most
PRICE = Price(input_usd=0.25, output_usd=0.69)
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
    deadlines: list[float] = field(default_factory=list)
    asked_for_models: int = 0
    took_s: float = TOOK_S
    on_the_wire: int = 0
    most_on_the_wire: int = 0

    async def complete(self, body: bytes, deadline_s: float) -> Completion:
        self.bodies.append(body)
        self.sent.append(round(asyncio.get_running_loop().time() - 1_000.0, 6))
        self.deadlines.append(deadline_s)
        self.on_the_wire += 1
        self.most_on_the_wire = max(self.most_on_the_wire, self.on_the_wire)
        try:
            await asyncio.sleep(min(self.took_s, deadline_s))
        finally:
            self.on_the_wire -= 1
        if self.took_s > deadline_s:
            raise APITimeoutError(f"no whole answer within {deadline_s:.3g} s")
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


class WatchedPacer(Pacer):
    """Knows every permit that is out; one that is given back twice is an error."""

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **given)
        self.out: list[Cost] = []
        self.returned: list[tuple[Cost, Used | str | None]] = []

    def take(self, now: float, cost: Cost, rest: tuple[int, float] | None = None) -> None:
        super().take(now, cost, rest)
        self.out.append(cost)

    def settle(self, now: float, cost: Cost, used: Used | None) -> None:
        self.out.remove(cost)
        self.returned.append((cost, used))
        super().settle(now, cost, used)

    def give_back(self, now: float, cost: Cost) -> None:
        self.out.remove(cost)
        self.returned.append((cost, "nothing"))
        super().give_back(now, cost)


class WatchedPurse(Purse):
    """Knows every bill that is out, and never lets the budget be crossed, by what it knows."""

    def __init__(self, usd: float | None = None, tokens: int | None = None) -> None:
        super().__init__(usd, tokens, spent_usd=0.0, spent_tokens=0)
        self.out: list[Bill] = []
        self.settled: list[Bill | None] = []
        self.dearest = 0.0

    def _hold(self, most: Bill) -> None:
        super()._hold(most)
        self.out.append(most)
        self.dearest = max(self.dearest, most.tokens)

    def settle(self, most: Bill, real: Bill | None) -> None:
        self.out.remove(most)
        self.settled.append(real)
        super().settle(most, real)


def sender(api: ScriptedApi, *, rpm: int | None = None, tpm: int | None = None, **given: Any) -> Sender:
    loop = asyncio.get_running_loop()
    auto, hedge = given.pop("auto", False), given.pop("share", None)
    arguments: dict[str, Any] = {
        "model": "gpt-oss-120b",
        "gate": Gate(WatchedPacer(Quota(rpm=rpm, tpm=tpm), now=loop.time())),
        "sizes": Sizes(auto=auto, ceiling=CEILING, default=16_384),
        "throttle": Throttle(1, 512),
        "health": Health(900.0),
        "purse": WatchedPurse(),
        "ledger": ledger(Disk()),
        "policy": Retry(),
        "price": PRICE,
        "now": lambda: STARTED,
        "rng": NoJitter(),
        "activity": Activity(),
        "clock": loop.time,
        "loop_time": loop.time,
        "total_s": 180.0,
        **given,
    }
    by = Sender(api=cast(Client, api), **arguments)
    if hedge:
        by.hedge = Hedge(by.api, by.gate, by.sizes, by.activity, hedge)
    return by


def request(text: str = "hi", *, limit: int | None = RESERVE - 4) -> Request:
    body = orjson.dumps({"model": "gpt-oss-120b", "messages": [{"role": "user", "content": text}]})
    return Request(
        model="gpt-oss-120b",
        body=body,
        digest=b"d",
        prompt_tokens_estimate=4,
        reserve_tokens=4 + (limit or 16_384),
        limit_tokens=limit,
    )


WORST = RESERVE - 4 + len(request().body)  # no token is shorter than a byte


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
    pacer, purse = by.gate.pacer, by.purse
    assert isinstance(pacer, WatchedPacer)
    assert isinstance(purse, WatchedPurse)
    assert by.activity.on_the_wire == {}
    assert by.activity.backing_off == 0
    assert (pacer.out, pacer.in_flight) == ([], 0), "every permit is given back, once"
    assert (purse.out, purse._holders) == ([], 0), "and every bill is settled, once"
    return True


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
        await by.gate.enter(Cost(RESERVE, RESERVE, RESERVE))  # another prompt was a moment earlier
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
        by = sender(api, rpm=60_000)
        first, second = Timeline(ready=by.clock()), Timeline(ready=by.clock())
        async with asyncio.TaskGroup() as group:
            group.create_task(send(request(), by, first))
            await asyncio.sleep(1)
            group.create_task(send(request(), by, second))
        assert api.sent == pytest.approx([0.0, 20.1, 20.1], abs=0.01)
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
    ("first", "used", "bill"),
    [
        pytest.param(completion(used=123), Used(123, 123), 123, id="an answer: what the server counted"),
        pytest.param(completion(used=None), Used(10, 10), 10, id="an answer with two of three counts: their sum"),
        pytest.param(status(500), Used(0, 0), 0, id="a 500: a request, and no tokens"),
        pytest.param(status(400), Used(0, 0), 0, id="a 400: a request, and no tokens"),
        pytest.param(status(429, QUEUE), "nothing", 0, id="a full queue: not even a request"),
        pytest.param(status(429, QUOTA), "nothing", 0, id="a quota: not even a request"),
        pytest.param(APITimeoutError("t"), None, None, id="a timeout: unknown"),
        pytest.param(APIConnectionError("c"), None, None, id="a lost connection: unknown"),
        pytest.param(APIUnreachableError("c"), "nothing", 0, id="no connection: never sent"),
        pytest.param(APIResponseError("cut", code="truncated", truncated=True), None, None, id="a cut answer: unknown"),
        pytest.param(RuntimeError("a bug"), None, None, id="a bug: unknown"),
    ],
)
def test_each_attempt_is_settled_once_with_what_is_known_of_its_use(
    virtual: Virtual, first: Step, used: Used | str | None, bill: int | None
) -> None:
    """Of the account's quota, and of the budget, where unknown is the most it can have cost."""

    async def main() -> None:
        by = sender(ScriptedApi([first, completion(used=5)]), tpm=60_000, purse=WatchedPurse(usd=10.0))
        with suppress(RuntimeError):
            await send(request(), by, Timeline(ready=0.0))
        pacer, purse = by.gate.pacer, by.purse
        assert isinstance(pacer, WatchedPacer)
        assert isinstance(purse, WatchedPurse)
        assert pacer.returned[0][1] == used
        assert len(pacer.returned) == len(purse.settled) == len(cast(ScriptedApi, by.api).sent)
        real = purse.settled[0]
        assert (None if real is None else real.tokens) == bill
        assert settled(by)

    virtual(main())


def test_an_answer_without_usage_keeps_its_reservation_and_costs_its_worst(virtual: Virtual) -> None:
    async def main() -> None:
        silent = completion()
        silent.usage = Usage()
        by = sender(ScriptedApi([silent]), tpm=60_000, purse=WatchedPurse(tokens=10_000))
        outcome, _ = await send(request(), by, Timeline(ready=0.0))
        assert outcome is silent
        assert isinstance(by.gate.pacer, WatchedPacer)
        assert by.gate.pacer.returned[0][1] is None
        assert by.purse.spent_tokens == WORST
        assert settled(by)

    virtual(main())


def test_a_request_that_can_never_fit_fails_unsent_with_the_numbers_and_what_to_do(virtual: Virtual) -> None:
    done = go(virtual, completion(), tpm=RESERVE - 1)
    assert (done.failure.kind, done.failure.code, done.failure.http_status) == ("rate_limited", "never_fits", None)
    assert done.failure.message == (
        "reserves 1,000 tokens at once, and the limit is 999 a minute; "
        "lower params.max_completion_tokens, shorten the prompt, or raise the limit"
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


def test_nothing_is_sent_any_more_to_a_model_that_somebody_does_without(virtual: Virtual) -> None:
    """Neither what comes later nor what waits for its turn; each is told the same, and nothing is held for it."""

    async def main() -> None:
        api = ScriptedApi([UNKNOWN], served=["zz"])
        by = sender(api, rpm=6, purse=WatchedPurse(usd=1.0))

        async def one() -> UnservedModel:
            with pytest.raises(UnservedModel) as caught:
                await send(request(), by, Timeline(ready=0.0))
            by.unserved = caught.value
            return caught.value

        async with asyncio.TaskGroup() as group:
            waiting = [group.create_task(one()) for _ in range(20)]
        early = len(api.sent)
        assert early < 20, "some had to wait"
        assert api.asked_for_models <= early
        await one()
        assert len(api.sent) == early
        assert {str(task.result()) for task in waiting} == {str(by.unserved)}
        assert by.activity.sent == early
        assert settled(by)

    virtual(main())


def test_who_does_not_do_without_it_asks_each_time(virtual: Virtual) -> None:
    """A gateway runs for weeks: a model may be served by then."""

    async def main() -> None:
        api = ScriptedApi([UNKNOWN, completion()], served=["zz"])
        by = sender(api)
        with pytest.raises(UnservedModel):
            await send(request(), by, Timeline(ready=0.0))
        assert isinstance((await send(request(), by, Timeline(ready=0.0)))[0], Completion)

    virtual(main())


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
        for _ in range(10):  # turns in which no time passes
            await asyncio.sleep(0)
        assert set(by.activity.on_the_wire) == ({task} if on_the_wire else set())
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
        await by.gate.enter(Cost(RESERVE, RESERVE, RESERVE))
        timeline = Timeline(ready=by.clock())
        task = asyncio.get_running_loop().create_task(send(request(), by, timeline))
        await asyncio.sleep(5)
        task.cancel()
        await asyncio.wait([task])
        assert (task.cancelled(), api.sent, timeline.attempts, timeline.first_sent) == (True, [], 0, None)
        by.gate.leave(Cost(RESERVE, RESERVE, RESERVE), None)  # of the one before
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
            async def complete(self, body: bytes, deadline_s: float) -> Completion:
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


# -- max_completion_tokens: auto --------------------------------------------------------------


def limit_of(body: bytes) -> int | None:
    found = orjson.loads(body).get("max_completion_tokens")
    assert found is None or isinstance(found, int)
    return found


@dataclass
class Writer(ScriptedApi):
    """Answers of `lengths` tokens, in turn, cut at max_completion_tokens as a server does."""

    lengths: list[int] = field(default_factory=lambda: [100])
    asked: dict[str, int] = field(default_factory=dict)

    async def complete(self, body: bytes, deadline_s: float) -> Completion:
        self.script = [completion()]
        await super().complete(body, deadline_s)
        prompt = orjson.loads(body)["messages"][0]["content"]
        number = self.asked.setdefault(prompt, len(self.asked))
        wanted, limit = self.lengths[number % len(self.lengths)], limit_of(body) or 16_384
        tokens = min(wanted, limit)
        finish = "length" if wanted > limit else "stop"
        return answered(tokens, finish=finish)


def answered(tokens: int, *, finish: str = "stop", prompt: int = 4) -> Completion:
    answer = completion(finish=finish)
    answer.usage = Usage(prompt_tokens=prompt, completion_tokens=tokens, total_tokens=tokens + prompt)
    return answer


async def auto_run(by: Sender, prompts: int) -> list[tuple[Completion | Failure, list[Completion]]]:
    return [await send(request(str(n), limit=None), by, Timeline(ready=0.0)) for n in range(prompts)]


def test_auto_begins_with_the_servers_default_and_ends_with_the_right_size(virtual: Virtual) -> None:
    async def main() -> None:
        api = Writer([], lengths=[40, 90, 120])
        by = sender(api, auto=True)
        await auto_run(by, 60)
        limits = [limit_of(body) for body in api.bodies]
        assert limits[:WARM_UP] == [16_384] * WARM_UP
        assert all(limit is not None and 120 <= limit <= 256 for limit in limits[WARM_UP:])
        assert len(api.bodies) == 60, "nobody was cut"
        assert settled(by)

    virtual(main())


def test_only_what_our_own_limit_cut_is_run_again_and_both_are_paid(virtual: Virtual) -> None:
    """A long answer after many short ones: 192, 768, 3,072 tokens, and the row is whole."""

    async def main() -> None:
        api = Writer([], lengths=[*[100] * 40, 3_000])
        by = sender(api, auto=True, purse=WatchedPurse(tokens=10**7))
        ends = await auto_run(by, 41)
        outcome, paid = ends[-1]
        assert isinstance(outcome, Completion)
        assert (outcome.finish_reason, outcome.usage.completion_tokens) == ("stop", 3_000)
        limits = [limit_of(body) for body in api.bodies[40:]]
        assert limits == [192, 768, 3_072]
        assert [answer.usage.completion_tokens for answer in paid] == [192, 768, 3_000]
        assert all(len(paid) == 1 for _, paid in ends[:-1])
        everything = sum(answer.usage.total_tokens or 0 for _, paid in ends for answer in paid)
        assert by.purse.spent_tokens == everything, "the purse knows of every one of them"
        assert (by.sizes.gain.cut, by.sizes.gain.cut_tokens) == (2, 960)
        assert settled(by)

    virtual(main())


def test_a_rerun_is_not_an_attempt_of_the_prompt(virtual: Virtual) -> None:
    async def main() -> None:
        api = Writer([], lengths=[*[100] * 40, 30_000])
        by = sender(api, auto=True, policy=Retry(attempts=1))
        outcome, paid = (await auto_run(by, 41))[-1]
        assert isinstance(outcome, Completion)
        assert outcome.usage.completion_tokens == 30_000
        assert len(paid) <= 6

    virtual(main())


def test_nobody_asks_for_more_than_the_model_writes_and_such_an_answer_is_kept_cut(virtual: Virtual) -> None:
    async def main() -> None:
        api = Writer([], lengths=[*[1] * 40, 10**6])
        by = sender(api, auto=True)
        outcome, paid = (await auto_run(by, 41))[-1]
        limits = [limit_of(body) or 0 for body in api.bodies]
        assert max(limits) == limits[-1] == CEILING
        assert isinstance(outcome, Completion)
        assert outcome.finish_reason == "length"
        assert len(paid) <= 7

    virtual(main())


def test_a_row_with_its_own_limit_is_left_alone(virtual: Virtual) -> None:
    """Its body is sent as it is, and an answer that its own limit cuts is an answer."""

    async def main() -> None:
        cut = answered(50, finish="length")
        by = sender(ScriptedApi([cut]), auto=True)
        mine = request(limit=50)
        outcome, paid = await send(mine, by, Timeline(ready=0.0))
        assert (outcome, paid) == (cut, [cut])
        assert cast(ScriptedApi, by.api).bodies == [mine.body]

    virtual(main())


def test_the_request_keeps_its_digest_and_its_body_whatever_limit_was_chosen(virtual: Virtual) -> None:
    async def main() -> None:
        by = sender(Writer([]), auto=True)
        asked = request(limit=None)
        digest, body = asked.digest, asked.body
        for _ in range(WARM_UP + 2):
            await send(asked, by, Timeline(ready=0.0))
        assert (asked.digest, asked.body) == (digest, body)
        sent = orjson.loads(cast(ScriptedApi, by.api).bodies[-1])
        assert sent.pop("max_completion_tokens") < 1_000
        assert sent == orjson.loads(body)

    virtual(main())


def test_a_small_token_limit_makes_the_limit_small_and_not_the_prompt_fail(virtual: Virtual) -> None:
    """16,384 tokens never fit 2,000 a minute: the most that fits is asked for, from the first request."""

    async def main() -> None:
        api = Writer([], lengths=[100])
        by = sender(api, auto=True, tpm=2_000)
        ends = await auto_run(by, 5)
        assert all(isinstance(outcome, Completion) for outcome, _ in ends)
        assert 1_900 < (limit_of(api.bodies[0]) or 0) <= 1_996
        assert settled(by)

    virtual(main())


def test_an_answer_that_no_window_has_room_for_is_not_asked_for_again_and_again(virtual: Virtual) -> None:
    """Cut at the most that the account allows at once: it is kept as it is, and paid once."""

    async def main() -> None:
        api = Writer([], lengths=[50_000])
        by = sender(api, auto=True, tpm=2_000)
        async with asyncio.timeout(3_600):
            outcome, paid = (await auto_run(by, 1))[0]
        assert isinstance(outcome, Completion)
        assert (outcome.finish_reason, len(paid)) == ("length", 1)
        assert settled(by)

    virtual(main())


def test_one_long_prompt_does_not_take_the_room_of_all_others(virtual: Virtual) -> None:
    """Beside a prompt of 19,990 tokens ten fit a limit of 20,000; the next prompt is short again."""

    async def main() -> None:
        api = Writer([], lengths=[5, 100])
        by = sender(api, auto=True, tpm=20_000)
        long = request("long", limit=None)
        long.prompt_tokens_estimate, long.reserve_tokens = 19_990, 19_990 + 16_384
        await send(long, by, Timeline(ready=0.0))
        assert limit_of(api.bodies[0]) == 10
        _, paid = await send(request("short", limit=None), by, Timeline(ready=0.0))
        assert len(paid) == 1

    virtual(main())


def test_a_prompt_alone_larger_than_the_window_fails_unsent_with_auto_too(virtual: Virtual) -> None:
    async def main() -> None:
        by = sender(Writer([]), auto=True, tpm=3, purse=WatchedPurse(tokens=10**6))
        outcome, _ = await send(request(limit=None), by, Timeline(ready=0.0))
        assert isinstance(outcome, Failure)
        assert outcome.code == "never_fits"
        assert settled(by)

    virtual(main())


# -- deadlines ----------------------------------------------------------------------------------


def warm(by: Sender, took_s: float = 0.1, count: int = 100) -> None:
    for _ in range(count):
        by.sizes.learn(request(), answered(100), took_s, cut=False)
    by.health.answered(0.0)


def test_a_deadline_is_learned_and_never_longer_than_the_jobs_and_doubles(virtual: Virtual) -> None:
    """0.1 s for 100 tokens, so 1,000 take a second: 10 s and 5 times that, then twice as long every time."""

    async def main() -> None:
        api = ScriptedApi([completion()], took_s=1_000.0)
        by = sender(api, policy=Retry(attempts=6))
        warm(by)
        outcome, _ = await send(request(), by, Timeline(ready=0.0))
        assert isinstance(outcome, Failure)
        assert outcome.kind == "timeout"
        first = DEADLINE_S + 5 * 0.996
        assert api.deadlines == pytest.approx([first, 2 * first, 4 * first, 8 * first, 180.0, 180.0])
        assert settled(by)

    virtual(main())


def test_before_anything_is_learned_a_deadline_is_the_jobs(virtual: Virtual) -> None:
    assert go(virtual, completion()).api.deadlines == [180.0]


def test_a_server_that_becomes_slow_does_not_fail_a_row_nor_stop_the_run(virtual: Virtual) -> None:
    """0.1 s an answer, and 150 s from one moment on: beyond every learned deadline, within timeouts.total_s."""

    async def main() -> None:
        api = ScriptedApi([completion()], took_s=150.0)
        by = sender(api)
        warm(by)
        outcomes: list[Completion | Failure] = []

        async def worker(number: int) -> None:
            for n in range(3):
                outcome, _ = await send(request(f"{number} {n}"), by, Timeline(ready=0.0))
                outcomes.append(outcome)

        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(worker(number))
        assert len(outcomes) == 60
        assert all(isinstance(outcome, Completion) for outcome in outcomes)
        assert settled(by)

    virtual(main())


# -- outages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [APIUnreachableError("refused"), APIConnectionError("reset"), status(503)])
def test_an_outage_pauses_the_run_and_costs_nobody_an_attempt(virtual: Virtual, error: APIError) -> None:
    """Ten minutes without an answer, 40 in flight: one request at a time tries, then every row has its answer."""

    async def main() -> None:
        back_at = 1_000.0 + 600

        class Away(ScriptedApi):
            async def complete(self, body: bytes, deadline_s: float) -> Completion:
                gone = asyncio.get_running_loop().time() < back_at
                self.script = [error if gone else completion()]
                return await super().complete(body, deadline_s)

        notes: list[str] = []
        api = Away([])
        by = sender(api, policy=Retry(attempts=3), notify=notes.append)
        by.health.answered(1_000.0)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(send(request(str(n)), by, Timeline(ready=0.0))) for n in range(40)]
        assert all(isinstance(task.result()[0], Completion) for task in tasks)
        tries = [at for at in api.sent if 5 < at < 599]
        assert 15 <= len(tries) <= 40, "one at a time, every 30 s in the end"
        assert min(later - at for at, later in pairwise(tries)) >= 2
        assert len(notes) == 2
        assert "does not answer" in notes[0]
        assert "answers again after 6" in notes[1]
        assert (by.health.outages, by.health.is_down) == (1, False)
        assert settled(by)

    virtual(main())


def test_an_outage_that_outlasts_the_patience_stops_the_run(virtual: Virtual) -> None:
    async def main() -> None:
        by = sender(ScriptedApi([status(503)]), health=Health(300.0))
        by.health.answered(1_000.0)
        tasks = [asyncio.ensure_future(send(request(str(n)), by, Timeline(ready=0.0))) for n in range(40)]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert 300 <= asyncio.get_running_loop().time() - 1_000 <= 340
        error = done.pop().exception()
        assert isinstance(error, RunStopped)
        assert (error.exit_code, "retry.max_outage_s" in str(error.hint)) == (1, True)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert settled(by)

    virtual(main())


def test_two_poison_rows_at_the_end_of_a_run_fail_and_pause_nothing(virtual: Virtual) -> None:
    async def main() -> None:
        by = sender(ScriptedApi([status(500)]))
        by.health.answered(1_000.0)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(send(request(str(n)), by, Timeline(ready=0.0))) for n in range(2)]
        assert all(isinstance(task.result()[0], Failure) for task in tasks)
        assert by.health.outages == 0
        assert asyncio.get_running_loop().time() - 1_000 < 20
        assert DISTINCT > 2
        assert settled(by)

    virtual(main())


def test_an_endpoint_that_was_never_there_stops_the_run_after_the_attempts_of_one_prompt(virtual: Virtual) -> None:
    async def main() -> None:
        by = sender(ScriptedApi([APIUnreachableError("refused")]))
        with pytest.raises(RunStopped, match="nothing was answered so far: refused"):
            await send(request(), by, Timeline(ready=0.0))
        assert len(cast(ScriptedApi, by.api).sent) == 6
        assert settled(by)

    virtual(main())


def test_an_endpoint_that_only_fails_stops_the_run_after_a_hundred_prompts(virtual: Virtual) -> None:
    async def main() -> None:
        by = sender(ScriptedApi([status(500)]), policy=Retry(attempts=1))
        for _ in range(GIVE_UP - 1):
            outcome, _ = await send(request(), by, Timeline(ready=0.0))
            assert isinstance(outcome, Failure)
        with pytest.raises(RunStopped):
            await send(request(), by, Timeline(ready=0.0))
        assert settled(by)

    virtual(main())


# -- the budget -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "hedge"), [(1, None), (100, None), (100, 0.5)])
@pytest.mark.parametrize("weather", ["worst", "short", "silent", "stormy", "underestimated"])
def test_a_budget_is_never_crossed_by_a_hundred_workers(
    virtual: Virtual, workers: int, hedge: float | None, weather: str
) -> None:
    """The run stops before the budget, if answers are as long as they may be, or short, or without usage, or lost.

    And if the prompt has 40 tokens where 4 were estimated.
    """

    async def main() -> None:
        rng = random.Random(workers)
        budget, truly = 50_000, 0

        class Weather(ScriptedApi):
            async def complete(
                self, body: bytes, deadline_s: float, on_sent: Callable[[], None] = lambda: None
            ) -> Completion:
                nonlocal truly
                on_sent()
                worst = answered(RESERVE - 4)
                answers = {"short": answered(20), "underestimated": answered(RESERVE - 4, prompt=40)}
                answer = answers.get(weather, worst)
                cost = answer.usage.total_tokens or 0
                if weather == "silent":
                    answer.usage, cost = Usage(), WORST
                truly += cost  # paid, whoever waits for it
                await asyncio.sleep(rng.choice([0.05, 0.1, 3.0]))
                if weather == "stormy" and rng.random() < 0.5:
                    raise rng.choice([APIConnectionError("c"), APITimeoutError("t")])
                return answer

        purse = WatchedPurse(tokens=budget)
        by = sender(Weather([]), purse=purse, share=hedge)
        warm(by)
        stopped: list[BudgetReached] = []

        async def worker() -> None:
            for _ in range(60):
                try:
                    await send(request(), by, Timeline(ready=0.0))
                except BudgetReached as exc:
                    stopped.append(exc)
                    return

        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(worker())
        assert truly <= budget
        assert by.purse.spent_tokens <= budget
        if stopped:
            assert {exc.exit_code for exc in stopped} == {4}
            assert purse.spent_tokens + max(WORST, purse.dearest) > budget, "nothing in flight could have made room"
        assert settled(by)

    virtual(main())


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="no text"),
        pytest.param("word " * 500, id="2,500 bytes"),
    ],
)
def test_a_budget_holds_where_every_byte_is_a_token_and_every_answer_is_asked_again(
    virtual: Virtual, text: str
) -> None:
    """The answer that cannot be used is part of the next prompt, and its bytes are counted, too."""

    async def main() -> None:
        truly = 0

        class Bytes(ScriptedApi):
            async def complete(self, body: bytes, deadline_s: float) -> Completion:
                nonlocal truly
                answer = answered(RESERVE - 4, prompt=len(body))
                answer.text = text
                truly += answer.usage.total_tokens or 0
                await asyncio.sleep(TOOK_S)
                return answer

        purse = WatchedPurse(tokens=10_000)
        by = sender(Bytes([]), purse=purse, check=CITY, policy=Retry(reask=3))
        with suppress(BudgetReached):
            for _ in range(20):
                await send(request(), by, Timeline(ready=0.0))
        assert 5_000 < truly == purse.spent_tokens <= 10_000
        assert settled(by)

    virtual(main())


def test_a_budget_that_has_no_room_to_ask_again_keeps_the_answer_that_was_paid(virtual: Virtual) -> None:
    """It cannot be used, so it is a Failure, and it has its cost; the next prompt is who stops the run."""

    async def main() -> None:
        bad = completion(BAD)
        by = sender(ScriptedApi([bad]), check=CITY, purse=WatchedPurse(tokens=WORST + 5))
        outcome, paid = await send(request(), by, Timeline(ready=0.0))
        assert isinstance(outcome, Failure)
        assert (outcome.kind, outcome.http_status, outcome.completion) == ("invalid_output", 200, bad)
        assert outcome.message == "the budget has no room for another try"
        assert (paid, by.purse.spent_tokens) == ([bad], 10)
        with pytest.raises(BudgetReached):
            await send(request(), by, Timeline(ready=0.0))
        assert settled(by)

    virtual(main())


def test_a_budget_that_has_no_room_for_more_room_keeps_the_cut_answer_as_it_is(virtual: Virtual) -> None:
    """192 tokens, cut, then 768, cut, and 3,072 are too many: what was written is the answer."""

    async def main() -> None:
        api = Writer([], lengths=[*[100] * 40, 3_000])
        by = sender(api, auto=True)
        await auto_run(by, 40)
        by.purse = WatchedPurse(tokens=3_000)
        outcome, paid = await send(request("40", limit=None), by, Timeline(ready=0.0))
        assert isinstance(outcome, Completion)
        assert (outcome.finish_reason, outcome.usage.completion_tokens) == ("length", 768)
        assert [answer.usage.completion_tokens for answer in paid] == [192, 768]
        assert outcome is paid[-1]
        assert settled(by)

    virtual(main())


def test_a_budget_that_is_reached_after_a_failure_loses_nothing_that_was_paid(virtual: Virtual) -> None:
    """An answer that cannot be used, then a timeout that may have been paid, then no money for a third try."""

    async def main() -> None:
        bad = completion(BAD, used=900)
        by = sender(ScriptedApi([bad, APITimeoutError("t")]), check=CITY, purse=WatchedPurse(tokens=2 * WORST))
        outcome, paid = await send(request(), by, Timeline(ready=0.0))
        assert isinstance(outcome, Failure)
        assert (outcome.kind, outcome.completion, paid) == ("invalid_output", bad, [bad])
        assert settled(by)

    virtual(main())


def test_who_waits_for_money_is_not_on_the_wire_and_can_be_cancelled(virtual: Virtual) -> None:
    async def main() -> None:
        api = ScriptedApi([completion()], took_s=50.0)
        by = sender(api, purse=WatchedPurse(tokens=1_500))
        tasks = [asyncio.ensure_future(send(request(str(n)), by, Timeline(ready=0.0))) for n in range(3)]
        await asyncio.sleep(1)
        assert len(by.activity.on_the_wire) == 1
        tasks[1].cancel()
        await asyncio.wait(tasks)
        assert [task.cancelled() for task in tasks] == [False, True, False]
        assert len(api.sent) == 2
        assert settled(by)

    virtual(main())


def test_cancelled_at_any_moment_every_permit_and_every_bill_is_given_back_once(virtual: Virtual) -> None:
    """A sweep over time and turns, through a slow ledger, a full purse, the gate, the wire and the backoff."""

    async def main() -> None:
        for at in (0.0, 0.01, 0.05, 0.06, 0.1, 0.15, 0.5, 0.65, 0.7, 1.2, 2.5):
            for turns in range(0, 12, 2):
                api = ScriptedApi([status(500), completion(BAD), APITimeoutError("t"), completion(GOOD)])
                given: dict[str, Any] = {"purse": WatchedPurse(tokens=2_500), "ledger": ledger(Disk(0.05))}
                by = sender(api, rpm=300, tpm=60_000, check=CITY, **given)
                tasks = [asyncio.ensure_future(send(request(str(n)), by, Timeline(ready=0.0))) for n in range(4)]
                await asyncio.sleep(at)
                for _ in range(turns):
                    await asyncio.sleep(0)
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
                assert settled(by)
                assert len(by.gate) == 0

    virtual(main())


def test_a_dearer_prompt_waits_until_the_ledger_covers_it(virtual: Virtual) -> None:
    async def main() -> None:
        disk = Disk(3.0)
        by = sender(ScriptedApi([completion()]), ledger=ledger(disk))
        async with asyncio.TaskGroup() as group:
            for n in range(5):
                group.create_task(send(request(str(n)), by, Timeline(ready=0.0)))
        assert min(cast(ScriptedApi, by.api).sent) >= 3.0
        assert by.ledger.row_usd >= PRICE.cost_usd(0, RESERVE)

    virtual(main())


@given(
    budget=st.integers(0, 20_000),
    workers=st.sampled_from([1, 7, 100]),
    ends=st.lists(st.sampled_from(["long", "short", "silent", "500", "lost", "bad", "429"]), min_size=1, max_size=60),
)
@settings(max_examples=40)
def test_whatever_answers_come_a_budget_holds(budget: int, workers: int, ends: list[str]) -> None:
    async def main() -> None:
        truly = 0
        answers = iter(ends)

        class Any_(ScriptedApi):
            async def complete(self, body: bytes, deadline_s: float) -> Completion:
                nonlocal truly
                end = next(answers, "short")
                answer = {"long": answered(RESERVE - 4), "silent": answered(RESERVE - 4)}.get(end, answered(3))
                if end not in ("500", "429"):
                    truly += RESERVE if end == "lost" else answer.usage.total_tokens or 0
                await asyncio.sleep(len(end) / 10)
                match end:
                    case "500" | "429":
                        raise status(int(end), QUEUE if end == "429" else None)
                    case "lost":
                        raise APIConnectionError("c")
                    case "silent":
                        answer.usage = Usage()
                answer.text = BAD if end == "bad" else GOOD
                return answer

        by = sender(Any_([]), purse=WatchedPurse(tokens=max(budget, 1)), check=CITY)
        by.health.answered(0.0)

        async def worker(number: int) -> None:
            with suppress(BudgetReached):
                for _ in range(max(60 // workers, 1)):
                    await send(request(), by, Timeline(ready=0.0))

        async with asyncio.TaskGroup() as group:
            for number in range(workers):
                group.create_task(worker(number))
        assert truly <= by.purse.spent_tokens <= max(budget, 1)
        assert settled(by)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())
