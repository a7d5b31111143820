"""What several commands need: common options, the event loop, the connection, the simulator."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
import orjson

from cbatch.account import name_of, peek
from cbatch.cli import environment
from cbatch.client import Client, Endpoint, connect
from cbatch.errors import APIError, APIStatusError, CbatchError, JobError, RunStopped
from cbatch.job import Timeouts
from cbatch.retry import STOP_HINTS
from cbatch.rundir import RunDir

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

_SOURCE = str(Path(__file__).resolve().parents[2])  # a clone runs uninstalled
LOCAL = "a local server"
SIM_START_S = 30.0  # a cold start of a second Python on a busy machine


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


class Connection:
    """How to reach the API, decided from options, job and environment; opened only when needed."""

    def __init__(
        self,
        *,
        sim: bool,
        url: str | None,
        key_file: Path | None,
        endpoint: str = "cerebras",
        folder: Path | None = None,
        timeouts: Timeouts | None = None,
        tier: str | None = None,
    ) -> None:
        if sim and url:
            raise JobError("--sim and --base-url exclude each other", hint="give one of them")
        self.simulated = sim or (endpoint == "sim" and not url)
        self._base_url = None if self.simulated else environment.base_url(url, endpoint)
        self._key_file = key_file
        self._folder = folder
        self._timeouts = timeouts or Timeouts()
        self._tier = tier or "unlimited"

    @property
    def label(self) -> str:
        """What a run directory remembers: answers of this machine's servers and of others never mix."""
        if self._base_url is None or environment.is_local(self._base_url):
            return LOCAL
        return self._base_url

    @asynccontextmanager
    async def open(self, *, keyless: bool = False) -> AsyncIterator[Client]:
        """A connected client; `keyless` sends no key. Raises KeyProblem if one is needed and none is found."""
        if self._base_url is None:
            async with simulator(self._tier) as url, connect(self._endpoint(url, "simulated")) as api:
                yield api
            return
        key = None if keyless else environment.find_key(self._key_file, self._folder)
        if key is None and not keyless and not environment.is_local(self._base_url):
            raise environment.missing_key()
        async with connect(self._endpoint(self._base_url, key)) as api:
            yield api

    def learned_limits(self, models: Iterable[str]) -> dict[str, dict[str, float]]:
        """What earlier runs found out about the account's limits, by model; nothing for a simulator."""
        if self._base_url is None:
            return {}
        try:
            key = environment.find_key(self._key_file, self._folder)
        except CbatchError:  # a plan needs no key
            key = None
        url = self._endpoint(self._base_url, key).base_url
        folder = environment.state_folder()
        return {model: peek(folder / name_of(url, key, model)) for model in models}

    def _endpoint(self, url: str, key: str | None) -> Endpoint:
        times = self._timeouts
        return Endpoint(
            base_url=url if url.endswith("/v1") else url + "/v1",
            key=key,
            proxy=environment.proxy_for(url),
            connect_s=times.connect_s,
            total_s=times.total_s,
        )


class Shared:
    """One connection for several jobs: opened by the first that needs it, closed by the last."""

    def __init__(self, connect: Callable[[], AbstractAsyncContextManager[Client]]) -> None:
        self._connect = connect
        self._users = 0
        self._stack = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._api: Client | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Client]:
        """The client."""
        async with self._opening:
            if self._api is None:
                self._api = await self._stack.enter_async_context(self._connect())
            self._users += 1
        try:
            yield self._api
        finally:
            self._users -= 1
            if not self._users:
                self._api = None
                await self._stack.aclose()


@asynccontextmanager
async def simulator(tier: str) -> AsyncIterator[str]:
    """A simulator in a process of its own, so that it shares no event loop with what it is measured by.

    It ends when its stdin closes: however this process dies, no simulator is left behind.
    """
    # The key is not for it: what a process does not have, it cannot show.
    env = {name: value for name, value in os.environ.items() if name != environment.KEY_NAME}
    path = os.pathsep.join(p for p in (_SOURCE, os.environ.get("PYTHONPATH")) if p)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cbatch", "sim", "--port", "0", "--tier", tier, "--until-stdin-closes",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**env, "PYTHONPATH": path},
        start_new_session=True,  # Ctrl-C is for the run, which drains; the simulator must outlive that
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        try:
            async with asyncio.timeout(SIM_START_S):
                address = (await process.stdout.readline()).decode().strip()
        except TimeoutError:
            address = ""
        if not address.startswith("http"):
            raise RunStopped("the embedded simulator did not start", hint="try `cbatch sim --port 0`")
        yield address
    finally:
        process.stdin.close()
        try:
            async with asyncio.timeout(3):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


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
    gc.set_threshold(70_000, 50, 50)
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


def open_run(path: Path) -> RunDir:
    """The run directory at `path`. Raises JournalError if no run has been there."""
    folder = RunDir.at(path)
    if not folder.is_run():
        runs = sorted(child.name for child in path.glob("*") if RunDir(child).is_run()) if path.is_dir() else []
        known = f"runs in it: {', '.join(runs[:10])}" if runs else "name the folder that holds run.json"
        raise JobError(f"{path}: not a run directory", hint=known)
    return folder
