"""Markdown while it is being written: whole blocks go to the scrollback, the open one is redrawn in place.

A terminal cannot take back what has scrolled away, and the last block of half an answer may still turn
into something else: a line of text into the head of a table. So only blocks that cannot change any more
are printed; what is open is shown as far as it fits above the bottom of the screen.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.markdown import Heading, Markdown, MarkdownElement
from rich.segment import Segment
from rich.text import Text

from cbatch.cli.answered import harmless

SPARE_ROWS = 2  # of the screen that the open block leaves free
_REASONING = "dim italic"

# Tags as text: a model that writes about HTML would otherwise lose half of its sentence.
_parser = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])


def split(text: str) -> tuple[list[str], str]:
    """The blocks of a Markdown text that no further text can change, and the rest.

    Only what stands before the last whole line is looked at: `1` becomes `10.`, and a new block a list item.
    """
    lines = text.split("\n")
    known = "\n".join(lines[:-1])
    starts = [token.map[0] for token in _parser.parse(known) if token.level == 0 and token.map and token.nesting >= 0]
    if len(starts) < 2:
        return [], text
    blocks = ["\n".join(lines[a:b]).strip("\n") for a, b in zip([0, *starts[1:]], starts[1:], strict=False)]
    return blocks, "\n".join(lines[starts[-1] :])


class _Heading(Heading):
    LEVEL_ALIGN: ClassVar[dict[str, Any]] = dict.fromkeys(Heading.LEVEL_ALIGN, "left")


class _Markdown(Markdown):
    """Rich's, with tags as text, line breaks where the model made them, and addresses that can be seen."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {**Markdown.elements, "heading_open": _Heading}

    def __init__(self, text: str) -> None:
        # ANSI colours: those of the user's terminal, light or dark, and no background to copy as spaces.
        super().__init__("", code_theme="ansi_dark", hyperlinks=False)
        self.markup = text
        self.parsed: list[Token] = _parser.parse(text)
        for token in self.parsed:
            for child in token.children or ():
                if child.type == "softbreak":
                    child.type = "hardbreak"


def rendered(text: str) -> RenderableType:
    """A whole Markdown text, for `console.print`."""
    return _Markdown(harmless(text))


class _Tail:
    """The last lines of something, as many as fit on the screen."""

    def __init__(self, parts: Iterable[RenderableType]) -> None:
        self._parts = list(parts)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = max(console.size.height - SPARE_ROWS, 1)
        lines: list[list[Segment]] = []
        for part in self._parts:
            lines += console.render_lines(part, options, pad=False)
        for i, line in enumerate(lines[-room:]):
            if i:
                yield Segment.line()
            yield from line


class AnswerView:
    """One answer on a terminal, from the first token to the last; a context manager.

    `add` is cheap; `paint` draws, and is called as often as the eye can follow.
    """

    def __init__(self, console: Console, *, reasoning: bool) -> None:
        self._console = console
        self._shows_reasoning = reasoning
        self._live = Live(console=console, auto_refresh=False, transient=True, vertical_overflow="visible")
        self._reasoning = ""  # what of it is not printed yet
        self._text = ""
        self._printed = 0  # blocks
        self._waited_s = 0.0

    def __enter__(self) -> AnswerView:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Print what is still open; the cursor is back whatever happened."""
        try:
            self._close_reasoning()
            closed, rest = split(self._text)
            self._print_blocks([*closed, rest])
            self._text = ""
        finally:
            self._live.update("", refresh=False)
            self._live.stop()

    def add(self, text: str, reasoning: str = "") -> None:
        """More of the answer."""
        self._reasoning += harmless(reasoning)
        self._text += harmless(text)

    def waiting(self, seconds: float) -> None:
        """Nothing has come for so long."""
        self._waited_s = seconds

    def paint(self) -> None:
        """Draw what has come since the last time."""
        if self._text.strip():
            self._close_reasoning()
            closed, self._text = split(self._text)
            self._print_blocks(closed)
            gap = [""] if self._printed else []
            self._live.update(_Tail([*gap, _Markdown(self._text)]), refresh=True)
            return
        if self._shows_reasoning and self._reasoning.strip():
            done, found, rest = self._reasoning.rpartition("\n\n")
            if found:
                self._print_reasoning(done)
                self._reasoning = rest
            self._live.update(_Tail([Text(self._reasoning.strip("\n"), style=_REASONING)]), refresh=True)
            return
        word = "thinking" if self._reasoning else "waiting"
        seconds = f" {self._waited_s:.0f} s" if self._waited_s >= 1 else ""
        self._live.update(Text(f"{word}…{seconds}", style="dim"), refresh=True)

    def _close_reasoning(self) -> None:
        if self._shows_reasoning and self._reasoning.strip():
            self._print_reasoning(self._reasoning)
        self._reasoning = ""

    def _print_reasoning(self, text: str) -> None:
        self._console.print(Text(text.strip("\n") + "\n", style=_REASONING))

    def _print_blocks(self, blocks: Iterable[str]) -> None:
        for block in blocks:
            if block.strip():
                if self._printed:
                    self._console.print()
                self._console.print(_Markdown(block))
                self._printed += 1
