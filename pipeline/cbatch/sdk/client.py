"""Cerebras and AsyncCerebras: the official SDK's clients, by their names and arguments."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import CancelledError
from contextlib import suppress
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from cbatch import __version__
from cbatch.sdk import body as bodies
from cbatch.sdk import errors
from cbatch.sdk.calls import Call, Wanted
from cbatch.sdk.given import NotGiven, Omit, not_given
from cbatch.sdk.resources import (
    AsyncChatResource,
    AsyncCompletionsResource,
    AsyncModelsResource,
    ChatResource,
    CompletionsResource,
    ModelsResource,
)
from cbatch.sdk.response import APIResponse, AsyncAPIResponse
from cbatch.sdk.settings import address_of, core_of, environment_headers, key_of, merged
from cbatch.sdk.web import DEFAULT_TIMEOUT, URL, Request, Response, Timeout

if TYPE_CHECKING:
    from typing import Self

    from cbatch.sdk.core import Ask, Core, Taken
    from cbatch.sdk.wire import Head

T = TypeVar("T")

DEFAULT_MAX_RETRIES = 2
WARM_S = 1.0  # for a connection that is opened before it is needed


class _Client:
    """What both clients are: settings, and a Core that copies share."""

    is_async = False

    def __init__(
        self,
        *,
        api_key: str | None = None,
        base_url: str | URL | None = None,
        timeout: float | Timeout | Any | NotGiven | None = not_given,
        max_retries: int = DEFAULT_MAX_RETRIES,
        default_headers: Mapping[str, str] | None = None,
        default_query: Mapping[str, object] | None = None,
        http_client: None = None,
        _strict_response_validation: bool = False,
        warm_tcp_connection: bool = True,
        _core: Core | None = None,
    ) -> None:
        """The key is `api_key`, else looked for where the commands look; the address `base_url`, CEREBRAS_BASE_URL.

        `timeout` is seconds, or an object with `connect` and `read` such as Timeout; None waits for ever.
        Raises CerebrasError where there is no key, TypeError for an `http_client`: connections are cbatch's own.
        """
        if http_client is not None:
            raise TypeError(
                "http_client is not supported: cbatch has connections of its own; leave it out "
                "(a proxy is taken from HTTPS_PROXY, headers from default_headers, times from timeout)"
            )
        if max_retries is None:
            raise TypeError("max_retries cannot be None; 0 does not retry, math.inf never gives up, 2 is the default")
        self._core_is_ours = _core is None
        self._base_url = address_of(base_url)
        self._api_key = key_of(api_key)
        self.timeout: Any = DEFAULT_TIMEOUT if isinstance(timeout, NotGiven) else timeout
        self.max_retries = max_retries
        self._custom_headers = dict(environment_headers() if _core is None else {}) | dict(default_headers or {})
        self._custom_query = dict(default_query or {})
        self._strict_response_validation = _strict_response_validation
        self._closed = False
        self._core = _core or core_of(str(self._base_url), self._api_key, self.timeout)
        self._head: Head | None = None  # of a request without headers of its own
        if warm_tcp_connection and _core is None:
            self._warm()

    # -- settings ---------------------------------------------------------------------------------

    @property
    def api_key(self) -> str:
        """The key in use; another one needs another client, or `copy`."""
        return self._api_key

    @property
    def base_url(self) -> URL:
        """The address in use, as it was given, with a slash at its end."""
        return self._base_url

    @property
    def auth_headers(self) -> dict[str, str]:
        """The header that carries the key."""
        return {"Authorization": f"Bearer {self._api_key}"}

    @property
    def default_headers(self) -> dict[str, Any]:
        """The headers of every request."""
        return {
            "Accept": "application/json",
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",  # small answers: gunzip would cost more than it saves
            "User-Agent": f"cbatch/{__version__}",
            "X-Cerebras-3rd-Party-Integration": "cbatch",
            **self.auth_headers,
            **self._custom_headers,
        }

    @property
    def default_query(self) -> dict[str, object]:
        """The query of every request."""
        return dict(self._custom_query)

    def copy(
        self,
        *,
        api_key: str | None = None,
        base_url: str | URL | None = None,
        timeout: float | Timeout | Any | NotGiven | None = not_given,
        http_client: None = None,
        max_retries: int | NotGiven = not_given,
        default_headers: Mapping[str, str] | None = None,
        set_default_headers: Mapping[str, str] | None = None,
        default_query: Mapping[str, object] | None = None,
        set_default_query: Mapping[str, object] | None = None,
        warm_tcp_connection: bool = True,
        _extra_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """The same client with other settings; it shares the connections unless key or address change."""
        for name, one, other in (
            ("default_headers", default_headers, set_default_headers),
            ("default_query", default_query, set_default_query),
        ):
            if one is not None and other is not None:
                raise ValueError(f"The `{name}` and `set_{name}` arguments are mutually exclusive")
        same = (api_key or self.api_key, base_url or self.base_url) == (self.api_key, self.base_url)
        headers = {**self._custom_headers, **(default_headers or {})}
        params = {**self._custom_query, **(default_query or {})}
        options: dict[str, Any] = {
            "api_key": api_key or self.api_key,
            "base_url": base_url or self.base_url,
            "timeout": self.timeout if isinstance(timeout, NotGiven) else timeout,
            "max_retries": self.max_retries if isinstance(max_retries, NotGiven) else max_retries,
            "default_headers": headers if set_default_headers is None else set_default_headers,
            "default_query": params if set_default_query is None else set_default_query,
            "_strict_response_validation": self._strict_response_validation,
            "warm_tcp_connection": warm_tcp_connection,
            "http_client": http_client,
            **(_extra_kwargs or {}),
        }
        return type(self)(**options, _core=self._core if same else None)

    with_options = copy

    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed or self._core.closed

    # -- one call -----------------------------------------------------------------------------------

    def _ask(self, call: Call) -> Ask:
        from cbatch.sdk.core import Ask
        from cbatch.sdk.wire import Head

        if self._closed:
            request = Request(call.method, self._base_url.rstrip("/") + call.path, {})
            raise errors.APIConnectionError(request=request) from RuntimeError("the client has been closed")
        fields = call.fields
        has_body = fields is not None or call.content is not None
        if call.extra_headers or not has_body:
            nothing = {} if has_body else {"Content-Type": Omit()}
            head = Head.of(merged(self.default_headers, nothing, call.extra_headers or {}))
        else:
            head = self._head = self._head or Head.of(merged(self.default_headers))
        timeout = self.timeout if isinstance(call.timeout, NotGiven) else call.timeout
        limit = (fields.get("max_completion_tokens") or fields.get("max_tokens")) if fields else None
        answers = fields.get("n") if fields else None
        root = self._core.endpoint.base_url.removesuffix("/v1")
        path = call.path if call.path.startswith("/") else "/" + call.path
        return Ask(
            method=call.method,
            url=root + path + bodies.query({**self._custom_query, **call.query}),
            head=head,
            body=bodies.encode(fields) if fields is not None else call.content,
            read_s=timeout.read if hasattr(timeout, "read") else timeout,
            max_retries=self.max_retries if call.max_retries is None else call.max_retries,
            is_json=call.wanted.kind not in (None, str, bytes, int, float, bool, Response),
            model=call.model,
            limit_tokens=limit if type(limit) is int and limit > 0 else None,
            answers=answers if type(answers) is int and answers > 0 else 1,
        )

    def _custom(self, method: str, path: str, cast_to: Any, options: Mapping[str, Any], **more: Any) -> Call:
        """A call of an address that has no method of its own."""
        fields, extra = more.get("body"), options.get("extra_json")
        return Call(
            method=method,
            path=path,
            wanted=Wanted(
                load=lambda: (cast_to, cast_to),
                stream=bool(more.get("stream")),
                is_async=self.is_async,
                strict=self._strict_response_validation,
            ),
            fields={**(fields or {}), **(extra or {})} if fields is not None or extra is not None else None,
            content=more.get("content"),
            query=options.get("params") or {},
            extra_headers=options.get("headers"),
            timeout=options.get("timeout", not_given),
            max_retries=options.get("max_retries"),
        )

    def _warm(self) -> None:
        raise NotImplementedError

    def _warming(self) -> Any:
        """What opens a connection before it is needed, and never fails."""
        call = self._custom("GET", "/v1/tcp_warming", str, {"timeout": WARM_S, "max_retries": 0})
        core, ask = self._core, self._ask(call)

        async def warm() -> None:
            with suppress(errors.CerebrasError):
                await core.fetch(ask)

        return warm()


class Cerebras(_Client):
    """The client for code without `await`: its requests run in one background loop, from any thread."""

    @cached_property
    def chat(self) -> ChatResource:
        """Chat completions."""
        return ChatResource(self)

    @cached_property
    def completions(self) -> CompletionsResource:
        """Text completions."""
        return CompletionsResource(self)

    @cached_property
    def models(self) -> ModelsResource:
        """The models that the key sees."""
        return ModelsResource(self)

    @cached_property
    def with_raw_response(self) -> _Raw[Cerebras]:
        """The same methods, which give the response itself."""
        return _Raw(self, "with_raw_response")

    @cached_property
    def with_streaming_response(self) -> _Raw[Cerebras]:
        """The same methods, as context managers that give the response itself."""
        return _Raw(self, "with_streaming_response")

    def close(self) -> None:
        """Close the connections, unless this is a copy of the client that has them."""
        self._closed = True
        if self._core_is_ours and not self._core.closed:
            from cbatch.sdk import background

            background.run(self._core.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def get(self, path: str, *, cast_to: Any, options: Mapping[str, Any] = {}, stream: bool = False) -> Any:
        """GET an address that has no method of its own."""
        return self._do(self._custom("GET", path, cast_to, options, stream=stream))

    def post(
        self,
        path: str,
        *,
        cast_to: Any,
        body: Any = None,
        content: bytes | None = None,
        options: Mapping[str, Any] = {},
        stream: bool = False,
    ) -> Any:
        """POST to an address that has no method of its own."""
        return self._do(self._custom("POST", path, cast_to, options, body=body, content=content, stream=stream))

    def _warm(self) -> None:
        from cbatch.sdk import background

        background.start(self._warming())

    def _take(self, call: Call) -> Taken:
        from cbatch.sdk import background
        from cbatch.sdk.feed import ThreadFeed

        ask = self._ask(call)
        try:
            return background.run(self._core.fetch(ask, ThreadFeed if call.wanted.stream else None))
        except CancelledError:
            raise errors.APIConnectionError(request=ask.shown()) from RuntimeError("the interpreter is ending")

    def _do(self, call: Call) -> Any:
        taken = self._take(call)
        return call.wanted.parsed(taken.response, taken.data)

    def _do_raw(self, call: Call) -> APIResponse[Any]:
        taken = self._take(call)
        return APIResponse(taken.response, call.wanted, data=taken.data, retries_taken=taken.retries)


class AsyncCerebras(_Client):
    """The client for code with `await`; usable from several event loops, one after the other or at once."""

    is_async = True

    @cached_property
    def chat(self) -> AsyncChatResource:
        """Chat completions."""
        return AsyncChatResource(self)

    @cached_property
    def completions(self) -> AsyncCompletionsResource:
        """Text completions."""
        return AsyncCompletionsResource(self)

    @cached_property
    def models(self) -> AsyncModelsResource:
        """The models that the key sees."""
        return AsyncModelsResource(self)

    @cached_property
    def with_raw_response(self) -> _Raw[AsyncCerebras]:
        """The same methods, which give the response itself."""
        return _Raw(self, "with_raw_response")

    @cached_property
    def with_streaming_response(self) -> _Raw[AsyncCerebras]:
        """The same methods, as context managers that give the response itself."""
        return _Raw(self, "with_streaming_response")

    async def close(self) -> None:
        """Close the connections, unless this is a copy of the client that has them."""
        self._closed = True
        if self._core_is_ours and not self._core.closed:
            await self._core.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def get(self, path: str, *, cast_to: Any, options: Mapping[str, Any] = {}, stream: bool = False) -> Any:
        """GET an address that has no method of its own."""
        return await self._do(self._custom("GET", path, cast_to, options, stream=stream))

    async def post(
        self,
        path: str,
        *,
        cast_to: Any,
        body: Any = None,
        content: bytes | None = None,
        options: Mapping[str, Any] = {},
        stream: bool = False,
    ) -> Any:
        """POST to an address that has no method of its own."""
        return await self._do(self._custom("POST", path, cast_to, options, body=body, content=content, stream=stream))

    def _warm(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # made before its loop runs: the first request opens the connection
            return
        task = loop.create_task(self._warming())
        _warming.add(task)
        task.add_done_callback(_warming.discard)

    async def _take(self, call: Call) -> Taken:
        from cbatch.sdk.feed import LoopFeed

        return await self._core.fetch(self._ask(call), LoopFeed if call.wanted.stream else None)

    async def _do(self, call: Call) -> Any:
        taken = await self._take(call)
        return call.wanted.parsed(taken.response, taken.data)

    async def _do_raw(self, call: Call) -> AsyncAPIResponse[Any]:
        taken = await self._take(call)
        return AsyncAPIResponse(taken.response, call.wanted, data=taken.data, retries_taken=taken.retries)


_warming: set[asyncio.Task[None]] = set()  # a loop alone does not keep its tasks


class _Raw(Generic[T]):
    """`client.with_raw_response.chat.completions` is `client.chat.completions.with_raw_response`."""

    def __init__(self, owner: Any, name: str) -> None:
        self._owner, self._name = owner, name

    def __getattr__(self, part: str) -> Any:
        found = getattr(self._owner, part)
        if part in ("chat",):
            return _Raw(found, self._name)
        return getattr(found, self._name)
