"""What `plain.py` uses of aiohttp's response parser, which is not public API: a change there must fail here.

Both of its forms: the one in C, and the one in Python that stands in where the first was not built.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from typing import Any, cast

import aiohttp.http_parser
import pytest
from aiohttp.http_exceptions import BadHttpMessage, ContentLengthError, HttpProcessingError, TransferEncodingError

from cbatch import plain
from cbatch.plain import is_available
from cbatch.transport import Endpoint

FORMS = {
    name: getattr(aiohttp.http_parser, name)
    for name in ("HttpResponseParserC", "HttpResponseParserPy")
    if hasattr(aiohttp.http_parser, name)
}
LIMIT = 1 << 30


class Protocol:
    """What the parser asks of its protocol: nothing else."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def pause_reading(self) -> None:
        self.calls.append("pause")

    def resume_reading(self, resume_parser: bool = True) -> None:
        self.calls.append("resume")


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Any:
    return FORMS[request.param]


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def protocol() -> Protocol:
    return Protocol()


@pytest.fixture
def parser(form: Any, protocol: Protocol, loop: asyncio.AbstractEventLoop) -> Any:
    return form(protocol, loop, LIMIT, read_until_eof=True, auto_decompress=False)


def fed(parser: Any, *pieces: bytes) -> tuple[list[tuple[Any, Any]], bytes]:
    """(messages with their payloads, the first one's body), read after every piece as `plain.py` does it."""
    found: list[tuple[Any, Any]] = []
    body = b""
    for piece in pieces:
        messages, upgraded, tail = parser.feed_data(piece)
        assert (upgraded, tail) == (False, b"")
        found += messages
        if found:
            body += found[0][1].read_nowait()
    return found, body


def answer(body: bytes, *headers: str, status: str = "200 OK", version: str = "1.1") -> bytes:
    lines = [f"HTTP/{version} {status}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


WITH_LENGTH = answer(b"hello", "Content-Type: text/plain", "Content-Length: 5")
CHUNKED = answer(b"5\r\nhello\r\n1;ext=1\r\n!\r\n0\r\n\r\n", "Transfer-Encoding: chunked")
TRAILERS = answer(b"5\r\nhello\r\n1\r\n!\r\n0\r\nX-Sum: 1\r\nX-B: 2\r\n\r\n", "Transfer-Encoding: chunked")


def test_it_is_what_the_transport_uses() -> None:
    assert cast("Any", plain).HttpResponseParser in FORMS.values()
    assert is_available(Endpoint(base_url="http://h/v1"))
    assert not is_available(Endpoint(base_url="http://h/v1", proxy="http://p"))


def test_without_it_the_session_does_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "HttpResponseParser", None)
    assert not is_available(Endpoint(base_url="http://h/v1"))


def test_the_names_of_its_arguments() -> None:
    names = set(inspect.signature(FORMS["HttpResponseParserPy"]).parameters)
    assert {"protocol", "loop", "limit", "read_until_eof", "auto_decompress"} <= names


def test_a_message_has_a_code_headers_and_says_how_it_was_framed(parser: Any) -> None:
    ((message, payload),), body = fed(parser, WITH_LENGTH)
    assert (message.code, message.chunked, message.should_close) == (200, False, False)
    assert (body, payload.is_eof(), payload.read_nowait()) == (b"hello", True, b"")
    assert message.headers["content-length"] == "5"  # whatever the case
    assert message.headers.get("X-None") is None
    assert dict(message.headers) == {"Content-Type": "text/plain", "Content-Length": "5"}


@pytest.mark.parametrize(
    ("data", "should_close"),
    [
        pytest.param(WITH_LENGTH, False, id="keep-alive"),
        pytest.param(answer(b"hello", "Content-Length: 5", "Connection: close"), True, id="close"),
        pytest.param(answer(b"hello", "Content-Length: 5", "connection: Close"), True, id="close, in another case"),
        pytest.param(answer(b"hello", "Content-Length: 5", version="1.0"), True, id="HTTP/1.0"),
        pytest.param(
            answer(b"hello", "Content-Length: 5", "Connection: keep-alive", version="1.0"),
            False,
            id="HTTP/1.0 with keep-alive",
        ),
        pytest.param(answer(b"hello"), True, id="without a length"),
    ],
)
def test_whether_the_connection_may_serve_another_request(parser: Any, data: bytes, should_close: bool) -> None:
    ((message, _),), body = fed(parser, data)
    assert (message.should_close, body) == (should_close, b"hello")


