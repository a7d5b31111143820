"""The OpenAI Responses API in front of chat completions: pure functions, no I/O.

    request.py    Responses request      -> chat request              the whole of it, by whitelist
    history.py    input items            -> messages                  turns, calls and their outputs
    tools.py      declared tools         -> functions                 and called names back again
    schemas.py    JSON Schema            -> JSON Schema               what constrained decoding takes
    fallback.py   chat request, refusal  -> chat request              one thing less in it
    events.py     chat chunks            -> Responses events          streamed answers
    whole.py      chat completion        -> Response                  answers in one piece
    calls.py      a called function      -> the item of its tool      what models wrote, as clients read it
    items.py      texts, usage           -> JSON of a Response

The gateway in front of it is `cbatch.gateway`; lines of batch files come through here, too.
"""

from __future__ import annotations

from cbatch.responses.events import Events, encode
from cbatch.responses.fallback import fallback
from cbatch.responses.request import Target, Translation, TranslationError, input_items, target, to_chat
from cbatch.responses.tools import Declared, ToolNames
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
