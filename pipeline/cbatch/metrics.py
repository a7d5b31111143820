"""What a run is doing, for Prometheus: `cbatch run --metrics-port N`, off by default.

Counts are of this session. What `Progress` counts anyhow is read when it is asked for; what only a row
tells is added up row by row. No text of a prompt or an answer, and nothing of the key, comes in here.

The page is made in the run's own event loop, in 0.4 ms a model: a thread would take the interpreter
away from the loop at any moment, for up to 5 ms.
"""

from __future__ import annotations

import asyncio
import os
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

from cbatch.errors import JobError
from cbatch.schema import COLUMN_INDEX
from cbatch.session import Progress

if TYPE_CHECKING:
    from prometheus_client.core import Metric

HOST = "127.0.0.1"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"  # what every Prometheus reads
REQUEST_S = 5.0  # who asks has said so by then, and taken the answer

_MODEL = COLUMN_INDEX["model"]
_ERROR_KIND = COLUMN_INDEX["error_kind"]
_PROMPT_TOKENS = COLUMN_INDEX["prompt_tokens"]
_CACHED_TOKENS = COLUMN_INDEX["cached_tokens"]
_COMPLETION_TOKENS = COLUMN_INDEX["completion_tokens"]
_REASONING_TOKENS = COLUMN_INDEX["reasoning_tokens"]
_COST_USD = COLUMN_INDEX["cost_usd"]
_LATENCY_S = COLUMN_INDEX["latency_s"]
_TTFT_S = COLUMN_INDEX["ttft_s"]
_SERVER_SPEED = COLUMN_INDEX["server_tokens_per_s"]

# Bounds of the histograms: three to a factor of ten, closer where Cerebras' models are (ttft 0.1 s to 1 s,
# 800 to 3,000 tokens/s).
LATENCY_S = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)
TTFT_S = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
SPEED = (50, 100, 200, 400, 600, 800, 1_000, 1_250, 1_500, 1_750, 2_000, 2_250, 2_500, 2_750, 3_000, 4_000, 6_000)


class Histogram:
    """How often a value came, by the bounds it lies under."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # of each bound alone, and beyond the last
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """As Prometheus wants them: each with all below it."""
        names = [*(str(float(bound)) for bound in self.bounds), "+Inf"]
        return list(zip(names, accumulate(self.counts), strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One metric of a page: `samples` are the values of its labels, and a number or, of a histogram, its counts."""

    name: str  # whole, without the _total of a counter
    text: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...] = ()
    samples: Sequence[tuple[tuple[str, ...], float | Histogram]] = ()


class _Page:
    """What prometheus_client asks, for families that are there already."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        for family in self._families:
            if family.kind == "histogram":
                histograms = HistogramMetricFamily(family.name, family.text, labels=family.labels)
                for labels, value in family.samples:
                    assert isinstance(value, Histogram)
                    histograms.add_metric(labels, value.buckets(), value.total)
                yield histograms
                continue
            kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            metric = kind(family.name, family.text, labels=family.labels)
            for labels, value in family.samples:
                assert not isinstance(value, Histogram)
                metric.add_metric(labels, value)
            yield metric


def page(families: Iterable[Family]) -> bytes:
    """The families in Prometheus' text format."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(_Page(families))
    return generate_latest(registry)


class _Tally:
    """What the rows of one model add up to."""

    __slots__ = (
        "cached_tokens",
        "completion_tokens",
        "cost_usd",
        "errors",
        "latency",
        "ok",
        "prompt_tokens",
        "reasoning_tokens",
        "speed",
        "ttft",
        "unpriced",
    )

    def __init__(self) -> None:
        self.ok = 0
        self.errors: dict[str, int] = {}
        self.prompt_tokens = self.cached_tokens = self.completion_tokens = self.reasoning_tokens = 0
        self.cost_usd = 0.0
        self.unpriced = 0
        self.latency, self.ttft, self.speed = Histogram(LATENCY_S), Histogram(TTFT_S), Histogram(SPEED)


