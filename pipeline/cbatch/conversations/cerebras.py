"""`Conversations`: saved conversations on a `cbatch.Client`.

    async with cbatch.Conversations() as talks:
        session = await talks.start_new_session("ada", "gpt-oss-120b")
        print(await talks.send_message(session, "Why is the sky blue?"))

Async only, as the client is. A message takes this way: the session's lock (one message at a time, also with
several terminals), the message on disk, what fits of the history, the request, the answer on disk. What cannot
be written is an error before anything is sent; an answer that came and cannot be written is attached to
AnswerNotSaved and written by the next call that can.

Reasoning is kept and shown, and not sent back: models are made for a history without it, and it would
take the room of the conversation. `send_reasoning=True` sends it, in the field that the API accepts.
"""

from __future__ import annotations

import asyncio
import difflib
import random
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from weakref import WeakSet, WeakValueDictionary

from cbatch.conversations import trim
from cbatch.conversations.asking import Asked, Budgets, ask, reply_of
from cbatch.conversations.interface import (
    Attachment,
    ConversationClient,
    ExportFormat,
    Message,
    MessageStream,
    Reply,
    Session,
    State,
    UsageMetrics,
)
from cbatch.conversations.lock import exclusive, is_held
from cbatch.conversations.problems import AnswerNotSaved, MessageTooLong, SessionError, StoreError, UnknownModel
from cbatch.conversations.prompting import Prepared, check_attachments, prepare
from cbatch.conversations.store import Store
from cbatch.conversations.summary import summarize
from cbatch.conversations.transcript import answer_of, as_json, as_text, messages_of, metrics_of
from cbatch.conversations.turns import Summary, Turn, replaced
from cbatch.errors import APIStatusError, AuthenticationError, PermissionDeniedError

if TYPE_CHECKING:
    from cbatch.library import Client, Delta, ModelCard

WAIT_S = 900.0  # for another terminal's answer: longer than any takes with all its retries

P = ParamSpec("P")
T = TypeVar("T")


