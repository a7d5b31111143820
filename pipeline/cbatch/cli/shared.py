"""What several commands need: common options, the event loop, the connection, the simulator."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
import orjson

from cbatch.client import Client
from cbatch.errors import APIError, APIStatusError, CbatchError, RunStopped
from cbatch.retry import STOP_HINTS

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def connection_options(function: F) -> F:
    """--sim, --base-url and --api-key-file."""
    for option in (
        click.option("--sim", is_flag=True, help="Use an embedded simulator: no key, no network."),
        click.option("--base-url", metavar="URL", help="Where to send, with or without /v1."),
        click.option(
            "--api-key-file",
            metavar="FILE",
            type=click.Path(path_type=Path),
            help="File with the API key [default: see `cbatch ping --help`].",
        ),
    ):
        function = option(function)
    return function


def json_option(function: F) -> F:
    """--json."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")(function)


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on uvloop where it is installed, with the collector tuned for thousands of requests."""
    try:
        import uvloop

        factory: Callable[[], asyncio.AbstractEventLoop] | None = uvloop.new_event_loop
    except ImportError:
        factory = None
    # The cyclic collector is what makes 1,000 connections cost twice as much per request as 64: what
    # is alive now stays, and young garbage is looked at 100 x less often.
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 200, 50)
    with asyncio.Runner(loop_factory=factory) as runner:
        try:
            return runner.run(main)
        except BaseExceptionGroup as group:
            raise _first(group) from None


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one cause a user should see."""
    leaves: list[BaseException] = []
    stack: list[BaseException] = [group]
    while stack:
        exc = stack.pop()
        if isinstance(exc, BaseExceptionGroup):
            stack.extend(exc.exceptions)
        else:
            leaves.append(exc)
    return next((exc for exc in leaves if isinstance(exc, CbatchError)), leaves[0])


@contextmanager
def api_errors(api: Client) -> Iterator[None]:
    """Turn a failed request of a one-shot command into a message that says what to do."""
    try:
        yield
    except APIStatusError as exc:
        raise RunStopped(f"{api.endpoint.base_url}: {exc}", hint=STOP_HINTS.get(exc.status)) from None
    except APIError as exc:
        raise RunStopped(f"{api.endpoint.base_url}: {exc}", hint="is the address right, and the server up?") from None


def print_json(value: object) -> None:
    """One JSON object on stdout."""
    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())