class Metrics:
    """The figures of one session: `observe` every durable row, `page` when asked.

    `gauges` are more of them: a name without `cbatch_`, its meaning, and where it is read (None: not known now).
    """

    def __init__(
        self,
        progress: Progress,
        gauges: Mapping[str, tuple[str, Callable[[], float | None]]] | None = None,
    ) -> None:
        self._progress = progress
        self._gauges = dict(gauges or {})
        self._tallies: dict[str, _Tally] = {}

    def observe(self, row: Sequence[Any]) -> None:
        """Count a row: the values of COLUMNS. 0.6 µs."""
        tally = self._tallies.get(row[_MODEL])
        if tally is None:
            tally = self._tallies[row[_MODEL]] = _Tally()
        tokens = row[_PROMPT_TOKENS]
        if tokens is not None:  # then there was an answer, if not a usable one
            tally.prompt_tokens += tokens
            tally.cached_tokens += row[_CACHED_TOKENS] or 0
            tally.completion_tokens += row[_COMPLETION_TOKENS] or 0
            tally.reasoning_tokens += row[_REASONING_TOKENS] or 0
        cost = row[_COST_USD]
        if cost is not None:
            tally.cost_usd += cost
        elif tokens is not None:
            tally.unpriced += 1
        kind = row[_ERROR_KIND]
        if kind is not None:
            tally.errors[kind] = tally.errors.get(kind, 0) + 1
            return
        tally.ok += 1
        if (value := row[_LATENCY_S]) is not None:
            tally.latency.add(value)
        if (value := row[_TTFT_S]) is not None:
            tally.ttft.add(value)
        if (value := row[_SERVER_SPEED]) is not None:
            tally.speed.add(value)

    def page(self) -> bytes:
        """Everything, in Prometheus' text format."""
        from prometheus_client import CollectorRegistry, generate_latest

        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now; what a registry of prometheus_client asks for."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        progress, activity = self._progress, self._progress.activity
        for name, text, count in (
            ("requests", "Requests sent, retries included", activity.sent),
            ("retries", "Requests sent again after a failure", activity.retries),
            ("rate_limited", "Answers with status 429", activity.rate_limited),
            ("hedged", "Prompts that were asked a second time because the first answer was late", activity.hedged),
        ):
            yield CounterMetricFamily(f"cbatch_{name}_total", text, value=count)
        waiting = CounterMetricFamily(
            "cbatch_waiting_seconds_total", "Seconds that prompts waited, summed over all of them", labels=["cause"]
        )
        waiting.add_metric(["rate_limit"], activity.pace_wait_s)
        waiting.add_metric(["backoff"], activity.backoff_s)
        waiting.add_metric(["server_queue"], activity.server_queue_s)
        yield waiting
        left = GaugeMetricFamily("cbatch_prompts_left", "Prompts that have no row yet", labels=["model"])
        for model, count in progress.left_by_model.items():
            left.add_metric([model], count)
        yield left
        for name, text, value in (
            ("in_flight", "Requests that are on the wire", len(activity.on_the_wire)),
            ("backing_off", "Prompts that wait for their next attempt", activity.backing_off),
            ("job_prompts", "Prompts of the whole job: input rows x models x samples", progress.total),
            *((name, text, read()) for name, (text, read) in self._gauges.items()),
        ):
            if value is not None:
                yield GaugeMetricFamily(f"cbatch_{name}", text, value=value)
        yield from self._of_rows()

    def _of_rows(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

        def counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
            return CounterMetricFamily(f"cbatch_{name}_total", text, labels=["model", *labels])

        prompts = counter("prompts", "Prompts that got their row in this session", "status")
        errors = counter("errors", "Prompts that failed, by what went wrong", "kind")
        tokens = counter("tokens", "Tokens as the server counted them", "kind")
        cached = counter("cached_tokens", "Prompt tokens that the server had in its cache")
        reasoning = counter("reasoning_tokens", "Completion tokens that were reasoning")
        cost = counter("cost_usd", "What the answers cost, where a price is known")
        unpriced = counter("unpriced", "Answers without a known price")
        families = (prompts, errors, tokens, cached, reasoning, cost, unpriced)
        latency = HistogramMetricFamily("cbatch_latency_seconds", "From send until last token", labels=["model"])
        ttft = HistogramMetricFamily("cbatch_ttft_seconds", "From send until first token; streams", labels=["model"])
        speed = HistogramMetricFamily(
            "cbatch_server_tokens_per_second", "Completion tokens by the server's own clock", labels=["model"]
        )
        for model in self._progress.left_by_model:  # from the start, or the first rows would be no increase
            self._tallies.setdefault(model, _Tally())
        for model, tally in self._tallies.items():
            prompts.add_metric([model, "ok"], tally.ok)
            prompts.add_metric([model, "error"], sum(tally.errors.values()))
            for kind, count in tally.errors.items():
                errors.add_metric([model, kind], count)
            tokens.add_metric([model, "prompt"], tally.prompt_tokens)
            tokens.add_metric([model, "completion"], tally.completion_tokens)
            cached.add_metric([model], tally.cached_tokens)
            reasoning.add_metric([model], tally.reasoning_tokens)
            cost.add_metric([model], tally.cost_usd)
            unpriced.add_metric([model], tally.unpriced)
            for family, found in ((latency, tally.latency), (ttft, tally.ttft), (speed, tally.speed)):
                family.add_metric([model], found.buckets(), found.total)
        yield from (*families, latency, ttft, speed)


@asynccontextmanager
async def serve(metrics: Metrics, port: int) -> AsyncIterator[str]:
    """Answer `GET /metrics` on this machine alone, while the block runs; yields the address.

    Port 0 takes a free one. Raises JobError where the port cannot be had.
    """
    open_now: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        open_now[task] = writer
        try:
            # Whoever hangs up, says nothing or never reads gets no answer, and the run goes on.
            with suppress(OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
                async with asyncio.timeout(REQUEST_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(_response(metrics, head))
                    writer.close()
                    await writer.wait_closed()
        finally:
            writer.transport.abort()  # nothing, where it is closed
            del open_now[task]

    metrics.page()  # its imports take 25 ms: now, and not while requests are timed
    try:
        server = await asyncio.start_server(answer, HOST, port)
    except OSError as exc:
        reason = os.strerror(exc.errno) if exc.errno else str(exc)
        raise JobError(
            f"--metrics-port {port}: cannot listen on {HOST}: {reason}",
            hint="choose another port, or 0 for one that is free",
        ) from None
    try:
        yield f"http://{HOST}:{server.sockets[0].getsockname()[1]}/metrics"
    finally:
        server.close()
        for writer in open_now.values():
            writer.transport.abort()
        if open_now:
            await asyncio.wait(list(open_now))
        await server.wait_closed()


def _response(metrics: Metrics, head: bytes) -> bytes:
    method, path, *_ = [*head.split(b"\r\n", 1)[0].split(b" "), b"", b""]
    status, kind = "200 OK", CONTENT_TYPE
    if method not in (b"GET", b"HEAD"):
        status, kind, body = "405 Method Not Allowed", "text/plain", b"GET /metrics\n"
    elif path.split(b"?")[0] not in (b"/metrics", b"/"):
        status, kind, body = "404 Not Found", "text/plain", b"see /metrics\n"
    else:
        body = metrics.page()
    lines = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return lines.encode() + (b"" if method == b"HEAD" else body)
