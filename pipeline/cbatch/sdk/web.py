"""Requests and answers as a user sees them: what is used of httpx's classes of the same names."""

from __future__ import annotations

import datetime
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from cbatch.sdk.feed import Feed

READ_S, CONNECT_S = 60.0, 5.0  # the SDK's own


class URL(str):
    """An address: a text that knows its parts."""

    __slots__ = ()

    @property
    def scheme(self) -> str:
        """Such as https."""
        return urlsplit(self).scheme

    @property
    def host(self) -> str:
        """Without the port."""
        return urlsplit(self).hostname or ""

    @property
    def port(self) -> int | None:
        """None where it is the scheme's own."""
        return urlsplit(self).port

    @property
    def path(self) -> str:
        """From the first slash to the question mark."""
        return urlsplit(self).path

    @property
    def query(self) -> bytes:
        """What follows the question mark."""
        return urlsplit(self).query.encode()


class Headers(Mapping[str, str]):
    """Header names in lower case, asked for in any; of one that came twice the values are joined by a comma."""

    __slots__ = ("_pairs", "_values")

    def __init__(self, given: Mapping[str, str] | Iterable[tuple[str, str]] = ()) -> None:
        pairs = given.items() if isinstance(given, Mapping) else given
        self._pairs = [(name.lower(), value) for name, value in pairs]
        self._values: dict[str, str] = {}
        for name, value in self._pairs:
            self._values[name] = f"{self._values[name]}, {value}" if name in self._values else value

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and self._values == {str(k).lower(): v for k, v in other.items()}

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Headers({self._values!r})"

    def multi_items(self) -> list[tuple[str, str]]:
        """Every header that came."""
        return list(self._pairs)

    def get_list(self, name: str) -> list[str]:
        """All values of one header."""
        return [value for key, value in self._pairs if key == name.lower()]


class Timeout:
    """Seconds to wait: for a connection, and for the answer (of a stream: for each next piece); None waits for ever."""

    __slots__ = ("connect", "pool", "read", "write")

    def __init__(
        self,
        timeout: float | None = None,
        *,
        connect: float | Any | None = ...,
        read: float | Any | None = ...,
        write: float | Any | None = ...,
        pool: float | Any | None = ...,
    ) -> None:
        """`write` and `pool` are taken and without effect: nothing waits for either here."""
        self.connect, self.read, self.write, self.pool = (
            timeout if value is ... else value for value in (connect, read, write, pool)
        )

    def __eq__(self, other: object) -> bool:
        names = self.__slots__
        return all(hasattr(other, name) and getattr(self, name) == getattr(other, name) for name in names)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Timeout(connect={self.connect}, read={self.read}, write={self.write}, pool={self.pool})"


DEFAULT_TIMEOUT = Timeout(READ_S, connect=CONNECT_S)


class Request:
    """What was sent; the key is not in it."""

    __slots__ = ("content", "headers", "method", "url")

    def __init__(self, method: str, url: str, headers: Mapping[str, str], content: bytes = b"") -> None:
        self.method, self.url, self.headers, self.content = method, URL(url), Headers(headers), content

    def __repr__(self) -> str:
        return f"<Request({self.method!r}, {str(self.url)!r})>"


class StreamConsumed(RuntimeError):
    """The content was read piece by piece, and is kept by nobody."""

    def __init__(self) -> None:
        super().__init__(
            "Attempted to read or stream some content, but the content has already been streamed. "
            "Call `.read()` before streaming, or keep the pieces."
        )


