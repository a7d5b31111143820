"""What an answer that passes through says of itself: usage, model, and whether it came to its end.

The bytes are only looked at, after they went on: of a stream, the event that is not yet whole is kept, and of an
answer in one piece all of it. Both are bounded; what is longer is not measured.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from cbatch.gateway.faults import FINAL, LIMITED, TOO_LONG, Problem
from cbatch.replies import read_usage, text_of
from cbatch.schema import Usage
from cbatch.sse import events

MAX_BYTES = 16_000_000  # of one event: the last one holds the whole answer once more, pictures included
HEAD_BYTES = 1_000  # of an event that is longer: its type stands there

_BLANK = re.compile(rb"\n\r?\n|\r\r")  # no optional byte in front: that takes ten times as long
_END = re.compile(rb"response\.(?:completed|incomplete|failed)\b")
# What an event may tell once tokens have come; all others are not parsed.
_TELLING = re.compile(
    rb'response\.(?:completed|incomplete|failed)\b|"usage" ?: ?\{|"finish_reason" ?: ?"|"error"|\[DONE\]'
)
_STATUS = {LIMITED: 429, TOO_LONG: 400, FINAL: 400}  # of what failed inside a stream; others are the server's


class Listener:
    """One answer: `feed` it as it comes, then `close`. Never raises, whatever the bytes are.

    `first` is the mark (seconds) of the bytes with the first token, None without a stream.
    """

    def __init__(self, *, is_stream: bool) -> None:
        self.usage: Usage | None = None
        self.model: str | None = None
        self.request_id: str | None = None
        self.problem: Problem | None = None
        self.first: float | None = None
        self._is_stream = is_stream
        self._is_whole = self._is_cut = False
        self._rest = bytearray()
        self._searched = 0

    def feed(self, piece: bytes, now: float) -> None:
        """The next bytes, which came at `now`."""
        rest = self._rest
        if self._is_stream:
            rest += piece
            at = 0
            while match := _BLANK.search(rest, max(self._searched - 3, at)):
                self._event(bytes(rest[at : match.start()]), now)
                at = self._searched = match.end()
            del rest[:at]
            self._searched = len(rest)
            if len(rest) > MAX_BYTES:
                self._is_cut = True
                del rest[HEAD_BYTES:-3]  # a blank line may have begun
                self._searched = len(rest)
        elif not self._is_cut:
            rest += piece
            if len(rest) > MAX_BYTES:
                self._is_cut = True
                rest.clear()

    def close(self, now: float) -> None:
        """Nothing comes after this: a stream that said neither its end nor an error broke off."""
        rest = bytes(self._rest)
        self._rest.clear()
        if not self._is_stream:
            if isinstance(value := _json(rest), dict):
                self._answer(value)
            return
        if rest:  # some leave out the last blank line
            self._event(rest, now)
        if not self._is_whole and self.problem is None:
            message = "the stream ended before the answer was whole"
            self.problem = Problem(status=502, message=message, code="truncated")

    def _event(self, block: bytes, now: float) -> None:
        if self._is_cut:
            self._is_cut = False
            if (match := _END.search(block[:HEAD_BYTES])) and match[0] == b"response.failed":
                self.problem = Problem(status=502, message="the answer failed")
            self._is_whole |= match is not None
            return
        if self.first is not None and not _TELLING.search(block):
            return
        for name, data, _ in events(block):
            if data == b"[DONE]":
                self._is_whole = True
            elif isinstance(value := _json(data), dict):
                self._said(name.decode("ascii", "replace"), value, now)

    def _said(self, name: str, value: dict[str, Any], now: float) -> None:
        kind = text_of(value.get("type")) or name
        if _END.fullmatch(kind.encode()):
            self._is_whole = True
            if isinstance(response := value.get("response"), dict):
                self._answer({"status": kind.removeprefix("response."), **response})
        elif kind.endswith(".delta"):
            self.first = now if self.first is None else self.first
        elif isinstance(choices := value.get("choices"), list):
            self._chunk(choices, now)
            self._about(value)
        elif kind == "error" or value.get("error"):
            self._failed(value.get("error") or value)

    def _chunk(self, choices: list[Any], now: float) -> None:
        for choice in choices:
            if not isinstance(choice, dict):
                continue
            self._is_whole |= choice.get("finish_reason") is not None
            delta = choice.get("delta")
            says = isinstance(delta, dict) and any(value for key, value in delta.items() if key != "role")
            if says and self.first is None:
                self.first = now

    def _answer(self, answer: dict[str, Any]) -> None:
        """A Response object, or a completion in one piece."""
        self._about(answer)
        if answer.get("status") in ("failed", "cancelled") or (answer.get("error") and "choices" not in answer):
            self._failed(answer.get("error"))

    def _about(self, told: dict[str, Any]) -> None:
        self.model = text_of(told.get("model")) or self.model
        self.request_id = text_of(told.get("id")) or self.request_id
        usage = told.get("usage")
        if isinstance(usage, dict):
            if "input_tokens" in usage:
                usage = {
                    "prompt_tokens": usage.get("input_tokens"),
                    "prompt_tokens_details": usage.get("input_tokens_details"),
                    "completion_tokens": usage.get("output_tokens"),
                    "completion_tokens_details": usage.get("output_tokens_details"),
                    "total_tokens": usage.get("total_tokens"),
                }
            self.usage = read_usage(usage)

    def _failed(self, error: object) -> None:
        error = error if isinstance(error, dict) else {"message": error}
        code = text_of(error.get("code"))
        self.problem = Problem(
            status=_STATUS.get(code or "", 502), message=text_of(error.get("message")) or "the answer failed", code=code
        )


def _json(data: bytes) -> object:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
