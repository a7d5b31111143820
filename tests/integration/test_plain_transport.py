"""The plain transport over real sockets, against servers that break the rules, on both event loops.

What must hold whatever a server does: no prompt gets the answer to another one, no request outlives
its deadline, every failure is an APIError, and nothing stays open.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme

from cbatch import plain
from cbatch.errors import APIConnectionError, APIError, APIResponseError, APITimeoutError, APIUnreachableError
from cbatch.plain import PlainTransport, plain_transport
from cbatch.transport import Endpoint, session_transport
from tests.integration.raw_server import (
    LONG_S,
    SOON_S,
    Script,
    ask,
    ask_once,
    chunked,
    echo,
    few_objects,
    http,
    listening,
    on_both_loops,
    reset,
    says,
    sending,
    serving,
    turns,
    until,
)


@pytest.fixture(autouse=True, scope="module")
def _few_objects() -> Iterator[None]:
    with few_objects():
        yield


# -- connections that are used again ---------------------------------------------------------------


@on_both_loops
async def test_one_connection_serves_one_request_after_another() -> None:
    async with serving(echo) as server, sending(server.url) as transport:
        for number in range(50):
            assert (await ask(transport, b"%d" % number)).body == b"%d" % number
    assert server.connections == 1


@pytest.mark.parametrize("said", [True, False], ids=["said", "in silence"])
@pytest.mark.parametrize("framed", ["with a length", "in chunks"])
@on_both_loops
async def test_a_server_that_closes_after_each_answer_costs_connections_and_no_request(said: bool, framed: str) -> None:
    """Without a pause between two requests: a connection is looked at before it is used again."""
    headers = ("Connection: close",) if said else ()

    async def once(body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(http(body, *headers) if framed == "with a length" else chunked(body, headers=headers))
        writer.close()

    async with serving(once) as server, sending(server.url) as transport:
        for number in range(20):
            assert (await ask(transport, b"%d" % number)).body == b"%d" % number
        assert not transport._busy
    assert server.connections == len(server.bodies) == 20


@pytest.mark.parametrize("how", ["close", "reset"])
@on_both_loops
async def test_a_connection_that_ends_while_it_is_idle_leaves_the_pool(how: str) -> None:
    ends = asyncio.Event()

    async def script(body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(http(body))
        await ends.wait()
        reset(writer) if how == "reset" else writer.close()

    async with serving(script) as server, sending(server.url) as transport:
        await ask(transport)
        assert len(transport._idle) == 1
        ends.set()
        await until(lambda: not transport._idle)
        await ask(transport)
    assert server.connections == 2


@pytest.mark.parametrize("how", ["close", "reset"])
@on_both_loops
async def test_a_connection_that_ends_at_the_moment_of_its_reuse_is_an_error_and_no_hang(how: str) -> None:
    """The request may have been read: whether it is sent again is not decided here."""

    async def second_is_cut(body: bytes, writer: asyncio.StreamWriter) -> None:
        if body == b"2":
            reset(writer) if how == "reset" else writer.close()
        else:
            writer.write(http(body))

    async with serving(second_is_cut) as server, sending(server.url) as transport:
        await ask(transport, b"1")
        with pytest.raises(APIConnectionError, match="closed the connection without an answer"):
            await ask(transport, b"2")
        assert (await ask(transport, b"3")).body == b"3"
        assert not transport._busy
    assert server.connections == 2


@on_both_loops
async def test_requests_that_begin_in_the_turn_in_which_others_end_keep_their_deadlines() -> None:
    """A worker goes on with the connection of another one, before that one has even seen its answer."""
    release = asyncio.Event()

    async def script(body: bytes, writer: asyncio.StreamWriter) -> None:
        if body == b"first":
            await release.wait()  # all answers come in one turn
            writer.write(http(body))
        else:
            await asyncio.sleep(LONG_S)

    async def worker(transport: PlainTransport) -> None:
        await ask(transport, b"first")
        with pytest.raises(APITimeoutError):
            await ask(transport, b"second", SOON_S)

    async with (
        serving(script) as server,
        sending(server.url, total_s=0.2) as transport,
        asyncio.timeout(5),
        asyncio.TaskGroup() as group,
    ):
        for _ in range(10):
            group.create_task(worker(transport))
        await until(lambda: len(server.bodies) == 10)
        release.set()
        await until(lambda: len(server.bodies) == 20)
        assert len(transport._busy) == 10
    assert not transport._busy


@on_both_loops
async def test_a_connection_that_nobody_has_used_for_long_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "KEEP_ALIVE_S", 0.05)
    async with serving(echo) as server, sending(server.url, total_s=0.2) as transport:
        await ask(transport)
        await until(lambda: not transport._idle)
        await ask(transport)
    assert server.connections == 2


# -- bytes that nobody asked for --------------------------------------------------------------------


@on_both_loops
async def test_bytes_on_an_idle_connection_close_it() -> None:
    more = asyncio.Event()

    async def script(body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(http(body))
        await more.wait()
        writer.write(http(b"unasked"))

    async with serving(script) as server, sending(server.url) as transport:
        await ask(transport, b"1")
        more.set()
        await until(lambda: not transport._idle)
        assert (await ask(transport, b"2")).body == b"2"
    assert server.connections == 2


@pytest.mark.parametrize(
    "surplus",
    [
        pytest.param(http(b"unasked"), id="a whole answer"),
        pytest.param(http(b"unasked")[:9], id="a piece of a status line"),
        pytest.param(http(b"unasked")[:-3], id="an answer but for its end"),
        pytest.param(chunked(b"unasked"), id="an answer in chunks"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n", id="100 Continue, too late"),
        pytest.param(b"garbage", id="no HTTP"),
    ],
)
@pytest.mark.parametrize("framed", ["with a length", "in chunks", "without a body"])
@pytest.mark.parametrize("when", ["at once", "a turn later"])
@on_both_loops
async def test_what_follows_an_answer_is_never_the_answer_to_the_next_request(
    surplus: bytes, framed: str, when: str
) -> None:
    """Above all not where it comes in pieces: the rest of it would be read as the next answer."""

    async def script(body: bytes, writer: asyncio.StreamWriter) -> None:
        if framed == "without a body":
            answer = http(status="204 No Content", length=-1)
        else:
            answer = http(body) if framed == "with a length" else chunked(body)
        if when == "at once":
            writer.write(answer + surplus)
            return
        writer.write(answer)
        await asyncio.sleep(0)
        writer.write(surplus)

    async with serving(script) as server, sending(server.url) as transport:
        answered = 0
        for number in range(5):
            try:
                reply = await ask(transport, b"%d" % number)
            except APIError:
                continue  # an answer that is lost is asked for again
            assert reply.body == (b"" if framed == "without a body" else b"%d" % number)
            assert reply.status == (204 if framed == "without a body" else 200)
            answered += 1
        if surplus != b"garbage":
            assert answered == 5


# -- answers that come too early --------------------------------------------------------------------


@pytest.mark.parametrize("then", ["stay", "close"])
@on_both_loops
async def test_an_answer_before_the_request_was_read_is_taken_and_the_connection_is_not(then: str) -> None:
    """A body too large for the server: 413, and what is left of the body is not the next request."""
    large = bytes(20_000_000)

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(http(b"too large", status="413 Payload Too Large"))
        await writer.drain()
        if then == "stay":
            await asyncio.sleep(LONG_S)
        await turns(10)

    async with listening(refuse) as server, sending(server.url) as transport:
        reply = await ask(transport, large)
        assert (reply.status, reply.body) == (413, b"too large")
        assert not transport._idle
        assert (await ask(transport, large)).status == 413
    assert server.connections == 2


@on_both_loops
async def test_an_answer_before_anything_was_asked_is_no_answer() -> None:
    async def hasty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(http(b"unasked"))
        await asyncio.sleep(LONG_S)

    async with listening(hasty) as server, sending(server.url) as transport:
        with suppress(APIConnectionError):  # where it comes in one turn with the connection, nobody can tell
            await ask(transport, b"1", SOON_S)
        assert not transport._busy


@pytest.mark.parametrize("how", ["close", "reset"])
@on_both_loops
async def test_a_server_that_hangs_up_as_soon_as_it_has_accepted_is_an_error(how: str) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reset(writer) if how == "reset" else writer.close()

    async with listening(hang_up) as server, sending(server.url) as transport:
        for _ in range(20):
            with pytest.raises(APIConnectionError):
                await ask(transport)
        assert (transport._idle, transport._busy) == ([], {})


# -- endless answers ---------------------------------------------------------------------------------


def endless(start: bytes, again: bytes) -> Script:
    async def script(body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        while True:
            writer.write(again)
            await writer.drain()
            await asyncio.sleep(0)

    return script


@pytest.mark.parametrize(
    ("start", "again", "code"),
    [
        pytest.param(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n" * 50, "bad_http", id="headers"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: ", b"x" * 1_000, "bad_http", id="one header"),
        pytest.param(b"HTTP/1.1 200 ", b"O" * 1_000, "bad_http", id="a reason"),
        pytest.param(b"", b"x" * 1_000, "bad_http", id="no HTTP"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 60_000, "invalid_response", id="a body until the connection ends"
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"ffff\r\n" + b"x" * 0xFFFF + b"\r\n",
            "invalid_response",
            id="chunks",
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffff\r\n",
            b"x" * 60_000,
            "invalid_response",
            id="one chunk",
        ),
    ],
)
@on_both_loops
async def test_an_answer_without_an_end_is_cut_off_at_a_size(
    start: bytes, again: bytes, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is bounded while it comes, too, and not only where it is read."""
    monkeypatch.setattr(plain, "MAX_BODY_BYTES", 2_000_000)
    async with serving(endless(start, again)) as server, sending(server.url) as transport:
        async with asyncio.timeout(10):
            with pytest.raises(APIResponseError) as caught:
                await ask(transport)
        assert caught.value.code == code
        assert (transport._idle, transport._busy) == ([], {})


