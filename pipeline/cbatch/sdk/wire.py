"""The transports of cbatch with two things that a drop-in needs: headers of one request, and its answer's head early.

Both travel in a context variable, which `exchange` reads in the task that asks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from socket import socket
from typing import Any

from cbatch import plain
from cbatch.client import TRANSPORT
from cbatch.replies import Reply
from cbatch.transport import Endpoint, OnRead, OnSent, SessionTransport, Transport, session_transport

OnHead = Callable[[int, Mapping[str, str]], None]


@dataclass(frozen=True, slots=True)
class Head:
    """The headers of a request, and as the lines that are sent."""

    headers: Mapping[str, str]
    lines: str

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Head:
        """Raises ValueError for a header that no request can have."""
        for name, value in headers.items():
            text = f"{name}{value}"
            if not name or not text.isprintable() or ":" in name or " " in name or not text.isascii():
                raise ValueError(f"header {name!r}: not a name and a value of printable ASCII characters")
        return cls(headers, "".join(f"{name}: {value}\r\n" for name, value in headers.items()))


_asked: ContextVar[tuple[Head, OnHead | None]] = ContextVar("asked")


class Wire:
    """A transport of one loop; made by `open_wire`."""

    def __init__(self, transport: Transport, context: AbstractAsyncContextManager[object] | None = None) -> None:
        """`context` is what closes the transport, where that has no `close` of its own."""
        self._transport = transport
        self._context = context

    async def exchange(
        self,
        method: str,
        url: str,
        body: bytes | None,
        deadline_s: float,
        head: Head,
        *,
        on_head: OnHead | None = None,
        on_read: OnRead | None = None,
    ) -> Reply:
        """The whole answer to one request. Raises APIConnectionError, APIResponseError."""
        _asked.set((head, on_head))
        return await self._transport.exchange(method, url, body, deadline_s, on_read)

    def close(self) -> None:
        """Close what can be closed at once."""
        if isinstance(self._transport, _Plain):
            self._transport.close()

    async def aclose(self) -> None:
        """Close all connections."""
        self.close()
        if self._context is not None:
            await self._context.__aexit__(None, None, None)


async def open_wire(endpoint: Endpoint) -> Wire:
    """The transport that can serve `endpoint` here."""
    if plain.is_available(endpoint) and os.environ.get(TRANSPORT) != "session":
        return Wire(_Plain(endpoint, {}))
    context = session_transport(endpoint, {})
    return Wire(_Session(endpoint, await context.__aenter__()), context)


class _Connection(plain._Connection):
    def ask(self, *args: Any) -> Any:
        self._on_head = _asked.get()[1]
        return super().ask(*args)

    def _begin(self, message: Any, payload: Any) -> None:
        super()._begin(message, payload)
        if self._on_head is not None:
            self._on_head(message.code, message.headers)


class _Plain(plain.PlainTransport):
    async def _attach(self, link: socket) -> _Connection:
        connection = await super()._attach(link)
        connection.__class__ = _Connection
        assert isinstance(connection, _Connection)
        return connection

    async def exchange(
        self,
        method: str,
        url: str,
        body: bytes | None,
        deadline_s: float,
        on_read: OnRead | None = None,
        on_sent: OnSent | None = None,
    ) -> Reply:
        # Made anew in this very turn, by `_head`: what was asked before had other headers.
        self._heads.pop((method, url), None)
        return await super().exchange(method, url, body, deadline_s, on_read, on_sent)

    def _head(self, method: str, url: str) -> bytes:
        return super()._head(method, url) + _asked.get()[0].lines.encode("ascii")


class _Asking:
    """An aiohttp session that adds what was asked."""

    def __init__(self, session: Any) -> None:
        self._session = session

    async def request(self, method: str, url: Any, **options: Any) -> Any:
        head, on_head = _asked.get()
        response = await self._session.request(method, url, headers=head.headers, **options)
        if on_head is not None:
            on_head(response.status, response.headers)
        return response


class _Session:
    def __init__(self, endpoint: Endpoint, session: SessionTransport) -> None:
        session._session = _Asking(session._session)  # type: ignore[assignment]
        self.exchange = session.exchange
