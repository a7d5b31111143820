"""A chat completion, whole and in chunks. Names, fields and their order are the official SDK's."""

from __future__ import annotations

from typing import List, Literal, Optional, TypeAlias, Union  # noqa: UP035  a field named `object` or `list` hides it

from cbatch.sdk.models import BaseModel

# The SDK has every part twice, once for answers and once for chunks; here each pair has one ancestor.

FinishReason = Literal["stop", "length", "content_filter", "tool_calls"]
Role = Literal["assistant", "user", "system", "tool"]


class _Function(BaseModel):
    arguments: Optional[str] = None
    name: Optional[str] = None


class _TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: Optional[List[int]] = None


class _TimeInfo(BaseModel):
    completion_time: Optional[float] = None
    created: Optional[float] = None
    prompt_time: Optional[float] = None
    queue_time: Optional[float] = None
    total_time: Optional[float] = None


class _CompletionTokensDetails(BaseModel):
    accepted_prediction_tokens: Optional[int] = None
    reasoning_tokens: Optional[int] = None
    rejected_prediction_tokens: Optional[int] = None


class _PromptTokensDetails(BaseModel):
    cached_tokens: Optional[int] = None


# -- a whole answer ---------------------------------------------------------------------------------


class ChatCompletionResponseChoiceMessageToolCallFunction(_Function):
    """The function that the model wants called; `arguments` is JSON."""


class ChatCompletionResponseChoiceMessageToolCall(BaseModel):
    """A call that the model wants made."""

    function: ChatCompletionResponseChoiceMessageToolCallFunction
    type: Literal["function"]
    id: Optional[str] = None
    index: Optional[int] = None


class ChatCompletionResponseChoiceMessage(BaseModel):
    """What the model said."""

    role: Role
    content: Optional[str] = None
    reasoning: Optional[str] = None
    tool_calls: Optional[List[ChatCompletionResponseChoiceMessageToolCall]] = None


class ChatCompletionResponseChoiceLogprobsContentTopLogprob(_TopLogprob):
    """A token that could have stood there."""


class ChatCompletionResponseChoiceLogprobsContent(BaseModel):
    """A token that stands there."""

    token: str
    logprob: float
    top_logprobs: List[ChatCompletionResponseChoiceLogprobsContentTopLogprob]
    bytes: Optional[List[int]] = None


class ChatCompletionResponseChoiceLogprobsRefusalTopLogprob(_TopLogprob):
    """The same, in a refusal."""


class ChatCompletionResponseChoiceLogprobsRefusal(BaseModel):
    """The same, in a refusal."""

    token: str
    logprob: float
    top_logprobs: List[ChatCompletionResponseChoiceLogprobsRefusalTopLogprob]
    bytes: Optional[List[int]] = None


class ChatCompletionResponseChoiceLogprobs(BaseModel):
    """How probable the tokens of an answer were."""

    content: Optional[List[ChatCompletionResponseChoiceLogprobsContent]] = None
    refusal: Optional[List[ChatCompletionResponseChoiceLogprobsRefusal]] = None


class ChatCompletionResponseChoiceReasoningLogprobsContentTopLogprob(_TopLogprob):
    """The same, in reasoning."""


class ChatCompletionResponseChoiceReasoningLogprobsContent(BaseModel):
    """The same, in reasoning."""

    token: str
    logprob: float
    top_logprobs: List[ChatCompletionResponseChoiceReasoningLogprobsContentTopLogprob]
    bytes: Optional[List[int]] = None


class ChatCompletionResponseChoiceReasoningLogprobsRefusalTopLogprob(_TopLogprob):
    """The same, in the reasoning of a refusal."""


class ChatCompletionResponseChoiceReasoningLogprobsRefusal(BaseModel):
    """The same, in the reasoning of a refusal."""

    token: str
    logprob: float
    top_logprobs: List[ChatCompletionResponseChoiceReasoningLogprobsRefusalTopLogprob]
    bytes: Optional[List[int]] = None


class ChatCompletionResponseChoiceReasoningLogprobs(BaseModel):
    """How probable the tokens of the reasoning were."""

    content: Optional[List[ChatCompletionResponseChoiceReasoningLogprobsContent]] = None
    refusal: Optional[List[ChatCompletionResponseChoiceReasoningLogprobsRefusal]] = None


class ChatCompletionResponseChoice(BaseModel):
    """One of the answers."""

    index: int
    message: ChatCompletionResponseChoiceMessage
    finish_reason: Optional[FinishReason] = None
    logprobs: Optional[ChatCompletionResponseChoiceLogprobs] = None
    reasoning_logprobs: Optional[ChatCompletionResponseChoiceReasoningLogprobs] = None


class ChatCompletionResponseTimeInfo(_TimeInfo):
    """The server's own clock, in seconds."""


class ChatCompletionResponseUsageCompletionTokensDetails(_CompletionTokensDetails):
    """What the completion's tokens were."""


class ChatCompletionResponseUsagePromptTokensDetails(_PromptTokensDetails):
    """What the prompt's tokens were."""


class ChatCompletionResponseUsage(BaseModel):
    """Tokens, as the server counted."""

    completion_tokens: Optional[int] = None
    completion_tokens_details: Optional[ChatCompletionResponseUsageCompletionTokensDetails] = None
    image_tokens: Optional[int] = None
    prompt_tokens: Optional[int] = None
    prompt_tokens_details: Optional[ChatCompletionResponseUsagePromptTokensDetails] = None
    total_tokens: Optional[int] = None


class ChatCompletionResponse(BaseModel):
    """A whole answer."""

    id: str
    choices: List[ChatCompletionResponseChoice]
    created: int
    model: str
    object: Literal["chat.completion"]
    system_fingerprint: str
    service_tier: Optional[str] = None
    time_info: Optional[ChatCompletionResponseTimeInfo] = None
    usage: Optional[ChatCompletionResponseUsage] = None


