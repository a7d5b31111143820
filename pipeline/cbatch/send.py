"""One prompt's loop: size, pay, pace, call, retry, check. `ask`, `chat` and the gateway share it.

An APIError ends here: it becomes a retry, a Failure, or, where it dooms every prompt, RunStopped.
"""

from __future__ import annotations

import asyncio
import difflib
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import orjson

from cbatch import ratelimits, retry
from cbatch.answers import AnswerCheck
from cbatch.catalog import Price
from cbatch.client import Client, OnChunk, OnReply
from cbatch.errors import (
    APIConnectionError,
    APIError,
    APIResponseError,
    APIStatusError,
    APITimeoutError,
    APIUnreachableError,
    BudgetReached,
    InternalServerError,
    JobError,
    NotFoundError,
    RateLimitError,
    RunStopped,
)
from cbatch.gate import Gate
from cbatch.health import Health, Verdict
from cbatch.hedge import Hedge
from cbatch.job import Retry
from cbatch.ledger import Ledger
from cbatch.measure import cost_usd
from cbatch.pace import Cost, NeverFits, Used
from cbatch.purse import Bill, Purse
from cbatch.schema import Completion, Failure, Request, Timeline
from cbatch.session import Activity, OnTheWire
from cbatch.sizes import Sizes
from cbatch.throttle import Throttle

Then = Literal["pause", "queue", "wait"]
NOTHING = Bill(0.0, 0.0)
HEADERS_S = 0.05  # the server's word about its windows is read at most so often: it costs 20 µs


class UnservedModel(JobError):
    """The server's own list confirms that it does not serve this model; `served` is the list, `near` a similar name."""

    def __init__(self, message: str, model: str, served: list[str]) -> None:
        self.near = next(iter(difflib.get_close_matches(model, served, n=1)), None)
        self.served = served
        listed = f"served: {', '.join(served)}"
        super().__init__(message, hint=f"did you mean {self.near}? {listed}" if self.near else listed)


@dataclass(slots=True, kw_only=True)
class Sender:
    """Everything `send` needs besides the request; one per model."""

    model: str
    api: Client
    gate: Gate
    sizes: Sizes
    throttle: Throttle
    health: Health
    purse: Purse
    ledger: Ledger
    policy: Retry
    price: Price | None
    now: Callable[[], datetime]
    rng: random.Random
    activity: Activity
    clock: Callable[[], float]  # not the loop's: uvloop's time() is rounded to 1 ms and stands still in a turn
    loop_time: Callable[[], float]  # of the gate and its timers
    total_s: float
    hedge: Hedge | None = None
    check: AnswerCheck | None = None
    draining: Callable[[], bool] = lambda: False
    notify: Callable[[str], None] = lambda message: None
    succeeded: int = 0  # answers of this model, for quotas are per model
    headers_read_at: float = float("-inf")
    unserved: UnservedModel | None = None  # given by who goes on without this model: its requests are not sent any more


