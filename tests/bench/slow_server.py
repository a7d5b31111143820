"""A server that answers every chat completion after the same time: so many requests are really in flight.

    python -m tests.bench.slow_server SECONDS      prints its address; ends with its stdin

One process, one timer a request, a fixed answer: its CPU is not the client's.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from tests.bench.server import ANSWER

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_REPLY = (
    f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(ANSWER.encode())}\r\n\r\n{ANSWER}"
).encode()


class _Connection(asyncio.Protocol):
    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by name
        self._loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        self._held += data
        while (end := self._held.find(b"\r\n\r\n") + 4) > 3:
            length = _LENGTH.search(self._held, 0, end)
            whole = end + (int(length[1]) if length else 0)
            if len(self._held) < whole:
                return
            self._held = self._held[whole:]
            self._loop.call_later(self._after_s, self._answer)

    def _answer(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(_REPLY)


async def _serve(after_s: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(after_s), "127.0.0.1", 0, backlog=16_384)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


@contextmanager
def slow_server(after_s: float) -> Iterator[str]:
    """The address, without /v1, of a server that lives as long as the block."""
    command = [sys.executable, "-m", "tests.bench.slow_server", str(after_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().decode().strip()
        finally:
            process.stdin.close()


if __name__ == "__main__":
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(float(sys.argv[1])))
