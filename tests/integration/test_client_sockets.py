"""The client over real sockets, against a server that does what servers do on a bad day.

Every way to fail becomes the right type of error, says so in words, and leaves nothing in flight.
"""

from __future__ import annotations

import asyncio
import gzip
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import orjson
import pytest

from cbatch import __version__
from cbatch.client import TRANSPORT, Client, Endpoint, connect
from cbatch.errors import (
    APIConnectionError,
    APIError,
    APIResponseError,
    APIStatusError,
    APITimeoutError,
    APIUnreachableError,
    InternalServerError,
    RateLimitError,
)
from cbatch.plain import PlainTransport

KEY = "csk-0123456789abcdef"
ANSWER = orjson.dumps(
    {
        "id": "chatcmpl-1",
        "choices": [{"finish_reason": "stop", "index": 0, "message": {"content": "It is sunny.", "role": "assistant"}}],
        "model": "gpt-oss-120b",
        "usage": {"total_tokens": 12, "completion_tokens": 5, "prompt_tokens": 7},
    }
)
SILENCE_S = 0.15  # the timeout of tests that wait for it


@pytest.fixture(autouse=True, params=["plain", "session"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Everything here holds for both transports."""
    name: str = request.param
    monkeypatch.setenv(TRANSPORT, name)
    return name


Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Seen:
    """What reached the server."""

    url: str = ""
    connections: int = 0
    heads: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    @property
    def headers(self) -> dict[str, str]:
        """Of the last request, names as they were on the wire."""
        lines = self.heads[-1].split("\r\n")[1:-2]
        return dict(line.split(": ", 1) for line in lines)


@asynccontextmanager
async def serving(script: Script, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Seen]:
    """A server that reads one whole request after the other and answers each by `script`."""
    seen = Seen()
    open_now: set[asyncio.Task[Any]] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.connections += 1
        task = asyncio.current_task()
        assert task is not None
        open_now.add(task)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                seen.heads.append(head)
                length = int(seen.headers.get("Content-Length", "0"))
                seen.bodies.append(await reader.readexactly(length))
                await script(reader, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            open_now.discard(task)
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=tls)
    seen.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield seen
    finally:
        server.close()
        for task in list(open_now):
            task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)


def http(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    """One HTTP answer; `length` overrides the true Content-Length, -1 leaves it out."""
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", *headers]
    if length != -1:
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def says(data: bytes, *, then: str = "stay") -> Script:
    """Write `data`, then stay connected, close, or reset the connection."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        if then == "close":
            writer.close()
        elif then == "reset":
            await asyncio.sleep(0.02)  # let the client read what was sent: a reset overtakes it
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            writer.transport.abort()
        elif then == "silence":
            await asyncio.sleep(60)

    return script


def keeps_the_key(exc: APIError) -> None:
    assert KEY not in f"{exc!s} {exc!r} {vars(exc)!r}"


async def ask(url: str, *, body: bytes = b"{}", **endpoint: Any) -> Any:
    """One request with a fresh client; checks that no error shows the key."""
    async with connect(Endpoint(**{"base_url": url, "key": KEY, "total_s": 5.0, **endpoint})) as api:
        try:
            return await api.complete(body)
        except APIError as exc:
            keeps_the_key(exc)
            raise


# -- what goes out ----------------------------------------------------------------------------


async def test_exactly_these_headers_go_on_the_wire() -> None:
    """Nothing identifies the machine, and no compressed answer is asked for."""
    async with serving(says(http(ANSWER))) as server:
        await ask(server.url, body=b'{"model":"m"}')
    assert server.heads[0].startswith("POST /v1/chat/completions HTTP/1.1\r\n")
    assert server.bodies == [b'{"model":"m"}']
    assert server.headers == {
        "Host": server.url.removeprefix("http://").removesuffix("/v1"),
        "Content-Type": "application/json",
        "Accept-Encoding": "identity",
        "Accept": "application/json",
        "User-Agent": f"cbatch/{__version__}",
        "X-Cerebras-3rd-Party-Integration": "cbatch",
        "Authorization": f"Bearer {KEY}",
        "Content-Length": "13",
    }


async def test_without_a_key_no_authorization_is_sent() -> None:
    async with serving(says(http(ANSWER))) as server:
        await ask(server.url, key=None)
    assert "Authorization" not in server.headers


async def test_cookies_of_the_edge_are_not_sent_back() -> None:
    script = says(http(ANSWER, "Set-Cookie: __cf_bm=1; path=/"))
    async with serving(script) as server:
        by_name = server.url.replace("127.0.0.1", "localhost")  # no jar keeps the cookies of an IP address
        async with connect(Endpoint(base_url=by_name)) as api:
            await api.complete(b"{}")
            await api.complete(b"{}")
    assert "Cookie" not in server.headers


async def test_one_connection_serves_one_request_after_another() -> None:
    async with serving(says(http(ANSWER))) as server, connect(Endpoint(base_url=server.url)) as api:
        for _ in range(20):
            await api.complete(b"{}")
    assert (server.connections, len(server.heads)) == (1, 20)


async def test_the_model_list_comes_from_its_own_path_and_the_public_one_from_the_root() -> None:
    script = says(http(b'{"object":"list","data":[{"id":"gpt-oss-120b"},{"no":"id"},7]}'))
    async with serving(script) as server, connect(Endpoint(base_url=server.url, key=KEY)) as api:
        assert await api.models() == [{"id": "gpt-oss-120b"}]
        assert await api.public_models() == [{"id": "gpt-oss-120b"}]
    assert [head.split(" ")[1] for head in server.heads] == ["/v1/models", "/public/v1/models"]


# -- what comes back --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(http(ANSWER), id="with a length"),
        pytest.param(http(ANSWER, "Connection: close"), id="and then the server closes, as announced"),
        pytest.param(http(gzip.compress(ANSWER), "Content-Encoding: gzip"), id="compressed, though not asked to be"),
        pytest.param(
            http(b"%x\r\n%s\r\n0\r\n\r\n" % (len(ANSWER), ANSWER), "Transfer-Encoding: chunked", length=-1),
            id="in one chunk",
        ),
        pytest.param(
            http(
                b"".join(b"1\r\n%c\r\n" % byte for byte in ANSWER) + b"0\r\n\r\n",
                "Transfer-Encoding: chunked",
                length=-1,
            ),
            id="a byte a chunk",
        ),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + http(ANSWER), id="after three 100 Continue"),
    ],
)
async def test_a_whole_answer_is_read_however_it_is_framed(data: bytes) -> None:
    async with serving(says(data)) as server:
        assert (await ask(server.url)).text == "It is sunny."


