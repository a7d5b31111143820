"""`cbatch.Client`: the batch engine's client, pacing, retries and metrics for who calls from Python.

    async with cbatch.Client() as api:
        answer = await api.ask("Why is the sky blue?")
        answers = await api.chat_parallel(prompts)

One request goes the way of a row of a batch: `send`, under the same account limits, measured by the same
formulas. What a batch keeps on disk is kept by nobody here.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import orjson

from cbatch import catalog, environment
from cbatch.client import Client as WireClient
from cbatch.client import Endpoint, OnChunk, OnReply, connect
from cbatch.errors import APIConnectionError, APIError, APIStatusError, CbatchError, JobError, RunStopped
from cbatch.fleet import Fleet
from cbatch.job import Job
from cbatch.ledger import NoLedger
from cbatch.measure import cost_usd, record
from cbatch.purse import Purse
from cbatch.render import BYTES_PER_TOKEN, DEFAULT_RESERVE_TOKENS, PREAMBLE_TOKENS
from cbatch.retry import kind_of
from cbatch.schema import (
    COLUMN_INDEX,
    Completion,
    ErrorKind,
    Failure,
    Prompt,
    Request,
    TimeInfo,
    Timeline,
    Usage,
)
from cbatch.send import send
from cbatch.session import Activity
from cbatch.throttle import Throttle

DEFAULT_MODEL = "gpt-oss-120b"
TURNS_TO_END = 10  # of the loop, for requests that were cancelled
CONCURRENCY = 1_000  # requests in flight of one `chat_parallel`; the account's limits are kept beside it

Messages = Sequence[Mapping[str, Any]]
SpeedSource = Literal["server", "client", "e2e"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """What was measured of one request, in seconds; None where it was not. The columns of a batch, by their names."""

    latency_s: float | None
    ttft_s: float | None
    ttfa_s: float | None
    tail_s: float | None
    wait_s: float | None
    backoff_s: float | None
    response_s: float | None
    net_s: float | None
    attempts: int
    server_queue_s: float | None
    server_prompt_s: float | None
    server_completion_s: float | None
    server_total_s: float | None
    server_tokens_per_s: float | None
    client_tokens_per_s: float | None
    e2e_tokens_per_s: float | None


_METRICS = {name: COLUMN_INDEX[name] for name in Metrics.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer, with what it cost and how fast it was."""

    text: str | None
    reasoning: str | None
    tool_calls: list[Any] | None
    finish_reason: str | None
    usage: Usage
    time_info: TimeInfo
    metrics: Metrics
    cost_usd: float | None  # None where no price, or no usage, is known
    model: str  # asked
    served_model: str | None
    request_id: str | None
    system_fingerprint: str | None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)  # as it was sent
    ok: Literal[True] = True

    @property
    def server_tokens_per_s(self) -> float | None:
        """By the server's own clock; None where it does not tell."""
        return self.metrics.server_tokens_per_s

    @property
    def client_tokens_per_s(self) -> float | None:
        """By the client's clock; None without a stream, or where that was too short to tell."""
        return self.metrics.client_tokens_per_s

    @property
    def tokens_per_s(self) -> float | None:
        """The best that is known; `tokens_per_s_source` says whose clock it is."""
        return getattr(self.metrics, f"{source}_tokens_per_s") if (source := self.tokens_per_s_source) else None

    @property
    def tokens_per_s_source(self) -> SpeedSource | None:
        """Whose clock `tokens_per_s` is by: the server's, else the client's, else that of the whole request."""
        metrics = self.metrics
        if metrics.server_tokens_per_s is not None:
            return "server"
        if metrics.client_tokens_per_s is not None:
            return "client"
        return "e2e" if metrics.e2e_tokens_per_s is not None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A prompt of `chat_parallel` that was not answered: a value beside the others."""

    index: int
    kind: ErrorKind
    message: str
    code: str | None
    http_status: int | None
    error: Exception | None = field(default=None, repr=False)
    text: None = None
    ok: Literal[False] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """A piece of a stream; `raw` is the chunk as the server sent it."""

    text: str
    reasoning: str
    tool_calls: list[Any]
    raw: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """A model that the key sees; None where neither the server nor the catalog says."""

    id: str
    created: int | None
    owned_by: str | None
    context_tokens: int | None
    max_output_tokens: int | None
    input_usd_per_mtok: float | None
    output_usd_per_mtok: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    """That the endpoint answers, and how fast."""

    model: str
    base_url: str
    latency_s: float | None
    ttft_s: float | None
    tokens_per_s: float | None
    tokens_per_s_source: SpeedSource | None


class Client:
    """The API, from Python: `async with Client() as api`. Belongs to the loop in which it was entered."""

    def __init__(
        self,
        *,
        api_key: str | None = None,
        api_key_file: str | Path | None = None,
        base_url: str | None = None,
        sim: bool = False,
        model: str = DEFAULT_MODEL,
        limits: Mapping[str, Any] | str | None = None,
        attempts: int = 6,
        timeout_s: float = 180.0,
        connect_s: float = 10.0,
        max_wait_s: float = 120.0,
        concurrency: int = CONCURRENCY,
        share_limits: bool = True,
        default_headers: Mapping[str, str] | None = None,
    ) -> None:
        """The key is looked for as by the commands, unless `api_key` or `api_key_file` is given.

        `limits` is that of job.yaml; `share_limits` keeps the account's limits together with all other
        processes of the key on this machine. `attempts`, `timeout_s` and `connect_s` are of one request, and
        `max_wait_s` is the longest wait that a server may ask for before one.
        Raises JobError for settings that cannot be.
        """
        _at_least_one(concurrency)
        if sim and base_url:
            raise JobError("sim and base_url exclude each other", hint="give one of them")
        self.model = model
        self.concurrency = concurrency
        self._sim = sim
        self._base_url = base_url
        self._key, self._key_file = api_key, Path(api_key_file) if api_key_file is not None else None
        self._headers = dict(default_headers or {})
        self._share = share_limits
        self._settings = _settings(limits, attempts, timeout_s, connect_s, max_wait_s)
        self.activity = Activity()
        self._stack = AsyncExitStack()
        self._asking: set[asyncio.Task[Any]] = set()
        self._closing = False
        self._fleet: Fleet | None = None
        self._wire: WireClient | None = None

    # -- the connection -------------------------------------------------------------------------

    async def __aenter__(self) -> Client:
        """Find the key and be ready; nothing is sent yet. Raises KeyProblem where there is none.

        A server on this machine may do without a key.
        """
        self._closing = False
        times = self._settings.timeouts
        if self._sim:
            from cbatch.simulate import simulator

            url, key = await self._stack.enter_async_context(simulator("unlimited")), "simulated"
        else:
            url = environment.base_url(self._base_url, "cerebras")
            found = environment.checked(self._key, "api_key") if self._key is not None else None
            key = found or environment.find_key(self._key_file, None) or ""
            if not key and not environment.is_local(url):
                raise environment.missing_key()
        endpoint = Endpoint(
            base_url=url if url.endswith("/v1") else url + "/v1",
            key=key or None,
            proxy=environment.proxy_for(url),
            connect_s=times.connect_s,
            total_s=times.total_s,
        )
        self._wire = await self._stack.enter_async_context(connect(endpoint, self._headers))
        self._fleet = Fleet(
            self._settings,
            self._wire,
            purse=Purse(None, None, spent_usd=0.0, spent_tokens=0),
            ledger=NoLedger(),
            activity=self.activity,
            throttle=Throttle(self.concurrency, self.concurrency),
            left=None,
            caps={},
            accounts=environment.state_folder() if self._share and not self._sim else None,
            clock=time.perf_counter,
            rng=random.Random(),
            patience_s=0.0,
        )
        self._stack.callback(self._fleet.close)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections; who still waits for an answer gets an APIConnectionError."""
        self._closing = True
        for task in list(self._asking):
            task.cancel()
        for _ in range(TURNS_TO_END):  # they give back what they hold before that is gone
            await asyncio.sleep(0)
        self._fleet = self._wire = None
        await self._stack.aclose()

    @property
    def is_closing(self) -> bool:
        """Whether it was closed: what is not answered by then fails."""
        return self._closing

    @property
    def base_url(self) -> str:
        """The address in use, with /v1."""
        return self._open.endpoint.base_url

    # -- asking ---------------------------------------------------------------------------------

    async def chat(self, messages: Messages, *, model: str | None = None, **params: Any) -> Answer:
        """The answer to a conversation; `params` are fields of the request. Raises APIError after the last attempt."""
        return _whole(await self._ask(self._request(messages, model, params)))

    async def ask(self, prompt: str, *, system: str | None = None, model: str | None = None, **params: Any) -> Answer:
        """The answer to one prompt. Raises APIError after the last attempt."""
        return await self.chat(_messages(prompt, system), model=model, **params)

    async def chat_parallel(
        self,
        prompts: Iterable[str | Messages],
        *,
        system: str | None = None,
        model: str | None = None,
        concurrency: int | None = None,
        **params: Any,
    ) -> list[Answer | Failed]:
        """The answers to many prompts, in their order; one that fails is a Failed beside the others.

        `prompts` are texts or lists of messages, and pulled one by one. What dooms all of them (a refused key,
        an unknown model) is raised where nothing was answered; else the rest is Failed with it, and not sent.
        """
        if isinstance(prompts, str):
            raise JobError("chat_parallel takes many prompts, and read one text", hint="use ask, or a list of texts")
        _at_least_one(concurrency or self.concurrency)
        doomed: APIError | None = None
        found: dict[int, Answer | Failed] = {}
        pulled = enumerate(_unbroken(prompts))

        async def worker() -> None:
            nonlocal doomed
            for index, prompt in pulled:
                if isinstance(prompt, _Broken):
                    found[index] = _unsent(index, "source", f"the prompts broke off: {prompt.error}", prompt.error)
                    return
                if doomed is not None:
                    found[index] = _dead(index, doomed)
                    continue
                try:
                    request = self._request(_messages(prompt, system), model, params)
                except JobError as exc:
                    found[index] = _unsent(index, "bad_request", str(exc), exc)
                    continue
                try:
                    outcome = await self._ask(request)
                except APIError as exc:
                    doomed = exc
                    found[index] = _dead(index, exc)
                    continue
                found[index] = outcome if isinstance(outcome, Answer) else _failed(index, outcome)

        # Workers are hired as prompts are there: ten prompts do not need a thousand.
        size = len(prompts) if isinstance(prompts, Sequence) else self.concurrency
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(concurrency or self.concurrency, max(size, 1))):
                    group.create_task(worker())
        except BaseExceptionGroup as errors:
            raise _first(errors) from None
        if doomed is not None and not any(one.ok for one in found.values()):
            raise doomed
        return [found[index] for index in sorted(found)]

    def stream(
        self,
        prompt: str | Messages,
        *,
        system: str | None = None,
        model: str | None = None,
        **params: Any,
    ) -> Stream:
        """The answer as it comes: `async for delta in api.stream(…)`, then `await stream.answer()`."""
        request = self._request(_messages(prompt, system), model, params | {"stream": True})
        return Stream(self, request)

    async def send(
        self,
        body: bytes,
        *,
        model: str,
        limit: int | None = None,
        on_chunk: OnChunk | None = None,
        on_reply: OnReply | None = None,
        timeline: Timeline | None = None,
    ) -> Answer | Failure:
        """The outcome of a request that is JSON already, for `model` and at most `limit` tokens of answer.

        `on_chunk` gets the chunks of a stream as they come, `on_reply` a whole answer as the server wrote it.
        Raises APIError for what would fail every other request, too.
        """
        return await self._ask(_request(model, body, limit), on_chunk, on_reply, timeline)

    def waiting_for(self, model: str) -> tuple[str, float] | None:
        """What the first of a model's requests that wait for the account's limits waits for, and how long still (s)."""
        return self._fleet.sender(model).gate.waiting_for if self._fleet else None

    @property
    def waiting(self) -> int:
        """How many requests wait for the account's limits."""
        return self._fleet.waiting if self._fleet else 0

    async def models(self) -> list[ModelCard]:
        """The models this key sees, with context and prices where they are known. Raises APIError."""
        return [_card(entry) for entry in await self._open.models()]

    async def served(self) -> list[dict[str, Any]]:
        """The same list as the server writes it. Raises APIError."""
        return await self._open.models()

    async def ping(self, model: str | None = None) -> Ping:
        """One short answer: that it works, and how fast. Raises APIError."""
        stream = self.stream("Count from one to ten, in words.", model=model, max_completion_tokens=64)
        answer = await stream.answer()
        return Ping(
            model=answer.served_model or answer.model,
            base_url=self.base_url,
            latency_s=answer.metrics.latency_s,
            ttft_s=answer.metrics.ttft_s,
            tokens_per_s=answer.tokens_per_s,
            tokens_per_s_source=answer.tokens_per_s_source,
        )

    # -- inside -----------------------------------------------------------------------------------

    @property
    def _open(self) -> WireClient:
        if self._wire is None:
            raise RuntimeError("the client is not open: use `async with cbatch.Client() as api`")
        return self._wire

    def _request(self, messages: Messages, model: str | None, params: Mapping[str, Any]) -> Request:
        model = model or self.model
        body = {"messages": list(messages), "model": model} | {k: v for k, v in params.items() if v is not None}
        try:
            encoded = orjson.dumps(body)
        except TypeError as exc:
            raise JobError(f"the request cannot be sent as JSON: {exc}") from None
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        return _request(model, encoded, limit if isinstance(limit, int) and limit > 0 else None)

    async def _ask(
        self,
        request: Request,
        on_chunk: OnChunk | None = None,
        on_reply: OnReply | None = None,
        timeline: Timeline | None = None,
    ) -> Answer | Failure:
        _ = self._open  # raises where the client is not open
        assert self._fleet is not None
        sender = self._fleet.sender(request.model)
        timeline = timeline or Timeline(ready=time.perf_counter())
        task = asyncio.current_task()
        assert task is not None
        self._asking.add(task)
        try:
            outcome, paid = await send(request, sender, timeline, task, on_chunk, on_reply)
        except asyncio.CancelledError:
            if self._closing and task.uncancel() == 0:
                raise APIConnectionError("the client was closed before the answer came") from None
            raise
        except (RunStopped, JobError) as exc:
            # What ends a batch (a refused key, an unknown model) is an error of this request, with the same advice.
            if isinstance(exc.__cause__, APIError):
                exc.__cause__.hint = exc.hint
                if exc.hint:
                    exc.__cause__.add_note(f"hint: {exc.hint}")
                raise exc.__cause__ from None
            raise
        finally:
            self._asking.discard(task)
        if isinstance(outcome, Failure):
            return outcome
        costs = [cost_usd(answer, sender.price) for answer in paid]
        row = _row(request, outcome, timeline)
        return Answer(
            text=outcome.text,
            reasoning=outcome.reasoning,
            tool_calls=outcome.tool_calls,
            finish_reason=outcome.finish_reason,
            usage=outcome.usage,
            time_info=outcome.time_info,
            metrics=Metrics(**{name: row[place] for name, place in _METRICS.items()}),
            cost_usd=None if None in costs else sum(cost for cost in costs if cost is not None),
            model=request.model,
            served_model=outcome.served_model,
            request_id=outcome.request_id,
            system_fingerprint=outcome.system_fingerprint,
            headers=outcome.headers,
            body=request.body,
        )