async def send(
    request: Request,
    sender: Sender,
    timeline: Timeline,
    task: asyncio.Task[Any] | None = None,
    on_chunk: OnChunk | None = None,
    on_reply: OnReply | None = None,
) -> tuple[Completion | Failure, list[Completion]]:
    """The outcome of one request, and every answer that was paid for on the way.

    `on_chunk` gets the chunks of a stream as they come: once there was one, a failure is not tried again,
    for whoever saw them would see them twice. `on_reply` gets the answers unread. `task` is the current one;
    who sends many asks for it once, because that is a system call (getpid) up to Python 3.11.

    Marks `timeline`. Raises RunStopped if every other prompt would fail too, UnservedModel if every other
    one of this model would, BudgetReached before the request that could cross the budget, CancelledError if
    the run drains before the outcome is known: the prompt then leaves no record and is sent again.
    """
    clock, activity, sizes = sender.clock, sender.activity, sender.sizes
    task = task or asyncio.current_task()
    assert task is not None
    asked = request.body
    counted = reasks = 0
    paid: list[Completion] = []
    cap = sizes.cap() if sizes.auto and request.limit_tokens is None else None
    seen = False

    def tap(chunk: dict[str, Any]) -> None:
        nonlocal seen
        seen = True
        assert on_chunk is not None
        on_chunk(chunk)

    while True:
        _refuse_unserved(sender)
        cost = sizes.cost(request, cap)
        most = sizes.completion_tokens(request, cap)
        worst = _worst(sender, most, len(asked))
        if worst.usd > sender.ledger.row_usd:
            await sender.ledger.cover(worst.usd)
        bill = worst if sender.purse.is_open else None
        waiting_since = clock()
        try:
            await _admit(sender, cost, bill)
        except NeverFits as exc:
            if cap is not None and cap > (fits := _most_room(sender, cost, cap)):
                cap = fits
                continue
            hint = "lower params.max_completion_tokens, shorten the prompt, or raise the limit"
            return Failure(kind="rate_limited", code="never_fits", message=f"{exc}; {hint}"), paid
        except BudgetReached:
            if not paid:
                raise
            return _as_it_is(paid[-1], "the budget has no room for another try"), paid
        if sender.unserved is not None:  # another prompt found out while this one waited
            sender.gate.never_sent(cost)
            if bill:
                sender.purse.settle(bill, NOTHING)
            continue
        body = asked if cap is None else request.with_limit(cap, asked)
        sent, loop_sent = clock(), sender.loop_time()
        # The wait ends before `sent`: pacing is the client's time, not the server's.
        activity.pace_wait_s += sent - waiting_since
        timeline.sent, timeline.reserved_tokens = sent, int(cost.reserve)
        if timeline.first_sent is None:
            timeline.first_sent, timeline.started_at = sent, sender.now()
        timeline.attempts += 1
        counted += 1
        activity.sent += 1
        activity.on_the_wire[task] = OnTheWire(request.prompt_id, sent)
        error: APIError | None = None
        completion: Completion | None = None
        # Whether the endpoint is gone or only slow is what a try is to find out.
        deadline_s = sender.total_s if sender.health.is_down else sizes.deadline_s(most, counted - 1, sender.total_s)
        try:
            if on_chunk is not None or on_reply is not None:
                completion = await sender.api.complete(body, deadline_s, tap if on_chunk else None, on_reply)
            elif sender.hedge is None:
                completion = await sender.api.complete(body, deadline_s)
            else:
                completion = await sender.hedge.complete(body, deadline_s, cost, sender.purse, bill)
        except APIError as exc:
            error = exc
        finally:
            in_flight = len(activity.on_the_wire)
            del activity.on_the_wire[task]
            if completion is None and error is None:  # cancelled: it may have been answered
                sender.gate.leave(cost, None)
                if bill:
                    sender.purse.settle(bill, None)
        if completion is not None:
            timeline.done = clock()
            latency_s = timeline.done - sent
            cut = cap is not None and completion.finish_reason == "length" and cap < _most_room(sender, cost, cap)
            used = sizes.used(completion)
            sizes.learn(request, completion, latency_s, cut=cut)
            sender.gate.leave(cost, used)
            if bill:
                sender.purse.settle(bill, _real(sender, completion))
            _take_note(completion, sender, loop_sent, latency_s, in_flight)
            paid.append(completion)
            if cap is not None:
                unsized = request.reserve_tokens - request.prompt_tokens_estimate
                sizes.booked(cap, unsized, cut=cut, tokens=completion.usage.completion_tokens or 0)
            if cut:  # our own limit cut it: ask again with more room
                assert cap is not None
                if sender.draining():
                    raise asyncio.CancelledError
                cap = sizes.cap(cap)
                counted -= 1
                activity.retries += 1
                continue
            problem = sender.check(completion) if sender.check else None
            if problem is None:
                return completion, paid
            cut = completion.finish_reason == "length"
            if cut:
                problem = f"cut at max_completion_tokens, {problem}"
            # A cut answer is not asked again: it would be cut again, at full price.
            if cut or reasks == sender.policy.reask or sender.draining():
                return Failure(kind="invalid_output", message=problem, completion=completion, http_status=200), paid
            reasks += 1
            counted -= 1  # it was answered: `reask` limits these, `attempts` the failures
            activity.retries += 1
            asked = _ask_again(request.body, completion, problem)
            continue
        assert error is not None
        if bill:
            unknown = not isinstance(error, APIStatusError | APIUnreachableError)
            sender.purse.settle(bill, None if unknown else NOTHING)
        timeline.refusals += isinstance(error, RateLimitError)
        try:
            decision = await _decide(error, sender, counted=counted, refusals=timeline.refusals)
        except BaseException:  # no such model, or cancelled while it asked for the list
            sender.gate.leave(cost, Used(0, 0))
            raise
        then = _fail(error, decision, sender, cost, loop_sent, id(timeline))
        if seen and not isinstance(decision, retry.StopRun):
            decision, then = retry.GiveUp("its beginning was shown already"), "wait"
        if isinstance(decision, retry.StopRun):
            raise RunStopped(decision.because, hint=decision.hint) from error
        if sender.draining() and (then == "pause" or not isinstance(decision, retry.GiveUp)):
            raise asyncio.CancelledError
        if then == "pause":
            counted -= 1
            activity.retries += 1
            continue
        if isinstance(decision, retry.GiveUp):
            _give_up(error, sender)
            failure = _failure(error, decision.because)
            if isinstance(error, APIStatusError):
                failure.retry_after_s = ratelimits.stated_wait_s(error.headers, sender.now())
            failure.error = error
            failure.completion = paid[-1] if paid else None  # re-asked, then lost: what was paid for is kept
            return failure, paid
        if not decision.counts:
            counted -= 1
        activity.retries += 1
        if then == "queue":
            continue  # the account is held: this prompt queues again with the others
        started = clock()
        activity.backing_off += 1
        try:
            await asyncio.sleep(decision.seconds or retry.FIRST_BACKOFF_S)
        finally:
            activity.backing_off -= 1
            slept = clock() - started
            timeline.backoff_s += slept
            activity.backoff_s += slept


