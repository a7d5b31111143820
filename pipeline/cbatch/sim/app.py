"""The routes of a simulated Cerebras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
from aiohttp import web

from .completions import Completions, organization, refusal_response
from .config import SimConfig
from .models import listed, published
from .outage import Outage
from .script import parse_script
from .scripted import Script
from .wire import Refused, model_not_found

__all__ = ["create_app"]

_MAX_BODY_BYTES = 64 * 1024 * 1024
_JSON = {"Content-Type": "application/json"}


def create_app(config: SimConfig | None = None, *, clock: Callable[[], float] | None = None) -> web.Application:
    """A simulated Cerebras as an aiohttp application.

    `clock` (seconds, any origin; default the event loop's) drives buckets, prompt cache and time stamps.
    Waiting for an answer's tokens always follows the event loop.
    """
    routes = _Routes(config or SimConfig(), clock)
    middlewares = [routes.outage.middleware] if routes.outage is not None else []
    app = web.Application(client_max_size=_MAX_BODY_BYTES, middlewares=middlewares)
    app.router.add_post("/v1/chat/completions", routes.completions.handle)
    app.router.add_get("/v1/models", routes.models)
    app.router.add_get("/v1/models/{id}", routes.model)
    app.router.add_get("/public/v1/models", routes.public_models)
    app.router.add_get("/public/v1/models/{id}", routes.public_model)
    app.router.add_get("/v1/tcp_warming", routes.warm)
    app.router.add_get("/_sim/stats", routes.stats)
    app.router.add_post("/_sim/reset", routes.reset)
    app.router.add_post("/_sim/script", routes.script)
    app.router.add_get("/_sim/requests", routes.requests)
    app.router.add_route("*", "/{path:.*}", routes.unrouted)
    app.on_shutdown.append(routes.stop)
    return app


class _Routes:
    """Everything but chat completions, which have a file of their own."""

    def __init__(self, config: SimConfig, clock: Callable[[], float] | None) -> None:
        self.config = config
        self.completions = Completions(config, clock)
        self.outage = Outage(config, self.completions) if config.outage_after_s is not None else None

    def _answer(self, route: str, value: Any, status: int = 200) -> web.Response:
        stats = self.completions.stats
        stats.routes[route] += 1
        stats.status[status] += 1
        return web.Response(status=status, body=orjson.dumps(value), headers=_JSON)

    def _refuse(self, route: str, refusal: Refused) -> web.Response:
        stats = self.completions.stats
        stats.routes[route] += 1
        stats.status[refusal.answer.status] += 1
        return refusal_response(refusal.answer)

    async def models(self, request: web.Request) -> web.Response:
        """`GET /v1/models`: no rate-limit headers, no quota."""
        route = "GET /v1/models"
        try:
            organization(request, self.config)
        except Refused as refusal:
            return self._refuse(route, refusal)
        data = [listed(model) for model in self.config.models.values()]
        return self._answer(route, {"object": "list", "data": data})

    async def model(self, request: web.Request) -> web.Response:
        """`GET /v1/models/{id}`."""
        route = "GET /v1/models/{id}"
        name = request.match_info["id"]
        try:
            organization(request, self.config)
            if name not in self.config.models:
                raise Refused(model_not_found(name))
        except Refused as refusal:
            return self._refuse(route, refusal)
        return self._answer(route, listed(self.config.models[name]))

    async def public_models(self, _: web.Request) -> web.Response:
        """`GET /public/v1/models`: no key needed."""
        data = [published(model) for model in self.config.models.values()]
        return self._answer("GET /public/v1/models", {"object": "list", "data": data})

    async def public_model(self, request: web.Request) -> web.Response:
        """`GET /public/v1/models/{id}`."""
        route = "GET /public/v1/models/{id}"
        name = request.match_info["id"]
        model = self.config.models.get(name)
        if model is None:
            return self._answer(route, {"detail": f"Model '{name}' not found or not publicly available"}, 404)
        return self._answer(route, published(model))

    async def warm(self, request: web.Request) -> web.Response:
        """`GET /v1/tcp_warming`: opens a connection, costs no quota."""
        route = "GET /v1/tcp_warming"
        try:
            organization(request, self.config)
        except Refused as refusal:
            return self._refuse(route, refusal)
        self.completions.stats.routes[route] += 1
        self.completions.stats.status[200] += 1
        return web.Response(text="OK")

    async def unrouted(self, _: web.Request) -> web.Response:
        """Any other path: 404, text/plain, no body, as the service does."""
        stats = self.completions.stats
        stats.routes["unrouted"] += 1
        stats.status[404] += 1
        return web.Response(status=404, text="")

    async def stats(self, _: web.Request) -> web.Response:
        """`GET /_sim/stats`: what was seen since the start or the last reset; not counted itself."""
        return web.Response(body=orjson.dumps(self.completions.snapshot()), headers=_JSON)

    async def reset(self, _: web.Request) -> web.Response:
        """`POST /_sim/reset`: as after a start."""
        self.completions.forget()
        if self.outage is not None:
            self.outage.forget()
        return web.Response(status=204)

    async def script(self, request: web.Request) -> web.Response:
        """`POST /_sim/script`: other rules from now on, until the next reset; the body is as a script's file."""
        try:
            rules = parse_script((await request.read()).decode(), "body")
        except ValueError as exc:  # UnicodeDecodeError is one
            return _explain(400, str(exc))
        self.completions.script = Script(rules)
        return web.Response(status=204)

    async def requests(self, request: web.Request) -> web.Response:
        """`GET /_sim/requests?last=N`: the chat requests that came last, oldest first."""
        recording = self.completions.recording
        if recording is None:
            return _explain(404, "requests are not recorded\nstart with --record")
        last = request.query.get("last", "100")
        if not (last.isascii() and last.isdecimal()):
            return _explain(400, f"last is {last!r}\ngive a whole number")
        return web.Response(body=orjson.dumps(recording.last(int(last))), headers=_JSON)

    async def stop(self, _: web.Application) -> None:
        """End what is still being answered: a stalled answer must not hold up the shutdown."""
        if self.outage is not None:
            self.outage.forget()
        for task in self.completions.running:
            task.cancel()


def _explain(status: int, message: str) -> web.Response:
    """An error of the simulator's own routes."""
    return web.Response(status=status, body=orjson.dumps({"message": message}), headers=_JSON)
