"""What a gateway did since it started: for its last lines, for --json and for Prometheus.

Counts, and the messages of errors: no text of a request or an answer, and nothing of a key, comes in here. Memory
is bounded, whatever clients ask for: the name of a model is a client's choice, so it is counted by itself only once
there was an answer.
"""

from __future__ import annotations

import statistics
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cbatch.metrics import LATENCY_S, SPEED, TTFT_S, Family, Histogram, page
from cbatch.report.words import elapsed, large, money, number, plural, printable, time

Outcome = Literal["ok", "failed", "cancelled"]

MAX_NAMES = 100  # models that answered: what comes beyond is counted as OTHER
OTHER = "(other)"  # also a route that nobody serves
UNKNOWN = "(unknown)"  # of what failed: a model that never answered, or none at all
ROUTES = frozenset({"/responses", "/chat/completions"})  # those that are asked by POST
MAX_KINDS = 100  # of failures: beyond, a rare one is forgotten
MOST = 10  # kinds of failures in the summary; the last lines have 3
MAX_CHARS = 300  # of an error's message
LATEST = 10_000  # answers whose speed is kept for the median

_TOKENS = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")


class _Tally:
    """What the exchanges with one model add up to."""

    __slots__ = (
        "cost_usd", "latency", "outcomes", "priced", "speed", "speeds", "tokens", "ttft", "unpriced", "without_usage",
    )  # fmt: skip

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.tokens = dict.fromkeys(_TOKENS, 0)
        self.cost_usd = 0.0
        self.priced = self.unpriced = self.without_usage = 0
        self.latency, self.ttft, self.speed = Histogram(LATENCY_S), Histogram(TTFT_S), Histogram(SPEED)
        self.speeds: deque[float] = deque(maxlen=LATEST)


@dataclass(slots=True)
class _Kind:
    """How often something failed in one way, and the first message of it; `varies` if there were others."""

    message: str
    requests: int = 0
    varies: bool = False


class _Failures:
    """The ways in which requests failed: by status and code, by status and message where there is no code."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[int, str | None, str], _Kind] = {}

    def add(self, status: int, code: str | None, message: str) -> None:
        """Count one."""
        message = " ".join(message[:MAX_CHARS].split())
        key = (status, code, "" if code else message)
        kind = self._kinds.get(key)
        if kind is None:
            if len(self._kinds) >= MAX_KINDS:
                # The oldest of the rarest: one that comes again and again outlives messages that each come once.
                del self._kinds[min(self._kinds, key=lambda one: self._kinds[one].requests)]
            kind = self._kinds[key] = _Kind(message)
        kind.requests += 1
        kind.varies |= kind.message != message

    def most(self) -> list[dict[str, Any]]:
        """The most frequent first, at most MOST; `message` is an example where `varies`."""
        found = sorted(self._kinds.items(), key=lambda item: -item[1].requests)[:MOST]
        return [{"status": status, "code": code, **asdict(kind)} for (status, code, _), kind in found]


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
        self._models: dict[str, _Tally] = {}  # of those that answered
        self._unknown = _Tally()
        self._failures = _Failures()
        self._exchanges: Counter[tuple[str, str, str, str]] = Counter()
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
        error: str | None = None,
        code: str | None = None,
    ) -> None:
        """Count one exchange; `model` is the upstream's, None is not measured, `rate_limited` are 429s waited out.

        `error` is the message of what failed, and `code` its code.
        """
        has_usage = prompt_tokens is not None or completion_tokens is not None
        model, tally = self._tally(model, answered=outcome == "ok" or has_usage)
        self._exchanges[route if route in ROUTES else OTHER, model, str(status), outcome] += 1
        tally.outcomes[outcome] += 1
        if outcome == "failed":
            self._failures.add(status, code, error or "")
        elif outcome == "ok" and not has_usage:
            tally.without_usage += 1
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

    def _tally(self, model: str, *, answered: bool) -> tuple[str, _Tally]:
        """The name to count under, and its tally; only what `answered` gets a new one."""
        tally = self._models.get(model)
        if tally is None and not (answered and model not in ("", UNKNOWN)):
            return UNKNOWN, self._unknown
        if tally is None:
            if len(self._models) >= MAX_NAMES:
                model = OTHER
            tally = self._models.setdefault(model, _Tally())
        return model, tally

    def summary(self) -> dict[str, Any]:
        """All figures for --json; `tokens_per_s` is the median by the server's clock, of the latest answers.

        `cost_usd` is that of the `unpriced` answers' others, and None where no answer has a known price; of the
        answers `without_usage` neither cost nor tokens are known.
        """
        models = dict(sorted(self._models.items()))
        if self._unknown.outcomes:
            models[UNKNOWN] = self._unknown
        found = _figures(list(models.values()))
        return {
            "elapsed_s": self._clock() - self._started,
            **found,
            "retries": self._retries,
            "rate_limited": self._rate_limited,
            "wait_s": self._wait_s,
            "failures": self._failures.most(),
            "models": {name: _figures([tally]) for name, tally in models.items()},
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
        out += [f"  failed    {_told(kind)}" for kind in found["failures"][:3]]
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
        if found["without_usage"]:
            answers = plural(found["without_usage"], "answer")
            out.append(f"  unknown   {answers} without usage: their tokens and cost are missing here")
        if found["wait_s"] >= 0.1 * found["requests"]:
            out.append(f"  waited    {time(found['wait_s'] / found['requests'])} a request for the account's limits")
        if len(found["models"]) > 1:
            unknown = found["models"].pop(UNKNOWN, None)
            most = sorted(found["models"].items(), key=lambda item: -item[1]["requests"])
            for name, of in most[:5]:
                shown = name if len(name) <= 60 else name[:59] + "…"
                tokens = f"{large(of['prompt_tokens'])} in, {large(of['completion_tokens'])} out"
                out.append(f"  model     {printable(shown)}: {_requests(of)}, {tokens}")
            if len(most) > 5:
                out.append(f"  model     {len(most) - 5} more")
            if unknown:
                out.append(f"  model     {UNKNOWN}: {_requests(unknown)}")
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
        text = "Answers without usage: their tokens and cost are not known"
        yield of_model("without_usage", text, lambda tally: tally.without_usage)
        yield histogram("latency_seconds", "From send until last token", lambda tally: tally.latency)
        yield histogram("ttft_seconds", "From send until first token; streams", lambda tally: tally.ttft)
        text = "Completion tokens by the server's own clock"
        yield histogram("server_tokens_per_second", text, lambda tally: tally.speed)


def _told(kind: dict[str, Any]) -> str:
    """One way to fail: "401 Wrong API Key (31)"."""
    message = kind["message"]
    if kind["varies"]:
        message = f"{kind['code']}, such as: {message}"
    message = printable(message or kind["code"] or "without a message")
    return f"{kind['status']} {message if len(message) <= 100 else message[:99] + '…'} ({kind['requests']:,})"


def _requests(of: dict[str, Any]) -> str:
    return plural(of["requests"], "request") + (f", {of['failed']:,} failed" if of["failed"] else "")


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
        "without_usage": sum(tally.without_usage for tally in tallies),
    }
