"""The shapes of chat completions, under the names that the official SDK gives them."""

from __future__ import annotations

from cbatch.sdk.types.chat.chat_completion import ChatCompletion, CompletionCreateResponse

__all__ = ["ChatCompletion", "CompletionCreateResponse"]
