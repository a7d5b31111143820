"""`cbatch serve` in front of a provider that speaks the Responses API itself: what passes, and what is counted."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.integration.conftest import Gateway, Sim, wait_for

Gateways = Callable[..., Gateway]

HELLO = {"model": "o3", "input": "Say hello", "stream": True}
USAGE = {
    "input_tokens": 100,
    "input_tokens_details": {"cached_tokens": 40},
    "output_tokens": 20,
    "output_tokens_details": {"reasoning_tokens": 5},
    "total_tokens": 120,
}
ANSWER = {"id": "resp_1", "object": "response", "status": "completed", "model": "o3-2026", "usage": USAGE, "output": []}
DELTA = {"type": "response.output_text.delta", "delta": "Hello 😀"}
KEY = "provider-key-123456"
SET = f"import os; os.environ['LAB_KEY'] = '{KEY}'"


def sse(*events: dict[str, Any]) -> bytes:
    return b"".join(f"event: {one['type']}\ndata: {json.dumps(one)}\n\n".encode() for one in events)


def http(body: bytes, kind: str = "text/event-stream", status: str = "200 OK", *headers: str) -> bytes:
    """An answer whose end is the end of its Content-Length."""
    head = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


STREAM = sse({"type": "response.created", "response": {}}, DELTA, {"type": "response.completed", "response": ANSWER})


class Lab:
    """A provider that answers every request with the same bytes, and hangs up."""

    def __init__(self) -> None:
        self.answer = http(STREAM)
        self.held_back = 0  # bytes at the end of the answer, until `go`
        self.go = threading.Event()
        self.heads: list[str] = []  # of the requests, in lower case
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                link, _ = self._listener.accept()
                with link, suppress(OSError):
                    link.settimeout(10)
                    self._answer(link)

    def _answer(self, link: socket.socket) -> None:
        came = b""
        while b"\r\n\r\n" not in came:
            if not (piece := link.recv(65_536)):
                return
            came += piece
        head, _, body = came.partition(b"\r\n\r\n")
        text = head.decode().lower()
        length = int(text.partition("content-length: ")[2].partition("\r\n")[0] or 0)
        while len(body) < length:
            body += link.recv(65_536)
        self.heads.append(text)
        now = len(self.answer) - self.held_back
        link.sendall(self.answer[:now])
        if self.held_back:
            self.go.wait(30)
            link.sendall(self.answer[now:])

    def close(self) -> None:
        self.go.set()
        with suppress(OSError):  # a second time
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab()
    yield lab
    lab.close()


@pytest.fixture
def outer(gateways: Gateways, lab: Lab, tmp_path: Path) -> Callable[..., Gateway]:
    """`outer("--json")` is a gateway in front of the lab, with its key unless `key_env` is None."""

    def start(*args: str, key_env: str | None = "LAB_KEY", first: str = SET) -> Gateway:
        key = f", key_env: {key_env}" if key_env else ""
        config = tmp_path / "g.yaml"
        config.write_text(f"provider: lab\nproviders: {{lab: {{mode: responses, base_url: '{lab.url}'{key}}}}}")
        return gateways("http://127.0.0.1:9", "--config", str(config), *args, first=first)

    return start


def end(gateway: Gateway) -> Any:
    """The summary of a gateway with --json."""
    return json.loads(gateway.stop().out)


def logged(tmp_path: Path) -> list[Any]:
    (file,) = (tmp_path / "logs").glob("*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


# -- what is counted --------------------------------------------------------------------------------


def test_a_stream_is_measured_and_untouched(outer: Callable[..., Gateway], lab: Lab, tmp_path: Path) -> None:
    gateway = outer("--json", "--log", "logs")
    said = gateway.ask("/v1/responses", HELLO)
    assert said.body == STREAM
    page = gateway.ask("/metrics").body.decode()
    assert 'cbatch_ttft_seconds_count{model="o3"} 1.0' in page
    assert 'cbatch_latency_seconds_count{model="o3"} 1.0' in page
    found = end(gateway)
    assert (found["ok"], found["prompt_tokens"], found["completion_tokens"]) == (1, 100, 20)
    assert (found["cached_tokens"], found["reasoning_tokens"], found["without_usage"]) == (40, 5, 0)
    (line,) = logged(tmp_path)
    assert line["usage"]["total_tokens"] == 120
    assert line["served_model"] == "o3-2026"
    timings = line["timings"]
    assert 0 < timings["ttft_s"] <= timings["latency_s"] <= timings["total_s"]
    assert timings["first_byte_out_s"] > 0
    assert timings["attempts"] == 1


def opened(gateway: Gateway) -> tuple[HTTPConnection, HTTPResponse]:
    """A stream of which nothing was read yet."""
    link = HTTPConnection(urlsplit(gateway.url).netloc, timeout=30)
    link.request("POST", "/v1/responses", json.dumps(HELLO))
    return link, link.getresponse()


def test_a_stream_goes_on_as_it_comes(outer: Callable[..., Gateway], lab: Lab) -> None:
    """The beginning is at the client while the provider still has the end."""
    lab.held_back = 300
    link, answer = opened(outer())
    begin = answer.read(len(STREAM) - 300)
    lab.go.set()
    assert begin + answer.read() == STREAM
    link.close()


def test_a_client_that_hangs_up_is_no_failure_of_the_provider(outer: Callable[..., Gateway], lab: Lab) -> None:
    lab.held_back = 300
    gateway = outer("--json", "--log", "logs")
    link, answer = opened(gateway)
    assert answer.read(10)
    answer.close()
    link.close()
    wait_for(lambda: b'outcome="cancelled"' in gateway.ask("/metrics").body, "the gateway to see that nobody waits")
    lab.go.set()
    found = end(gateway)
    assert (found["cancelled"], found["failed"], found["failures"]) == (1, 0, [])


def test_an_answer_in_one_piece_is_measured(outer: Callable[..., Gateway], lab: Lab) -> None:
    lab.answer = http(json.dumps(ANSWER).encode(), "application/json")
    gateway = outer("--json")
    assert gateway.ask("/v1/responses", {**HELLO, "stream": False}).json == ANSWER
    found = end(gateway)
    assert (found["ok"], found["prompt_tokens"], found["completion_tokens"]) == (1, 100, 20)


FAILED = {"status": "failed", "error": {"code": "server_error", "message": f"Out of order for {KEY}."}}
CUT = {"type": "response.created", "response": {}}


@pytest.mark.parametrize(
    ("answer", "status", "says"),
    [
        pytest.param(
            http(sse(DELTA, {"type": "response.failed", "response": FAILED})), 502, "Out of order", id="response.failed"
        ),
        pytest.param(http(json.dumps(FAILED).encode(), "application/json"), 502, "Out of order", id="in one piece"),
        pytest.param(http(sse(CUT, DELTA)), 502, "the stream ended before the answer was whole", id="no last event"),
        pytest.param(
            http(json.dumps({"error": {"message": f"Incorrect key {KEY}"}}).encode(), "application/json", "401 No"),
            401,
            "Incorrect key (key removed)",
            id="an error status",
        ),
        pytest.param(http(b"<h1>Busy</h1>", "text/html", "503 Busy"), 503, "<h1>Busy</h1>", id="a page of a proxy"),
        pytest.param(
            http(b"", "text/html", "307 Moved", "Location: http://127.0.0.1:9/"), 307, "no body", id="a redirection"
        ),
        pytest.param(
            http(gzip.compress(b"{}"), "application/json", "500 No", "Content-Encoding: gzip"),
            500,
            "no body",
            id="compressed",
        ),
    ],
)
def test_what_fails_at_the_provider_is_a_failure_and_says_why(
    outer: Callable[..., Gateway], lab: Lab, answer: bytes, status: int, says: str
) -> None:
    """The client gets it as it came; the key, which some repeat, is in no message."""
    lab.answer = answer
    gateway = outer("--json")
    url = urlsplit(gateway.url)
    with socket.create_connection((url.hostname or "", url.port or 0), timeout=30) as link:  # follows nothing
        body = json.dumps(HELLO).encode()
        head = f"POST /v1/responses HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
        link.sendall(head.encode() + body)
        came = b"".join(iter(lambda: link.recv(65_536), b""))
    assert came.partition(b"\r\n\r\n")[2] == answer.partition(b"\r\n\r\n")[2]
    assert came.split(b" ")[1] == answer.split(b" ")[1]
    result = gateway.stop()
    found = json.loads(result.out)
    assert (found["ok"], found["failed"]) == (0, 1)
    (failure,) = found["failures"]
    assert failure["status"] == status
    assert failure["message"].startswith("upstream lab: ")
    assert says in failure["message"]
    assert KEY not in result.out + result.err


HALF = http(STREAM)[:-200]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(HALF, id="Content-Length"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            + f"{len(STREAM):x}\r\n".encode()
            + STREAM[:-200],
            id="chunked",
        ),
    ],
)
def test_an_answer_that_is_cut_is_cut_for_the_client_too(
    outer: Callable[..., Gateway], lab: Lab, answer: bytes
) -> None:
    """And told in one line, in nobody's jargon."""
    lab.answer = answer
    gateway = outer("--json")
    url = urlsplit(gateway.url)
    with socket.create_connection((url.hostname or "", url.port or 0), timeout=30) as link:
        body = json.dumps(HELLO).encode()
        link.sendall(
            f"POST /v1/responses HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )
        came = b"".join(iter(lambda: link.recv(65_536), b""))
    assert b"output_text.delta" in came
    assert not came.endswith(b"0\r\n\r\n"), "a last chunk would make it whole"
    result = gateway.stop()
    found = json.loads(result.out)
    assert (found["failed"], found["cancelled"]) == (1, 0)
    assert found["failures"][0]["message"] == "upstream lab: its answer breaks off"
    assert "upstream lab: its answer breaks off" in result.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        pytest.param(b"", "upstream lab: it closed the connection without an answer", id="nothing"),
        pytest.param(b"220 mail.example ESMTP\r\n\r\n", "upstream lab: its answer is not valid HTTP", id="mail"),
    ],
)
def test_a_provider_that_does_not_answer_is_said_in_one_line(
    outer: Callable[..., Gateway], lab: Lab, answer: bytes, says: str
) -> None:
    lab.answer = answer
    gateway = outer()
    for said in (gateway.ask("/v1/responses", HELLO), gateway.ask("/v1/models")):
        assert (said.status, said.json["error"]["message"]) == (502, says)
    lab.close()
    message = gateway.ask("/v1/responses", HELLO).json["error"]["message"]
    assert message == f"upstream lab: cannot connect to {urlsplit(lab.url).netloc}: Connection refused"


