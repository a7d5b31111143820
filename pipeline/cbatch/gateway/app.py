"""The routes of the gateway: Responses and chat completions in, one account's limits out.

A request goes: guard -> body -> provider and model -> translate (Responses) -> `Upstream.ask` -> translate
back -> counters and log. The first byte is held back until the upstream's first chunk, so that what fails
before it has its own status.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import orjson
from aiohttp import web

from cbatch import __version__, catalog, environment
from cbatch.client import OnChunk, Reply
from cbatch.errors import APIError, CbatchError
from cbatch.gateway.bodies import MAX_BODY_BYTES, decoded, parsed, too_large
from cbatch.gateway.codex import model_catalog
from cbatch.gateway.config import Provider, Route, Settings, Watched
from cbatch.gateway.counters import Counters
from cbatch.gateway.exchange import Exchange
from cbatch.gateway.exchange_log import ExchangeLog
from cbatch.gateway.faults import Problem, Refused, problem_of
from cbatch.gateway.passthrough import Passthrough
from cbatch.gateway.shapes import ChatShape, ResponsesShape
from cbatch.gateway.store import Responses
from cbatch.gateway.streaming import streamed
from cbatch.gateway.upstream import Upstream, Upstreams, written
from cbatch.library import Answer
from cbatch.responses import TranslationError, input_items, target, to_chat, to_response
from cbatch.sse import is_stream

TELL_AGAIN_S = 60.0
MAX_KINDS = 100  # an upstream that makes up codes
PROVIDER = "X-Cbatch-Provider"  # which provider one request goes to
JSON = {"Content-Type": "application/json"}
_ACCOUNTS = (401, 402, 403, 429)  # what the user of the gateway can do something about
_TOLD = ("x-request-id", "x-ratelimit-", "cf-ray")  # headers of the upstream that a client gets

EXCHANGE = web.RequestKey("exchange", Exchange)


class Gateway:
    """One gateway; `make` gives the upstream of a provider, still to be opened."""

    def __init__(
        self,
        *,
        watched: Watched,
        upstreams: Upstreams,
        make: Callable[[Provider, Settings], Upstream],
        passthrough: Passthrough,
        store: Responses,
        counters: Counters,
        log: ExchangeLog | None,
        client_key: str | None,
        local: bool,
        notify: Callable[[str], None],
    ) -> None:
        self.watched, self.upstreams, self.counters = watched, upstreams, counters
        self._make, self._passthrough, self._store, self._log = make, passthrough, store, log
        self._client_key = client_key.encode() if client_key else None
        self._local = local
        self._notify = notify
        self._told: dict[tuple[int, str | None], float] = {}  # failures by kind, and when they were told last

    def app(self) -> web.Application:
        """The routes, with and without /v1."""
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._guarded])
        for prefix in ("/v1", ""):
            app.router.add_post(f"{prefix}/responses", self.responses)
            app.router.add_get(f"{prefix}/responses", self.probe, allow_head=False)
            app.router.add_get(f"{prefix}/responses/{{id}}", self.stored)
            app.router.add_delete(f"{prefix}/responses/{{id}}", self.delete)
            app.router.add_post(f"{prefix}/chat/completions", self.chat)
            app.router.add_get(f"{prefix}/models", self.models)
            app.router.add_get(f"{prefix}/models/{{id:.+}}", self.model)
        app.router.add_get("/health", self.health)
        app.router.add_get("/metrics", self.metrics)
        return app

    # -- every request --------------------------------------------------------------------------

    @web.middleware
    async def _guarded(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Who may ask at all; every error as the JSON that OpenAI clients read; what is asked is counted."""
        exchange = request[EXCHANGE] = Exchange(
            id=f"resp_{secrets.token_hex(16)}", route=request.path.removeprefix("/v1"), keeps=self._log is not None
        )
        exchange.came_from(request.headers)
        asks = request.method == "POST"
        allowed: str | None = None
        try:
            self._check(request)
            response = await handler(request)
        except Refused as refused:
            problem = refused.problem
        except web.HTTPException as exc:  # the router's: no such route, or not with this method
            problem, allowed = _unrouted(request, exc), exc.headers.get("Allow")
        except (asyncio.CancelledError, ConnectionError):
            if exchange.problem is None:
                exchange.outcome, exchange.status = "cancelled", 499
            self._close(exchange, asks)
            raise
        except Exception as exc:
            message = f"{type(exc).__name__}: {exc}"
            self._notify(f"cbatch has a bug: {exchange.route}: {message}")
            problem = Problem(status=500, message=f"the gateway has a bug: {message}")
            if exchange.first_out is not None:  # cut, so that it does not look whole
                exchange.problem, exchange.status, exchange.outcome = problem, 500, "failed"
                self._close(exchange, asks)
                raise ConnectionResetError(problem.message) from exc
        else:
            if exchange.problem is None:
                exchange.status = response.status
            self._close(exchange, asks)
            return response
        exchange.problem, exchange.status, exchange.outcome = problem, problem.status, "failed"
        self._close(exchange, asks)
        headers = problem.headers() | ({"Allow": allowed} if allowed else {})
        return web.Response(status=problem.status, body=problem.body(), headers=headers)

    def _close(self, exchange: Exchange, asks: bool) -> None:
        problem = exchange.problem
        if problem is not None and exchange.served and (problem.status >= 500 or problem.status in _ACCOUNTS):
            self._tell(problem, exchange)
        if asks:
            self.counters.observe(**exchange.counted())
            if self._log is not None:
                self._log.write(exchange.record(), 2 * exchange.size_bytes + exchange.kept_bytes)

    def _tell(self, problem: Problem, exchange: Exchange) -> None:
        """Say a failure that is not the client's, once in TELL_AGAIN_S: a thousand clients meet the same."""
        now = time.monotonic()
        kind = problem.status, problem.code
        if kind not in self._told and len(self._told) >= MAX_KINDS:
            return
        if now - self._told.get(kind, -TELL_AGAIN_S) >= TELL_AGAIN_S:
            self._told[kind] = now
            self._notify(f"{exchange.provider}: {problem.status}: {problem.message}")

    def _check(self, request: web.Request) -> None:
        """A page in a browser reaches 127.0.0.1, too: it may not spend this machine's quota."""
        if self._local:
            origin = request.headers.get("Origin")
            if not _is_local(f"http://{request.host}") or (origin and not _is_local(origin)):
                message = "this gateway serves programs on its own machine, and no web pages"
                raise Refused(Problem(status=403, message=message, code="forbidden_origin"))
        if self._client_key is None or request.path == "/health":
            return
        scheme, _, given_key = request.headers.get("Authorization", "").partition(" ")
        given = given_key.strip().encode("utf-8", "surrogateescape") if scheme.lower() == "bearer" else b""
        if not hmac.compare_digest(given, self._client_key):
            message = "this gateway wants its own key (--client-key) as Authorization: Bearer …"
            raise Refused(Problem(status=401, message=message, code="invalid_api_key"))

    # -- the Responses API ----------------------------------------------------------------------

    async def responses(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/responses`, streamed or not."""
        exchange = request[EXCHANGE]
        raw, _, body = await self._body(request)
        route = self._route(request, body)
        if route.provider.mode == "responses":
            return await self._passthrough.forward(request, exchange, route, raw, body)
        previous = body.get("previous_response_id")
        try:
            items = input_items(body)
            whole = body if previous is None else {**body, "input": [*self._history(previous), *items]}
            translation = to_chat(whole, target(route.model, self.watched.current().max_completion_tokens))
        except TranslationError as exc:
            raise Refused(Problem(status=400, message=exc.message, param=exc.param, code=exc.code)) from None
        if exchange.keeps:
            exchange.chat = translation.chat
        if exchange.is_codex:  # which does not read them, and they are 30 KB in each of three events
            translation = replace(translation, echo={**translation.echo, "instructions": None, "tools": []})
        written(translation.echo)  # what cannot be written is refused now, and not in the middle of an answer
        upstream = await self._upstream(route.provider)
        chat = translation.chat
        limit = chat.get("max_completion_tokens")

        async def ask(on_chunk: OnChunk | None, on_reply: Callable[[Reply], None] | None) -> Answer:
            return await upstream.ask(
                chat, model=route.model, limit=limit, timeline=exchange.timeline, on_chunk=on_chunk, on_reply=on_reply
            )

        def keep(answer: dict[str, Any]) -> None:  # before the client has it, and goes on from it
            if body.get("store") is not False and answer["status"] in ("completed", "incomplete"):
                self._store.put(exchange.id, previous, [*items, *answer["output"]], answer)

        headers = {"X-Request-Id": exchange.id}
        if translation.stream:
            return await streamed(request, exchange, ResponsesShape(exchange, translation, keep), headers, ask)
        replies: list[Reply] = []
        exchange.answer = await ask(None, replies.append)
        completion = orjson.loads(_unstreamed(replies[-1]))
        created_at = int(exchange.started_at.timestamp())
        answer = to_response(translation, completion, response_id=exchange.id, created_at=created_at)
        keep(answer)
        if exchange.keeps:
            exchange.keep(exchange.upstream, completion, len(replies[-1].body))
            exchange.keep(exchange.events, answer, len(replies[-1].body))
        return web.Response(body=orjson.dumps(answer), headers=JSON | headers | _told(exchange.answer.headers))

    def _history(self, previous: object) -> list[dict[str, Any]]:
        try:
            if isinstance(previous, str):
                return self._store.history(previous)
        except KeyError as exc:
            previous = exc.args[0]
        raise Refused(
            Problem(
                status=400,
                message=f"previous response {str(previous)[:80]!r} is not known here: it is stored in memory, bounded, "
                "unless `store` is false; send the whole `input` instead",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        )

    async def probe(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/responses`: a WebSocket is not spoken, and 426 makes Codex use HTTP at once."""
        if "websocket" in request.headers.get("Upgrade", "").lower():
            message = "WebSocket is not spoken here; use POST /v1/responses"
            raise Refused(Problem(status=426, message=message, code="websocket_not_supported"))
        raise web.HTTPMethodNotAllowed("GET", ["POST"])

    async def stored(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/responses/{id}`."""
        found = self._store.get(request.match_info["id"])
        if found is None:
            raise Refused(_no_response(request.match_info["id"]))
        return web.Response(body=orjson.dumps(found), headers=JSON)

    async def delete(self, request: web.Request) -> web.StreamResponse:
        """`DELETE /v1/responses/{id}`."""
        name = request.match_info["id"]
        if not self._store.delete(name):
            raise Refused(_no_response(name))
        return web.Response(body=orjson.dumps({"id": name, "object": "response", "deleted": True}), headers=JSON)

    # -- chat completions -----------------------------------------------------------------------

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/chat/completions`: the body as it came, but for a model that is mapped to another."""
        exchange = request[EXCHANGE]
        raw, plain, body = await self._body(request)
        route = self._route(request, body)
        if route.provider.mode == "responses":
            return await self._passthrough.forward(request, exchange, route, raw, body)
        if route.model != body.get("model"):
            body["model"] = route.model
            plain = written(body)
        exchange.chat = body if exchange.keeps else None
        upstream = await self._upstream(route.provider)
        limit = body.get("max_completion_tokens") or body.get("max_tokens")

        async def ask(on_chunk: OnChunk | None, on_reply: Callable[[Reply], None] | None) -> Answer:
            return await upstream.ask(
                plain,
                model=route.model,
                limit=limit if isinstance(limit, int) and limit > 0 else None,
                timeline=exchange.timeline,
                on_chunk=on_chunk,
                on_reply=on_reply,
            )

        if body.get("stream"):
            return await streamed(request, exchange, ChatShape(), {}, ask)
        replies: list[Reply] = []
        exchange.answer = await ask(None, replies.append)
        answer = _unstreamed(replies[-1])
        if exchange.keeps:
            exchange.keep(exchange.upstream, orjson.loads(answer), len(answer))
        return web.Response(body=answer, headers=JSON | _told(exchange.answer.headers))

    # -- the rest -------------------------------------------------------------------------------

    async def models(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/models`: the upstream's list; Codex, which asks with its version, gets its kind of it as well."""
        entries = await self._served(request)
        answer: dict[str, Any] = {"object": "list", "data": entries}
        if "client_version" in request.query:
            answer |= model_catalog(card for entry in entries if (card := catalog.card(entry["id"])) is not None)
        return web.Response(body=orjson.dumps(answer), headers=JSON)

    async def model(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/models/{id}`."""
        name = request.match_info["id"]
        for entry in await self._served(request):
            if entry["id"] == name:
                return web.Response(body=orjson.dumps(entry), headers=JSON)
        raise Refused(Problem(status=404, message=f"no model {name!r} at the upstream", code="model_not_found"))

    async def _served(self, request: web.Request) -> list[dict[str, Any]]:
        provider = self._provider(request, "").provider
        if provider.mode == "responses":
            return await self._passthrough.models(provider)
        try:
            return await (await self._upstream(provider)).client.served()
        except APIError as exc:
            raise Refused(problem_of(exc, request[EXCHANGE].started_at)) from exc

    async def health(self, _: web.Request) -> web.StreamResponse:
        """`GET /health`: that it runs; the upstream is not asked."""
        settings = self.watched.current()
        answer = {
            "status": "ok",
            "version": __version__,
            "provider": settings.provider,
            "in_flight": self.in_flight,
            "waiting": self.waiting,
        }
        return web.Response(body=orjson.dumps(answer), headers=JSON)

    async def metrics(self, _: web.Request) -> web.StreamResponse:
        """`GET /metrics`, for Prometheus."""
        return web.Response(body=self.counters.page(), headers={"Content-Type": "text/plain; version=0.0.4"})

    @property
    def in_flight(self) -> int:
        """Requests on the wire to the upstreams."""
        return sum(len(upstream.client.activity.on_the_wire) for upstream in self.upstreams.all())

    @property
    def waiting(self) -> int:
        """Requests that wait for a place, or for the account's limits."""
        return sum(upstream.waiting for upstream in self.upstreams.all())

    # -- inside ---------------------------------------------------------------------------------

    async def _body(self, request: web.Request) -> tuple[bytes, bytes, dict[str, Any]]:
        """As it came, decompressed, and parsed. Raises Refused."""
        try:
            raw = await request.read()
        except web.HTTPRequestEntityTooLarge:
            raise too_large() from None
        except web.RequestPayloadError:
            message = "the body breaks off"
            raise Refused(Problem(status=400, message=message, code="invalid_body")) from None
        plain = decoded(raw, request.headers.get("Content-Encoding", ""))
        body = parsed(plain)
        exchange = request[EXCHANGE]
        if exchange.keeps:
            exchange.size_bytes = len(plain)
            exchange.request = dict(body)  # its model may be changed
        return raw, plain, body

    def _route(self, request: web.Request, body: Mapping[str, Any]) -> Route:
        model = body.get("model")
        if not isinstance(model, str) or not model:
            message = f"model is {model!r}; accepted: the name of a model, see GET /v1/models"
            raise Refused(Problem(status=400, message=message, param="model", code="invalid_model"))
        route = self._provider(request, model)
        exchange = request[EXCHANGE]
        exchange.model, exchange.served, exchange.provider = model, route.model, route.provider.name
        return route

    def _provider(self, request: web.Request, model: str) -> Route:
        try:
            return self.watched.current().route(model, request.headers.get(PROVIDER))
        except ValueError as exc:
            raise Refused(Problem(status=400, message=f"{PROVIDER}: {exc}", code="unknown_provider")) from None

    async def _upstream(self, provider: Provider) -> Upstream:
        try:
            return await self.upstreams.get(provider, lambda: self._make(provider, self.watched.current()))
        except CbatchError as exc:  # a provider of the file, opened by the first who asks for it
            message = f"provider {provider.name} cannot be used: {exc}"
            raise Refused(Problem(status=502, message=message, code="provider_unusable")) from exc


def _told(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower().startswith(_TOLD)}


def _is_local(url: str) -> bool:
    try:
        return environment.is_local(url)
    except ValueError:  # no address at all
        return False


def _unstreamed(reply: Reply) -> bytes:
    """The body of a reply that was read as a completion already. Raises Refused for a stream that nobody asked for."""
    if is_stream(reply.body):
        message = "the upstream answered with a stream that was not asked for"
        raise Refused(Problem(status=502, message=message, code="upstream_error"))
    return reply.body


def _no_response(name: str) -> Problem:
    message = f"no response {name[:80]!r} is stored here"
    return Problem(status=404, message=message, code="response_not_found")


def _unrouted(request: web.Request, exc: web.HTTPException) -> Problem:
    if exc.status == 404:
        served = "POST /v1/responses, POST /v1/chat/completions, GET /v1/models, GET /health, GET /metrics"
        return Problem(status=404, message=f"no route {request.path}; served: {served}", code="unknown_route")
    if isinstance(exc, web.HTTPMethodNotAllowed):
        accepted = ", ".join(sorted(exc.allowed_methods))
        message = f"{request.method} {request.path} is not served; accepted: {accepted}"
        return Problem(status=405, message=message, code="method_not_allowed")
    return Problem(status=exc.status, message=exc.reason or "refused", code="refused")
