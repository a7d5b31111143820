"""Turns -> a summary, by the model: in one request, or part by part where the conversation is longer than that."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from cbatch.conversations import trim
from cbatch.conversations.asking import TRIES, Budgets
from cbatch.conversations.turns import Turn
from cbatch.errors import APIError

if TYPE_CHECKING:
    from cbatch.library import Answer, Client

SUMMARY_TOKENS = 4_096  # at most, reasoning included
INSTRUCTIONS = (
    "Summarize this conversation for somebody who was not there: what was asked, what was found out or decided, "
    "what is still open. Be brief, and use the language of the conversation."
)
_GO_ON = "A summary of the conversation so far:\n\n{}\n\nWrite one that has what follows, too:\n\n{}"


async def summarize(
    api: Client, model: str, turns: Sequence[Turn], budgets: Budgets
) -> AsyncIterator[tuple[str, Answer, bool]]:
    """The summary after each request, its answer, and whether it is of the whole. Raises APIError."""
    for tries_left in range(TRIES - 1, -1, -1):
        budget = budgets[model]
        # Half of what fits: the summary so far is sent, too, and bytes / 4 is a guess.
        parts, text = _parts(turns, budget.prompt // 2), ""
        try:
            for number, part in enumerate(parts, 1):
                asked = _GO_ON.format(text, part) if text else part
                request = [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": asked}]
                room = min(SUMMARY_TOKENS, budget.answer_tokens)
                answer = await api.chat(request, model=model, max_completion_tokens=room)
                text = (answer.text or "").strip() or text
                yield text, answer, number == len(parts)
            return
        except APIError as exc:
            if getattr(exc, "code", None) != "context_length_exceeded" or not tries_left:
                raise
            budgets[model] = budget.refused(trim.tokens(asked), str(exc))


def _parts(turns: Sequence[Turn], most_tokens: int) -> list[str]:
    """The conversation as text, in parts of at most so many tokens; a longer message is cut into several."""
    most = max(most_tokens, 64) * trim.BYTES_PER_TOKEN
    parts: list[bytes] = [b""]
    for turn in turns:
        said = f"User: {turn.message}\n\nAssistant: {turn.answer}\n\n".encode("utf-8", "replace")
        for start in range(0, len(said), most):
            piece = said[start : start + most]
            if parts[-1] and len(parts[-1]) + len(piece) > most:
                parts.append(b"")
            parts[-1] += piece
    return [part.decode("utf-8", "ignore") for part in parts if part]
