"""The line that is typed in `cbatch chat` on a terminal: several lines, history, completion."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input.ansi_escape_sequences import ANSI_SEQUENCES
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.styles import Style

from cbatch.cli.answered import harmless

MARK = "› "
ESCAPE_S = 0.05  # how long an Escape waits for what makes it Alt-…; terminals send both at once

# Shift-Enter, from the terminals that tell it apart from Enter (CSI u, and xterm's modifyOtherKeys), is Alt-Enter.
for _sequence in ("\x1b[13;2u", "\x1b[27;2;13~"):
    ANSI_SEQUENCES[_sequence] = (Keys.Escape, Keys.ControlM)

_STYLE = Style.from_dict(
    {"mark": "bold ansicyan", "bottom-toolbar": "noreverse", "bottom-toolbar.text": "ansibrightblack"}
)


class Input:
    """Reads messages; `words` completes what stands before the cursor, `status` is shown below it."""

    def __init__(
        self,
        history: Path | None,
        words: Callable[[str], Iterable[tuple[str, str]]],
        status: Callable[[], str],
    ) -> None:
        self._status = status
        self._note = ""
        self._session: PromptSession[str] = PromptSession(
            FormattedText([("class:mark", MARK)]),
            multiline=True,
            prompt_continuation=lambda width, number, is_soft: " " * width,
            history=_open_history(history),
            auto_suggest=AutoSuggestFromHistory(),
            completer=_Words(words),
            complete_while_typing=Condition(lambda: self._session.default_buffer.text.startswith("/")),
            complete_in_thread=False,
            reserve_space_for_menu=4,
            key_bindings=self._keys(),
            bottom_toolbar=self._toolbar,
            enable_suspend=True,
            enable_open_in_editor=True,
            style=_STYLE,
        )
        self._session.app.ttimeoutlen = ESCAPE_S

    async def read(self) -> str | None:
        """The next message, or None at its end: Ctrl-D on an empty line."""
        try:
            # Ctrl-C is a key here, and the signal has its own handler: prompt_toolkit would take that away.
            return await self._session.prompt_async(handle_sigint=False)
        except EOFError:
            return None

    def _toolbar(self) -> FormattedText:
        return FormattedText([("", harmless(self._note or self._status()))])

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()

        @keys.add("enter")
        def _send(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            self._note = ""
            if buffer.complete_state and buffer.complete_state.current_completion:
                buffer.complete_state = None  # the first Enter takes what the menu offers
            elif buffer.document.text_before_cursor.endswith("\\"):
                buffer.delete_before_cursor()
                buffer.newline(copy_margin=False)
            elif buffer.text.strip():
                buffer.validate_and_handle()

        @keys.add("escape", "enter")
        def _new_line(event: KeyPressEvent) -> None:
            event.current_buffer.newline(copy_margin=False)

        @keys.add("c-c")
        def _clear(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            if not buffer.text:
                self._note = "Ctrl-D or /exit leaves; Ctrl-C while an answer comes stops it"
            elif buffer.complete_state:
                buffer.cancel_completion()
            buffer.reset()

        return keys


class _Words(Completer):
    def __init__(self, words: Callable[[str], Iterable[tuple[str, str]]]) -> None:
        self._words = words

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text
        if not text.startswith("/") or document.text_before_cursor != text:
            return
        begun = text.rpartition(" ")[2]
        for word, meaning in self._words(text):
            if word.startswith(begun) and word != begun:
                yield Completion(word, start_position=-len(begun), display_meta=meaning)


class _FileHistory(FileHistory):
    """A history that cannot be written is not kept: a chat goes on with a full disk."""

    def store_string(self, string: str) -> None:
        with suppress(OSError):
            super().store_string(string)


def _open_history(path: Path | None) -> History:
    if path is None:
        return InMemoryHistory()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # what is asked is nobody else's business
    except OSError:
        return InMemoryHistory()
    return _FileHistory(str(path))


__all__ = ["MARK", "Input"]