class Response:
    """What came back: whole, or through a feed from which its content is read once."""

    def __init__(
        self,
        status_code: int,
        *,
        headers: Mapping[str, str],
        request: Request,
        content: bytes | None = None,
        feed: Feed | None = None,
        elapsed_s: float = 0.0,
    ) -> None:
        self.status_code = status_code
        self.headers = Headers(headers)
        self.request = request
        self.elapsed = datetime.timedelta(seconds=elapsed_s)
        self.http_version = "HTTP/1.1"
        self._content = content
        self._feed = feed
        self._taken = False
        self.was_closed = False  # before its end, by whoever read it

    def __repr__(self) -> str:
        return f"<Response [{self.status_code} {self.reason_phrase}]>"

    def __getstate__(self) -> dict[str, Any]:
        """What was read; a feed belongs to this process."""
        return {**self.__dict__, "_feed": None}

    # -- about it -----------------------------------------------------------------------------

    @property
    def url(self) -> URL:
        """Of the request."""
        return self.request.url

    @property
    def reason_phrase(self) -> str:
        """The words for the status."""
        try:
            return HTTPStatus(self.status_code).phrase
        except ValueError:
            return ""

    @property
    def is_success(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status_code < 300

    @property
    def is_error(self) -> bool:
        """Whether the status is 4xx or 5xx."""
        return 400 <= self.status_code < 600

    @property
    def is_closed(self) -> bool:
        """Whether nothing more will come."""
        return self._feed is None or self._feed.ended

    # -- its content ----------------------------------------------------------------------------

    @property
    def content(self) -> bytes:
        """The whole body, which must have been read."""
        if self._content is None:
            raise RuntimeError("Attempted to access streaming response content, without having called `read()`.")
        return self._content

    @property
    def text(self) -> str:
        """The whole body as text."""
        return self.content.decode("utf-8", "replace")

    def json(self) -> Any:
        """The whole body as JSON. Raises json.JSONDecodeError."""
        return json.loads(self.content)

    def read(self) -> bytes:
        """Read all of it."""
        if self._content is None:
            self._content = b"".join(self.iter_bytes())
        return self._content

    async def aread(self) -> bytes:
        """Read all of it."""
        if self._content is None:
            self._content = b"".join([piece async for piece in self.aiter_bytes()])
        return self._content

    def iter_bytes(self, chunk_size: int | None = None) -> Iterator[bytes]:
        """Its pieces as they come, or as large as asked for."""
        if self._content is not None:
            yield from _sized([self._content], chunk_size)
            return
        yield from _sized(self._take().pieces(), chunk_size)

    async def aiter_bytes(self, chunk_size: int | None = None) -> AsyncIterator[bytes]:
        """Its pieces as they come, or as large as asked for."""
        if self._content is not None:
            for piece in _sized([self._content], chunk_size):
                yield piece
            return
        held = b""
        async for piece in self._take().apieces():
            if chunk_size is None:
                yield piece
                continue
            held += piece
            while len(held) >= chunk_size:
                yield held[:chunk_size]
                held = held[chunk_size:]
        if held:
            yield held

    def iter_text(self, chunk_size: int | None = None) -> Iterator[str]:
        """Its pieces as text."""
        decoder = _text_decoder()
        for piece in self.iter_bytes(chunk_size):
            if text := decoder.decode(piece):
                yield text
        if text := decoder.decode(b"", final=True):
            yield text

    async def aiter_text(self, chunk_size: int | None = None) -> AsyncIterator[str]:
        """Its pieces as text."""
        decoder = _text_decoder()
        async for piece in self.aiter_bytes(chunk_size):
            if text := decoder.decode(piece):
                yield text
        if text := decoder.decode(b"", final=True):
            yield text

    def iter_lines(self) -> Iterator[str]:
        """Its lines, without their ends."""
        rest = ""
        for text in self.iter_text():
            lines, rest = _lines(rest + text)
            yield from lines
        if rest:
            yield rest.rstrip("\r\n")

    async def aiter_lines(self) -> AsyncIterator[str]:
        """Its lines, without their ends."""
        rest = ""
        async for text in self.aiter_text():
            lines, rest = _lines(rest + text)
            for line in lines:
                yield line
        if rest:
            yield rest.rstrip("\r\n")

    def close(self) -> None:
        """Stop reading: what has not come yet is not waited for."""
        if self._feed is not None and not self._feed.ended:
            self.was_closed = True
            self._feed.close()

    async def aclose(self) -> None:
        """Stop reading: what has not come yet is not waited for."""
        self.close()

    def let_go(self) -> None:
        """All that matters has come: the rest may come too, so that the connection can serve again."""
        self._feed = None

    def _take(self) -> Feed:
        if self._taken or self._feed is None:
            raise StreamConsumed
        self._taken = True
        return self._feed


def _sized(pieces: Iterable[bytes], size: int | None) -> Iterator[bytes]:
    if size is None:
        yield from (piece for piece in pieces if piece)
        return
    held = b""
    for piece in pieces:
        held += piece
        while len(held) >= size:
            yield held[:size]
            held = held[size:]
    if held:
        yield held


def _text_decoder() -> Any:
    import codecs

    return codecs.getincrementaldecoder("utf-8")("replace")


def _lines(text: str) -> tuple[list[str], str]:
    """Whole lines, and the rest; a carriage return at the very end may be half an end."""
    lines = text.replace("\r\n", "\n").split("\n") if not text.endswith("\r") else text.split("\n")
    return [line.removesuffix("\r") for line in lines[:-1]], lines[-1]
