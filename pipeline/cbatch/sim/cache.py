"""Prompt caching: which leading blocks of a prompt were seen in the last five minutes."""

from __future__ import annotations

__all__ = ["BLOCK_TOKENS", "PrefixCache"]

BLOCK_TOKENS = 128
_BLOCK_CHARS = BLOCK_TOKENS * 4  # one token is four characters everywhere in the simulator
_TTL_S = 300.0  # guaranteed; the service may keep a block up to an hour
_MAX_BLOCKS = 65_536  # 32 MiB of prompts; about 10 MB here. The block used longest ago goes first


class PrefixCache:
    """Blocks of 128 tokens, by a hash that includes all blocks before them."""

    __slots__ = ("_expires",)

    def __init__(self) -> None:
        self._expires: dict[int, float] = {}

    def match(self, now: float, scope: str, prompt: str, prompt_tokens: int) -> int:
        """Tokens of `prompt` found in the cache, a multiple of 128; the whole prompt is cached from now on.

        `scope` is organization and model: nothing is shared between two of them.
        """
        if len(prompt) < _BLOCK_CHARS:
            return 0
        expires = self._expires
        chain = hash(scope)
        found = 0
        unbroken = True
        for start in range(0, len(prompt) - _BLOCK_CHARS + 1, _BLOCK_CHARS):
            chain = hash((chain, prompt[start : start + _BLOCK_CHARS]))
            # Popped and set again: insertion order is then order of last use.
            unbroken = expires.pop(chain, 0.0) > now and unbroken
            found += unbroken
            expires[chain] = now + _TTL_S
        while len(expires) > _MAX_BLOCKS:
            del expires[next(iter(expires))]
        # At least one token of every prompt is computed.
        return min(found, (prompt_tokens - 1) // BLOCK_TOKENS) * BLOCK_TOKENS

    def clear(self) -> None:
        """Forget everything."""
        self._expires.clear()
