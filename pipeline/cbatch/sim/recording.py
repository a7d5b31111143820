"""The chat requests that came last, as they were received: what a test of a proxy looks at."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Recording"]

_MAX_REQUESTS = 100
_MAX_BYTES = 32 * 1024 * 1024
_SECRET = frozenset({"authorization", "proxy-authorization", "cookie", "x-api-key", "api-key"})


@dataclass(frozen=True, slots=True)
class _Received:
    headers: dict[str, str]
    body: bytes


class Recording:
    """A ring of at most 100 requests and 32 MiB of bodies; the oldest goes first."""

    def __init__(self) -> None:
        self._ring: deque[_Received] = deque()
        self._bytes = 0

    def add(self, headers: Iterable[tuple[str, str]], body: bytes) -> None:
        """Keep one request; what carries a key is left out."""
        kept: dict[str, str] = {}
        for name, value in headers:
            low = name.lower()
            if low not in _SECRET:
                kept[low] = f"{kept[low]}, {value}" if low in kept else value
        self._ring.append(_Received(kept, body))
        self._bytes += len(body)
        while len(self._ring) > _MAX_REQUESTS or self._bytes > _MAX_BYTES:
            self._bytes -= len(self._ring.popleft().body)

    def last(self, count: int) -> list[dict[str, object]]:
        """The last `count`, oldest first; a body is its text, byte for byte where it is UTF-8."""
        found = list(self._ring)[-count:] if count else []
        return [{"headers": one.headers, "body": one.body.decode(errors="replace")} for one in found]
