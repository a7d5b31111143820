"""Bytes to one endpoint and back over plain asyncio protocols: the transport with exact stamps.

While an answer arrives, a socket read is one stamp and one append. aiohttp's response parser, which is
not public API (tests/unit/test_http_parser.py holds it to what is used here), reads it when it has ended:
of a chunked answer that can be seen, for it ends with an empty line.

HTTP/1.1 with keep-alive, TLS, Content-Length, chunked, until-close and gzip answers. No proxies,
redirects, cookies or pipelining. HTTP cannot tell whose answer one is: a connection with a byte on it
that nobody asked for is never used again.
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any, cast

import aiohappyeyeballs
from yarl import URL

from cbatch.errors import APIConnectionError, APIError, APIResponseError, APIUnreachableError
from cbatch.replies import Reply
from cbatch.transport import DNS_S, KEEP_ALIVE_S, SWEEP_S, Endpoint, OnRead, OnSent, cut_off, late, no_connection

try:
    from aiohttp.http_parser import HttpResponseParser
except ImportError:  # a later aiohttp: the session does it all
    HttpResponseParser = None  # type: ignore[assignment, misc]

MAX_BODY_BYTES = 1 << 30  # of an answer, decompressed: 1 GB is an attack, not a completion
PROVEN, RESTED_S = 3, 0.5  # answers on a connection, and rest, within which it is trusted
JOINED_BYTES = 1 << 16  # a body up to this size is written in one piece with its head
HELD_BYTES = 1 << 20  # so much of an answer is kept unparsed at most
_ENCODINGS = ("gzip", "deflate")  # we ask for none; a proxy may do it anyway
_END = b"\r\n\r\n"  # of a head, and of a chunked body with or without trailers
_ENDS = (_END, b"\n\n")  # the second is wrong, and the parser takes it
_NO_ANSWER = "the server closed the connection without an answer"


def is_available(endpoint: Endpoint) -> bool:
    """Whether this transport can serve `endpoint` here."""
    return endpoint.proxy is None and HttpResponseParser is not None


class _Connection(asyncio.Protocol):
    """One connection: one request at a time, its answer a future."""

    def __init__(self, pool: PlainTransport) -> None:
        self._pool = pool
        self._loop = pool.loop
        self._parser = HttpResponseParser(
            cast("Any", self), pool.loop, MAX_BODY_BYTES, read_until_eof=True, auto_decompress=False
        )
        self._transport: asyncio.Transport | None = None
        self._unread = select.poll()
        self._answer: asyncio.Future[Reply] | None = None
        self.idle_since = 0.0
        self.uses = 0
        self.until = 0.0
        self.deadline_s = 0.0

    # -- what the pool does -----------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether a request may be sent, as far as the loop knows."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def is_silent(self) -> bool:
        """Whether nothing has come since the last answer: no end of the connection, and nothing unasked.

        The loop learns of both a turn too late for a worker that goes on at once.
        """
        return not self._unread.poll(0)

    def ask(
        self, head: bytes, body: bytes | None, until: float, deadline_s: float, on_read: OnRead | None = None
    ) -> asyncio.Future[Reply]:
        """Send one request; the future is its answer, or an APIConnectionError."""
        assert self._transport is not None
        self.until, self.deadline_s = until, deadline_s
        self.uses += 1
        self._on_read = on_read
        self._raw: list[tuple[bytes, float]] = []  # socket reads that were not parsed yet
        self._held = 0  # bytes of these
        self._tail = b""  # the last four bytes that were parsed
        self._message: Any = None
        self._payload: Any = None
        self._chunked = self._whole = self._surplus = self._between = False
        self._encoding = ""
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
        answer = self._end()
        if answer is not None and not answer.done():
            answer.set_exception(error)
        self.abort()

    def give_up(self, answer: asyncio.Future[Reply]) -> None:
        """Whoever asked for this answer was cancelled; close, unless it was in and the connection serves another."""
        if self._answer is answer:
            self.abort()
        elif not answer.cancelled():
            answer.exception()  # seen: asyncio would log that nobody looked

    def abort(self) -> None:
        """Close at once; whoever waits must have been told."""
        self._end()
        if self._transport is not None:
            self._transport.abort()

    def _end(self) -> asyncio.Future[Reply] | None:
        """The request is over. Not only when its task runs again: then the connection may serve another."""
        answer, self._answer = self._answer, None
        self._pool.served(self)
        return answer

    # -- asyncio.Protocol -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = transport  # type: ignore[assignment]  # uvloop's are no asyncio.Transport by name
        self._unread.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        """Called by the loop: one stamp and one append, until the answer may be whole."""
        stamp = perf_counter()
        if self._answer is None:  # nobody asked
            self._pool.distrust()
            self.abort()
            return
        self._raw.append((data, stamp))
        self._held += len(data)
        if (
            self._chunked
            and self._on_read is None
            and self._held < HELD_BYTES
            and len(data) >= len(_END)  # else the end may lie across two reads
            and _END not in data
            and not data.endswith(_ENDS)
        ):
            return
        self._parse()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop: whoever waits for an answer learns what became of it."""
        self._transport = None
        self._pool.forget(self)
        if self._answer is not None:
            self._parse()
        if self._answer is None:
            return
        if self._message is None:
            self._pool.distrust()
            self.fail(APIConnectionError(f"{_NO_ANSWER}: {exc}" if exc else _NO_ANSWER))
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
        raw, self._raw, self._held = self._raw, [], 0
        try:
            for data, stamp in raw:
                self._feed(data, stamp)
        except APIError as exc:
            self.fail(exc)
        except Exception as exc:  # noqa: BLE001  what a parser in C may raise on what a server may send
            said = self._pool.endpoint.keyless(exc)
            if self._message is not None:
                self.fail(cut_off(said))
            else:
                self.fail(APIResponseError(f"the answer is not valid HTTP: {said}", code="bad_http"))
        else:
            if self._whole:
                self._finish()

    def _feed(self, data: bytes, stamp: float) -> None:
        if self._whole:
            self._surplus = True
            return
        # The parser takes 3 us a read of a stream. Where it stands between two chunks, whole ones need not pass it.
        if self._between and (piece := _unchunked(data)) is not None:
            self._tail = data[-4:]
            self._take(piece, stamp)
            return
        messages: Sequence[tuple[Any, Any]] = ()
        try:
            messages, self._surplus, _ = self._parser.feed_data(data)
        except Exception:
            if self._payload is None or not self._payload.is_eof():
                raise
            self._surplus = True  # what is wrong follows the answer
        for message, payload in messages:
            if self._message is not None:
                self._surplus = True
            elif message.code >= 200 or message.code == 101:  # not 100 Continue, 103 Early Hints
                self._begin(message, payload)
        self._tail = (self._tail + data[-4:])[-4:]
        if self._payload is None:
            return
        self._between = False
        if self._chunked and messages:
            first = data.partition(b"\r\n\r\n")[2]
            self._between = not first or _unchunked(first) is not None
        if piece := self._payload.read_nowait():
            self._take(piece, stamp)
        if self._payload.is_eof():
            self._whole = True
            # A piece of another answer, not enough of one for the parser to tell.
            self._surplus |= not (self._tail.endswith(_ENDS) if self._chunked or not piece else data.endswith(piece))

    def _begin(self, message: Any, payload: Any) -> None:
        self._message, self._payload = message, payload
        self._chunked = message.chunked
        encoding = message.headers.get("Content-Encoding", "").strip().lower()
        if encoding in _ENCODINGS:
            self._encoding = encoding
        elif encoding not in ("", "identity") and message.code == 200:  # of an error the status says enough
            raise APIResponseError(f"the answer is encoded as {encoding}, unasked", code="bad_http")

    def _take(self, piece: bytes, stamp: float) -> None:
        if self._encoding:
            piece = self._decompressed(piece)
        self._size += len(piece)
        if self._size > MAX_BODY_BYTES:
            raise APIResponseError(f"the answer is longer than {MAX_BODY_BYTES:,} bytes", code="invalid_response")
        self._pieces.append(piece)
        self._reads.append((self._size, stamp))
        if self._on_read is not None and self._message.code == 200:
            self._on_read(piece)

    def _decompressed(self, piece: bytes) -> bytes:
        if self._inflate is None:
            bits = zlib.MAX_WBITS
            if self._encoding == "gzip":
                bits += 16
            elif piece[0] & 15 != 8:  # no zlib header: wrong, and widespread
                bits = -bits
            self._inflate = zlib.decompressobj(bits)
        try:
            found: bytes = self._inflate.decompress(piece, MAX_BODY_BYTES - self._size + 1)
        except zlib.error as exc:
            raise cut_off(f"not valid compressed data: {exc}") from None
        return found

    def _finish(self) -> None:
        if self._inflate is not None and not self._inflate.eof:
            self.fail(cut_off("the compressed data breaks off"))
            return
        answer, message, transport = self._end(), self._message, self._transport
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        if answer is not None and not answer.done():
            answer.set_result(Reply(message.code, message.headers, body, self._reads))
        self._message = self._payload = None
        self._pieces = []
        if transport is None:
            return
        # An answer that came before the request was out: what is left of that would be the next one's head.
        if self._surplus:
            self._pool.distrust()
        if message.should_close or self._surplus or transport.get_write_buffer_size():
            transport.abort()
        else:
            self._pool.give_back(self)


