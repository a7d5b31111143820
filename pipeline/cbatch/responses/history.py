"""The items of a Responses conversation -> chat messages.

Chat knows one assistant message per turn, its calls inside it and every call's output directly behind it. The items
come in looser order, so an assistant turn is collected from all consecutive reasoning, message and call items, whatever
their order, and written in one piece.

Item types without a chat equivalent (hosted tools' calls, compaction, whatever a new client invents) are left out;
everything with a role and content is a message, whatever its type is called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from cbatch.responses.tools import ToolNames, TranslationError

__all__ = ["messages"]

_CALLS = frozenset({"function_call", "custom_tool_call", "tool_search_call", "local_shell_call"})
_OUTPUTS = frozenset(
    {"function_call_output", "custom_tool_call_output", "tool_search_output", "local_shell_call_output"}
)
_ROLES = ("user", "assistant", "system", "developer")
_UNANSWERED = "aborted"  # Codex's own word for a call that was interrupted
_ORPHAN = "[Output of a tool call that is not part of this conversation]"
_IMAGE_TYPES = ("data:image/png;", "data:image/jpeg;", "data:image/jpg;", "http://", "https://")
_TEXTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}

Message = dict[str, Any]
Part = dict[str, Any]


@dataclass(slots=True)
class _Turn:
    """One assistant turn as far as it is known."""

    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[Message] = field(default_factory=list)
    outputs: list[int | None] = field(default_factory=list)  # per call: the item with its output
    is_answered: bool = False  # outputs were seen: what the assistant says next is another turn


def messages(items: Sequence[Mapping[str, Any]], names: ToolNames, *, vision: bool, reasoning: bool) -> list[Message]:
    """The whole conversation; appending items to it appends messages. Raises TranslationError.

    That holds between complete requests: every call has its output, and the assistant did not speak last.
    """
    return _History(items, names, vision=vision, reasoning=reasoning).walk()


class _History:
    """One walk over the items."""

    def __init__(self, items: Sequence[Mapping[str, Any]], names: ToolNames, *, vision: bool, reasoning: bool) -> None:
        self._items = items
        self._names = names
        self._vision = vision
        self._reasoning = reasoning
        self._output_of, self._orphans = _paired(items)
        self._ids: set[str] = set()
        self._turn = _Turn()
        self._said: list[Message] = []

    def walk(self) -> list[Message]:
        for index, item in enumerate(self._items):
            kind = item.get("type")
            if kind in _CALLS:
                self._assistant_turn().calls.append(self._call(item, index))
                self._turn.outputs.append(self._output_of.get(index))
            elif kind in _OUTPUTS:
                if index in self._orphans:
                    self._orphan(item, index)
                elif index in self._turn.outputs:  # not a late one, of a turn that is over
                    self._turn.is_answered = True
            elif kind == "reasoning":
                self._assistant_turn().reasoning += _reasoning_texts(item)
            elif kind == "item_reference":
                where = f"input[{index}]"
                message = f"{where} refers to a stored item; items are not stored here: send the item itself"
                raise TranslationError(message, param=where, code="unsupported_item")
            elif "role" in item and "content" in item:
                self._message(item, index)
        self._flush()
        return self._said

    def _assistant_turn(self) -> _Turn:
        """The turn that an assistant's item belongs to."""
        if self._turn.is_answered:
            self._flush()
        return self._turn

    def _message(self, item: Mapping[str, Any], index: int) -> None:
        role, where = item["role"], f"input[{index}]"
        if role not in _ROLES:
            listed = ", ".join(repr(each) for each in _ROLES)
            message = f"{where}.role is {str(role)[:40]!r}; accepted: {listed}"
            raise TranslationError(message, param=f"{where}.role")
        parts = self._parts(item["content"], f"{where}.content", images=self._vision and role == "user")
        if role == "assistant":
            text = "".join(part["text"] for part in parts)
            if text:
                self._assistant_turn().texts.append(text)
            return
        self._flush()
        content: str | list[Part] = _joined(parts)
        if any(part["type"] == "image_url" for part in parts):
            content = parts
        if content or role == "user":
            # Upstream takes `developer` for one model only, and reads it there as it reads `system`.
            self._said.append({"role": "user" if role == "user" else "system", "content": content})

    def _call(self, item: Mapping[str, Any], index: int) -> Message:
        name = item.get("name")
        match item["type"]:
            case "custom_tool_call":
                arguments = _dumps({"input": _text_of(item.get("input"))})
            case "local_shell_call":
                name = "local_shell"
                action = item.get("action")
                given = action if isinstance(action, dict) else {}
                arguments = _dumps({k: v for k, v in given.items() if k != "type" and v})
            case "tool_search_call":
                name, arguments = "tool_search", object_text(item.get("arguments"))
            case _:
                arguments = object_text(item.get("arguments"))
        if not isinstance(name, str):
            where = f"input[{index}].name"
            raise TranslationError(f"{where} is missing", param=where, code="missing_parameter")
        namespace = item.get("namespace")
        return {
            "id": self._unique(_call_id(item)),
            "type": "function",
            "function": {
                "name": self._names.lower(name, namespace if isinstance(namespace, str) else None),
                "arguments": arguments,
            },
        }

    def _unique(self, call_id: str) -> str:
        """The call's id, or one made of it: models reuse ids between turns, and a request may hold each only once."""
        base = unique = call_id or "call"
        number = 1
        while unique in self._ids:
            number += 1
            unique = f"{base}_{number}"
        self._ids.add(unique)
        return unique

    def _flush(self) -> None:
        turn, self._turn = self._turn, _Turn()
        if not turn.texts and not turn.calls:
            return
        said: Message = {"role": "assistant"}
        if turn.texts:  # no key rather than null, which the service once stumbled over
            said["content"] = "\n\n".join(turn.texts)
        if turn.reasoning and self._reasoning:
            said["reasoning"] = "\n\n".join(turn.reasoning)
        if turn.calls:
            said["tool_calls"] = turn.calls
        self._said.append(said)
        images: list[Part] = []
        for call, index in zip(turn.calls, turn.outputs, strict=True):
            text = _UNANSWERED
            if index is not None:
                text, seen = self._output(self._items[index], index)
                if seen:
                    images += [{"type": "text", "text": f"[Images in the output of {call['function']['name']}]"}, *seen]
            self._said.append({"role": "tool", "tool_call_id": call["id"], "content": text})
        if images:  # only a user may show images
            self._said.append({"role": "user", "content": images})

    def _orphan(self, item: Mapping[str, Any], index: int) -> None:
        """An output without a call: its text is kept, as the user's, since a tool message needs a call."""
        self._flush()
        text, images = self._output(item, index)
        text = f"{_ORPHAN}\n{text}"
        self._said.append({"role": "user", "content": [{"type": "text", "text": text}, *images] if images else text})

    def _output(self, item: Mapping[str, Any], index: int) -> tuple[str, list[Part]]:
        """(text, images) of what a tool gave back."""
        if item["type"] == "tool_search_output":
            return self._found(item), []
        output = item.get("output")
        if isinstance(output, dict) and isinstance(output.get("content"), str | list):
            output = output["content"]  # {"content", "success"}: old clients
        if not isinstance(output, str | list):
            return _text_of(output), []
        parts = self._parts(output, f"input[{index}].output", images=self._vision, strict=False)
        images = [part for part in parts if part["type"] == "image_url"]
        return _joined([part for part in parts if part["type"] == "text"]), images

    def _found(self, item: Mapping[str, Any]) -> str:
        """The tools that a search found; their definitions are among the request's tools."""
        found: list[str] = []
        for tool in item.get("tools") or ():
            if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
                continue
            if tool.get("type") == "namespace":
                inner = [each.get("name") for each in tool.get("tools") or () if isinstance(each, dict)]
                found += [self._names.lower(name, tool["name"]) for name in inner if isinstance(name, str)]
            else:
                found.append(self._names.lower(tool["name"]))
        return f"Found these tools, which can be called now: {', '.join(found)}" if found else "No tools found."

    def _parts(self, content: Any, where: str, *, images: bool, strict: bool = True) -> list[Part]:
        """Content as chat parts: text, and images where they may stand; elsewhere a note tells what was there.

        With `strict`, files and sounds are refused: who sends them expects them to be read.
        """
        if content is None:
            return []
        if isinstance(content, str):
            return [{"type": "text", "text": content}]
        if not isinstance(content, list):
            raise TranslationError(f"{where} should be a string or a list of parts", param=where, code="invalid_type")
        parts: list[Part] = []
        for number, part in enumerate(content):
            place = f"{where}[{number}]"
            if isinstance(part, str):
                parts.append({"type": "text", "text": part})
                continue
            if not isinstance(part, dict):
                raise TranslationError(f"{place} should be an object", param=place, code="invalid_type")
            kind = part.get("type")
            text = part.get(_TEXTS.get(kind, "text") if isinstance(kind, str) else "text")
            if isinstance(text, str):
                parts.append({"type": "text", "text": text})
            elif kind == "input_image":
                parts.append(_image(part, is_shown=images))
            elif strict and kind in ("input_file", "input_audio"):
                message = f"{place} is of type {kind}, which chat completions cannot carry; accepted: text and images"
                raise TranslationError(message, param=place, code="unsupported_content")
            else:
                parts.append({"type": "text", "text": f"[{kind or 'content'} left out]"})
        return parts


