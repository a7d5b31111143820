"""However the bytes of an answer fall into socket reads, it is the same answer, and every byte has its own stamp.

First without a socket, so that each read is exactly what a test says, with both forms of aiohttp's parser;
then what is left over real ones.
"""

from __future__ import annotations

import asyncio
import gzip
import itertools
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, cast

import pytest
from aiohttp import http_parser
from hypothesis import given
from hypothesis import strategies as st

from cbatch import plain
from cbatch.errors import APIConnectionError, APIError, APIResponseError
from cbatch.plain import _Connection
from cbatch.replies import Reply
from cbatch.transport import Endpoint
from tests.integration.raw_server import (
    LONG_S,
    ask,
    ask_once,
    chunked,
    few_objects,
    http,
    on_both_loops,
    sending,
    serving,
    turns,
)

FORMS = {
    name: getattr(http_parser, name)
    for name in ("HttpResponseParserC", "HttpResponseParserPy")
    if hasattr(http_parser, name)
}
both_forms = pytest.mark.parametrize("form", FORMS)


class Wire:
    """A connection whose reads are given by hand; the stamp of a read is its number."""

    endpoint = Endpoint(base_url="http://h/v1")
    loop: asyncio.AbstractEventLoop

    def __init__(self, form: str = "HttpResponseParserC") -> None:
        self.returned = 0
        self.aborted = False
        self.unwritten = 0
        self.reads = 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(plain, "HttpResponseParser", FORMS.get(form, http_parser.HttpResponseParser))
            self.connection = _Connection(cast("Any", self))
        self.connection.connection_made(cast("Any", self))
        self.answer = self.connection.ask(b"", None, LONG_S, LONG_S)

    def read(self, *pieces: bytes) -> None:
        """The loop read these."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(plain, "perf_counter", lambda: float(self.reads))
            for piece in pieces:
                if not self.aborted:
                    self.connection.data_received(piece)
                self.reads += 1

    def end(self, error: Exception | None = None) -> None:
        """The connection ended."""
        self.connection.connection_lost(error)

    def reply(self) -> Reply:
        """The answer, or its error; there must be one."""
        assert self.answer.done()
        return self.answer.result()

    # -- the pool and the transport, as the connection sees them

    def give_back(self, connection: object) -> None:
        self.returned += 1

    def distrust(self) -> None: ...

    def served(self, connection: object) -> None: ...

    def forget(self, connection: object) -> None: ...

    def get_extra_info(self, name: str) -> Any:
        return self

    def fileno(self) -> int:
        return 0

    def write(self, data: bytes) -> None: ...

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True

    def get_write_buffer_size(self) -> int:
        return self.unwritten


@pytest.fixture(autouse=True, scope="module")
def _one_loop() -> Iterator[None]:
    with few_objects():
        Wire.loop = asyncio.new_event_loop()
        yield
        Wire.loop.close()


EVENTS = [b'data: {"n":%d}\n\n' % number for number in range(4)] + [b"data: [DONE]\n\n"]
STREAM = b"".join(EVENTS)
ANSWERS = {
    "with a length": (http(STREAM), STREAM),
    "of no length": (http(b""), b""),
    "204": (http(status="204 No Content", length=-1), b""),
    "304": (http(status="304 Not Modified", length=-1), b""),
    "in chunks": (chunked(*EVENTS), STREAM),
    "no chunks": (chunked(), b""),
    "a byte a chunk": (chunked(*(STREAM[at : at + 1] for at in range(len(STREAM)))), STREAM),
    "with trailers": (chunked(*EVENTS, end=b"0\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n"), STREAM),
    "with extensions of chunks": (chunked(*EVENTS).replace(b"f\r\n", b"f;a=b\r\n"), STREAM),
    "with capital sizes": (chunked(b"x" * 171).replace(b"ab\r\n", b"AB\r\n"), b"x" * 171),
    "chunks whose data ends as a stream of chunks does": (
        chunked(b"a\r\n\r\n", b"0\r\n\r\n", b"\r\n\r\n", b"\n\n"),
        b"a\r\n\r\n0\r\n\r\n\r\n\r\n\n\n",
    ),
    "a head whose lines end in LF alone": (http(STREAM).replace(b"\r\n", b"\n"), STREAM),
    "after 100 and 103": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + chunked(*EVENTS),
        STREAM,
    ),
    "HTTP/1.0 with keep-alive": (
        http(STREAM, "Connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0"),
        STREAM,
    ),
}
all_answers = pytest.mark.parametrize("name", ANSWERS)


@all_answers
@both_forms
def test_an_answer_split_anywhere_is_the_same_and_ends_with_its_last_byte(name: str, form: str) -> None:
    """Not a byte early, and not with the next one that comes: for there is none."""
    data, body = ANSWERS[name]
    for cut in range(len(data)):
        wire = Wire(form)
        pieces = [piece for piece in (data[:cut], data[cut:]) if piece]
        wire.read(*pieces[:-1])
        assert not wire.answer.done()
        wire.read(pieces[-1])
        reply = wire.reply()
        assert (reply.body, wire.returned, wire.aborted) == (body, 1, False)
        assert [end for end, _ in reply.reads][-1:] == ([len(body)] if body else [])


@all_answers
@both_forms
def test_an_answer_byte_by_byte_is_the_same(name: str, form: str) -> None:
    data, body = ANSWERS[name]
    wire = Wire(form)
    for at in range(len(data)):
        assert not wire.answer.done()
        wire.read(data[at : at + 1])
    assert (wire.reply().body, wire.returned) == (body, 1)
    assert [end for end, _ in wire.reply().reads] == list(range(1, len(body) + 1))


@st.composite
def cuts(draw: st.DrawFn) -> tuple[list[bytes], list[bytes]]:
    """(chunks of an answer, reads that it came in)."""
    chunks = draw(st.lists(st.binary(min_size=1, max_size=30) | st.sampled_from(EVENTS), max_size=12))
    data = chunked(*chunks)
    places = sorted(draw(st.sets(st.integers(1, len(data) - 1), max_size=20)))
    return chunks, [data[start:end] for start, end in itertools.pairwise([0, *places, len(data)])]


@given(cuts())
def test_every_byte_has_the_stamp_of_the_read_it_came_in(drawn: tuple[list[bytes], list[bytes]]) -> None:
    """A read is one entry, which says how far the body had come after it; reads of framing alone have none."""
    chunks, reads = drawn
    wire = Wire()
    wire.read(*reads)
    reply = wire.reply()
    data = b"".join(reads)
    places: list[int] = []  # of every byte of the body, in the data
    at = data.index(b"\r\n\r\n") + 4
    for chunk in chunks:
        at = data.index(b"\r\n", at) + 2
        places += range(at, at + len(chunk))
        at += len(chunk) + 2
    ends = list(itertools.accumulate(map(len, reads)))
    expected = [(sum(place < end for place in places), float(number)) for number, end in enumerate(ends)]
    carried = [entry for entry, before in zip(expected, [(0, 0.0), *expected], strict=False) if entry[0] > before[0]]
    assert reply.body == b"".join(chunks)
    assert list(reply.reads) == carried
    assert (wire.returned, wire.aborted) == (1, False)


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=8))
def test_one_connection_reads_one_answer_after_another(bodies: list[bytes]) -> None:
    wire = Wire()
    for number, body in enumerate(bodies):
        data = chunked(body) if number % 2 and body else http(body)
        wire.read(data[:30], data[30:])
        assert (wire.reply().body, wire.returned) == (body, number + 1)
        wire.answer = wire.connection.ask(b"", None, LONG_S, LONG_S)
    wire.end()


@given(st.binary(max_size=300), st.sets(st.integers(1, 299), max_size=5), st.booleans())
def test_whatever_comes_it_is_an_answer_or_an_error_and_never_an_exception(
    data: bytes, places: set[int], begins_well: bool
) -> None:
    wire = Wire()
    start = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" if begins_well else b""
    ends = [0, *sorted(place for place in places if place < len(data)), len(data)]
    wire.read(*filter(None, [start, *(data[a:b] for a, b in itertools.pairwise(ends))]))
    wire.end()
    assert wire.answer.done()
    assert isinstance(wire.answer.exception(), APIError | None)


def test_an_answer_of_many_reads_is_read_before_it_has_all_come() -> None:
    """What is held unparsed is bounded, whatever comes."""
    wire = Wire()
    piece = b"%x\r\n%s\r\n" % (60_000, bytes(60_000))
    wire.read(chunked()[:-5], *[piece] * 100)
    assert wire.connection._size > 4_000_000
    assert wire.connection._held <= plain.HELD_BYTES
    wire.read(b"0\r\n\r\n")
    assert len(wire.reply().body) == 6_000_000


# -- the connection afterwards ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "returned"),
    [
        pytest.param(http(b"x"), 1, id="keep-alive"),
        pytest.param(http(b"x", "Connection: close"), 0, id="close"),
        pytest.param(http(b"x").replace(b"1.1", b"1.0"), 0, id="HTTP/1.0"),
        pytest.param(http(b"x") + b"y", 0, id="one byte more"),
        pytest.param(chunked(b"x") + b"y", 0, id="one byte more after chunks"),
        pytest.param(http(b"x") + http(b"y"), 0, id="two answers"),
        pytest.param(chunked(b"x") + chunked(b"y")[:-4], 0, id="an answer and half"),
    ],
)
@both_forms
def test_a_connection_is_used_again_only_if_nothing_follows_the_answer(data: bytes, returned: int, form: str) -> None:
    head, _, rest = data.partition(b"\r\n\r\n")
    wire = Wire(form)
    wire.read(head + b"\r\n\r\n", rest)
    assert wire.reply().body == b"x"
    assert (wire.returned, wire.aborted) == (returned, not returned)


@both_forms
def test_chunks_whose_lines_end_in_lf_alone_are_an_answer_or_an_error_and_no_hang(form: str) -> None:
    """One form of the parser takes them, the other does not."""
    wire = Wire(form)
    wire.read(chunked()[:-5], b"5\nhello\n0\n\n")
    assert wire.answer.done()
    with suppress(APIResponseError):
        assert wire.reply().body == b"hello"


def test_a_connection_with_a_request_that_is_not_out_is_not_used_again() -> None:
    wire = Wire()
    wire.unwritten = 5
    wire.read(http(b"too large", status="413 Payload Too Large"))
    assert (wire.reply().status, wire.returned, wire.aborted) == (413, 0, True)


def test_a_switch_of_protocols_is_an_answer_with_that_status() -> None:
    wire = Wire()
    wire.read(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nframe")
    assert (wire.reply().status, wire.aborted) == (101, True)


# -- compressed, though nobody asked ------------------------------------------------------------------


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


PACKED = {
    "gzip": ("gzip", gzip.compress(STREAM)),
    "GZIP": ("GZIP", gzip.compress(STREAM)),
    "deflate": ("deflate", zlib.compress(STREAM)),
    "deflate without a header": ("deflate", raw_deflate(STREAM)),
    "identity": ("identity", STREAM),
}


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("framed", ["with a length", "in chunks"])
def test_a_compressed_answer_is_unpacked_however_it_is_split(packed: str, framed: str) -> None:
    name, body = PACKED[packed]
    header = f"Content-Encoding: {name}"
    data = http(body, header) if framed == "with a length" else chunked(body[:20], body[20:], headers=(header,))
    for cut in range(1, len(data)):
        wire = Wire()
        wire.read(data[:cut], data[cut:])
        assert (wire.reply().body, wire.returned) == (STREAM, 1)
        assert wire.reply().reads[-1][0] == len(STREAM)


def test_the_stamps_of_a_compressed_stream_are_of_the_reads_in_which_its_events_came() -> None:
    packer = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    chunks = [packer.compress(event) + packer.flush(zlib.Z_SYNC_FLUSH) for event in EVENTS] + [packer.flush()]
    wire = Wire()
    head, *pieces = [b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks]
    wire.read(chunked(headers=("Content-Encoding: gzip",))[:-5] + head, *pieces, b"0\r\n\r\n")
    assert wire.reply().body == STREAM
    ends = list(itertools.accumulate(map(len, EVENTS)))
    assert list(wire.reply().reads)[: len(EVENTS)] == [(end, float(number)) for number, end in enumerate(ends)]


@pytest.mark.parametrize("name", ["gzip", "deflate"])
@pytest.mark.parametrize("cut", [1, 5, 20, -1])
def test_a_compressed_answer_that_breaks_off_is_cut(name: str, cut: int) -> None:
    wire = Wire()
    wire.read(http(PACKED[name][1][:cut], f"Content-Encoding: {name}"))
    with pytest.raises(APIResponseError, match="stopped before its end") as caught:
        wire.reply()
    assert caught.value.truncated
    assert wire.aborted


def test_what_is_not_compressed_though_it_says_so_is_cut() -> None:
    wire = Wire()
    wire.read(http(STREAM, "Content-Encoding: gzip"))
    with pytest.raises(APIResponseError, match="not valid compressed data") as caught:
        wire.reply()
    assert caught.value.truncated


@pytest.mark.parametrize("status", ["200 OK", "204 No Content", "429 Too Many Requests"])
def test_nothing_needs_no_compression(status: str) -> None:
    wire = Wire()
    wire.read(http(b"", "Content-Encoding: gzip", status=status))
    assert (wire.reply().body, wire.reply().status, wire.returned) == (b"", int(status[:3]), 1)


@pytest.mark.parametrize("packed", ["gzip", "deflate"])
def test_a_small_answer_that_becomes_a_large_one_is_refused_in_time(
    packed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a byte more than the limit is unpacked."""
    monkeypatch.setattr(plain, "MAX_BODY_BYTES", 1_000_000)
    zeros = bytes(300_000_000)
    body = gzip.compress(zeros, 9) if packed == "gzip" else zlib.compress(zeros, 9)
    wire = Wire()
    data = http(body, f"Content-Encoding: {packed}")
    wire.read(*(data[at : at + 60_000] for at in range(0, len(data), 60_000)))
    with pytest.raises(APIResponseError, match=r"^the answer is longer than 1,000,000 bytes$"):
        wire.reply()
    assert wire.aborted


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "x"])
def test_an_encoding_that_we_cannot_read_is_named(encoding: str) -> None:
    wire = Wire()
    wire.read(http(b"\x8b\x02\x80", f"Content-Encoding: {encoding}"))
    with pytest.raises(APIResponseError, match=f"^the answer is encoded as {encoding}, unasked$"):
        wire.reply()


