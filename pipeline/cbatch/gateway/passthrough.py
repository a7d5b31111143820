"""Requests to an upstream that speaks the client's own protocol: bytes in, bytes out, untouched.

Not paced: the limits of such a provider are its own, and it tells them to the client itself.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import aiohttp
import orjson
from aiohttp import web

from cbatch.gateway.config import Provider, Route
from cbatch.gateway.exchange import Exchange
from cbatch.gateway.faults import Problem, Refused

CONNECT_S = 10.0
SILENCE_S = 600.0  # a model that thinks says nothing for minutes
# RFC 9110, 7.6.1, and what is made anew for the next connection.
_OWN = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding",
    "upgrade", "host", "content-length", "authorization", "x-cbatch-provider",
})  # fmt: skip
_KEPT_BYTES = 4_000_000  # of an answer, for the log


class Passthrough:
    """Forwards requests; `keys` finds the key of a provider, None where the client's own is passed on."""

    def __init__(self, session: aiohttp.ClientSession, keys: Any) -> None:
        self._session = session
        self._key = keys

    async def forward(
        self, request: web.Request, exchange: Exchange, route: Route, raw: bytes, body: Mapping[str, Any]
    ) -> web.StreamResponse:
        """The upstream's answer, as it comes. The body is as it came, too, but for a model that is mapped."""
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _OWN}
        if route.model != body.get("model"):
            raw = orjson.dumps({**body, "model": route.model})
            headers = {name: value for name, value in headers.items() if name.lower() != "content-encoding"}
        url = f"{route.provider.base_url}/{exchange.route.lstrip('/')}"
        headers |= self._authorization(route.provider, request)
        kept: list[bytes] = []
        try:
            async with self._session.post(url, data=raw, headers=headers, params=request.query) as upstream:
                exchange.status = upstream.status
                told = {name: value for name, value in upstream.headers.items() if name.lower() not in _OWN}
                response = web.StreamResponse(status=upstream.status, headers=told)
                await response.prepare(request)
                exchange.first_out = time.perf_counter()
                async for piece in upstream.content.iter_any():
                    if exchange.keeps and sum(map(len, kept)) < _KEPT_BYTES:
                        kept.append(piece)
                    await response.write(piece)
                await response.write_eof()
        except (aiohttp.ClientError, TimeoutError) as exc:
            problem = Problem(status=502, message=f"upstream {route.provider.name}: {exc or 'no answer in time'}")
            exchange.outcome, exchange.problem = "failed", problem
            if exchange.first_out is None:
                raise Refused(problem) from exc
            raise ConnectionResetError(str(exc)) from exc  # cut here, too: a cut answer must not look whole
        finally:
            if kept:
                exchange.upstream.append(b"".join(kept).decode("utf-8", "replace"))
        if upstream.status >= 400:
            exchange.outcome = "failed"
        return response

    async def models(self, provider: Provider) -> list[dict[str, Any]]:
        """The models of such a provider. Raises Refused."""
        headers = self._authorization(provider, None)
        try:
            async with self._session.get(f"{provider.base_url}/models", headers=headers) as upstream:
                answer = orjson.loads(await upstream.read())
                if upstream.status == 200:
                    return [entry for entry in answer["data"] if isinstance(entry.get("id"), str)]
                status = upstream.status
        except (aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as exc:
            raise Refused(Problem(status=502, message=f"upstream {provider.name}: no list of models: {exc}")) from exc
        raise Refused(Problem(status=status, message=f"upstream {provider.name}: HTTP {status}"))

    def _authorization(self, provider: Provider, request: web.Request | None) -> dict[str, str]:
        key = self._key(provider)
        if key:
            return {"Authorization": f"Bearer {key}"}
        own = request.headers.get("Authorization") if request is not None else None
        return {"Authorization": own} if own else {}
