"""Where a request goes and as which model: the gateway's file, read again when it changes.

provider: cerebras                # where requests go that do not say it themselves
providers:                        # besides `cerebras`, which is always there
  openai: {mode: responses, base_url: https://api.openai.com/v1, key_env: OPENAI_API_KEY}
models:                           # first match wins; * and ? as in a shell
  "gpt-5*": gpt-oss-120b
  "o3*": {provider: openai, model: o3}
default_model: null               # for names that no pattern matches and the catalog does not know
max_completion_tokens: null       # where the client gives none: it is what the account's limits reserve
limits: {tpm: 1M}                 # as in job.yaml; this line and those below are read at the start only
retry: {attempts: 4, max_wait_s: 60}
concurrency: 1000                 # requests on the way to one provider at once
timeout_s: 180                    # of one answer
log: {max_exchange: 2MB, max_total: 1GB}
"""

from __future__ import annotations

import fnmatch
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from cbatch import catalog
from cbatch.client import normalise_base_url
from cbatch.errors import JobError
from cbatch.job import Limits as JobLimits
from cbatch.job import Part, Time
from cbatch.joberrors import job_error
from cbatch.yamltext import Where, read_yaml, shown

CEREBRAS = "cerebras"
# What Codex asks for where nobody chose a model (gpt-5-codex in 0.42.0, gpt-5.5, gpt-5.6-*, gpt-6-*), and other
# names that Cerebras never had: with no file, the newest Codex and the oldest work as they are.
MODELS = MappingProxyType(dict.fromkeys(("gpt-5*", "gpt-6*", "codex-*", "o3*", "o4*"), "gpt-oss-120b"))
MAX_FILE_BYTES = 1_000_000  # a file of a thousand providers has a tenth of it
SETTLED_S = 2.0  # the coarsest times of a file system: a younger file may change once more without looking newer
START_ONLY = ("limits", "retry", "concurrency", "timeout_s", "log")

_PROVIDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")  # it stands in a header, in the log and in messages
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,99}")
_BYTES = re.compile(r"([0-9]{1,15}(?:\.[0-9]+)?)\s*([kKMG]?)B?")
_UNITS = {"": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000}

Mode = Literal["translate", "responses"]


class RouteError(ValueError):
    """A request asks for a provider that there is not: the message names those that there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """An upstream. `translate`: it speaks chat completions; `responses`: it speaks what the client speaks.

    `base_url` and `key_env` are None for the built-in `cerebras`, whose address and key are found as by every
    command; for another, None as `key_env` is no key.
    """

    name: str
    mode: Mode = "translate"
    base_url: str | None = None
    key_env: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where one request goes, and the model's name there."""

    provider: Provider
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapped:
    """One line of `models`: None as `provider` is the default one, None as `model` leaves the name as it is."""

    pattern: str
    provider: str | None
    model: str | None

    def matches(self, name: str) -> bool:
        """Whether this line is about a model's name; upper and lower case differ."""
        return fnmatch.fnmatchcase(name, self.pattern)


def _bytes(value: object) -> object:
    """A size such as 500KB, "2MB", 1GB or 1000000 as an int."""
    if isinstance(value, str):
        if not (match := _BYTES.fullmatch(value.strip())):
            raise ValueError("not a size; accepted: 500KB, 2MB, 1GB, or a number of bytes")
        return int(float(match[1]) * _UNITS[match[2].lower()])
    return value


class Limits(JobLimits):
    """As in job.yaml, without the number of requests in flight: a gateway does not choose how many come."""

    @model_validator(mode="before")
    @classmethod
    def _no_concurrency(cls, value: object) -> object:
        if isinstance(value, dict) and "concurrency" in value:
            raise ValueError("concurrency: a key of its own here; write `concurrency: N` outside of limits")
        return value


class Retry(Part):
    """How often one request is sent, and the longest wait before a retry."""

    attempts: Annotated[int, Field(ge=1, le=100)] = 4
    max_wait_s: Time = 60.0


class Log(Part):
    """How much of one exchange `--log` keeps, and of all of them together; bytes."""

    max_exchange: Annotated[int, BeforeValidator(_bytes), Field(ge=10_000)] = 2_000_000
    max_total: Annotated[int, BeforeValidator(_bytes), Field(ge=1_000_000)] = 1_000_000_000

    @model_validator(mode="after")
    def _fits(self) -> Log:
        if self.max_total < 8 * self.max_exchange:
            raise ValueError(f"max_total: {self.max_total:,} bytes are less than 8 x max_exchange")
        return self


class _Provider(Part):
    mode: Mode = "translate"
    base_url: str | None = None
    key_env: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _address(cls, value: object) -> object:
        """Checked here, and not field by field, because pydantic's errors quote what they read: it may be a secret."""
        if not isinstance(value, dict):
            return value
        if isinstance(url := value.get("base_url"), str):
            try:
                value = {**value, "base_url": normalise_base_url(url)}
            except ValueError as exc:
                raise ValueError(f"base_url: {exc}; accepted: an address like https://api.openai.com/v1") from None
        variable = value.get("key_env")
        if variable is not None and not (isinstance(variable, str) and _VARIABLE.fullmatch(variable)):
            raise ValueError(
                "key_env: not the name of an environment variable; accepted: capitals, digits and _, "
                "for example OPENAI_API_KEY, and never the key itself"
            )
        return value


