"""A chat on a terminal: prompt_toolkit reads, rich writes; both are imported by this module only."""

from __future__ import annotations

import asyncio
import sys
import termios
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from cbatch.cli.advice import advice
from cbatch.cli.answered import harmless
from cbatch.cli.chat_commands import KEYS
from cbatch.cli.chat_input import MARK, Input
from cbatch.cli.chat_markdown import THEME, AnswerView, show
from cbatch.errors import CbatchError

if TYPE_CHECKING:
    from cbatch.library import Delta

FRAME_S = 0.05  # twenty pictures a second: no eye sees more, and no terminal flickers
CLOCK_S = 0.5  # how often the seconds are drawn while nothing comes
BUSY = 4.0  # times as long as a picture took is the pause behind it: long tables must not slow down the answer


class TerminalScreen:
    """Colours, Markdown, a line to edit."""

    interactive = True
    keys: tuple[tuple[str, str], ...] = KEYS

    def __init__(
        self,
        *,
        history: Path | None,
        words: Callable[[str], Iterable[tuple[str, str]]],
        status: Callable[[], str],
        quiet: bool,
    ) -> None:
        self._console = Console(theme=THEME, highlight=False, markup=False, emoji=False)
        self._input = Input(history, words, status)
        self._quiet = quiet

    async def read(self) -> str | None:
        """What is typed."""
        self._console.print()
        return await self._input.read()

    async def stream(self, deltas: AsyncIterator[Delta], *, reasoning: bool) -> None:
        """Draw an answer while it comes."""
        self._console.print()
        dirty = asyncio.Event()
        with AnswerView(self._console, reasoning=reasoning) as view:
            painter = asyncio.create_task(_paint(view, dirty))
            try:
                async for delta in deltas:
                    view.add(delta.text, delta.reasoning)
                    dirty.set()
            finally:
                painter.cancel()
                with suppress(asyncio.CancelledError):
                    await painter

    def tell(self, lines: Sequence[str]) -> None:
        """Lines as they are."""
        for line in lines:
            self._console.print(Text(harmless(line)), soft_wrap=True)

    def markdown(self, text: str) -> None:
        """Markdown, drawn."""
        self._console.print()
        show(self._console, text)

    def typed(self, text: str) -> None:
        """A message as it looked when it was typed."""
        indented = harmless(text).replace("\n", "\n" + " " * len(MARK))
        self._console.print()
        self._console.print(Text.assemble((MARK, "bold cyan"), indented))

    def note(self, text: str) -> None:
        """A dim line."""
        if not self._quiet:
            self._console.print(Text(harmless(text), style="dim"))

    def fail(self, error: CbatchError) -> None:
        """The error in red, then what to do."""
        self._console.print(Text.assemble(("error: ", "bold red"), harmless(str(error))))
        if hint := advice(error):
            self._console.print(Text.assemble(("hint: ", "cyan"), harmless(hint)))

    def interrupted(self) -> None:
        """Nothing: at the input, Ctrl-C is a key."""


async def _paint(view: AnswerView, dirty: asyncio.Event) -> None:
    """Draw what has come, never more often than it can be seen."""
    clock = asyncio.get_running_loop().time
    started = clock()
    while True:
        before = clock()
        dirty.clear()
        view.paint(before - started)
        await asyncio.sleep(max(FRAME_S, BUSY * (clock() - before)))
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOCK_S):
                await dirty.wait()


@contextmanager
def without_echo() -> Iterator[None]:
    """What is typed while an answer comes is kept for the next message, and not shown in the middle of the answer."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    changed = termios.tcgetattr(fd)
    changed[3] &= ~(termios.ECHO | termios.ICANON)
    changed[3] |= termios.NOFLSH  # Ctrl-C stays a signal, and does not take away what was typed before it
    termios.tcsetattr(fd, termios.TCSADRAIN, changed)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
