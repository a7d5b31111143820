"""Request -> Completion | APIError: the only file that calls the API.

Bytes go in, bytes come out. What came out is turned into a Completion or into a typed error by
`read_completion`, a pure function, so that every shape of answer is tested without a socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import aiohttp
import orjson
from aiohttp import hdrs
from yarl import URL

from cbatch import __version__
from cbatch.errors import (
    APIConnectionError,
    APIError,
    APIResponseError,
    APIStatusError,
    APITimeoutError,
    APIUnreachableError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    UnprocessableEntityError,
)
from cbatch.schema import Completion, TimeInfo, Usage

DEFAULT_BASE_URL = "https://api.cerebras.ai"
MESSAGE_CHARS = 2_000  # of a server's message that a row keeps
KEY_CHARS = 16  # a shorter key, such as EMPTY, may be a word of an answer
EXCERPT = 200  # characters of an unexpected body that a message quotes

_BY_STATUS: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    422: UnprocessableEntityError,
    429: RateLimitError,
}


def normalise_base_url(url: str) -> str:
    """The address with exactly one `/v1` at its end, however it was given. Raises ValueError if it is no URL."""
    if "@" in url:  # first of all checks: what follows quotes the address
        raise ValueError("an address with a user name or password in it is not accepted")
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is not a http:// or https:// URL")
    try:
        parts.hostname.encode("idna")  # what the resolver does; an empty or too long label is a UnicodeError
        if parts.port == 0 or any(c.isspace() or c == "\\" for c in parts.netloc):
            raise ValueError
    except ValueError:
        raise ValueError(f"{url!r} has a host or a port that cannot be") from None
    path = parts.path.rstrip("/")
    if not path.endswith("/v1"):
        path += "/v1"
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where to send and how: `base_url` ends in /v1; `key` is None where none is needed."""

    base_url: str
    key: str | None = None
    proxy: str | None = None
    connect_s: float = 10.0
    total_s: float = 180.0

    def __repr__(self) -> str:
        """Without the key: this object ends up in tracebacks."""
        return f"Endpoint({self.base_url!r}, key={'…' if self.key else None})"


