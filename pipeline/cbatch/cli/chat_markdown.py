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
from rich.markdown import CodeBlock, Heading, Markdown, MarkdownElement
from rich.segment import Segment
from rich.syntax import Syntax
from rich.text import Text
from rich.theme import Theme

from cbatch.cli.answered import harmless

SPARE_ROWS = 2  # of the screen that the open block leaves free
# Rich's own has code on black, which is a hole in a light terminal.
THEME = Theme({"markdown.code": "bold cyan", "markdown.h1": "bold underline", "markdown.h2": "bold"})
_REASONING = "dim italic"

# Tags as text: a model that writes about HTML would otherwise lose half of its sentence.
_parser = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])


def split(text: str) -> tuple[list[str], str]:
    """The blocks of a Markdown text that no further text can change, and the rest.

    Only what stands before the last line end is looked at: `1` may become `10.`, and a new block a list item.
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


class _CodeBlock(CodeBlock):
    """Without an indent and without a background: what is copied from the terminal is the code."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        code = str(self.text).rstrip()
        yield Syntax(code, self.lexer_name, theme=self.theme, word_wrap=True, padding=0, background_color="default")


class _Markdown(Markdown):
    """Rich's, with tags as text, line breaks where the model made them, and addresses that can be seen."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "heading_open": _Heading,
        "fence": _CodeBlock,
        "code_block": _CodeBlock,
    }

    def __init__(self, text: str) -> None:
        # ANSI colours: those of the user's terminal, light or dark.
        super().__init__("", code_theme="ansi_dark", hyperlinks=False)
        self.markup = text
        self.parsed: list[Token] = _parser.parse(text)
        for token in self.parsed:
            for child in token.children or ():
                if child.type == "softbreak":
                    child.type = "hardbreak"


class _Lines:
    """Something without the empty lines around it and the spaces behind it; the last `most` lines."""

    def __init__(self, part: RenderableType, most: int | None = None) -> None:
        self._part, self._most = part, most

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = [_stripped(line) for line in console.render_lines(self._part, options, pad=False)]
        while lines and not lines[-1]:
            lines.pop()
        start = next((i for i, line in enumerate(lines) if line), 0)
        if self._most is not None:
            start = max(start, len(lines) - self._most)
        for line in lines[start:]:
            yield from line
            yield Segment.line()


def _stripped(line: list[Segment]) -> list[Segment]:
    while line and not line[-1].text.strip() and not (line[-1].style and line[-1].style.underline):
        line = line[:-1]
    if line and line[-1].text != (text := line[-1].text.rstrip()):
        line = [*line[:-1], Segment(text, line[-1].style)]
    return line


def show(console: Console, text: str) -> None:
    """Print a whole Markdown text."""
    closed, rest = split(harmless(text) + "\n")
    for i, block in enumerate(block for block in (*closed, rest) if block.strip()):
        if i:
            console.print()
        console.print(_Lines(_Markdown(block)))


class AnswerView:
    """One answer on a terminal, from the first token to the last; a context manager.

    `add` is cheap; `paint` draws, and is called as often as the eye can follow.
    """

    def __init__(self, console: Console, *, reasoning: bool) -> None:
        self._console = console
        self._shows_reasoning = reasoning
        self._live = Live(console=console, auto_refresh=False, transient=True, vertical_overflow="visible")
        self._reasoning = ""  # what of it is not printed yet
        self._text = ""  # the same
        self._has_text = False
        self._printed = 0  # blocks

    def __enter__(self) -> AnswerView:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Print what is still open; the cursor is back whatever happened."""
        try:
            self._close_reasoning()
            closed, rest = split(self._text + "\n")
            self._print_blocks([*closed, rest])
            self._live.update("", refresh=True)
        finally:
            self._live.stop()

    def add(self, text: str, reasoning: str) -> None:
        """More of the answer."""
        self._reasoning += harmless(reasoning)
        self._text += harmless(text)
        self._has_text = self._has_text or bool(text.strip())

    def paint(self, waited_s: float) -> None:
        """Draw what has come since the last time; `waited_s` since the question."""
        room = max(self._console.size.height - SPARE_ROWS, 1)
        if self._has_text:
            self._close_reasoning()
            closed, self._text = split(self._text)
            self._print_blocks(closed)
            gap = "\n" if self._printed and self._text.strip() else ""
            self._live.update(_Joined(gap, _Lines(_Markdown(self._text), room - len(gap))), refresh=True)
        elif self._shows_reasoning and self._reasoning.strip():
            done, found, rest = self._reasoning.rpartition("\n\n")
            if found and done.strip():
                self._print_reasoning(done)
                self._reasoning = rest
            self._live.update(_Lines(Text(self._reasoning.strip("\n"), style=_REASONING), room), refresh=True)
        else:
            word = "thinking" if self._reasoning else "waiting"
            seconds = f" {waited_s:.0f} s" if waited_s >= 1 else ""
            self._live.update(Text(f"{word}…{seconds}", style="dim"), refresh=True)

    def _close_reasoning(self) -> None:
        if self._shows_reasoning and self._reasoning.strip():
            self._print_reasoning(self._reasoning)
        self._reasoning = ""

    def _print_reasoning(self, text: str) -> None:
        self._console.print(Text(text.strip("\n"), style=_REASONING), end="\n\n")

    def _print_blocks(self, blocks: Iterable[str]) -> None:
        for block in blocks:
            if block.strip():
                if self._printed:
                    self._console.print()
                self._console.print(_Lines(_Markdown(block)))
                self._printed += 1


class _Joined:
    """An empty line above something, in one piece."""

    def __init__(self, gap: str, part: _Lines) -> None:
        self._gap, self._part = gap, part

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._gap:
            yield Segment.line()
        yield self._part
