"""Messages that fit -> an answer: with less of the history where the server finds them too long."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from cbatch import catalog
from cbatch.conversations import trim
from cbatch.conversations.interface import Reply
from cbatch.conversations.prompting import Prepared, too_long
from cbatch.errors import APIError

if TYPE_CHECKING:
    from cbatch.library import Answer, Client, Delta

TRIES = 4  # of a prompt that the server finds too long; the last one is without history
LEAST_ANSWER = 256  # tokens that are always asked for
LIMITS = ("max_completion_tokens", "max_tokens")


class Prepare(Protocol):
    """The messages that fit into a budget, or (`alone`) without any history."""

    def __call__(self, budget: trim.Budget, *, alone: bool) -> Prepared:
        """See above."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The answer, and what was sent for it."""

    answer: Answer
    prepared: Prepared


class Budgets:
    """What is known of the models' contexts: the catalog's word, then the server's."""

    def __init__(self) -> None:
        self._known: dict[str, trim.Budget] = {}

    def __contains__(self, model: str) -> bool:
        return model in self._known

    def __getitem__(self, model: str) -> trim.Budget:
        if model not in self._known:
            card = catalog.card(model)
            most = card.max_output_tokens if card else trim.DEFAULT_ANSWER
            self._known[model] = trim.Budget(
                context=card.context_tokens if card else trim.DEFAULT_CONTEXT, answer=min(most, trim.DEFAULT_ANSWER)
            )
        return self._known[model]

    def __setitem__(self, model: str, budget: trim.Budget) -> None:
        self._known[model] = replace(budget, answer=self[model].answer)


async def ask(
    api: Client, model: str, prepare: Prepare, budgets: Budgets, params: Mapping[str, Any], *, stream: bool
) -> AsyncGenerator[Delta | Asked, None]:
    """The pieces of the answer if it is a stream, and the whole at its end.

    Raises MessageTooLong where the message is too long even without history, else APIError.
    """
    wanted = next((params[name] for name in LIMITS if isinstance(params.get(name), int)), None)
    budget = budgets[model] if wanted is None else replace(budgets[model], answer=wanted)
    answer: Answer | None = None
    prepared = prepare(budget, alone=False)
    for tries_left in range(TRIES - 1, -1, -1):
        room = budget.context - int(prepared.estimate * budget.factor)
        fields = (
            dict(params)
            if wanted is not None
            else {**params, LIMITS[0]: max(LEAST_ANSWER, min(room, budget.answer_tokens))}
        )
        try:
            if not stream:
                answer = await api.chat(prepared.messages, model=model, **fields)
            else:
                source = api.stream(prepared.messages, model=model, **fields)
                try:
                    async for delta in source:
                        yield delta
                    answer = await source.answer()
                finally:
                    await source.aclose()
            break
        except APIError as exc:
            if getattr(exc, "code", None) != "context_length_exceeded":
                raise
            budget = budgets[model] = budget.refused(prepared.estimate, str(exc))
            if prepared.alone:
                raise too_long(model, prepared, budget) from None
            prepared = prepare(budget, alone=tries_left == 1)
    assert answer is not None
    budgets[model] = budget.learned(prepared.estimate, answer.usage.prompt_tokens)
    yield Asked(answer=answer, prepared=prepared)


def reply_of(answer: Answer, estimate_tokens: int | None = None, left_out: int = 0) -> Reply:
    """What is kept of an answer besides its text."""
    return Reply(
        reasoning=answer.reasoning,
        tool_calls=answer.tool_calls,
        finish_reason=answer.finish_reason,
        usage=answer.usage,
        cost_usd=answer.cost_usd,
        latency_s=answer.metrics.latency_s,
        ttft_s=answer.metrics.ttft_s,
        tokens_per_s=answer.tokens_per_s,
        tokens_per_s_source=answer.tokens_per_s_source,
        attempts=answer.metrics.attempts,
        request_id=answer.request_id,
        served_model=answer.served_model,
        estimate_tokens=estimate_tokens,
        left_out=left_out,
    )