@pytest.mark.parametrize(
    ("data", "body"),
    [
        pytest.param(WITH_LENGTH, b"hello", id="with a length"),
        pytest.param(CHUNKED, b"hello!", id="in chunks"),
        pytest.param(TRAILERS, b"hello!", id="with trailers"),
        pytest.param(answer(b"", "Content-Length: 0"), b"", id="of no length"),
        pytest.param(answer(b"", status="204 No Content"), b"", id="204"),
        pytest.param(answer(b"", status="304 Not Modified"), b"", id="304"),
        pytest.param(answer(b"0\r\n\r\n", "Transfer-Encoding: chunked"), b"", id="no chunk"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" + WITH_LENGTH, b"hello", id="after 100 Continue"),
    ],
)
def test_an_answer_split_anywhere_is_read_and_ends_at_its_last_byte(
    form: Any, loop: asyncio.AbstractEventLoop, data: bytes, body: bytes
) -> None:
    def payload_of(messages: list[tuple[Any, Any]]) -> Any:
        return next((payload for message, payload in messages if message.code >= 200), None)

    for cut in range(len(data)):
        parser = form(Protocol(), loop, LIMIT, read_until_eof=True, auto_decompress=False)
        found: list[tuple[Any, Any]] = []
        read = b""
        for piece in filter(None, (data[:cut], data[cut:-1], data[-1:])):
            payload = payload_of(found)
            assert payload is None or not payload.is_eof()
            found += parser.feed_data(piece)[0]
            if (payload := payload_of(found)) is not None:
                read += payload.read_nowait()
        assert payload_of(found).is_eof()
        assert read == body


def test_a_byte_at_a_time(parser: Any) -> None:
    messages, body = fed(parser, *(TRAILERS[at : at + 1] for at in range(len(TRAILERS))))
    assert ([message.code for message, _ in messages], body) == ([200], b"hello!")
    assert messages[0][1].is_eof()
    assert messages[0][0].chunked


def test_one_parser_reads_one_answer_after_another(parser: Any) -> None:
    """Keep-alive: `plain.py` keeps a connection's parser."""
    for data, body in [(WITH_LENGTH, b"hello"), (CHUNKED, b"hello!"), (TRAILERS, b"hello!")] * 3:
        messages, read = fed(parser, data[:40], data[40:])
        assert (len(messages), read, messages[0][1].is_eof()) == (1, body, True)
    ((message, payload),), read = fed(parser, answer(b"the last"))
    assert (message.should_close, read, payload.is_eof()) == (True, b"the last", False)


def test_two_answers_in_one_read_are_two_messages(parser: Any) -> None:
    messages, _ = fed(parser, CHUNKED + WITH_LENGTH)
    assert [(message.code, payload.is_eof()) for message, payload in messages] == [(200, True), (200, True)]
    assert messages[1][1].read_nowait() == b"hello"


@pytest.mark.parametrize("status", ["100 Continue", "103 Early Hints", "199 What"])
def test_interim_answers_are_messages_of_their_own_without_a_body(parser: Any, status: str) -> None:
    interim = answer(b"", "Link: x", status=status)
    for pieces in ([interim * 2 + WITH_LENGTH], [interim, interim[:9], interim[9:], WITH_LENGTH]):
        found: list[tuple[Any, Any]] = []
        for piece in pieces:
            found += parser.feed_data(piece)[0]
        code = int(status[:3])
        assert [message.code for message, _ in found] == [code, code, 200]
        assert found[2][1].read_nowait() == b"hello"


def test_a_switch_of_protocols_is_told(parser: Any) -> None:
    switch = answer(b"", "Upgrade: websocket", "Connection: upgrade", status="101 Switching Protocols")
    messages, upgraded, tail = parser.feed_data(switch + b"frame")
    assert ([message.code for message, _ in messages], upgraded, tail) == ([101], True, b"frame")
    assert messages[0][1].is_eof()


def test_a_body_without_a_length_ends_at_the_end(parser: Any) -> None:
    ((_, payload),), body = fed(parser, answer(b"so"), b"me")
    assert (body, payload.is_eof()) == (b"some", False)
    parser.feed_eof()
    assert (payload.is_eof(), payload.read_nowait()) == (True, b"")


@pytest.mark.parametrize(
    ("data", "error"),
    [
        pytest.param(WITH_LENGTH[:-1], ContentLengthError, id="a byte of the length is missing"),
        pytest.param(WITH_LENGTH[:-5], ContentLengthError, id="all of it is missing"),
        pytest.param(CHUNKED[:-2], TransferEncodingError, id="the last empty line is missing"),
        pytest.param(CHUNKED[:-5], TransferEncodingError, id="the last chunk is missing"),
        pytest.param(CHUNKED[:-17], TransferEncodingError, id="half a chunk is missing"),
        pytest.param(TRAILERS[:-2], TransferEncodingError, id="the end of the trailers is missing"),
    ],
)
def test_an_end_in_the_middle_is_an_exception(parser: Any, data: bytes, error: type[Exception]) -> None:
    ((_, payload),), _ = fed(parser, data)
    with pytest.raises(error):
        parser.feed_eof()
    assert not payload.is_eof()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n\r\n", id="no HTTP"),
        pytest.param(b"HTTP/1.1 abc OK\r\n\r\n", id="a status that is no number"),
        pytest.param(answer(b"", "Content-Length: -7"), id="a negative length"),
        pytest.param(answer(b"", "X: " + "x" * 100_000), id="a header of 100 KB"),
        pytest.param(answer(b"", *(f"X-{n}: y" for n in range(200))), id="200 headers"),
        pytest.param(answer(b"", "no colon"), id="a header without a colon"),
    ],
)
def test_what_is_no_answer_is_an_exception_of_the_library(parser: Any, data: bytes) -> None:
    with pytest.raises(HttpProcessingError):
        parser.feed_data(data)


