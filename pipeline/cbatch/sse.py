"""Reply with a stream -> Completion | APIError, and when its tokens came.

The whole body is read after its last byte, so that nothing but a stamp is done while tokens arrive:
a mark is of the socket read in which an event became whole, and taken before anything was parsed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from cbatch.errors import APIError, APIResponseError
from cbatch.replies import Reply, check_storable, excerpt, read_error, read_time_info, read_usage, text_of
from cbatch.schema import Completion, StreamMarks

_LINE = re.compile(rb"([^\r\n]*)(?:\r\n|\n|\r|\Z)")
_BLANKS = (b"\n\n", b"\r\n\r\n", b"\r\r")
_LONGEST_START = len(b"event:")  # fewer bytes do not tell whether it is a stream
_BOM = b"\xef\xbb\xbf"
_START = re.compile(rb"(?:\xef\xbb\xbf)?[\r\n ]*(?:data:|event:|:|id:|retry:)")

# An error inside a stream has no HTTP status of its own; some servers leave out `status_code`, too.
_STATUS_OF = {
    "request_quota_exceeded": 429,
    "token_quota_exceeded": 429,
    "queue_exceeded": 429,
    "context_length_exceeded": 400,
    "service_unavailable": 503,
}


def is_stream(body: bytes) -> bool:
    """Whether the body is an event stream, whatever its Content-Type says."""
    return _START.match(body) is not None


def events(body: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    """(event name, data, offset of its end) of every event that carries data.

    Source: the HTML standard, server-sent events. Only what is cut off at the very end is treated
    differently: it is yielded too, for servers that leave out the last blank line.
    """
    if b"\r" in body or body.startswith(_BOM):  # never inside of JSON, where they are escaped
        yield from _events_by_line(body)
        return
    at = 0
    for block in body.split(b"\n\n"):
        if block.startswith(b"data:") and b"\n" not in block:
            yield b"", block[5:].strip(b" "), at + len(block)
        elif block:
            yield from ((name, data, at + end) for name, data, end in _events_by_line(block))
        at += len(block) + 2


def _events_by_line(body: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    name, end = b"", 0
    data: list[bytes] = []
    at = len(_BOM) if body.startswith(_BOM) else 0
    while at < len(body):
        match = _LINE.match(body, at)
        assert match is not None
        line, at = match[1], match.end()
        if not line:
            if data:
                yield name, b"\n".join(data), end
            name, data = b"", []
            continue
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value.rstrip(b" "))
            end = match.end(1)
        elif field == b"event":
            name = value
    if data:
        yield name, b"\n".join(data), end


class Decoder:
    """The chunks of a stream as they come, for who shows them; errors are left to `read_stream`, at the end."""

    def __init__(self) -> None:
        self._rest = b""
        self._is_stream: bool | None = None

    def chunks(self, piece: bytes) -> Iterator[dict[str, Any]]:
        """The chunks that this piece of the body completes."""
        self._rest += piece
        if self._is_stream is None and (len(self._rest.strip()) >= _LONGEST_START or b"\n" in self._rest.strip()):
            self._is_stream = is_stream(self._rest)
        if not self._is_stream:
            return
        end = max(self._rest.rfind(blank) + len(blank) if blank in self._rest else 0 for blank in _BLANKS)
        whole, self._rest = self._rest[:end], self._rest[end:]
        for name, data, _ in events(whole):
            if name == b"error" or data == b"[DONE]":
                continue
            try:
                chunk = orjson.loads(data)
            except orjson.JSONDecodeError:
                continue
            if isinstance(chunk, dict) and isinstance(chunk.get("choices"), list):
                yield chunk


def read_stream(reply: Reply) -> Completion:
    """The completion that a stream adds up to.

    `usage` and `time_info` may be in any chunk. Raises APIStatusError for an error inside the stream,
    APIResponseError for one that is malformed or stops before finish_reason and [DONE].
    """
    marks = _Marks(reply.reads)
    text: list[str] = []
    reasoning: list[str] = []
    calls = _Calls()
    finish_reason: str | None = None
    done = False
    usage = time_info = None
    about: dict[str, Any] | None = None  # the first chunk with an id: what all of them repeat
    for name, data, end in events(reply.body):
        if data == b"[DONE]":
            done = True
            break
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError as exc:
            if name == b"error":
                raise read_error(Reply(500, reply.headers, data)) from None
            raise APIResponseError(
                f"a chunk of the stream is not JSON ({exc.msg}): {excerpt(data)}", code="malformed_json", truncated=True
            ) from None
        if not isinstance(chunk, dict):
            if name == b"error":
                raise read_error(Reply(500, reply.headers, data))
            raise APIResponseError(f"a chunk of the stream is not an object: {excerpt(data)}", code="invalid_response")
        choices = chunk.get("choices")
        if name == b"error" or chunk.get("error") or (choices is None and ("message" in chunk or "detail" in chunk)):
            raise _error(chunk, reply)
        usage = chunk.get("usage") or usage
        time_info = chunk.get("time_info") or time_info
        if about is None and chunk.get("id") is not None:
            about = chunk
        choice = _first_choice(choices)
        if choice is None:
            continue
        finish_reason = text_of(choice.get("finish_reason")) or finish_reason
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            continue
        thought = text_of(delta.get("reasoning")) or text_of(delta.get("reasoning_content"))
        said = text_of(delta.get("content"))
        characters = 0
        if said is not None:
            text.append(said)
            characters = len(said)
        if called := delta.get("tool_calls"):
            characters += calls.add(called)
        answers = characters > 0
        if thought is not None:
            reasoning.append(thought)
            characters += len(thought)
        if characters:
            marks.carried(end, characters, answers=answers)
    if finish_reason is None or not done:
        missing = " and ".join(
            what for what, there in (("finish_reason", finish_reason is not None), ("[DONE]", done)) if not there
        )
        raise APIResponseError(f"the stream ended without {missing}", code="truncated", truncated=True)
    tool_calls = calls.whole()
    about = about or {}
    return Completion(
        text="".join(text) if text else None,  # as in an answer in one piece: "" was said, None was not
        reasoning="".join(reasoning) or None,
        tool_calls=tool_calls or None,
        finish_reason=finish_reason,
        usage=read_usage(usage),
        time_info=read_time_info(time_info),
        request_id=text_of(about.get("id")),
        served_model=text_of(about.get("model")),
        system_fingerprint=text_of(about.get("system_fingerprint")),
        headers=reply.headers,
        stream=marks.found(),
    )


class _Marks:
    """Which socket reads carried tokens, and when they were."""

    def __init__(self, reads: Sequence[tuple[int, float]]) -> None:
        self._reads = reads
        self._at = 0
        self._chunks = self._carrying = 0
        self._first_characters = self._characters = 0
        self._first = self._last = 0.0
        self._first_answer: float | None = None
        self._gap_s = 0.0
        self._latest = -1

    def carried(self, end: int, characters: int, *, answers: bool) -> None:
        """An event that ends at this byte of the body carried tokens; `answers` if not only reasoning."""
        reads = self._reads
        if not reads:
            return
        at = self._at
        while at < len(reads) - 1 and reads[at][0] < end:
            at += 1
        self._at = at
        stamp = reads[at][1]
        self._chunks += 1
        self._characters += characters
        if at != self._latest:
            if self._carrying:
                self._gap_s = max(self._gap_s, stamp - self._last)
            else:
                self._first = stamp
            self._carrying += 1
            self._latest, self._last = at, stamp
        if self._carrying == 1:
            self._first_characters += characters
        if answers and self._first_answer is None:
            self._first_answer = stamp

    def found(self) -> StreamMarks | None:
        """The marks; None where nothing was stamped, or nothing carried tokens."""
        if not self._carrying:
            return None
        return StreamMarks(
            first=self._first,
            first_answer=self._first_answer,
            last=self._last,
            end=self._reads[-1][1],
            n_chunks=self._chunks,
            n_reads=self._carrying,
            first_share=self._first_characters / self._characters,
            max_gap_s=self._gap_s if self._carrying > 1 else None,
        )


def _first_choice(choices: object) -> dict[str, Any] | None:
    """The part of a chunk that belongs to the first answer: one answer a row, others are not looked at."""
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict) and not choice.get("index"):
            return choice
    return None


class _Calls:
    """Tool calls, put together from their pieces."""

    def __init__(self) -> None:
        self._calls: dict[int, dict[str, Any]] = {}
        self._arguments: dict[int, list[str]] = {}
        self._by_id: dict[str, int] = {}  # of those without an index

    def add(self, pieces: object) -> int:
        """Take the pieces of one chunk; returns how many characters they have."""
        characters = 0
        if not isinstance(pieces, list):
            return 0
        for position, piece in enumerate(pieces):
            if not isinstance(piece, dict):
                continue
            place = self._place(piece, position if len(pieces) > 1 else len(self._calls) - 1)
            call = self._calls.setdefault(place, {})
            for key, value in piece.items():
                if key not in ("index", "function") and value is not None:
                    call[key] = value
            if not isinstance(function := piece.get("function"), dict):
                continue
            named = call.setdefault("function", {})
            if name := text_of(function.get("name")):
                named["name"] = name
                characters += len(name)
            said = text_of(function.get("arguments")) or ""
            self._arguments.setdefault(place, []).append(said)
            characters += len(said)
        return characters

    def whole(self) -> list[dict[str, Any]]:
        """The calls, in the order of their index. Raises APIResponseError."""
        for place, pieces in self._arguments.items():
            self._calls[place]["function"]["arguments"] = "".join(pieces)
        found = [self._calls[place] for place in sorted(self._calls)]
        check_storable(found)
        return found

    def _place(self, piece: dict[str, Any], otherwise: int) -> int:
        """Which call a piece belongs to; where no index says so, a new id is a new call."""
        if isinstance(index := piece.get("index"), int):
            return index
        if (name := text_of(piece.get("id"))) is None:
            return max(otherwise, 0)
        return self._by_id.setdefault(name, len(self._calls))


def _error(chunk: dict[str, Any], reply: Reply) -> APIError:
    inner = chunk.get("error")
    error = inner if isinstance(inner, dict) else chunk
    said = (chunk.get("status_code"), error.get("status_code"), error.get("code"))  # some put the status there
    status = next((one for one in said if isinstance(one, int) and 400 <= one < 600), None)
    if status is None:
        status = _STATUS_OF.get(str(error.get("code")), 500)
    return read_error(Reply(status, reply.headers, orjson.dumps(chunk)))
