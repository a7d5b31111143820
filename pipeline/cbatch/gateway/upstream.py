"""One provider's chat completions, under the account's limits and with a batch's retries."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

import orjson

from cbatch.client import OnChunk, OnReply
from cbatch.errors import APIError, JobError
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
        self._refusal: Problem | None = None
        self._refused_at = 0.0

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
        while True:
            body = chat if isinstance(chat, bytes) else orjson.dumps(chat)
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
        patience = _Patience(self.client, self._patience_s)
        try:
            async with self._places, patience:
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


class _Patience:
    """Ends a request that waits too long for the account's limits; one that is on the wire is left alone."""

    def __init__(self, client: Client, patience_s: float) -> None:
        self._client = client
        self._patience_s = patience_s
        self._loop = asyncio.get_running_loop()
        self._timeout = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        self._task = asyncio.current_task()
        self._since = self._loop.time()
        self._why = ("a permit", 0.0)
        await self._timeout.__aenter__()
        self._timer = self._loop.call_later(min(LOOK_S, self._patience_s), self._look)

    async def __aexit__(self, *raised: Any) -> None:
        self._timer.cancel()
        waited_s = self._loop.time() - self._since
        try:
            await self._timeout.__aexit__(*raised)
        except TimeoutError:
            raise Refused(waited(self._why[0], waited_s, self._why[1])) from None

    def _look(self) -> None:
        """Not by one timer at the end: a limit of the day is known at once to be too far away."""
        waits = self._client.waiting_for()
        left_s = self._since + self._patience_s - self._loop.time()
        if waits is not None and self._task not in self._client.activity.on_the_wire:
            self._why = waits
            if left_s <= 0 or left_s + self._patience_s < waits[1] < math.inf:
                self._timeout.reschedule(self._loop.time())
                return
        self._timer = self._loop.call_later(LOOK_S, self._look)


class Upstreams:
    """The providers in use: each is opened when it is first asked, all are closed at the end."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._opening = asyncio.Lock()
        self._open: dict[str, tuple[object, Upstream]] = {}

    def all(self) -> list[Upstream]:
        """Those that are open."""
        return [upstream for _, upstream in self._open.values()]

    async def get(self, name: str, settings: object, make: Callable[[], Upstream]) -> Upstream:
        """The upstream of this name; made anew where its settings have changed."""
        known = self._open.get(name)
        if known is not None and known[0] == settings:
            return known[1]
        async with self._opening:
            known = self._open.get(name)
            if known is not None and known[0] == settings:
                return known[1]
            made = make()
            await self._stack.enter_async_context(made.client)  # the old one still has requests: closed at the end
            self._open[name] = settings, made
            return made
