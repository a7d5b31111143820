"""Earlier responses, in memory: what `previous_response_id` and `GET /v1/responses/{id}` refer to.

Each response keeps its own items and the name of the one before it, so a chat of n turns takes the room of
n turns. Bounded by count and bytes; what was used least recently goes first. A chain of which one part is
gone is unknown as a whole: a conversation without its beginning is another conversation.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

MAX_COUNT = 10_000
MAX_BYTES = 256_000_000  # a long chat with Codex is 1 MB: 256 of them, or thousands of short ones
ENTRY_BYTES = 1_000  # of an entry besides its JSON: objects, keys and links


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    # As JSON: a fifth of the room that its objects take, a size that is known, and nobody else can change it.
    items: bytes
    response: bytes | None
    serial: int
    previous: tuple[str, int] | None  # with its serial: another response that took the name is not the one meant

    @property
    def size(self) -> int:
        return ENTRY_BYTES + len(self.items) + len(self.response or b"")


class Responses:
    """A store of responses; not for threads."""

    def __init__(self, *, max_count: int = MAX_COUNT, max_bytes: int = MAX_BYTES) -> None:
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._bytes = 0
        self._serial = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size_bytes(self) -> int:
        """What the entries take, at most `max_bytes`."""
        return self._bytes

    def put(
        self,
        response_id: str,
        previous_id: str | None,
        items: Sequence[Mapping[str, Any]],
        response: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep a response: `items` are what it added, its new input and then its output.

        One that cannot be kept, such as one larger than the whole store, is unknown afterwards.
        """
        self.delete(response_id)
        previous = None
        if previous_id is not None:
            known = self._entries.get(previous_id)
            previous = (previous_id, known.serial if known else -1)
        self._serial += 1
        try:
            as_json = orjson.dumps(items), orjson.dumps(response) if response is not None else None
        except TypeError:  # read, but nested deeper than can be written: its answer is out, and must not fail now
            return
        entry = _Entry(items=as_json[0], response=as_json[1], serial=self._serial, previous=previous)
        if entry.size > self._max_bytes or self._max_count < 1:
            return
        self._entries[response_id] = entry
        self._bytes += entry.size
        while self._bytes > self._max_bytes or len(self._entries) > self._max_count:
            self._bytes -= self._entries.popitem(last=False)[1].size

    def history(self, response_id: str) -> list[dict[str, Any]]:
        """All items of the conversation up to and with this response, the oldest first.

        Using a chain keeps the whole of it. Raises KeyError with the id of the response that is not there.
        """
        chain: list[str] = []
        name: str | None = response_id
        serial: int | None = None
        while name is not None:
            entry = self._entries.get(name)
            if entry is None or serial not in (None, entry.serial):
                raise KeyError(name)
            chain.append(name)
            # A serial is given after its predecessor's, so there is no circle to run in.
            name, serial = entry.previous or (None, None)
        out: list[dict[str, Any]] = []
        for name in reversed(chain):
            self._entries.move_to_end(name)
            out += orjson.loads(self._entries[name].items)
        return out

    def get(self, response_id: str) -> dict[str, Any] | None:
        """The Response object, or None where it is not, or no longer, there."""
        entry = self._entries.get(response_id)
        if entry is None or entry.response is None:
            return None
        self._entries.move_to_end(response_id)
        found: dict[str, Any] = orjson.loads(entry.response)
        return found

    def delete(self, response_id: str) -> bool:
        """Forget a response, and with it every conversation that went on from it; whether it was there."""
        entry = self._entries.pop(response_id, None)
        if entry is None:
            return False
        self._bytes -= entry.size
        return True
