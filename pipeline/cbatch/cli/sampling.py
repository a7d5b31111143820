"""--max-tokens, --temperature and --param: the fields of a request, for `ask` and `chat`."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click
import orjson

from cbatch.errors import JobError

F = TypeVar("F", bound=Callable[..., Any])

_OWN = {"model": "--model", "messages": "the prompt and --system", "stream": "nothing: answers are always streamed"}


def sampling_options(function: F) -> F:
    """The options; the command gets them as one `params`."""

    @functools.wraps(function)
    def with_params(
        *args: Any, max_tokens: int | None, temperature: float | None, param: tuple[str, ...], **rest: Any
    ) -> Any:
        return function(*args, params=_params(max_tokens, temperature, param), **rest)

    wrapped: Any = with_params
    for option in (
        click.option(
            "--param", metavar="KEY=VALUE", multiple=True, help="Any other field of the request, as JSON or text."
        ),
        click.option("--temperature", metavar="T", type=float, help="From 0 to 2."),
        click.option("--max-tokens", metavar="N", type=click.IntRange(1), help="Longest answer, reasoning included."),
    ):
        wrapped = option(wrapped)
    found: F = wrapped
    return found


def _params(max_tokens: int | None, temperature: float | None, param: tuple[str, ...]) -> dict[str, Any]:
    """The fields that were given. Raises JobError for one that the API does not have."""
    given: dict[str, Any] = {}
    for text in param:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise JobError(f"--param {text}: not like KEY=VALUE", hint="for example --param reasoning_effort=low")
        try:
            given[name] = orjson.loads(value)
        except orjson.JSONDecodeError:
            given[name] = value
    if max_tokens is not None:
        given["max_completion_tokens"] = max_tokens
    if temperature is not None:
        given["temperature"] = temperature
    if given:
        _check(given)
    return given


def _check(given: dict[str, Any]) -> None:
    from cbatch.job import Params  # heavy, and most questions have no parameters

    for name in given:
        if name in _OWN:
            raise JobError(f"--param {name}: not a parameter here", hint=f"it is decided by {_OWN[name]}")
        if name not in Params.model_fields:
            near = difflib.get_close_matches(name, Params.model_fields, n=1)
            hint = f"did you mean {near[0]}?" if near else f"accepted: {', '.join(sorted(Params.model_fields))}"
            raise JobError(f"--param {name}: the API has no such field", hint=hint)
    if given.get("max_completion_tokens") == "auto":
        raise JobError("--param max_completion_tokens: auto is for batches", hint="give a number, or leave it out")
    try:
        Params.model_validate(given)
    except ValueError as exc:  # pydantic's, which has its home elsewhere
        first: dict[str, Any] = exc.errors(include_url=False)[0]  # type: ignore[attr-defined]
        message = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            raise JobError(f"--param: {message}") from None
        name = str(first["loc"][0])
        option = {"max_completion_tokens": "--max-tokens", "temperature": "--temperature"}.get(name, f"--param {name}")
        raise JobError(f"{option}: {message}; read {first['input']!r}") from None