@on_both_loops
async def test_interim_answers_without_an_end_come_to_the_deadline() -> None:
    script = endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n")
    async with serving(script) as server, sending(server.url, total_s=0.2) as transport:
        with pytest.raises(APITimeoutError):
            await ask(transport, b"{}", SOON_S)


# -- deadlines, resets and cancellation at every stage -----------------------------------------------

WHOLE = chunked(b"data: 1\n\n", b"data: 2\n\n")
STAGES = [
    pytest.param(b"", id="before the answer"),
    pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n", id="after 100 Continue"),
    pytest.param(http(b"x")[:12], id="in the status line"),
    pytest.param(http(b"x")[:25], id="in the headers"),
    pytest.param(http(b"", length=5), id="before the body"),
    pytest.param(http(b"x", length=5), id="in the body"),
    pytest.param(WHOLE[:-30], id="in a chunk"),
    pytest.param(WHOLE[:-5], id="between chunks"),
    pytest.param(WHOLE[:-2], id="before the last two bytes"),
    pytest.param(http(b"some", length=-1), id="in a body without a length"),
]


@pytest.mark.parametrize("data", STAGES)
@on_both_loops
async def test_silence_at_any_stage_ends_at_the_deadline_and_closes_the_connection(data: bytes) -> None:
    async with serving(says(data, "silence")) as server, sending(server.url, total_s=0.1) as transport:
        with pytest.raises(APITimeoutError, match=r"^no whole answer within 0.1 s$"):
            await ask(transport, b"{}", SOON_S)
        assert (transport._idle, transport._busy) == ([], {})