class Stream:
    """One answer as it comes. Sent when it is first asked for; closing it cancels the request."""

    def __init__(self, client: Client, request: Request) -> None:
        self._client, self._request = client, request
        self._queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._task: asyncio.Task[Answer | Failure] | None = None

    def __aiter__(self) -> AsyncIterator[Delta]:
        """The pieces with something in them, in their order. Raises APIError where the stream breaks."""
        return self._deltas()

    async def raw(self) -> AsyncIterator[dict[str, Any]]:
        """The chunks as the server sent them."""
        task = self._start()
        while (chunk := await self._queue.get()) is not None:
            yield chunk
        self._queue.put_nowait(None)  # for who asks again
        _whole(await task)

    async def answer(self) -> Answer:
        """The whole answer, once it is there. Raises APIError."""
        return _whole(await asyncio.shield(self._start()))

    async def aclose(self) -> None:
        """Cancel the request if it is still under way."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError, CbatchError):
                await self._task

    async def __aenter__(self) -> Stream:
        """For `async with`: closed at its end."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cancel the request if it is still under way."""
        await self.aclose()

    async def _deltas(self) -> AsyncIterator[Delta]:
        async for chunk in self.raw():
            if (delta := _delta(chunk)) is not None:
                yield delta

    def _start(self) -> asyncio.Task[Answer | Failure]:
        if self._task is None:
            self._task = asyncio.ensure_future(self._client._ask(self._request, self._queue.put_nowait))
            self._task.add_done_callback(self._ended)
        return self._task

    def _ended(self, task: asyncio.Task[Answer | Failure]) -> None:
        self._queue.put_nowait(None)
        if not task.cancelled():
            task.exception()  # seen: whoever waits is told, and nobody may


