"""A terminal to run a command line in: a pseudo-terminal, and what a user would see on it."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pyte

from tests.integration.conftest import DEADLINE_S, Forking, Process, Result

KEYS = {"enter": "\r", "alt-enter": "\x1b\r", "ctrl-c": "\x03", "ctrl-d": "\x04", "up": "\x1b[A", "tab": "\t"}

# Becomes the owner of the terminal, as a program that a shell starts.
_FIRST = """
os.setsid()
tty = os.open({name!r}, os.O_RDWR)
import fcntl, termios
fcntl.ioctl(tty, termios.TIOCSCTTY, 0)
for fd in range(3):
    os.dup2(tty, fd)
os.environ.update({env!r})
"""


class _Screen(pyte.HistoryScreen):
    """A screen that answers where its cursor is, as real ones do."""

    answer: Callable[[bytes], object]

    def write_process_input(self, data: str) -> None:
        self.answer(data.encode())


class Terminal:
    """A command line on a pseudo-terminal of its own; what it writes is drawn on `screen`."""

    def __init__(
        self,
        forking: Forking,
        args: list[str],
        cwd: Path,
        *,
        key: str | None,
        env: dict[str, str] | None = None,
        size: tuple[int, int] = (80, 24),
    ) -> None:
        self._master, slave = os.openpty()
        self.raw = b""
        self.screen = _Screen(*size, history=5_000)
        self.screen.answer = self.send_bytes
        self._stream = pyte.ByteStream(self.screen)
        self.resize(*size)
        first = _FIRST.format(name=os.ttyname(slave), env={"TERM": "xterm-256color", **(env or {})})
        self.settings = termios.tcgetattr(slave)
        self.process: Process = forking.start(args, key=key, cwd=cwd, first=first)
        self._slave = slave  # kept open: its settings can be read after the program has ended

    # -- what a user does -----------------------------------------------------------------------

    def type(self, *texts: str) -> None:
        """Type texts and keys: `type("hello", "enter")`."""
        for text in texts:
            self.send_bytes(KEYS.get(text, text).encode())

    def say(self, text: str) -> None:
        """Type a line, see it, and send it."""
        self.type(text)
        self.expect(lambda: text in self.line)
        self.type("enter")

    def send_bytes(self, data: bytes) -> None:
        os.write(self._master, data)

    def resize(self, columns: int, lines: int) -> None:
        """Make the window smaller or larger; the program gets SIGWINCH from the kernel."""
        self.screen.resize(lines, columns)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    # -- what a user sees -----------------------------------------------------------------------

    @property
    def text(self) -> str:
        """All that was ever on the screen, and is still above it."""
        above = ["".join(row[i].data for i in range(self.screen.columns)) for row in self.screen.history.top]
        return "\n".join(line.rstrip() for line in [*above, *self.screen.display])

    def after(self, mark: str) -> str:
        """What is on the screen behind the last `mark`; empty until that is there."""
        _, found, rest = self.text.rpartition(mark)
        return rest if found else ""

    @property
    def line(self) -> str:
        """The line where the cursor is, and those above that belong to the same input."""
        display = list(self.screen.display)
        start = max((i for i in range(self.screen.cursor.y + 1) if display[i].startswith(("›", ">"))), default=0)
        return "\n".join(display[start : self.screen.cursor.y + 1])

    def expect(self, seen: str | Callable[[], bool]) -> None:
        """Wait until a text is on the screen, or something is true."""
        look: Callable[[], bool] = (lambda: str(seen) in self.text) if isinstance(seen, str) else seen
        end = time.monotonic() + DEADLINE_S
        while not look():
            left = end - time.monotonic()
            assert left > 0, f"waited {DEADLINE_S:g} s for {seen}; on the screen:\n{self.text}"
            self._read(min(left, 0.5))
            assert look() or not self._is_over(), f"ended before {seen}; on the screen:\n{self.text}"

    def expect_prompt(self) -> None:
        """Wait until the program waits for a line."""
        self.expect(lambda: self.screen.display[self.screen.cursor.y].rstrip() in ("›", ">"))

    def wait(self) -> Result:
        """Read until the program ends."""
        end = time.monotonic() + DEADLINE_S
        while self.process.ended is None:
            assert time.monotonic() < end, f"still running; on the screen:\n{self.text}"
            self._read(0.02)
        self._read(0.0)
        return self.process.wait()

    def settings_are_back(self) -> bool:
        """Whether the terminal is as it was before the program."""
        return termios.tcgetattr(self._slave) == self.settings

    def close(self) -> None:
        self.process.kill()
        os.close(self._master)
        os.close(self._slave)

    def _is_over(self) -> bool:
        return self.process.ended is not None and not self._read(0.0)

    def _read(self, timeout_s: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], timeout_s)
        if not ready:
            return False
        data = os.read(self._master, 65_536)
        self.raw += data
        self._stream.feed(data)
        return True