def test_a_refusal_in_an_encoding_that_we_cannot_read_is_still_that_refusal() -> None:
    wire = Wire()
    wire.read(http(b"\x8b\x02\x80", "Content-Encoding: br", "Retry-After: 7", status="429 Too Many Requests"))
    assert (wire.reply().status, wire.reply().headers["retry-after"]) == (429, "7")


# -- over real sockets ----------------------------------------------------------------------------------


@on_both_loops
async def test_chunks_split_at_every_byte_over_a_real_socket() -> None:
    """The end over two reads, too: each answer is two writes, with the loop looking in between."""
    data, body = ANSWERS["with trailers"]
    places = iter(range(1, len(data)))

    async def script(asked: bytes, writer: Any) -> None:
        cut = next(places)
        writer.write(data[:cut])
        await turns(3)
        writer.write(data[cut:])

    async with serving(script) as server, sending(server.url) as transport:
        for _ in range(1, len(data)):
            assert (await ask(transport)).body == body
    assert server.connections == 1


@pytest.mark.parametrize("name", ANSWERS)
@on_both_loops
async def test_every_framing_over_a_real_socket_a_few_bytes_at_a_time(name: str) -> None:
    data, body = ANSWERS[name]

    async def script(asked: bytes, writer: Any) -> None:
        for at in range(0, len(data), 7):
            writer.write(data[at : at + 7])
            await asyncio.sleep(0)

    async with serving(script) as server, sending(server.url) as transport:
        for _ in range(3):
            assert (await ask(transport)).body == body
    assert server.connections == 1


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@on_both_loops
async def test_an_answer_that_ends_with_the_connection(version: str) -> None:
    async def script(asked: bytes, writer: Any) -> None:
        data = http(STREAM, length=-1).replace(b"HTTP/1.1", b"HTTP/" + version.encode())
        for at in range(0, len(data), 11):
            writer.write(data[at : at + 11])
            await turns(2)
        writer.close()

    async with serving(script) as server:
        reply = await ask_once(server.url)
    assert (reply.body, reply.reads[-1][0]) == (STREAM, len(STREAM))
    assert len(reply.reads) > 3
    stamps = [stamp for _, stamp in reply.reads]
    assert stamps == sorted(stamps)