def default_path() -> Path:
    """Where the sessions lie: in the user's data folder."""
    from platformdirs import user_data_path

    return user_data_path("cbatch") / "sessions" / "sessions.sqlite"


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Conversations(ConversationClient):
    """Saved conversations, answered by Cerebras; for use in one event loop."""

    def __init__(
        self,
        client: Client | None = None,
        *,
        path: Path | str | None = None,
        params: Mapping[str, Any] | None = None,
        send_reasoning: bool = False,
        wait_s: float = WAIT_S,
        now: Callable[[], datetime] = _utc_now,
        rng: random.Random | None = None,
        **settings: Any,
    ) -> None:
        """`client` is an open `cbatch.Client`; without one, one is made of `settings` when it is needed.

        So what only reads needs no key. `params` are fields of every request, such as temperature. A message
        waits `wait_s` for another terminal's answer in its session.
        """
        self.store = Store(Path(path) if path is not None else default_path())
        self._client, self._settings, self._owned = client, settings, client is None
        self._params = dict(params or {})
        self._send_reasoning = send_reasoning
        self._wait_s = wait_s
        self._now, self._rng = now, rng or random.SystemRandom()
        self._budgets = Budgets()
        self._cards: dict[str, ModelCard] | None = None
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._streams: dict[str, WeakSet[MessageStream]] = {}
        self._unsaved: list[tuple[str, Turn]] = []
        self._opening = asyncio.Lock()

    async def __aenter__(self) -> Conversations:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Write what could not be written before, if it can be now, and close file and connections.

        Streams that were left in the middle are stopped.
        """
        for session_id in list(self._streams):
            await self._stop_left(session_id)
        with suppress(StoreError):
            await self._call(self.store.close)
        if self._owned and self._client is not None:
            client, self._client = self._client, None
            await client.aclose()

    # -- sessions -------------------------------------------------------------------------------

    async def list_available_models(self) -> list[ModelCard]:
        """The models this key sees, with context and prices where they are known. Raises APIError."""
        found = await (await self._api()).models()
        self._cards = {card.id: card for card in found}
        return found

    async def start_new_session(
        self, user_id: str = "local", model: str | None = None, *, system: str | None = None
    ) -> str:
        """A new session's id: readable, stable, unique in its file. Raises UnknownModel."""
        api = await self._api()
        await self._require_model(model := model or api.model)
        return await self._call(self.store.add_session, user_id, model, system, self._now(), self._rng)

    async def list_sessions(self, user_id: str | None = None) -> list[Session]:
        """All sessions, or those of one user; the one that was used last comes first."""
        return await self._call(self.store.sessions, user_id)

    async def get_session(self, session_id: str) -> Session:
        """The session as it is now."""
        return await self._call(self.store.session, session_id)

    async def switch_model(self, session_id: str, model: str) -> None:
        """Ask another model from the next message on. Raises UnknownModel, SessionEnded."""
        await self.get_session(session_id)
        await self._require_model(model)
        await self._call(self.store.change, session_id, "model", model, self._now())

    async def set_system(self, session_id: str, system: str | None) -> None:
        """Another system prompt, or none, from the next message on. Raises SessionEnded."""
        await self._call(self.store.change, session_id, "system", system or None, self._now())

    async def end_session(self, session_id: str) -> None:
        """Take no more messages. It can still be read; ending it again changes nothing."""
        await self._call(self.store.end, session_id, self._now())

    # -- reading --------------------------------------------------------------------------------

    async def get_chat_history(self, session_id: str, limit: int | None = None) -> list[Message]:
        """The last `limit` messages, or all, oldest first; without what was asked again."""
        if limit is not None and limit < 1:
            raise SessionError(f"limit is {limit}", hint="give 1 or more, or leave it out for all messages")
        found = [message for message in await self._messages(session_id) if not message.replaced]
        return found if limit is None else found[-limit:]

    async def get_usage_metrics(self, session_id: str) -> UsageMetrics:
        """Tokens, calls and cost of the session."""
        turns, pending = await self._turns(session_id)
        return metrics_of(session_id, turns, await self._call(self.store.summaries, session_id), pending=pending)

    async def export_chat_history(self, session_id: str, format: ExportFormat = "json") -> str:
        """The whole session as text: JSON with everything, or a transcript to read."""
        if format not in ("json", "text"):
            raise SessionError(f"format is {format!r}", hint="accepted: json, text")
        session, messages = await self.get_session(session_id), await self._messages(session_id)
        metrics = await self.get_usage_metrics(session_id)
        if format == "text":
            return as_text(session, messages, metrics)
        summaries = [summary for summary in await self._call(self.store.summaries, session_id) if summary.upto]
        return as_json(session, messages, metrics, summaries[-1] if summaries else None, self._now())

    async def _messages(self, session_id: str) -> list[Message]:
        turns, pending = await self._turns(session_id)
        return messages_of(session_id, turns, pending=pending)

    async def _turns(self, session_id: str) -> tuple[list[Turn], bool]:
        """The turns, and whether somebody waits for an answer: looked at twice, for one may begin or end meanwhile."""
        lock = self.store.lock_path(await self._known(session_id))
        pending = is_held(lock)
        turns = await self._call(self.store.turns, session_id)
        return turns, pending or is_held(lock)

    async def _known(self, session_id: str) -> str:
        """The id, if it is one: nothing else becomes the name of a file. Raises UnknownSession."""
        return (await self.get_session(session_id)).id

    # -- asking ---------------------------------------------------------------------------------

    async def send_message(
        self, session_id: str, message: str, *, attachments: Sequence[Attachment] = (), **params: Any
    ) -> Message:
        """The answer, saved together with the message; `params` are fields of this one request."""
        _require_text(message)
        async with MessageStream(self._turn(session_id, message, attachments, params, stream=False)) as stream:
            return await stream.message()

    def stream_message(
        self, session_id: str, message: str, *, attachments: Sequence[Attachment] = (), **params: Any
    ) -> MessageStream:
        """`send_message`, as it comes."""
        _require_text(message)
        return self._kept(session_id, self._turn(session_id, message, attachments, params, stream=True))

    def retry_message(self, session_id: str, **params: Any) -> MessageStream:
        """Ask the last message again, whatever became of it; the new answer replaces the old one."""
        return self._kept(session_id, self._turn(session_id, None, (), params, stream=True))

    def _kept(self, session_id: str, pieces: AsyncGenerator[Delta | Message, None]) -> MessageStream:
        stream = MessageStream(pieces)
        self._streams.setdefault(session_id, WeakSet()).add(stream)
        return stream

    async def _stop_left(self, session_id: str) -> None:
        """Close the streams of a session that nobody reads: else its next message would wait for them."""
        for stream in list(self._streams.get(session_id, ())):
            if stream.is_idle and stream.has_begun:
                await stream.aclose()

    async def _turn(
        self,
        session_id: str,
        message: str | None,
        attachments: Sequence[Attachment],
        params: Mapping[str, Any],
        *,
        stream: bool,
    ) -> AsyncGenerator[Delta | Message, None]:
        """One message: the pieces of its answer, then the answer as it is saved. None asks the last one again."""
        if message is not None and not message.strip() and not attachments:
            raise SessionError("the message is empty", hint="write something, or attach a file")
        check_attachments(attachments)
        await self._stop_left(session_id)
        waiting = self._locks.setdefault(session_id, asyncio.Lock())  # first come, first served: before anything else
        async with waiting:
            lock, api = self.store.lock_path(await self._known(session_id)), await self._api()
            async with (
                exclusive(lock, self._wait_s, session_id),
                aclosing(self._next(api, session_id, message, attachments, params, stream=stream)) as pieces,
            ):
                async for piece in pieces:
                    yield piece

    async def _next(
        self,
        api: Client,
        session_id: str,
        message: str | None,
        attachments: Sequence[Attachment],
        params: Mapping[str, Any],
        *,
        stream: bool,
    ) -> AsyncGenerator[Delta | Message, None]:
        """The next turn of a session that nobody else is asking anything in."""
        await self._call(self.store.require_room)
        turns, again = await self._call(self.store.turns, session_id), None
        if message is None:
            if not turns:
                raise SessionError(f"{session_id}: there is no message to ask again", hint="send one first")
            again, message, attachments = turns[-1].n, turns[-1].message, turns[-1].attachments
        n, session = await self._call(self.store.begin, session_id, message, attachments, again, self._now())
        turn = Turn(
            n=n, state="pending", replaces=again, asked_at=self._now(), model=session.model, message=message,
            answered_at=None, answer=None, reply=Reply(), attachments=tuple(attachments),
        )  # fmt: skip
        async with aclosing(self._ask(api, session, turn, turns, params, stream=stream)) as pieces:
            async for piece in pieces:
                yield piece

    async def _ask(
        self,
        api: Client,
        session: Session,
        turn: Turn,
        turns: Sequence[Turn],
        params: Mapping[str, Any],
        *,
        stream: bool,
    ) -> AsyncGenerator[Delta | Message, None]:
        """A turn that is on disk: asked, and whatever becomes of it is written."""
        gone = replaced(turns, turn.replaces)
        told = [earlier for earlier in turns if earlier.counts and earlier.n not in gone]
        model, send_reasoning = session.model, self._send_reasoning

        def fitting(budget: trim.Budget, *, alone: bool) -> Prepared:
            return prepare(
                session.system, told, turn.message, turn.attachments, budget, send_reasoning=send_reasoning, alone=alone
            )

        if model not in self._budgets and (known := next((t for t in reversed(told) if t.model == model), None)):
            estimate, counted = known.reply.estimate_tokens or 0, known.reply.usage.prompt_tokens
            self._budgets[model] = self._budgets[model].learned(estimate, counted)
        fields = self._params | dict(params)
        text: list[str] = []
        thought: list[str] = []
        asked: Asked | None = None
        try:
            async with aclosing(ask(api, model, fitting, self._budgets, fields, stream=stream)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Asked):
                        asked = piece
                        continue
                    text.append(piece.text)
                    thought.append(piece.reasoning)
                    yield piece
        except MessageTooLong:
            await self._call(self.store.withdraw, session.id, turn.n)
            raise
        except BaseException as exc:
            by_user = isinstance(exc, GeneratorExit | asyncio.CancelledError | KeyboardInterrupt)
            reply = Reply(reasoning="".join(thought) or None, error=None if by_user else str(exc) or repr(exc))
            state: State = "stopped" if by_user else "failed"
            with suppress(StoreError):  # what happened matters more; the turn then reads as interrupted
                await self._finish(session.id, self._with(turn, state, "".join(text), reply))
            raise
        assert asked is not None
        answer, prepared = asked.answer, asked.prepared
        reply = reply_of(answer, prepared.estimate, prepared.left_out)
        turn = self._with(turn, "answered", answer.text or "", reply)
        await self._save(session.id, turn)
        yield answer_of(session.id, turn)

    def _with(self, turn: Turn, state: State, answer: str, reply: Reply) -> Turn:
        return replace(turn, state=state, answered_at=self._now(), answer=answer, reply=reply)

    async def _save(self, session_id: str, turn: Turn) -> None:
        """Write an answer. Raises AnswerNotSaved where it cannot be written."""
        try:
            await self._finish(session_id, turn)
        except StoreError as exc:
            self._unsaved.append((session_id, turn))
            cost = f", ${turn.reply.cost_usd:.6f}" if turn.reply.cost_usd is not None else ""
            raise AnswerNotSaved(
                f"{exc}; the answer ({turn.reply.usage.completion_tokens or '?'} tokens{cost}) came and is not saved",
                hint=f"{exc.hint}; while this program runs, its next call writes the answer",
                answer=answer_of(session_id, turn),
            ) from None

    async def _finish(self, session_id: str, turn: Turn) -> None:
        # Not by `_call`, which writes what is left over first. A thread goes on where its waiter is cancelled.
        assert turn.answered_at is not None
        await asyncio.to_thread(
            self.store.finish, session_id, turn.n, turn.state, turn.answer, turn.reply, turn.answered_at
        )

    # -- summaries ------------------------------------------------------------------------------

    async def summarize_conversation(self, session_id: str, *, model: str | None = None) -> str:
        """A summary by the session's model, or another; paid for once, and again only after new messages.

        A conversation that is longer than the context is summarized part by part.
        """
        session = await self.get_session(session_id)
        turns = await self._call(self.store.turns, session_id)
        gone = replaced(turns)
        said = [turn for turn in turns if turn.counts and turn.n not in gone]
        if not said:
            raise SessionError(f"{session_id}: nothing was answered yet", hint="there is nothing to summarize")
        known = [summary for summary in await self._call(self.store.summaries, session_id) if summary.upto]
        if known and known[-1].upto == said[-1].n and model in (None, known[-1].model):
            return known[-1].text
        if model is not None:
            await self._require_model(model)
        model = model or session.model
        text = ""
        async for text, answer, whole in summarize(await self._api(), model, said, self._budgets):
            upto = said[-1].n if whole else 0
            kept = Summary(upto=upto, created_at=self._now(), model=model, text=text, reply=reply_of(answer))
            await self._call(self.store.add_summary, session_id, kept)
        if not text:
            raise SessionError(f"{model} gave an empty summary", hint="try again, or ask another model")
        return text

    # -- what is shared -------------------------------------------------------------------------

    async def _require_model(self, model: str) -> None:
        """Raise UnknownModel if the server's own list does not have it; a server without a list is believed."""
        if self._cards is None or model not in self._cards:
            try:
                await self.list_available_models()
            except (AuthenticationError, PermissionDeniedError):
                raise
            except APIStatusError:
                return
        served = sorted(self._cards or {})
        if served and model not in served:
            near = difflib.get_close_matches(model, served, n=1)
            hint = f"did you mean {near[0]}? served: " if near else "served: "
            raise UnknownModel(f"model {model!r} is not served to this key", hint=hint + ", ".join(served))

    async def _api(self) -> Client:
        async with self._opening:
            if self._client is None:
                from cbatch.library import Client

                client = Client(**self._settings)
                await client.__aenter__()
                self._client = client
            return self._client

    async def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the store in a thread: a commit waits for the disk. What could not be written before goes first."""
        while self._unsaved:
            with suppress(StoreError):
                await self._finish(*self._unsaved[0])
                self._unsaved.pop(0)
                continue
            break
        return await asyncio.to_thread(function, *args, **kwargs)


def _require_text(message: object) -> None:
    if not isinstance(message, str):  # None would mean: ask the last one again
        raise SessionError(f"the message is {type(message).__name__}, not text", hint="retry_message asks again")
