"""A chat completion, whole and in chunks. Names, fields and their order are the official SDK's."""

from __future__ import annotations

from typing import Literal, TypeAlias

from cbatch.sdk.models import BaseModel

# The SDK has every part twice, once for answers and once for chunks; here each pair has one ancestor.

FinishReason = Literal["stop", "length", "content_filter", "tool_calls"]
Role = Literal["assistant", "user", "system", "tool"]


class _Function(BaseModel):
    arguments: str | None = None
    name: str | None = None


class _TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None = None


class _TimeInfo(BaseModel):
    completion_time: float | None = None
    created: float | None = None
    prompt_time: float | None = None
    queue_time: float | None = None
    total_time: float | None = None


class _CompletionTokensDetails(BaseModel):
    accepted_prediction_tokens: int | None = None
    reasoning_tokens: int | None = None
    rejected_prediction_tokens: int | None = None


class _PromptTokensDetails(BaseModel):
    cached_tokens: int | None = None


# -- a whole answer ---------------------------------------------------------------------------------


class ChatCompletionResponseChoiceMessageToolCallFunction(_Function):
    """The function that the model wants called; `arguments` is JSON."""


class ChatCompletionResponseChoiceMessageToolCall(BaseModel):
    """A call that the model wants made."""

    function: ChatCompletionResponseChoiceMessageToolCallFunction
    type: Literal["function"]
    id: str | None = None
    index: int | None = None


class ChatCompletionResponseChoiceMessage(BaseModel):
    """What the model said."""

    role: Role
    content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ChatCompletionResponseChoiceMessageToolCall] | None = None


class ChatCompletionResponseChoiceLogprobsContentTopLogprob(_TopLogprob):
    """A token that could have stood there."""


class ChatCompletionResponseChoiceLogprobsContent(BaseModel):
    """A token that stands there."""

    token: str
    logprob: float
    top_logprobs: list[ChatCompletionResponseChoiceLogprobsContentTopLogprob]
    bytes: list[int] | None = None


class ChatCompletionResponseChoiceLogprobsRefusalTopLogprob(_TopLogprob):
    """The same, in a refusal."""


class ChatCompletionResponseChoiceLogprobsRefusal(BaseModel):
    """The same, in a refusal."""

    token: str
    logprob: float
    top_logprobs: list[ChatCompletionResponseChoiceLogprobsRefusalTopLogprob]
    bytes: list[int] | None = None


class ChatCompletionResponseChoiceLogprobs(BaseModel):
    """How probable the tokens of an answer were."""

    content: list[ChatCompletionResponseChoiceLogprobsContent] | None = None
    refusal: list[ChatCompletionResponseChoiceLogprobsRefusal] | None = None


class ChatCompletionResponseChoiceReasoningLogprobsContentTopLogprob(_TopLogprob):
    """The same, in reasoning."""


class ChatCompletionResponseChoiceReasoningLogprobsContent(BaseModel):
    """The same, in reasoning."""

    token: str
    logprob: float
    top_logprobs: list[ChatCompletionResponseChoiceReasoningLogprobsContentTopLogprob]
    bytes: list[int] | None = None


class ChatCompletionResponseChoiceReasoningLogprobsRefusalTopLogprob(_TopLogprob):
    """The same, in the reasoning of a refusal."""


class ChatCompletionResponseChoiceReasoningLogprobsRefusal(BaseModel):
    """The same, in the reasoning of a refusal."""

    token: str
    logprob: float
    top_logprobs: list[ChatCompletionResponseChoiceReasoningLogprobsRefusalTopLogprob]
    bytes: list[int] | None = None


class ChatCompletionResponseChoiceReasoningLogprobs(BaseModel):
    """How probable the tokens of the reasoning were."""

    content: list[ChatCompletionResponseChoiceReasoningLogprobsContent] | None = None
    refusal: list[ChatCompletionResponseChoiceReasoningLogprobsRefusal] | None = None


class ChatCompletionResponseChoice(BaseModel):
    """One of the answers."""

    index: int
    message: ChatCompletionResponseChoiceMessage
    finish_reason: FinishReason | None = None
    logprobs: ChatCompletionResponseChoiceLogprobs | None = None
    reasoning_logprobs: ChatCompletionResponseChoiceReasoningLogprobs | None = None


class ChatCompletionResponseTimeInfo(_TimeInfo):
    """The server's own clock, in seconds."""


class ChatCompletionResponseUsageCompletionTokensDetails(_CompletionTokensDetails):
    """What the completion's tokens were."""


class ChatCompletionResponseUsagePromptTokensDetails(_PromptTokensDetails):
    """What the prompt's tokens were."""


class ChatCompletionResponseUsage(BaseModel):
    """Tokens, as the server counted."""

    completion_tokens: int | None = None
    completion_tokens_details: ChatCompletionResponseUsageCompletionTokensDetails | None = None
    image_tokens: int | None = None
    prompt_tokens: int | None = None
    prompt_tokens_details: ChatCompletionResponseUsagePromptTokensDetails | None = None
    total_tokens: int | None = None


class ChatCompletionResponse(BaseModel):
    """A whole answer."""

    id: str
    choices: list[ChatCompletionResponseChoice]
    created: int
    model: str
    object: Literal["chat.completion"]
    system_fingerprint: str
    service_tier: str | None = None
    time_info: ChatCompletionResponseTimeInfo | None = None
    usage: ChatCompletionResponseUsage | None = None


