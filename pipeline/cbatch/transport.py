"""Bytes to one endpoint and back: what a transport is, and the one over aiohttp's session.

`plain.py` is the other, and used wherever it can be: a session is 20 ms late on the first token with
256 requests in flight. This one does what that cannot: proxies.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

import aiohttp
from yarl import URL

from cbatch.errors import APIConnectionError, APIResponseError, APITimeoutError, APIUnreachableError
from cbatch.replies import Reply

KEEP_ALIVE_S = 60.0
DNS_S = 300.0  # how long an address is good
SWEEP_S = 0.5  # at most so much too late comes a deadline


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where to send and how: `base_url` ends in /v1; `key` is None where none is needed."""

    base_url: str
    key: str | None = None
    proxy: str | None = None
    connect_s: float = 10.0
    total_s: float = 180.0

    def __repr__(self) -> str:
        """Without the key: this object ends up in tracebacks."""
        return f"Endpoint({self.base_url!r}, key={'…' if self.key else None})"

    def keyless(self, said: object) -> str:
        """What an HTTP library says, which quotes headers, without the key."""
        return str(said).replace(self.key, "(key removed)") if self.key else str(said)


OnRead = Callable[[bytes], None]
OnSent = Callable[[], None]


class Transport(Protocol):
    """What a client sends through."""

    async def exchange(
        self,
        method: str,
        url: str,
        body: bytes | None,
        deadline_s: float,
        on_read: OnRead | None = None,
        on_sent: OnSent | None = None,
    ) -> Reply:
        """The whole answer to one request, with the stamps of its socket reads. Raises APIConnectionError.

        `on_read` gets each piece of the body of an answer with status 200 as it comes. `on_sent` is called
        once, when a request with a body is written: one that ends before was never there.
        """


def late(deadline_s: float) -> APITimeoutError:
    """The error of a request that took too long."""
    return APITimeoutError(f"no whole answer within {deadline_s:.3g} s")


def cut_off(why: object) -> APIResponseError:
    """The error of an answer that stopped before its end."""
    said = " ".join(str(why).removeprefix("400, message:").split())  # aiohttp's parser speaks as a server
    return APIResponseError(f"the answer stopped before its end: {said}", code="truncated", truncated=True)


def no_connection(endpoint: Endpoint) -> APIUnreachableError:
    """The error of a connection that could not be made in time."""
    return APIUnreachableError(f"no connection within {endpoint.connect_s:g} s")


class SessionTransport:
    """aiohttp's own session; made by `session_transport`."""

    def __init__(self, endpoint: Endpoint, session: aiohttp.ClientSession) -> None:
        self._endpoint = endpoint
        self._session = session
        self._loop = asyncio.get_running_loop()
        self._until: dict[asyncio.Task[Any], float] = {}  # who is on the wire: deadline, of the loop's clock
        self._late: set[asyncio.Task[Any]] = set()
        self._sweeper: asyncio.TimerHandle | None = None

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
        endpoint = self._endpoint
        task = asyncio.current_task()
        assert task is not None
        self._until[task] = self._loop.time() + deadline_s
        if self._sweeper is None:
            self._sweep()
        try:
            # A redirect is not followed: it would carry the key to another host.
            # No `async with`: reading to the end gives the connection back, and any error closes it.
            response = await self._session.request(
                method, URL(url), data=body, allow_redirects=False, trace_request_ctx=on_sent
            )
            return Reply(response.status, response.headers, *await _read(response, on_read))
        except asyncio.CancelledError:
            # Ours, if the sweeper did it and nobody else did.
            if task in self._late and task.uncancel() == 0:
                raise late(deadline_s) from None
            raise
        except TimeoutError:
            raise no_connection(endpoint) from None
        except aiohttp.ClientPayloadError as exc:
            raise cut_off(endpoint.keyless(exc)) from None
        except aiohttp.ServerDisconnectedError:
            raise APIConnectionError("the server closed the connection without an answer") from None
        except aiohttp.ClientHttpProxyError as exc:  # the API's host was not reached
            raise APIUnreachableError(
                f"the proxy refused the tunnel: HTTP {exc.status} {endpoint.keyless(exc.message)}"
            ) from None
        except aiohttp.ClientResponseError as exc:  # not HTTP, or HTTP that cannot be parsed
            said = endpoint.keyless(exc.message)
            raise APIResponseError(f"the answer is not valid HTTP: {said}", code="bad_http") from None
        except aiohttp.ClientConnectorError as exc:
            why = exc.os_error.strerror or str(exc.os_error) or type(exc.os_error).__name__
            raise APIUnreachableError(f"cannot connect to {exc.host}:{exc.port}: {why}") from None
        except (aiohttp.ClientError, OSError, UnicodeError) as exc:  # UnicodeError: a host name with an empty label
            raise APIConnectionError(f"{type(exc).__name__}: {endpoint.keyless(exc)}") from None
        finally:
            del self._until[task]
            self._late.discard(task)

    def _sweep(self) -> None:
        """Cancel the requests that take too long.

        One timer for all of them: the library's own timers, two a request, were 12 % of the CPU of a
        request at 1,000 in flight.
        """
        now = self._loop.time()
        for task, until in self._until.items():
            if until <= now and task not in self._late:
                self._late.add(task)
                task.cancel()
        self._sweeper = self._loop.call_later(min(SWEEP_S, self._endpoint.total_s / 10), self._sweep)

    def close(self) -> None:
        """Stop sweeping."""
        if self._sweeper is not None:
            self._sweeper.cancel()


async def _read(response: aiohttp.ClientResponse, on_read: OnRead | None) -> tuple[bytes, list[tuple[int, float]]]:
    pieces: list[bytes] = []
    reads: list[tuple[int, float]] = []
    size = 0
    try:
        while piece := await response.content.readany():
            size += len(piece)
            pieces.append(piece)
            reads.append((size, time.perf_counter()))
            if on_read is not None and response.status == 200:
                on_read(piece)
    except BaseException:
        response.close()
        raise
    return pieces[0] if len(pieces) == 1 else b"".join(pieces), reads


def _tells_when_sent() -> aiohttp.TraceConfig:
    """Calls the `trace_request_ctx` of a request when its body is written, which its headers wait for."""

    async def written(_: aiohttp.ClientSession, context: SimpleNamespace, __: object) -> None:
        on_sent, context.trace_request_ctx = context.trace_request_ctx, None  # a body may be written in pieces
        if on_sent is not None:
            on_sent()

    config = aiohttp.TraceConfig()
    config.on_request_chunk_sent.append(written)
    return config


@asynccontextmanager
async def session_transport(endpoint: Endpoint, headers: Mapping[str, str]) -> AsyncIterator[SessionTransport]:
    """A session whose connections live as long as the block."""
    async with aiohttp.ClientSession(
        # limit=0: the engine's workers are the limit; a second one here would only hide requests in a queue.
        connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=int(DNS_S), keepalive_timeout=KEEP_ALIVE_S),
        headers=headers,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=endpoint.connect_s),  # the rest is swept
        proxy=endpoint.proxy,  # resolved once by the caller: trust_env costs 2-3 x the CPU of a request
        trust_env=False,
        trace_configs=[_tells_when_sent()],
    ) as session:
        transport = SessionTransport(endpoint, session)
        try:
            yield transport
        finally:
            transport.close()
