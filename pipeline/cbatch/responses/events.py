"""Chat chunks -> the events of a Responses stream.

Clients act on `response.output_item.done` alone, and only if its item is whole; they believe an answer only after
`response.completed`. So a call is done when the whole answer is: of an answer that breaks off none was executed, and
asking again repeats nothing. That also lets the pieces of several calls come in any order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import orjson

from cbatch.responses import calls
from cbatch.responses.items import (
    message_item,
    reasoning_item,
    response_object,
    summary_part,
    text_part,
    to_usage,
)

if TYPE_CHECKING:
    from cbatch.responses.request import Translation
    from cbatch.responses.tools import Declared

__all__ = ["Events", "encode"]

Event = dict[str, Any]

_STARTED = 2  # events of start(); their numbers are theirs, whenever it is asked for them
_MOST_BLANKS = 64  # before a text; models put some around their calls, and some models never stop
_CUT = {"length": "max_output_tokens", "content_filter": "content_filter"}
_BROKEN = frozenset({"error", "abort", "aborted", "cancelled", "canceled"})  # of servers that end a stream so


def encode(event: Mapping[str, Any]) -> bytes:
    """One frame of the stream."""
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), orjson.dumps(event))


@dataclass(slots=True)
class _Block:
    """An item of text that is still being said."""

    kind: Literal["reasoning", "message"]
    item_id: str
    index: int
    pieces: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Call:
    """A tool call whose arguments are still coming. It is shown as soon as its name is known."""

    upstream_id: str  # "" where the upstream gave none
    name: str
    pieces: list[str] = field(default_factory=list)
    declared: Declared | None = None  # once it is shown
    item_id: str = ""
    call_id: str = ""
    index: int = -1
    streams: bool | None = None  # its arguments go out as they come; None until their first character is there

    def take(self, piece: str) -> str:
        """Take a piece of the arguments; returns it, without the blanks before the first."""
        piece = piece if self.pieces else piece.lstrip()
        if piece:
            self.pieces.append(piece)
        return piece

    def arguments(self) -> str:
        return "".join(self.pieces)


class Events:
    """One answer; every method returns the events that what it was told makes.

    `start()` may be called after chunks were read: its events are numbered first.
    """

    def __init__(self, translation: Translation, *, response_id: str, created_at: int) -> None:
        self._names = translation.tools
        self._offered = frozenset(tool["function"]["name"] for tool in translation.chat.get("tools", ()))
        self._object = response_object(translation, response_id, created_at)
        self._suffix = response_id.removeprefix("resp_")
        self._ending: dict[str, Any] = {}
        self._sequence = _STARTED
        self._n_items = 0
        self._done: dict[int, dict[str, Any]] = {}  # by output index
        self._block: _Block | None = None
        self._held: list[str] = []  # text of which it is not clear yet what it is
        self._is_marked = False  # the held text begins like a call
        self._wrote = False  # a message was begun
        self._calls: list[_Call] = []
        self._by_key: dict[int | str, _Call] = {}  # by index, or by id where there is none
        self._call_ids: set[str] = set()
        self._finish_reason: str | None = None
        self._usage: object = None

    @property
    def response(self) -> dict[str, Any]:
        """The Response as it stands: its output are the items that are done."""
        output = [self._done[index] for index in sorted(self._done)]
        return {**self._object, "output": output, **self._ending}

    def start(self) -> list[Event]:
        """`response.created` and `response.in_progress`."""
        return [
            {"type": "response.created", "sequence_number": 0, "response": self._object},
            {"type": "response.in_progress", "sequence_number": 1, "response": self._object},
        ]

    def chunk(self, chunk: Mapping[str, Any]) -> list[Event]:
        """The events of one chunk, which may have any shape."""
        if usage := chunk.get("usage"):
            self._usage = usage
        events: list[Event] = []
        choice = _first_choice(chunk.get("choices"))
        if choice is None:
            return events
        if isinstance(delta := choice.get("delta"), dict):
            thought = delta.get("reasoning") or delta.get("reasoning_content")
            if thought and isinstance(thought, str):
                self._say("reasoning", thought, events)
            said = delta.get("content")
            if said and isinstance(said, str):
                self._write(said, events)
            if (called := delta.get("tool_calls")) and isinstance(called, list):
                self._call(called, events)
        reason = choice.get("finish_reason")
        if reason and isinstance(reason, str):
            self._finish_reason = reason
        return events

    def finish(self) -> list[Event]:
        """The ends of the open items, and how the answer ended; without a finish_reason it did not."""
        reason = self._finish_reason
        if reason is None:
            return self.fail("server_error", "the upstream's answer ended without finish_reason: it was cut off")
        if reason in _BROKEN:
            return self.fail("server_error", f"the upstream's answer ended with finish_reason {reason!r}")
        events: list[Event] = []
        self._settle(events)
        cut = _CUT.get(reason)
        self._end_block(events, "completed" if cut is None else "incomplete")
        for call in self._calls:
            if call.declared is None and cut is None:
                self._show(call, events)  # never named: the client refuses it, and the model is told
        for call in sorted(self._calls, key=lambda call: call.index):
            if cut is None or calls.is_whole(call.arguments()):
                self._end_call(call, events)
        if cut is None:
            return self._end("completed", {}, events)
        return self._end("incomplete", {"incomplete_details": {"reason": cut}}, events)

    def fail(self, code: str, message: str) -> list[Event]:
        """`response.failed`; what is open stays open, and nobody executes it."""
        return self._end("failed", {"error": {"code": code, "message": message}}, [])

    def _end(self, status: str, more: dict[str, Any], events: list[Event]) -> list[Event]:
        self._ending = {"status": status, **more, "usage": to_usage(self._usage)}
        return self._emit(events, f"response.{status}", response=self.response)

    # -- text ---------------------------------------------------------------------------------------------------------

    def _write(self, text: str, events: list[Event]) -> None:
        """Text of the answer. What may still become a call, or only blanks around one, is not shown yet."""
        block = self._block
        if block is not None and block.kind == "message":
            self._say("message", text, events)
            return
        self._held.append(text)
        if self._is_marked:
            return
        text = "".join(self._held)
        said = text.lstrip()
        if len(text) - len(said) <= _MOST_BLANKS:
            if not said:
                return
            # The whole text must be a call, so a text after another, or after a call, is none.
            if self._offered and not self._wrote and not self._calls and calls.may_be_marked(said):
                self._is_marked = said.startswith(calls.MARK + "{")
                return
        self._release(events)

    def _release(self, events: list[Event]) -> None:
        text = "".join(self._held)
        self._held.clear()
        self._is_marked = False
        self._say("message", text, events)

    def _settle(self, events: list[Event]) -> None:
        """At the end it is clear what the held text is; blanks beside calls are nothing."""
        text = "".join(self._held)
        found = calls.marked(text, self._offered)
        if found:
            self._held.clear()
            for name, arguments in found:
                call = _Call("", name)
                call.take(arguments)
                self._add(call, events)
        elif text and not (self._calls and text.isspace()):
            self._release(events)

    def _say(self, kind: Literal["reasoning", "message"], text: str, events: list[Event]) -> None:
        """Text for the block that is open, or for a new one."""
        block = self._block
        if block is None or block.kind != kind:
            self._end_block(events)
            block = self._begin_block(kind, events)
        block.pieces.append(text)
        self._sequence = number = self._sequence + 1
        if kind == "message":  # written out: this is the event that nearly every chunk makes
            events.append(
                {
                    "type": "response.output_text.delta",
                    "sequence_number": number - 1,
                    "item_id": block.item_id,
                    "output_index": block.index,
                    "content_index": 0,
                    "delta": text,
                    "logprobs": [],
                }
            )
        else:
            events.append(
                {
                    "type": "response.reasoning_summary_text.delta",
                    "sequence_number": number - 1,
                    "item_id": block.item_id,
                    "output_index": block.index,
                    "summary_index": 0,
                    "delta": text,
                }
            )

    def _begin_block(self, kind: Literal["reasoning", "message"], events: list[Event]) -> _Block:
        index, item_id = self._place("rs" if kind == "reasoning" else "msg")
        block = self._block = _Block(kind, item_id, index)
        if kind == "reasoning":
            self._added(reasoning_item(item_id, [], "in_progress"), index, events)
            self._in(block, events, "response.reasoning_summary_part.added", part=summary_part(""))
        else:
            self._wrote = True
            self._added(message_item(item_id, [], "in_progress"), index, events)
            self._in(block, events, "response.content_part.added", part=text_part(""))
        return block

    def _end_block(self, events: list[Event], status: str = "completed") -> None:
        block, self._block = self._block, None
        if block is None:
            return
        text = "".join(block.pieces)
        if block.kind == "reasoning":
            part = summary_part(text)
            self._in(block, events, "response.reasoning_summary_text.done", text=text)
            self._in(block, events, "response.reasoning_summary_part.done", part=part)
            self._item_done(reasoning_item(block.item_id, [part], status), block.index, events)
        else:
            part = text_part(text)
            self._in(block, events, "response.output_text.done", text=text, logprobs=[])
            self._in(block, events, "response.content_part.done", part=part)
            self._item_done(message_item(block.item_id, [part], status), block.index, events)

    # -- calls --------------------------------------------------------------------------------------------------------

    def _call(self, pieces: list[Any], events: list[Event]) -> None:
        """The pieces of calls that one chunk holds."""
        for position, piece in enumerate(pieces):
            if not isinstance(piece, dict):
                continue
            function = piece.get("function")
            function = function if isinstance(function, dict) else {}
            upstream_id, name = _text(piece.get("id")), _text(function.get("name"))
            arguments = calls.as_text(function.get("arguments"))
            key = piece.get("index")
            if not isinstance(key, int):
                key = upstream_id or None
            call = self._known(key, position if len(pieces) > 1 else -1)
            if call is None or (name and _is_another(call, key, upstream_id, name, arguments)):
                if not (upstream_id or name or arguments):
                    continue
                call = _Call(upstream_id, name)
                call.take(arguments)
                if key is not None:
                    self._by_key[key] = call
                self._add(call, events)
                continue
            arguments = call.take(arguments)
            if name and call.declared is None:
                call.name, call.upstream_id = name, call.upstream_id or upstream_id
                self._show(call, events)
            elif arguments:
                self._show_arguments(call, arguments, events)

    def _known(self, key: int | str | None, position: int) -> _Call | None:
        """The call that a piece belongs to: by index, by id, by its place among several, or the latest."""
        if key is not None:
            return self._by_key.get(key)
        if not self._calls or position >= len(self._calls):
            return None
        return self._calls[position]

    def _add(self, call: _Call, events: list[Event]) -> None:
        if self._held:
            if "".join(self._held).isspace():
                self._held.clear()
            else:
                self._release(events)
        self._end_block(events)
        self._calls.append(call)
        if call.name:
            self._show(call, events)

    def _show(self, call: _Call, events: list[Event]) -> None:
        declared = call.declared = self._names.lift(call.name)
        call.index, call.item_id = self._place(calls.prefix(declared))
        call.call_id = call.upstream_id
        if not call.call_id or call.call_id in self._call_ids:  # clients pair calls and outputs by it
            call.call_id = f"call_{self._suffix}_{call.index}"
        self._call_ids.add(call.call_id)
        self._added(calls.item(declared, call.item_id, call.call_id, None), call.index, events)
        self._show_arguments(call, call.arguments(), events)

    def _show_arguments(self, call: _Call, piece: str, events: list[Event]) -> None:
        """Pass on a piece of a function's arguments, if they begin as they must; others are mended at the end."""
        if call.declared is None or call.declared.kind != "function":
            return
        if call.streams is None and piece:
            call.streams = piece.startswith("{")
        if call.streams:
            self._of(call, events, "response.function_call_arguments.delta", delta=piece)

    def _end_call(self, call: _Call, events: list[Event]) -> None:
        declared, text = call.declared, call.arguments()
        if declared is None:
            return
        if declared.kind == "function" and not call.streams:
            text = calls.function_arguments(text)
            self._of(call, events, "response.function_call_arguments.delta", delta=text)
        item = calls.item(declared, call.item_id, call.call_id, text)
        if declared.kind == "function":
            self._of(call, events, "response.function_call_arguments.done", arguments=text)
        elif declared.kind == "custom":
            item["input"] = said = calls.custom_input(text)
            if said:
                self._of(call, events, "response.custom_tool_call_input.delta", delta=said)
            self._of(call, events, "response.custom_tool_call_input.done", input=said)
        self._item_done(item, call.index, events)

    # -- events -------------------------------------------------------------------------------------------------------

    def _place(self, prefix: str) -> tuple[int, str]:
        """(output index, id) of the next item."""
        index = self._n_items
        self._n_items += 1
        return index, f"{prefix}_{self._suffix}_{index}"

    def _emit(self, events: list[Event], name: str, **fields: Any) -> list[Event]:
        events.append({"type": name, "sequence_number": self._sequence, **fields})
        self._sequence += 1
        return events

    def _in(self, block: _Block, events: list[Event], name: str, **fields: Any) -> None:
        place = "summary_index" if block.kind == "reasoning" else "content_index"
        self._emit(events, name, item_id=block.item_id, output_index=block.index, **{place: 0}, **fields)

    def _of(self, call: _Call, events: list[Event], name: str, **fields: Any) -> None:
        self._emit(events, name, item_id=call.item_id, output_index=call.index, **fields)

    def _added(self, item: dict[str, Any], index: int, events: list[Event]) -> None:
        self._emit(events, "response.output_item.added", output_index=index, item=item)

    def _item_done(self, item: dict[str, Any], index: int, events: list[Event]) -> None:
        self._done[index] = item
        self._emit(events, "response.output_item.done", output_index=index, item=item)


def _first_choice(choices: object) -> dict[str, Any] | None:
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict) and not choice.get("index"):
            return choice
    return None


def _is_another(call: _Call, key: int | str | None, upstream_id: str, name: str, arguments: str) -> bool:
    """Whether a named piece begins a call of its own, although its index or id is one of a call there is.

    Some servers number every call 0, some number none; and some repeat name and id in every piece.
    """
    if upstream_id and call.upstream_id and upstream_id != call.upstream_id:
        return True
    if isinstance(key, int):
        return False
    if not call.name or name != call.name:
        return bool(call.name)
    # Without an id a name is all that tells a new call; with the same id it must bring something, too.
    return (key is None or bool(arguments)) and calls.is_whole(call.arguments())


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
