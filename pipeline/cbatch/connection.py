"""How to reach the API, decided from options, job and environment, and opened when it is needed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

from cbatch import environment
from cbatch.account import name_of, peek
from cbatch.client import Client, Endpoint, connect
from cbatch.errors import CbatchError, JobError
from cbatch.job import Timeouts
from cbatch.simulate import simulator

LOCAL = "a local server"


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
            async with self._opening:  # who comes meanwhile waits, and opens its own
                if not self._users and self._api is not None:
                    self._api = None
                    await self._stack.aclose()
