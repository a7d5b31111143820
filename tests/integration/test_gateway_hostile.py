"""`cbatch serve` between clients and upstreams that do what they should not."""

from __future__ import annotations

import json
import signal
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.integration.conftest import Gateway, Sim, wait_for
from tests.integration.test_gateway import CHAT, CODEX, HELLO

Gateways = Callable[..., Gateway]
Sims = Callable[..., Sim]


class Upstream:
    """Answers every request with the same bytes after its head, and hangs up."""

    def __init__(self, body: bytes, kind: str = "text/event-stream") -> None:
        self._answer = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                link, _ = self._listener.accept()
            except OSError:
                return
            with link, suppress(OSError):
                request = b""
                while b"\r\n\r\n" not in request:
                    request += link.recv(65_536)
                head, _, body = request.partition(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split()[0])
                while len(body) < length:
                    body += link.recv(65_536)
                link.sendall(self._answer)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


@pytest.fixture
def upstream() -> Iterator[Callable[..., Upstream]]:
    made: list[Upstream] = []

    def make(*chunks: dict[str, Any], **more: Any) -> Upstream:
        body = b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"
        made.append(Upstream(body, **more))
        return made[-1]

    yield make
    for one in made:
        one.close()


def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return {"id": "x", "object": "chat.completion.chunk", "choices": [choice]}


def exchange(gateway: Gateway, path: str, body: dict[str, Any]) -> bytes:
    """The very bytes of an answer, until the connection ends."""
    where = urlsplit(gateway.url)
    data = json.dumps(body).encode()
    with socket.create_connection((str(where.hostname), where.port or 0), timeout=30) as link:
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {where.netloc}\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        link.sendall(head.encode() + data)
        said = b""
        while piece := link.recv(65_536):
            said += piece
    return said


def test_a_failure_in_the_middle_of_a_stream_is_not_a_second_answer(
    gateways: Gateways, upstream: Callable[..., Upstream]
) -> None:
    """A chunk that can be read and not written ends the stream without its end: it must not look whole."""
    deep = json.loads('{"a":' * 300 + "1" + "}" * 300)
    one = upstream(chunk({"content": "hello"}), {**chunk({"content": "x"}), "deep": deep}, chunk({}, "stop"))
    said = exchange(gateways(one.url), "/v1/chat/completions", {**CHAT, "stream": True})
    assert said.count(b"HTTP/1.1 ") == 1
    assert b"[DONE]" not in said
    assert not said.endswith(b"0\r\n\r\n")


def test_an_answer_that_ended_with_an_error_is_not_completed(
    gateways: Gateways, upstream: Callable[..., Upstream]
) -> None:
    one = upstream(chunk({"content": "hello"}), chunk({}, "error"))
    events = gateways(one.url).ask("/v1/responses", {**HELLO, "stream": True}).events
    assert events[-1]["type"] == "response.failed"


def test_a_stream_that_nobody_asked_for(gateways: Gateways, upstream: Callable[..., Upstream]) -> None:
    one = upstream(chunk({"content": "hello"}), chunk({}, "stop"))
    for path, body in (("/v1/responses", HELLO), ("/v1/chat/completions", CHAT)):
        said = gateways(one.url).ask(path, body)
        assert (said.status, said.json["error"]["code"]) == (502, "upstream_error")


@pytest.mark.parametrize(
    "headers",
    [{"Host": "[::1"}, {"Origin": "http://[x"}, {"Authorization": "Bearer \xff"}, {"Authorization": "bearer"}],
    ids=["host", "origin", "key", "no key"],
)
def test_headers_that_are_no_headers_are_refused(gateways: Gateways, sim: Sim, headers: dict[str, str]) -> None:
    gateway = gateways(sim, "--client-key", "sesame-open")
    said = gateway.ask("/v1/responses", HELLO, headers)
    assert said.status in (401, 403)
    assert "bug" not in gateway.process.err


def test_what_is_not_http_is_not_printed(gateways: Gateways, sim: Sim) -> None:
    """aiohttp would print it with a traceback, and with the key that is in it."""
    gateway = gateways(sim)
    where = urlsplit(gateway.url)
    with socket.create_connection((str(where.hostname), where.port or 0), timeout=30) as link:
        link.sendall(b"POST /v1/responses HTTP/1.1\r\nAuthorization: Bearer csk-LEAKED-KEY-123456\x01\r\n\r\n")
        link.recv(65_536)
    assert gateway.ask("/health").status == 200
    assert len(gateway.process.err.splitlines()) == 1
    assert "csk-LEAKED" not in gateway.process.err


def test_a_chat_request_that_can_be_read_and_not_written_is_refused(gateways: Gateways, sim: Sim) -> None:
    """Its model is mapped, so it has to be written again."""
    deep = json.loads('{"a":' * 400 + "1" + "}" * 400)
    said = gateways(sim).ask("/v1/chat/completions", {**CHAT, "model": "gpt-5", "metadata": deep})
    assert (said.status, said.json["error"]["code"]) == (400, "invalid_json")
    assert sim.requests == 0


