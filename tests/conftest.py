"""Fixtures for all tests: no keys from outside, no network, and time that is only arithmetic."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import aiohttp
import pytest
from aioresponses import aioresponses
from hypothesis import HealthCheck, settings

# Laws are about what is true, not about how fast this machine finds out.
settings.register_profile("cbatch", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("cbatch")

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"  # real prompt sets, where they are at hand


@pytest.fixture(autouse=True)
def _no_outside_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key, no address and no proxy from the environment, and no connection off this machine."""
    for name in list(os.environ):
        if name.startswith(("CEREBRAS_", "CBATCH_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home" / ".config"))
    for name in ("XDG_DATA_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if (
            isinstance(address, tuple)
            and not str(address[0]).startswith("127.")
            and address[0] not in ("::1", "localhost")
        ):
            raise AssertionError(f"a test tried to reach {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop on which waiting takes no time: the selector never blocks, the clock jumps instead.

    Not for sockets or threads: time would jump while they are in flight.
    """

    def __init__(self) -> None:
        super().__init__()
        self._now = 1_000.0
        select = self._selector.select  # type: ignore[attr-defined]

        def jump(timeout: float | None = None) -> Any:
            if timeout:
                self._now += timeout
            return select(0)

        self._selector.select = jump  # type: ignore[attr-defined]

    def time(self) -> float:
        return self._now


@pytest.fixture
def virtual() -> Callable[[Any], Any]:
    """`virtual(coroutine)` runs it to its end on a VirtualLoop."""

    def run(main: Any) -> Any:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            return runner.run(main)

    return run


@pytest.fixture
def http(monkeypatch: pytest.MonkeyPatch) -> Iterator[aioresponses]:
    """Answers and errors of the HTTP library without a socket; for the error shapes of the client only."""

    class Response(aiohttp.ClientResponse):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            # aiohttp 3.14 requires it, and aioresponses 0.7.9 does not know (aioresponses#289).
            super().__init__(*args, stream_writer=Mock(output_size=0), **kwargs)

    monkeypatch.setattr("aioresponses.core.ClientResponse", Response)
    monkeypatch.setenv("CBATCH_TRANSPORT", "session")  # what it mocks
    with aioresponses() as mocked:
        yield mocked


@pytest.fixture
def data() -> Path:
    """The folder of real prompt sets; skips where it is missing."""
    if not DATA.is_dir():
        pytest.skip(f"the real prompt sets are not at {DATA}")
    return DATA


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the files in tests/golden")