def _unchunked(data: bytes) -> bytes | None:
    """The body in `data` if that is one or more whole chunks, and none of them the last; else None."""
    pieces: list[bytes] = []
    at, length = 0, len(data)
    while at < length:
        end = data.find(b"\r\n", at, at + 10)
        if end < 0:
            return None
        try:
            size = int(data[at:end], 16)
        except ValueError:
            return None
        start, stop = end + 2, end + 2 + size
        if size <= 0 or data[stop : stop + 2] != b"\r\n":
            return None
        pieces.append(data[start:stop])
        at = stop + 2
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class PlainTransport:
    """A pool of connections to one endpoint; made by `plain_transport`."""

    def __init__(self, endpoint: Endpoint, headers: Mapping[str, str]) -> None:
        self.endpoint = endpoint
        self.loop = asyncio.get_running_loop()
        url = URL(endpoint.base_url)
        assert url.raw_host is not None
        assert url.port is not None
        self._host, self._port = url.raw_host, url.port
        self._tls: ssl.SSLContext | None = None
        if url.scheme == "https":
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        named = {"Host": url.host_port_subcomponent, **headers}
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in named.items())
        self._heads: dict[tuple[str, str], bytes] = {}
        self._idle: list[_Connection] = []  # the last used one last
        self._busy: dict[_Connection, None] = {}
        self._addresses: list[Any] = []
        self._looked_up = float("-inf")
        self._looking_up = asyncio.Lock()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False
        self._trusting = True  # until a connection ended, or spoke, unasked
        self._sweep()

    async def exchange(
        self,
        method: str,
        url: str,
        body: bytes | None,
        deadline_s: float,
        on_read: OnRead | None = None,
        on_sent: OnSent | None = None,
    ) -> Reply:
        """The whole answer to one request, with the stamps of its socket reads. Raises APIConnectionError."""
        head = self._heads.get((method, url)) or self._head(method, url)
        if body is not None:
            head += b"Content-Length: %d\r\n\r\n" % len(body)
        else:
            head += b"\r\n"
        until = self.loop.time() + deadline_s
        connection = self._take_idle() or await self._open(deadline_s)
        if self._closed:
            connection.abort()
            raise _closed()
        if not connection.is_open:
            raise APIConnectionError(_NO_ANSWER)
        self._busy[connection] = None
        answer = connection.ask(head, body, until, deadline_s, on_read)
        if on_sent is not None:
            on_sent()
        try:
            return await answer
        except asyncio.CancelledError:
            connection.give_up(answer)
            raise

    def give_back(self, connection: _Connection) -> None:
        """The connection may serve another request."""
        connection.idle_since = self.loop.time()
        self._idle.append(connection)

    def served(self, connection: _Connection) -> None:
        """The request on the connection is over."""
        self._busy.pop(connection, None)

    def distrust(self) -> None:
        """The server does what none should: look at every connection before it is used again."""
        self._trusting = False

    def forget(self, connection: _Connection) -> None:
        """The connection is closed."""
        if connection in self._idle:
            self._idle.remove(connection)

    def close(self) -> None:
        """Close all connections; whoever waits for an answer is told."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self._busy):
            connection.fail(_closed())
        for connection in self._idle:
            connection.abort()
        self._idle.clear()

    def _head(self, method: str, url: str) -> bytes:
        head = f"{method} {URL(url).raw_path_qs} HTTP/1.1\r\n{self._headers}".encode("latin-1")
        self._heads[method, url] = head
        return head

    def _take_idle(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_open:
                continue
            # The look costs 6 us with other threads about: a server that was well-behaved is trusted to stay so.
            rested = self.loop.time() - connection.idle_since > RESTED_S
            if (self._trusting and connection.uses >= PROVEN and not rested) or connection.is_silent:
                return connection
            self._trusting = False
            connection.abort()
        return None

    async def _open(self, deadline_s: float) -> _Connection:
        endpoint, loop = self.endpoint, self.loop
        try:
            async with asyncio.timeout(min(endpoint.connect_s, deadline_s)):
                link = await aiohappyeyeballs.start_connection(
                    await self._resolve(), happy_eyeballs_delay=0.25, interleave=1, loop=loop
                )
                try:
                    return await self._attach(link)
                except BaseException:
                    link.close()
                    raise
        except TimeoutError:
            self._looked_up = float("-inf")  # a host that has moved refuses nothing at its old address
            raise (no_connection(endpoint) if endpoint.connect_s <= deadline_s else late(deadline_s)) from None
        except (OSError, UnicodeError) as exc:  # UnicodeError: a host name with an empty label
            self._looked_up = float("-inf")
            why = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
            raise APIUnreachableError(f"cannot connect to {self._host}:{self._port}: {why}") from None

    async def _attach(self, link: socket.socket) -> _Connection:
        if self._tls is None:
            _, connection = await self.loop.create_connection(lambda: _Connection(self), sock=link)
            return connection
        # In two steps: cancelled before its handshake begins, `create_connection(ssl=…)` leaves its
        # transport in the loop, and the next socket with this number is refused there.
        bare, _ = await self.loop.create_connection(asyncio.Protocol, sock=link)
        connection = _Connection(self)
        transport = await self.loop.start_tls(bare, connection, self._tls, server_hostname=self._host.rstrip("."))
        if transport is None:
            raise ConnectionResetError("the connection ended in the TLS handshake")
        connection.connection_made(transport)
        return connection

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


def _closed() -> APIConnectionError:
    return APIConnectionError("the client was closed before the answer came")


@asynccontextmanager
async def plain_transport(endpoint: Endpoint, headers: Mapping[str, str]) -> AsyncIterator[PlainTransport]:
    """Connections that live as long as the block."""
    transport = PlainTransport(endpoint, headers)
    try:
        yield transport
    finally:
        transport.close()
