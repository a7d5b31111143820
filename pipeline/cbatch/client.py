"""Request -> Completion | APIError: the only file that calls the API.

Bytes go in, bytes come out, through a transport. What came out is turned into a Completion or into a
typed error by `replies.py`, and `sse.py` where it is a stream.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from cbatch import __version__
from cbatch.plain import is_available, plain_transport
from cbatch.replies import Reply, read_completion, read_error, read_models
from cbatch.schema import Completion
from cbatch.sse import Decoder, is_stream, read_stream
from cbatch.transport import Endpoint, OnRead, OnSent, Transport, session_transport

OnChunk = Callable[[dict[str, Any]], None]
OnReply = Callable[[Reply], None]

DEFAULT_BASE_URL = "https://api.cerebras.ai"
KEY_CHARS = 16  # a shorter key, such as EMPTY, may be a word of an answer
TRANSPORT = (
    "CBATCH_TRANSPORT"  # `session` in the environment: aiohttp's own, should the plain one meet a server it cannot
)


def normalise_base_url(url: str) -> str:
    """The address with exactly one `/v1` at its end, however it was given. Raises ValueError if it is no URL."""
    if "@" in url:  # first of all checks: what follows quotes the address
        raise ValueError("an address with a user name or password in it is not accepted")
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is not a http:// or https:// URL")
    try:
        parts.hostname.encode("idna")  # what the resolver does; an empty or too long label is a UnicodeError
        if parts.port == 0 or any(c.isspace() or c == "\\" for c in parts.netloc):
            raise ValueError
    except ValueError:
        raise ValueError(f"{url!r} has a host or a port that cannot be") from None
    path = parts.path.rstrip("/")
    if not path.endswith("/v1"):
        path += "/v1"
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


class Client:
    """One endpoint and its connections; made by `connect`."""

    def __init__(self, endpoint: Endpoint, transport: Transport) -> None:
        self.endpoint = endpoint
        self._transport = transport
        self._chat = endpoint.base_url + "/chat/completions"
        self._public = endpoint.base_url.removesuffix("/v1") + "/public/v1/models"
        self._models = endpoint.base_url + "/models"
        self._key_bytes = endpoint.key.encode() if endpoint.key else None
        self._key_in_answers = len(endpoint.key or "") >= KEY_CHARS

    async def complete(
        self,
        body: bytes,
        deadline_s: float | None = None,
        on_chunk: OnChunk | None = None,
        on_reply: OnReply | None = None,
        on_sent: OnSent | None = None,
    ) -> Completion:
        """Send one chat completion request; a whole answer may take `deadline_s`. Raises APIError.

        `on_chunk` gets each chunk of a stream as it comes; what they add up to is checked at the end.
        `on_reply` gets the whole answer as the server wrote it, before it is read. `on_sent` is called when the
        request is written.
        """
        on_read = None
        broken: list[Exception] = []
        if on_chunk is not None:
            decoder = Decoder()

            def on_read(piece: bytes) -> None:
                if broken:
                    return
                try:
                    for chunk in decoder.chunks(piece):
                        on_chunk(chunk)
                except Exception as exc:  # noqa: BLE001  the caller's, and no fault of the answer
                    broken.append(exc)

        reply = await self._exchange("POST", self._chat, body, deadline_s, on_read, on_sent)
        if broken:
            raise broken[0]
        if on_reply is not None and reply.status == 200:
            on_reply(reply)
        if reply.status == 200 and is_stream(reply.body):
            return read_stream(reply)
        return read_completion(reply)

    async def models(self) -> list[dict[str, Any]]:
        """The models this key sees, as the server describes them. Raises APIError."""
        return read_models(await self._exchange("GET", self._models))

    async def public_models(self) -> list[dict[str, Any]]:
        """All public models with context and prices; needs no key. Raises APIError."""
        return read_models(await self._exchange("GET", self._public))

    async def _exchange(
        self,
        method: str,
        url: str,
        body: bytes | None = None,
        deadline_s: float | None = None,
        on_read: OnRead | None = None,
        on_sent: OnSent | None = None,
    ) -> Reply:
        reply = await self._transport.exchange(method, url, body, deadline_s or self.endpoint.total_s, on_read, on_sent)
        # Messages and texts are kept: a key never is.
        if self._key_bytes is not None and (self._key_in_answers or reply.status != 200):
            reply.body = reply.body.replace(self._key_bytes, b"(key removed)")
        return reply


@asynccontextmanager
async def connect(endpoint: Endpoint, more_headers: Mapping[str, str] | None = None) -> AsyncIterator[Client]:
    """A client whose connections live as long as the block."""
    headers = {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "Accept-Encoding": "identity",  # small answers: gunzip would cost more than it saves
        "User-Agent": f"cbatch/{__version__}",
        "X-Cerebras-3rd-Party-Integration": "cbatch",
    }
    if endpoint.key is not None:
        headers["Authorization"] = f"Bearer {endpoint.key}"
    headers |= more_headers or {}
    plain = is_available(endpoint) and os.environ.get(TRANSPORT) != "session"
    async with plain_transport(endpoint, headers) if plain else session_transport(endpoint, headers) as transport:
        yield Client(endpoint, transport)


__all__ = [
    "DEFAULT_BASE_URL",
    "Client",
    "Endpoint",
    "OnChunk",
    "OnReply",
    "Reply",
    "connect",
    "normalise_base_url",
    "read_completion",
    "read_error",
]
