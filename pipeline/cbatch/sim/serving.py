"""The simulator as a server of its own."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import Callable

from aiohttp import web

from .app import create_app
from .config import SimConfig

__all__ = ["serve"]

_BACKLOG = 4096  # a run opens all its connections at once
_SHUTDOWN_S = 1.0
_KEEPALIVE_S = 600.0  # idle clients keep their connections between two phases of a run


async def serve(config: SimConfig, host: str, port: int, on_ready: Callable[[str], None]) -> None:
    """Serve until cancelled, then close within about a second.

    `on_ready` gets the address once it listens, `http://127.0.0.1:PORT`; port 0 picks a free one.
    Raises OSError when the port is taken.
    """
    _allow_connections()
    runner = web.AppRunner(
        create_app(config),
        access_log=None,
        handler_cancellation=True,  # a caller that hangs up ends the work for it
        shutdown_timeout=_SHUTDOWN_S,
        keepalive_timeout=_KEEPALIVE_S,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=_BACKLOG, reuse_address=True).start()
        on_ready(f"http://{_reachable(host)}:{runner.addresses[0][1]}")
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def _reachable(host: str) -> str:
    """The host as a client would write it: not the wildcard, and IPv6 in brackets."""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        if address.is_unspecified:
            return "127.0.0.1" if address.version == 4 else "[::1]"
        return host if address.version == 4 else f"[{host}]"
    return host


def _allow_connections() -> None:
    """Raise the soft limit of open files to the hard one: 10,000 connections do not fit the usual 1024."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        if soft < hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
