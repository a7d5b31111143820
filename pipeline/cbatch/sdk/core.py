"""Ask -> Taken | an exception of the SDK: one request's loop. Pacing, sending, trying again.

A Core is one endpoint with one key, shared by a client and its `with_options` copies. What belongs to an
event loop (connections, waiting rooms) it has once per loop, so a client may be used from several.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

import orjson

from cbatch import environment, retry
from cbatch.errors import APIConnectionError as NoAnswer
from cbatch.errors import APIError as Problem
from cbatch.errors import APIResponseError as BadAnswer
from cbatch.errors import APITimeoutError as TooLate
from cbatch.pace import Cost
from cbatch.replies import Reply, excerpt, read_error
from cbatch.schema import Request as Priced
from cbatch.sdk import errors
from cbatch.sdk.feed import Feed
from cbatch.sdk.pacing import Lane
from cbatch.sdk.web import Request, Response
from cbatch.sdk.wire import Head, Wire, open_wire
from cbatch.transport import Endpoint

LONGEST_STATED_S = 60.0  # as the SDK: a server that asks for a longer wait is not waited for
NEVER_S = float("inf")
SOON_S = 5.0  # shorter deadlines get a timer of their own: the transport looks only every half second


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request, ready to be sent."""

    method: str
    url: str
    head: Head
    body: bytes | None
    read_s: float | None  # None: for ever
    max_retries: float
    is_json: bool  # whether an answer that is not JSON is of no use
    model: str | None = None  # whose limits are kept; None: of no model
    limit_tokens: int | None = None
    answers: int = 1

    def shown(self) -> Request:
        """For users and for errors: without the key."""
        headers = {
            name: "Bearer (key removed)" if name.lower() == "authorization" else value
            for name, value in self.head.headers.items()
        }
        return Request(self.method, self.url, headers, self.body or b"")


@dataclass(slots=True, kw_only=True)
class Taken:
    """What came of it; `data` is the decoded JSON of a whole answer, None where that is not JSON."""

    response: Response
    data: Any
    retries: int


