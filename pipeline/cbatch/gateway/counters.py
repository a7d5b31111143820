"""What a gateway did since it started: for its last lines, for --json and for Prometheus.

Counts only: no text of a request or an answer, and nothing of a key, comes in here. Memory is bounded, whatever
clients ask for: the name of a model is a client's choice.
"""

from __future__ import annotations

import statistics
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any, Literal

from cbatch.metrics import LATENCY_S, SPEED, TTFT_S, Family, Histogram, page
from cbatch.report.words import elapsed, large, money, number, plural, printable, time

Outcome = Literal["ok", "failed", "cancelled"]

MAX_NAMES = 100  # models, and routes: what comes beyond is counted as OTHER
OTHER = "(other)"
NAMELESS = "(none)"  # a request that named no model, or could not be read
LATEST = 10_000  # answers whose speed is kept for the median

_TOKENS = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")


class _Tally:
    """What the exchanges with one model add up to."""

    __slots__ = ("cost_usd", "latency", "outcomes", "priced", "speed", "speeds", "tokens", "ttft", "unpriced")

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.tokens = dict.fromkeys(_TOKENS, 0)
        self.cost_usd = 0.0
        self.priced = self.unpriced = 0
        self.latency, self.ttft, self.speed = Histogram(LATENCY_S), Histogram(TTFT_S), Histogram(SPEED)
        self.speeds: deque[float] = deque(maxlen=LATEST)