@on_both_loops
async def test_a_server_that_does_not_read_ends_at_the_deadline() -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(LONG_S)

    async with listening(deaf) as server, sending(server.url, total_s=0.1) as transport:
        with pytest.raises(APITimeoutError):
            await ask(transport, bytes(20_000_000), SOON_S)
        assert (transport._idle, transport._busy) == ([], {})


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("data", STAGES[:-1])
@on_both_loops
async def test_a_connection_that_ends_at_any_stage_is_an_error(data: bytes, how: str) -> None:
    async with serving(says(data, how)) as server, sending(server.url) as transport:
        with pytest.raises(APIError) as caught:
            await ask(transport)
        assert not isinstance(caught.value, APITimeoutError)
        if b"\r\n\r\n" in data and b" 200 " in data:
            assert isinstance(caught.value, APIResponseError)
            assert caught.value.truncated
        else:
            assert isinstance(caught.value, APIConnectionError)
        assert (transport._idle, transport._busy) == ([], {})


@pytest.mark.parametrize("how", ["close", "reset"])
@on_both_loops
async def test_a_body_without_a_length_ends_with_the_connection(how: str) -> None:
    """However that ends: whether the body is whole is seen by what is in it."""
    async with serving(says(http(b"some", length=-1), how)) as server:
        assert (await ask_once(server.url)).body == b"some"


