"""Job: what a job is, every key of job.yaml with its type, its default and what it accepts.

`jobfile.py` reads one from text; here is only what it means.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_serializer, field_validator, model_validator

from cbatch import catalog, gates

MADE = "prompts.jsonl"  # in the run directory: prompts that are made, or taken from an earlier run
BATCH = "openai-batch"  # the input.format of a provider's request lines
AUTO_CONCURRENCY = (1, 512)  # where `auto` stays; 1,000 requests/min at 0.3 s an answer need 5
LATER = "comes in a later release of cbatch"

# Keys that are promised and not built: path -> what they will do. None and absent are fine.
LATER_KEYS: dict[tuple[str, ...], str] = {
    ("prompt", "turns"): "multi-turn prompts",
}
TRAVEL_FIELDS = ("stream", "stream_options")  # how an answer travels: no part of what is asked

COUNT = re.compile(r"([0-9][0-9_]*(?:\.[0-9]+)?)\s*([kKmM]?)")
PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]+)?)\s*%")
RANGE = re.compile(r"([0-9]{1,6})\s*(?:\.\.|-)\s*([0-9]{1,6})")
RATES = re.compile(r"([0-9]{1,6}(?:\.[0-9]+)?)\s*(?:\.\.|-)\s*([0-9]{1,6}(?:\.[0-9]+)?)")
TIME = re.compile(r"([0-9]{1,9}(?:\.[0-9]+)?)\s*(s|min|m|h|d)?")
FAIL_IF = re.compile(r"\s*errors\s*>\s*([0-9]{1,15}(?:\.[0-9]+)?)\s*(%?)\s*")
_SHARD = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_REMOTE = re.compile(r"[a-z][a-z0-9+.-]+://")


def _count(value: object) -> object:
    """A number such as 1000, "20M" or "300K" as an int; anything else unchanged, for the type error."""
    if isinstance(value, str):
        if not (match := COUNT.fullmatch(value.strip())):
            raise ValueError("not a number; accepted: 1000, 300K, 1M")
        number = Decimal(match[1].replace("_", "")) * {"": 1, "k": 1_000, "m": 1_000_000}[match[2].lower()]
        if number != number.to_integral_value():
            raise ValueError("not a whole number")
        return int(number)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _auto(value: object) -> object:
    """`auto` is what a missing limit means, too: learned from headers, refusals, and what gets through."""
    return None if value == "auto" else value


def _time(value: object) -> object:
    """Seconds in 90, "90s", "15m", "2h" or "1d"."""
    if isinstance(value, str):
        if not (match := TIME.fullmatch(value.strip())):
            raise ValueError("not a time; accepted: 90, 90s, 15m, 2h, 1d")
        return float(match[1]) * {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}[match[2] or ""]
    return float(value) if type(value) is int else value


def _share(value: object) -> object:
    """A share such as 0.01 or "1%"."""
    if isinstance(value, str):
        if not (match := PERCENT.fullmatch(value.strip())):
            raise ValueError("not a share; accepted: 0.01, 1%")
        return float(match[1]) / 100
    return float(value) if type(value) is int else value


Count = Annotated[int, BeforeValidator(_count), Field(ge=1, le=10**15)]
Limit = Annotated[Count | None, BeforeValidator(_auto)]
Seconds = Annotated[float, Field(gt=0)]
Time = Annotated[float, BeforeValidator(_time), Field(gt=0)]
Wait = Annotated[float, BeforeValidator(_time), Field(ge=0)]
Share = Annotated[float, BeforeValidator(_share), Field(gt=0, le=1)]


class Part(BaseModel):
    """One mapping of job.yaml: frozen, strict about types, unknown keys are errors.

    A check that concerns one key starts its message with that key and a colon: it is told with its line.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Synthetic(Part):
    """Prompts made of common words: so many, of about so many tokens each, the same for the same seed."""

    rows: Count = 1_000
    tokens: Annotated[list[Annotated[int, Field(ge=16, le=1_000_000)]], Field(min_length=1)]
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _one(cls, value: object) -> object:
        if isinstance(value, dict) and type(value.get("tokens")) is int:
            return {**value, "tokens": [value["tokens"]]}
        return value


