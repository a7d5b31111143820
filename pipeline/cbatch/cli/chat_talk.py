"""A chat, whatever it is shown on: typed lines become messages and commands, answers are streamed.

An answer, like everything that waits for the network, is a task of its own: Ctrl-C cancels the task
and not the program.
"""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cbatch.cli.answered import figures, speed
from cbatch.cli.chat_commands import help_lines, message_of, read_command
from cbatch.cli.chat_screen import Screen
from cbatch.cli.words import count, duration, money, plural
from cbatch.conversations import ConversationClient, Message, MessageStream, SessionEnded, UnknownModel
from cbatch.errors import CbatchError, JobError

if TYPE_CHECKING:
    from cbatch.library import ModelCard

SHOWN_MESSAGES = 2  # of a session that goes on: the last question and its answer


class Talk:
    """One chat: a session, started by its first message, and the screen."""

    def __init__(
        self,
        conversations: ConversationClient,
        *,
        model: str,
        system: str | None,
        params: dict[str, Any],
        reasoning: bool,
        simulated: bool = False,
    ) -> None:
        self._conversations = conversations
        self._where = " (simulated)" if simulated else ""
        self._screen: Screen
        self._model, self._system, self._params = model, system, params
        self._reasoning = reasoning
        self._session: str | None = None
        self._turns = 0
        self._cost_usd: float | None = None
        self._work: asyncio.Task[Any] | None = None
        self._stopping = False
        self.models: list[str] = []  # for completion

    async def run(self, screen: Screen, *, session_id: str | None, model: str | None) -> None:
        """Until there is nothing more to read, or /exit; goes on with a saved session where one is given.

        Raises what goes wrong where nobody is there to react.
        """
        self._screen = screen
        if session_id is not None:
            await self._resume(session_id, model)
        if screen.interactive:
            await self._stoppable(self._greet())
        while (line := await screen.read()) is not None:
            if not line.strip():
                continue
            try:
                if not await self._stoppable(self._handle(line)):
                    break
            except CbatchError as error:
                if not screen.interactive:
                    raise
                screen.fail(error)
        if screen.interactive and self._session is not None and self._turns:
            screen.note(f"saved; `cbatch chat --session-id {self._session}` goes on")

    def status(self) -> str:
        """One line, for below the input."""
        parts = [self._model + self._where]
        if self._session is not None:
            parts += [self._session, plural(self._turns, "message")]
        if self._cost_usd:
            parts.append(money(self._cost_usd))
        return " · ".join(parts)

    def interrupt(self) -> bool:
        """Ctrl-C: stop what is under way. Returns whether anything was."""
        if self._work is None:
            return False
        if not self._stopping:  # a second one must not cut off what saves the answer
            self._stopping = True
            self._work.cancel()
        return True

    async def _stoppable(self, work: Coroutine[Any, Any, bool]) -> bool:
        task = self._work = asyncio.ensure_future(work)
        self._stopping = False
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:  # the program ends: what came of an answer is saved first
            task.cancel()
            await asyncio.wait({task})
            raise
        finally:
            self._work = None
        if not task.cancelled():
            return bool(task.result())
        self._screen.note("stopped")
        return True

    # -- before the first message -------------------------------------------------------------------

    async def _resume(self, session_id: str, model: str | None) -> None:
        """Go on with a saved session. Raises UnknownSession, SessionEnded."""
        session = await self._conversations.get_session(session_id)
        if session.ended_at is not None:
            raise SessionEnded(
                f"{session.id}: the session was ended on {session.ended_at:%Y-%m-%d %H:%M} UTC",
                hint=f"read it with `cbatch sessions show {session.id}`, or start a new one with `cbatch chat`",
            )
        self._session, self._turns = session.id, session.turns
        if model is not None and model != session.model:
            await self._conversations.switch_model(session.id, model)
        self._model = model or session.model
        if self._system is not None:
            await self._conversations.set_system(session.id, self._system)
        self._system = self._system if self._system is not None else session.system
        await self._count()

    async def _greet(self) -> bool:
        """Say where we are. Raises what a wrong key or model does: better now than after a page was typed."""
        await self._check(self._model)
        screen = self._screen
        screen.note(f"{self._model}{self._where} · /help shows the commands · Ctrl-D leaves")
        if self._session is None:
            return True
        screen.note(f"session {self._session} goes on, after {plural(self._turns, 'message')}")
        for message in await self._conversations.get_chat_history(self._session, SHOWN_MESSAGES):
            if message.role == "user":
                screen.typed(message.content)
            else:
                screen.markdown(message.content)
        return True

    # -- messages ------------------------------------------------------------------------------------

    async def _handle(self, line: str) -> bool:
        """Do what a line says; False where it is to leave."""
        command = read_command(line)
        if command is None:
            session = await self._open()
            await self._show(self._conversations.stream_message(session, message_of(line), **self._params))
            return True
        name, argument = command
        if name == "exit":
            return False
        await getattr(self, f"_{name}_command")(argument)
        return True

    async def _open(self) -> str:
        if self._session is None:
            self._session = await self._conversations.start_new_session(model=self._model, system=self._system)
        return self._session

    async def _show(self, stream: MessageStream) -> None:
        async with stream:
            try:
                await self._screen.stream(aiter(stream), reasoning=self._reasoning)
                message = await stream.message()
            finally:
                await self._count()
        self._remark(message)

    def _remark(self, message: Message) -> None:
        if message.left_out:
            self._screen.note(f"{plural(message.left_out, 'earlier turn')} left out: too long for the model's context")
        if message.finish_reason == "length":
            self._screen.note("cut: the answer reached the most tokens it may have; --max-tokens allows more")
        elif not message.content:
            self._screen.note(f"no text (finish_reason {message.finish_reason})")
        line = figures(
            tokens_per_s=message.tokens_per_s,
            source=message.tokens_per_s_source,
            ttft_s=message.ttft_s,
            latency_s=message.latency_s,
            usage=message.usage,
            cost_usd=message.cost_usd,
            attempts=message.attempts,
        )
        self._screen.note(line)

    async def _count(self) -> None:
        """What the line below the input says; not worth an error."""
        assert self._session is not None
        with suppress(CbatchError):
            self._turns = (await self._conversations.get_session(self._session)).turns
            self._cost_usd = (await self._conversations.get_usage_metrics(self._session)).cost_usd

    # -- commands ------------------------------------------------------------------------------------

    async def _help_command(self, _: str) -> None:
        self._screen.tell(help_lines(self._screen.keys))

    async def _model_command(self, model: str) -> None:
        if not model:
            cards = await self._conversations.list_available_models()
            self.models = [card.id for card in cards]
            self._screen.tell(_table(cards, self._model))
            return
        if self._session is not None:
            await self._conversations.switch_model(self._session, model)
        else:
            await self._check(model)
        self._model = model
        self._screen.note(f"{model} answers from now on")

    async def _system_command(self, text: str) -> None:
        if not text:
            self._screen.tell([self._system or "no system prompt; /system TEXT sets one"])
            return
        system = None if text == "-" else text
        if self._session is not None:
            await self._conversations.set_system(self._session, system)
        self._system = system
        self._screen.note("the system prompt holds from the next message on" if system else "no system prompt")

    async def _retry_command(self, _: str) -> None:
        await self._show(self._conversations.retry_message(self._started("ask again")))

    async def _reasoning_command(self, word: str) -> None:
        if word not in ("", "on", "off"):
            raise JobError(f"/reasoning: read {word!r}", hint="accepted: on, off, or nothing to change it")
        self._reasoning = not self._reasoning if not word else word == "on"
        self._screen.note(f"reasoning is {'shown' if self._reasoning else 'hidden'}")

    async def _metrics_command(self, _: str) -> None:
        session = self._started("count")
        used = await self._conversations.get_usage_metrics(session)
        troubled = [
            f"{number:,} {word}"
            for word, number in (("stopped", used.stopped), ("failed", used.failed), ("unknown", used.unknown))
            if number
        ]
        calls = ", ".join([plural(used.calls, "call"), *troubled])
        models = ", ".join(f"{model} {number:,}" for model, number in used.models.items())
        lines = [
            f"session  {session}",
            f"calls    {calls} ({models})" if models else f"calls    {calls}",
            f"tokens   {used.prompt_tokens:,} in ({used.cached_tokens:,} from the cache), "
            f"{used.completion_tokens:,} out ({used.reasoning_tokens:,} reasoning)",
            f"cost     {money(used.cost_usd)}",
        ]
        if used.tokens_per_s is not None:
            lines.append(f"speed    {speed(used.tokens_per_s, None)}, {duration(used.latency_s)} an answer")
        self._screen.tell(lines)

    async def _summarize_command(self, _: str) -> None:
        session = self._started("summarize")
        self._screen.note("summarizing…")
        text = await self._conversations.summarize_conversation(session)
        self._screen.markdown(text)
        await self._count()

    async def _export_command(self, name: str) -> None:
        session = self._started("export")
        path = name or f"{session}.txt"
        text = await self._conversations.export_chat_history(
            session, "json" if path.lower().endswith(".json") else "text"
        )
        written = _write(Path(path), text)
        self._screen.note(f"written: {written}")

    async def _new_command(self, _: str) -> None:
        if self._session is not None:
            self._screen.note(f"{self._session} is saved")
        self._session, self._turns, self._cost_usd = None, 0, None
        self._screen.note("a new session begins with your next message")

    def _started(self, what: str) -> str:
        if self._session is None:
            raise JobError(f"nothing to {what} yet", hint="ask something first")
        return self._session

    async def _check(self, model: str) -> None:
        """Raise UnknownModel if the server's own list does not have `model`."""
        self.models = [card.id for card in await self._conversations.list_available_models()]
        if self.models and model not in self.models:
            near = difflib.get_close_matches(model, self.models, n=1)
            served = f"served: {', '.join(sorted(self.models))}"
            raise UnknownModel(
                f"model {model!r} is not served to this key",
                hint=f"did you mean {near[0]}? {served}" if near else served,
            )


def _table(cards: Sequence[ModelCard], asked: str) -> list[str]:
    width = max([len(card.id) for card in cards], default=0)
    lines = []
    for card in sorted(cards, key=lambda card: card.id):
        prices = (card.input_usd_per_mtok, card.output_usd_per_mtok)
        price = "" if None in prices else "  ${:.2f} in, ${:.2f} out per million".format(*prices)
        mark = "*" if card.id == asked else " "
        lines.append(f"{mark} {card.id:<{width}}  {count(card.context_tokens):>8} tokens{price}")
    return lines


def _write(path: Path, text: str) -> Path:
    """Write a new file. Raises JobError."""
    hint = "name another file: /export FILE"
    try:
        path = path.expanduser()
        with path.open("x", encoding="utf-8") as file:
            file.write(text if text.endswith("\n") else text + "\n")
        return path.resolve()
    except FileExistsError:
        raise JobError(f"{path} exists already", hint=hint) from None
    except (OSError, RuntimeError) as exc:  # RuntimeError: ~somebody
        raise JobError(f"{path}: {getattr(exc, 'strerror', None) or exc}", hint=hint) from None
