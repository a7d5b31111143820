"""What a stricter service refuses: requests that some deployments of the real one took and others did not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from .validate import Chat
from .wire import ErrorAnswer, Refused, bad_value, unsupported

__all__ = ["REFUSALS", "check_refusals"]


def _tools_with_schema(chat: Chat) -> ErrorAnswer | None:
    # The message was reported by users in June 2026; param and code are those of other bad bodies.
    if not chat.tools or chat.json_mode != "json_schema":
        return None
    return bad_value("validation_error", '"tools" is incompatible with "response_format"')


def _named_tool_choice(chat: Chat) -> ErrorAnswer | None:
    kind, colon, name = chat.tool_choice.partition(":")
    return _choice(f"type='function' function=ChoiceObjectFunction(name='{name}')") if kind and colon else None


def _required_tool_choice(chat: Chat) -> ErrorAnswer | None:
    return _choice("required") if chat.tool_choice == "required" else None


def _choice(given: str) -> ErrorAnswer:
    # Reported for a named function in August 2025; for `required` in the same words by analogy.
    return bad_value("tool_choice", f"Unsupported tool_choice: {given}. Expected 'auto' or 'none'.")


def _reasoning_in_history(chat: Chat) -> ErrorAnswer | None:
    paths = [
        f"messages.{index}.assistant.reasoning"
        for index, message in enumerate(chat.body["messages"])
        if message["role"] == "assistant" and "reasoning" in message
    ]
    return unsupported(paths) if paths else None


def _developer_role(chat: Chat) -> ErrorAnswer | None:
    if chat.model.startswith("gpt-oss"):
        return None
    for index, message in enumerate(chat.body["messages"]):
        if message["role"] == "developer":
            accepted = "'assistant', 'system', 'tool' or 'user'"
            return bad_value("messages", f"messages.{index}.role: Input should be {accepted}")
    return None


REFUSALS: Mapping[str, Callable[[Chat], ErrorAnswer | None]] = MappingProxyType(
    {
        "tools_with_schema": _tools_with_schema,
        "named_tool_choice": _named_tool_choice,
        "required_tool_choice": _required_tool_choice,
        "reasoning_in_history": _reasoning_in_history,
        "developer_role": _developer_role,
    }
)


def check_refusals(chat: Chat, names: Iterable[str]) -> None:
    """Raise Refused for the first of `names` that the request offends."""
    for name in names:
        answer = REFUSALS[name](chat)
        if answer is not None:
            raise Refused(answer)
