"""`cbatch chat`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from cbatch.cli.advice import advised
from cbatch.cli.ask import ATTEMPTS
from cbatch.cli.chat_commands import words
from cbatch.cli.chat_screen import Screen
from cbatch.cli.chat_talk import Talk
from cbatch.cli.sampling import sampling_options
from cbatch.cli.shared import connection_options, run_async
from cbatch.errors import JobError

ENDING = (signal.SIGTERM, signal.SIGHUP)  # what came of an answer is saved, and the terminal is as it was


@click.command(
    epilog="Example: cbatch chat --sim\n\nExample: cbatch chat --session-id amber-falcon-42\n\n"
    "Example: echo 'Why is the sky blue?' | cbatch chat"
)
@click.option("--model", metavar="ID", help="The model to ask [default: the session's, else gpt-oss-120b].")
@click.option("--session-id", metavar="ID", help="Go on with a saved session; `cbatch sessions` lists them.")
@click.option("--system", metavar="TEXT", help="The system prompt.")
@click.option("--reasoning/--no-reasoning", default=None, help="Show the model's reasoning [default: on a terminal].")
@click.option("--plain", is_flag=True, help="No colours, no Markdown, no line editing; as in a pipe or with TERM=dumb.")
@click.option("--quiet", is_flag=True, help="Print answers and errors only.")
@sampling_options
@connection_options
def command(
    model: str | None,
    session_id: str | None,
    system: str | None,
    reasoning: bool | None,
    plain: bool,
    quiet: bool,
    params: dict[str, Any],
    sim: bool,
    base_url: str | None,
    api_key_file: Path | None,
) -> int:
    """Chat with a model; the conversation is saved and can be gone on with.

    Answers are streamed. Ctrl-C stops an answer, Ctrl-D leaves, /help shows the commands. In a pipe,
    every line is a message, and the first error ends it.
    """
    fancy = not plain and sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    if system is not None and not system.strip():
        raise JobError("--system is empty", hint="leave it out for no system prompt")
    shown = fancy if reasoning is None else reasoning

    async def chat() -> int:
        from cbatch.conversations import Conversations
        from cbatch.library import DEFAULT_MODEL, Client

        async with (
            Client(sim=sim, base_url=base_url, api_key_file=api_key_file, attempts=ATTEMPTS) as api,
            Conversations(api) as conversations,
        ):
            talk = Talk(
                conversations,
                model=model or DEFAULT_MODEL,
                system=system,
                params=params,
                reasoning=shown,
                simulated=sim,
            )
            with _screen(talk, fancy=fancy, quiet=quiet) as screen:
                return await _talk(talk, screen, session_id, model)

    with advised():
        return run_async(chat())


async def _talk(talk: Talk, screen: Screen, session_id: str | None, model: str | None) -> int:
    """The chat, until it is left or ended by a signal; returns the exit code."""
    loop, main, code = asyncio.get_running_loop(), asyncio.current_task(), 0
    assert main is not None

    def end(signum: int) -> None:
        nonlocal code
        code = code or 128 + signum
        main.cancel()

    def interrupt() -> None:
        if not screen.interactive:
            end(signal.SIGINT)
        elif not talk.interrupt():
            screen.interrupted()

    loop.add_signal_handler(signal.SIGINT, interrupt)
    for signum in ENDING:
        loop.add_signal_handler(signum, end, signum)
    try:
        await talk.run(screen, session_id=session_id, model=model)
    except asyncio.CancelledError:
        if not code:
            raise
    return code


@contextmanager
def _screen(talk: Talk, *, fancy: bool, quiet: bool) -> Iterator[Screen]:
    if not fancy:
        from cbatch.cli.chat_plain import PlainScreen

        yield PlainScreen(quiet=quiet)
        return
    from cbatch.cli.chat_terminal import TerminalScreen, without_echo
    from cbatch.conversations import default_path

    history = default_path().with_name("typed")
    with without_echo():
        yield TerminalScreen(
            history=history, words=lambda text: words(text, talk.models), status=talk.status, quiet=quiet
        )