class Input(Part):
    """Which rows to read; paths are absolute or relative to the job file."""

    path: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
    synthetic: Synthetic | None = None
    format: Literal["auto", "jsonl", "json", "csv", "parquet", "openai-batch"] = "auto"
    id: str | None = None
    limit: Count | None = None
    where: str | None = None
    shard: str | None = None
    sample: Count | None = None
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _paths(cls, value: object) -> object:
        if isinstance(value, str | list):
            value = {"path": value}
        if isinstance(value, dict) and isinstance(value.get("path"), str):
            value = {**value, "path": [value["path"]]}
        if isinstance(value, dict) and value.get("synthetic") is not None:
            if value.get("path") not in (None, [MADE]):
                raise ValueError("synthetic: prompts are read from `path` or made, not both")
            value = {**value, "path": [MADE]}
        return value

    @model_validator(mode="after")
    def _check(self) -> Input:
        for path in self.path:
            if _REMOTE.match(path):
                raise ValueError(f"path: {path}: reading from remote storage {LATER}; copy the file here")
        if self.shard is not None:
            match = _SHARD.fullmatch(self.shard)
            if not match or not 1 <= int(match[1]) <= int(match[2]):
                raise ValueError(f"shard: {self.shard!r} is not like '1/4' (from 1/N to N/N)")
        return self

    @property
    def is_batch(self) -> bool:
        """Whether the rows are request lines of a provider's batch API, which hold all there is to send."""
        return self.format == BATCH

    @property
    def shard_of(self) -> tuple[int, int] | None:
        """(which, of how many), counted from 0; None without a shard."""
        if self.shard is None:
            return None
        which, count = self.shard.split("/")
        return int(which) - 1, int(count)


