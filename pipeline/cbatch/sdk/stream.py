"""Stream and AsyncStream: the chunks of an answer as they come."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import orjson

from cbatch.sdk import errors
from cbatch.sdk.core import broken
from cbatch.sse import events

if TYPE_CHECKING:
    from typing import Self

    from cbatch.sdk.web import Response

T = TypeVar("T")

_BLANKS = (b"\n\n", b"\r\n\r\n", b"\r\r")


class Events:
    """Pieces of a body -> (name, data) of the events that they complete."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The events that are whole now."""
        rest = self._rest + piece
        end = max(rest.rfind(blank) + len(blank) if blank in rest else 0 for blank in _BLANKS)
        self._rest = rest[end:]
        for name, data, _ in events(rest[:end]):
            yield name, data


class _Chunks(Generic[T]):
    """What is in the events, and whether the answer ended as it should."""

    def __init__(self, kind: Any, union: Any, response: Response, *, strict: bool) -> None:
        self.done = False
        self._kinds, self._response, self._strict = (kind, union), response, strict
        self._events = Events()
        self._finished = False

    def of(self, piece: bytes) -> Iterator[T]:
        """The chunks that this piece completes. Raises errors of the SDK."""
        for name, data in self._events.feed(piece):
            if data.startswith(b"[DONE]"):
                self.done = True
                return
            chunk = self._decoded(data)
            if isinstance(chunk, Mapping):
                self._check(name, chunk)
                self._finished = self._finished or any(
                    isinstance(choice, Mapping) and choice.get("finish_reason") for choice in chunk.get("choices") or ()
                )
            yield self._built(chunk if not name else {"data": chunk, "event": name.decode("utf-8", "replace")})

    def end(self) -> None:
        """The body has ended. Raises APIConnectionError where the answer has not."""
        if not (self.done or self._finished):
            raise errors.APIConnectionError(
                message="The stream ended before the answer did.", request=self._response.request
            )

    def _decoded(self, data: bytes) -> Any:
        try:
            return orjson.loads(data)
        except orjson.JSONDecodeError:
            pass
        try:
            return json.loads(data)
        except ValueError as exc:
            raise errors.APIResponseValidationError(
                self._response, data.decode("utf-8", "replace"), message=f"A chunk of the stream is not JSON: {exc}"
            ) from None

    def _check(self, name: bytes, chunk: Mapping[str, Any]) -> None:
        """Raise the error that a chunk is: wrapped, or flat in place of choices."""
        error = chunk.get("error")
        flat = not error and "choices" not in chunk and isinstance(chunk.get("message"), str)
        if (not error and not flat) or (name and name != b"error"):
            return
        inner = error if isinstance(error, Mapping) else chunk
        message = inner.get("message")
        if not isinstance(message, str) or not message:
            message = "An error occurred during streaming"
        raise errors.status_error(message, response=self._response, body=chunk)

    def _built(self, chunk: Any) -> Any:
        from pydantic import ValidationError

        from cbatch.sdk.models import build

        try:
            return build(chunk, *self._kinds, strict=self._strict)
        except ValidationError as exc:
            raise errors.APIResponseValidationError(self._response, chunk) from exc


class Stream(Generic[T]):
    """The chunks of one answer: iterate over it once. Closing it ends the request."""

    def __init__(self, *, cast_to: Any, response: Response, union: Any = None, strict: bool = False) -> None:
        self.response = response
        self._chunks: _Chunks[T] = _Chunks(cast_to, union, response, strict=strict)
        self._iterator = self._all()

    def __next__(self) -> T:
        return next(self._iterator)

    def __iter__(self) -> Iterator[T]:
        yield from self._iterator

    def _all(self) -> Iterator[T]:
        response, chunks = self.response, self._chunks
        try:
            for piece in response.iter_bytes():
                yield from chunks.of(piece)
                if chunks.done:
                    return
            if not response.was_closed:
                chunks.end()
        except Exception as exc:
            if (said := broken(exc, response.request)) is exc:
                raise
            raise said from exc
        finally:
            response.let_go() if chunks.done else response.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        """Nobody reads on, so the request is ended."""
        if response := self.__dict__.get("response"):
            response.close()

    def close(self) -> None:
        """End the request, unless it has ended."""
        self.response.close()


class AsyncStream(Generic[T]):
    """The chunks of one answer: iterate over it once. Closing it ends the request."""

    def __init__(self, *, cast_to: Any, response: Response, union: Any = None, strict: bool = False) -> None:
        self.response = response
        self._chunks: _Chunks[T] = _Chunks(cast_to, union, response, strict=strict)
        self._iterator = self._all()

    async def __anext__(self) -> T:
        return await anext(self._iterator)

    async def __aiter__(self) -> AsyncIterator[T]:
        async for chunk in self._iterator:
            yield chunk

    async def _all(self) -> AsyncIterator[T]:
        response, chunks = self.response, self._chunks
        try:
            async for piece in response.aiter_bytes():
                for chunk in chunks.of(piece):
                    yield chunk
                if chunks.done:
                    return
            if not response.was_closed:
                chunks.end()
        except Exception as exc:
            if (said := broken(exc, response.request)) is exc:
                raise
            raise said from exc
        finally:
            response.let_go() if chunks.done else response.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        """Nobody reads on, so the request is ended."""
        if response := self.__dict__.get("response"):
            response.close()

    async def close(self) -> None:
        """End the request, unless it has ended."""
        self.response.close()
