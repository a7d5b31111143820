"""One chat request from its first check to its answer.

The order of the checks decides which of two errors a client sees: key, payment, body, fields, model, context
length, a full server, the script, injected faults, request buckets, token buckets.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import blake2b
from random import Random
from typing import Any

import orjson
from aiohttp import web

from . import wire
from .answers import Answer, compose, fingerprint, prompt_tokens
from .buckets import HEADER_SETS, Allowance, Reservation, rate_headers
from .cache import PrefixCache
from .config import SimConfig
from .faults import FaultPlan
from .models import Model
from .recording import Recording
from .refusals import check_refusals
from .script import Rule
from .scripted import Script, recite
from .sending import Delivery, send_stream, send_whole
from .stats import Stats
from .stream import USUAL, Head, Shape, body, events
from .timing import plan
from .validate import Chat, check_model, parse_chat
from .wire import ErrorAnswer, Refused

__all__ = ["Completions", "organization", "refusal_response"]

_MAX_ORGANIZATIONS = 1024  # the one that came first is forgotten, and returns to full buckets
_HTML = {"Content-Type": "text/html"}
_BUSY_S = 1  # users report that queue_exceeded clears in about a second
_NEVER_S = 60  # Retry-After for what can never be admitted

_REFUSALS: dict[str, ErrorAnswer] = {
    "bad_request": wire.bad_value("messages", "This prompt was refused."),
    "payment_required": wire.PAYMENT_REQUIRED,
    "rate_limited_requests": wire.quota_exceeded("requests", "minute"),
    "rate_limited_tokens": wire.quota_exceeded("tokens", "minute"),
    "queue_exceeded": wire.QUEUE_EXCEEDED,
    "timeout_408": wire.TIMEOUT,
    "server_error": wire.SERVER_ERROR,
    "unavailable": wire.UNAVAILABLE,
    "bad_gateway_html": ErrorAnswer(502, wire.BAD_GATEWAY_HTML, _HTML),
    "html_200": ErrorAnswer(200, wire.BAD_GATEWAY_HTML.replace(b"502 Bad Gateway", b"Just a moment..."), _HTML),
    "empty_body_200": ErrorAnswer(200, b""),
}
_STREAM_ERRORS = ("error_in_stream", "event_error_in_stream")


def organization(request: web.Request, config: SimConfig) -> str:
    """Who is calling: every key is an organization of its own; raises Refused."""
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key:
        raise Refused(wire.NO_AUTH)
    if key.startswith("wrong") if config.api_key is None else key != config.api_key:
        raise Refused(wire.BAD_KEY)
    return key


def refusal_response(answer: ErrorAnswer, extra: dict[str, str] | None = None) -> web.Response:
    """An error answer as a response."""
    own = answer.headers or {}
    replaced = {name.lower() for name in own}
    usual = {"Content-Type": "application/json", **(extra or {})}
    headers = {**{name: value for name, value in usual.items() if name.lower() not in replaced}, **own}
    return web.Response(status=answer.status, body=answer.body, headers=headers)


class Completions:
    """`POST /v1/chat/completions` and the state behind it: buckets, prompt cache, counters."""

    def __init__(self, config: SimConfig, clock: Callable[[], float] | None) -> None:
        self.config = config
        self.running: set[asyncio.Task[Any]] = set()
        self._given_clock = clock
        self._wall_offset_s: float | None = None
        self._shown = HEADER_SETS[config.headers]
        self._limits = {name: config.limits(name) for name in config.models}
        self._in_service = 0  # being answered: neither refused nor dropped
        self._ids = Random()  # not seeded: an id names one answer of one run of the simulator
        self._faults = FaultPlan(config.faults, config.seed)
        self.recording: Recording | None = None
        self.forget()

    def forget(self) -> None:
        """Full buckets, empty cache, counters and fault attempts at zero, the script of the start."""
        self.stats = Stats()
        self.script = Script(self.config.rules)
        if self.config.record:
            self.recording = Recording()
        self._allowances: dict[str, dict[str, Allowance]] = {}
        self._cache = PrefixCache()
        self._faults.forget()

    def snapshot(self) -> dict[str, object]:
        """What was seen since the start or the last reset."""
        return self.stats.snapshot(len(self.running), self._quota_now(), self.config.clock_rate, self.script.used)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request, and count it."""
        stats = self.stats
        stats.routes["POST /v1/chat/completions"] += 1
        task = request.task
        self.running.add(task)
        stats.max_in_flight = max(stats.max_in_flight, len(self.running))
        try:
            return await self._answer(request)
        except Refused as refusal:
            return self._refuse(refusal.answer)
        except (asyncio.CancelledError, ConnectionError):
            stats.disconnected += 1
            raise
        finally:
            self.running.discard(task)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        config = self.config
        caller = organization(request, config)
        if config.payment_required:
            raise Refused(wire.PAYMENT_REQUIRED)
        raw = await _read(request)
        seen = self.stats.saw(raw)
        if self.recording is not None:
            self.recording.add(request.headers.items(), raw)
        chat, model, size, key = self._understand(raw)

        allowance = self._allowance(caller, model.id)
        if config.max_in_flight is not None and self._in_service >= config.max_in_flight:
            return self._refuse(wire.QUEUE_EXCEEDED, model.id, allowance)
        script = self.script  # another one may be in force when this one is done
        taken = script.take(chat) if script.rules else None
        rule = None if taken is None else taken[1]
        fault = self._fault(chat, key, rule)
        delivery = Delivery(request, fault, config, rule)
        refusal = _REFUSALS.get(fault) if fault is not None else None if rule is None else rule.refusal
        if refusal is not None or fault == "drop_before":
            if delivery.delay_s:
                await delivery.silence(delivery.delay_s)
            return delivery.drop() if refusal is None else self._refuse(refusal, model.id, allowance)

        reserved = size + self._reserve(chat, model, size)
        at = self._quota_now()
        refused_by = allowance.admit(at, reserved)
        if refused_by is not None:
            if taken is not None:
                script.give_back(taken[0])
            wait_s = math.ceil(refused_by.wait_s) if math.isfinite(refused_by.wait_s) else _NEVER_S
            answer = wire.quota_exceeded(refused_by.kind, refused_by.period)
            return self._refuse(answer, model.id, allowance, max(1, wait_s))

        cached = self._cache.match(self._now(), f"{caller}/{model.id}", chat.prompt, size)
        answers = self._answers(chat, model, size, key, fault, rule)
        completion = sum(answer.completion_tokens for answer in answers)
        self.stats.done(seen, size, cached, completion, sum(answer.reasoning_tokens for answer in answers))
        head = self._head(model, size, cached, completion, key, fault)
        uncached, total = size - cached + completion, size + completion
        reservation = Reservation(allowance, reserved, uncached, total, at=at)
        counters = self.stats.model(model.id)
        counters.admit(int(at), reserved, uncached, total)
        counters.enter()
        self._in_service += 1
        try:
            shape = USUAL if rule is None else rule.shape
            return await self._deliver(delivery, chat, answers, head, reservation, shape)
        finally:
            counters.in_flight -= 1
            self._in_service -= 1
            # Also for a caller that hung up: its tokens were generated.
            self._settle(reservation)

    def _understand(self, raw: bytes) -> tuple[Chat, Model, int, bytes]:
        """The request, its model, its prompt tokens and its fingerprint; raises Refused."""
        try:
            chat = parse_chat(orjson.loads(raw))
            key = fingerprint(chat, self.config.seed)
        except orjson.JSONDecodeError as exc:
            raise Refused(wire.bad_value("validation_error", f"body: Invalid JSON: {exc}")) from exc
        except orjson.JSONEncodeError as exc:
            raise Refused(wire.bad_value("validation_error", f"body: nested too deeply: {exc}")) from exc
        model = self.config.models.get(chat.model)
        if model is None:
            raise Refused(wire.model_not_found(chat.model))
        check_model(chat, model, self._limits[model.id])
        if self.config.refuse:
            check_refusals(chat, self.config.refuse)
        size = prompt_tokens(chat, model)
        if size >= self.config.context(model):
            raise Refused(wire.context_exceeded(size, self.config.context(model)))
        return chat, model, size, key

    def _fault(self, chat: Chat, key: bytes, rule: Rule | None) -> str | None:
        """The fault this request is to meet: the script's, or a drawn one."""
        fault = None
        if rule is not None and (rule.fault is not None or rule.refusal is not None):
            fault = rule.fault
        elif self._faults.active:
            fault = self._faults.draw(key, blake2b(chat.last_user.encode(), digest_size=8).digest())
        if fault is None:
            return None
        self.stats.faults[fault] += 1
        # Without a stream there is nothing to put the error into.
        return "server_error" if fault in _STREAM_ERRORS and not chat.stream else fault

    def _answers(
        self, chat: Chat, model: Model, size: int, key: bytes, fault: str | None, rule: Rule | None
    ) -> list[Answer]:
        config = self.config
        room = min(config.max_output(model), config.context(model) - size)
        if chat.max_tokens is not None:
            room = min(room, chat.max_tokens)
        answers = []
        for choice in range(chat.n):
            own = blake2b(key, digest_size=32, salt=choice.to_bytes(8, "big")).digest() if choice else key
            if rule is not None and rule.answer is not None:
                answers.append(recite(rule.answer, chat, model, own, room))
                continue
            answers.append(
                compose(
                    chat,
                    model,
                    own,
                    room=room,
                    median=config.median_tokens,
                    exact=config.answer_tokens,
                    fault=fault,
                )
            )
        return answers

    def _head(self, model: Model, size: int, cached: int, completion: int, key: bytes, fault: str | None) -> Head:
        named = model.id
        if fault == "wrong_model":
            named = next((name for name in self.config.models if name != model.id), f"{model.id}-other")
        digits = f"{self._ids.getrandbits(128):032x}"
        chance = int.from_bytes(key[24:28], "big")
        return Head(
            # The two fixed digits make it a version 4 UUID.
            id=f"chatcmpl-{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}",
            created=self._wall(self._now()),
            model=model,
            named=named,
            prompt_tokens=size,
            cached_tokens=cached,
            timing=plan(model.tokens_per_s, size - cached, completion, chance, self.config.speed),
            usage=fault != "missing_usage",
        )

    async def _deliver(
        self,
        delivery: Delivery,
        chat: Chat,
        answers: list[Answer],
        head: Head,
        reservation: Reservation,
        shape: Shape,
    ) -> web.StreamResponse:
        self.stats.status[200] += 1
        if chat.stream:
            silent = 0.0
            if chat.reasoning_format == "hidden":
                silent = answers[0].reasoning_tokens / max(1, answers[0].completion_tokens)
            return await send_stream(
                delivery,
                events(head, answers, chat, shape),
                head.timing,
                silent,
                lambda: self._rate_headers(reservation.allowance),
            )

        def settled_headers() -> dict[str, str]:
            # The tokens exist by now, so the headers already show what is left after settlement.
            self._settle(reservation)
            return self._rate_headers(reservation.allowance)

        return await send_whole(delivery, body(head, answers, chat, shape), head.timing, settled_headers)

    # -- limits --------------------------------------------------------------------------------------------

    def _allowance(self, caller: str, model: str) -> Allowance:
        models = self._allowances.get(caller)
        if models is None:
            if len(self._allowances) >= _MAX_ORGANIZATIONS:
                del self._allowances[next(iter(self._allowances))]
            models = self._allowances[caller] = {}
        allowance = models.get(model)
        if allowance is None:
            now = self._quota_now()
            offset_s = self._wall(self._now()) * self.config.clock_rate - now
            allowance = models[model] = Allowance(self._limits[model], now, self.config.quota_window, offset_s)
        return allowance

    def _reserve(self, chat: Chat, model: Model, size: int) -> int:
        """Tokens set aside for the completion before it exists."""
        wanted = chat.max_tokens or self.config.default_reserve or self.config.context(model) - size
        if self.config.reserve_cap is not None:
            wanted = min(wanted, self.config.reserve_cap)
        return wanted * chat.n

    def _settle(self, reservation: Reservation) -> None:
        if self.config.refund:
            reservation.settle(self._quota_now())

    def _rate_headers(self, allowance: Allowance) -> dict[str, str]:
        rate = self.config.clock_rate
        wall_s = self._wall(self._now()) * rate if self.config.reset_style == "wall-clock" else None
        return rate_headers(allowance, self._quota_now(), shown=self._shown, wall_s=wall_s, rate=rate)

    def _refuse(
        self, answer: ErrorAnswer, model: str | None = None, allowance: Allowance | None = None, wait_s: int = _BUSY_S
    ) -> web.Response:
        self.stats.status[answer.status] += 1
        extra: dict[str, str] = {}
        if answer.status == 429:
            self.stats.rate_limited[answer.code] += 1
            if model is not None:
                self.stats.model(model).refuse(int(self._quota_now()), answer.code)
            if allowance is not None:
                extra = self._rate_headers(allowance)
            if self.config.retry_after:
                # Whole seconds of the clock that drives the limits, as the caller's clock sees them.
                extra["Retry-After"] = f"{wait_s / self.config.clock_rate:.6g}"
        return refusal_response(answer, extra)

    # -- time ----------------------------------------------------------------------------------------------

    def _now(self) -> float:
        if self._given_clock is not None:
            return self._given_clock()
        return asyncio.get_running_loop().time()

    def _quota_now(self) -> float:
        """Seconds of the clock that drives the limits."""
        return self._now() * self.config.clock_rate

    def _wall(self, now: float) -> float:
        """Unix seconds at `now`: read once, then counted by the clock, so that a driven clock drives it."""
        if self._wall_offset_s is None:
            self._wall_offset_s = datetime.now(UTC).timestamp() - now
        return now + self._wall_offset_s


async def _read(request: web.Request) -> bytes:
    """The request body, gunzipped by aiohttp where it says so; raises Refused."""
    if request.content_type == "application/vnd.msgpack":
        raise Refused(wire.bad_value("validation_error", "body: msgpack is not supported by the simulator"))
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge as exc:
        raise Refused(wire.TOO_LARGE) from exc
    except web.RequestPayloadError as exc:
        raise Refused(wire.bad_value("validation_error", f"body: cannot be decoded: {exc}")) from exc
