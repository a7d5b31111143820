"""Saved conversations: sessions that survive a restart, and may be used from two terminals.

interface.py says what can be asked, problems.py what can go wrong, store.py what is kept; trim.py and
prompting.py decide what is sent, asking.py sends it, and cerebras.py puts them together.
"""

from cbatch.conversations.cerebras import Conversations, default_path
from cbatch.conversations.interface import (
    Attachment,
    ConversationClient,
    Message,
    MessageStream,
    Session,
    UsageMetrics,
)
from cbatch.conversations.problems import (
    AnswerNotSaved,
    MessageTooLong,
    SessionBusy,
    SessionEnded,
    SessionError,
    StoreError,
    UnknownModel,
    UnknownSession,
)

__all__ = [
    "AnswerNotSaved",
    "Attachment",
    "ConversationClient",
    "Conversations",
    "Message",
    "MessageStream",
    "MessageTooLong",
    "Session",
    "SessionBusy",
    "SessionEnded",
    "SessionError",
    "StoreError",
    "UnknownModel",
    "UnknownSession",
    "UsageMetrics",
    "default_path",
]
