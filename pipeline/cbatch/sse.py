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
from cbatch.replies import Reply, excerpt, read_error, read_time_info, read_usage, text_of
from cbatch.schema import Completion, StreamMarks

_LINE = re.compile(rb"([^\r\n]*)(?:\r\n|\n|\r|\Z)")
_BOM = b"\xef\xbb\xbf"
_STARTS = (b"data:", b"event:", b":", b"id:", b"retry:")

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
    return body[:64].lstrip(_BOM + b"\r\n ").startswith(_STARTS)


def events(body: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    """(event name, data, offset of its end) of every event that carries data.

    Source: the HTML standard, server-sent events. Only what is cut off at the very end is treated
    differently: it is yielded too, for servers that leave out the last blank line.
    """
    if b"\r" in body or body.startswith(_BOM):  # never inside of JSON, where they are escaped
        yield from _events_by_line(body)
        return
    end = 0
    for block in body.split(b"\n\n"):
        end += len(block)
        if block.startswith(b"data:") and b"\n" not in block:
            yield b"", block[5:].strip(b" "), end
        elif block:
            yield from ((name, data, end) for name, data, _ in _events_by_line(block))
        end += 2


def _events_by_line(body: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    name, data, end = b"", [], 0
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


def read_stream(reply: Reply) -> Completion:
    """The completion that a stream adds up to.

    `usage` and `time_info` may be in any chunk. Raises APIStatusError for an error inside the stream,
    APIResponseError for one that is malformed or stops before finish_reason and [DONE].
    """
    marks = _Marks(reply.reads)
    text: list[str] = []
    reasoning: list[str] = []
    calls: dict[int, dict[str, Any]] = {}
    finish_reason: str | None = None
    done = False
    last: dict[str, Any] = {}  # of what chunks repeat, the last that was said
    for name, data, end in events(reply.body):
        if data == b"[DONE]":
            done = True
            break
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError as exc:
            raise APIResponseError(
                f"a chunk of the stream is not JSON ({exc.msg}): {excerpt(data)}", code="malformed_json", truncated=True
            ) from None
        if not isinstance(chunk, dict):
            raise APIResponseError(f"a chunk of the stream is not an object: {excerpt(data)}", code="invalid_response")
        choices = chunk.get("choices")
        if name == b"error" or chunk.get("error") or (choices is None and "message" in chunk):
            raise _error(chunk, reply)
        for key in ("usage", "time_info", "id", "model", "system_fingerprint"):
            if (value := chunk.get(key)) is not None:
                last[key] = value
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
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
            characters += _merge(calls, called)
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
    return Completion(
        text="".join(text) if text or not calls else None,
        reasoning="".join(reasoning) if reasoning else None,
        tool_calls=[calls[index] for index in sorted(calls)] or None,
        finish_reason=finish_reason,
        usage=read_usage(last.get("usage")),
        time_info=read_time_info(last.get("time_info")),
        request_id=text_of(last.get("id")),
        served_model=text_of(last.get("model")),
        system_fingerprint=text_of(last.get("system_fingerprint")),
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


def _merge(calls: dict[int, dict[str, Any]], deltas: object) -> int:
    """Add pieces of tool calls to what is known of them; returns how many characters came."""
    characters = 0
    for position, piece in enumerate(deltas if isinstance(deltas, list) else []):
        if not isinstance(piece, dict):
            continue
        index = piece.get("index")
        call = calls.setdefault(index if isinstance(index, int) else position, {})
        for key, value in piece.items():
            if key == "function" and isinstance(value, dict):
                function = call.setdefault("function", {})
                if name := text_of(value.get("name")):
                    function["name"] = name
                    characters += len(name)
                if arguments := text_of(value.get("arguments")):
                    characters += len(arguments)
                function["arguments"] = function.get("arguments", "") + (arguments or "")
            elif key != "index" and value is not None:
                call[key] = value
    return characters


def _error(chunk: dict[str, Any], reply: Reply) -> APIError:
    inner = chunk.get("error")
    error = inner if isinstance(inner, dict) else chunk
    status = chunk.get("status_code") or error.get("status_code")
    if not (isinstance(status, int) and 400 <= status < 600):
        status = _STATUS_OF.get(str(error.get("code")), 500)
    return read_error(Reply(status, reply.headers, orjson.dumps(chunk)))