async def test_a_whole_answer_without_a_length_ends_where_the_connection_ends() -> None:
    async with serving(says(http(ANSWER, length=-1), then="close")) as server:
        assert (await ask(server.url)).text == "It is sunny."


async def test_an_answer_of_10_mb_arrives_whole() -> None:
    long = ANSWER.replace(b"It is sunny.", b"sunny " * 1_700_000)
    async with serving(says(http(long))) as server:
        assert len((await ask(server.url)).text) == 6 * 1_700_000


async def test_a_server_that_closes_after_each_answer_costs_connections_and_no_answers() -> None:
    """Keep-alive off, said with `Connection: close`: 20 prompts, 20 connections, 20 answers."""
    script = says(http(ANSWER, "Connection: close"), then="close")
    async with serving(script) as server, connect(Endpoint(base_url=server.url)) as api:
        for _ in range(20):
            assert (await api.complete(b"{}")).text == "It is sunny."
    assert server.connections == 20


async def test_a_connection_closed_in_silence_after_an_answer_is_not_used_again() -> None:
    async with serving(says(http(ANSWER), then="close")) as server, connect(Endpoint(base_url=server.url)) as api:
        for _ in range(5):
            assert (await api.complete(b"{}")).text == "It is sunny."
            await asyncio.sleep(0.01)  # the end of the connection travels, too
    assert server.connections == 5