class _Mapped(Part):
    provider: str | None = None
    model: Annotated[str, Field(min_length=1, max_length=200)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _name(cls, value: object) -> object:
        accepted = "a model's name, or {provider: …, model: …}"
        if isinstance(value, str):
            return {"model": value}
        if not isinstance(value, dict):
            raise ValueError(f"read {shown(value)}; accepted: {accepted}")
        if value.get("model") is None and value.get("provider") is None:
            raise ValueError(f"says neither a model nor a provider; accepted: {accepted}")
        return value


class _File(Part):
    provider: str = CEREBRAS
    providers: dict[str, _Provider] = Field(default_factory=dict)
    models: dict[str, _Mapped] | None = None
    default_model: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    limits: Limits = Field(default_factory=Limits)
    retry: Retry = Field(default_factory=Retry)
    concurrency: Annotated[int, Field(ge=1, le=20_000)] = 1_000
    timeout_s: Time = 180.0
    log: Log = Field(default_factory=Log)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the gateway's file says, with the defaults for what it does not."""

    provider: str = CEREBRAS
    providers: Mapping[str, Provider] = field(default_factory=lambda: {CEREBRAS: Provider(name=CEREBRAS)})
    models: tuple[Mapped, ...] | None = None  # None: those of MODELS, for what goes to `cerebras`
    default_model: str | None = None
    max_completion_tokens: int | None = None
    limits: Limits = field(default_factory=Limits)
    retry: Retry = field(default_factory=Retry)
    concurrency: int = 1_000
    timeout_s: float = 180.0
    log: Log = field(default_factory=Log)

    def route(self, model: str, provider: str | None = None) -> Route:
        """Where a request for `model` goes; `provider` is what the request itself asks for, and wins.

        A line of `models` is about one provider, its own or the default one: what was written for another does
        not rename the models of the one that was asked for. Raises RouteError.
        """
        asked = (provider or "").strip() or None
        if asked is not None and asked not in self.providers:
            raise RouteError(f"there is no provider {asked[:64]!r}; accepted: {', '.join(sorted(self.providers))}")
        for line in self.models or ():
            goes_to = line.provider or self.provider
            if asked in (None, goes_to) and line.matches(model):
                return Route(provider=self.providers[goes_to], model=line.model or model)
        goes_to = asked or self.provider
        if self.models is None and goes_to == CEREBRAS:
            for pattern, name in MODELS.items():
                if fnmatch.fnmatchcase(model, pattern):
                    return Route(provider=self.providers[goes_to], model=name)
        if self.default_model and goes_to == self.provider and catalog.card(model) is None:
            model = self.default_model
        return Route(provider=self.providers[goes_to], model=model)


def parse(text: str, path: Path) -> Settings:
    """The settings in `text`; `path` is for messages. Raises JobError with file, line, key and what is accepted."""
    if not any(line.strip() and not line.lstrip().startswith("#") for line in text.splitlines()):
        # What an editor leaves for a moment, too: taken as "all defaults", requests would go elsewhere meanwhile.
        raise JobError(f"{path}: the file is empty", hint="write {} for the defaults, or leave --config out")
    raw, lines = read_yaml(text, path)
    where = Where(path, lines)
    raw = {key: value for key, value in raw.items() if value is not None}  # `models:` is as if it were not there
    for section in ("limits", "retry", "log"):
        if isinstance(raw.get(section), dict):
            raw[section] = {key: value for key, value in raw[section].items() if value is not None}
    _refuse_unknown(raw, _File, (), where)
    try:
        file = _File.model_validate(raw)
    except ValidationError as exc:
        raise job_error(exc, where) from None
    providers = _providers(file, where)
    return Settings(
        provider=file.provider,
        providers=providers,
        models=_models(file, providers, where),
        default_model=file.default_model,
        max_completion_tokens=file.max_completion_tokens,
        limits=file.limits,
        retry=file.retry,
        concurrency=file.concurrency,
        timeout_s=file.timeout_s,
        log=file.log,
    )


def _providers(file: _File, where: Where) -> Mapping[str, Provider]:
    providers = {CEREBRAS: Provider(name=CEREBRAS)}
    for name, given in file.providers.items():
        place = where(("providers", name))
        if not _PROVIDER.fullmatch(name):
            raise JobError(f"{place}: read {name!r}; accepted: a name of letters, digits, - _ and ., such as openai")
        if name != CEREBRAS and given.base_url is None:
            raise JobError(f"{place}: base_url is missing", hint="for example base_url: http://127.0.0.1:9000/v1")
        providers[name] = Provider(name=name, mode=given.mode, base_url=given.base_url, key_env=given.key_env)
    _known_provider(file.provider, providers, where(("provider",)))
    return MappingProxyType(providers)


def _models(file: _File, providers: Mapping[str, Provider], where: Where) -> tuple[Mapped, ...] | None:
    if file.models is None:
        return None
    for pattern, one in file.models.items():
        if one.provider is not None:
            _known_provider(one.provider, providers, where(("models", pattern, "provider")))
    return tuple(Mapped(pattern=key, provider=one.provider, model=one.model) for key, one in file.models.items())


def _known_provider(name: str, providers: Mapping[str, Provider], place: str) -> None:
    if name not in providers:
        accepted = ", ".join(sorted(providers))
        raise JobError(f"{place}: read {shown(name)}; accepted: {accepted}", hint="others are named under `providers`")


def _refuse_unknown(raw: Mapping[str, Any], model: type[BaseModel], keys: tuple[str, ...], where: Where) -> None:
    """Raise for the first key that the gateway's file does not have; `job_error` knows those of job.yaml only."""
    for key, value in raw.items():
        inner = (*keys, key)
        known = model.model_fields.get(key)
        if known is None or (model is Limits and key == "concurrency"):
            if model is Limits and key == "concurrency":
                continue  # told with what to write instead
            accepted = [name for name in model.model_fields if (model, name) != (Limits, "concurrency")]
            hint = f"accepted here: {', '.join(accepted)}"
            if model is _Provider and "key" in key.lower():
                hint = "a key never stands in this file: name the environment variable that holds it in key_env"
            raise JobError(f"{where(inner)}: unknown key", hint=hint)
        if not isinstance(value, Mapping):
            continue
        annotation = known.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            _refuse_unknown(value, annotation, inner, where)
        elif key in ("providers", "models"):
            part = _Provider if key == "providers" else _Mapped
            for name, one in value.items():
                if isinstance(one, Mapping):
                    _refuse_unknown(one, part, (*inner, str(name)), where)


class Watched:
    """The settings in force: read at the start, and again whenever the file is another one.

    A file that cannot be used changes nothing: that is told once, and the last good settings stay. So do
    those that are read at the start only. The first read raises JobError.
    """

    def __init__(
        self,
        path: Path | None,
        notify: Callable[[str], None],
        now: Callable[[], datetime] = lambda: datetime.now().astimezone(),
    ) -> None:
        self._path = path
        self._notify = notify
        self._now = now
        self._version: bytes | str | None = None  # what was last found: the content, or why there is none
        self._stamp: tuple[int, ...] | None = None
        self._settled = False
        self._is_bad = False
        self._settings = Settings()
        if path is not None and (found := self._look(path)) is not None:
            self._settings = found
        self._read_at = now()
        self._waiting: tuple[str, ...] = ()  # the keys that were changed and need a restart

    def current(self) -> Settings:
        """The settings for a request that comes now; one `stat` where nothing changed."""
        path = self._path
        if path is None or (self._settled and _stamp(path) == self._stamp):
            return self._settings
        try:
            found = self._look(path)
        except JobError as exc:
            self._is_bad = True
            hint = f" ({exc.hint})" if exc.hint else ""
            self._notify(f"{exc}{hint}; still using the settings read at {self._read_at:%H:%M:%S}")
        else:
            if found is not None:
                self._switch(found, path)
        return self._settings

    def _look(self, path: Path) -> Settings | None:
        """What the file says now, None where it is the version that was looked at last. Raises JobError."""
        # The stamp comes first: what is written while it is read is seen by the next request.
        self._stamp = _stamp(path)
        self._settled = self._stamp is None or time.time_ns() - self._stamp[0] > SETTLED_S * 1e9
        try:
            content = _content(path)
        except JobError as exc:
            if self._version == str(exc):
                return None
            self._version = str(exc)
            raise
        if self._version == content:
            return None
        self._version = content
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as exc:
            raise JobError(f"{path}: not UTF-8 text (byte {exc.start})") from None
        return parse(text, path)

    def _switch(self, found: Settings, path: Path) -> None:
        running = self._settings
        waiting = tuple(key for key in START_ONLY if getattr(found, key) != getattr(running, key))
        found = replace(found, **{key: getattr(running, key) for key in START_ONLY})
        self._settings = found
        self._read_at = self._now()
        said = []
        if found != running or self._is_bad:
            said.append("new settings from the next request on" if found != running else "as before")
        if waiting != self._waiting and waiting:
            said.append(f"changed, and read at the start only: {', '.join(waiting)}; for that start cbatch serve again")
        if said:
            self._notify(f"{path}: read again at {self._read_at:%H:%M:%S}: {'; '.join(said)}")
        self._is_bad, self._waiting = False, waiting


def _stamp(path: Path) -> tuple[int, ...] | None:
    """What differs between two versions of a file; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    # The time of the last change of anything comes first: copying an older file over it sets only the other back.
    return found.st_ctime_ns, found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev


def _content(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise JobError(f"{path}: not a file", hint="--config names a YAML file")
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise JobError(f"{path}: no such file", hint="--config names a YAML file") from None
    except OSError as exc:
        raise JobError(f"{path}: cannot be read: {exc.strerror or exc}") from None
    if len(content) > MAX_FILE_BYTES:
        raise JobError(f"{path}: larger than {MAX_FILE_BYTES:,} bytes, which no configuration is")
    return content