@pytest.mark.parametrize("data", STAGES)
@on_both_loops
async def test_a_request_cancelled_at_any_stage_closes_its_connection(data: bytes) -> None:
    async with serving(says(data, "silence")) as server, sending(server.url) as transport:
        task = asyncio.ensure_future(ask(transport))
        await until(lambda: server.bodies)
        await turns(5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (transport._idle, transport._busy) == ([], {})


@on_both_loops
async def test_a_request_cancelled_while_it_connects_leaves_nothing() -> None:
    async with serving(echo) as server, sending(server.url) as transport:
        for count in range(12):
            task = asyncio.ensure_future(ask(transport, b"%d" % count))
            await turns(count)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            assert not transport._busy
        assert (await ask(transport, b"last")).body == b"last"


@pytest.mark.parametrize("over", [plain_transport, session_transport])
@on_both_loops
async def test_a_request_is_told_as_sent_if_and_only_if_it_reaches_the_server(over: Any) -> None:
    """Cancelled in every turn from its beginning to its answer, on a new connection."""
    sent: list[bytes] = []
    async with serving(echo) as server:
        for count in range(60):
            body = b"%d" % count
            async with over(Endpoint(base_url=server.url), {}) as transport:
                exchange = transport.exchange("POST", server.url, body, LONG_S, on_sent=partial(sent.append, body))
                task = asyncio.ensure_future(exchange)
                await turns(count)
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        await until(lambda: len(server.bodies) >= len(sent))
        await turns(20)
        assert sorted(server.bodies) == sorted(sent)
    assert 0 < len(sent) < 60


@pytest.mark.parametrize("over", [plain_transport, session_transport])
@on_both_loops
async def test_a_request_is_told_as_sent_once_and_not_if_nobody_listens(over: Any) -> None:
    """Whatever its size, on a connection that is new or was used."""
    sent: list[int] = []
    async with serving(echo) as server, over(Endpoint(base_url=server.url), {}) as transport:
        for size in (1, plain.JOINED_BYTES + 1, 900_000, 1):
            await transport.exchange("POST", server.url, b"x" * size, LONG_S, on_sent=partial(sent.append, size))
    assert sent == [1, plain.JOINED_BYTES + 1, 900_000, 1]
    async with over(Endpoint(base_url=server.url), {}) as transport:
        with pytest.raises(APIUnreachableError):
            await transport.exchange("POST", server.url, b"{}", LONG_S, on_sent=partial(sent.append, 0))
    assert 0 not in sent


@pytest.mark.parametrize("order", ["cancelled, then answered", "answered, then cancelled", "answered"])
@on_both_loops
async def test_a_request_cancelled_as_its_answer_comes_spoils_no_other(order: str) -> None:
    """The answer is in and nobody has seen it: whoever is given the connection meanwhile must not lose it again."""
    async with serving(says(b"", "silence")) as server, sending(server.url) as transport:
        first = asyncio.ensure_future(ask(transport, b"first"))
        await until(lambda: transport._busy)
        (connection,) = transport._busy
        if order.startswith("cancelled"):
            first.cancel()
        connection.data_received(http(b"first"))  # as the loop may do it in this very turn
        if order.endswith("cancelled"):
            first.cancel()
        assert transport._idle == [connection]
        second = asyncio.ensure_future(transport.exchange("POST", server.url, b"second", LONG_S))
        third = asyncio.ensure_future(transport.exchange("POST", server.url, b"third", SOON_S))
        if order == "answered":
            assert (await first).body == b"first"
        else:
            with pytest.raises(asyncio.CancelledError):
                await first
        await turns(3)
        assert connection in transport._busy
        connection.data_received(http(b"second"))
        async with asyncio.timeout(5):
            assert (await second).body == b"second"
            with pytest.raises(APITimeoutError):
                await third
        assert not transport._busy


@on_both_loops
async def test_whoever_is_cancelled_or_late_no_answer_is_mixed_up() -> None:
    """500 requests, a third of them cancelled and a third with a deadline that they may miss."""
    chance = random.Random(7)

    async def slow_echo(body: bytes, writer: asyncio.StreamWriter) -> None:
        data = http(body) if chance.random() < 0.5 else chunked(body[:3], body[3:])
        at = chance.randrange(len(data))
        writer.write(data[:at])
        await asyncio.sleep(chance.choice([0, 0, 0.001, 0.02]))
        writer.write(data[at:])
        if chance.random() < 0.1:
            writer.close()

    done = {"answered": 0, "late": 0, "cancelled": 0, "lost": 0}

    async def one(transport: PlainTransport, number: int) -> None:
        body = b"question %d" % number
        task = asyncio.ensure_future(ask(transport, body, 0.01 if number % 3 == 0 else LONG_S))
        if number % 3 == 1:
            asyncio.get_running_loop().call_later(chance.random() * 0.02, task.cancel)
        try:
            reply = await task
        except asyncio.CancelledError:
            done["cancelled"] += 1
        except APITimeoutError:
            done["late"] += 1
        except APIConnectionError:
            done["lost"] += 1
        else:
            assert reply.body == body
            done["answered"] += 1

    async with serving(slow_echo) as server, sending(server.url, total_s=0.05) as transport:
        numbers = iter(range(500))

        async def worker() -> None:
            for number in numbers:
                await one(transport, number)

        async with asyncio.TaskGroup() as group:
            for _ in range(25):
                group.create_task(worker())
        assert not transport._busy
    assert sum(done.values()) == 500
    assert done["answered"] > 200
    assert done["cancelled"] > 20


# -- many ---------------------------------------------------------------------------------------------


@on_both_loops
async def test_a_thousand_requests_at_once_each_get_their_own_answer() -> None:
    async with serving(echo) as server, sending(server.url) as transport:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(transport, b"%d" % number)) for number in range(1_000)]
        assert [task.result().body for task in tasks] == [b"%d" % number for number in range(1_000)]
        assert len(transport._idle) == server.connections <= 1_000
        assert not transport._busy