# -- how it fails -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "then", "error", "words"),
    [
        pytest.param(b"", "close", APIConnectionError, "closed the connection without an answer", id="no answer"),
        pytest.param(b"", "reset", APIConnectionError, "", id="reset instead of an answer"),
        pytest.param(b"HTTP/1.1 200 O", "close", APIError, "", id="cut in the status line"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Le", "close", APIError, "", id="cut in a header"),
        pytest.param(
            http(ANSWER)[:-1], "close", APIResponseError, "stopped before its end", id="the last byte missing"
        ),
        pytest.param(http(ANSWER)[:-99], "reset", APIError, "", id="reset in the middle of the answer"),
        pytest.param(
            http(ANSWER[:-20], length=-1), "close", APIResponseError, "breaks off", id="no length, and a cut answer"
        ),
        pytest.param(
            http(b"ff\r\n" + ANSWER[:50], "Transfer-Encoding: chunked", length=-1),
            "close",
            APIResponseError,
            "stopped before its end",
            id="cut in a chunk",
        ),
        pytest.param(
            http(b"%x\r\n%s\r\n" % (len(ANSWER), ANSWER), "Transfer-Encoding: chunked", length=-1),
            "close",
            APIResponseError,
            "stopped before its end",
            id="the last chunk missing",
        ),
        pytest.param(
            http(b"zz\r\n" + ANSWER, "Transfer-Encoding: chunked", length=-1),
            "close",
            APIResponseError,
            "",
            id="a chunk without a size",
        ),
        pytest.param(http(b"", length=0), "close", APIResponseError, "empty body", id="an empty answer"),
        pytest.param(b"\x15\x03\x01\x00\x02\x02\x28", "close", APIResponseError, "not valid HTTP", id="TLS, not HTTP"),
        pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n", "close", APIResponseError, "not valid HTTP", id="an SSH server"),
        pytest.param(
            b"HTTP/1.1 abc OK\r\n\r\n", "close", APIResponseError, "not valid HTTP", id="a status not a number"
        ),
        pytest.param(bytes(range(256)) * 40, "close", APIResponseError, "not valid HTTP", id="10 KB of garbage"),
        pytest.param(
            http(ANSWER, "X-Long: " + "x" * 100_000), "close", APIResponseError, "not valid HTTP", id="a 100 KB header"
        ),
        pytest.param(
            http(ANSWER, "Content-Length: 5"), "close", APIResponseError, "not valid HTTP", id="two different lengths"
        ),
        pytest.param(http(ANSWER, length=-7), "close", APIResponseError, "not valid HTTP", id="a negative length"),
        pytest.param(http(ANSWER, "Content-Encoding: gzip"), "close", APIResponseError, "", id="says gzip and is not"),
        pytest.param(
            http(gzip.compress(ANSWER)[:-30], "Content-Encoding: gzip"), "close", APIResponseError, "", id="gzip, cut"
        ),
        pytest.param(
            http(ANSWER, "Content-Encoding: br"), "close", APIResponseError, "", id="an encoding nobody asked for"
        ),
        pytest.param(
            http(b"<html>Bad gateway</html>", status="502 Bad Gateway"),
            "stay",
            InternalServerError,
            "HTTP 502: <html>Bad gateway</html>",
            id="HTML from a proxy",
        ),
        pytest.param(http(b"", status="404 Not Found"), "stay", APIStatusError, "HTTP 404: no body", id="unknown path"),
        pytest.param(http(b"", status="204 No Content"), "stay", APIStatusError, "HTTP 204", id="204 is no completion"),
    ],
)
async def test_every_broken_answer_is_an_api_error_that_says_what_happened(
    data: bytes, then: str, error: type[APIError], words: str
) -> None:
    async with serving(says(data, then=then)) as server:
        with pytest.raises(error) as caught:
            await ask(server.url)
    assert words in str(caught.value)
    assert not isinstance(caught.value, APITimeoutError)


@pytest.mark.parametrize("cut", [1, 10, 99, len(ANSWER) - 1])
@pytest.mark.parametrize("framing", ["length", "close", "chunked"])
async def test_an_answer_cut_anywhere_is_marked_truncated(cut: int, framing: str) -> None:
    data = {
        "length": http(ANSWER[:cut], length=len(ANSWER)),
        "close": http(ANSWER[:cut], length=-1),
        "chunked": http(b"%x\r\n%s" % (len(ANSWER), ANSWER[:cut]), "Transfer-Encoding: chunked", length=-1),
    }[framing]
    async with serving(says(data, then="close")) as server:
        with pytest.raises(APIResponseError) as caught:
            await ask(server.url)
    assert caught.value.truncated