def test_a_chunk_without_a_size_is_an_exception_after_the_message(parser: Any) -> None:
    head, _, rest = answer(b"zz\r\nhello\r\n", "Transfer-Encoding: chunked").partition(b"\r\n\r\n")
    ((_, payload),), _ = fed(parser, head + b"\r\n\r\n")
    with pytest.raises((BadHttpMessage, TransferEncodingError)):
        parser.feed_data(rest)
    assert not payload.is_eof()


def test_garbage_after_an_answer_is_an_exception_and_the_payload_is_whole(parser: Any) -> None:
    ((_, payload),), _ = fed(parser, WITH_LENGTH[:-5])
    with pytest.raises(HttpProcessingError):
        parser.feed_data(b"hello\x00garbage\r\n\r\n")
    assert (payload.is_eof(), payload.read_nowait()) == (True, b"hello")


def test_a_compressed_body_is_left_as_it_is(parser: Any) -> None:
    ((message, _),), body = fed(parser, answer(b"\x1f\x8bxyz", "Content-Encoding: gzip", "Content-Length: 5"))
    assert (body, message.headers["Content-Encoding"]) == (b"\x1f\x8bxyz", "gzip")


def test_the_protocol_is_never_asked_to_pause_as_long_as_the_body_is_taken_at_once(
    parser: Any, protocol: Protocol
) -> None:
    """The limit is as large as the largest body; a parser that pauses would want to be fed b"" to go on."""
    chunk = b"%x\r\n%s\r\n" % (1 << 20, bytes(1 << 20))
    _, body = fed(parser, answer(b"", "Transfer-Encoding: chunked"), *[chunk] * 64, b"0\r\n\r\n")
    assert len(body) == 64 << 20
    assert set(protocol.calls) <= {"resume"}


def test_many_small_chunks_in_one_read_do_not_pause_it_either(parser: Any, protocol: Protocol) -> None:
    data = answer(b"1\r\nx\r\n" * 50_000 + b"0\r\n\r\n", "Transfer-Encoding: chunked")
    ((_, payload),), body = fed(parser, data)
    assert (body, payload.is_eof()) == (b"x" * 50_000, True)
    assert set(protocol.calls) <= {"resume"}
