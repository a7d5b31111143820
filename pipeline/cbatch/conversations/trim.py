"""How much of a conversation fits into the model's context: the rule, as arithmetic.

The system prompt and the new message are always sent. Of the history the newest turns are, each whole: from
the oldest on turns are left out until the rest fits, and then as many more as make an eighth of the context,
so that not every message moves the beginning: what begins alike comes from the server's prompt cache.

Tokens are bytes / 4, times what the server's counts have been of ours so far. That is a guess, and the
server has the last word: where it says that the prompt is too long, it also says how long it is, and less is
sent.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

BYTES_PER_TOKEN = 4
MESSAGE_TOKENS = 8  # of a message's frame
PREAMBLE_TOKENS = 128  # of a model's hidden instructions
IMAGE_TOKENS = 300  # the service scales images to at most 280
DEFAULT_CONTEXT = 131_072  # of a model that nobody describes: the usual one; the server corrects it
DEFAULT_ANSWER = 16_384  # what the server reserves for a request that does not say
LEARN_FROM = 500  # tokens of a prompt; of a short one the preamble is most
FACTORS = 0.5, 4.0  # real tokens per estimated one: repeated words, and rare scripts
PARTS = 8  # of a context, by which history is left out

_STATED = re.compile(r"[Cc]urrent length is (\d+) while limit is (\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a model takes: `context` for prompt and answer; `factor` is real tokens per estimated one."""

    context: int = DEFAULT_CONTEXT
    answer: int = DEFAULT_ANSWER
    factor: float = 1.0

    @property
    def prompt(self) -> int:
        """What may be sent, in estimated tokens; an answer never takes more than a quarter from it."""
        return max(0, int((self.context - self.answer_tokens) / self.factor) - PREAMBLE_TOKENS)

    @property
    def answer_tokens(self) -> int:
        """What is asked for at most."""
        return max(1, min(self.answer, self.context // 4))

    def learned(self, estimate: int, prompt_tokens: int | None) -> Budget:
        """The budget after an answer to a prompt of `estimate` tokens, of which the server counted `prompt_tokens`."""
        if prompt_tokens is None or estimate < LEARN_FROM:
            return self
        return replace(self, factor=min(max(prompt_tokens / estimate, FACTORS[0]), FACTORS[1]))

    def refused(self, estimate: int, message: str) -> Budget:
        """The budget after the server found a prompt of `estimate` tokens too long, in these words."""
        if (found := _STATED.search(message)) is None:
            sent = int(estimate * self.factor) + self.answer_tokens
            return replace(self, context=max(1, min(self.context, sent) * 3 // 4))
        length, limit = int(found[1]), int(found[2])
        # Whether the length has the answer in it is not known; taken as the prompt's, it leaves out too much, once.
        factor = max(self.factor, min(length / max(estimate, 1), FACTORS[1]))
        return replace(self, context=min(limit, self.context), factor=factor)


def tokens(text: str, images: int = 0) -> int:
    """The estimate for one message."""
    return len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN + MESSAGE_TOKENS + images * IMAGE_TOKENS


def left_out(sizes: Sequence[int], fixed: int, budget: Budget) -> int:
    """How many of the oldest turns are not sent. `sizes` are the turns', oldest first; `fixed` is always sent."""
    excess = sum(sizes) + fixed - budget.prompt
    if excess <= 0:
        return 0
    step = max(1, int(budget.context / PARTS))
    wanted = -(-excess // step) * step
    gone = 0
    for number, size in enumerate(sizes):
        if gone >= wanted:
            return number
        gone += size
    return len(sizes)