async def test_the_headers_of_a_refusal_are_read_whatever_their_case() -> None:
    body = b'{"message":"slow down","code":"request_quota_exceeded"}'
    async with serving(says(http(body, "RETRY-AFTER: 7", status="429 Too Many Requests"))) as server:
        with pytest.raises(RateLimitError) as caught:
            await ask(server.url)
    assert caught.value.headers["retry-after"] == "7"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_an_error_and_the_key_goes_to_no_other_host(status: int) -> None:
    async with serving(says(http(ANSWER))) as thief:
        location = f"Location: {thief.url}/chat/completions"
        async with serving(says(http(b"", location, status=f"{status} Moved"))) as server:
            with pytest.raises(APIStatusError) as caught:
                await ask(server.url)
    assert caught.value.status == status
    assert thief.connections == 0


# -- how long it takes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="no answer"),
        pytest.param(b"HTTP/1.1 200 OK\r\n", id="half a head"),
        pytest.param(http(ANSWER)[:-9], id="half an answer"),
    ],
)
async def test_silence_ends_with_the_total_timeout(data: bytes) -> None:
    async with serving(says(data, then="silence")) as server:
        with pytest.raises(APITimeoutError, match=r"^no whole answer within 0.15 s$"):
            await ask(server.url, total_s=SILENCE_S)


async def test_a_drip_that_never_falls_silent_ends_with_the_total_timeout() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(http(b"", length=10_000))
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with serving(drip) as server:
        with pytest.raises(APITimeoutError, match=r"^no whole answer within 0.2 s$"):
            await ask(server.url, total_s=0.2)


async def test_a_connection_that_is_never_accepted_ends_with_the_connect_timeout() -> None:
    """A host that drops packets: here, a listener whose queue is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        try:
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.1", port))
            with pytest.raises(APIUnreachableError, match=r"^no connection within 0.15 s$"):
                await ask(f"http://127.0.0.1:{port}/v1", connect_s=SILENCE_S)
        finally:
            for filler in fillers:
                filler.close()


async def test_a_tls_handshake_that_hangs_ends_with_the_connect_timeout() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with pytest.raises(APIUnreachableError, match=r"^no connection within 0.15 s$"):
            await ask(f"https://127.0.0.1:{listener.getsockname()[1]}/v1", connect_s=SILENCE_S)


@pytest.mark.parametrize("cancelled_first", [True, False])
async def test_a_caller_who_cancels_is_not_told_of_a_timeout(cancelled_first: bool) -> None:
    """Where both come in the same turn, the cancellation must reach whoever asked for it."""
    async with serving(says(b"", then="silence")) as server, connect(Endpoint(base_url=server.url)) as api:
        transport = cast("Any", api)._transport
        task = asyncio.ensure_future(api.complete(b"{}"))
        await asyncio.sleep(0.05)
        if cancelled_first:
            task.cancel()
        if isinstance(transport, PlainTransport):
            for connection in transport._busy:
                connection.until = float("-inf")
        else:
            transport._until[task] = float("-inf")
        transport._sweep()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_each_request_has_its_own_deadline() -> None:
    """The shorter one ends first, though it was sent later; the other is not touched."""
    async with (
        serving(says(b"", then="silence")) as server,
        connect(Endpoint(base_url=server.url, total_s=0.5)) as api,
    ):
        patient = asyncio.ensure_future(api.complete(b"{}"))
        with pytest.raises(APITimeoutError, match=r"^no whole answer within 0.1 s$"):
            await api.complete(b"{}", 0.1)
        assert not patient.done()
        with pytest.raises(APITimeoutError, match=r"^no whole answer within 0.5 s$"):
            await patient


async def test_a_cancelled_request_closes_its_connection() -> None:
    """Otherwise the next prompt would read the answer to this one."""
    async with serving(says(b"", then="silence")) as server, connect(Endpoint(base_url=server.url)) as api:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await api.complete(b"{}")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await api.complete(b"{}")
    assert server.connections == 2


async def test_an_answer_after_its_timeout_is_not_taken_for_the_next_one() -> None:
    first = True

    async def slow_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal first
        if first:
            first = False
            await asyncio.sleep(SILENCE_S * 2)
            writer.write(http(ANSWER.replace(b"sunny", b"rainy")))
        else:
            writer.write(http(ANSWER))

    async with serving(slow_once) as server, connect(Endpoint(base_url=server.url, total_s=SILENCE_S)) as api:
        with pytest.raises(APITimeoutError):
            await api.complete(b"{}")
        await asyncio.sleep(SILENCE_S * 2)
        assert (await api.complete(b"{}")).text == "It is sunny."


# -- no connection at all ---------------------------------------------------------------------


async def test_a_refused_port_is_a_connection_error() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(APIConnectionError, match="cannot connect"):
        await ask(f"http://127.0.0.1:{port}/v1")


async def test_a_name_that_does_not_resolve_is_a_connection_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(APIConnectionError, match=r"api\.cerebras\.invalid"):
        await ask("http://api.cerebras.invalid/v1")


@pytest.mark.parametrize(
    "host",
    [
        pytest.param("a..b", id="an empty label"),
        pytest.param("a" * 64 + ".example", id="a label of 64 letters"),
    ],
)
async def test_a_name_that_no_resolver_accepts_is_a_connection_error(host: str) -> None:
    """Python refuses these with UnicodeError before any resolver sees them."""
    with pytest.raises(APIConnectionError):
        await ask(f"http://{host}/v1")


async def test_tls_to_a_plain_port_is_a_connection_error() -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(http(b"", status="400 Bad Request"))
        writer.close()

    async with await asyncio.start_server(plain, "127.0.0.1", 0) as server:
        with pytest.raises(APIConnectionError, match="SSL"):
            await ask(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")


@pytest.fixture
def self_signed(tmp_path: Path) -> ssl.SSLContext:
    """A server's TLS with a certificate that nobody signed."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    command = ["openssl", "req", *kind, "-subj", "/CN=127.0.0.1", "-keyout", key, "-out", cert]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context


