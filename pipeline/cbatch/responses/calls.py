"""A tool call as a chat model wrote it -> the item that the client declared.

Clients execute a call only if it has exactly the shape of its tool, and drop it without a word otherwise;
models are less exact. What is read here tolerantly are shapes that models were seen to write.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from cbatch.responses.tools import Declared

MARK, _END = "<tool_call>", "</tool_call>"  # how several models write a call that their server did not recognise

_PREFIXES = {"function": "fc", "custom": "ctc", "tool_search": "tsc", "local_shell": "lsh"}
_FENCE = re.compile(r"\s*```[^\n`]*\n(.*?)\n?[ \t]*```\s*", re.DOTALL)
_SHELL_KEYS = {"timeout_ms": "timeout_ms", "working_directory": "working_directory", "workdir": "working_directory"}


def prefix(declared: Declared) -> str:
    """What the ids of such items begin with."""
    return _PREFIXES[declared.kind]


def item(declared: Declared, item_id: str, call_id: str, arguments: str | None) -> dict[str, Any]:
    """The output item of a call; one whose arguments are None has only begun."""
    begun = arguments is None
    status = "in_progress" if begun else "completed"
    if declared.kind == "tool_search":
        return {
            "type": "tool_search_call",
            "id": item_id,
            "call_id": call_id,
            "execution": "client",
            "arguments": {} if arguments is None else _object(arguments),
            "status": status,
        }
    if declared.kind == "local_shell":
        action = {"type": "exec", "command": [], "env": {}} if arguments is None else shell_action(arguments)
        return {"type": "local_shell_call", "id": item_id, "call_id": call_id, "action": action, "status": status}
    is_custom = declared.kind == "custom"
    call: dict[str, Any] = {
        "type": "custom_tool_call" if is_custom else "function_call",
        "id": item_id,
        "call_id": call_id,
        "name": declared.name,
    }
    if declared.namespace is not None:
        call["namespace"] = declared.namespace
    call["input" if is_custom else "arguments"] = arguments or ""
    call["status"] = status
    return call


def function_arguments(text: str) -> str:
    """The arguments of a function as the JSON text that clients parse: nothing is {}, encoded twice is decoded."""
    text = text.strip()
    value = _parsed(text)
    if not text or (value is None and text == "null"):
        return "{}"
    if isinstance(value, str) and isinstance(_parsed(value), dict):
        return value.strip()
    return text


def custom_input(text: str) -> str:
    """The raw text for a custom tool, out of {"input": text}, or what a model wrote in its place."""
    for _ in range(2):  # wrapped twice was seen, too
        value = _parsed(text)
        if isinstance(value, str):
            text = value
            continue
        if not isinstance(value, dict) or (inner := _text_in(value)) is None:
            break
        text = inner
        if not _is_wrapped(text):
            break
    fenced = _FENCE.fullmatch(text)
    return fenced[1] if fenced else text


def shell_action(text: str) -> dict[str, Any]:
    """What a local shell is to execute."""
    said = _object(text)
    command = said.get("command", said.get("cmd"))
    if isinstance(command, str):
        command = ["bash", "-lc", command]
    env = said.get("env")
    action: dict[str, Any] = {
        "type": "exec",
        "command": [str(word) for word in command] if isinstance(command, list) else [],
        "env": {key: str(value) for key, value in env.items()} if isinstance(env, dict) else {},
    }
    for key, name in _SHELL_KEYS.items():
        if said.get(key) is not None:
            action[name] = said[key]
    return action


def is_whole(text: str) -> bool:
    """Whether arguments are all there; those of an answer that was cut off may not be."""
    return isinstance(_parsed(text), dict)


def as_text(arguments: object) -> str:
    """Arguments, or a piece of them, as text; some servers send the object itself."""
    if isinstance(arguments, str):
        return arguments
    if not isinstance(arguments, dict | list) or not arguments:
        return ""
    try:
        return orjson.dumps(arguments).decode()
    except TypeError:  # nested too deeply to be written
        return ""


def marked(text: str, offered: Container[str]) -> list[tuple[str, str]]:
    """(chat name, arguments) of the calls that a text consists of; none if it holds anything else."""
    calls = []
    *blocks, rest = text.split(_END)
    if rest.strip():
        return []
    for block in blocks:
        block = block.strip()
        call = _parsed(block.removeprefix(MARK)) if block.startswith(MARK) else None
        if not isinstance(call, dict) or not isinstance(name := call.get("name"), str) or name not in offered:
            return []
        calls.append((name, as_text(call.get("arguments", call.get("parameters")))))
    return calls


def may_be_marked(text: str) -> bool:
    """Whether more text could still make this a marked call; `text` has no blanks before it."""
    if len(text) <= len(MARK):
        return MARK.startswith(text)
    return text.startswith(MARK) and text[len(MARK) :].lstrip()[:1] in ("", "{")


def _parsed(text: str) -> Any:
    """The JSON value; None where it is none."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    # Bare line breaks inside of strings: what models write who were told "raw text". Half of a surrogate pair
    # is read, too, but can never be written again; it becomes a question mark.
    try:
        value = json.loads(text, strict=False)
        return orjson.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None


def _object(text: str) -> dict[str, Any]:
    value = _parsed(function_arguments(text))
    if not isinstance(value, dict) or not as_text(value):
        return {}
    return value


def _text_in(value: dict[str, Any]) -> str | None:
    """The text that an object wraps: at `input`, or the first there is; of a command line, its last word."""
    for one in (value.get("input"), *value.values()):
        if isinstance(one, str):
            return one
        if isinstance(one, list) and one and all(isinstance(word, str) for word in one):
            return str(one[-1])
    return None if value else ""


def _is_wrapped(text: str) -> bool:
    value = _parsed(text) if text.lstrip().startswith("{") else None
    return isinstance(value, dict) and list(value) == ["input"]
