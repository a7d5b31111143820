"""The translation between the Responses API and chat completions, under the name that programs import it by.

translation = translate.to_chat(request, translate.target("gpt-oss-120b"))
events = translate.Events(translation, response_id="resp_1", created_at=0)      # or translate.to_response(…)
"""

from __future__ import annotations

from cbatch.responses import (
    Declared,
    Target,
    ToolNames,
    Translation,
    TranslationError,
    fallback,
    input_items,
    target,
    to_chat,
)
from cbatch.responses.events import Events, encode
from cbatch.responses.whole import as_chunk, to_response, to_usage

__all__ = [
    "Declared",
    "Events",
    "Target",
    "ToolNames",
    "Translation",
    "TranslationError",
    "as_chunk",
    "encode",
    "fallback",
    "input_items",
    "target",
    "to_chat",
    "to_response",
    "to_usage",
]