@on_both_loops
async def test_a_thousand_requests_of_twenty_workers_use_twenty_connections() -> None:
    async with serving(echo) as server, sending(server.url) as transport:
        numbers = iter(range(1_000))

        async def worker() -> None:
            for number in numbers:
                assert (await ask(transport, b"%d" % number)).body == b"%d" % number

        async with asyncio.TaskGroup() as group:
            for _ in range(20):
                group.create_task(worker())
    assert server.connections == 20
    assert sorted(map(int, server.bodies)) == list(range(1_000))


# -- the end ------------------------------------------------------------------------------------------


@on_both_loops
async def test_closing_while_requests_are_in_flight_tells_everyone() -> None:
    async with serving(says(b"HTTP/1.1 200 OK\r\n", "silence")) as server, sending(server.url) as transport:
        tasks = [asyncio.ensure_future(ask(transport)) for _ in range(5)]
        await until(lambda: len(server.bodies) == 5)
        tasks.append(asyncio.ensure_future(ask(transport)))  # still to connect
        await asyncio.sleep(0)
        transport.close()
        async with asyncio.timeout(5):
            for task in tasks:
                with pytest.raises(APIConnectionError):
                    await task
        with pytest.raises(APIConnectionError):
            await ask(transport)
        assert (transport._idle, transport._busy) == ([], {})


