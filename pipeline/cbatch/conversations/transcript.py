"""Session, turns -> messages, usage, and the texts that are exported."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import datetime
from typing import Any

import orjson

from cbatch.conversations.interface import Attachment, Message, Reply, Session, UsageMetrics
from cbatch.conversations.turns import Summary, Turn, replaced

VERSION = 1  # of the exported JSON
RULE = "─" * 72


def messages_of(session_id: str, turns: Sequence[Turn], *, pending: bool) -> list[Message]:
    """The messages of turns, oldest first; `pending` is whether somebody still waits for the last answer."""
    gone = replaced(turns)
    found: list[Message] = []
    for turn in turns:
        state = "unknown" if turn.state == "pending" and not pending else turn.state
        again = turn.n in gone
        found.append(
            Message(
                id=f"{session_id}/{turn.n}/user",
                session_id=session_id,
                role="user",
                content=turn.message,
                created_at=turn.asked_at,
                model=turn.model,
                state=state,
                replaced=again,
                attachments=turn.attachments,
                error=turn.reply.error,
            )
        )
        if turn.answered_at is not None and (turn.answer or turn.reply.reasoning or state == "answered"):
            found.append(answer_of(session_id, turn, again=again))
    return found


def answer_of(session_id: str, turn: Turn, *, again: bool = False) -> Message:
    """The answer of a turn that has one."""
    assert turn.answered_at is not None
    return Message(
        id=f"{session_id}/{turn.n}/assistant",
        session_id=session_id,
        role="assistant",
        content=turn.answer or "",
        created_at=turn.answered_at,
        model=turn.model,
        state=turn.state,
        replaced=again,
        **{field.name: getattr(turn.reply, field.name) for field in fields(Reply)},
    )


def metrics_of(session_id: str, turns: Sequence[Turn], summaries: Sequence[Summary], *, pending: bool) -> UsageMetrics:
    """What all calls of a session used."""
    states = Counter("unknown" if t.state == "pending" and not pending else t.state for t in turns)
    replies = [*(turn.reply for turn in turns), *(summary.reply for summary in summaries)]
    measured = [reply for reply in replies if reply.usage.total_tokens is not None or reply.cost_usd is not None]
    costs = [reply.cost_usd for reply in measured if reply.cost_usd is not None]
    times = [reply.latency_s for reply in measured if reply.latency_s is not None]

    def total(name: str) -> int:
        return sum(getattr(reply.usage, name) or 0 for reply in measured)

    speeds = [
        (reply.usage.completion_tokens, reply.tokens_per_s)
        for reply in measured
        if reply.usage.completion_tokens and reply.tokens_per_s
    ]
    return UsageMetrics(
        session_id=session_id,
        calls=len(replies),
        answered=states["answered"],
        stopped=states["stopped"],
        failed=states["failed"],
        unknown=states["unknown"],
        pending=states["pending"],
        summaries=len(summaries),
        measured=len(measured),
        unpriced=len(measured) - len(costs),
        prompt_tokens=total("prompt_tokens"),
        cached_tokens=total("cached_tokens"),
        completion_tokens=total("completion_tokens"),
        reasoning_tokens=total("reasoning_tokens"),
        total_tokens=total("total_tokens"),
        cost_usd=sum(costs) if costs else None if measured else 0.0,
        latency_s=sum(times) / len(times) if times else None,
        tokens_per_s=sum(n for n, _ in speeds) / sum(n / speed for n, speed in speeds) if speeds else None,
        models=dict(Counter([*(turn.model for turn in turns), *(summary.model for summary in summaries)])),
    )


def as_json(
    session: Session, messages: Sequence[Message], metrics: UsageMetrics, summary: Summary | None, now: datetime
) -> str:
    """Everything that is kept of a session, as one JSON object."""
    return orjson.dumps(
        {
            "version": VERSION,
            "exported_at": now,
            "session": asdict(session),
            "messages": [_message(message) for message in messages],
            "metrics": asdict(metrics),
            "summary": {"text": summary.text, "model": summary.model, "created_at": summary.created_at}
            if summary
            else None,
        },
        option=orjson.OPT_INDENT_2 | orjson.OPT_UTC_Z,
    ).decode()


def _message(message: Message) -> dict[str, Any]:
    if message.role == "assistant":
        found = asdict(message)
        del found["attachments"]
        return found
    names = ("id", "session_id", "role", "content", "created_at", "model", "state", "replaced", "error")
    return {name: getattr(message, name) for name in names} | {
        "attachments": list(map(_attachment, message.attachments))
    }


def _attachment(attachment: Attachment) -> dict[str, str]:
    """Texts as they are, all else in base64."""
    found = {"name": attachment.name, "media_type": attachment.media_type}
    try:
        return found | {"text": attachment.data.decode()}
    except UnicodeDecodeError:
        return found | {"base64": base64.b64encode(attachment.data).decode()}


def as_text(session: Session, messages: Sequence[Message], metrics: UsageMetrics) -> str:
    """A transcript to read: what was said, by whom and when; no reasoning, and nothing that was asked again."""
    ended = f", ended {_stamp(session.ended_at)}" if session.ended_at else ""
    lines = [
        f"session {session.id}",
        f"user    {session.user_id}",
        f"model   {session.model}",
        f"started {_stamp(session.created_at)}{ended}",
        f"calls   {metrics.calls:,}, {metrics.prompt_tokens:,} tokens in, {metrics.completion_tokens:,} out",
    ]
    if session.system is not None:
        lines += ["", RULE, "system", "", session.system]
    for message in messages:
        if message.replaced:
            continue
        who = "you" if message.role == "user" else message.model
        part = {"stopped": ", stopped here by the user", "failed": ", cut off"}.get(message.state, "")
        lines += ["", RULE, f"{who}, {_stamp(message.created_at)}{part if message.role == 'assistant' else ''}", ""]
        lines.append(message.content.rstrip("\n"))
        lines += [f"[attached: {a.name}, {a.media_type}, {len(a.data):,} bytes]" for a in message.attachments]
        if message.role == "user" and (why := _unanswered(message)):
            lines += ["", f"[{why}]"]
    return "\n".join(lines) + "\n"


def _unanswered(message: Message) -> str | None:
    if message.state == "failed":
        return f"not answered: {message.error}"
    return {
        "pending": "the answer is under way",
        "unknown": "interrupted: what was answered is not known, and may have been paid for",
    }.get(message.state)


def _stamp(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"
