"""Markdown that is being written: what is printed early is what would have been printed at the end."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pyte
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from cbatch.cli.answered import harmless
from cbatch.cli.chat_markdown import THEME, AnswerView, show, split

LINES = st.sampled_from(
    [
        *("", "", "text", "more text", "    indented", "- item", "  - nested", "10. ten", "1", "# head", "---", "==="),
        *(
            "```",
            "```python",
            "x = 1",
            "> quote",
            "| a | b |",
            "|---|---|",
            "| 1 | 2 |",
            "[a]: /b",
            "<div>",
            "***",
            "  ",
        ),
    ]
)
TEXTS = st.lists(LINES, max_size=14).map("\n".join)


def pieces(text: str, cuts: list[int]) -> Iterator[str]:
    ends = sorted({min(cut, len(text)) for cut in cuts} | {len(text)})
    for start, end in zip([0, *ends], ends, strict=False):
        yield text[start:end]


def all_blocks(text: str) -> list[str]:
    closed, rest = split(text + "\n")
    return [block.strip("\n") for block in (*closed, rest) if block.strip()]


@given(TEXTS, st.lists(st.integers(0, 120), max_size=8))
@example("9. x\n\n10. y\n", [6, 7])
@example("a | b\n|---|---|\n", [5])
def test_blocks_are_the_same_however_the_text_comes(text: str, cuts: list[int]) -> None:
    """A block that was closed early is a block of the whole text: nothing is printed that changes later."""
    found, open_ = [], ""
    for piece in pieces(text, cuts):
        closed, open_ = split(open_ + piece)
        found += [block for block in closed if block.strip()]
    assert found + all_blocks(open_) == all_blocks(text)


def console(width: int = 40, height: int = 10) -> Console:
    return Console(
        file=io.StringIO(), width=width, height=height, theme=THEME, highlight=False, force_terminal=True,
        color_system=None, legacy_windows=False,
    )  # fmt: skip


def printed(of: Console) -> str:
    assert isinstance(of.file, io.StringIO)
    return of.file.getvalue()


@pytest.mark.parametrize(
    ("markdown", "shown"),
    [
        pytest.param("one\ntwo", ["one", "two"], id="lines stay lines"),
        pytest.param("a <div> tag", ["a <div> tag"], id="tags are text"),
        pytest.param("see [x](http://y.z/)", ["see x (http://y.z/)"], id="addresses can be seen"),
        pytest.param("# Head\n\ntext", ["Head", "", "text"], id="a heading is at the left, an empty line below it"),
        pytest.param("```python\nif x:\n    y\n```", ["if x:", "    y"], id="code is as it is copied"),
        pytest.param("\n\n\na\n\n\n\nb\n\n", ["a", "", "b"], id="one empty line between blocks"),
        pytest.param("a\x1b[31mb\x07\r\n", ["a␛[31mb␇"], id="what moves the cursor is a picture"),
        pytest.param("", [], id="nothing"),
    ],
)
def test_how_markdown_looks(markdown: str, shown: list[str]) -> None:
    on = console()
    show(on, markdown)
    text = printed(on)
    assert [line.rstrip() for line in text.splitlines()] == shown
    assert all(line == line.rstrip() for line in text.splitlines()), "spaces at line ends are copied, too"


@given(TEXTS, st.lists(st.integers(0, 120), max_size=8))
def test_a_painted_answer_ends_as_the_whole_one(text: str, cuts: list[int]) -> None:
    """Whatever was drawn and drawn over meanwhile."""
    screen = pyte.HistoryScreen(40, 200)
    stream = pyte.Stream(screen)
    on, whole = console(height=200), console(height=200)
    with AnswerView(on, reasoning=True) as view:
        view.paint(0.0)
        for piece in pieces(text, cuts):
            view.add(piece, "")
            view.paint(0.0)
    stream.feed(printed(on).replace("\n", "\r\n"))
    show(whole, text)
    seen = "\n".join(line.rstrip() for line in screen.display).strip("\n")
    assert seen == "\n".join(line.rstrip() for line in printed(whole).splitlines()).strip("\n")


def test_a_block_longer_than_the_screen_is_drawn_as_far_as_it_fits_and_printed_whole() -> None:
    screen = pyte.HistoryScreen(40, 10, history=1000)
    stream = pyte.Stream(screen)
    on = console(height=10)
    lines = [f"line {i}" for i in range(50)]
    with AnswerView(on, reasoning=False) as view:
        view.add("```\n", "")
        for line in lines:
            view.add(line + "\n", "")
            view.paint(0.0)
    stream.feed(printed(on).replace("\n", "\r\n"))
    above = ["".join(row[i].data for i in range(40)).rstrip() for row in screen.history.top]
    seen = [line for line in [*above, *(row.rstrip() for row in screen.display)] if line]
    assert seen == lines


@pytest.mark.parametrize("shown", [True, False])
def test_reasoning_is_shown_or_only_that_there_is_some(shown: bool) -> None:
    on = console()
    with AnswerView(on, reasoning=shown) as view:
        view.add("", "first thought\n\nsecond thought")
        view.paint(2.0)
        view.add("the answer", "")
        view.paint(2.1)
    text = printed(on)
    assert ("second thought" in text) is shown
    assert ("thinking… 2 s" in text) is not shown
    assert "the answer" in text


def test_the_cursor_is_back_after_a_failure() -> None:
    on = console()
    view = AnswerView(on, reasoning=True)
    view.add("half an ans", "")
    with pytest.raises(RuntimeError), view:
        raise RuntimeError
    text = printed(on)
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert "half an ans" in text


def test_harmless_text_keeps_every_language() -> None:
    text = "ä 日本 🎉 \u200f\n\ttab"
    assert harmless(text) == text
    assert harmless("\x00\x1b\x7f\x9b\r") == "␀␛␡\ufffd"