# -- addresses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "name"),
    [("127.0.0.1", "127.0.0.1"), ("127.0.0.1", "localhost"), ("127.0.0.1", "LOCALHOST"), ("::1", "[::1]")],
    ids=["IPv4", "a name", "a name in capitals", "IPv6"],
)
@on_both_loops
async def test_every_kind_of_address_is_reached_and_named_in_the_request(host: str, name: str) -> None:
    try:
        server_of = serving(echo, host=host, name=name)
        async with server_of as server:
            assert (await ask_once(server.url, b"x")).body == b"x"
    except OSError:
        pytest.skip(f"no {host} on this machine")
    shown = server.url.removeprefix("http://").removesuffix("/v1").lower()
    assert f"host: {shown}\r\n" in server.heads[0].decode().lower()


@pytest.mark.parametrize(
    ("url", "line", "host"),
    [
        pytest.param("https://b\u00fccher.example/v1", "/v1/chat", "xn--bcher-kva.example", id="an international name"),
        pytest.param("http://h/pr\u00e4 fix/v1", "/pr%C3%A4%20fix/v1/chat", "h", id="a path that must be quoted"),
        pytest.param("http://h/a%20b/v1", "/a%20b/v1/chat", "h", id="a path that is quoted"),
        pytest.param("http://[::1]:8080/v1", "/v1/chat", "[::1]:8080", id="IPv6"),
        pytest.param("https://h:443/v1", "/v1/chat", "h", id="the default port"),
        pytest.param("http://localhost.:81/v1", "/v1/chat", "localhost:81", id="a dot at the end"),
    ],
)
async def test_the_request_line_and_the_host_are_ascii_as_of_the_other_transport(
    url: str, line: str, host: str
) -> None:
    async with sending(url) as transport:
        head = transport._head("POST", url + "/chat").decode("ascii")
    assert head.startswith(f"POST {line} HTTP/1.1\r\nHost: {host}\r\n")


@on_both_loops
async def test_an_address_is_looked_up_once_and_again_after_it_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    looked_up: list[str] = []
    closed = socket.create_server(("127.0.0.1", 0))
    port = closed.getsockname()[1]
    closed.close()

    class Resolving:
        """The loop, counting the look-ups."""

        def __getattr__(self, name: str) -> Any:
            return getattr(loop, name)

        async def getaddrinfo(self, host: str, *args: Any, **options: Any) -> Any:
            looked_up.append(host)
            return await loop.getaddrinfo(host, *args, **options)

    async with serving(echo) as server, sending(server.url) as transport:
        transport.loop = Resolving()  # type: ignore[assignment]
        async with asyncio.TaskGroup() as group:
            for _ in range(50):
                group.create_task(ask(transport))
        assert len(looked_up) == 1
    looked_up.clear()
    async with sending(f"http://localhost:{port}/v1") as transport:
        transport.loop = Resolving()  # type: ignore[assignment]
        for _ in range(2):
            with pytest.raises(APIUnreachableError, match=f"^cannot connect to localhost:{port}: "):
                await ask(transport)
        assert looked_up == ["localhost", "localhost"]


