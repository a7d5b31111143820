"""The account's limits, kept together with all other requests of the key: what one model's requests wait for.

The parts of `send` and `fleet` that are about the account; how often to try is the SDK's own affair.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from cbatch import catalog, ratelimits
from cbatch.account import Account, name_of
from cbatch.errors import APIError, APIStatusError, APIUnreachableError, RateLimitError
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


class Lane:
    """The waiting room of one model in one loop."""

    def __init__(self, model: str, endpoint: Endpoint, accounts: Path | None) -> None:
        """`accounts` is the folder of the budgets that all processes of a key share; None shares nothing."""
        self._loop = asyncio.get_running_loop()
        self._account: Account | None = None
        if accounts is not None:
            try:
                self._account = Account(accounts / name_of(endpoint.base_url, endpoint.key, model))
            except OSError:
                self._account = None  # a home that cannot be written to: this process keeps its own
        with self._account or nullcontext():
            floats: Any = self._account.floats if self._account else None
            pacer = Pacer(now=self._loop.time(), floats=floats)
        self._gate = Gate(pacer, account=self._account)
        card = catalog.card(model)
        ceiling = card.max_output_tokens if card else UNKNOWN_CEILING_TOKENS
        self._default = min(DEFAULT_RESERVE_TOKENS, ceiling)
        self._sizes = Sizes(auto=False, ceiling=ceiling, default=DEFAULT_RESERVE_TOKENS)
        self._model = model
        self._headers_read_at = float("-inf")

    def close(self) -> None:
        """Give the shared budget back."""
        if self._account is not None:
            self._account.close()
            self._account = None

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
        """Wait for a permit. None: by what is known it never fits, so the server shall say so itself."""
        cost = self._sizes.cost(request)
        try:
            await self._gate.enter(cost)
        except NeverFits:
            return None
        return cost

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
