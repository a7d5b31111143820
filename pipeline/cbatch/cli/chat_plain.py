"""A chat without escape codes: for dumb terminals and pipes. Answers go to stdout, all else to stderr.

A line is a message; a backslash at its end, or \"\"\" around several lines, makes it longer.
"""

from __future__ import annotations

import asyncio
import codecs
import os
import stat
import sys
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

import click

from cbatch.cli.advice import advice
from cbatch.cli.answered import harmless, write
from cbatch.cli.chat_commands import PLAIN_KEYS
from cbatch.errors import CbatchError

if TYPE_CHECKING:
    from cbatch.library import Delta

QUOTES = '"""'
MARK, MORE = "> ", ". "
_CHUNK_BYTES = 65_536


class Lines:
    """The lines of a file descriptor, without a thread: one that reads a terminal cannot be cancelled."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._text = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._ended = False
        # A regular file never blocks, and cannot be watched.
        self._waits = not stat.S_ISREG(os.fstat(fd).st_mode)

    async def read(self) -> str | None:
        """The next line without its end; None after the last."""
        while "\n" not in self._text and not self._ended:
            if self._waits:
                await self._readable()
            chunk = os.read(self._fd, _CHUNK_BYTES)
            self._ended = not chunk
            self._text += self._decoder.decode(chunk, final=not chunk)
        line, _, rest = self._text.partition("\n")
        if self._ended and not self._text:
            self._ended = not os.isatty(self._fd)  # at a terminal, Ctrl-D ends one reading
            return None
        self._text = rest
        return line.removesuffix("\r")

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        try:
            loop.add_reader(self._fd, ready.set)
        except OSError:  # such as /dev/null, which is always ready
            self._waits = False
            return
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._fd)


class PlainScreen:
    """Line by line. Raises BrokenPipeError where nobody reads any more."""

    keys: tuple[tuple[str, str], ...] = PLAIN_KEYS

    def __init__(self, *, quiet: bool) -> None:
        self.interactive = sys.stdin.isatty()
        self._says = self.interactive or sys.stderr.isatty()
        self._quiet = quiet
        self._lines = Lines(sys.stdin.fileno())
        self._terminal = sys.stdout.isatty()
        self._answers = 0

    async def read(self) -> str | None:
        """The next message: a line, or several."""
        self._prompt(MARK)
        line = await self._lines.read()
        parts: list[str] = []
        while line is not None:
            quoted = not parts and line.lstrip().startswith(QUOTES)
            if quoted:
                return await self._quoted(line.lstrip().removeprefix(QUOTES))
            if not line.endswith("\\"):
                return "\n".join([*parts, line])
            parts.append(line[:-1])
            self._prompt(MORE)
            line = await self._lines.read()
        if self.interactive:
            click.echo(err=True)
        return "\n".join(parts) or None

    async def _quoted(self, line: str | None) -> str | None:
        parts: list[str] = []
        while line is not None:
            text = line.rstrip()
            if text.endswith(QUOTES):
                return "\n".join([*parts, text.removesuffix(QUOTES)]).strip("\n")
            parts.append(line)
            self._prompt(MORE)
            line = await self._lines.read()
        return "\n".join(parts).strip("\n") or None

    async def stream(self, deltas: AsyncIterator[Delta], *, reasoning: bool) -> None:
        """Write an answer as it comes, and a newline behind it."""
        if self._answers and not self.interactive:
            write("\n")
        self._answers += 1
        last, thinking = "\n", False
        try:
            async for delta in deltas:
                if reasoning and delta.reasoning and self._says:
                    click.echo(harmless(delta.reasoning), nl=False, err=True)
                    thinking = True
                if delta.text:
                    if thinking:
                        click.echo("\n", err=True)
                        thinking = False
                    write(harmless(delta.text) if self._terminal else delta.text)
                    last = delta.text
        finally:
            if thinking:
                click.echo(err=True)
            if not last.endswith("\n"):
                write("\n")

    def tell(self, lines: Sequence[str]) -> None:
        """Lines on stdout."""
        for line in lines:
            write(f"{harmless(line) if self._terminal else line}\n")

    def markdown(self, text: str) -> None:
        """The text as it is."""
        self.tell([text])

    def typed(self, text: str) -> None:
        """What was typed earlier, on stderr."""
        self.note(MARK + text)

    def note(self, text: str) -> None:
        """A line on stderr; nothing where nobody looks."""
        if self._says and not self._quiet:
            click.echo(harmless(text), err=True)

    def fail(self, error: CbatchError) -> None:
        """The error and its hint on stderr."""
        click.echo(f"error: {harmless(str(error))}", err=True)
        if hint := advice(error):
            click.echo(f"hint: {harmless(hint)}", err=True)

    def interrupted(self) -> None:
        """A new line to type on: the terminal has forgotten the old one."""
        click.echo("\n(Ctrl-D or /exit leaves)", err=True)
        self._prompt(MARK)

    def _prompt(self, mark: str) -> None:
        if self.interactive:
            click.echo(mark, nl=False, err=True)
