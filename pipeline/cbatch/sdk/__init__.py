"""A drop-in for the official SDK, `cerebras-cloud-sdk`: the same names on cbatch's connections, pacing and retries.

    from cbatch import Cerebras                     # instead of: from cerebras.cloud.sdk import Cerebras
    import cbatch.sdk as sdk                        # sdk.RateLimitError, sdk.types.chat.ChatCompletion, …

DIFFERENCES.md, beside this file, lists what is not the same; tests/integration/test_sdk_conformance.py
runs both against the simulator.

    client.py       Cerebras, AsyncCerebras: settings, and what they ask
    resources.py    their methods
    body.py         parameters -> bytes
    core.py         one request's loop: pacing, sending, trying again
    pacing.py       the account's limits
    wire.py         the transports, with headers of one request
    feed.py         a stream's pieces, from the loop to whoever reads them
    stream.py       Stream, AsyncStream
    background.py   the loop of those who have none
    response.py     raw responses
    web.py          URL, Headers, Request, Response, Timeout
    models.py       JSON -> typed objects (types/)
    errors.py       the exceptions
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cbatch.sdk.errors import (
    APIConnectionError,
    APIError,
    APIResponseValidationError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    CerebrasError,
    ConflictError,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    UnprocessableEntityError,
)
from cbatch.sdk.given import NOT_GIVEN, NotGiven, Omit, not_given, omit

if TYPE_CHECKING:
    from cbatch.sdk import types
    from cbatch.sdk.client import DEFAULT_MAX_RETRIES, AsyncCerebras, Cerebras
    from cbatch.sdk.models import BaseModel
    from cbatch.sdk.response import APIResponse, AsyncAPIResponse
    from cbatch.sdk.stream import AsyncStream, Stream
    from cbatch.sdk.web import DEFAULT_TIMEOUT, Timeout

    Client, AsyncClient = Cerebras, AsyncCerebras

# name -> (module, its name there): imported when it is asked for, because aiohttp and pydantic take their time.
_HOMES = {
    "APIResponse": ("response", "APIResponse"),
    "AsyncAPIResponse": ("response", "AsyncAPIResponse"),
    "AsyncCerebras": ("client", "AsyncCerebras"),
    "AsyncClient": ("client", "AsyncCerebras"),
    "AsyncStream": ("stream", "AsyncStream"),
    "BaseModel": ("models", "BaseModel"),
    "Cerebras": ("client", "Cerebras"),
    "Client": ("client", "Cerebras"),
    "DEFAULT_MAX_RETRIES": ("client", "DEFAULT_MAX_RETRIES"),
    "DEFAULT_TIMEOUT": ("web", "DEFAULT_TIMEOUT"),
    "Stream": ("stream", "Stream"),
    "Timeout": ("web", "Timeout"),
}


def __getattr__(name: str) -> Any:
    if name == "types":
        import_module("cbatch.sdk.types.chat")
        return import_module("cbatch.sdk.types")
    if name in _HOMES:
        module, there = _HOMES[name]
        return getattr(import_module(f"cbatch.sdk.{module}"), there)
    raise AttributeError(f"module 'cbatch.sdk' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, "types"])


__all__ = [
    "DEFAULT_MAX_RETRIES",
    "DEFAULT_TIMEOUT",
    "NOT_GIVEN",
    "APIConnectionError",
    "APIError",
    "APIResponse",
    "APIResponseValidationError",
    "APIStatusError",
    "APITimeoutError",
    "AsyncAPIResponse",
    "AsyncCerebras",
    "AsyncClient",
    "AsyncStream",
    "AuthenticationError",
    "BadRequestError",
    "BaseModel",
    "Cerebras",
    "CerebrasError",
    "Client",
    "ConflictError",
    "InternalServerError",
    "NotFoundError",
    "NotGiven",
    "Omit",
    "PermissionDeniedError",
    "RateLimitError",
    "Stream",
    "Timeout",
    "UnprocessableEntityError",
    "not_given",
    "omit",
    "types",
]
