"""Everything that can go wrong, as types.

    CbatchError                       something to tell the user; `hint` says what to do next
    ├─ JobError                       job.yaml, or how it was called, is wrong            exit 2
    ├─ SourceError                    the input cannot be read at all                     exit 2
    ├─ KeyProblem                     no usable API key was found                         exit 1
    ├─ JournalError                   the run directory is unwritable, busy or foreign    exit 1
    ├─ RunStopped                     the run cannot go on; what was paid for is kept     exit 1
    │  └─ BudgetReached               a limit that the user set                           exit 4
    └─ APIError                       one request failed; ends in `send` as a Failure
       ├─ APIConnectionError          no answer: reset, closed
       │  ├─ APIUnreachableError      not even a connection: refused, DNS, TLS
       │  └─ APITimeoutError          no answer in time
       ├─ APIResponseError            an answer, but not one that can be used
       └─ APIStatusError              an answer with an error status
          ├─ BadRequestError          400
          ├─ AuthenticationError      401
          ├─ PermissionDeniedError    403
          ├─ NotFoundError            404
          ├─ ConflictError            409
          ├─ UnprocessableEntityError 422
          ├─ RateLimitError           429
          └─ InternalServerError      5xx

The names below APIError are the official SDK's, so experience carries over.
"""

from __future__ import annotations

from collections.abc import Mapping


class CbatchError(Exception):
    """Something to tell the user: what happened, and in `hint` what to do next."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class JobError(CbatchError):
    """job.yaml is wrong: the message names file, line, key, what was read and what is accepted."""

    exit_code = 2


class SourceError(CbatchError):
    """The input cannot be read: the message names the file, and the line where there is one."""

    exit_code = 2


class KeyProblem(CbatchError):
    """No usable API key: the message says where it was looked for, never what it is."""


class JournalError(CbatchError):
    """The run directory cannot be used: unwritable, in use, or of a newer version."""


class RunStopped(CbatchError):
    """The run cannot go on; every answer that was counted is kept and the same line resumes."""


class BudgetReached(RunStopped):
    """A limit that the user set was reached before the next request; the same line resumes."""

    exit_code = 4


class APIError(CbatchError):
    """One request failed."""


class APIConnectionError(APIError):
    """No answer came: the connection was refused, reset or closed, or the name did not resolve."""


class APIUnreachableError(APIConnectionError):
    """No connection could be made: the request was never sent, so nothing is known about the prompt."""


class APITimeoutError(APIConnectionError):
    """No answer came within the time allowed."""


class APIResponseError(APIError):
    """An answer came with status 200 that is not a whole chat completion."""

    def __init__(self, message: str, *, code: str, truncated: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.truncated = truncated


class APIStatusError(APIError):
    """An answer came with an error status.

    `code`, `type` and `param` are the server's own words, None where it sent none.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str | None = None,
        type: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.type = type
        self.param = param
        self.headers: Mapping[str, str] = headers if headers is not None else {}


class BadRequestError(APIStatusError):
    """400: the request is malformed, or too long for the model."""


class AuthenticationError(APIStatusError):
    """401: the key is wrong."""


class PermissionDeniedError(APIStatusError):
    """403: no key was sent, or it may not do this."""


class NotFoundError(APIStatusError):
    """404: no such model, or no such path."""


class ConflictError(APIStatusError):
    """409."""


class UnprocessableEntityError(APIStatusError):
    """422: the request is well formed but not acceptable."""


class RateLimitError(APIStatusError):
    """429: the account's quota is used up, or the server's queue is full; `code` says which."""


class InternalServerError(APIStatusError):
    """5xx: the server failed."""