# -- money and room -------------------------------------------------------------------------------


async def _admit(sender: Sender, cost: Cost, bill: Bill | None) -> None:
    """Wait for money and for quota. Raises BudgetReached, and NeverFits with the money given back."""
    if bill is None:
        await sender.gate.enter(cost)
        return
    await sender.purse.take(bill)
    try:
        await sender.gate.enter(cost)
    except BaseException:
        sender.purse.settle(bill, NOTHING)
        raise


def _worst(sender: Sender, most_tokens: int, body_bytes: int) -> Bill:
    """The most that a request may cost: no token is shorter than a byte, and every one may be the dearer kind.

    JSON around the messages is longer than what a model hides before them.
    """
    tokens = most_tokens + body_bytes
    return Bill(sender.price.most_usd(tokens) if sender.price else 0.0, tokens)


def _as_it_is(answer: Completion, why: str) -> Completion | Failure:
    """The last answer that was paid for, where no better one can be had: cut ones count, wrong ones do not."""
    if answer.valid is False:
        return Failure(kind="invalid_output", message=why, completion=answer, http_status=200)
    return answer


def _real(sender: Sender, answer: Completion) -> Bill | None:
    used = sender.sizes.used(answer)
    usd = cost_usd(answer, sender.price) if sender.price else 0.0
    return None if used is None or usd is None else Bill(usd, used.total)


def _most_room(sender: Sender, cost: Cost, cap: int) -> int:
    """The largest completion that the model writes, and that fits the account's smallest window with this prompt."""
    tokens = sender.gate.pacer.told_tokens()  # a limit that was only learned may be wrong: send it and see
    ceiling = sender.sizes.ceiling
    return max(min(ceiling, int(min(tokens) - (cost.reserve - cap))), 1) if tokens else ceiling


# -- what an answer and a failure teach --------------------------------------------------------------


def _take_note(answer: Completion, sender: Sender, loop_sent: float, latency_s: float, in_flight: int) -> None:
    """An answer came: everything that watches learns of it."""
    sender.succeeded += 1
    now = sender.loop_time()
    if now - sender.headers_read_at >= HEADERS_S:
        sender.headers_read_at = now
        if words := ratelimits.windows_in(answer.headers):
            sender.gate.listen(words)
    sender.gate.pacer.succeeded(loop_sent)
    if (away_s := sender.health.answered(now)) is not None:
        sender.gate.reopen()
        sender.throttle.restart()
        sender.notify(f"{sender.model}: the endpoint answers again after {away_s:,.0f} s")
    generated_s = answer.time_info.completion_s or 0.0
    queue_s = answer.time_info.queue_s
    sender.activity.server_queue_s += queue_s or 0.0
    sender.throttle.answered(now, loop_sent, max(latency_s - generated_s, 0.0), in_flight)