class PromptSpec(Part):
    """How a row becomes messages: templates, a column of messages, or a column with the raw body."""

    system: str | None = None
    user: str | None = None
    template_file: str | None = None
    messages: str | None = None
    body: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _text(cls, value: object) -> object:
        return {"user": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_way(self) -> PromptSpec:
        given = [name for name in ("user", "template_file", "messages", "body") if getattr(self, name) is not None]
        if len(given) != 1:
            said = " and ".join(given) if given else "none of them"
            raise ValueError(f"exactly one of user, template_file, messages, body is needed; read {said}")
        if self.body is not None and self.system is not None:
            raise ValueError("system does not go with body: the row's body is sent as it is")
        return self


class Params(Part):
    """The fields of a chat completion request, as the API names them. Source: Cerebras API reference."""

    max_completion_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    min_tokens: Annotated[int, Field(ge=-1)] | None = None
    min_completion_tokens: Annotated[int, Field(ge=-1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    user: str | None = None
    reasoning_effort: Literal["none", "low", "medium", "high"] | None = None
    reasoning_format: Literal["none", "parsed", "text_parsed", "raw", "hidden"] | None = None
    clear_thinking: bool | None = None
    disable_reasoning: bool | None = None
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    prediction: dict[str, Any] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=1024)] | None = None
    service_tier: Literal["auto", "default", "flex", "priority"] | None = None
    model_parameters: dict[str, Any] | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _refused(cls, value: object) -> object:
        if isinstance(value, dict):
            if "n" in value:
                raise ValueError("n: not accepted, for every answer needs its own row; use `samples: N`")
            if "model" in value:
                raise ValueError("model: a key of the job, not of params")
            if "messages" in value:
                raise ValueError("messages: they are made from `prompt`, so not a key of params")
            if value.get("max_tokens") and value.get("max_completion_tokens"):
                raise ValueError("max_tokens: the old name of max_completion_tokens; give one of them")
        return value

    def body(self) -> dict[str, Any]:
        """The fields that were given, ready to be sent; a limit that is `auto` is no part of the request's identity."""
        given = self.model_dump(exclude_none=True)
        return {
            k: v for k, v in given.items() if k not in TRAVEL_FIELDS and (k, v) != ("max_completion_tokens", "auto")
        }

    def travel(self) -> dict[str, Any]:
        """The fields that say how the answer travels; {} where it comes in one piece."""
        given = self.model_dump(include=set(TRAVEL_FIELDS), exclude_none=True)
        return given if given.get("stream") else {}

    @property
    def right_sized(self) -> bool:
        """Whether max_completion_tokens is `auto`: ours to choose from what is observed."""
        return self.max_completion_tokens == "auto"

    @property
    def completion_limit(self) -> int | None:
        """max_completion_tokens under either name; None where none was given."""
        limit = self.max_completion_tokens
        return limit if isinstance(limit, int) else self.max_tokens

    @property
    def answer_schema(self) -> dict[str, Any] | None:
        """The JSON Schema answers must fit; {} for any JSON object, None for free text."""
        form = self.response_format or {}
        if form.get("type") == "json_schema":
            schema: dict[str, Any] = form["json_schema"]["schema"]
            return schema
        return {"type": "object"} if form.get("type") == "json_object" else None


class Limits(Part):
    """How fast to send. What is not given is learned; a tier fills in the catalog's, and a number here wins."""

    concurrency: int | tuple[int, int] = AUTO_CONCURRENCY
    rpm: Limit = None
    rph: Limit = None
    rpd: Limit = None
    tpm: Limit = None
    tph: Limit = None
    tpd: Limit = None
    tier: Literal["free-trial", "developer"] | None = None
    share: Share = 1.0

    @model_validator(mode="before")
    @classmethod
    def _all_auto(cls, value: object) -> object:
        return {} if value == "auto" else value

    @field_validator("concurrency", mode="before")
    @classmethod
    def _bounds(cls, value: object) -> object:
        if value == "auto":
            return AUTO_CONCURRENCY
        if isinstance(value, str) and (match := RANGE.fullmatch(value.strip())):
            value = (int(match[1]), int(match[2]))
        bounds = value if isinstance(value, tuple) else (value, value)
        for bound in bounds:
            if type(bound) is not int or not 1 <= bound <= 20_000:
                said = "..".join(str(one) for one in bounds) if bounds[0] != bounds[1] else repr(value)
                raise ValueError(f"{said} is not a number from 1 to 20,000, a range such as 5..200, or auto")
        if bounds[0] > bounds[1]:
            raise ValueError(f"{bounds[0]}..{bounds[1]} is the wrong way round; write {bounds[1]}..{bounds[0]}")
        return value

    @field_serializer("concurrency")
    def _as_written(self, value: int | tuple[int, int]) -> int | str:
        return f"{value[0]}..{value[1]}" if isinstance(value, tuple) else value

    @property
    def in_flight(self) -> tuple[int, int]:
        """The least and the most requests in flight; the same number where it is fixed."""
        return self.concurrency if isinstance(self.concurrency, tuple) else (self.concurrency, self.concurrency)

    def quota(self, model: str) -> catalog.Quota:
        """All limits that are known for `model`; None where they are to be learned."""
        known = catalog.card(model) if self.tier else None
        tier = known.tiers.get(self.tier or "") if known else None
        tier = tier or catalog.Quota()  # a model newer than the tables has none
        return catalog.Quota(
            rpm=self.rpm or tier.rpm,
            rph=self.rph or tier.rph,
            rpd=self.rpd or tier.rpd,
            tpm=self.tpm or tier.tpm,
            total_tpm=None if self.tpm else tier.total_tpm,
            tph=self.tph or tier.tph,
            tpd=self.tpd or tier.tpd,
        )

    def per_minute(self, model: str) -> tuple[int | None, int | None]:
        """(requests, tokens) per minute for `model`; None is no limit."""
        quota = self.quota(model)
        return quota.rpm, quota.tpm


class Retry(Part):
    """How often to try again; `max_wait_s` is the longest wait before one retry.

    `max_outage_s`: an endpoint that stops answering in the middle is waited for so long. `hedge`: this
    share of the tokens may be spent on asking again where an answer is later than nearly all others.
    """

    attempts: Annotated[int, Field(ge=1, le=100)] = 6
    max_wait_s: Time = 120.0
    max_outage_s: Time = 900.0
    reask: Annotated[int, Field(ge=0, le=20)] = 2
    hedge: Share | None = None

    @model_validator(mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        if isinstance(value, dict) and value.get("hedge") in (False, 0, "off"):
            return {**value, "hedge": None}
        return value


class Budget(Part):
    """Where to stop: usd and tokens of all sessions of a run, wall time of each."""

    usd: Annotated[float, Field(gt=0)] | None = None
    tokens: Count | None = None
    wall: Time | None = None

    @model_validator(mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        if isinstance(value, dict) and type(value.get("usd")) is int:
            return {**value, "usd": float(value["usd"])}
        return value


class Timeouts(Part):
    """When to give up on one request."""

    connect_s: Seconds = 10.0
    total_s: Seconds = 180.0  # a whole answer; 40,000 tokens take 40 s on the slowest model


def _levels(key: str, value: object, form: re.Pattern[str]) -> list[float] | tuple[float, ...]:
    """A number as a list of one, a range as a pair; numbers of `rate` as floats."""
    number: Callable[[Any], float] = int if key == "concurrency" else float
    if isinstance(value, str) and (match := form.fullmatch(value.strip())):
        return number(match[1]), number(match[2])
    values = value if isinstance(value, list | tuple) else [value]
    for one in values:
        if type(one) is not int and type(one) is not number:
            kind = "a whole number" if number is int else "a number"
            raise ValueError(f"{key}: read {json.dumps(one, default=str)}; accepted: {kind}, a list of them, or 1..256")
    if not values or len(set(values)) < len(values):
        raise ValueError(f"{key}: read {values}; accepted: at least one number, and none twice; see load.repeats")
    made = [number(one) for one in values]
    return tuple(made) if isinstance(value, tuple) else made


class Load(Part):
    """A benchmark: the prompts are asked again and again, in blocks of one load each.

    closed: so many in flight, each answer is followed by the next request. open: requests leave at a rate,
    whatever the answers do. search: the highest load that meets `slo` without a 429. replay: the prompts
    of an earlier run at the times they were sent.
    """

    mode: Literal["closed", "open", "search", "replay"] = "closed"
    concurrency: list[int] | tuple[int, int] | None = None
    rate: list[float] | tuple[float, float] | None = None
    arrival: Literal["constant", "poisson"] = "poisson"
    warmup_s: Wait | None = None
    duration_s: Time | None = None
    requests: Count | None = None
    repeats: Annotated[int, Field(ge=1, le=1_000)] = 1
    slo: list[str] = Field(default_factory=list)
    of: str | None = None
    speed: Annotated[float, Field(gt=0)] = 1.0
    max_in_flight: Annotated[int, Field(ge=1, le=20_000)] = 1_000
    seed: int = 0
    calibrate: bool = True

    @model_validator(mode="before")
    @classmethod
    def _shorthands(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        given = {k: v for k, v in value.items() if v is not None}
        for key, form in (("concurrency", RANGE), ("rate", RATES)):
            if key in given:
                given[key] = _levels(key, given[key], form)
        if isinstance(given.get("slo"), str):
            given["slo"] = [given["slo"]]
        if type(given.get("speed")) is int:
            given["speed"] = float(given["speed"])
        return given

    @field_serializer("concurrency", "rate")
    def _as_written(self, value: list[float] | tuple[float, float] | None) -> Any:
        return f"{value[0]:g}..{value[1]:g}" if isinstance(value, tuple) else value

    @model_validator(mode="after")
    def _check(self) -> Load:
        for key, least, most in (("concurrency", 1, 20_000), ("rate", 0.001, 100_000)):
            values = getattr(self, key)
            if values is None:
                continue
            for one in values:
                if not least <= one <= most:
                    raise ValueError(f"{key}: {one:g} is not a number from {least:g} to {most:,}")
            if isinstance(values, tuple) != (self.mode == "search"):
                wanted = "a range such as 1..256" if self.mode == "search" else "a number or a list of them"
                said = f"{values[0]:g}..{values[1]:g}" if isinstance(values, tuple) else f"{values}"
                raise ValueError(f"{key}: read {said}; accepted in mode {self.mode}: {wanted}")
            if isinstance(values, tuple) and values[0] >= values[1]:
                raise ValueError(f"{key}: {values[0]:g}..{values[1]:g} is no range to search in")
        used = _USED[self.mode]
        if self.mode == "search" and self.rate is None:
            used = used - {"arrival", "seed", "max_in_flight"}
        for key in ("rate", "slo", "of"):
            if key in _NEEDED[self.mode] and not getattr(self, key):
                raise ValueError(f"{key}: mode {self.mode} needs it")
        for key in type(self).model_fields:
            if key not in used and getattr(self, key) != type(self).model_fields[key].get_default(
                call_default_factory=True
            ):
                over = " over concurrency" if self.mode == "search" and key in _USED["search"] else ""
                raise ValueError(f"{key}: does not go with mode {self.mode}{over}")
        if self.mode == "search" and self.rate and self.concurrency:
            raise ValueError("rate: a search goes over concurrency or over rate, not over both")
        for text in self.slo:
            try:
                gates.parse(text)
            except ValueError as exc:
                raise ValueError(f"slo: {exc}") from None
        return self


_EVERY = {"mode", "requests", "calibrate"}
_TIMED = _EVERY | {"warmup_s", "duration_s"}
_USED = {
    "closed": _TIMED | {"concurrency", "repeats"},
    "open": _TIMED | {"rate", "arrival", "seed", "max_in_flight", "repeats"},
    "search": _TIMED | {"concurrency", "rate", "slo", "arrival", "seed", "max_in_flight"},
    "replay": _EVERY | {"of", "speed", "max_in_flight", "repeats"},
}
_NEEDED = {"closed": (), "open": ("rate",), "search": ("slo",), "replay": ("of",)}


class Results(Part):
    """What the Parquet parts hold besides the result columns."""

    carry: list[str] = Field(default_factory=list)
    input: bool = True
    part_rows: Annotated[int, Field(ge=1, le=10_000_000)] = 50_000
    format: Literal["parquet"] = "parquet"

    @model_validator(mode="before")
    @classmethod
    def _one(cls, value: object) -> object:
        if isinstance(value, dict) and isinstance(value.get("carry"), str):
            return {**value, "carry": [value["carry"]]}
        return value


class FailIf(Part):
    """When a finished run counts as failed: more than this many errors, or this share of the prompts."""

    count: float = 0.0
    percent: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _text(cls, value: object) -> object:
        if isinstance(value, str):
            if not (match := FAIL_IF.fullmatch(value)):
                raise ValueError(f"{value!r} is not like 'errors > 1%' or 'errors > 10'")
            number = float(match[1])
            return {"percent": number} if match[2] else {"count": number}
        return value

    def says_no(self, failed: int, total: int) -> bool:
        """Whether `failed` of `total` prompts is too many."""
        if self.percent is not None:
            return total > 0 and 100.0 * failed / total > self.percent
        return failed > self.count

    def __str__(self) -> str:
        """As it is written in job.yaml."""
        return f"errors > {self.percent:g}%" if self.percent is not None else f"errors > {self.count:g}"


_LINE = {"body": "body"}  # the prompt that a request line is
_LINE_ID = "custom_id"


class Job(Part):
    """A whole job, every default filled in."""

    name: Annotated[str, Field(pattern=r"^[^/\x00-\x1f]+$")]
    model: list[Annotated[str, Field(min_length=1)]]  # [] where the lines of a batch file name it
    input: Input
    prompt: PromptSpec
    output: str = "runs/{name}"
    endpoint: str = "cerebras"
    params: Params = Field(default_factory=Params)
    samples: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    limits: Limits = Field(default_factory=Limits)
    retry: Retry = Field(default_factory=Retry)
    budget: Budget = Field(default_factory=Budget)
    timeouts: Timeouts = Field(default_factory=Timeouts)
    fail_if: FailIf = Field(default_factory=FailIf)
    results: Results = Field(default_factory=Results)
    load: Load | None = None
    gates: list[str] = Field(default_factory=list)
    folder: str  # of the job file: input paths start here
    places: dict[str, str] = Field(default_factory=dict, exclude=True)  # key -> "job.yaml:3", for messages

    @model_validator(mode="before")
    @classmethod
    def _shorthands(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        value = dict(value)
        for key in ("model", "gates"):
            if isinstance(value.get(key), str):
                value[key] = [value[key]]
        load, rows = value.get("load"), value.get("input")
        if isinstance(load, dict) and load.get("mode") == "replay":
            if rows is not None and rows != {"path": [MADE]}:
                raise ValueError("input: a replay takes the prompts of `load.of`")
            value["input"] = {"path": [MADE]}
        elif isinstance(rows, dict) and rows.get("synthetic") is not None:
            value.setdefault("prompt", "{{ prompt }}")
        if isinstance(rows, dict) and rows.get("format") == BATCH:
            if value.get("prompt") not in (None, _LINE):
                raise ValueError(f"prompt: does not go with input.format {BATCH}: a line is a whole request")
            if rows.get("id") not in (None, _LINE_ID):
                raise ValueError(f"input.id: does not go with format {BATCH}: a line's id is its {_LINE_ID}")
            value |= {"prompt": _LINE, "input": {**rows, "id": _LINE_ID}}
            if value.get("model") is None:
                value["model"] = []
        return value

    @model_validator(mode="after")
    def _check(self) -> Job:
        for text in self.gates:
            try:
                gates.parse(text)
            except ValueError as exc:
                raise ValueError(f"gates: {exc}") from None
        if not self.model:
            if not self.input.is_batch:
                raise ValueError("model: read []; accepted: a model's name, or a list of them")
            if self.load is not None:
                raise ValueError("model: a load run asks what it is told to ask: name the model here")
            if "{model}" in self.output:
                raise ValueError("output: {model} is a model of this file, and here the lines of the input name it")
        if self.load is not None and self.samples != 1:
            raise ValueError("samples: a load run asks its prompts again and again; use load.repeats or load.requests")
        if self.load is not None and self.load.mode in ("replay", "search") and len(self.model) > 1:
            raise ValueError(f"model: a {self.load.mode} goes to one model, and here are {len(self.model)}")
        if self.load is not None and self.retry.hedge is not None:
            raise ValueError("retry.hedge: a load run asks what it was told to ask, and nothing twice")
        if len(set(self.model)) != len(self.model):
            raise ValueError("model: the same model twice; use `samples: N` for more answers per prompt")
        if "@" in self.endpoint:  # first of all checks: what follows quotes the address
            raise ValueError("endpoint: an address with a user name or password in it is not accepted")
        if self.endpoint not in ("cerebras", "sim") and not re.match(r"https?://[^/\s]+", self.endpoint):
            raise ValueError(f"endpoint: {self.endpoint!r} is not cerebras, sim, or a http:// or https:// URL")
        if self.name in (".", ".."):
            raise ValueError(f"name: {self.name!r} is a folder, not a name")
        if not self.output or any(ord(c) < 32 for c in self.output):
            raise ValueError(f"output: {self.output!r} cannot be a folder")
        for found in _PLACEHOLDER.findall(self.output):
            if found not in ("date", "time", "model", "name"):
                raise ValueError(f"output: {{{found}}} is unknown; accepted: {{date}} {{time}} {{model}} {{name}}")
        if any(brace in _PLACEHOLDER.sub("", self.output) for brace in "{}"):
            raise ValueError(f"output: {self.output!r} has a brace without its partner")
        for model in self.model:
            self.check_model(model)
        return self

    def check_model(self, model: str) -> None:
        """Raise ValueError, its message starting with the key, where the job does not go with a model."""
        known = catalog.card(model)
        if (
            self.limits.tier
            and not (known and self.limits.tier in known.tiers)
            and not (self.limits.rpm and self.limits.tpm)
        ):
            near = difflib.get_close_matches(model, catalog.load()[0], n=1)
            guess = f"did you mean {near[0]}? else " if near else ""
            raise ValueError(
                f"limits.tier: no limits are known for model {model!r}; {guess}give limits.rpm and limits.tpm"
            )
        if self.budget.usd is not None and catalog.price(model) is None:
            raise ValueError(
                f"budget.usd: no price is known for model {model!r}, so no budget in USD can be kept; "
                "use budget.tokens, or refresh the prices with `cbatch models --refresh`"
            )
        limit = self.params.completion_limit
        if known and limit and limit > known.max_output_tokens:
            raise ValueError(
                f"params.max_completion_tokens: {limit:,} is more than {model} can write, {known.max_output_tokens:,}"
            )

    def at(self, key: str) -> str:
        """`job.yaml:3: input.id`: where a key was given, or the nearest one above it."""
        parts = key.split(".")
        for length in range(len(parts), 0, -1):
            if place := self.places.get(".".join(parts[:length])):
                return f"{place}: {key}"
        return key


def bound(in_flight: int) -> int:
    """How many rows may be sent and not yet durable: what a crash can cost at most."""
    return in_flight + in_flight // 4 + 16