def test_a_compressed_answer_passes_and_is_not_measured(outer: Callable[..., Gateway], lab: Lab) -> None:
    packed = gzip.compress(STREAM)
    lab.answer = http(packed, "text/event-stream", "200 OK", "Content-Encoding: gzip")
    gateway = outer()
    said = gateway.ask("/v1/responses", HELLO, {"Accept-Encoding": "gzip"})
    assert (said.body, said.headers["content-encoding"]) == (packed, "gzip")
    assert "accept-encoding: gzip\r\n" in lab.heads[-1]
    assert "1 answer without usage" in gateway.stop().err


def test_a_header_that_comes_twice_passes_twice(outer: Callable[..., Gateway], lab: Lab) -> None:
    lab.answer = http(STREAM, "text/event-stream", "200 OK", "X-Two: a", "X-Two: b")
    link = HTTPConnection(urlsplit(outer().url).netloc, timeout=30)
    link.request("POST", "/v1/responses", json.dumps(HELLO))
    answer = link.getresponse()
    answer.read()
    link.close()
    assert answer.headers.get_all("X-Two") == ["a", "b"]


def test_a_client_that_wants_nothing_compressed_gets_it_so(outer: Callable[..., Gateway], lab: Lab) -> None:
    """Without a word from the client, the gateway asks for no compression of its own accord."""
    gateway = outer()
    url = urlsplit(gateway.url)
    with socket.create_connection((url.hostname or "", url.port or 0), timeout=30) as link:
        link.sendall(b'POST /v1/responses HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Length: 14\r\n\r\n{"model":"o3"}')
        while link.recv(65_536):
            pass
    assert "accept-encoding: identity\r\n" in lab.heads[-1] + "\r\n"


