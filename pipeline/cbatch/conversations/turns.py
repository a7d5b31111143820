"""What a session is made of, and how it is written: rows of the store <-> values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any

import orjson

from cbatch.conversations.interface import Attachment, Reply, Session, State
from cbatch.schema import Usage

TITLE_CHARS = 60
_REPLY = {field.name for field in fields(Reply)}
_USAGE = {field.name for field in fields(Usage)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A message and what became of it. `answer` is what came of it, perhaps not all."""

    n: int
    state: State
    replaces: int | None
    asked_at: datetime
    model: str
    message: str
    answered_at: datetime | None
    answer: str | None
    reply: Reply
    attachments: tuple[Attachment, ...] = ()

    @property
    def counts(self) -> bool:
        """Whether the model is told of it later: there is an answer, or the part that was not stopped."""
        return self.state in ("answered", "stopped") and bool((self.answer or "").strip())


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A summary of the turns up to `upto`."""

    upto: int
    created_at: datetime
    model: str
    text: str
    reply: Reply


def replaced(turns: Sequence[Turn], also: int | None = None) -> set[int]:
    """The turns that were asked again and answered since; `also` is one that is being asked again now."""
    gone = set() if also is None else {also}
    for turn in sorted(turns, key=lambda t: t.n, reverse=True):
        if turn.replaces is not None and (turn.counts or turn.n in gone):
            gone.add(turn.replaces)
    return gone


def session_of(row: Sequence[Any]) -> Session:
    """A session from its row: see `SESSIONS` in the store."""
    session_id, user_id, model, system, created_at, updated_at, ended_at, turns, first = row
    words = " ".join((first or "").split())
    return Session(
        id=session_id,
        user_id=user_id,
        model=model,
        system=system,
        created_at=read_time(created_at),
        updated_at=read_time(updated_at),
        ended_at=read_time(ended_at) if ended_at is not None else None,
        turns=turns,
        title=words if len(words) <= TITLE_CHARS else f"{words[: TITLE_CHARS - 1]}…",
    )


def turn_of(row: Sequence[Any], attachments: tuple[Attachment, ...]) -> Turn:
    """A turn from its row, without the session."""
    n, state, replaces, asked_at, model, message, answered_at, answer, reply = row
    return Turn(
        n=n,
        state=state,
        replaces=replaces,
        asked_at=read_time(asked_at),
        model=model,
        message=message,
        answered_at=read_time(answered_at) if answered_at is not None else None,
        answer=answer,
        reply=decode(reply),
        attachments=attachments,
    )


def time_text(time: datetime) -> str:
    """A time as it is stored: texts sort as times do."""
    return time.isoformat(timespec="microseconds")


def read_time(text: str) -> datetime:
    """A stored time."""
    return datetime.fromisoformat(text)


def clean(text: str | None) -> str | None:
    """Text that can be stored and sent."""
    # Half an emoji, or bytes of a terminal that are no UTF-8: neither SQLite nor the API can take them.
    return None if text is None else text.encode("utf-8", "replace").decode()


def encode(reply: Reply) -> str:
    """What was measured, as it is stored."""
    found = {name: value for name, value in asdict(reply).items() if value is not None}
    try:
        return orjson.dumps(found).decode()
    except TypeError:
        reply_text = {name: clean(value) if isinstance(value, str) else value for name, value in found.items()}
        return orjson.dumps(reply_text, default=str).decode()


def decode(text: str | None) -> Reply:
    """What was measured; fields of a newer cbatch are left out."""
    found = orjson.loads(text) if text else {}
    usage = Usage(**{name: value for name, value in found.pop("usage", {}).items() if name in _USAGE})
    return Reply(usage=usage, **{name: value for name, value in found.items() if name in _REPLY})
