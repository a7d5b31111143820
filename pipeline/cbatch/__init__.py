"""The batch and parallel prompt pipeline for the Cerebras Inference API."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# name -> module: imported when it is asked for, so that `import cbatch` costs nothing.
_HOMES = {
    "Answer": "library",
    "AsyncCerebras": "sdk",
    "Cerebras": "sdk",
    "Client": "library",
    "ConversationClient": "conversations",
    "Conversations": "conversations",
    "Delta": "library",
    "Failed": "library",
    "Stream": "library",
    "arun": "jobs",
    "run": "jobs",
}

if TYPE_CHECKING:
    from cbatch.conversations import ConversationClient, Conversations
    from cbatch.jobs import arun, run
    from cbatch.library import Answer, Client, Delta, Failed, Stream
    from cbatch.sdk import AsyncCerebras, Cerebras


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"cbatch.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'cbatch' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


__all__ = [
    "Answer",
    "AsyncCerebras",
    "Cerebras",
    "Client",
    "ConversationClient",
    "Conversations",
    "Delta",
    "Failed",
    "Stream",
    "__version__",
    "arun",
    "run",
]