def _fail(error: APIError, decision: retry.Decision, sender: Sender, cost: Cost, loop_sent: float, prompt: int) -> Then:
    """A request failed: give back what it did not use; what its prompt does then.

    "pause": the endpoint has gone, so it does not count, and the gate lets it try again; "queue": the
    account is held, for all alike; "wait": this prompt waits, as was decided.

    Raises RunStopped when an endpoint that has gone stays away for too long.
    """
    now = sender.loop_time()
    gate = sender.gate
    if isinstance(error, RateLimitError):
        if error.code == "queue_exceeded":
            gate.never_sent(cost)
            sender.throttle.busy(now, loop_sent)
            return "wait"
        kind, period = ratelimits.refused_window(error.code, str(error))
        held = gate.refused(
            cost,
            loop_sent,
            kind=kind,
            period=period,
            stated_s=decision.seconds or None if isinstance(decision, retry.RetryAfter) else None,
            full_in_s=ratelimits.reset_s(error.headers),
            words=ratelimits.windows_in(error.headers),
        )
        return "queue" if held else "wait"
    health = sender.health
    was_down = health.is_down
    unreachable = isinstance(error, APIUnreachableError)
    verdict: Verdict = "counts"
    if _no_answer(error) and not isinstance(decision, retry.StopRun):
        verdict = health.failed(now, prompt, unreachable=unreachable)
    # Before the permit is given back, for that lets the next one go.
    if verdict == "paused" and (seconds := health.next_try(now, loop_sent)) is not None:
        gate.try_one_in(seconds, "the endpoint to answer again")
    if unreachable:
        gate.never_sent(cost)
    elif isinstance(error, APIStatusError):
        gate.leave(cost, Used(0, 0))  # it counted as a request, and did nothing
    else:
        gate.leave(cost, None)
    if isinstance(error, APITimeoutError):
        sender.throttle.timed_out(now, loop_sent)
    if verdict == "over":
        raise RunStopped(
            f"{sender.model}: no answer for {now - (health.down_since or now):,.0f} s: {error}",
            hint="what was answered is safe; run the same line again when the endpoint is back (retry.max_outage_s)",
        ) from error
    if verdict == "paused" and not was_down:
        sender.notify(f"{sender.model}: the endpoint does not answer ({error}); paused, trying until it does")
    return "pause" if verdict == "paused" else "wait"


def _no_answer(error: APIError) -> bool:
    """Whether the endpoint, and not the prompt, is to blame if this happens to everybody."""
    return isinstance(error, APIConnectionError | APIResponseError | InternalServerError)


def _give_up(error: APIError, sender: Sender) -> None:
    """A prompt has failed for good. Raises RunStopped where nothing was ever answered."""
    unreachable = isinstance(error, APIUnreachableError)
    vain = _no_answer(error) or isinstance(error, RateLimitError)
    if vain and sender.health.gave_up(unreachable=unreachable):
        raise RunStopped(
            f"{sender.model}: nothing was answered so far: {error}",
            hint="check the address and the network; the same line goes on, --retry-failed sends failed ones again",
        ) from error


async def _decide(error: APIError, sender: Sender, *, counted: int, refusals: int) -> retry.Decision:
    if isinstance(error, RateLimitError):
        sender.activity.rate_limited += 1
    if isinstance(error, NotFoundError) and error.code == "model_not_found" and not sender.succeeded:
        await _explain_unknown_model(sender, error)
    return retry.decide(
        error,
        counted=counted,
        refusals=refusals,
        attempts=sender.policy.attempts,
        max_wait_s=sender.policy.max_wait_s,
        others_succeed=sender.succeeded > 0,
        now=sender.now(),
        rng=sender.rng,
    )


def _refuse_unserved(sender: Sender) -> None:
    if sender.unserved is not None:
        raise sender.unserved.with_traceback(None)


async def _explain_unknown_model(sender: Sender, error: APIError) -> None:
    """Raise UnservedModel if the server's own list confirms that it does not serve this model.

    Without a list, or with the model in it, the row fails like any other 404.
    """
    _refuse_unserved(sender)  # another prompt has asked
    try:
        served = sorted(entry["id"] for entry in await sender.api.models())
    except APIError:
        return
    if served and sender.model not in served:
        said = f"model: {sender.model!r} is not served to this key at {sender.api.endpoint.base_url}"
        raise UnservedModel(said, sender.model, served) from error


def _failure(error: APIError, because: str) -> Failure:
    status = error.status if isinstance(error, APIStatusError) else None
    if isinstance(error, APIResponseError):
        status = 200
    return Failure(
        kind=retry.kind_of(error),
        code=getattr(error, "code", None),
        message=f"{error} ({because})",
        http_status=status,
    )


def _ask_again(body: bytes, answer: Completion, problem: str) -> bytes:
    """The same request with the unusable answer and what is wrong with it added to the conversation."""
    request = orjson.loads(body)
    request["messages"] += [
        {"role": "assistant", "content": answer.text or ""},
        {
            "role": "user",
            "content": f"That answer cannot be used: {problem}. Answer again with only the JSON.",
        },
    ]
    return orjson.dumps(request)
