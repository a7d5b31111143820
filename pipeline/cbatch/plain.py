"""Bytes to one endpoint and back over plain asyncio protocols: the transport with exact stamps.

While an answer arrives, a socket read is one stamp and one append. aiohttp's response parser, which is
not public API (tests/unit/test_http_parser.py holds it to what is used here), reads it when it has ended:
of a chunked answer that can be seen, for it ends with an empty line.

HTTP/1.1 with keep-alive, TLS, Content-Length, chunked, until-close and gzip answers. No proxies,
redirects, cookies or pipelining.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import aiohappyeyeballs

from cbatch.errors import APIConnectionError, APIError, APIResponseError, APIUnreachableError
from cbatch.replies import Reply
from cbatch.transport import DNS_S, KEEP_ALIVE_S, SWEEP_S, Endpoint, cut_off, late, no_connection

try:
    from aiohttp.http_parser import HttpResponseParser
except ImportError:  # a later aiohttp: the session does it all
    HttpResponseParser = None  # type: ignore[assignment, misc]

MAX_BODY_BYTES = 1 << 30  # of an answer, decompressed: 1 GB is an attack, not a completion
JOINED_BYTES = 1 << 16  # a body up to this size is written in one piece with its head
_ENCODINGS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}  # we ask for none; a proxy may do it anyway
_END = b"\r\n\r\n"  # of a chunked body, with or without trailers


def is_available(endpoint: Endpoint) -> bool:
    """Whether this transport can serve `endpoint` here."""
    return endpoint.proxy is None and HttpResponseParser is not None


class _Connection(asyncio.Protocol):
    """One connection: one request at a time, its answer a future."""

    def __init__(self, pool: PlainTransport) -> None:
        self._pool = pool
        self._loop = pool.loop
        self._parser = HttpResponseParser(self, pool.loop, MAX_BODY_BYTES, read_until_eof=True, auto_decompress=False)
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Reply] | None = None
        self.idle_since = 0.0
        self.until = 0.0
        self.deadline_s = 0.0

    # -- what the pool does -----------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether a request may be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def ask(self, head: bytes, body: bytes | None, until: float, deadline_s: float) -> asyncio.Future[Reply]:
        """Send one request; the future is its answer, or an APIConnectionError."""
        assert self._transport is not None
        self.until, self.deadline_s = until, deadline_s
        self._raw: list[tuple[bytes, float]] = []  # socket reads that were not parsed yet
        self._message: Any = None
        self._payload: Any = None
        self._chunked = False
        self._inflate: Any = None
        self._pieces: list[bytes] = []
        self._reads: list[tuple[int, float]] = []
        self._size = 0
        self._answer = answer = self._loop.create_future()
        if body is None or len(body) <= JOINED_BYTES:
            self._transport.write(head + (body or b""))
        else:
            self._transport.write(head)
            self._transport.write(body)
        return answer

    def fail(self, error: APIError) -> None:
        """End the request with `error` and close."""
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_exception(error)
        self.abort()

    def abort(self) -> None:
        """Close at once; whoever waits must have been told."""
        self._answer = None
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio.Protocol -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = transport  # type: ignore[assignment]  # uvloop's are no asyncio.Transport by name

    def data_received(self, data: bytes) -> None:
        """Called by the loop: one stamp and one append, until the answer may be whole."""
        stamp = perf_counter()
        if self._answer is None:  # nobody asked
            self.abort()
            return
        self._raw.append((data, stamp))
        if self._chunked and len(data) >= len(_END) and not data.endswith(_END):
            return
        self._parse()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop: whoever waits for an answer learns what became of it."""
        self._transport = None
        self._pool.forget(self)
        if self._answer is None:
            return
        self._parse()
        if self._answer is None:
            return
        if self._message is None:
            why = "the server closed the connection without an answer"
            self.fail(APIConnectionError(f"{why}: {exc}" if exc else why))
            return
        try:
            self._parser.feed_eof()
        except Exception as cut:  # noqa: BLE001  as in _parse
            self.fail(cut_off(self._pool.endpoint.keyless(exc or cut)))
        else:
            self._finish()

    # -- aiohttp's parser asks for these; the body is taken from it at once, so it never is in the way ---------

    def pause_reading(self) -> None:
        """Called by the parser."""

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Called by the parser."""

    # -- parsing ----------------------------------------------------------------------------

    def _parse(self) -> None:
        raw, self._raw = self._raw, []
        try:
            for data, stamp in raw:
                messages, _, _ = self._parser.feed_data(data)
                for message, payload in messages:
                    if message.code < 200:  # 100 Continue, 103 Early Hints
                        continue
                    if self._message is None:
                        self._begin(message, payload)
                    else:
                        self._surplus = True
                if self._payload is not None and (piece := self._payload.read_nowait()):
                    self._take(piece, stamp)
        except APIError as exc:
            self.fail(exc)
            return
        except Exception as exc:  # noqa: BLE001  what a parser in C may raise on what a server may send
            said = self._pool.endpoint.keyless(exc)
            if self._message is not None:
                self.fail(cut_off(said))
            else:
                self.fail(APIResponseError(f"the answer is not valid HTTP: {said}", code="bad_http"))
            return
        if self._payload is not None and self._payload.is_eof():
            self._finish()

    def _begin(self, message: Any, payload: Any) -> None:
        self._message, self._payload = message, payload
        self._chunked = message.chunked
        self._surplus = False
        encoding = message.headers.get("Content-Encoding", "identity").lower()
        if encoding in _ENCODINGS:
            self._inflate = zlib.decompressobj(_ENCODINGS[encoding])
        elif encoding != "identity":
            raise APIResponseError(f"the answer is encoded as {encoding}, unasked", code="bad_http")

    def _take(self, piece: bytes, stamp: float) -> None:
        if self._inflate is not None:
            try:
                piece = self._inflate.decompress(piece, MAX_BODY_BYTES - self._size + 1)
            except zlib.error as exc:
                raise cut_off(f"not valid compressed data: {exc}") from None
        self._size += len(piece)
        if self._size > MAX_BODY_BYTES:
            raise APIResponseError(f"the answer is longer than {MAX_BODY_BYTES:,} bytes", code="invalid_response")
        self._pieces.append(piece)
        self._reads.append((self._size, stamp))

    def _finish(self) -> None:
        answer, message = self._answer, self._message
        self._answer = None
        if self._inflate is not None and not self._inflate.eof:
            if answer is not None and not answer.done():
                answer.set_exception(cut_off("the compressed data breaks off"))
            self.abort()
            return
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        reply = Reply(message.code, message.headers, body, self._reads)
        self._message = self._payload = None
        self._pieces = []
        if answer is not None and not answer.done():
            answer.set_result(reply)
        transport = self._transport
        if transport is None:
            return
        # An answer that came before the request was out: what is left of that would be the next one's head.
        if message.should_close or self._surplus or transport.get_write_buffer_size():
            transport.abort()
        else:
            self._pool.give_back(self)


class PlainTransport:
    """A pool of connections to one endpoint; made by `plain_transport`."""

    def __init__(self, endpoint: Endpoint, headers: Mapping[str, str]) -> None:
        self.endpoint = endpoint
        self.loop = asyncio.get_running_loop()
        parts = urlsplit(endpoint.base_url)
        assert parts.hostname is not None
        self._host = parts.hostname
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in {"Host": parts.netloc, **headers}.items())
        self._heads: dict[tuple[str, str], bytes] = {}
        self._idle: list[_Connection] = []  # the last used one last
        self._busy: dict[_Connection, None] = {}
        self._addresses: list[Any] = []
        self._looked_up = float("-inf")
        self._looking_up = asyncio.Lock()
        self._sweeper: asyncio.TimerHandle | None = None
        self._sweep()

    async def exchange(self, method: str, url: str, body: bytes | None, deadline_s: float) -> Reply:
        """The whole answer to one request, with the stamps of its socket reads. Raises APIConnectionError."""
        head = self._heads.get((method, url)) or self._head(method, url)
        if body is not None:
            head += b"Content-Length: %d\r\n\r\n" % len(body)
        else:
            head += b"\r\n"
        until = self.loop.time() + deadline_s
        connection = self._take_idle() or await self._open(deadline_s)
        self._busy[connection] = None
        answer = connection.ask(head, body, until, deadline_s)
        try:
            return await answer
        except asyncio.CancelledError:
            connection.abort()
            raise
        finally:
            self._busy.pop(connection, None)

    def give_back(self, connection: _Connection) -> None:
        """The connection may serve another request."""
        connection.idle_since = self.loop.time()
        self._idle.append(connection)

    def forget(self, connection: _Connection) -> None:
        """The connection is closed."""
        self._busy.pop(connection, None)
        if connection in self._idle:
            self._idle.remove(connection)

    def close(self) -> None:
        """Close all connections."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in [*self._idle, *self._busy]:
            connection.abort()
        self._idle.clear()

    def _head(self, method: str, url: str) -> bytes:
        parts = urlsplit(url)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        head = f"{method} {target} HTTP/1.1\r\n{self._headers}".encode("latin-1")
        self._heads[method, url] = head
        return head

    def _take_idle(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return None

    async def _open(self, deadline_s: float) -> _Connection:
        endpoint, loop = self.endpoint, self.loop
        try:
            async with asyncio.timeout(min(endpoint.connect_s, deadline_s)):
                link = await aiohappyeyeballs.start_connection(
                    await self._resolve(), happy_eyeballs_delay=0.25, interleave=1, loop=loop
                )
                try:
                    _, connection = await loop.create_connection(
                        lambda: _Connection(self),
                        sock=link,
                        ssl=self._tls,
                        server_hostname=self._host if self._tls else None,
                    )
                except BaseException:
                    link.close()
                    raise
                return connection
        except TimeoutError:
            raise no_connection(endpoint) from None
        except (OSError, UnicodeError) as exc:  # UnicodeError: a host name with an empty label
            self._looked_up = float("-inf")
            why = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
            raise APIUnreachableError(f"cannot connect to {self._host}:{self._port}: {why}") from None

    async def _resolve(self) -> list[Any]:
        async with self._looking_up:  # once, and not by every one of a thousand workers
            if self.loop.time() - self._looked_up > DNS_S:
                self._addresses = await self.loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
                self._looked_up = self.loop.time()
            return list(self._addresses)

    def _sweep(self) -> None:
        """End the requests that take too long, close connections that nobody has used for long.

        One timer for all of them: two a request were 12 % of its CPU at 1,000 in flight.
        """
        now = self.loop.time()
        for connection in [one for one in self._busy if one.until <= now]:
            connection.fail(late(connection.deadline_s))
        while self._idle and self._idle[0].idle_since < now - KEEP_ALIVE_S:
            self._idle.pop(0).abort()
        self._sweeper = self.loop.call_later(min(SWEEP_S, self.endpoint.total_s / 10), self._sweep)


@asynccontextmanager
async def plain_transport(endpoint: Endpoint, headers: Mapping[str, str]) -> AsyncIterator[PlainTransport]:
    """Connections that live as long as the block."""
    transport = PlainTransport(endpoint, headers)
    try:
        yield transport
    finally:
        transport.close()