def _request(model: str, body: bytes, limit: int | None) -> Request:
    card = catalog.card(model)
    estimate = len(body) // BYTES_PER_TOKEN + PREAMBLE_TOKENS
    most = min(DEFAULT_RESERVE_TOKENS, card.max_output_tokens if card else DEFAULT_RESERVE_TOKENS)
    return Request(
        model=model,
        body=body,
        digest=b"",
        prompt_tokens_estimate=estimate,
        reserve_tokens=estimate + (limit or most),
        limit_tokens=limit or most,
    )


def _delta(chunk: Mapping[str, Any]) -> Delta | None:
    choices = chunk.get("choices")
    found = choices[0].get("delta") if choices and isinstance(choices[0], dict) else None
    if not isinstance(found, dict):
        return None
    text, reasoning = found.get("content") or "", found.get("reasoning") or found.get("reasoning_content") or ""
    calls = found.get("tool_calls") or []
    if not (text or reasoning or calls):
        return None
    return Delta(text=text, reasoning=reasoning, tool_calls=calls, raw=dict(chunk))


def _whole(outcome: Answer | Failure) -> Answer:
    if isinstance(outcome, Answer):
        return outcome
    if isinstance(outcome.error, Exception):
        raise outcome.error
    raise APIError(outcome.message)