# -- a chunk of a stream ------------------------------------------------------------------------------


class ChatChunkResponseChoiceDeltaToolCallFunction(_Function):
    """A piece of a function call; `arguments` is a piece of JSON."""


class ChatChunkResponseChoiceDeltaToolCall(BaseModel):
    """A piece of a call; pieces of one call have the same index."""

    function: ChatChunkResponseChoiceDeltaToolCallFunction
    type: Literal["function"]
    id: Optional[str] = None
    index: Optional[int] = None


class ChatChunkResponseChoiceDelta(BaseModel):
    """What was added."""

    content: Optional[str] = None
    reasoning: Optional[str] = None
    role: Optional[Role] = None
    tokens: Optional[List[int]] = None
    tool_calls: Optional[List[ChatChunkResponseChoiceDeltaToolCall]] = None


class ChatChunkResponseChoiceLogprobsContentTopLogprob(_TopLogprob):
    """A token that could have stood there."""


class ChatChunkResponseChoiceLogprobsContent(BaseModel):
    """A token that stands there."""

    token: str
    logprob: float
    top_logprobs: List[ChatChunkResponseChoiceLogprobsContentTopLogprob]
    bytes: Optional[List[int]] = None


class ChatChunkResponseChoiceLogprobsRefusalTopLogprob(_TopLogprob):
    """The same, in a refusal."""


class ChatChunkResponseChoiceLogprobsRefusal(BaseModel):
    """The same, in a refusal."""

    token: str
    logprob: float
    top_logprobs: List[ChatChunkResponseChoiceLogprobsRefusalTopLogprob]
    bytes: Optional[List[int]] = None


class ChatChunkResponseChoiceLogprobs(BaseModel):
    """How probable the tokens of a piece were."""

    content: Optional[List[ChatChunkResponseChoiceLogprobsContent]] = None
    refusal: Optional[List[ChatChunkResponseChoiceLogprobsRefusal]] = None


class ChatChunkResponseChoiceReasoningLogprobsContentTopLogprob(_TopLogprob):
    """The same, in reasoning."""


class ChatChunkResponseChoiceReasoningLogprobsContent(BaseModel):
    """The same, in reasoning."""

    token: str
    logprob: float
    top_logprobs: List[ChatChunkResponseChoiceReasoningLogprobsContentTopLogprob]
    bytes: Optional[List[int]] = None


class ChatChunkResponseChoiceReasoningLogprobsRefusalTopLogprob(_TopLogprob):
    """The same, in the reasoning of a refusal."""


class ChatChunkResponseChoiceReasoningLogprobsRefusal(BaseModel):
    """The same, in the reasoning of a refusal."""

    token: str
    logprob: float
    top_logprobs: List[ChatChunkResponseChoiceReasoningLogprobsRefusalTopLogprob]
    bytes: Optional[List[int]] = None


class ChatChunkResponseChoiceReasoningLogprobs(BaseModel):
    """How probable the tokens of a piece of reasoning were."""

    content: Optional[List[ChatChunkResponseChoiceReasoningLogprobsContent]] = None
    refusal: Optional[List[ChatChunkResponseChoiceReasoningLogprobsRefusal]] = None


class ChatChunkResponseChoice(BaseModel):
    """A piece of one of the answers."""

    index: int
    delta: Optional[ChatChunkResponseChoiceDelta] = None
    finish_reason: Optional[FinishReason] = None
    logprobs: Optional[ChatChunkResponseChoiceLogprobs] = None
    reasoning_logprobs: Optional[ChatChunkResponseChoiceReasoningLogprobs] = None
    text: Optional[str] = None
    tokens: Optional[List[int]] = None


class ChatChunkResponseTimeInfo(_TimeInfo):
    """The server's own clock, in seconds; in the last chunk."""


class ChatChunkResponseUsageCompletionTokensDetails(_CompletionTokensDetails):
    """What the completion's tokens were."""


class ChatChunkResponseUsagePromptTokensDetails(_PromptTokensDetails):
    """What the prompt's tokens were."""


class ChatChunkResponseUsage(BaseModel):
    """Tokens, as the server counted; in the last chunk."""

    completion_tokens: Optional[int] = None
    completion_tokens_details: Optional[ChatChunkResponseUsageCompletionTokensDetails] = None
    image_tokens: Optional[int] = None
    prompt_tokens: Optional[int] = None
    prompt_tokens_details: Optional[ChatChunkResponseUsagePromptTokensDetails] = None
    total_tokens: Optional[int] = None


class ChatChunkResponse(BaseModel):
    """A chunk of a stream."""

    id: str
    created: int
    model: str
    object: Literal["chat.completion.chunk"]
    system_fingerprint: str
    choices: Optional[List[ChatChunkResponseChoice]] = None
    service_tier: Optional[str] = None
    time_info: Optional[ChatChunkResponseTimeInfo] = None
    usage: Optional[ChatChunkResponseUsage] = None


# -- an error in place of either ------------------------------------------------------------------------


class ErrorChunkResponseError(BaseModel):
    """What went wrong."""

    id: Optional[str] = None
    code: Optional[str] = None
    message: Optional[str] = None
    param: Optional[str] = None
    type: Optional[str] = None


class ErrorChunkResponse(BaseModel):
    """An error inside a stream; raised, and never handed over."""

    error: ErrorChunkResponseError
    status_code: int


ChatCompletion: TypeAlias = Union[ChatCompletionResponse, ChatChunkResponse, ErrorChunkResponse]
CompletionCreateResponse: TypeAlias = ChatCompletion  # its name before SDK 1.12
