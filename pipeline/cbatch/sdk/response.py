"""The answer itself: what `with_raw_response` and `with_streaming_response` give instead of what is in it."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from cbatch.sdk import errors
from cbatch.sdk.web import URL, Headers, Request, Response, StreamConsumed

if TYPE_CHECKING:
    from cbatch.sdk.calls import Wanted

R = TypeVar("R")
T = TypeVar("T")


class StreamAlreadyConsumed(errors.CerebrasError):
    """The content was streamed, and cannot be read again."""


class _AnyResponse(Generic[R]):
    def __init__(self, response: Response, wanted: Wanted, *, data: Any, retries_taken: int) -> None:
        self.http_response = response
        self.retries_taken = retries_taken
        self._wanted, self._data = wanted, data
        self._parsed: dict[Any, Any] = {}

    @property
    def headers(self) -> Headers:
        """Of the answer."""
        return self.http_response.headers

    @property
    def http_request(self) -> Request:
        """What was sent."""
        return self.http_response.request

    @property
    def status_code(self) -> int:
        """Of the answer."""
        return self.http_response.status_code

    @property
    def url(self) -> URL:
        """Of the request."""
        return self.http_response.url

    @property
    def method(self) -> str:
        """Of the request."""
        return self.http_request.method

    @property
    def http_version(self) -> str:
        """HTTP/1.1."""
        return self.http_response.http_version

    @property
    def elapsed(self) -> datetime.timedelta:
        """From the call to its answer: waiting for quota and earlier attempts included."""
        return self.http_response.elapsed

    @property
    def is_closed(self) -> bool:
        """Whether nothing more will come."""
        return self.http_response.is_closed

    def __repr__(self) -> str:
        response = self.http_response
        return f"<{type(self).__name__} [{self.status_code} {response.reason_phrase}] type={self._wanted.kind}>"

    def _parse(self, kind: Any) -> Any:
        wanted = kind if kind is not None else self._wanted.kind
        if wanted not in self._parsed:
            self._parsed[wanted] = self._wanted.parsed(self.http_response, self._data, kind)
        return self._parsed[wanted]


class APIResponse(_AnyResponse[R]):
    """An answer: `parse()` gives what is in it."""

    @overload
    def parse(self, *, to: type[T]) -> T: ...

    @overload
    def parse(self) -> R: ...

    def parse(self, *, to: Any = None) -> Any:
        """What is in it, as what it is, or as `to`: a BaseModel, dict, list, str, Response."""
        if not self._wanted.stream:
            self.read()
        return self._parse(to)

    def read(self) -> bytes:
        """All of its content."""
        try:
            return self.http_response.read()
        except StreamConsumed as exc:
            raise StreamAlreadyConsumed(str(exc)) from None

    def text(self) -> str:
        """All of its content as text."""
        self.read()
        return self.http_response.text

    def json(self) -> Any:
        """All of its content as JSON."""
        self.read()
        return self.http_response.json()

    def close(self) -> None:
        """Stop reading."""
        self.http_response.close()

    def iter_bytes(self, chunk_size: int | None = None) -> Iterator[bytes]:
        """Its content as it comes."""
        return self.http_response.iter_bytes(chunk_size)

    def iter_text(self, chunk_size: int | None = None) -> Iterator[str]:
        """Its content as it comes."""
        return self.http_response.iter_text(chunk_size)

    def iter_lines(self) -> Iterator[str]:
        """Its lines as they come."""
        return self.http_response.iter_lines()


class AsyncAPIResponse(_AnyResponse[R]):
    """An answer: `await parse()` gives what is in it."""

    @overload
    async def parse(self, *, to: type[T]) -> T: ...

    @overload
    async def parse(self) -> R: ...

    async def parse(self, *, to: Any = None) -> Any:
        """What is in it, as what it is, or as `to`: a BaseModel, dict, list, str, Response."""
        if not self._wanted.stream:
            await self.read()
        return self._parse(to)

    async def read(self) -> bytes:
        """All of its content."""
        try:
            return await self.http_response.aread()
        except StreamConsumed as exc:
            raise StreamAlreadyConsumed(str(exc)) from None

    async def text(self) -> str:
        """All of its content as text."""
        await self.read()
        return self.http_response.text

    async def json(self) -> Any:
        """All of its content as JSON."""
        await self.read()
        return self.http_response.json()

    async def close(self) -> None:
        """Stop reading."""
        self.http_response.close()

    def iter_bytes(self, chunk_size: int | None = None) -> AsyncIterator[bytes]:
        """Its content as it comes."""
        return self.http_response.aiter_bytes(chunk_size)

    def iter_text(self, chunk_size: int | None = None) -> AsyncIterator[str]:
        """Its content as it comes."""
        return self.http_response.aiter_text(chunk_size)

    def iter_lines(self) -> AsyncIterator[str]:
        """Its lines as they come."""
        return self.http_response.aiter_lines()


class ResponseContextManager(Generic[R]):
    """Sends when it is entered, and closes what came when it is left."""

    def __init__(self, ask: Callable[[], APIResponse[R]]) -> None:
        self._ask = ask
        self._response: APIResponse[R] | None = None

    def __enter__(self) -> APIResponse[R]:
        self._response = self._ask()
        return self._response

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._response is not None:
            self._response.close()


class AsyncResponseContextManager(Generic[R]):
    """Sends when it is entered, and closes what came when it is left."""

    def __init__(self, ask: Callable[[], Awaitable[AsyncAPIResponse[R]]]) -> None:
        self._ask = ask
        self._response: AsyncAPIResponse[R] | None = None

    async def __aenter__(self) -> AsyncAPIResponse[R]:
        self._response = await self._ask()
        return self._response

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._response is not None:
            await self._response.close()


class Streamed:
    """The methods of a resource that gives raw responses, as context managers."""

    def __init__(self, raw: Any, *, is_async: bool) -> None:
        self._raw = raw
        self._manager: Any = AsyncResponseContextManager if is_async else ResponseContextManager

    def __getattr__(self, name: str) -> Any:
        if name == "completions":  # of `chat`
            return self._raw.completions.with_streaming_response
        method = getattr(self._raw, name)
        return lambda *given, **named: self._manager(partial(method, *given, **named))