def _failed(index: int, failure: Failure) -> Failed:
    return Failed(
        index=index,
        kind=failure.kind,
        message=failure.message,
        code=failure.code,
        http_status=failure.http_status,
        error=failure.error,
    )


def _at_least_one(concurrency: int) -> None:
    if type(concurrency) is not int or concurrency < 1:
        raise JobError(f"concurrency is {concurrency!r}", hint="give a whole number of at least 1")


@dataclass(frozen=True, slots=True)
class _Broken:
    """In place of a prompt: where they come from raised."""

    error: Exception


def _unbroken(prompts: Iterable[str | Messages]) -> Iterator[str | Messages | _Broken]:
    """The prompts, and at the end the error of where they come from: what was paid for must not go with it."""
    try:
        yield from prompts
    except Exception as exc:  # noqa: BLE001  the caller's; it is told in its place
        yield _Broken(exc)


def _unsent(index: int, kind: ErrorKind, message: str, error: Exception) -> Failed:
    return Failed(index=index, kind=kind, message=message, code=None, http_status=None, error=error)


def _dead(index: int, error: APIError) -> Failed:
    return Failed(
        index=index,
        kind=kind_of(error),
        message=str(error),
        code=getattr(error, "code", None),
        http_status=error.status if isinstance(error, APIStatusError) else None,
        error=error,
    )