class Counters:
    """The figures of one gateway: `observe` every exchange at its end, then `summary`, `lines`, `page`.

    `clock` gives seconds. `in_flight` and `waiting`, which may be set later, tell how many exchanges are being
    answered and how many of them wait for the account's limits.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        in_flight: Callable[[], int] | None = None,
        waiting: Callable[[], int] | None = None,
    ) -> None:
        self.in_flight = in_flight
        self.waiting = waiting
        self._clock = clock
        self._started = clock()
        self._models: dict[str, _Tally] = {}
        self._exchanges: Counter[tuple[str, str, str, str]] = Counter()
        self._routes: set[str] = set()
        self._retries = self._rate_limited = 0
        self._wait_s = 0.0

    def observe(
        self,
        *,
        route: str,
        model: str,
        status: int,
        outcome: Outcome,
        prompt_tokens: int | None = None,
        cached_tokens: int | None = None,
        completion_tokens: int | None = None,
        reasoning_tokens: int | None = None,
        cost_usd: float | None = None,
        ttft_s: float | None = None,
        latency_s: float | None = None,
        wait_s: float | None = None,
        server_tokens_per_s: float | None = None,
        attempts: int | None = None,
        rate_limited: int = 0,
    ) -> None:
        """Count one exchange; `model` is the upstream's, None is not measured, `rate_limited` are 429s waited out."""
        model = model or NAMELESS
        if model not in self._models and len(self._models) >= MAX_NAMES:
            model = OTHER
        if route not in self._routes:
            if len(self._routes) < MAX_NAMES:
                self._routes.add(route)
            else:
                route = OTHER
        tally = self._models.get(model)
        if tally is None:
            tally = self._models[model] = _Tally()
        self._exchanges[route, model, str(status), outcome] += 1
        tally.outcomes[outcome] += 1
        self._retries += max((attempts or 1) - 1, 0)
        self._rate_limited += rate_limited
        self._wait_s += wait_s or 0.0
        counts = (prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens)
        for name, value in zip(_TOKENS, counts, strict=True):
            tally.tokens[name] += value or 0
        if cost_usd is not None:
            tally.cost_usd += cost_usd
            tally.priced += 1
        elif prompt_tokens is not None:  # then there was an answer, and it is not free
            tally.unpriced += 1
        if outcome != "ok":
            return
        if latency_s is not None:
            tally.latency.add(latency_s)
        if ttft_s is not None:
            tally.ttft.add(ttft_s)
        if server_tokens_per_s is not None:
            tally.speed.add(server_tokens_per_s)
            tally.speeds.append(server_tokens_per_s)

    def summary(self) -> dict[str, Any]:
        """All figures for --json; `tokens_per_s` is the median by the server's clock, of the latest answers.

        `cost_usd` is that of the `unpriced` answers' others, and None where no answer has a known price.
        """
        found = _figures(list(self._models.values()))
        return {
            "elapsed_s": self._clock() - self._started,
            **found,
            "retries": self._retries,
            "rate_limited": self._rate_limited,
            "wait_s": self._wait_s,
            "models": {name: _figures([tally]) for name, tally in sorted(self._models.items())},
        }

    def lines(self) -> list[str]:
        """The end of a gateway, for people: the counts first."""
        found = self.summary()
        head = f"gateway: {plural(found['requests'], 'request')} in {elapsed(found['elapsed_s'])}"
        head += f", {found['failed']:,} failed" if found["failed"] else ""
        head += f", {found['cancelled']:,} cancelled" if found["cancelled"] else ""
        out = [head]
        if not found["requests"]:
            return out
        if found["retries"] or found["rate_limited"]:
            limited = f", {found['rate_limited']:,} answered with 429" if found["rate_limited"] else ""
            out.append(f"  retried   {plural(found['retries'], 'time')}{limited}")
        if found["prompt_tokens"] or found["completion_tokens"]:
            cached = f" ({large(found['cached_tokens'])} cached)" if found["cached_tokens"] else ""
            speed = found["tokens_per_s"]
            told = f"; {number(speed)} tokens/s by the server's clock" if speed is not None else ""
            tokens = f"{large(found['prompt_tokens'])} in{cached}, {large(found['completion_tokens'])} out"
            out.append(f"  tokens    {tokens}{told}")
        if found["cost_usd"] is not None or found["unpriced"]:
            unpriced = found["unpriced"] and found["cost_usd"] is not None
            more = f" and {plural(found['unpriced'], 'answer')} of unknown price" if unpriced else ""
            out.append(f"  cost      {money(found['cost_usd'])}{more}")
        if found["wait_s"] >= 0.1 * found["requests"]:
            out.append(f"  waited    {time(found['wait_s'] / found['requests'])} a request for the account's limits")
        if len(found["models"]) > 1:
            most = sorted(found["models"].items(), key=lambda item: -item[1]["requests"])
            for name, of in most[:5]:
                shown = name if len(name) <= 60 else name[:59] + "…"
                failed = f", {of['failed']:,} failed" if of["failed"] else ""
                tokens = f"{large(of['prompt_tokens'])} in, {large(of['completion_tokens'])} out"
                out.append(f"  model     {printable(shown)}: {plural(of['requests'], 'request')}{failed}, {tokens}")
            if len(most) > 5:
                out.append(f"  model     {len(most) - 5} more")
        return out

    def page(self) -> bytes:
        """Everything, in Prometheus' text format; 0.5 ms a model."""
        return page(self._families())

    def _families(self) -> Iterator[Family]:
        models = sorted(self._models.items())

        def of_model(name: str, text: str, read: Callable[[_Tally], float]) -> Family:
            samples = [((model,), read(tally)) for model, tally in models]
            return Family(name=f"cbatch_{name}", text=text, kind="counter", labels=("model",), samples=samples)

        def histogram(name: str, text: str, read: Callable[[_Tally], Histogram]) -> Family:
            samples = [((model,), read(tally)) for model, tally in models]
            return Family(name=f"cbatch_{name}", text=text, kind="histogram", labels=("model",), samples=samples)

        yield Family(
            name="cbatch_exchanges",
            text="Requests of clients that came to an end",
            kind="counter",
            labels=("route", "model", "status", "outcome"),
            samples=sorted(self._exchanges.items()),
        )
        for name, text, value in (
            ("retries", "Requests sent again after a failure", self._retries),
            ("rate_limited", "Answers with status 429 that were waited out", self._rate_limited),
            ("waiting_seconds", "Seconds that requests waited for limits, summed over all of them", self._wait_s),
        ):
            yield Family(name=f"cbatch_{name}", text=text, kind="counter", samples=[((), value)])
        gauges: list[tuple[str, str, float]] = []
        for name, text, read in (
            ("in_flight", "Requests of clients that are being answered", self.in_flight),
            ("waiting", "Requests of clients that wait for the account's limits", self.waiting),
        ):
            if read is not None:
                gauges.append((name, text, read()))
        gauges.append(("uptime_seconds", "Since this gateway started", self._clock() - self._started))
        for name, text, value in gauges:
            yield Family(name=f"cbatch_{name}", text=text, kind="gauge", samples=[((), value)])
        tokens = [
            ((model, kind), tally.tokens[f"{kind}_tokens"])
            for model, tally in models
            for kind in ("prompt", "completion")
        ]
        text = "Tokens as the server counted them"
        yield Family(name="cbatch_tokens", text=text, kind="counter", labels=("model", "kind"), samples=tokens)
        text = "Prompt tokens that the server had in its cache"
        yield of_model("cached_tokens", text, lambda tally: tally.tokens["cached_tokens"])
        text = "Completion tokens that were reasoning"
        yield of_model("reasoning_tokens", text, lambda tally: tally.tokens["reasoning_tokens"])
        yield of_model("cost_usd", "What the answers cost, where a price is known", lambda tally: tally.cost_usd)
        yield of_model("unpriced", "Answers without a known price", lambda tally: tally.unpriced)
        yield histogram("latency_seconds", "From send until last token", lambda tally: tally.latency)
        yield histogram("ttft_seconds", "From send until first token; streams", lambda tally: tally.ttft)
        text = "Completion tokens by the server's own clock"
        yield histogram("server_tokens_per_second", text, lambda tally: tally.speed)


def _figures(tallies: list[_Tally]) -> dict[str, Any]:
    outcomes: Counter[str] = Counter()
    for tally in tallies:
        outcomes.update(tally.outcomes)
    speeds = [speed for tally in tallies for speed in tally.speeds]
    return {
        "requests": outcomes.total(),
        **{name: outcomes[name] for name in ("ok", "failed", "cancelled")},
        **{name: sum(tally.tokens[name] for tally in tallies) for name in _TOKENS},
        "tokens_per_s": statistics.median(speeds) if speeds else None,
        "cost_usd": sum(tally.cost_usd for tally in tallies) if any(tally.priced for tally in tallies) else None,
        "unpriced": sum(tally.unpriced for tally in tallies),
    }
