"""An answer's way to the socket: the waits, and the faults that break it on the way.

The rest of the package decides what is sent; here it is only sent, late, in part, or not at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from aiohttp import web

from .config import SimConfig
from .script import Rule
from .stream import DONE, error_event
from .timing import Timing, due_count

__all__ = ["Delivery", "send_stream", "send_whole"]

_JSON = "application/json"
_SSE = "text/event-stream; charset=utf-8"


class Delivery:
    """One request's connection, the fault it is to meet, and the delays that a script wants."""

    __slots__ = ("chunk_delay_s", "config", "delay_s", "fault", "request")

    def __init__(self, request: web.Request, fault: str | None, config: SimConfig, rule: Rule | None) -> None:
        self.request = request
        self.fault = fault
        self.config = config
        self.delay_s = rule.delay_s if rule is not None else 0.0
        self.chunk_delay_s = rule.chunk_delay_s if rule is not None else 0.0
        if fault == "slow_first_byte":
            self.delay_s += config.slow_s

    def drop(self) -> web.Response:
        """Close the socket at once; what is returned can no longer be sent."""
        if self.request.transport is not None:
            self.request.transport.abort()
        return web.Response()

    async def silence(self, seconds: float) -> None:
        """Hang for that long; a caller that hangs up cancels the handler, and this with it."""
        await asyncio.sleep(seconds)


async def send_whole(
    delivery: Delivery, body: bytes, timing: Timing, headers: Callable[[], dict[str, str]]
) -> web.StreamResponse:
    """The answer in one piece, when its last token exists."""
    fault = delivery.fault
    if delivery.delay_s:
        await delivery.silence(delivery.delay_s)
    if not timing.instant:
        await asyncio.sleep(timing.total_s)
    sent = headers()
    sent["Content-Type"] = _JSON
    if fault == "malformed_json":
        body = body[: len(body) // 2]
    if fault in ("drop_mid", "stall"):
        return await _send_halves(delivery, body, sent)
    response = web.Response(body=body, headers=sent)
    if fault == "close_connection":
        response.force_close()
    return response


async def _send_halves(delivery: Delivery, body: bytes, headers: dict[str, str]) -> web.StreamResponse:
    response = web.StreamResponse(headers=headers)
    response.content_length = len(body)
    await response.prepare(delivery.request)
    await response.write(body[: len(body) // 2])
    if delivery.fault == "drop_mid":
        delivery.drop()
        return response
    await delivery.silence(delivery.config.stall_s)
    await response.write(body[len(body) // 2 :])
    return response


async def send_stream(
    delivery: Delivery,
    events: Sequence[bytes],
    timing: Timing,
    silent: float,
    headers: Callable[[], dict[str, str]],
) -> web.StreamResponse:
    """The answer event by event, as its tokens come to exist; at infinite speed in one write.

    `silent` is the share of the generation that shows nothing: reasoning that is hidden.
    """
    fault = delivery.fault
    if delivery.delay_s:
        await delivery.silence(delivery.delay_s)
    if not timing.instant:
        await asyncio.sleep(timing.first_s)
    response = web.StreamResponse(headers={**headers(), "Content-Type": _SSE})
    if fault == "close_connection":
        response.force_close()
    await response.prepare(delivery.request)
    # Between the role chunk and the last token, with the finish chunk and [DONE] behind it, lies all of the generation.
    every_s = 0.0 if timing.instant else timing.completion_s * (1 - silent) / max(1, len(events) - 3)
    every_s = max(every_s, delivery.chunk_delay_s)
    if silent and not timing.instant:
        await response.write(events[0])
        await asyncio.sleep(timing.completion_s * silent)
        events = events[1:]
    half = max(1, len(events) // 2)
    match fault:
        case "malformed_json":
            broken = events[half][: max(12, len(events[half]) // 2)] + b"\n\n"
            events = [*events[:half], broken, *events[half + 1 :]]
        case "missing_done":
            events = [event for event in events if event is not DONE]
        case "error_in_stream" | "event_error_in_stream":
            events = [*events[:half], error_event(named=fault == "event_error_in_stream")]
        case "drop_mid" | "stall":
            await _send_paced(response, events[:half], every_s)
            if fault == "drop_mid":
                delivery.drop()
                return response
            await delivery.silence(delivery.config.stall_s)
            events = events[half:]
        case _ if not delivery.chunk_delay_s:
            events = [*events[:-3], b"".join(events[-3:])]
    await _send_paced(response, events, every_s)
    return response


async def _send_paced(response: web.StreamResponse, events: Sequence[bytes], every_s: float) -> None:
    loop = asyncio.get_running_loop()
    start = loop.time()
    sent = 0
    while sent < len(events):
        due = due_count(loop.time() - start, every_s, len(events))
        if due <= sent:
            await asyncio.sleep(start + sent * every_s - loop.time())
            due = max(sent + 1, due_count(loop.time() - start, every_s, len(events)))
        await response.write(b"".join(events[sent:due]))
        sent = due