async def test_an_address_that_does_not_answer_is_looked_up_again() -> None:
    """A host that has moved leaves an address where nobody refuses: it must not be kept for minutes."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        try:
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.1", port))
            async with sending(f"http://127.0.0.1:{port}/v1", connect_s=SOON_S) as transport:
                with pytest.raises(APIUnreachableError, match=r"^no connection within 0.1 s$"):
                    await ask(transport)
                assert transport._looked_up == float("-inf")
            async with sending(f"http://127.0.0.1:{port}/v1", connect_s=LONG_S) as transport:
                with pytest.raises(APITimeoutError, match=r"^no whole answer within 0.1 s$"):
                    await ask(transport, b"{}", SOON_S)
        finally:
            for filler in fillers:
                filler.close()


# -- TLS ----------------------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
    """Who is trusted."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    return authority


def certified(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*names).configure_cert(tls)
    return tls


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
@on_both_loops
async def test_over_tls_connections_are_used_again(authority: trustme.CA, name: str) -> None:
    async with serving(echo, tls=certified(authority, name), name=name) as server, sending(server.url) as transport:
        large = os.urandom(300_000)
        for body in (b"1", large, b"3"):
            assert (await ask(transport, body)).body == body
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(transport, b"%d" % number)) for number in range(20)]
        assert [task.result().body for task in tasks] == [b"%d" % number for number in range(20)]
        assert len(transport._idle) == server.connections <= 20


@on_both_loops
async def test_a_server_that_closes_over_tls_costs_connections_and_no_request(authority: trustme.CA) -> None:
    async def once(body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(chunked(body))
        await writer.drain()
        writer.close()

    tls = certified(authority, "localhost")
    async with serving(once, tls=tls, name="localhost") as server, sending(server.url) as transport:
        for number in range(5):
            assert (await ask(transport, b"%d" % number)).body == b"%d" % number
            await until(lambda: not transport._idle)  # a close_notify takes a few turns
    assert server.connections == 5


@pytest.mark.parametrize(
    ("names", "trusted", "said"),
    [
        pytest.param(["other.example"], True, "match|mismatch", id="the name of another host"),
        pytest.param(["localhost"], False, "certificate verify failed", id="an authority that is not trusted"),
    ],
)
@on_both_loops
async def test_a_certificate_that_does_not_fit_is_told(
    authority: trustme.CA, names: list[str], trusted: bool, said: str
) -> None:
    tls = certified(authority if trusted else trustme.CA(), *names)
    async with serving(echo, tls=tls, name="localhost") as server:
        with pytest.raises(APIUnreachableError, match=said):
            await ask_once(server.url)
    assert not server.bodies


@on_both_loops
async def test_plain_text_where_tls_was_due_and_the_other_way_round(authority: trustme.CA) -> None:
    async with serving(echo) as server:
        with pytest.raises(APIUnreachableError):
            await ask_once(server.url.replace("http:", "https:"), connect_s=SOON_S)
    async with serving(echo, tls=certified(authority, "127.0.0.1")) as server:
        with pytest.raises(APIError):
            await ask_once(server.url.replace("https:", "http:"))


@on_both_loops
async def test_a_server_that_hangs_up_in_or_after_the_handshake_is_an_error(authority: trustme.CA) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with listening(hang_up) as server, sending(server.url.replace("http:", "https:")) as transport:
        with pytest.raises(APIUnreachableError):
            await ask(transport)
    async with listening(hang_up, tls=certified(authority, "127.0.0.1")) as server, sending(server.url) as transport:
        for _ in range(5):
            with pytest.raises(APIConnectionError):
                await ask(transport)
        assert (transport._idle, transport._busy) == ([], {})


@on_both_loops
async def test_a_request_cancelled_in_the_handshake_leaves_nothing(authority: trustme.CA) -> None:
    tls = certified(authority, "127.0.0.1")
    async with serving(echo, tls=tls) as server, sending(server.url) as transport:
        for count in range(25):
            task = asyncio.ensure_future(ask(transport, b"%d" % count))
            await turns(count)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            assert not transport._busy
        assert (await ask(transport, b"last")).body == b"last"
