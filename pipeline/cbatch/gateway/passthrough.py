"""Requests to an upstream that speaks the client's own protocol: bytes in, bytes out, untouched.

Not paced: the limits of such a provider are its own, and it tells them to the client itself. What it answers is
listened to as it passes, for the counters and the log.
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import aiohttp
import orjson
from aiohttp import web

from cbatch.gateway.config import Provider, Route
from cbatch.gateway.exchange import Exchange
from cbatch.gateway.faults import Problem, Refused
from cbatch.gateway.listening import Listener
from cbatch.library import Answer, Metrics
from cbatch.measure import ratio
from cbatch.replies import Reply, read_error
from cbatch.schema import TimeInfo, Usage

CONNECT_S = 10.0
SILENCE_S = 600.0  # a model that thinks says nothing for minutes
# What a client proves itself with: passed on only where nobody else's key is meant.
_CREDENTIALS = frozenset({"authorization", "api-key", "x-api-key", "x-goog-api-key", "cookie"})
# RFC 9110, 7.6.1, and what is made anew for the next connection.
_OWN = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding",
    "upgrade", "host", "content-length", "x-cbatch-provider",
})  # fmt: skip
_KEPT_BYTES = 4_000_000  # of an answer, for the log
_ERROR_BYTES = 20_000  # of an answer with an error status, for its message


class Passthrough:
    """Forwards requests; `keys` finds the key of a provider, None where there is none.

    `forwards_client_keys`: what a client authorizes itself with goes on to a provider that has no `key_env`. Not
    where the gateway has a key of its own for its clients, because that is what they send then.
    """

    def __init__(
        self, session: aiohttp.ClientSession, keys: Callable[[Provider], str | None], forwards_client_keys: bool
    ) -> None:
        self._session = session
        self._keys = keys
        self._forwards = forwards_client_keys

    async def forward(
        self, request: web.Request, exchange: Exchange, route: Route, raw: bytes, body: Mapping[str, Any]
    ) -> web.StreamResponse:
        """The upstream's answer, as it comes. The body is as it came, too, but for a model that is mapped.

        Raises Refused, and ConnectionResetError where the answer breaks off after its beginning.
        """
        dropped = _OWN | _CREDENTIALS
        headers = {name: value for name, value in request.headers.items() if name.lower() not in dropped}
        if route.model != body.get("model"):
            raw = orjson.dumps({**body, "model": route.model})
            headers = {name: value for name, value in headers.items() if name.lower() != "content-encoding"}
        if "Accept-Encoding" not in request.headers:  # or the session would ask for one that the client does not know
            headers["Accept-Encoding"] = "identity"
        url = f"{route.provider.base_url}/{exchange.route.lstrip('/')}"
        headers |= (credentials := self._credentials(route.provider, request.headers))
        line = exchange.timeline
        line.attempts, line.first_sent = 1, time.perf_counter()
        line.sent = line.first_sent
        try:
            upstream = await self._session.post(
                url, data=raw, headers=headers, params=request.query, allow_redirects=False
            )
        except (aiohttp.ClientError, TimeoutError) as exc:
            raise Refused(_unanswered(route.provider, exc)) from exc
        async with upstream:
            passing = _Passing(exchange, upstream)
            try:
                response = await passing.on(request)
            except Refused as refused:
                exchange.outcome, exchange.problem = "failed", _named(refused.problem, route.provider, credentials)
                exchange.status = exchange.problem.status
                raise ConnectionResetError(exchange.problem.message) from refused  # a cut answer must not look whole
            finally:
                passing.take_down(route.model)
        if (problem := passing.problem) is not None:
            exchange.outcome, exchange.problem = "failed", _named(problem, route.provider, credentials)
            exchange.status = problem.status
        return response

    async def models(self, provider: Provider) -> list[dict[str, Any]]:
        """The models of such a provider. Raises Refused."""
        headers = self._credentials(provider, {})
        try:
            async with self._session.get(
                f"{provider.base_url}/models",
                headers={**headers, "Accept-Encoding": "identity"},
                allow_redirects=False,
            ) as upstream:
                body = await upstream.read()
        except (aiohttp.ClientError, TimeoutError) as exc:
            raise Refused(_unanswered(provider, exc)) from exc
        if upstream.status != 200:
            problem = _refusal(upstream.status, body)
            raise Refused(_named(problem, provider, headers))
        try:
            return [entry for entry in orjson.loads(body)["data"] if isinstance(entry["id"], str)]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            message = f"upstream {provider.name}: what it answers at /models is no list of models"
            raise Refused(Problem(status=502, message=message, code="invalid_response")) from None

    def _credentials(self, provider: Provider, headers: Mapping[str, str]) -> dict[str, str]:
        """The headers that authorize a request. Raises Refused where the provider's key is missing."""
        if key := self._keys(provider):
            return {"Authorization": f"Bearer {key}"}
        if provider.key_env is not None:  # the client's own key is not meant for it
            raise Refused(
                Problem(
                    status=502,
                    message=f"provider {provider.name}: the environment variable {provider.key_env} is not set where "
                    "the gateway runs; it holds the key of this provider",
                    code="provider_key_missing",
                )
            )
        if not self._forwards:
            return {}
        return {name: value for name, value in headers.items() if name.lower() in _CREDENTIALS}


