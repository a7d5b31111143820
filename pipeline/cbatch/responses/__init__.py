"""The OpenAI Responses API in front of chat completions: pure functions, no I/O.

request.py    Responses request     -> chat request               the whole of it, by whitelist
history.py    input items           -> messages                   turns, calls and their outputs
tools.py      declared tools        -> functions, and names back
schemas.py    JSON Schema           -> what constrained decoding takes
fallback.py   a refused chat request -> the next one to try
events.py     chat chunks           -> Responses events           streamed answers
whole.py      chat completion       -> Response                   answers in one piece
"""

from __future__ import annotations

from cbatch.responses.events import Events, encode
from cbatch.responses.fallback import fallback
from cbatch.responses.request import Target, Translation, TranslationError, input_items, target, to_chat
from cbatch.responses.tools import Declared, ToolNames
from cbatch.responses.whole import to_response, to_usage

__all__ = [
    "Declared",
    "Events",
    "Target",
    "ToolNames",
    "Translation",
    "TranslationError",
    "encode",
    "fallback",
    "input_items",
    "target",
    "to_chat",
    "to_response",
    "to_usage",
]
