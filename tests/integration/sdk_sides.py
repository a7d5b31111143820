"""The official SDK and cbatch's drop-in side by side: the same calls, and what a user sees of them as plain values."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import socketserver
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

KEY = "csk-conformance-0123456789"
MODEL = "gpt-oss-120b"
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "What is 2 + 2?"}], "model": MODEL}

# Different in every answer, whoever asks.
_VOLATILE = ("id", "created", "time_info", "date")


class Side:
    """One of the two, with or without `await`: what a scenario does, it does to either."""

    def __init__(self, sdk: Any, url: str, *, is_async: bool) -> None:
        self.sdk, self.url, self.is_async = sdk, url, is_async
        self._loop = asyncio.new_event_loop() if is_async else None
        self._clients: list[Any] = []

    def client(self, **options: Any) -> Any:
        """A client of this side."""
        kind = self.sdk.AsyncCerebras if self.is_async else self.sdk.Cerebras
        made = kind(**{"api_key": KEY, "base_url": self.url, "warm_tcp_connection": False, **options})
        self._clients.append(made)
        return made

    def do(self, result: Any) -> Any:
        """The result, waited for where that is due."""
        if not inspect.isawaitable(result):
            return result
        assert self._loop is not None

        async def wait() -> Any:
            return await result

        return self._loop.run_until_complete(wait())

    def create(self, client: Any = None, **fields: Any) -> Any:
        """The answer to one request."""
        return self.do((client or self.client()).chat.completions.create(**{**ASK, **fields}))

    def chunks(self, stream: Any) -> list[Any]:
        """All of a stream."""
        if not self.is_async:
            return list(stream)

        async def collect() -> list[Any]:
            return [chunk async for chunk in stream]

        found: list[Any] = self.do(collect())
        return found

    def inside(self, context: Any, work: Any) -> Any:
        """What `work` returns inside of a context manager."""
        if not self.is_async:
            with context as entered:
                return work(entered)

        async def within() -> Any:
            async with context as entered:
                found = work(entered)
                return await found if inspect.isawaitable(found) else found

        return self.do(within())

    def seen(self, scenario: Any) -> Any:
        """What a user sees of a scenario: its values, or its exception."""
        try:
            try:
                return plain(scenario(self))
            except Exception as exc:  # noqa: BLE001  that is what is compared
                return {"raised": error(exc)}
        finally:
            for client in self._clients:
                self.do(client.close())
            if self._loop is not None:
                self._loop.run_until_complete(self._loop.shutdown_asyncgens())
                self._loop.close()


def error(exc: BaseException) -> dict[str, Any]:
    """What a user can ask of an exception."""
    found: dict[str, Any] = {
        "type": [one.__name__ for one in type(exc).__mro__ if one not in (object, BaseException, Exception)],
        "str": str(exc),
        "args": list(exc.args),
    }
    for name in ("message", "body", "status_code"):
        if hasattr(exc, name):
            found[name] = plain(getattr(exc, name))
    if (response := getattr(exc, "response", None)) is not None:
        found["response"] = {
            "status_code": response.status_code,
            "headers": {k: v for k, v in response.headers.items() if k != "date" and "-reset-" not in k},
            "text": _text(response),
        }
    if (request := getattr(exc, "request", None)) is not None:
        found["request"] = [request.method, str(request.url), request.headers.get("content-type")]
    return found


def _text(response: Any) -> str | None:
    """The content; None where it was streamed and is kept by nobody."""
    try:
        found: str = response.text
    except RuntimeError:
        return None
    return found


def plain(value: Any) -> Any:
    """A value with the names of its types, without what differs from answer to answer."""
    if hasattr(value, "model_dump"):
        return {
            "type": type(value).__name__,
            "dump": _steady(value.model_dump()),
            "json": _steady(json.loads(value.model_dump_json())),
            "to_dict": _steady(value.to_dict()),
            "to_json": _steady(json.loads(value.to_json())),
            "parts": {name: type(getattr(value, name)).__name__ for name in type(value).model_fields},
            "extra": value.model_extra,
            "set": sorted(value.model_fields_set),
            "str": re.sub(r"(id|_time|created)=('[^']*'|[\d.e-]+)", r"\1=…", str(value)),
        }
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: sorted(item) if key == "time_info" and item else "…" if key in _VOLATILE and item else _steady(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_steady(item) for item in value]
    return value


@contextmanager
def scripted(*answers: bytes, hold: bool = False) -> Iterator[tuple[str, list[bytes]]]:
    """A server in a thread that answers the n-th request with these bytes and closes; the last one again and again.

    `hold` falls silent instead of closing.
    """
    asked: list[bytes] = []
    over = threading.Event()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                if not (line := self.rfile.readline()):
                    return
                head += line
            length = re.search(rb"(?i)content-length: (\d+)", head)
            asked.append(head + (self.rfile.read(int(length[1])) if length else b""))
            self.wfile.write(answers[min(len(asked), len(answers)) - 1])
            self.wfile.flush()
            if hold:
                over.wait(30)

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that has gone is none of ours."""

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            over.set()
            server.shutdown()
            thread.join()


def http(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    """One answer; `length` overrides the true Content-Length."""
    lines = [f"HTTP/1.1 {status}", *(headers or ("Content-Type: application/json",)), "Connection: close"]
    return "\r\n".join([*lines, f"Content-Length: {len(body) if length is None else length}", "", ""]).encode() + body


def events(*data: object, end: bytes = b"0\r\n\r\n", names: tuple[str, ...] = ()) -> bytes:
    """A stream of these, in one chunk each, ended by `end`."""
    lines = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    for place, one in enumerate(data):
        text = one if isinstance(one, str) else json.dumps(one)
        name = f"event: {names[place]}\n" if place < len(names) and names[place] else ""
        event = f"{name}data: {text}\n\n".encode()
        lines += b"%x\r\n%s\r\n" % (len(event), event)
    return lines + end


def chunk(delta: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """A chunk of an answer."""
    choice = {"delta": delta, "index": 0, **({"finish_reason": more.pop("finish")} if "finish" in more else {})}
    return {
        "id": "chatcmpl-1",
        "choices": [choice],
        "created": 1,
        "model": MODEL,
        "system_fingerprint": "fp_1",
        "object": "chat.completion.chunk",
        **more,
    }