# -- whose key ---------------------------------------------------------------------------------------


def authorization(lab: Lab) -> str:
    return lab.heads[-1].partition("authorization: ")[2].partition("\r\n")[0]


CLIENT = {"Authorization": "Bearer client-key-9876543", "X-Api-Key": "client-key-9876543"}


def test_the_providers_key_takes_the_place_of_the_clients(outer: Callable[..., Gateway], lab: Lab) -> None:
    gateway = outer()
    assert gateway.ask("/v1/responses", HELLO, CLIENT).status == 200
    assert authorization(lab) == f"bearer {KEY}"
    assert "client-key" not in lab.heads[-1]


def test_a_key_that_is_missing_is_said_and_the_clients_is_not_sent_instead(
    outer: Callable[..., Gateway], lab: Lab
) -> None:
    gateway = outer(first="")
    for said in (gateway.ask("/v1/responses", HELLO, CLIENT), gateway.ask("/v1/models", headers=CLIENT)):
        assert (said.status, said.json["error"]["code"]) == (502, "provider_key_missing")
        assert "LAB_KEY" in said.json["error"]["message"]
        assert "provider lab" in said.json["error"]["message"]
    assert lab.heads == []


def test_without_a_key_of_the_provider_the_clients_own_goes_on(outer: Callable[..., Gateway], lab: Lab) -> None:
    gateway = outer(key_env=None)
    assert gateway.ask("/v1/responses", HELLO, CLIENT).status == 200
    assert authorization(lab) == "bearer client-key-9876543"


