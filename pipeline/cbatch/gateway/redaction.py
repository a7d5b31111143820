"""A record of anything -> one line of JSON without keys, and no longer than a bound.

The secrets that are known are taken out of every text, wherever it stands, and so is what looks like a key of
somebody else: `csk-…`, `sk-…`, `Bearer …`. A key that an answer spells in several pieces of a stream is not found.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

REMOVED = "(key removed)"
WORD_CHARS = 8  # a shorter secret may be part of a word: it is taken out only where it stands alone
MAX_DEPTH = 100  # orjson writes 254; schemas of tools have ten

# Headers, and fields of the same meaning (an MCP tool of the Responses API has one); a schema's property may have
# the name, and is no text.
_DROPPED = frozenset({
    "authorization", "proxy-authorization", "api-key", "api_key", "apikey", "x-api-key", "x-goog-api-key",
    "x-auth-token", "cookie", "set-cookie",
})  # fmt: skip
_KEY = re.compile(r"(?<![A-Za-z0-9])(?:csk|sk)-[A-Za-z0-9_-]{12,}")
# A token has a digit in it or is long: "bearer authentication" is none.
_BEARER = re.compile(r"([Bb]earer\s+)(?:(?=[^\s0-9]{0,200}[0-9])[A-Za-z0-9._~+/=-]{6,}|[A-Za-z0-9._~+/=-]{16,})")
# What either may look like as JSON, where a line feed before it is a letter: found too often, never too rarely.
_KEY_IN_JSON = re.compile(rb"sk-[A-Za-z0-9_-]{12}")
_BEARER_IN_JSON = re.compile(rb"earer *(?:[\\\x80-\xff]| [^\s0-9]{0,200}[0-9]| [A-Za-z0-9._~+/=-]{16})")
_DROPPED_IN_JSON = (b'authorization"', b'api-key"', b'api_key"', b'apikey"', b'auth-token"', b'cookie"')


class Redaction:
    """What the log may hold: `line` makes it of a record. `secrets` are taken out of every text."""

    def __init__(self, secrets: Sequence[str], *, max_bytes: int) -> None:
        self._max = max_bytes
        self._secrets: tuple[tuple[str, re.Pattern[str] | None], ...] = ()
        self._shortest = len("Bearer 123456")  # of what is looked for
        for secret in secrets:
            self.hide(secret)

    def hide(self, secret: str) -> None:
        """Take out one more secret from here on; may be called from another thread."""
        if not secret or secret in [known for known, _ in self._secrets]:
            return
        word = re.compile(rf"(?<![A-Za-z0-9]){re.escape(secret)}(?![A-Za-z0-9])") if len(secret) < WORD_CHARS else None
        # The longest first: one may be the beginning of another.
        self._shortest = min(self._shortest, len(secret))
        self._secrets = tuple(sorted((*self._secrets, (secret, word)), key=lambda one: -len(one[0])))

    def line(self, record: Mapping[str, Any], size_bytes: int = 0) -> bytes:
        """One JSON object and a line feed, at most `max_bytes`; what is left out for that is marked where it stood.

        `size_bytes` is about what the record takes, if that is known. 0.7 ms for an exchange of 230 KB with a thousand
        events; 12 ms, with the interpreter busy for as long, where something may have to be taken out.
        """
        if size_bytes <= self._max and (out := self._as_it_is(record)) is not None:
            return out
        clean = self._clean(record, 0)
        out = _encoded(clean)
        # Shorter texts first, for those are pictures and files; then shorter lists, for those are the events.
        for step, max_items in enumerate((None, None, 2_000, 500, 100, 20, 4)):
            if len(out) <= self._max:
                return out
            out = _encoded(_shortened(clean, max(self._max // 4 ** (step + 1), 64), max_items))
        if len(out) <= self._max:
            return out
        scalars = {name: value for name, value in clean.items() if not isinstance(value, dict | list)}
        out = _encoded(_shortened(scalars, 64, 20) | {"left_out": "… (everything else: longer than the bound)"})
        return out if len(out) <= self._max else _encoded({"left_out": "… (longer than the bound)"})

    def _as_it_is(self, record: Mapping[str, Any]) -> bytes | None:
        """The line of a record in which nothing is to be changed; None where something may have to be."""
        try:
            out = orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
        except TypeError:
            return None
        if len(out) > self._max or _KEY_IN_JSON.search(out) or _BEARER_IN_JSON.search(out):
            return None
        if any(_encoded(secret)[1:-2] in out for secret, _ in self._secrets):
            return None
        lower = out.lower()
        return None if any(name in lower for name in _DROPPED_IN_JSON) else out

    def _clean(self, value: Any, depth: int) -> Any:
        """A copy that JSON can hold, without secrets."""
        if isinstance(value, str):
            return self._text(value)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int):
            return value if -(2**63) <= value < 2**64 else str(value)
        if isinstance(value, float):
            return value if math.isfinite(value) else str(value)
        if depth == MAX_DEPTH:
            return "… (nested deeper)"
        if isinstance(value, Mapping):
            return {
                self._text(str(name)): self._clean(one, depth + 1)
                for name, one in value.items()
                if not (str(name).lower() in _DROPPED and isinstance(one, str | bytes | list | tuple))
            }
        if isinstance(value, list | tuple):
            if len(value) == 2 and isinstance(value[0], str) and value[0].lower() in _DROPPED:  # a header as a pair
                return [value[0], REMOVED]
            return [self._clean(one, depth + 1) for one in value]
        return self._text(
            bytes(value).decode("utf-8", "replace") if isinstance(value, bytes | bytearray) else str(value)
        )

    def _text(self, text: str) -> str:
        if len(text) < self._shortest:
            return text
        rest = ""
        if len(text) > self._max:  # it cannot fit: a picture of 60 MB is not searched to its end
            end = self._cut(text)
            text, rest = text[:end], _mark(len(text) - end, "character")
        for secret, word in self._secrets:
            if secret in text:
                text = word.sub(REMOVED, text) if word else text.replace(secret, REMOVED)
        if "sk-" in text:
            text = _KEY.sub(REMOVED, text)
        if "earer" in text:
            text = _BEARER.sub(rf"\1{REMOVED}", text)
        return text + rest

    def _cut(self, text: str) -> int:
        """Where to cut, so that no secret is cut into a part that nobody recognises."""
        end, found = self._max, True
        while found:
            found = False
            for secret, _ in self._secrets:
                start = text.find(secret, max(end - len(secret) + 1, 0), end + len(secret) - 1)
                if start != -1:
                    end, found = start, True
        return end


def _shortened(value: Any, max_chars: int, max_items: int | None) -> Any:
    """A copy whose texts and lists are no longer than that, with a mark where something is missing."""
    if isinstance(value, str):
        return value if len(value) <= max_chars else value[:max_chars] + _mark(len(value) - max_chars, "character")
    if isinstance(value, dict):
        names = list(value)
        kept = names if max_items is None else names[:max_items]
        out = {name[:max_chars]: _shortened(value[name], max_chars, max_items) for name in kept}
        if len(kept) < len(names):
            out["…"] = _mark(len(names) - len(kept), "key")
        return out
    if isinstance(value, list):
        if max_items is None or len(value) <= max_items:
            return [_shortened(one, max_chars, max_items) for one in value]
        # The end of a stream says how it ended.
        head, tail = value[: max_items - max_items // 4], value[-(max_items // 4) :]
        out_head = [_shortened(one, max_chars, max_items) for one in head]
        out_tail = [_shortened(one, max_chars, max_items) for one in tail]
        return [*out_head, _mark(len(value) - len(head) - len(tail), "item"), *out_tail]
    return value


def _mark(count: int, what: str) -> str:
    return f"… ({count:,} {what}{'' if count == 1 else 's'} left out)"


def _encoded(value: Any) -> bytes:
    try:
        return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # half a character: a lone surrogate
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
