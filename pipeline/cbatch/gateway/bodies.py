"""Bytes of a request, compressed or not -> the JSON object in them, within bounds."""

from __future__ import annotations

import sys
import zlib
from typing import Any

import orjson

from cbatch.gateway.faults import Problem, Refused

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_BODY_BYTES = 64 * 1024 * 1024  # images, and long histories; Codex compresses what it sends to "OpenAI"
ACCEPTED = "identity, gzip, deflate, zstd"


def decoded(raw: bytes, encoding: str) -> bytes:
    """The body as it was before `Content-Encoding`. Raises Refused, 415 for an unknown one, 413 beyond the bound.

    One encoding at most: a header has room for a thousand, each of which would be undone.
    """
    names = [name for one in encoding.lower().split(",") if (name := one.strip()) not in ("", "identity")]
    if not names:
        return raw
    name = names[0]
    if len(names) > 1 or name not in ("gzip", "x-gzip", "deflate", "zstd"):
        message = f"Content-Encoding is {encoding[:40]!r}; accepted: one of {ACCEPTED}"
        raise Refused(Problem(status=415, message=message, code="unsupported_encoding"))
    try:
        return _unzstd(raw) if name == "zstd" else _inflated(raw, gzip=name != "deflate")
    except (zlib.error, zstd.ZstdError, EOFError) as exc:
        message = f"the body is not valid {name} data: {exc or 'it breaks off'}"
        raise Refused(Problem(status=400, message=message, code="invalid_body")) from None


def parsed(body: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises Refused (400)."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise Refused(Problem(status=400, message=f"the body is not JSON: {exc}", code="invalid_json")) from None
    if not isinstance(value, dict):
        message = f"the body is a JSON {type(value).__name__}; accepted: an object"
        raise Refused(Problem(status=400, message=message, code="invalid_json"))
    return value


def too_large() -> Refused:
    """The error for a body beyond the bound."""
    message = f"the body is larger than {MAX_BODY_BYTES // 2**20} MB"
    return Refused(Problem(status=413, message=message, code="request_too_large"))


def _unzstd(raw: bytes) -> bytes:
    pieces: list[bytes] = []
    room = MAX_BODY_BYTES + 1
    while raw:  # a body may be several frames
        frame = zstd.ZstdDecompressor()
        piece = frame.decompress(raw, max_length=room)
        pieces.append(piece)
        room -= len(piece)
        if room <= 0:
            raise too_large()
        if not frame.eof:
            raise EOFError
        raw = frame.unused_data
    return b"".join(pieces)


def _inflated(raw: bytes, *, gzip: bool) -> bytes:
    # What is called deflate is zlib data with or without its header.
    bits = zlib.MAX_WBITS + 16 if gzip else zlib.MAX_WBITS if raw[:1] and raw[0] & 15 == 8 else -zlib.MAX_WBITS
    pieces: list[bytes] = []
    room = MAX_BODY_BYTES + 1
    while raw:  # gzip may be several members
        stream = zlib.decompressobj(bits)
        piece = stream.decompress(raw, room)
        pieces.append(piece)
        room -= len(piece)
        if room <= 0:
            raise too_large()
        if not stream.eof:
            raise EOFError
        raw = stream.unused_data
    return b"".join(pieces)
