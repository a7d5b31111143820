"""The account's limits, kept together with all other requests of the key: what one model's requests wait for.

The parts of `send` and `fleet` that are about the account; how often to try is the SDK's own affair.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any
from weakref import finalize

from cbatch import catalog, ratelimits
from cbatch.account import Account, name_of
from cbatch.errors import APIConnectionError, APIError, APIStatusError, APIUnreachableError, RateLimitError
from cbatch.fleet import UNKNOWN_CEILING_TOKENS
from cbatch.gate import Gate
from cbatch.pace import Cost, NeverFits, Pacer, Used
from cbatch.render import BYTES_PER_TOKEN, DEFAULT_RESERVE_TOKENS, PREAMBLE_TOKENS
from cbatch.replies import read_time_info, read_usage
from cbatch.retry import Decision, RetryAfter
from cbatch.schema import Completion, Request
from cbatch.send import HEADERS_S
from cbatch.sizes import Sizes
from cbatch.transport import Endpoint

PATIENCE_S = 90.0  # more than the quota of a minute ever makes anybody wait who is first in the queue
LOOK_AGAIN_S = 5.0  # while it waits


class Lane:
    """The waiting room of one model in one loop."""

    def __init__(self, model: str, endpoint: Endpoint, accounts: Path | None) -> None:
        """`accounts` is the folder of the budgets that all processes of a key share; None shares nothing."""
        self._loop = asyncio.get_running_loop()
        self._account: Account | None = None
        if accounts is not None:
            with suppress(OSError):  # a home that cannot be written to: this process keeps its own
                self._account = Account(accounts / name_of(endpoint.base_url, endpoint.key, model))
        with self._account or nullcontext():
            floats: Any = self._account.floats if self._account else None
            pacer = Pacer(now=self._loop.time(), floats=floats)
        self._gate = Gate(pacer, account=self._account)
        if self._account is not None:
            # Not before: what is under way when a client is closed still books what it used, and timers ring.
            finalize(self._gate, self._account.close).atexit = False
        self._entering: set[asyncio.Task[None]] = set()
        card = catalog.card(model)
        ceiling = card.max_output_tokens if card else UNKNOWN_CEILING_TOKENS
        self._default = min(DEFAULT_RESERVE_TOKENS, ceiling)
        self._sizes = Sizes(auto=False, ceiling=ceiling, default=DEFAULT_RESERVE_TOKENS)
        self._model = model
        self._headers_read_at = float("-inf")

    def close(self) -> None:
        """Nobody need wait any more."""
        for entering in self._entering:
            entering.cancel()

    def request(self, body: bytes, limit_tokens: int | None, answers: int) -> Request:
        """What the pacer has to know of a request; `answers` is its `n`."""
        tokens = len(body) // BYTES_PER_TOKEN + PREAMBLE_TOKENS
        return Request(
            model=self._model,
            body=body,
            digest=b"",
            prompt_tokens_estimate=tokens,
            reserve_tokens=tokens + (limit_tokens or self._default) * answers,
        )

    async def enter(self, request: Request) -> Cost | None:
        """Wait for a permit. None: it never fits, or not for long, so the server shall say so itself.

        Raises APIConnectionError if the client is closed meanwhile.
        """
        cost = self._sizes.cost(request)
        gate = self._gate
        try:
            if not len(gate) and gate.pacer.is_free(self._loop.time()):
                await gate.enter(cost)  # at once
                return cost
            if self._far_off(cost):
                return None
            return cost if await self._patiently(cost) else None
        except NeverFits:
            return None

    async def _patiently(self, cost: Cost) -> bool:
        """Wait in the queue; False: it turned out to be too long. Raises NeverFits."""
        entering = asyncio.ensure_future(self._gate.enter(cost))
        self._entering.add(entering)
        try:
            while not entering.done():
                await asyncio.wait([entering], timeout=LOOK_AGAIN_S)
                if not entering.done() and self._far_off(cost):
                    entering.cancel()
                    return False
        except BaseException:  # cancelled, or never fits
            if not entering.cancel() and not entering.cancelled() and entering.exception() is None:
                self._gate.never_sent(cost)  # it was admitted meanwhile
            raise
        finally:
            self._entering.discard(entering)
        if entering.cancelled():
            raise APIConnectionError("the client was closed while the request waited for quota")
        entering.result()
        return True

    def _far_off(self, cost: Cost) -> bool:
        """Whether not even the first in the queue goes soon: the quota of an hour or a day is used up."""
        now = self._loop.time()
        with self._account or nullcontext():
            ready = self._gate.pacer.ready_at(now, cost)
        return now + PATIENCE_S < ready < float("inf")

    def answered(
        self,
        request: Request,
        cost: Cost | None,
        headers: Mapping[str, str],
        answer: Mapping[str, Any],
        sent_at: float,
    ) -> None:
        """An answer came, to what was sent at that time of the loop."""
        now = self._loop.time()
        found = _completion(answer)
        if cost is not None:
            self._sizes.learn(request, found, max(now - sent_at, 0.0), cut=False)
            self._gate.leave(cost, self._sizes.used(found))
        if now - self._headers_read_at >= HEADERS_S:
            self._headers_read_at = now
            if words := ratelimits.windows_in(headers):
                self._gate.listen(words)
        self._gate.pacer.succeeded(sent_at)

    def unknown(self, cost: Cost | None) -> None:
        """It ended, and what it used is not known."""
        if cost is not None:
            self._gate.leave(cost, None)

    def failed(self, cost: Cost | None, error: APIError, decision: Decision, sent_at: float) -> bool:
        """It failed; whether the whole account waits now, and so the next try with it."""
        if cost is None:
            return False
        if isinstance(error, RateLimitError) and error.code != "queue_exceeded":
            kind, period = ratelimits.refused_window(error.code, str(error))
            return self._gate.refused(
                cost,
                sent_at,
                kind=kind,
                period=period,
                stated_s=decision.seconds or None if isinstance(decision, RetryAfter) else None,
                full_in_s=ratelimits.reset_s(error.headers),
                words=ratelimits.windows_in(error.headers),
            )
        if isinstance(error, RateLimitError | APIUnreachableError):
            self._gate.never_sent(cost)
        else:
            self._gate.leave(cost, Used(0, 0) if isinstance(error, APIStatusError) else None)
        return False


def _completion(answer: Mapping[str, Any]) -> Completion:
    """The part of an answer that says what it used."""
    return Completion(
        text=None,
        reasoning=None,
        tool_calls=None,
        finish_reason=None,
        usage=read_usage(answer.get("usage")),
        time_info=read_time_info(answer.get("time_info")),
        request_id=None,
        served_model=None,
        system_fingerprint=None,
    )
