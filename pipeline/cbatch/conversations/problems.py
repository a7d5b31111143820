"""What can go wrong with a saved conversation. Whatever it is, the session stays as it was.

    CbatchError
    └─ SessionError             a saved conversation, or how it was asked for, is wrong     exit 2
       ├─ UnknownSession        no session has this id; the nearest one is named
       ├─ SessionEnded          it takes no more messages
       ├─ UnknownModel          the key does not see it; the nearest one is named
       ├─ MessageTooLong        it does not fit into the model's context, even alone
       └─ StoreError            the file cannot be used: damaged, foreign, newer, unwritable, full     exit 1
          ├─ AnswerNotSaved     an answer came, was paid for and could not be written; it is attached
          └─ SessionBusy        another terminal has been waiting for its answer for too long

An empty message is a SessionError. What the API refuses is an APIError, as everywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cbatch.errors import CbatchError

if TYPE_CHECKING:
    from cbatch.conversations.interface import Message


class SessionError(CbatchError):
    """A saved conversation, or how it was asked for, is wrong; nothing has changed."""

    exit_code = 2


class UnknownSession(SessionError):
    """No session has this id."""


class SessionEnded(SessionError):
    """The session was ended and takes no more messages; it can still be read."""


class UnknownModel(SessionError):
    """The key does not see this model."""


class MessageTooLong(SessionError):
    """The message does not fit into the model's context, even without any history."""


class StoreError(SessionError):
    """The file of the sessions cannot be used; the message names it."""

    exit_code = 1


class AnswerNotSaved(StoreError):
    """An answer came and could not be written: `answer` has it, and the next call tries again to write it."""

    def __init__(self, message: str, *, hint: str | None, answer: Message) -> None:
        super().__init__(message, hint=hint)
        self.answer = answer


class SessionBusy(StoreError):
    """Another terminal or program is still waiting for an answer in this session."""
