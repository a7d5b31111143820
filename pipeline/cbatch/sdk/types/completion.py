"""A text completion. Names, fields and their order are the official SDK's."""

from __future__ import annotations

from typing import Literal, TypeAlias

from cbatch.sdk.models import BaseModel
from cbatch.sdk.types.chat.chat_completion import (
    ErrorChunkResponse,
    ErrorChunkResponseError,
    FinishReason,
    _CompletionTokensDetails,
    _PromptTokensDetails,
    _TimeInfo,
)


class CompletionResponseChoiceLogprobs(BaseModel):
    """How probable the tokens were."""

    text_offset: list[int] | None = None
    token_logprobs: list[float] | None = None
    tokens: list[str] | None = None
    top_logprobs: list[dict[str, float]] | None = None


class CompletionResponseChoice(BaseModel):
    """One of the answers."""

    index: int
    finish_reason: FinishReason | None = None
    logprobs: CompletionResponseChoiceLogprobs | None = None
    text: str | None = None
    tokens: list[int] | None = None


class CompletionResponseTimeInfo(_TimeInfo):
    """The server's own clock, in seconds."""


class CompletionResponseUsageCompletionTokensDetails(_CompletionTokensDetails):
    """What the completion's tokens were."""


class CompletionResponseUsagePromptTokensDetails(_PromptTokensDetails):
    """What the prompt's tokens were."""


class CompletionResponseUsage(BaseModel):
    """Tokens, as the server counted."""

    completion_tokens: int | None = None
    completion_tokens_details: CompletionResponseUsageCompletionTokensDetails | None = None
    image_tokens: int | None = None
    prompt_tokens: int | None = None
    prompt_tokens_details: CompletionResponseUsagePromptTokensDetails | None = None
    total_tokens: int | None = None


class CompletionResponse(BaseModel):
    """A whole answer, or a chunk of one."""

    id: str
    choices: list[CompletionResponseChoice]
    created: int
    model: str
    object: Literal["text_completion"]
    system_fingerprint: str
    time_info: CompletionResponseTimeInfo | None = None
    usage: CompletionResponseUsage | None = None


Completion: TypeAlias = CompletionResponse | ErrorChunkResponse

__all__ = [
    "Completion",
    "CompletionResponse",
    "CompletionResponseChoice",
    "CompletionResponseChoiceLogprobs",
    "CompletionResponseTimeInfo",
    "CompletionResponseUsage",
    "CompletionResponseUsageCompletionTokensDetails",
    "CompletionResponseUsagePromptTokensDetails",
    "ErrorChunkResponse",
    "ErrorChunkResponseError",
]