def test_the_gateways_own_key_goes_nowhere(outer: Callable[..., Gateway], lab: Lab) -> None:
    """It proves who may use the gateway, and is no key of any provider."""
    gateway = outer("--client-key", "client-key-9876543", key_env=None)
    assert gateway.ask("/v1/responses", HELLO, CLIENT).status == 200
    assert gateway.ask("/v1/models", headers=CLIENT).status == 502  # the lab has no list
    assert len(lab.heads) == 2
    assert "client-key" not in "".join(lab.heads)


def test_refused_names_leave_the_counts_to_the_models_that_answer(gateways: Gateways, sim: Sim) -> None:
    gateway = gateways(sim)
    for n in range(12):
        assert gateway.ask("/v1/responses", {"model": f"m{n}", "input": "x"}).status == 404
    assert gateway.ask("/v1/embeddings", {}).status == 404
    assert gateway.ask("/v1/chat/completions", {"model": "gpt-oss-120b", "messages": []}).status == 400
    assert gateway.ask("/v1/responses", {"model": "gpt-oss-120b", "input": "x"}).status == 200
    page = gateway.ask("/metrics").body.decode()
    assert {part.partition('"')[0] for part in page.split('model="')[1:]} == {"gpt-oss-120b", "(unknown)"}
    assert {part.partition('"')[0] for part in page.split('route="')[1:]} == {
        "/responses",
        "/chat/completions",
        "(other)",
    }
    told = gateway.stop().err
    assert "  failed    404 " in told
    assert "(12)" in told
