"""The batch and parallel prompt pipeline for the Cerebras Inference API."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# name -> module: imported when it is asked for, so that `import cbatch` costs nothing.
_HOMES = {
    "APIConnectionError": "errors",
    "APIError": "errors",
    "APIStatusError": "errors",
    "APITimeoutError": "errors",
    "Answer": "library",
    "AsyncCerebras": "sdk",
    "AuthenticationError": "errors",
    "BadRequestError": "errors",
    "CbatchError": "errors",
    "Cerebras": "sdk",
    "Client": "library",
    "ConversationClient": "conversations",
    "Conversations": "conversations",
    "Delta": "library",
    "Failed": "library",
    "InternalServerError": "errors",
    "JobError": "errors",
    "KeyProblem": "errors",
    "Message": "conversations",
    "NotFoundError": "errors",
    "PermissionDeniedError": "errors",
    "RateLimitError": "errors",
    "RunStopped": "errors",
    "SessionError": "conversations",
    "Stream": "library",
    "Summary": "session",
    "arun": "jobs",
    "run": "jobs",
}

if TYPE_CHECKING:
    from cbatch.conversations import ConversationClient, Conversations, Message, SessionError
    from cbatch.errors import (
        APIConnectionError,
        APIError,
        APIStatusError,
        APITimeoutError,
        AuthenticationError,
        BadRequestError,
        CbatchError,
        InternalServerError,
        JobError,
        KeyProblem,
        NotFoundError,
        PermissionDeniedError,
        RateLimitError,
        RunStopped,
    )
    from cbatch.jobs import arun, run
    from cbatch.library import Answer, Client, Delta, Failed, Stream
    from cbatch.sdk import AsyncCerebras, Cerebras
    from cbatch.session import Summary


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"cbatch.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'cbatch' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = [
    "APIConnectionError",
    "APIError",
    "APIStatusError",
    "APITimeoutError",
    "Answer",
    "AsyncCerebras",
    "AuthenticationError",
    "BadRequestError",
    "CbatchError",
    "Cerebras",
    "Client",
    "ConversationClient",
    "Conversations",
    "Delta",
    "Failed",
    "InternalServerError",
    "JobError",
    "KeyProblem",
    "Message",
    "NotFoundError",
    "PermissionDeniedError",
    "RateLimitError",
    "RunStopped",
    "SessionError",
    "Stream",
    "Summary",
    "__version__",
    "arun",
    "run",
]
