"""A text completion. Names, fields and their order are the official SDK's."""

from __future__ import annotations

from typing import Dict, List, Literal, Optional, TypeAlias, Union  # noqa: UP035

from cbatch.sdk.models import BaseModel
from cbatch.sdk.types.chat.chat_completion import (
    ErrorChunkResponse,
    FinishReason,
    _CompletionTokensDetails,
    _PromptTokensDetails,
    _TimeInfo,
)


class CompletionResponseChoiceLogprobs(BaseModel):
    """How probable the tokens were."""

    text_offset: Optional[List[int]] = None
    token_logprobs: Optional[List[float]] = None
    tokens: Optional[List[str]] = None
    top_logprobs: Optional[List[Dict[str, float]]] = None


class CompletionResponseChoice(BaseModel):
    """One of the answers."""

    index: int
    finish_reason: Optional[FinishReason] = None
    logprobs: Optional[CompletionResponseChoiceLogprobs] = None
    text: Optional[str] = None
    tokens: Optional[List[int]] = None


class CompletionResponseTimeInfo(_TimeInfo):
    """The server's own clock, in seconds."""


class CompletionResponseUsageCompletionTokensDetails(_CompletionTokensDetails):
    """What the completion's tokens were."""


class CompletionResponseUsagePromptTokensDetails(_PromptTokensDetails):
    """What the prompt's tokens were."""


class CompletionResponseUsage(BaseModel):
    """Tokens, as the server counted."""

    completion_tokens: Optional[int] = None
    completion_tokens_details: Optional[CompletionResponseUsageCompletionTokensDetails] = None
    image_tokens: Optional[int] = None
    prompt_tokens: Optional[int] = None
    prompt_tokens_details: Optional[CompletionResponseUsagePromptTokensDetails] = None
    total_tokens: Optional[int] = None


class CompletionResponse(BaseModel):
    """A whole answer, or a chunk of one."""

    id: str
    choices: List[CompletionResponseChoice]
    created: int
    model: str
    object: Literal["text_completion"]
    system_fingerprint: str
    time_info: Optional[CompletionResponseTimeInfo] = None
    usage: Optional[CompletionResponseUsage] = None


Completion: TypeAlias = Union[CompletionResponse, ErrorChunkResponse]
