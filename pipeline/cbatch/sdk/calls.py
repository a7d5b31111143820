"""Call, Wanted: what a method asks for, and what becomes of the answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cbatch.sdk import errors
from cbatch.sdk.given import not_given
from cbatch.sdk.web import Response

# Loads (the usual type, all types that may come): pydantic costs 100 ms, and an import need not.
Load = Callable[[], tuple[Any, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What an answer is to become."""

    load: Load
    stream: bool = False
    is_async: bool = False
    strict: bool = False

    @property
    def kind(self) -> Any:
        """What it becomes."""
        return self.load()[0]

    def parsed(self, response: Response, data: Any, to: Any = None) -> Any:
        """What is in a response; `data` is its JSON where that was decoded."""
        kind, union = self.load() if to is None else (to, to)
        if self.stream:
            from cbatch.sdk.stream import AsyncStream, Stream

            stream: Any = AsyncStream if self.is_async else Stream
            return stream(cast_to=kind, union=union, response=response, strict=self.strict)
        if kind is None or kind is type(None):
            return None
        if kind is Response:
            return response
        if kind is bytes:
            return response.content
        if kind in (str, int, float):
            return kind(response.text)
        if kind is bool:
            return response.text.lower() == "true"
        from pydantic import ValidationError

        from cbatch.sdk.models import build

        try:
            found = data if data is not None else response.json()
        except ValueError:
            return response.text
        try:
            return build(found, kind, union, strict=self.strict)
        except ValidationError as exc:
            raise errors.APIResponseValidationError(response, found) from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a method, before the client's own settings are added."""

    method: str
    path: str
    wanted: Wanted
    fields: Mapping[str, Any] | None = None
    content: bytes | None = None
    query: Mapping[str, Any] = field(default_factory=dict)
    extra_headers: Mapping[str, Any] | None = None
    timeout: Any = not_given
    max_retries: float | None = None
    model: str | None = None