class _Passing:
    """One answer on its way through, and what is noticed of it."""

    def __init__(self, exchange: Exchange, upstream: aiohttp.ClientResponse) -> None:
        self.problem: Problem | None = None
        self._exchange, self._upstream = exchange, upstream
        self._kept = bytearray()
        self._room = 0
        self._listener = None
        if upstream.headers.get("Content-Encoding", "identity").lower() != "identity":
            return
        self._room = _KEPT_BYTES if exchange.keeps else _ERROR_BYTES if upstream.status >= 300 else 0
        is_stream = upstream.content_type == "text/event-stream"
        if upstream.status < 300 and (is_stream or "json" in upstream.content_type):
            self._listener = Listener(is_stream=is_stream)

    async def on(self, request: web.Request) -> web.StreamResponse:
        """Send it to the client. Raises Refused where the upstream stops before its end."""
        exchange, upstream, listener = self._exchange, self._upstream, self._listener
        exchange.status = upstream.status
        # Pairs, and no dict: a header may come twice.
        told = [(name, value) for name, value in upstream.headers.items() if name.lower() not in _OWN]
        response = web.StreamResponse(status=upstream.status, headers=told)
        await response.prepare(request)
        exchange.first_out = time.perf_counter()
        async with aclosing(self._pieces()) as pieces:
            async for piece in pieces:
                now = exchange.timeline.done = time.perf_counter()
                await response.write(piece)
                if (room := self._room - len(self._kept)) > 0:
                    self._kept += piece[:room]
                if listener is not None:
                    listener.feed(piece, now)
        await response.write_eof()
        if upstream.status >= 300:
            self.problem = _refusal(upstream.status, bytes(self._kept))
        elif listener is not None:
            listener.close(time.perf_counter())
            self.problem = listener.problem
        return response

    async def _pieces(self) -> AsyncGenerator[bytes]:
        """What comes; a generator, so that a client that hangs up is not taken for a failure of the upstream."""
        try:
            async for piece in self._upstream.content.iter_any():
                yield piece
        except (aiohttp.ClientError, TimeoutError) as exc:
            raise Refused(Problem(status=502, message=_why(exc), code="upstream_error")) from exc

    def take_down(self, model: str) -> None:
        """What the exchange keeps of it, also of one that broke off."""
        exchange, listener, line = self._exchange, self._listener, self._exchange.timeline
        if exchange.keeps and self._kept:
            exchange.upstream.append(self._kept.decode("utf-8", "replace"))
        if listener is None:
            return
        sent, first, done = line.sent, listener.first, line.done
        usage = listener.usage or Usage()
        latency_s = done - sent if done is not None and sent is not None else None
        unknown: dict[str, Any] = dict.fromkeys(Metrics.__slots__)
        metrics = Metrics(**{
            **unknown,
            "attempts": 1,
            "latency_s": latency_s,
            "ttft_s": first - sent if first is not None and sent is not None else None,
            "e2e_tokens_per_s": ratio(usage.completion_tokens, latency_s),
        })  # fmt: skip
        exchange.answer = Answer(
            text=None,
            reasoning=None,
            tool_calls=None,
            finish_reason=None,
            usage=usage,
            time_info=TimeInfo(),
            metrics=metrics,
            cost_usd=None,
            model=model,
            served_model=listener.model,
            request_id=listener.request_id,
            system_fingerprint=None,
        )


def _refusal(status: int, body: bytes) -> Problem:
    error = read_error(Reply(status, {}, body))
    return Problem(status=status, message=str(error).removeprefix(f"HTTP {status}: "), type=error.type, code=error.code)


def _unanswered(provider: Provider, exc: Exception) -> Problem:
    return Problem(status=502, message=f"upstream {provider.name}: {_why(exc)}", code="upstream_error")


def _named(problem: Problem, provider: Provider, credentials: Mapping[str, str]) -> Problem:
    """With the provider's name in its message, and without the key, which some repeat in their answer."""
    message = problem.message
    for value in credentials.values():
        for secret in {value, value.removeprefix("Bearer ")}:
            message = message.replace(secret, "(key removed)") if secret else message
    return replace(problem, message=f"upstream {provider.name}: {message}")


def _why(exc: Exception) -> str:
    """In one line and a user's words: the library's have a status and line feeds of its own."""
    match exc:
        case aiohttp.ClientConnectorError():
            inner = getattr(exc, "os_error", None) or getattr(exc, "certificate_error", None)
            return f"cannot connect to {exc.host}:{exc.port}: {_os_words(inner)}"
        case aiohttp.ConnectionTimeoutError():
            return f"no connection within {CONNECT_S:g} s"
        case TimeoutError():
            return f"it said nothing for {SILENCE_S:g} s"
        case aiohttp.ClientPayloadError():
            return "its answer breaks off"
        case aiohttp.ServerDisconnectedError():
            return "it closed the connection without an answer"
        case aiohttp.InvalidURL():
            return "its base_url is not an address that can be asked"
        case aiohttp.ClientResponseError():
            return "its answer is not valid HTTP"
        case OSError():
            return f"the connection failed: {_os_words(exc)}"
    return f"the connection failed ({type(exc).__name__})"


def _os_words(exc: object) -> str:
    """What the system calls it; asyncio's own words for a refused connection are a call and a tuple."""
    if isinstance(exc, OSError) and exc.errno and exc.errno > 0 and not isinstance(exc, ssl.SSLError):
        return os.strerror(exc.errno)
    found = getattr(exc, "verify_message", None) or getattr(exc, "strerror", None) or type(exc).__name__
    return " ".join(str(found).split())
