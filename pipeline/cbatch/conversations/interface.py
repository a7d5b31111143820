"""What a client of saved conversations can do, whoever answers them.

`ConversationClient` is abstract; `Conversations` is its implementation for Cerebras. Sessions and
messages are values: what has changed since is read anew.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from cbatch.schema import Usage

if TYPE_CHECKING:
    from cbatch.library import Delta, ModelCard

Role = Literal["user", "assistant"]
ExportFormat = Literal["json", "text"]
State = Literal[
    "pending",  # sent; whoever sent it is waiting for the answer
    "answered",
    "stopped",  # by the user, in the middle of the answer
    "failed",
    "unknown",  # sent, and who sent it is gone (a kill): it may have been paid for without a saved answer
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """What goes with a message: text (text/*, JSON), or an image (PNG, JPEG) for models that see."""

    name: str
    media_type: str
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What is known of an answer besides its text; None where it was not measured or not told."""

    reasoning: str | None = None
    tool_calls: list[Any] | None = None
    finish_reason: str | None = None
    usage: Usage = field(default_factory=Usage)
    cost_usd: float | None = None
    latency_s: float | None = None
    ttft_s: float | None = None
    tokens_per_s: float | None = None
    tokens_per_s_source: str | None = None
    attempts: int | None = None
    request_id: str | None = None
    served_model: str | None = None
    error: str | None = None  # why there is no whole answer
    left_out: int = 0  # earlier turns that did not fit into the model's context
    estimate_tokens: int | None = None  # what the prompt was thought to be


@dataclass(frozen=True, slots=True, kw_only=True)
class Message(Reply):
    """One message of a conversation. Of a user's, `state` and `error` say what became of it."""

    id: str  # "amber-falcon-42/3/user": stable
    session_id: str
    role: Role
    content: str
    created_at: datetime  # aware, UTC; of an answer, its end
    model: str  # asked
    state: State
    replaced: bool = False  # asked again since: no longer part of what the model is told
    attachments: tuple[Attachment, ...] = ()

    @property
    def text(self) -> str:
        """The content, by the name that `cbatch.Client` gives it."""
        return self.content

    def __str__(self) -> str:
        return self.content


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A conversation, without its messages."""

    id: str
    user_id: str
    model: str
    system: str | None
    created_at: datetime
    updated_at: datetime
    ended_at: datetime | None
    turns: int
    title: str  # how the first message begins


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageMetrics:
    """What a session has used; summaries and answers that were asked for again are paid for, so they count.

    Tokens and dollars are of the `measured` calls: one that failed or was stopped tells no usage.
    """

    session_id: str
    calls: int
    answered: int
    stopped: int
    failed: int
    unknown: int
    pending: int
    summaries: int
    measured: int
    unpriced: int  # measured, of a model without a known price
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    total_tokens: int
    cost_usd: float | None  # None where no price is known
    latency_s: float | None  # mean
    tokens_per_s: float | None  # of all measured answers: their tokens by their time
    models: dict[str, int]  # calls of each


class MessageStream:
    """An answer as it comes: `async for delta in stream`, then `await stream.message()`.

    `aclose` stops the answer: what came of it is kept in the session, as `stopped`. So is leaving
    `async with stream`, and so is one that was left with `break`, when the same object sends the session's next
    message or is closed. Nothing is sent before the first delta, or the message, is asked for.
    """

    def __init__(self, deltas: AsyncGenerator[Delta | Message, None]) -> None:
        self._source = deltas
        self._message: Message | None = None
        self._advancing = False
        self.has_begun = False

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        self._advancing = self.has_begun = True
        try:
            async for item in self._source:
                if not isinstance(item, Message):
                    return item
                self._message = item
        finally:
            self._advancing = False
        raise StopAsyncIteration

    @property
    def is_idle(self) -> bool:
        """Whether nobody is reading it at the moment: begun, and left without being closed, or read slowly."""
        return not self._advancing

    async def message(self) -> Message:
        """The whole answer as it is saved; reads the rest of the stream. Raises what the stream raises."""
        async for _ in self:
            pass
        if self._message is None:
            raise RuntimeError("the stream was closed before its end: there is no whole answer")
        return self._message

    async def aclose(self) -> None:
        """Stop the answer; what came of it is kept. Harmless after its end."""
        await self._source.aclose()

    async def __aenter__(self) -> MessageStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class ConversationClient(ABC):
    """Conversations that are kept: every method but `list_available_models` and `start_new_session` takes a session id.

    All raise UnknownSession for an id that is not there and StoreError where the sessions cannot be
    read or written. Whatever is raised, the session is as it was before, or has the message with its error.
    """

    @abstractmethod
    async def list_available_models(self) -> list[ModelCard]:
        """The models this key sees, with context and prices where they are known. Raises APIError."""

    @abstractmethod
    async def start_new_session(
        self, user_id: str = "local", model: str | None = None, *, system: str | None = None
    ) -> str:
        """A new session's id: readable, stable, unique in its file. Raises UnknownModel."""

    @abstractmethod
    async def send_message(
        self, session_id: str, message: str, *, attachments: Sequence[Attachment] = (), **params: Any
    ) -> Message:
        """The answer, saved together with the message; `params` are fields of this one request.

        Raises SessionEnded, MessageTooLong, and SessionError for an empty message: the session is as it was. Raises
        APIError: the message is kept with its error, and is no part of what the model is told later.
        """

    @abstractmethod
    def stream_message(
        self, session_id: str, message: str, *, attachments: Sequence[Attachment] = (), **params: Any
    ) -> MessageStream:
        """`send_message`, as it comes."""

    @abstractmethod
    def retry_message(self, session_id: str, **params: Any) -> MessageStream:
        """Ask the last message again, whatever became of it; the new answer replaces the old one."""

    @abstractmethod
    async def list_sessions(self, user_id: str | None = None) -> list[Session]:
        """All sessions, or those of one user; the one that was used last comes first."""

    @abstractmethod
    async def get_session(self, session_id: str) -> Session:
        """The session as it is now."""

    @abstractmethod
    async def get_chat_history(self, session_id: str, limit: int | None = None) -> list[Message]:
        """The last `limit` messages, or all, oldest first; without what was asked again."""

    @abstractmethod
    async def switch_model(self, session_id: str, model: str) -> None:
        """Ask another model from the next message on. Raises UnknownModel, SessionEnded."""

    @abstractmethod
    async def set_system(self, session_id: str, system: str | None) -> None:
        """Another system prompt, or none, from the next message on. Raises SessionEnded."""

    @abstractmethod
    async def get_usage_metrics(self, session_id: str) -> UsageMetrics:
        """Tokens, calls and cost of the session."""

    @abstractmethod
    async def summarize_conversation(self, session_id: str, *, model: str | None = None) -> str:
        """A summary by the session's model, or another; paid for once, and again only after new messages."""

    @abstractmethod
    async def export_chat_history(self, session_id: str, format: ExportFormat = "json") -> str:
        """The whole session as text: JSON with everything, or a transcript to read."""

    @abstractmethod
    async def end_session(self, session_id: str) -> None:
        """Take no more messages. It can still be read; ending it again changes nothing."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close files and connections."""