# -- a chunk of a stream ------------------------------------------------------------------------------


class ChatChunkResponseChoiceDeltaToolCallFunction(_Function):
    """A piece of a function call; `arguments` is a piece of JSON."""


class ChatChunkResponseChoiceDeltaToolCall(BaseModel):
    """A piece of a call; pieces of one call have the same index."""

    function: ChatChunkResponseChoiceDeltaToolCallFunction
    type: Literal["function"]
    id: str | None = None
    index: int | None = None


class ChatChunkResponseChoiceDelta(BaseModel):
    """What was added."""

    content: str | None = None
    reasoning: str | None = None
    role: Role | None = None
    tokens: list[int] | None = None
    tool_calls: list[ChatChunkResponseChoiceDeltaToolCall] | None = None


class ChatChunkResponseChoiceLogprobsContentTopLogprob(_TopLogprob):
    """A token that could have stood there."""


class ChatChunkResponseChoiceLogprobsContent(BaseModel):
    """A token that stands there."""

    token: str
    logprob: float
    top_logprobs: list[ChatChunkResponseChoiceLogprobsContentTopLogprob]
    bytes: list[int] | None = None


class ChatChunkResponseChoiceLogprobsRefusalTopLogprob(_TopLogprob):
    """The same, in a refusal."""


class ChatChunkResponseChoiceLogprobsRefusal(BaseModel):
    """The same, in a refusal."""

    token: str
    logprob: float
    top_logprobs: list[ChatChunkResponseChoiceLogprobsRefusalTopLogprob]
    bytes: list[int] | None = None


class ChatChunkResponseChoiceLogprobs(BaseModel):
    """How probable the tokens of a piece were."""

    content: list[ChatChunkResponseChoiceLogprobsContent] | None = None
    refusal: list[ChatChunkResponseChoiceLogprobsRefusal] | None = None


class ChatChunkResponseChoiceReasoningLogprobsContentTopLogprob(_TopLogprob):
    """The same, in reasoning."""


class ChatChunkResponseChoiceReasoningLogprobsContent(BaseModel):
    """The same, in reasoning."""

    token: str
    logprob: float
    top_logprobs: list[ChatChunkResponseChoiceReasoningLogprobsContentTopLogprob]
    bytes: list[int] | None = None


class ChatChunkResponseChoiceReasoningLogprobsRefusalTopLogprob(_TopLogprob):
    """The same, in the reasoning of a refusal."""


class ChatChunkResponseChoiceReasoningLogprobsRefusal(BaseModel):
    """The same, in the reasoning of a refusal."""

    token: str
    logprob: float
    top_logprobs: list[ChatChunkResponseChoiceReasoningLogprobsRefusalTopLogprob]
    bytes: list[int] | None = None


class ChatChunkResponseChoiceReasoningLogprobs(BaseModel):
    """How probable the tokens of a piece of reasoning were."""

    content: list[ChatChunkResponseChoiceReasoningLogprobsContent] | None = None
    refusal: list[ChatChunkResponseChoiceReasoningLogprobsRefusal] | None = None


class ChatChunkResponseChoice(BaseModel):
    """A piece of one of the answers."""

    index: int
    delta: ChatChunkResponseChoiceDelta | None = None
    finish_reason: FinishReason | None = None
    logprobs: ChatChunkResponseChoiceLogprobs | None = None
    reasoning_logprobs: ChatChunkResponseChoiceReasoningLogprobs | None = None
    text: str | None = None
    tokens: list[int] | None = None


class ChatChunkResponseTimeInfo(_TimeInfo):
    """The server's own clock, in seconds; in the last chunk."""


class ChatChunkResponseUsageCompletionTokensDetails(_CompletionTokensDetails):
    """What the completion's tokens were."""


class ChatChunkResponseUsagePromptTokensDetails(_PromptTokensDetails):
    """What the prompt's tokens were."""


class ChatChunkResponseUsage(BaseModel):
    """Tokens, as the server counted; in the last chunk."""

    completion_tokens: int | None = None
    completion_tokens_details: ChatChunkResponseUsageCompletionTokensDetails | None = None
    image_tokens: int | None = None
    prompt_tokens: int | None = None
    prompt_tokens_details: ChatChunkResponseUsagePromptTokensDetails | None = None
    total_tokens: int | None = None


class ChatChunkResponse(BaseModel):
    """A chunk of a stream."""

    id: str
    created: int
    model: str
    object: Literal["chat.completion.chunk"]
    system_fingerprint: str
    choices: list[ChatChunkResponseChoice] | None = None
    service_tier: str | None = None
    time_info: ChatChunkResponseTimeInfo | None = None
    usage: ChatChunkResponseUsage | None = None


# -- an error in place of either ------------------------------------------------------------------------


class ErrorChunkResponseError(BaseModel):
    """What went wrong."""

    id: str | None = None
    code: str | None = None
    message: str | None = None
    param: str | None = None
    type: str | None = None


class ErrorChunkResponse(BaseModel):
    """An error inside a stream; raised, and never handed over."""

    error: ErrorChunkResponseError
    status_code: int


ChatCompletion: TypeAlias = ChatCompletionResponse | ChatChunkResponse | ErrorChunkResponse
CompletionCreateResponse: TypeAlias = ChatCompletion  # its name before SDK 1.12