class _Here:
    """What belongs to one event loop of one process; made by `open`."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.pid = os.getpid()
        self.lanes: dict[str, Lane] = {}
        self._keeper = self._keep()

    @classmethod
    async def open(cls, endpoint: Endpoint) -> _Here:
        """Waits for nothing, so that no other task can be in between."""
        here = cls(await open_wire(endpoint))
        await anext(here._keeper)
        return here

    async def _keep(self) -> AsyncGenerator[None, None]:
        """A loop closes its generators when it ends: an asyncio.run that forgets the client leaves nothing open."""
        try:
            yield
        finally:
            for lane in self.lanes.values():
                lane.close()
            self.wire.close()

    async def aclose(self) -> None:
        """Close connections, send away who waits."""
        await self._keeper.aclose()
        await self.wire.aclose()


class Core:
    """One endpoint with one key."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.closed = False
        self._here: dict[asyncio.AbstractEventLoop, _Here] = {}
        self._rng = random.Random()

    # -- one request ----------------------------------------------------------------------------

    async def fetch(self, ask: Ask, feed_type: type[Feed] | None = None) -> Taken:
        """The answer; with a `feed_type` as soon as its head is there. Raises errors of the SDK."""
        self._check_open(ask)
        loop = asyncio.get_running_loop()
        here = await self._get(loop)
        lane = self._lane(here, ask.model) if ask.model else None
        priced = lane.request(ask.body or b"", ask.limit_tokens, ask.answers) if lane else None
        began = loop.time()
        tried = 0
        while True:
            self._check_open(ask)
            try:
                cost = await lane.enter(priced) if lane and priced else None
            except NoAnswer as exc:
                raise _translated(exc, ask, None) from exc
            tried += 1
            sent_at = loop.time()
            reply: Reply | None = None
            data: Any = None
            feed = feed_type() if feed_type else None
            try:
                if feed is None:
                    reply = await self._whole(here.wire, ask)
                else:
                    reply = await self._begin(here.wire, ask, feed)
                if reply is not None and (feed is None or not 200 <= reply.status < 300):
                    data = _decoded(reply, ask)
            except Problem as exc:
                error = exc
            except BaseException:
                if lane:
                    lane.unknown(cost)
                raise
            else:
                if feed is not None and reply is None:
                    status, headers = feed.started.result()
                    self._when_ended(feed, lane, priced, cost, sent_at)
                else:
                    assert reply is not None
                    status, headers = reply.status, reply.headers
                    if lane and priced:
                        lane.answered(priced, cost, headers, data if isinstance(data, Mapping) else {}, sent_at)
                response = Response(
                    status,
                    headers=headers,
                    request=ask.shown(),
                    content=reply.body if reply is not None else None,
                    feed=feed if reply is None else None,
                    elapsed_s=loop.time() - began,
                )
                return Taken(response=response, data=data, retries=tried - 1)
            decision = retry.decide(
                error,
                counted=tried,
                attempts=ask.max_retries + 1,  # type: ignore[arg-type]  # may be inf
                max_wait_s=LONGEST_STATED_S,
                others_succeed=False,
                now=datetime.now(UTC),
                rng=self._rng,
            )
            held = lane.failed(cost, error, decision, sent_at) if lane else False
            if self.closed or not isinstance(decision, retry.RetryAfter):
                raise _translated(error, ask, reply) from error
            if not held:
                await asyncio.sleep(decision.seconds or retry.FIRST_BACKOFF_S)

    def _check_open(self, ask: Ask) -> None:
        if self.closed:
            raise errors.APIConnectionError(request=ask.shown()) from RuntimeError("the client has been closed")

    async def _whole(self, wire: Wire, ask: Ask) -> Reply:
        deadline_s = ask.read_s if ask.read_s is not None else NEVER_S
        if deadline_s > SOON_S:
            reply = await wire.exchange(ask.method, ask.url, ask.body, deadline_s, ask.head)
        else:
            try:
                async with asyncio.timeout(deadline_s):
                    reply = await wire.exchange(ask.method, ask.url, ask.body, SOON_S, ask.head)
            except TimeoutError:
                raise TooLate(f"no whole answer within {deadline_s:.3g} s") from None
        return self._keyless(reply)

    async def _begin(self, wire: Wire, ask: Ask, feed: Feed) -> Reply | None:
        """Wait for the head of a stream: None, and the feed goes on; or a whole reply that is no stream."""
        task = asyncio.ensure_future(
            wire.exchange(
                ask.method, ask.url, ask.body, NEVER_S, ask.head, on_head=feed.head, on_read=feed.piece
            )
        )  # fmt: skip
        feed.begin(task, ask.read_s)
        try:
            await asyncio.wait([task, cast("asyncio.Future[Any]", feed.started)], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            feed.unwatch()
            task.cancel()
            with suppress(asyncio.CancelledError, Problem):
                await task
            raise
        if feed.started.done():
            return None
        feed.unwatch()
        if task.cancelled():
            if feed.late:
                raise feed.lateness
            raise asyncio.CancelledError
        return self._keyless(task.result())

    def _when_ended(
        self, feed: Feed, lane: Lane | None, priced: Priced | None, cost: Cost | None, sent_at: float
    ) -> None:
        """Book what a stream used when it has ended, and tell its reader."""

        def ended(task: asyncio.Task[Reply]) -> None:
            gone = feed.lateness if feed.late else None
            error: BaseException | None = gone if task.cancelled() else task.exception()
            if lane and priced:
                if error is None and not task.cancelled():
                    reply = task.result()
                    lane.answered(priced, cost, reply.headers, _last_usage(reply.body), sent_at)
                else:
                    lane.unknown(cost)
            feed.finish(error if isinstance(error, Exception) else None)

        feed.task.add_done_callback(ended)

    def _keyless(self, reply: Reply) -> Reply:
        key = self.endpoint.key
        if key and reply.status != 200:
            reply.body = reply.body.replace(key.encode(), b"(key removed)")
        return reply

    # -- loops ----------------------------------------------------------------------------------

    async def _get(self, loop: asyncio.AbstractEventLoop) -> _Here:
        if (here := self._here.get(loop)) is not None:
            return here
        for other in list(self._here):
            if other.is_closed():
                self._here.pop(other, None)
        here = self._here[loop] = await _Here.open(self.endpoint)
        return here

    def _lane(self, here: _Here, model: str) -> Lane:
        lane = here.lanes.get(model)
        if lane is None:
            lane = here.lanes[model] = Lane(model, self.endpoint, environment.state_folder())
        return lane

    async def aclose(self) -> None:
        """Close the connections of this loop, and soon those of others."""
        here = self._here.pop(asyncio.get_running_loop(), None)
        self.close_soon()
        if here is not None:
            await here.aclose()

    def close_soon(self) -> None:
        """Close all connections without waiting: for who is in no loop, or about to be forgotten."""
        self.closed = True
        elsewhere, self._here = self._here, {}
        for loop, here in elsewhere.items():
            # After a fork they are the parent's: keep off.
            if here.pid == os.getpid() and loop.is_running():
                with suppress(RuntimeError):  # it ended meanwhile
                    loop.call_soon_threadsafe(_close, loop, here)

    def __del__(self) -> None:
        """Nobody has it any more: neither the client that opened it nor a copy."""
        with suppress(Exception):  # at the end of the interpreter anything may be missing
            if not self.closed:
                self.close_soon()


def _close(loop: asyncio.AbstractEventLoop, here: _Here) -> None:
    task = loop.create_task(here.aclose())
    _closing.add(task)
    task.add_done_callback(_closing.discard)


_closing: set[asyncio.Task[None]] = set()  # a loop alone does not keep its tasks


# -- answers and errors -----------------------------------------------------------------------------


def _decoded(reply: Reply, ask: Ask) -> Any:
    """The JSON of an answer. Raises Problem for an error status, or where JSON was due and is not there."""
    if not 200 <= reply.status < 300:
        raise read_error(reply)
    if not ask.is_json:
        return None
    try:
        return orjson.loads(reply.body)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(reply.body)  # takes NaN and lone surrogates, too
    except ValueError:
        raise BadAnswer(f"status {reply.status} without JSON: {excerpt(reply.body)}", code="not_json") from None


def _translated(error: Problem, ask: Ask, reply: Reply | None) -> errors.APIError:
    """The SDK's error for one of cbatch's."""
    request = ask.shown()
    if reply is not None:
        response = Response(reply.status, headers=reply.headers, request=request, content=reply.body)
        if isinstance(error, BadAnswer):
            return errors.APIResponseValidationError(response, response.text, message=f"{error}")
        return error_of(response)
    if isinstance(error, TooLate):
        return errors.APITimeoutError(request)
    return errors.APIConnectionError(request=request)


def error_of(response: Response) -> errors.APIStatusError:
    """The typed error in a response, in the SDK's words."""
    text = response.text.strip()
    body: object = text
    try:
        body = json.loads(text)
        message = f"Error code: {response.status_code} - {body}"
    except ValueError:
        message = text or f"Error code: {response.status_code}"
    return errors.status_error(message, response=response, body=body)


def broken(error: Exception, request: Request) -> Exception:
    """The SDK's error for a stream that broke."""
    if isinstance(error, TooLate):
        return errors.APITimeoutError(request)
    if isinstance(error, NoAnswer | BadAnswer):
        return errors.APIConnectionError(request=request)
    return error


def _last_usage(body: bytes) -> Mapping[str, Any]:
    """The last chunk of a stream that tells what it used."""
    at = body.rfind(b'"usage"')
    start = body.rfind(b"data:", 0, at)
    if at < 0 or start < 0:
        return {}
    try:
        found = orjson.loads(body[start + 5 :].split(b"\n", 1)[0])
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}
