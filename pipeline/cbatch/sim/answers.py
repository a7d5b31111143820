"""What the simulated model says: a pure function of seed, model, request and sampling parameters.

Every text begins with a tag that names the prompt it answers, `[prompt 1a2b3c4d5e6f]`, so that two mixed-up
rows are seen. A larger token limit continues the same text. One token is four characters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from hashlib import blake2b, sha256
from itertools import product
from random import Random
from statistics import NormalDist
from typing import Any

import orjson

from .models import Model
from .schemas import instance
from .validate import Chat

__all__ = [
    "CALL_TOKENS",
    "CHARS_PER_TOKEN",
    "Answer",
    "ToolCall",
    "call_id",
    "compose",
    "cut",
    "fingerprint",
    "prompt_tag",
    "prompt_tokens",
    "show",
    "tokens",
]

CHARS_PER_TOKEN = 4
_IMAGE_TOKENS = 280  # the most one image costs
_MESSAGE_TOKENS = 4  # per message after the first: its role and separators
CALL_TOKENS = 8  # a tool call's framing

_ALL_SENTENCES = [
    f"{subject} {verb} {rest}. "
    for subject, verb, rest in product(
        (
            "The first part",
            "A closer look",
            "This case",
            "The usual reading",
            "One example",
            "The second step",
        ),
        ("shows", "explains", "depends on", "follows from", "agrees with", "rests on"),
        (
            "a small number of facts",
            "the order in which things happen",
            "what was asked in the prompt",
            "the same rule as before",
            "how the values are measured and compared",
            "one condition",
            "the numbers given above",
        ),
    )
]
_COUNT = 251  # prime: a walk through them comes past all of them, whatever its step
_SENTENCES = tuple(Random(0).sample(_ALL_SENTENCES, _COUNT))
_WORDS = "river stone light seven garden window number copper early quiet north paper"
# Quantiles of a log-normal with median 1: ten bits of the digest pick a length, without a random generator.
_SPREAD = tuple(math.exp(0.6 * NormalDist().inv_cdf((i + 0.5) / 1024)) for i in range(1024))
_LONGEST = 12.0  # times the median
_REASONING_TOKENS = {"low": 16, "medium": 40, "high": 160}  # medians


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function the model wants called; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


@dataclass(slots=True)
class Answer:
    """One choice. `content` is None where the wire has no such key; `reasoning` is what the caller sees."""

    content: str | None
    reasoning: str | None
    tool_calls: tuple[ToolCall, ...]
    finish_reason: str
    completion_tokens: int
    reasoning_tokens: int


def tokens(text: str) -> int:
    """How many tokens a text has."""
    return -(-len(text) // CHARS_PER_TOKEN)


def prompt_tokens(chat: Chat, model: Model) -> int:
    """Tokens of the whole prompt, with the model's hidden preamble and its images."""
    return (
        model.preamble_tokens
        + _MESSAGE_TOKENS * (chat.message_count - 1)
        + -(-chat.prompt_chars // CHARS_PER_TOKEN)
        + _IMAGE_TOKENS * chat.images
    )


def prompt_tag(chat: Chat) -> str:
    """The tag of the prompt: the beginning of sha256 of its last user message."""
    return f"[prompt {sha256(chat.last_user.encode()).hexdigest()[:12]}]"


_DECISIVE = ("seed", "temperature", "top_p", "response_format", "tools", "tool_choice", "logit_bias")


def fingerprint(chat: Chat, seed: int) -> bytes:
    """32 bytes that decide the answer; streaming, token limits and accounting fields do not enter."""
    get = chat.body.get
    decisive = [seed, chat.model, chat.body["messages"], chat.effort, [get(name) for name in _DECISIVE]]
    return blake2b(orjson.dumps(decisive, option=orjson.OPT_SORT_KEYS), digest_size=32).digest()


def compose(
    chat: Chat,
    model: Model,
    key: bytes,
    *,
    room: int,
    median: int,
    exact: int | None,
    fault: str | None = None,
) -> Answer:
    """The answer decided by `key`, at most `room` tokens long.

    `median` is the usual length of the text in tokens, `exact` a fixed one for the whole completion. `fault`
    is `empty_answer`, `invalid_output` or anything else, which changes nothing here.
    """
    bits = int.from_bytes(key[:12], "big")
    effort = chat.effort or model.default_effort
    thought = _thought(bits, effort, model, room if exact is None else min(room, exact // 2))
    thought_tokens = tokens(thought)
    cut = thought_tokens >= room
    room -= thought_tokens

    answer = Answer(None, None, (), "length", thought_tokens, thought_tokens)
    if not cut:
        function = _called(chat, bits)
        if fault == "empty_answer":
            answer.content, answer.finish_reason = "", "stop"
        elif function is not None:
            _call(answer, function, chat, key, room)
        else:
            _say(
                answer,
                chat,
                key,
                bits,
                room,
                median,
                None if exact is None else exact - thought_tokens,
                fault,
            )
    if thought:
        show(answer, thought, chat.reasoning_format, model)
    return answer


def _thought(bits: int, effort: str, model: Model, room: int) -> str:
    """The reasoning, at most `room` tokens of it; empty for a model that does not reason."""
    if effort == "none" or not model.efforts:
        return ""
    wanted = _length(bits >> 20, _REASONING_TOKENS[effort])
    return _prose("", bits >> 30, wanted * CHARS_PER_TOKEN).rstrip()[: room * CHARS_PER_TOKEN]


def _length(bits: int, median: int) -> int:
    return max(1, round(median * min(_SPREAD[bits & 1023], _LONGEST)))


def _prose(start: str, bits: int, chars: int) -> str:
    """Sentences after `start` until there are at least `chars` characters."""
    at = bits % _COUNT
    step = 1 + bits // _COUNT % (_COUNT - 1)
    pieces = [start]
    size = len(start)
    while size < chars:
        pieces.append(_SENTENCES[at])
        size += len(_SENTENCES[at])
        at = (at + step) % _COUNT
    return "".join(pieces)


def _called(chat: Chat, bits: int) -> dict[str, Any] | None:
    """The function to call, if any: always when required, for half of the prompts when it is optional."""
    choice = chat.tool_choice
    if choice == "none" or not chat.tools:
        return None
    if choice.startswith("function:"):
        return next(one for one in chat.tools if one["name"] == choice.removeprefix("function:"))
    if choice == "auto" and (chat.last_role == "tool" or bits & 1):
        return None
    return chat.tools[(bits >> 1) % len(chat.tools)]


def _call(answer: Answer, function: dict[str, Any], chat: Chat, key: bytes, room: int) -> None:
    schema = function.get("parameters") or {"type": "object", "properties": {}}
    value = instance(schema, Random(key), prompt_tag(chat), _WORDS)
    arguments = orjson.dumps(value if isinstance(value, dict) else {}).decode()
    name = function["name"]
    used = tokens(name + arguments) + CALL_TOKENS
    answer.finish_reason = "tool_calls"
    if used > room:
        arguments = arguments[: max(0, (room - CALL_TOKENS) * CHARS_PER_TOKEN - len(name))]
        used, answer.finish_reason = room, "length"
    answer.tool_calls = (ToolCall(call_id(key), name, arguments),)
    answer.completion_tokens += used


def call_id(key: bytes) -> str:
    """Nine hex digits, as the service's."""
    return key[16:21].hex()[:9]


def _say(
    answer: Answer,
    chat: Chat,
    key: bytes,
    bits: int,
    room: int,
    median: int,
    exact: int | None,
    fault: str | None,
) -> None:
    if chat.json_mode == "text":
        text = _text(chat, bits, room, median, exact)
    else:
        text = _json(chat, key)
        if fault == "invalid_output":
            text = f"Here is the answer: {text[:-1]}"
    answer.content, answer.finish_reason = cut(text, chat, room)
    answer.completion_tokens += tokens(answer.content)


def cut(text: str, chat: Chat, room: int) -> tuple[str, str]:
    """The text as far as token limit and stop sequences let it come, and the finish reason."""
    reason = "stop"
    if tokens(text) > room:
        text, reason = text[: room * CHARS_PER_TOKEN], "length"
    for sequence in chat.stop:
        at = text.find(sequence)
        if at >= 0:
            text, reason = text[:at], "stop"
    return text, reason


def _text(chat: Chat, bits: int, room: int, median: int, exact: int | None) -> str:
    """A text of the wanted length; one token more than there is room for is enough to be cut."""
    if exact is not None:
        chars = min(exact, room + 1) * CHARS_PER_TOKEN
        return _prose(prompt_tag(chat) + " ", bits >> 40, chars)[:chars]
    wanted = min(max(_length(bits >> 10, median), chat.min_tokens), room + 1)
    return _prose(prompt_tag(chat) + " ", bits >> 40, wanted * CHARS_PER_TOKEN).rstrip()


def _json(chat: Chat, key: bytes) -> str:
    chance = Random(key)
    tag = prompt_tag(chat)
    if chat.schema is not None:
        return orjson.dumps(instance(chat.schema, chance, tag, _WORDS)).decode()
    words = _WORDS.split()
    return orjson.dumps({"prompt": tag, "answer": chance.choice(words), "score": round(chance.random(), 3)}).decode()


def show(answer: Answer, thought: str, form: str, model: Model) -> None:
    """Put the reasoning where `reasoning_format` wants it."""
    if form == "hidden":
        return
    if form != "raw":
        answer.reasoning = thought
        return
    # The tags cost nothing: counting them would make a raw answer longer than a parsed one.
    answer.content = (f"<think>{thought}</think>" if model.think_tags else thought) + (answer.content or "")
