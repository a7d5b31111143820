"""Where a chat is shown and typed: what `Talk` needs of a terminal, a dumb one, or a pipe."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Protocol

from cbatch.errors import CbatchError

if TYPE_CHECKING:
    from cbatch.library import Delta


class Screen(Protocol):
    """Somebody, or something, at the other end of the chat."""

    interactive: bool  # somebody is there, to see what went wrong and try again
    keys: tuple[tuple[str, str], ...]  # for /help

    async def read(self) -> str | None:
        """What is typed next; None at its end."""

    async def stream(self, deltas: AsyncIterator[Delta], *, reasoning: bool) -> None:
        """Show an answer as it comes; what came of it stays where it is cancelled or breaks."""

    def tell(self, lines: Sequence[str]) -> None:
        """What a command was asked for."""

    def markdown(self, text: str) -> None:
        """A whole text of the model."""

    def typed(self, text: str) -> None:
        """What was typed earlier, in a session that goes on."""

    def note(self, text: str) -> None:
        """A remark."""

    def fail(self, error: CbatchError) -> None:
        """What went wrong, and what to do."""

    def interrupted(self) -> None:
        """Ctrl-C while nothing is under way."""