async def test_a_certificate_nobody_signed_is_a_connection_error_and_gets_no_key(self_signed: ssl.SSLContext) -> None:
    async with serving(says(http(ANSWER)), tls=self_signed) as server:
        with pytest.raises(APIConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
            await ask(server.url.replace("http:", "https:"))
    assert server.heads == []


# -- through a proxy --------------------------------------------------------------------------


async def test_a_proxy_that_refuses_the_tunnel_is_a_connection_error_that_says_so() -> None:
    """The proxy's 407 is not the API's answer, and the API's host never saw a request."""
    async with serving(says(http(b"", status="407 Proxy Authentication Required"))) as proxy:
        with pytest.raises(APIConnectionError, match="407") as caught:
            await ask("https://api.cerebras.invalid/v1", proxy=f"http://user:s3cret@{proxy.url[7:-3]}")
    assert proxy.heads[0].startswith("CONNECT api.cerebras.invalid:443 ")
    assert KEY not in proxy.heads[0]
    assert "s3cret" not in str(caught.value)


async def test_a_proxy_that_is_not_there_is_a_connection_error_without_its_password() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(APIConnectionError) as caught:
        await ask("http://api.cerebras.invalid/v1", proxy=f"http://user:s3cret@127.0.0.1:{port}")
    assert "s3cret" not in f"{caught.value!s} {caught.value!r}"


async def test_300_requests_at_once_are_all_on_the_wire_at_once() -> None:
    """The pool has no limit of its own: the engine's workers are the limit."""
    here = 0
    everyone = asyncio.Event()

    async def together(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal here
        here += 1
        if here == 300:
            everyone.set()
        await everyone.wait()
        writer.write(http(ANSWER))

    async def one(api: Client) -> None:
        assert (await api.complete(b"{}")).text == "It is sunny."

    async with (
        serving(together) as server,
        connect(Endpoint(base_url=server.url)) as api,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(300):
            group.create_task(one(api))
