"""The exceptions of the official SDK, by their names, with their attributes.

    CerebrasError
    └─ APIError                       .message .request .body
       ├─ APIConnectionError          ─ APITimeoutError
       ├─ APIResponseValidationError  .response .status_code
       └─ APIStatusError              .response .status_code, and .code .type .param, which the SDK has not
          ├─ BadRequestError 400  AuthenticationError 401  PermissionDeniedError 403  NotFoundError 404
          └─ ConflictError 409  UnprocessableEntityError 422  RateLimitError 429  InternalServerError 5xx

`__cause__` is the error of cbatch, which says more. All of them can be pickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cbatch.sdk.web import Request, Response


class CerebrasError(Exception):
    """Anything that this client raises."""


class APIError(CerebrasError):
    """One request failed. `body` is the decoded JSON of the answer, else its text, None where there was none."""

    def __init__(self, message: str, request: Request, *, body: object | None) -> None:
        super().__init__(message)
        self.request = request
        self.message = message
        self.body = body

    def __reduce__(self) -> Any:
        """Exceptions are made again from `args`, which are not what these are made from."""
        return _again, (type(self), self.args, self.__dict__)


class APIResponseValidationError(APIError):
    """An answer came that is not what was due."""

    def __init__(self, response: Response, body: object | None, *, message: str | None = None) -> None:
        super().__init__(message or "Data returned by API invalid for expected schema.", response.request, body=body)
        self.response = response
        self.status_code = response.status_code


class APIStatusError(APIError):
    """An answer came with an error status; `code`, `type` and `param` are the server's own words, else None."""

    def __init__(self, message: str, *, response: Response, body: object | None) -> None:
        inner = body.get("error", body) if isinstance(body, Mapping) else body
        super().__init__(message, response.request, body=inner)
        self.response = response
        self.status_code = _status(body, response)
        words = inner if isinstance(inner, Mapping) else {}
        self.code, self.type, self.param = (words.get(name) for name in ("code", "type", "param"))


class APIConnectionError(APIError):
    """No answer came: refused, reset, closed; `__cause__` says which."""

    def __init__(self, *, message: str = "Connection error.", request: Request) -> None:
        super().__init__(message, request, body=None)


class APITimeoutError(APIConnectionError):
    """No answer came in time."""

    def __init__(self, request: Request) -> None:
        super().__init__(message="Request timed out.", request=request)


class BadRequestError(APIStatusError):
    """400."""


class AuthenticationError(APIStatusError):
    """401: the key is wrong."""


class PermissionDeniedError(APIStatusError):
    """403."""


class NotFoundError(APIStatusError):
    """404: no such model, or no such path."""


class ConflictError(APIStatusError):
    """409."""


class UnprocessableEntityError(APIStatusError):
    """422."""


class RateLimitError(APIStatusError):
    """429: `code` says whether the quota is used up or the server's queue is full."""


class InternalServerError(APIStatusError):
    """5xx."""


_BY_STATUS: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    422: UnprocessableEntityError,
    429: RateLimitError,
}


def status_error(message: str, *, response: Response, body: object) -> APIStatusError:
    """The typed error for a status, which a body may have its own word about."""
    status = _status(body, response)
    kind = InternalServerError if status >= 500 else _BY_STATUS.get(status, APIStatusError)
    return kind(message, response=response, body=body)


def _status(body: object, response: Response) -> int:
    said = body.get("status_code") if isinstance(body, Mapping) else None
    return said if isinstance(said, int) else response.status_code


def _again(kind: type[APIError], args: tuple[Any, ...], attributes: dict[str, Any]) -> APIError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error