def _paired(items: Sequence[Mapping[str, Any]]) -> tuple[dict[int, int], set[int]]:
    """(call's place -> its output's place, places of outputs without a call).

    An output answers the oldest open call of its id, because upstreams use one id again in every turn.
    """
    open_calls: dict[str, list[int]] = {}
    output_of: dict[int, int] = {}
    orphans: set[int] = set()
    for index, item in enumerate(items):
        kind = item.get("type")
        if kind in _CALLS:
            open_calls.setdefault(_call_id(item), []).append(index)
        elif kind in _OUTPUTS:
            waiting = open_calls.get(_call_id(item))
            if waiting:
                output_of[waiting.pop(0)] = index
            else:
                orphans.add(index)
    return output_of, orphans


def _call_id(item: Mapping[str, Any]) -> str:
    call_id = item.get("call_id")
    if not isinstance(call_id, str) and item.get("type") in ("local_shell_call", "local_shell_call_output"):
        call_id = item.get("id")  # what OpenAI's own schema pairs these by
    return call_id if isinstance(call_id, str) else ""


def _reasoning_texts(item: Mapping[str, Any]) -> list[str]:
    """What was thought, else its summary; encrypted thoughts are the client's and its provider's."""
    for key in ("content", "summary"):
        parts = item.get(key)
        if isinstance(parts, list):
            texts = [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
            if any(texts):
                return [text for text in texts if text]
    return []


def _joined(parts: Sequence[Part]) -> str:
    return "\n".join(part["text"] for part in parts if part["type"] == "text")


def _image(part: Mapping[str, Any], *, is_shown: bool) -> Part:
    url = part.get("image_url")
    if isinstance(url, dict):
        url = url.get("url")
    if not isinstance(url, str) or not is_shown:
        return {"type": "text", "text": "[image left out: it cannot be shown to this model]"}
    if not url.startswith(_IMAGE_TYPES):
        return {"type": "text", "text": f"[image left out: {url[:30].split(';')[0]} is neither PNG nor JPEG]"}
    shown: dict[str, Any] = {"url": url}
    if part.get("detail") in ("low", "high", "auto"):
        shown["detail"] = part["detail"]
    return {"type": "image_url", "image_url": shown}


def object_text(arguments: Any) -> str:
    """Arguments as the text of a JSON object, which the upstream wants even where the model failed to write one."""
    if isinstance(arguments, dict):
        return _dumps(arguments)
    if arguments is None or arguments == "":
        return "{}"
    if isinstance(arguments, str):
        try:
            value = orjson.loads(arguments)
            if isinstance(value, dict):
                return arguments  # as it was written: the prompt stays the same to the byte
            if isinstance(value, str) and isinstance(orjson.loads(value), dict):
                return value  # encoded twice
        except orjson.JSONDecodeError:
            if not arguments.strip():
                return "{}"
    return _dumps({"invalid_arguments": _text_of(arguments)})


def _text_of(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else _dumps(value)


def _dumps(value: Any) -> str:
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:
        raise TranslationError("input holds a value that is nested too deeply", param="input") from None
