"""One prompt's loop: pace, call, retry, check. `ask`, `chat` and the gateway share it.

An APIError ends here: it becomes a retry, a Failure, or, where it dooms every prompt, RunStopped.
"""

from __future__ import annotations

import asyncio
import difflib
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson

from cbatch import retry
from cbatch.answers import AnswerCheck
from cbatch.client import Client
from cbatch.errors import (
    APIError,
    APIResponseError,
    APIStatusError,
    JobError,
    NotFoundError,
    RateLimitError,
    RunStopped,
)
from cbatch.gate import Gate
from cbatch.job import Retry
from cbatch.schema import Completion, Failure, Request, Timeline
from cbatch.session import Activity


@dataclass(slots=True, kw_only=True)
class Sender:
    """Everything `send` needs besides the request; one per model."""

    model: str
    api: Client
    gate: Gate
    policy: Retry
    now: Callable[[], datetime]
    rng: random.Random
    activity: Activity
    clock: Callable[[], float]  # not the loop's: uvloop's time() is rounded to 1 ms and stands still in a turn
    check: AnswerCheck | None = None
    draining: Callable[[], bool] = lambda: False
    succeeded: int = 0  # answers of this model, for quotas are per model


async def send(
    request: Request, sender: Sender, timeline: Timeline, task: asyncio.Task[Any] | None = None
) -> tuple[Completion | Failure, list[Completion]]:
    """The outcome of one request, and every answer that was paid for on the way.

    `task` is the current one; who sends many asks for it once, because that is a system call (getpid)
    up to Python 3.11.

    Marks `timeline`. Raises RunStopped if every other prompt would fail too, CancelledError if the
    run drains before the outcome is known: the prompt then leaves no record and is sent again.
    """
    clock = sender.clock
    activity = sender.activity
    task = task or asyncio.current_task()
    assert task is not None
    body = request.body
    counted = reasks = 0
    paid: list[Completion] = []
    while True:
        waiting_since = clock()
        try:
            charged = await sender.gate.enter(request.reserve_tokens)
        except ValueError as exc:
            hint = "lower params.max_completion_tokens, shorten the prompt, or raise limits.tpm"
            return Failure(kind="rate_limited", code="never_fits", message=f"{exc}; {hint}"), paid
        sent = clock()
        # The wait ends before `sent`: pacing is the client's time, not the server's.
        activity.pace_wait_s += sent - waiting_since
        timeline.sent = sent
        if timeline.first_sent is None:
            timeline.first_sent, timeline.started_at = sent, sender.now()
        timeline.attempts += 1
        counted += 1
        activity.sent += 1
        succeeded_before = sender.succeeded
        activity.on_the_wire.add(task)
        used: int | None = None
        error: APIError | None = None
        try:
            completion = await sender.api.complete(body)
            used = completion.usage.total_tokens
        except APIError as exc:
            error = exc
            used = 0 if isinstance(exc, APIStatusError) else None  # refused requests are not charged
        else:
            timeline.done = clock()
            sender.succeeded += 1
            paid.append(completion)
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
            body = _ask_again(request.body, completion, problem)
            continue
        finally:
            activity.on_the_wire.discard(task)
            sender.gate.leave(request.reserve_tokens, charged, used, serve=error is None)
        decision = await _decide(error, sender, counted=counted, others=sender.succeeded > succeeded_before)
        if isinstance(decision, retry.RetryAfter) and decision.hold and not sender.draining():
            sender.gate.hold(decision.seconds)
        sender.gate.serve()  # not before: a 429 holds whoever stands next, too
        if isinstance(decision, retry.StopRun):
            raise RunStopped(decision.because, hint=decision.hint) from error
        if isinstance(decision, retry.GiveUp):
            failure = _failure(error, decision.because)
            failure.completion = paid[-1] if paid else None  # re-asked, then lost: what was paid for is kept
            return failure, paid
        if sender.draining():
            raise asyncio.CancelledError
        if not decision.counts:
            counted -= 1
        activity.retries += 1
        if decision.hold:
            continue  # this prompt queues again with the others
        started = clock()
        activity.backing_off += 1
        try:
            await asyncio.sleep(decision.seconds)
        finally:
            activity.backing_off -= 1
            slept = clock() - started
            timeline.backoff_s += slept
            activity.backoff_s += slept


async def _decide(error: APIError, sender: Sender, *, counted: int, others: bool) -> retry.Decision:
    if isinstance(error, RateLimitError):
        sender.activity.rate_limited += 1
    if isinstance(error, NotFoundError) and error.code == "model_not_found" and not sender.succeeded:
        await _explain_unknown_model(sender.model, sender.api)
    return retry.decide(
        error,
        counted=counted,
        attempts=sender.policy.attempts,
        max_wait_s=sender.policy.max_wait_s,
        others_succeed=others,
        now=sender.now(),
        rng=sender.rng,
    )


async def _explain_unknown_model(model: str, api: Client) -> None:
    """Raise JobError if the server's own list confirms that it does not serve `model`.

    Without a list, or with the model in it, the row fails like any other 404.
    """
    try:
        served = sorted(entry["id"] for entry in await api.models())
    except APIError:
        return
    if served and model not in served:
        near = difflib.get_close_matches(model, served, n=1)
        raise JobError(
            f"model: {model!r} is not served to this key at {api.endpoint.base_url}",
            hint=f"did you mean {near[0]}? served: {', '.join(served)}" if near else f"served: {', '.join(served)}",
        )


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