@on_both_loops
async def test_an_answer_of_50_mb_in_chunks() -> None:
    """In linear time: what was read is not looked at again with every read."""

    async def script(asked: bytes, writer: Any) -> None:
        writer.write(chunked()[:-5])
        for number in range(800):
            writer.write(b"%x\r\n%s\r\n" % (65_536, bytes([number % 256]) * 65_536))
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    async with serving(script) as server:
        async with asyncio.timeout(10):
            reply = await ask_once(server.url)
    assert len(reply.body) == 800 * 65_536


def both(*reads: bytes) -> Sequence[bytes]:
    return reads


@pytest.mark.parametrize(
    ("reads", "error"),
    [
        pytest.param(both(), APIConnectionError, id="nothing"),
        pytest.param(both(b"HTTP/1.1 2"), APIConnectionError, id="in the status line"),
        pytest.param(both(chunked(*EVENTS)[:-1]), APIResponseError, id="the last byte missing"),
        pytest.param(both(http(STREAM)[:-1]), APIResponseError, id="the last byte of a length missing"),
        pytest.param(both(chunked(b"x")[:-5], b"zz\r\n\r\n"), APIResponseError, id="a chunk without a size"),
        pytest.param(both(b"\x15\x03\x01\x00\x02\x02\x28"), APIError, id="TLS"),
    ],
)
@both_forms
def test_an_end_too_early_is_an_error_with_what_was_missing(
    reads: Sequence[bytes], error: type[APIError], form: str
) -> None:
    wire = Wire(form)
    wire.read(*reads)
    wire.end()
    with pytest.raises(error):
        wire.reply()
    assert wire.returned == 0
