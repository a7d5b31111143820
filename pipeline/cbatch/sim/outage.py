"""The whole service gone for a while, once: every connection is closed, and new requests are refused."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web

from .completions import Completions, refusal_response
from .config import SimConfig
from .wire import UNAVAILABLE

__all__ = ["Outage"]

_MANY = 20_000  # connections remembered before those that are closed are looked for and forgotten

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Outage:
    """Begins `outage_after_s` after the first chat request since the start or the last reset.

    By a timer of the event loop: it closes connections on which nothing is sent, too.
    """

    def __init__(self, config: SimConfig, completions: Completions) -> None:
        self._after_s = config.outage_after_s or 0.0
        self._for_s = config.outage_for_s
        self._answers_503 = config.outage_kind == "503"
        self._completions = completions
        self._timer: asyncio.TimerHandle | None = None
        self._down = False
        self._over = False
        self._connections: set[web.RequestHandler] = set()

    def forget(self) -> None:
        """As after a start: it will happen again."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        self._down = self._over = False

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Stands before every route."""
        if self._over or request.path.startswith("/_sim/"):  # whoever watches can watch an outage, too
            return await handler(request)
        if self._down:
            self._completions.stats.outage_refused += 1
            if self._answers_503:
                return refusal_response(UNAVAILABLE)
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        self._remember(request.protocol)
        if self._timer is None and request.method == "POST":
            self._timer = asyncio.get_running_loop().call_later(self._after_s, self._begin)
        return await handler(request)

    def _remember(self, connection: web.RequestHandler) -> None:
        if len(self._connections) >= _MANY:
            self._connections = {one for one in self._connections if one.transport is not None}
        self._connections.add(connection)

    def _begin(self) -> None:
        self._down = True
        for connection in self._connections:
            if connection.transport is not None:
                connection.transport.abort()
        self._connections.clear()
        self._timer = asyncio.get_running_loop().call_later(self._for_s, self._end)

    def _end(self) -> None:
        self._down = False
        self._over = True
