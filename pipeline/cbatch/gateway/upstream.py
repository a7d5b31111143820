"""One provider's chat completions, under the account's limits and with a batch's retries."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import orjson

from cbatch.client import OnChunk, OnReply
from cbatch.errors import APIError, JobError
from cbatch.gateway.config import Provider
from cbatch.gateway.faults import Problem, Refused, as_overflow, failed, problem_of, waited
from cbatch.library import Answer, Client
from cbatch.responses import fallback
from cbatch.schema import Failure, Timeline

LOOK_S = 0.5  # how often who waits for a permit is looked at
REMEMBERED_S = 2.0  # a refused key stays refused: Codex asks six times


class Upstream:
    """A client, how long a request may wait for its limits (s), and how many may be on the way at once."""

    def __init__(self, client: Client, patience_s: float, concurrency: int) -> None:
        self.client = client
        self._patience_s = patience_s
        self._places = asyncio.Semaphore(concurrency)
        self._queued = 0
        self.asked = 0  # requests that are not over: on the wire, waiting, or before a retry
        self._refusal: Problem | None = None
        self._refused_at = 0.0

    @property
    def waiting(self) -> int:
        """How many requests wait for a place, or for the account's limits."""
        return self._queued + self.client.waiting

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        self._queued += 1
        try:
            await self._places.acquire()
        finally:
            self._queued -= 1
        try:
            yield
        finally:
            self._places.release()

    async def ask(
        self,
        chat: dict[str, Any] | bytes,
        *,
        model: str,
        limit: int | None,
        timeline: Timeline,
        on_chunk: OnChunk | None = None,
        on_reply: OnReply | None = None,
    ) -> Answer:
        """The answer. A dict that the upstream refuses is relaxed and sent again, bytes go as they are.

        Raises Refused.
        """
        self.asked += 1
        try:
            return await self._relaxed(chat, model, limit, timeline, on_chunk, on_reply)
        finally:
            self.asked -= 1

    async def _relaxed(
        self,
        chat: dict[str, Any] | bytes,
        model: str,
        limit: int | None,
        timeline: Timeline,
        on_chunk: OnChunk | None,
        on_reply: OnReply | None,
    ) -> Answer:
        while True:
            body = chat if isinstance(chat, bytes) else written(chat)
            try:
                return await self._ask(body, model, limit, timeline, on_chunk, on_reply)
            except Refused as refused:
                problem = refused.problem
                relaxed = None
                if isinstance(chat, dict) and problem.status in (400, 422):
                    relaxed = fallback(chat, problem.status, problem.error())
                if relaxed is None:
                    raise
                chat = relaxed

    async def _ask(
        self,
        body: bytes,
        model: str,
        limit: int | None,
        timeline: Timeline,
        on_chunk: OnChunk | None,
        on_reply: OnReply | None,
    ) -> Answer:
        if self._refusal is not None and time.perf_counter() - self._refused_at < REMEMBERED_S:
            raise Refused(self._refusal)
        patience = _Patience(self.client, model, self._patience_s)
        try:
            async with patience, self._place():
                patience.has_place()
                outcome = await self.client.send(
                    body, model=model, limit=limit, on_chunk=on_chunk, on_reply=on_reply, timeline=timeline
                )
        except APIError as exc:
            if self.client.is_closing:
                raise Refused(Problem(status=503, message="the gateway was stopped", code="stopped")) from exc
            problem = as_overflow(problem_of(exc, datetime.now(UTC)))
            if problem.status == 401:
                self._refusal, self._refused_at = problem, time.perf_counter()
            raise Refused(problem) from exc
        except JobError as exc:  # a request that JSON cannot carry
            raise Refused(Problem(status=400, message=str(exc), code="invalid_request")) from exc
        if isinstance(outcome, Failure):
            raise Refused(as_overflow(failed(outcome, datetime.now(UTC)))) from outcome.error
        self._refusal = None
        return outcome


def written(chat: dict[str, Any]) -> bytes:
    """The body to send. Raises Refused for one that JSON carries to us and not from us: 1,024 levels against 254."""
    try:
        return orjson.dumps(chat)
    except TypeError as exc:
        message = f"the request cannot be sent on: {exc}"
        raise Refused(Problem(status=400, message=message, code="invalid_json")) from None


class _Patience:
    """Ends a request that waits too long, for a place or for the account's limits; on the wire it is left alone."""

    def __init__(self, client: Client, model: str, patience_s: float) -> None:
        self._client = client
        self._model = model
        self._patience_s = patience_s
        self._has_place = False
        self._loop = asyncio.get_running_loop()
        self._timeout = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        self._task = asyncio.current_task()
        self._since = self._loop.time()
        self._why: tuple[str, float] | None = None
        await self._timeout.__aenter__()
        self._timer = self._loop.call_later(min(LOOK_S, self._patience_s), self._look)

    async def __aexit__(self, *raised: Any) -> None:
        self._timer.cancel()
        waited_s = self._loop.time() - self._since
        try:
            await self._timeout.__aexit__(*raised)
        except TimeoutError:
            if self._why is not None:
                raise Refused(waited(*self._why, waited_s)) from None
            what = "an answer" if self._has_place else "one of the `concurrency` places of the gateway"
            message = f"waited {waited_s:.0f} s for {what}"
            raise Refused(Problem(status=503, message=message, code="busy")) from None

    def has_place(self) -> None:
        """It has one of the places; from now on it waits for limits, or before a retry."""
        self._has_place = True

    def _look(self) -> None:
        """Not by one timer at the end: a limit of the day is known at once to be too far away."""
        left_s = self._since + self._patience_s - self._loop.time()
        if self._task not in self._client.activity.on_the_wire:
            waits = self._why = self._client.waiting_for(self._model) if self._has_place else None
            if left_s <= 0 or (waits is not None and left_s + self._patience_s < waits[1] < math.inf):
                self._timeout.reschedule(self._loop.time())
                return
        self._timer = self._loop.call_later(LOOK_S, self._look)


class Upstreams:
    """The providers in use: each is opened when it is first asked, and closed when it is replaced, or at the end."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._opening = asyncio.Lock()
        self._open: dict[str, tuple[Provider, Upstream]] = {}
        self._replaced: list[Upstream] = []  # that still have requests

    def all(self) -> list[Upstream]:
        """Those that are open."""
        return [upstream for _, upstream in self._open.values()]

    async def get(self, provider: Provider, make: Callable[[], Upstream]) -> Upstream:
        """The upstream of a provider; made anew where the file says something else of it by now."""
        known = self._open.get(provider.name)
        if known is not None and known[0] == provider:
            return known[1]
        async with self._opening:
            known = self._open.get(provider.name)
            if known is not None and known[0] == provider:
                return known[1]
            made = make()
            await self._stack.enter_async_context(made.client)
            if known is not None:
                self._replaced.append(known[1])
            self._open[provider.name] = provider, made
            for old in [one for one in self._replaced if not one.asked]:
                self._replaced.remove(old)
                await old.client.aclose()
            return made
