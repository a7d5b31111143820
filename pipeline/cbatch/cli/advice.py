"""What to do about a request that failed, where the error itself does not say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cbatch.errors import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    CbatchError,
    JobError,
    NotFoundError,
    RateLimitError,
)
from cbatch.retry import STOP_HINTS


def advice(error: CbatchError) -> str | None:
    """The hint of an error."""
    if error.hint is not None or not isinstance(error, APIError):
        return error.hint
    if isinstance(error, RateLimitError):
        return "the account's limit, or the server, is busy: try again in a minute"
    if isinstance(error, APIStatusError):
        return STOP_HINTS.get(error.status)
    if isinstance(error, APITimeoutError):
        return "try again; `cbatch ping` tests key, endpoint and speed"
    if isinstance(error, APIConnectionError):
        return "is the address right (--base-url, CEREBRAS_BASE_URL), and the server up? `cbatch ping` tests it"
    return None


@contextmanager
def advised() -> Iterator[None]:
    """Every error that leaves the block says what to do."""
    try:
        yield
    except NotFoundError as error:
        if error.code != "model_not_found":
            raise
        # As in a job and in a chat: that is wrong usage, and not something that passes.
        raise JobError(str(error), hint=error.hint or "`cbatch models` lists those this key sees") from None
    except APIError as error:
        error.hint = advice(error)
        raise
