"""The page of --metrics-port over a real socket: on this machine alone, and never in the way of the run."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

import pytest

from cbatch import metrics as metrics_module
from cbatch.errors import JobError
from cbatch.metrics import Metrics, serve
from cbatch.session import Activity, Progress


async def ask(address: str, request: str) -> tuple[str, str]:
    """The head and the body of the answer."""
    host, port = address.removeprefix("http://").removesuffix("/metrics").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"{request} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    head, body = answer.split("\r\n\r\n", 1)
    return head, body


async def test_the_page_tells_what_the_run_does_now() -> None:
    """Asked twice, it has what happened in between; the length is right and the connection closed."""
    progress = Progress(activity=Activity(sent=1))
    async with serve(Metrics(progress), 0) as address:
        assert address.startswith("http://127.0.0.1:")
        head, body = await ask(address, "GET /metrics")
        assert "\ncbatch_requests_total 1.0\n" in body
        assert head.startswith("HTTP/1.1 200 OK\r\n")
        assert "Content-Type: text/plain; version=0.0.4" in head
        assert f"Content-Length: {len(body)}" in head
        progress.activity.sent = 5
        assert "\ncbatch_requests_total 5.0\n" in (await ask(address, "GET /metrics?x=1"))[1]


@pytest.mark.parametrize(
    ("request_line", "status", "has_body"),
    [
        ("GET /", "200", True),
        ("HEAD /metrics", "200", False),
        ("GET /other", "404", True),
        ("POST /metrics", "405", True),
        ("nonsense", "405", True),
    ],
)
async def test_other_questions_get_an_answer_too(request_line: str, status: str, has_body: bool) -> None:
    async with serve(Metrics(Progress()), 0) as address:
        head, body = await ask(address, request_line)
    assert head.split()[1] == status
    assert bool(body) == has_body


async def test_a_port_that_is_taken_is_a_usage_error_that_names_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(JobError, match=f"--metrics-port {port}: cannot listen .*in use") as caught:
            async with serve(Metrics(Progress()), port):
                pytest.fail("it must not start")
    assert caught.value.exit_code == 2
    assert caught.value.hint


async def test_two_runs_cannot_share_a_port() -> None:
    async with serve(Metrics(Progress()), 0) as address:
        port = int(address.split(":")[2].split("/")[0])
        with pytest.raises(JobError, match="in use"):
            async with serve(Metrics(Progress()), port):
                pytest.fail("it must not start")


async def test_it_stops_at_once_with_a_connection_open_and_the_port_is_free_again() -> None:
    async with serve(Metrics(Progress()), 0) as address:
        port = int(address.split(":")[2].split("/")[0])
        silent, waiting = await asyncio.open_connection("127.0.0.1", port)
        await ask(address, "GET /metrics")  # by now it has the other connection
    with pytest.raises(ConnectionError):
        await asyncio.open_connection("127.0.0.1", port)
    with suppress(ConnectionError):
        assert await silent.read() == b""
    waiting.close()
    async with serve(Metrics(Progress()), port):
        pass


async def test_who_says_nothing_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "REQUEST_S", 0.01)
    async with serve(Metrics(Progress()), 0) as address:
        port = int(address.split(":")[2].split("/")[0])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        assert (await ask(address, "GET /metrics"))[0].startswith("HTTP/1.1 200")


async def test_a_request_without_an_end_is_hung_up_on() -> None:
    async with serve(Metrics(Progress()), 0) as address:
        port = int(address.split(":")[2].split("/")[0])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x" * 1_000_000)
        with suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
