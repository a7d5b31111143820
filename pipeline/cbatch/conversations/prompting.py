"""Turns -> the messages that are sent: what fits, in the forms that the API accepts."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cbatch.conversations import trim
from cbatch.conversations.interface import Attachment
from cbatch.conversations.problems import MessageTooLong, SessionError
from cbatch.conversations.turns import Turn

IMAGES = ("image/png", "image/jpeg")  # what the API takes, as data: URIs
TEXTS = ("application/json", "application/xml", "application/x-yaml", "application/toml", "application/javascript")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A request's messages, and what is known of their size."""

    messages: list[dict[str, Any]]
    estimate: int  # tokens
    left_out: int  # turns
    alone: bool  # nothing is left that could be left out


def prepare(
    system: str | None,
    turns: Sequence[Turn],
    message: str,
    attachments: Sequence[Attachment],
    budget: trim.Budget,
    *,
    send_reasoning: bool,
    alone: bool = False,
) -> Prepared:
    """The system prompt, as many of the newest turns as fit (`alone`: none), and the new message."""
    first = [{"role": "system", "content": system}] if system else []
    last = {"role": "user", "content": _content(message, attachments)}
    pairs = [_pair(turn, send_reasoning=send_reasoning) for turn in turns]
    sizes = [sum(map(_size, pair)) for pair in pairs]
    fixed = sum(map(_size, first)) + _size(last)
    gone = len(pairs) if alone else trim.left_out(sizes, fixed, budget)
    messages = [*first, *(part for pair in pairs[gone:] for part in pair), last]
    estimate = fixed + sum(sizes[gone:]) + trim.PREAMBLE_TOKENS
    return Prepared(messages=messages, estimate=estimate, left_out=gone, alone=gone == len(pairs))


def too_long(model: str, prepared: Prepared, budget: trim.Budget) -> MessageTooLong:
    """The error for a message that is refused although nothing else is left to leave out."""
    tokens = int(prepared.estimate * budget.factor)
    return MessageTooLong(
        f"the message is too long for {model}: about {tokens:,} tokens with the system prompt, "
        f"and {budget.context:,} is the most for prompt and answer together",
        hint="send it in parts, or switch to a model with more context; the session is as it was",
    )


def check_attachments(attachments: Sequence[Attachment]) -> None:
    """Raise SessionError for what no model can be sent."""
    for attachment in attachments:
        if attachment.media_type not in IMAGES and not _is_text(attachment):
            raise SessionError(
                f"{attachment.name}: {attachment.media_type} cannot be sent",
                hint="accepted: text/*, JSON and the like in UTF-8, image/png, image/jpeg",
            )


def _pair(turn: Turn, *, send_reasoning: bool) -> list[dict[str, Any]]:
    answer: dict[str, Any] = {"role": "assistant", "content": turn.answer}
    if send_reasoning and turn.reply.reasoning:
        answer["reasoning"] = turn.reply.reasoning  # `reasoning_content` is refused
    return [{"role": "user", "content": _content(turn.message, turn.attachments)}, answer]


def _content(text: str, attachments: Sequence[Attachment]) -> str | list[dict[str, Any]]:
    if not attachments:
        return text
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    for attachment in attachments:
        if attachment.media_type in IMAGES:
            url = f"data:{attachment.media_type};base64,{base64.b64encode(attachment.data).decode()}"
            parts.append({"type": "image_url", "image_url": {"url": url}})
        else:
            said = attachment.data.decode("utf-8", "replace")
            parts.append({"type": "text", "text": f"[attached: {attachment.name}]\n{said}"})
    return parts


def _is_text(attachment: Attachment) -> bool:
    if not attachment.media_type.startswith("text/") and attachment.media_type not in TEXTS:
        return False
    try:
        attachment.data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _size(message: dict[str, Any]) -> int:
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    text = "".join(part["text"] for part in parts if part["type"] == "text")
    images = sum(part["type"] == "image_url" for part in parts)
    return trim.tokens(text + message.get("reasoning", ""), images)