def _row(request: Request, answer: Completion, timeline: Timeline) -> list[Any]:
    """The result columns of one answer: the same formulas as in a batch."""
    prompt = Prompt(id="", index=0, sample=0, model=request.model, fields=None, raw=b"", origin="")
    return record(
        key=b"",
        prompt=prompt,
        request=request,
        outcome=answer,
        timeline=timeline,
        cost=None,
        tool_calls=None,
        parsed=None,
        input_json=None,
        carried=[],
    ).row


def _messages(prompt: str | Messages, system: str | None) -> Messages:
    if not isinstance(prompt, str | Sequence):
        raise JobError(f"a prompt is {type(prompt).__name__}", hint="accepted: a text, or a list of messages")
    messages: list[Mapping[str, Any]] = [{"role": "system", "content": system}] if system is not None else []
    if isinstance(prompt, str):
        messages.append({"role": "user", "content": prompt})
    else:
        messages.extend(prompt)
    return messages


def _card(entry: Mapping[str, Any]) -> ModelCard:
    name = str(entry["id"])
    card, price = catalog.card(name), catalog.price(name)
    created = entry.get("created")
    return ModelCard(
        id=name,
        created=created if isinstance(created, int) else None,
        owned_by=str(entry["owned_by"]) if entry.get("owned_by") else None,
        context_tokens=card.context_tokens if card else None,
        max_output_tokens=card.max_output_tokens if card else None,
        input_usd_per_mtok=price.input_usd if price else None,
        output_usd_per_mtok=price.output_usd if price else None,
    )


def _settings(
    limits: Mapping[str, Any] | str | None, attempts: int, timeout_s: float, connect_s: float, max_wait_s: float
) -> Job:
    """The part of a job that a client has."""
    from pydantic import ValidationError

    settings: dict[str, Any] = {
        "name": "library",
        "model": [DEFAULT_MODEL],
        "input": {"path": ["-"]},
        "prompt": "-",
        "limits": limits or "auto",
        "retry": {"attempts": attempts, "max_wait_s": float(max_wait_s)},
        "timeouts": {"total_s": float(timeout_s), "connect_s": float(connect_s)},
        "folder": ".",
    }
    try:
        return Job.model_validate(settings)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        raise JobError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}; read {first['input']!r}") from None


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
