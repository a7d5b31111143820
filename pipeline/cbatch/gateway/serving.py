"""The gateway as a server: everything that lives as long as it does, opened in order and closed in reverse."""

from __future__ import annotations

import ipaddress
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from cbatch import environment
from cbatch.errors import JobError, KeyProblem
from cbatch.gateway.app import Gateway
from cbatch.gateway.config import CEREBRAS, Provider, Settings, Watched
from cbatch.gateway.counters import Counters
from cbatch.gateway.exchange_log import ExchangeLog
from cbatch.gateway.passthrough import CONNECT_S, SILENCE_S, Passthrough
from cbatch.gateway.store import Responses
from cbatch.gateway.upstream import Upstream, Upstreams
from cbatch.library import Client

BACKLOG = 4096  # hundreds of clients start at once
IDLE_S = 600.0  # clients keep their connections between two questions
DRAIN_S = 10.0  # what is being answered at the end may take so long; a second signal ends it at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a gateway was started."""

    host: str = "127.0.0.1"
    port: int = 8787
    config: Path | None = None
    base_url: str | None = None
    api_key_file: Path | None = None
    sim: bool = False
    client_key: str | None = None
    log: Path | None = None


@asynccontextmanager
async def running(options: Options, notify: Callable[[str], None]) -> AsyncIterator[tuple[str, Counters]]:
    """A gateway that listens: its address, and what it counts. Requests have DRAIN_S to end.

    Raises JobError and KeyProblem before it listens, OSError where it cannot.
    """
    local = _is_loopback(options.host)
    if not local and not options.client_key:
        raise JobError(
            f"--host {options.host} would let everyone who reaches it spend this account's quota",
            hint="give them a key of the gateway's own with --client-key, or listen on 127.0.0.1",
        )
    watched = Watched(options.config, notify)
    settings = watched.current()
    counters = Counters(time.perf_counter)
    async with AsyncExitStack() as stack:
        log = None
        if options.log is not None:
            secrets = [options.client_key, *(_key(one, options) for one in settings.providers.values())]
            log = ExchangeLog(
                options.log,
                secrets=[secret for secret in secrets if secret],
                max_exchange_bytes=settings.log.max_exchange,
                max_total_bytes=settings.log.max_total,
                notify=notify,
            )
            stack.callback(log.close)
        session = await stack.enter_async_context(
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        )
        # A stack of their own: those that are opened later must outlive the requests at the end, too.
        upstreams = Upstreams(await stack.enter_async_context(AsyncExitStack()))

        def key_of(provider: Provider) -> str | None:
            key = _key(provider, options)
            if log is not None and key:  # of a provider that was added since the start
                log.hide(key)
            return key

        def make(provider: Provider, settings: Settings) -> Upstream:
            key_of(provider)
            return Upstream(_client(provider, settings, options), settings.retry.max_wait_s, settings.concurrency)

        provider = settings.providers[settings.provider]
        if provider.mode == "translate":  # a missing key is told now, and not to the first client
            await upstreams.get(provider, lambda: make(provider, settings))
        gateway = Gateway(
            watched=watched,
            upstreams=upstreams,
            make=make,
            passthrough=Passthrough(session, key_of, forwards_client_keys=not options.client_key),
            store=Responses(),
            counters=counters,
            log=log,
            client_key=options.client_key,
            local=local,
            notify=notify,
        )
        counters.in_flight, counters.waiting = lambda: gateway.in_flight, lambda: gateway.waiting
        runner = web.AppRunner(
            gateway.app(),
            access_log=None,
            logger=_silent(),
            handler_cancellation=True,  # a client that hangs up ends the request at the upstream
            shutdown_timeout=DRAIN_S,
            keepalive_timeout=IDLE_S,
            auto_decompress=False,  # aiohttp refuses zstd in words that nobody understands
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, options.host, options.port, backlog=BACKLOG, reuse_address=True).start()
        yield f"http://{reachable(options.host)}:{runner.addresses[0][1]}", counters


def _client(provider: Provider, settings: Settings, options: Options) -> Client:
    """The client of one provider, with the limits and retries of the file."""
    limits = settings.limits.model_dump(exclude_none=True, exclude={"concurrency"})
    common: dict[str, Any] = {
        "limits": limits or None,
        "attempts": settings.retry.attempts,
        "max_wait_s": settings.retry.max_wait_s,
        "timeout_s": settings.timeout_s,
    }
    if provider.name == CEREBRAS and provider.base_url is None:
        if options.sim:
            return Client(sim=True, **common)
        return Client(api_key_file=options.api_key_file, base_url=options.base_url, **common)
    key = _key(provider, options)
    if key is None and provider.key_env:
        raise KeyProblem(
            f"provider {provider.name}: the environment variable {provider.key_env} is not set",
            hint="it holds the key of this provider (key_env in the --config file)",
        )
    return Client(api_key=key or "none", base_url=provider.base_url, **common)


def _key(provider: Provider, options: Options) -> str | None:
    """The key of a provider, where it has one."""
    if provider.name == CEREBRAS and provider.key_env is None:
        with suppress(KeyProblem):
            return None if options.sim else environment.find_key(options.api_key_file, None)
        return None
    return os.environ.get(provider.key_env) or None if provider.key_env else None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _silent() -> logging.Logger:
    """For aiohttp, which prints what it cannot read with a traceback, keys included; what matters is told by us."""
    logger = logging.getLogger("cbatch.gateway.http")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    return logger


def reachable(host: str) -> str:
    """The host as a client would write it: not the wildcard, and IPv6 in brackets."""
    with suppress(ValueError):
        address = ipaddress.ip_address(host)
        if address.is_unspecified:
            return "127.0.0.1" if address.version == 4 else "[::1]"
        return host if address.version == 4 else f"[{host}]"
    return host
