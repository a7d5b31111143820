"""What a stream looks like to the client: chunks of the upstream -> bytes, in either protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import orjson

from cbatch.gateway.exchange import Exchange
from cbatch.gateway.faults import Problem, event_of
from cbatch.responses import Events, Translation, encode


class Shape(Protocol):
    """Writes one stream; every method returns the bytes to send next."""

    def begin(self) -> bytes:
        """Before the first chunk."""
        ...

    def chunk(self, chunk: Mapping[str, Any]) -> bytes:
        """For one chunk of the upstream."""
        ...

    def end(self) -> bytes:
        """After a whole answer."""
        ...

    def fail(self, problem: Problem) -> bytes:
        """After an answer that broke off."""
        ...

    def keep_alive(self) -> bytes:
        """While the upstream is silent."""
        ...


class ResponsesShape:
    """The events of the Responses API; `keep` gets the Response at its end, before the client does."""

    def __init__(self, exchange: Exchange, translation: Translation, keep: Callable[[dict[str, Any]], None]) -> None:
        self._exchange, self._keep = exchange, keep
        created_at = int(exchange.started_at.timestamp())
        self._events = Events(translation, response_id=exchange.id, created_at=created_at)

    def begin(self) -> bytes:
        """`response.created`, which the SDKs want first."""
        return self._encoded(self._events.start())

    def chunk(self, chunk: Mapping[str, Any]) -> bytes:
        """The events that this chunk makes; b"" for none."""
        return self._encoded(self._events.chunk(chunk))

    def end(self) -> bytes:
        """The ends of what is open, and `response.completed`, `.incomplete` or `.failed`."""
        events = self._events.finish()
        self._keep(self._events.response)
        return self._encoded(events)

    def fail(self, problem: Problem) -> bytes:
        """`response.failed`, the only failure that Codex reads."""
        return self._encoded(self._events.fail(*event_of(problem)))

    def keep_alive(self) -> bytes:
        """Codex counts only data as a sign of life; the SDKs know no such event, but comments."""
        return b'data: {"type":"keepalive"}\n\n' if self._exchange.is_codex else b": keep-alive\n\n"

    def _encoded(self, events: list[dict[str, Any]]) -> bytes:
        frames = [encode(event) for event in events]
        if self._exchange.keeps:
            for event, frame in zip(events, frames, strict=True):
                self._exchange.keep(self._exchange.events, event, len(frame))
        return b"".join(frames)


class ChatShape:
    """The chunks as they came."""

    def begin(self) -> bytes:
        """Nothing."""
        return b""

    def chunk(self, chunk: Mapping[str, Any]) -> bytes:
        """The chunk."""
        return b"data: " + orjson.dumps(chunk) + b"\n\n"

    def end(self) -> bytes:
        """The mark without which an answer is not whole."""
        return b"data: [DONE]\n\n"

    def fail(self, problem: Problem) -> bytes:
        """The error where a chunk would be, and no mark."""
        return b"data: " + orjson.dumps({"error": problem.error(), "status_code": problem.status}) + b"\n\n"

    def keep_alive(self) -> bytes:
        """A comment."""
        return b": keep-alive\n\n"