@dataclass(slots=True)
class Reply:
    """One HTTP answer, unread."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Client:
    """One pooled session to one endpoint; made by `connect`."""

    def __init__(self, endpoint: Endpoint, session: aiohttp.ClientSession) -> None:
        self.endpoint = endpoint
        self._session = session
        self._chat = URL(endpoint.base_url + "/chat/completions")
        self._public = URL(endpoint.base_url.removesuffix("/v1") + "/public/v1/models")
        self._models = URL(endpoint.base_url + "/models")
        self._key_bytes = endpoint.key.encode() if endpoint.key else None
        self._key_in_answers = len(endpoint.key or "") >= KEY_CHARS
        self._loop = asyncio.get_running_loop()
        self._until: dict[asyncio.Task[Any], float] = {}  # who is on the wire: deadline, of the loop's clock
        self._late: set[asyncio.Task[Any]] = set()
        self._sweeper: asyncio.TimerHandle | None = None

    async def complete(self, body: bytes, deadline_s: float | None = None) -> Completion:
        """Send one chat completion request; a whole answer may take `deadline_s`. Raises APIError."""
        reply = await self._exchange(hdrs.METH_POST, self._chat, body, deadline_s)
        return read_completion(reply)

    async def models(self) -> list[dict[str, Any]]:
        """The models this key sees, as the server describes them. Raises APIError."""
        return _listing(await self._exchange(hdrs.METH_GET, self._models))

    async def public_models(self) -> list[dict[str, Any]]:
        """All public models with context and prices; needs no key. Raises APIError."""
        return _listing(await self._exchange(hdrs.METH_GET, self._public))

    async def _exchange(
        self, method: str, url: URL, body: bytes | None = None, deadline_s: float | None = None
    ) -> Reply:
        task = asyncio.current_task()
        assert task is not None
        total_s = deadline_s or self.endpoint.total_s
        self._until[task] = self._loop.time() + total_s
        if self._sweeper is None:
            self._sweep()
        try:
            # A redirect is not followed: it would carry the key to another host.
            # No `async with`: `read` gives the connection back at the last byte, and closes it on any error.
            response = await self._session.request(method, url, data=body, allow_redirects=False)
            answer = await response.read()
            # Messages and texts are kept: a key never is.
            if self._key_bytes is not None and (self._key_in_answers or response.status != 200):
                answer = answer.replace(self._key_bytes, b"(key removed)")
            return Reply(response.status, response.headers, answer)
        except asyncio.CancelledError:
            # Ours, if the sweeper did it and nobody else did.
            if task in self._late and task.uncancel() == 0:
                raise APITimeoutError(f"no whole answer within {total_s:.3g} s") from None
            raise
        except TimeoutError:
            raise APIUnreachableError(f"no connection within {self.endpoint.connect_s:g} s") from None
        except aiohttp.ClientPayloadError as exc:
            raise APIResponseError(
                f"the answer stopped before its end: {self._keyless(exc)}", code="truncated", truncated=True
            ) from None
        except aiohttp.ServerDisconnectedError:
            raise APIConnectionError("the server closed the connection without an answer") from None
        except aiohttp.ClientHttpProxyError as exc:  # the API's host was not reached
            raise APIUnreachableError(
                f"the proxy refused the tunnel: HTTP {exc.status} {self._keyless(exc.message)}"
            ) from None
        except aiohttp.ClientResponseError as exc:  # not HTTP, or HTTP that cannot be parsed
            said = self._keyless(exc.message)
            raise APIResponseError(f"the answer is not valid HTTP: {said}", code="bad_http") from None
        except aiohttp.ClientConnectorError as exc:
            why = exc.os_error.strerror or str(exc.os_error) or type(exc.os_error).__name__
            raise APIUnreachableError(f"cannot connect to {exc.host}:{exc.port}: {why}") from None
        except (aiohttp.ClientError, OSError, UnicodeError) as exc:  # UnicodeError: a host name with an empty label
            raise APIConnectionError(f"{type(exc).__name__}: {self._keyless(exc)}") from None
        finally:
            del self._until[task]
            self._late.discard(task)

    def _keyless(self, said: object) -> str:
        """What the HTTP library says, which quotes headers, without the key."""
        key = self.endpoint.key
        return str(said).replace(key, "(key removed)") if key else str(said)

    def _sweep(self) -> None:
        """Cancel the requests that take too long.

        One timer for all of them: the library's own timers, two a request, were 12 % of the CPU of a
        request at 1,000 in flight.
        """
        now = self._loop.time()
        for task, until in self._until.items():
            if until <= now and task not in self._late:
                self._late.add(task)
                task.cancel()
        self._sweeper = self._loop.call_later(min(0.5, self.endpoint.total_s / 10), self._sweep)

    def close(self) -> None:
        """Stop sweeping."""
        if self._sweeper is not None:
            self._sweeper.cancel()


@asynccontextmanager
async def connect(endpoint: Endpoint) -> AsyncIterator[Client]:
    """A client whose connections live as long as the block."""
    headers = {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "Accept-Encoding": "identity",  # small answers: gunzip would cost more than it saves
        "User-Agent": f"cbatch/{__version__}",
        "X-Cerebras-3rd-Party-Integration": "cbatch",
    }
    if endpoint.key is not None:
        headers["Authorization"] = f"Bearer {endpoint.key}"
    async with aiohttp.ClientSession(
        # limit=0: the engine's workers are the limit; a second one here would only hide requests in a queue.
        connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300, keepalive_timeout=60),
        headers=headers,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=endpoint.connect_s),  # the rest is swept
        proxy=endpoint.proxy,  # resolved once by the caller: trust_env costs 2-3 x the CPU of a request
        trust_env=False,
    ) as session:
        client = Client(endpoint, session)
        try:
            yield client
        finally:
            client.close()


def read_completion(reply: Reply) -> Completion:
    """The completion in a reply to a chat request.

    Raises APIStatusError for an error status, APIResponseError for a 200 that is not a whole
    completion: HTML from a proxy, cut JSON, an error object, no choices.
    """
    if reply.status != 200:
        raise read_error(reply)
    try:
        answer = orjson.loads(reply.body)
    except orjson.JSONDecodeError as exc:
        raise _not_json(reply, exc) from None
    if not isinstance(answer, dict):
        raise APIResponseError(f"the answer is not a JSON object: {_excerpt(reply.body)}", code="invalid_response")
    choices = answer.get("choices")
    if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
        inner = answer.get("error")
        error = inner if isinstance(inner, dict) else answer
        raise APIResponseError(
            f"status 200 without choices: {_text(error.get('message')) or _excerpt(reply.body)}",
            code=_text(error.get("code")) or "invalid_response",
        )
    choice = choices[0]
    message = choice.get("message")
    if not isinstance(message, dict):
        raise APIResponseError(f"a choice without a message: {_excerpt(reply.body)}", code="invalid_response")
    calls = message.get("tool_calls")
    try:
        orjson.dumps(calls)  # reads 1,024 levels and writes 254: better one row failed than a run that cannot store it
    except TypeError:
        raise APIResponseError("tool calls nested too deeply to be stored", code="invalid_response") from None
    return Completion(
        text=_text(message.get("content")),
        reasoning=_text(message.get("reasoning")) or _text(message.get("reasoning_content")),
        tool_calls=calls if isinstance(calls, list) and calls else None,
        finish_reason=_text(choice.get("finish_reason")),
        usage=_usage(answer.get("usage")),
        time_info=_time_info(answer.get("time_info")),
        request_id=_text(answer.get("id")),
        served_model=_text(answer.get("model")),
        system_fingerprint=_text(answer.get("system_fingerprint")),
        headers=reply.headers,
    )


def read_error(reply: Reply) -> APIStatusError:
    """The typed error in a reply with an error status, whatever shape its body has.

    Shapes: flat JSON, JSON under `error`, `{"detail": …}`, an empty body, HTML or text from a proxy.
    """
    code = kind = param = None
    message: str | None = None
    try:
        body = orjson.loads(reply.body)
    except orjson.JSONDecodeError:
        body = None
    if isinstance(body, dict):
        inner = body.get("error")
        if isinstance(inner, dict):
            body = inner
        elif isinstance(inner, str):
            message = inner
        message = message or _text(body.get("message")) or _text(body.get("detail"))
        code, kind, param = _text(body.get("code")), _text(body.get("type")), _text(body.get("param"))
    if not message:
        message = _excerpt(reply.body) or "no body"
    message = message[:MESSAGE_CHARS]
    error_type = InternalServerError if reply.status >= 500 else _BY_STATUS.get(reply.status, APIStatusError)
    return error_type(
        f"HTTP {reply.status}: {message}",
        status=reply.status,
        code=code,
        type=kind,
        param=param,
        headers=reply.headers,
    )


def _not_json(reply: Reply, exc: orjson.JSONDecodeError) -> APIError:
    head = reply.body.lstrip()[:1]
    if not head:
        return APIResponseError("status 200 with an empty body", code="empty_body", truncated=True)
    if head == b"{":
        return APIResponseError(
            f"the JSON of the answer breaks off or is malformed after {len(reply.body):,} bytes: {exc.msg}",
            code="malformed_json",
            truncated=True,
        )
    return APIResponseError(f"status 200 with something else than JSON: {_excerpt(reply.body)}", code="not_json")


def _listing(reply: Reply) -> list[dict[str, Any]]:
    if reply.status != 200:
        raise read_error(reply)
    try:
        data = orjson.loads(reply.body)["data"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        data = None
    if not isinstance(data, list):
        raise APIResponseError(f"not a list of models: {_excerpt(reply.body)}", code="invalid_response")
    return [item for item in data if isinstance(item, dict) and isinstance(item.get("id"), str)]


def _usage(raw: object) -> Usage:
    if not isinstance(raw, dict):
        return Usage()
    prompt = raw.get("prompt_tokens_details")
    completion = raw.get("completion_tokens_details")
    return Usage(
        prompt_tokens=_count(raw.get("prompt_tokens")),
        cached_tokens=_count(prompt.get("cached_tokens")) if isinstance(prompt, dict) else None,
        completion_tokens=_count(raw.get("completion_tokens")),
        reasoning_tokens=_count(completion.get("reasoning_tokens")) if isinstance(completion, dict) else None,
        total_tokens=_count(raw.get("total_tokens")),
    )


def _time_info(raw: object) -> TimeInfo:
    if not isinstance(raw, dict):
        return TimeInfo()
    return TimeInfo(
        queue_s=_seconds(raw.get("queue_time")),
        prompt_s=_seconds(raw.get("prompt_time")),
        completion_s=_seconds(raw.get("completion_time")),
        total_s=_seconds(raw.get("total_time")),
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < 2**63 else None


def _seconds(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _excerpt(body: bytes) -> str:
    text = " ".join(body[: EXCERPT * 4].decode("utf-8", "replace").split())
    return text if len(text) <= EXCERPT else text[: EXCERPT - 1] + "…"


__all__ = [
    "DEFAULT_BASE_URL",
    "Client",
    "Endpoint",
    "Reply",
    "connect",
    "normalise_base_url",
    "read_completion",
    "read_error",
]
