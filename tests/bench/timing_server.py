"""A server of known timing: what a client reports about an answer can be held against when it was really sent.

    python -m tests.bench.timing_server [--port 0]      Linux; prints its address; ends when its stdin does

Every plan of PLANS has an address of its own, `http://127.0.0.1:PORT/NAME/v1`. Its first token is written 50 ms
after the request was read to its end, the following ones at 2,000 tokens/s, 64 in all; a request with
`"stream":true` gets them as they come, any other one whole when the last of them exists. `time_info` says
exactly what the plan says: completion_tokens / completion_time is 2,000. The answer's id is the number of the
request, and `GET /log` gives when each write was really made, and forgets it (`timing_log.read_log`).

Shares no code with cbatch, which must not agree with it by accident.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import heapq
import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

from tests.bench.timing_plans import ID, MODEL, NAMES, PLANS, Write, head, stream, whole

REPOSITORY = Path(__file__).resolve().parents[2]
RECORD = 6  # integers before the stamps: number, tag, plan, whether whole, status, read
AT_ONCE = 16  # connections that are sent to before the loop looks for requests
NICE = -10  # where we may: a client on the same core would else keep us from reading what it has sent
SLOT_NS = 50_000  # of the timer wheel: nothing is written earlier, and little later, than planned


def _answer(status: int, body: bytes, *lines: str) -> bytes:
    return head(status, "application/json", f"content-length: {len(body)}", *lines) + body


_REFUSAL = _answer(
    429,
    b'{"message":"Requests per minute limit exceeded","type":"too_many_requests_error","param":"quota",'
    b'"code":"request_quota_exceeded"}',
    "retry-after: 0.05",
)
_MODELS = json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "Cerebras"}]}).encode()


class Wheel:
    """What is due when: slots of SLOT_NS, and one timer of the kernel that is set to the next of them.

    The timers of event loops are as coarse as a millisecond, which is two tokens.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._timer = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK)
        if self._timer < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._setting = (ctypes.c_long * 4)()  # struct itimerspec: no interval, then seconds and nanoseconds
        self._slots: dict[int, list[Connection]] = {}
        self._order: list[int] = []  # heap
        self._set_to = math.inf
        loop.add_reader(self._timer, self._tick)

    def add(self, connection: Connection, due_ns: int) -> None:
        slot = -(-due_ns // SLOT_NS)
        if waiting := self._slots.get(slot):
            waiting.append(connection)
            return
        self._slots[slot] = [connection]
        heapq.heappush(self._order, slot)
        if slot < self._set_to:
            self._set(slot)

    def _set(self, slot: int) -> None:
        self._set_to = slot
        self._setting[2], self._setting[3] = divmod(slot * SLOT_NS, 10**9)
        self._libc.timerfd_settime(self._timer, 1, self._setting, None)  # 1: an absolute time, which may be over

    def _tick(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._timer, 8)
        # A few at a time: requests that have arrived meanwhile are read, and stamped, before more is sent.
        now, budget = time.monotonic_ns() // SLOT_NS, AT_ONCE
        while budget and self._order and self._order[0] <= now:
            slot = self._order[0]
            due, rest = self._slots[slot][:budget], self._slots[slot][budget:]
            if rest:
                self._slots[slot] = rest
            else:
                del self._slots[slot]
                heapq.heappop(self._order)
            budget -= len(due)
            for connection in due:
                connection.send_due()
        self._set_to = math.inf
        if self._order:
            self._set(self._order[0])


class Server:
    """What all connections share."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.wheel = Wheel(loop)
        self.prepared = {name.encode(): (stream(plan), whole(plan)) for name, plan in PLANS.items()}
        self.requests = dict.fromkeys(self.prepared, 0)
        self.number = 0
        self.log = array("q")


_REQUEST = re.compile(rb"POST (?:/([a-z0-9-]+))?/v1/chat/completions ")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_TAG = re.compile(rb"\r\nx-request-id: *([0-9a-f]{8})", re.IGNORECASE)
_STREAM = re.compile(rb'"stream": ?true')


class Connection(asyncio.Protocol):
    """One request after the other; those that are pipelined are not for us."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._received = b""
        self._writes: Sequence[Write] = ()
        self._next = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not derived from it
        self._fd: int = transport.get_extra_info("socket").fileno()

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        self._received += data
        top, end, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(top)
        if not end or len(body) < (int(length[1]) if length else 0):
            return
        self._received = b""
        if request := _REQUEST.match(top):
            self._chat(request[1] or b"plain", _STREAM.search(body) is not None, _TAG.search(top), now)
        elif top.startswith(b"GET /log "):
            self._transport.write(_answer(200, self._server.log.tobytes()))
            self._server.log = array("q")
        else:
            known = top.startswith(b"GET ")  # some tools look whether there is a server, at addresses of their own
            self._transport.write(_answer(200 if known else 404, _MODELS if known else b"{}"))

    def _chat(self, name: bytes, streamed: bool, tag: re.Match[bytes] | None, now: int) -> None:
        server = self._server
        if name not in server.prepared:
            self._transport.write(_answer(404, b'{"message":"no such plan"}'))
            return
        server.number += 1
        server.requests[name] += 1
        self._record = [
            server.number,
            int(tag[1], 16) if tag else 0,
            NAMES.index(name.decode()),
            not streamed,
            200,
            now,
        ]
        self._id = b"chatcmpl-%012d" % server.number
        every = PLANS[name.decode()].refuse_every
        if every and server.requests[name] % every == 0:
            self._record[4] = 429
            self._writes = [Write(0, _REFUSAL)]
        else:
            self._writes = server.prepared[name][not streamed]
        self._next = 0
        if self._writes[0].at_ns:
            server.wheel.add(self, now + self._writes[0].at_ns)
        else:
            self.send_due()

    def send_due(self) -> None:
        """Send all that is due, in one piece; the stamp is taken before it is."""
        writes, first, record = self._writes, self._next, self._record
        if self._transport.is_closing():
            return
        now = time.monotonic_ns()
        elapsed = now - record[5]
        after = first + 1
        while after < len(writes) and writes[after].at_ns <= elapsed:
            after += 1
        data = writes[first].data if after == first + 1 else b"".join(write.data for write in writes[first:after])
        data = data.replace(ID, self._id)
        record += [now] * (after - first)
        self._next = after
        # Not by the transport, which would keep it until the loop has called everybody else.
        try:
            sent = os.write(self._fd, data)
        except OSError:
            sent = 0
        if sent < len(data):  # a client that does not read, or is gone
            self._transport.abort()
        elif after < len(writes):
            self._server.wheel.add(self, record[5] + writes[after].at_ns)
        else:
            self._finish()

    def _finish(self) -> None:
        record = self._record
        self._server.log.extend((*record[:RECORD], len(record) - RECORD, *record[RECORD:]))
        self._writes = ()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._writes:
            self._finish()


@contextmanager
def serving() -> Iterator[str]:
    """The address of a server in a process of its own, which lives as long as the block."""
    command = [sys.executable, "-m", "tests.bench.timing_server"]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if not (address := process.stdout.readline().strip()):
                raise RuntimeError("the timing server did not start; see its messages above")
            yield address
        finally:
            process.stdin.close()


async def _serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    shared = Server(loop)
    listening = await loop.create_server(lambda: Connection(shared), "127.0.0.1", port, backlog=4096)
    print(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", flush=True)
    gc.freeze()
    gc.disable()  # nothing here makes cycles, and a pause would be a late token
    await loop.run_in_executor(None, sys.stdin.buffer.read)


def main() -> None:
    """Serve until stdin ends."""
    parser = argparse.ArgumentParser(description="A server of known timing.")
    parser.add_argument("--port", type=int, default=0)
    port: int = parser.parse_args().port
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    with suppress(PermissionError):
        os.nice(NICE)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started us
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with suppress(ImportError):
        import uvloop

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_serve(port))


if __name__ == "__main__":
    main()