def test_a_provider_that_is_replaced_may_finish_what_it_was_asked(
    gateways: Gateways, sims: Sims, tmp_path: Path
) -> None:
    """Also a request that waits before its next try: it is neither on the wire nor in a queue then."""
    failing, other = sims("--speed", "inf", "--fault", "server_error=1"), sims("--speed", "inf")
    config = tmp_path / "g.yaml"

    def point_to(sim: Sim) -> None:
        config.write_text(f"{{providers: {{lab: {{base_url: '{sim.url}'}}}}, retry: {{attempts: 3}}}}")

    point_to(failing)
    gateway = gateways(other, "--config", str(config))
    to_lab = {"X-Cbatch-Provider": "lab"}
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(gateway.ask, "/v1/responses", HELLO, to_lab)
        wait_for(lambda: failing.requests == 1, "the first try")
        wait_for(lambda: gateway.ask("/health").json["in_flight"] == 0, "its end: the wait is at least 0.375 s")
        point_to(other)
        assert gateway.ask("/v1/responses", HELLO, to_lab).status == 200
        assert first.result().status == 500
    assert failing.requests == 3


def test_a_body_in_many_wrappings_is_refused(gateways: Gateways, sim: Sim) -> None:
    body = json.dumps(HELLO).encode()
    gateway = gateways(sim)
    said = gateway.ask("/v1/responses", zlib.compress(zlib.compress(body)), {"Content-Encoding": "deflate, deflate"})
    assert said.status == 415


def test_who_waits_for_a_place_does_not_wait_for_ever(gateways: Gateways, sims: Sims, tmp_path: Path) -> None:
    """Codex is told to come again; `waiting` counts it meanwhile."""
    sim = sims("--fault", "stall=1", "--stall-s", "30")
    (tmp_path / "g.yaml").write_text("{concurrency: 1, retry: {attempts: 1, max_wait_s: 1}}")
    gateway = gateways(sim, "--config", str(tmp_path / "g.yaml"))
    link = HTTPConnection(urlsplit(gateway.url).netloc, timeout=30)
    link.request("POST", "/v1/responses", json.dumps({**HELLO, "stream": True}))
    first = link.getresponse()
    first.read(50)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(gateway.ask, "/v1/responses", {**HELLO, "stream": True}, CODEX)
        wait_for(lambda: gateway.ask("/health").json["waiting"] == 1, "the second to wait")
        error = second.result().events[-1]["response"]["error"]
    assert error["code"] == "server_error"
    assert "waited 1 s for one of the `concurrency` places" in error["message"]
    first.close()
    link.close()


def test_every_provider_may_finish_what_it_is_answering_at_the_end(
    gateways: Gateways, sims: Sims, tmp_path: Path
) -> None:
    """Also one that was opened after the start."""
    config = f"providers: {{lab: {{mode: translate, base_url: '{sims('--answer-tokens', '1500').url}'}}}}"
    (tmp_path / "g.yaml").write_text(config)
    gateway = gateways(sims("--speed", "inf"), "--config", str(tmp_path / "g.yaml"))
    link = HTTPConnection(urlsplit(gateway.url).netloc, timeout=30)
    link.request("POST", "/v1/responses", json.dumps({**HELLO, "stream": True}), {"X-Cbatch-Provider": "lab"})
    answer = link.getresponse()
    begun = answer.read(200)
    gateway.process.signal(signal.SIGTERM)
    assert b'"type":"response.completed"' in begun + answer.read()
    assert gateway.process.wait().code == 0
    link.close()


def test_a_provider_without_its_key_is_told(gateways: Gateways, sim: Sim, tmp_path: Path) -> None:
    config = f"providers: {{lab: {{mode: translate, base_url: '{sim.url}', key_env: NO_SUCH_KEY}}}}"
    (tmp_path / "g.yaml").write_text(config)
    said = gateways(sim, "--config", str(tmp_path / "g.yaml")).ask("/v1/responses", HELLO, {"X-Cbatch-Provider": "lab"})
    assert said.status == 502
    assert "NO_SUCH_KEY" in said.json["error"]["message"]


def test_more_than_a_hundred_streams_pass_through_at_once(gateways: Gateways, sims: Sims, tmp_path: Path) -> None:
    """As many as come: a client's pool of 100 connections would hold the others back, and then lose them."""
    inner = gateways(sims("--answer-tokens", "1500"))
    config = f"{{provider: inner, providers: {{inner: {{mode: responses, base_url: '{inner.url}'}}}}}}"
    (tmp_path / "g.yaml").write_text(config)
    outer = gateways("http://127.0.0.1:9", "--config", str(tmp_path / "g.yaml"))
    with ThreadPoolExecutor(130) as pool:
        found = list(
            pool.map(lambda n: outer.ask("/v1/responses", {**HELLO, "input": str(n), "stream": True}), range(130))
        )
    assert {said.events[-1]["type"] for said in found} == {"response.completed"}


def test_a_long_stream_is_logged_in_part(gateways: Gateways, upstream: Callable[..., Upstream], tmp_path: Path) -> None:
    """What is kept of one exchange is bounded, and how much was left out is told."""
    one = upstream(*[chunk({"content": f"word {n} "}) for n in range(9_000)], chunk({}, "stop"))
    gateway = gateways(one.url, "--log", "logs")
    assert gateway.ask("/v1/responses", {**HELLO, "stream": True}).events[-1]["type"] == "response.completed"
    gateway.stop()
    (file,) = (tmp_path / "logs").glob("*.jsonl")
    (line,) = file.read_text().splitlines()
    record = json.loads(line)
    assert record["left_out"] > 0
    assert record["outcome"] == "ok"
    assert len(line) < 2_000_000
