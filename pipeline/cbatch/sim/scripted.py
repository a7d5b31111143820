"""Which rule of a script a request meets, and what the model says by it."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from .answers import CALL_TOKENS, CHARS_PER_TOKEN, Answer, ToolCall, call_id, cut, show, tokens
from .models import Model
from .script import Rule, Said, When
from .validate import Chat

__all__ = ["Script", "recite"]


class Script:
    """The rules in force, and how often each was used."""

    __slots__ = ("rules", "used")

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        self.used = [0] * len(self.rules)

    def take(self, chat: Chat) -> tuple[int, Rule] | None:
        """The first rule that fits, with its place; it is used by that."""
        for place, rule in enumerate(self.rules):
            if (rule.times is None or self.used[place] < rule.times) and _fits(rule.when, chat):
                self.used[place] += 1
                return place, rule
        return None

    def give_back(self, place: int) -> None:
        """As if the rule had not been used: its request was not admitted."""
        self.used[place] -= 1


def _fits(when: When, chat: Chat) -> bool:
    if when.model is not None and when.model != chat.model:
        return False
    if when.tool is not None and not any(tool["name"] == when.tool for tool in chat.tools):
        return False
    messages = chat.body["messages"]
    if when.step is not None and when.step != sum(message["role"] == "assistant" for message in messages):
        return False
    if when.last is not None and when.last not in _text(messages[-1]):
        return False
    return when.user is None or any(when.user in _text(one) for one in messages if one["role"] == "user")


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content or ())


def recite(said: Said, chat: Chat, model: Model, key: bytes, room: int) -> Answer:
    """The scripted answer, cut where there is no more room; `key` decides the ids of its tool calls."""
    thought = said.reasoning[: room * CHARS_PER_TOKEN]
    room -= tokens(thought)
    answer = Answer(None, None, (), "length", tokens(thought), tokens(thought))
    if room > 0 or not thought:
        answer.finish_reason = "stop"
        if said.content is not None:
            answer.content, answer.finish_reason = cut(said.content, chat, room)
            room -= tokens(answer.content)
            answer.completion_tokens += tokens(answer.content)
        if answer.finish_reason != "length":
            _call(answer, said, key, room)
    if said.finish_reason is not None:
        answer.finish_reason = said.finish_reason
    if said.completion_tokens is not None:
        answer.completion_tokens = said.completion_tokens
        answer.reasoning_tokens = min(answer.reasoning_tokens, said.completion_tokens)
    if thought:
        show(answer, thought, chat.reasoning_format, model)
    return answer


def _call(answer: Answer, said: Said, key: bytes, room: int) -> None:
    found: list[ToolCall] = []
    for number, call in enumerate(said.tool_calls):
        answer.finish_reason = "tool_calls"
        arguments = call.arguments
        used = tokens(call.name + arguments) + CALL_TOKENS
        if used > room:
            arguments = arguments[: max(0, (room - CALL_TOKENS) * CHARS_PER_TOKEN - len(call.name))]
            used, answer.finish_reason = max(0, room), "length"
        own = key if number == 0 else blake2b(key, digest_size=32, salt=number.to_bytes(8, "big")).digest()
        found.append(ToolCall(call_id(own) if call.id is None else call.id, call.name, arguments))
        answer.completion_tokens += used
        room -= used
        if answer.finish_reason == "length":
            break
    answer.tool_calls = tuple(found)
