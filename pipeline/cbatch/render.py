"""Job, Prompt -> Request: fill the template, add the parameters, take the digest.

Templates are compiled once (8 µs a row; compiled per row 1 ms), sandboxed, and strict: a name
that the row does not have is an error of that row, never an empty string.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from itertools import islice
from types import BuiltinMethodType
from typing import Any

import jinja2
import jinja2.nodes
import jinja2.runtime
import orjson
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter

from cbatch import batchfile, catalog
from cbatch.errors import JobError
from cbatch.job import TRAVEL_FIELDS, Job
from cbatch.schema import Prompt, Request

BYTES_PER_TOKEN = 4  # English text; corrected by `usage` once the answer is in
PREAMBLE_TOKENS = 64  # gpt-oss counts about 67 tokens before the user's first word
MAX_REPEATED = 10_000_000  # characters or items that a template may make with *
MAX_MADE = 64 << 20  # characters that one rendering may make: a row is not longer either
STEP = 64  # what a round of a loop, or a call, counts for: a million of them are 0.5 s on the event loop
MAX_BITS = 100_000  # of an integer made with *
MAX_LIMIT_TOKENS = 10**12  # a row may ask for 2**63 - 1, and sums of such numbers fit no column
DEFAULT_RESERVE_TOKENS = 16_384  # what the server reserves when max_completion_tokens is absent

# What a template may raise when it is run on a user's row.
_TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


class RenderError(Exception):
    """This row cannot become a request; the message says why."""


_SIZED = frozenset({list, tuple, str, dict, range})


class _Environment(ImmutableSandboxedEnvironment):
    """Immutable, because a row is rendered once for every model and sample; and no operator can eat the machine."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})  # also keeps the compiler from working them out beforehand

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._left = MAX_MADE
        for name, real in self.filters.items():
            self.filters[name] = self._counted(real, _MADE_BY_FILTER.get(name, _passed))
        self.filters["_rounds"] = self._rounds
        self.filters["_joined"] = self._joined

    def begin(self) -> None:
        """Another rendering starts. What it makes is counted here: renderings of one template never overlap."""
        self._left = MAX_MADE

    def spend(self, made: int) -> None:
        """Count what is about to be made. Raises OverflowError before it fills the memory or stops the event loop."""
        self._left -= made
        if self._left < 0:
            raise OverflowError(
                f"the template makes more than {MAX_MADE >> 20} MB of text, or takes a million rounds and calls"
            )

    def concat(self, parts: Iterable[str]) -> str:
        """The output, or a macro's or a block's: as "".join."""
        parts = iter(parts)
        text = "".join(islice(parts, 100))
        more = next(parts, None)
        if more is not None:
            texts, size = [text], len(text)
            while more is not None and size <= MAX_MADE:
                texts.append("".join((more, *islice(parts, 100))))
                size += len(texts[-1])
                more = next(parts, None)
            text = "".join(texts)
        if len(text) > MAX_MADE:
            self.spend(len(text))
        return text

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Any call that a template makes."""
        __self.spend(STEP)
        if isinstance(__obj, BuiltinMethodType) and (made := _MADE_BY_METHOD.get(__obj.__name__)):
            __self.spend(made(__obj.__self__, *args, **kwargs))
        elif isinstance(__obj, jinja2.runtime.Macro):
            __self.spend(4 * STEP)  # 3 µs
        elif isinstance(__obj, jinja2.runtime.LoopContext) and args:
            __self.spend(STEP * _size(args[0]))  # a recursive loop, whose rounds nothing else sees
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`'{:9}'.format`, with its widths counted."""
        plain = super().wrap_str_format(value)
        if plain is None or type(value.__self__) is not str:  # what is marked as safe HTML escapes what it is given
            return plain
        formatter, text = _Formatter(self), value.__self__
        if value.__name__ == "format_map":
            return lambda mapping: formatter.vformat(text, (), mapping)
        return lambda *args, **kwargs: formatter.vformat(text, args, kwargs)

    def _generate(self, source: jinja2.nodes.Template, *args: Any, **kwargs: Any) -> str:
        for loop in source.find_all(jinja2.nodes.For):
            loop.iter = _filtered(loop.iter, "_rounds")
        for both in list(source.find_all(jinja2.nodes.Concat)):
            both.nodes = [_filtered(jinja2.nodes.List(both.nodes, lineno=both.lineno), "_joined")]
        return super()._generate(source, *args, **kwargs)

    @staticmethod
    @jinja2.pass_context  # so that no constant is looped over uncounted
    def _rounds(context: Any, values: Any) -> Any:
        self = context.environment
        if type(values) in _SIZED:
            self.spend(STEP * len(values))
            return values
        return self._one_by_one(values)

    def _one_by_one(self, values: Any) -> Iterator[Any]:
        for value in values:
            self.spend(STEP)
            yield value

    @staticmethod
    @jinja2.pass_context
    def _joined(context: Any, values: list[Any]) -> str:
        text = "".join(map(str, values))
        context.environment.spend(len(text))
        return text

    def _counted(self, real: Callable[..., Any], made: Callable[..., int]) -> Callable[..., Any]:
        @wraps(real)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.spend(made(*args, **kwargs))
            return real(*args, **kwargs)

        @wraps(real)
        def counted_in(jinja: Any, *args: Any, **kwargs: Any) -> Any:
            self.spend(made(*args, **kwargs))
            return real(jinja, *args, **kwargs)

        return counted_in if hasattr(real, "jinja_pass_arg") else counted

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Refuse `'x' * 10**9` and `9**9**9`; everything of a sensible size is as in Python."""
        if operator == "+":
            made = left + right
            if type(made) is str or type(made) is list or type(made) is tuple:
                self.spend(len(made))
            return made
        if operator == "%":
            if isinstance(left, str):
                self.spend(_widths(left, right))
            return super().call_binop(context, operator, left, right)
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "**" and not (numbers and abs(left) <= 10**6 and abs(right) <= 100):
            raise OverflowError(f"{operator} of numbers this large")
        if operator == "*" and not numbers:
            size = next((len(v) for v in (left, right) if isinstance(v, str | list | tuple)), 0)
            times = next((v for v in (left, right) if isinstance(v, int)), 0)
            if size * times > MAX_REPEATED:
                raise OverflowError(f"{operator} makes {size * times:,} items, more than {MAX_REPEATED:,}")
            self.spend(max(0, size * times))
        elif isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > MAX_BITS:
            raise OverflowError(f"{operator} of numbers this large")
        return super().call_binop(context, operator, left, right)


class _Formatter(SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        """One field, with its width and precision counted."""
        self._env.spend(sum(int(digits) for digits in re.findall(r"\d+", format_spec)))  # type: ignore[attr-defined]
        return str(super().format_field(value, format_spec))


_PERCENT = re.compile(r"%(?:\(.*?\))?[-#0 +]*(\*|\d+)?(?:\.(\*|\d+))?", re.DOTALL)


def _widths(text: str, values: Any) -> int:
    """The widths and precisions in `text % values`; where a `*` takes one from the values, all numbers there."""
    found = [width for pair in _PERCENT.findall(text) for width in pair if width]
    values = values if isinstance(values, tuple) else (values,)
    given = sum(abs(value) for value in values if isinstance(value, int)) if "*" in found else 0
    return given + sum(int(width) for width in found if width != "*")


def _size(value: Any) -> int:
    return len(value) if type(value) in _SIZED else 0


def _passed(value: Any = None, *_: Any, **__: Any) -> int:
    return len(value) // 16 if type(value) is str else _size(value)


def _indent(text: Any, width: Any = 4, *_: Any, **__: Any) -> int:
    return str(text).count("\n") * (width if isinstance(width, int) else len(width)) + _number(width)


def _number(value: Any) -> int:
    return abs(value) if isinstance(value, int) else 0


def _replaced(text: Any, old: Any, new: Any, *_: Any, **__: Any) -> int:
    return str(text).count(str(old)) * len(str(new))


# How much a filter or a method makes at most, from its value and its arguments; what is not here makes
# no more than a few times what it is given, and a filter counts for that.
_MADE_BY_FILTER: dict[str, Callable[..., int]] = {
    "center": lambda value, width=80: _number(width),
    "format": lambda text, *args, **kwargs: _widths(str(text), args),
    "indent": _indent,
    "join": lambda values, d="", *_, **__: _size(values) * len(str(d)),
    "replace": _replaced,
    "batch": lambda values, linecount, *_, **__: _number(linecount),
    "slice": lambda values, slices, *_, **__: _number(slices),
    "round": lambda value, precision=0, *_, **__: _number(precision) * STEP,
}
_MADE_BY_METHOD: dict[str, Callable[..., int]] = {
    "center": lambda text, width, *_: _number(width),
    "ljust": lambda text, width, *_: _number(width),
    "rjust": lambda text, width, *_: _number(width),
    "zfill": lambda text, width: _number(width),
    "expandtabs": lambda text, tabsize=8: text.count("\t") * _number(tabsize),
    "join": lambda text, values: _size(values) * len(text),
    "replace": _replaced,
    "to_bytes": lambda number, length=1, *_, **__: _number(length),
}


def _filtered(node: jinja2.nodes.Node, name: str) -> jinja2.nodes.Filter:
    return jinja2.nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _environment() -> _Environment:
    environment = _Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False, finalize=_printable
    )
    environment.filters["tojson"] = _tojson
    # The same row must give the same request, or a resumed run would take it for edited.
    del environment.filters["random"], environment.globals["lipsum"]
    return environment


def _printable(value: Any) -> Any:
    """Refuse what prints as `<built-in method items of dict object at 0x7f…>`, such as {{ order.items }}."""
    if type(value) is str:
        return value
    if value is None:
        raise TypeError("a column is null, and null has no text: write {{ x | default('', true) }} if it may be")
    if isinstance(value, Iterator) or (callable(value) and not isinstance(value, jinja2.Undefined)):
        kind = "an iterator" if isinstance(value, Iterator) else "a function"
        raise TypeError(f"{kind} is not text: write order['items'] for a column, f() for a call, x | list for a list")
    return value


def _tojson(value: Any, indent: int | None = None) -> str:
    """Plain JSON: jinja's own escapes < > & and ' for HTML pages."""
    if indent is not None and indent > 100:
        raise OverflowError(f"an indent of {indent}")
    return json.dumps(value, ensure_ascii=False, indent=indent, default=str)


def condition(text: str) -> Callable[[Mapping[str, Any]], bool]:
    """`input.where` as a function of a row; raises RenderError where it cannot be decided.

    Raises JobError if the text is not an expression.
    """
    environment = _environment()
    try:
        expression = environment.compile_expression(text, undefined_to_none=False)
    except (*_TEMPLATE_ERRORS, SyntaxError) as exc:
        raise JobError(
            f"input.where: {text!r} is not an expression: {_reason(exc)}",
            hint="for example: difficulty > 3 and lang == 'en'",
        ) from None

    def holds(fields: Mapping[str, Any]) -> bool:
        environment.begin()
        try:
            value = expression(fields)
            if isinstance(value, jinja2.Undefined):
                raise jinja2.UndefinedError(f"{text!r} is undefined for this row")
            return bool(value)
        except _TEMPLATE_ERRORS as exc:
            hint = "; values of a CSV are text: compare x | int" if "not supported between" in str(exc) else ""
            raise RenderError(f"input.where cannot be decided: {exc}{hint}") from None

    return holds


class Renderers(dict[str, "Renderer"]):
    """The renderer of each model, made when it is asked for first: a batch file names its models in its lines."""

    def __init__(self, job: Job) -> None:
        super().__init__({model: Renderer(job, model) for model in job.model})
        self._job = job

    def __missing__(self, model: str) -> Renderer:
        made = self[model] = Renderer(self._job, model)
        return made


class Renderer:
    """Turns prompts of one model into requests. Raises JobError if a template does not parse."""

    def __init__(self, job: Job, model: str) -> None:
        self._model = model
        self._spec = job.prompt
        self._is_batch = job.input.is_batch
        self._system = _template(job.prompt.system, "prompt.system")
        self._user = _template(job.prompt.user, "prompt")
        self._params = job.params.body()
        self._travel = job.params.travel()
        # The body is written with sorted top-level keys, so for templates it *is* its own canonical
        # form; what stands before and after the messages never changes and is encoded once. Inside a
        # parameter the user's key order is kept: answers follow the order of a schema's properties.
        body = {**self._params, "model": model, "messages": None}
        try:
            before, after = orjson.dumps(dict(sorted(body.items()))).split(b'"messages":null', 1)
        except TypeError as exc:
            raise JobError(f"params: cannot be sent as JSON: {exc}") from None
        canonical, self._after = before + b'"messages":', after
        self._before_hash = hashlib.sha256(canonical)
        self._before = _with_fields(canonical, self._travel)  # sent, and no part of the digest
        self._static_tokens = (len(before) + len(after)) // BYTES_PER_TOKEN + PREAMBLE_TOKENS
        card = catalog.card(model)
        ceiling = card.max_output_tokens if card else DEFAULT_RESERVE_TOKENS
        self._limit_tokens = _limit(job.params.completion_limit)
        self._completion_tokens = self._limit_tokens or min(DEFAULT_RESERVE_TOKENS, ceiling)

    def __call__(self, prompt: Prompt) -> Request:
        """The request for `prompt`. Raises RenderError if the row lacks what the template needs."""
        assert prompt.fields is not None, "rows with a problem are not rendered"
        fields = prompt.fields
        if self._spec.body is not None:
            try:
                body = self._line(fields) if self._is_batch else _column(fields, self._spec.body, dict)
                return self._raw(body, prompt.id)
            except RecursionError:
                raise RenderError("the body is nested too deeply") from None
        try:
            if self._spec.messages is not None:
                messages = _without_nulls(_column(fields, self._spec.messages, list))
                if self._system is not None:
                    messages = [{"content": self._system(fields), "role": "system"}, *messages]
            else:
                assert self._user is not None
                messages = [{"content": self._user(fields), "role": "user"}]
                if self._system is not None:
                    messages.insert(0, {"content": self._system(fields), "role": "system"})
        except jinja2.UndefinedError as exc:
            raise RenderError(f"{exc.message}; the row has: {_columns(fields)}") from None
        except _TEMPLATE_ERRORS as exc:
            raise RenderError(f"the template failed: {type(exc).__name__}: {exc}") from None
        encoded = _encode(messages)
        digest = self._before_hash.copy()
        digest.update(encoded)
        digest.update(self._after)
        tokens = len(encoded) // BYTES_PER_TOKEN + self._static_tokens
        return Request(
            model=self._model,
            body=b"".join((self._before, encoded, self._after)),
            digest=digest.digest(),
            prompt_tokens_estimate=tokens,
            reserve_tokens=tokens + self._completion_tokens,
            limit_tokens=self._limit_tokens,
            prompt_id=prompt.id,
        )

    def _line(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The chat request that a line of a batch API asks for."""
        try:
            line = batchfile.read_line(fields)
            if line.endpoint == batchfile.CHAT:
                return line.body
            # Only now: most jobs have no such line.
            from cbatch.responses import target, to_chat

            return to_chat(line.body, target(self._model)).chat
        except ValueError as exc:
            raise RenderError(str(exc)) from None

    def _raw(self, row_body: dict[str, Any], prompt_id: str) -> Request:
        # A null is a key that is not there: Parquet fills in every key that any row has, and none may undo params.
        row_body = {k: _without_nulls(v) if k == "messages" else v for k, v in row_body.items() if v is not None}
        # The job's model wins, because the job decides which models a row goes to.
        body = {**self._params, **row_body, "model": self._model}
        for name, twin in (("max_tokens", "max_completion_tokens"), ("max_completion_tokens", "max_tokens")):
            if name in row_body and twin not in row_body:
                body.pop(twin, None)  # two names of one limit: the row's wins
        if not body.get("messages"):
            raise RenderError("the body has no messages")
        if body.get("n") not in (None, 1):
            raise RenderError(
                "the body asks for more than one answer; use `samples: N`, every answer needs its own row"
            )
        travel = self._travel | {name: body.pop(name) for name in TRAVEL_FIELDS if name in body}
        if not travel.get("stream"):
            travel = {}
        encoded = _encode(body)
        canonical = orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
        limit = _limit(body.get("max_completion_tokens") or body.get("max_tokens"))
        tokens = len(encoded) // BYTES_PER_TOKEN + PREAMBLE_TOKENS
        return Request(
            model=self._model,
            body=_with_fields(encoded, travel),
            digest=hashlib.sha256(canonical).digest(),
            prompt_tokens_estimate=tokens,
            reserve_tokens=tokens + (limit or self._completion_tokens),
            limit_tokens=limit or self._limit_tokens,
            prompt_id=prompt_id,
        )


def _limit(given: object) -> int | None:
    """A limit of the answer as it is reckoned with; None where it is none."""
    return min(given, MAX_LIMIT_TOKENS) if type(given) is int and given > 0 else None


def _template(text: str | None, place: str) -> Callable[[Mapping[str, Any]], str] | None:
    if text is None:
        return None
    if "{" not in text:  # nothing to fill in: 8 µs a row saved
        return lambda fields: text
    try:
        env = _environment()
        template = env.from_string(text)

        def render(fields: Mapping[str, Any]) -> str:
            env.begin()
            # As template.render, without what that does for tracebacks.
            return env.concat(template.root_render_func(template.new_context(fields)))  # type: ignore[arg-type]

        return _substitution(env.parse(text), render) or render
    except jinja2.TemplateSyntaxError as exc:
        raise JobError(f"{place}: line {exc.lineno} of the template: {_reason(exc)}") from None
    except (*_TEMPLATE_ERRORS, SyntaxError) as exc:
        raise JobError(f"{place}: the template cannot be read: {_reason(exc)}") from None


def _substitution(
    template: jinja2.nodes.Template, render: Callable[[Mapping[str, Any]], str]
) -> Callable[[Mapping[str, Any]], str] | None:
    """A template that only names columns, as a join of strings (1 µs a row, Jinja 5 µs); None for any other."""
    texts, names = [""], []  # a text before each name, and one at the end
    for output in template.body:
        for node in output.nodes if isinstance(output, jinja2.nodes.Output) else [output]:
            if isinstance(node, jinja2.nodes.TemplateData):
                texts[-1] += node.data
            elif isinstance(node, jinja2.nodes.Name) and node.name != "self":
                names.append(node.name)
                texts.append("")
            else:
                return None
    befores, last = texts[:-1], texts[-1]

    def join(fields: Mapping[str, Any]) -> str:
        try:
            values = [fields[name] for name in names]
            if None in values:
                return render(fields)  # the error that says what to do about it
            return "".join([text + str(value) for text, value in zip(befores, values, strict=True)]) + last
        except KeyError:
            return render(fields)  # a global of Jinja's, or the error that names what is missing

    return join


def _reason(exc: BaseException) -> str:
    """Why a template does not parse."""
    if isinstance(exc, RecursionError):
        return "nested too deeply"
    text = getattr(exc, "message", None) or getattr(exc, "msg", None) or str(exc)
    return str(text).rstrip(".")


def _columns(fields: Mapping[str, Any]) -> str:
    return ", ".join(list(fields)[:20]) or "no columns"


def _without_nulls(value: Any) -> Any:
    """Messages as JSON Lines have them: Parquet fills in every key that any message has, and servers refuse nulls."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _column(fields: Mapping[str, Any], name: str, kind: type[Any]) -> Any:
    """The list or dict in a column, which may also hold it as JSON text."""
    if name not in fields:
        raise RenderError(f"column {name!r} is missing; the row has: {_columns(fields)}")
    value = fields[name]
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError as exc:
            raise RenderError(f"column {name!r} is not valid JSON: {exc}") from None
    if not isinstance(value, kind) or not value:
        wanted = "a list of messages" if kind is list else "a request body"
        read = f"an empty {kind.__name__}" if isinstance(value, kind) else f"{type(value).__name__}"
        raise RenderError(f"column {name!r} is not {wanted}; read {read}")
    if kind is list and not all(isinstance(message, dict) and "role" in message for message in value):
        raise RenderError(f"column {name!r}: every message must be a mapping with role and content")
    return value


def _encode(value: Any) -> bytes:
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS if isinstance(value, list) else None)
    except TypeError as exc:  # lone surrogates; values JSON has no form for
        raise RenderError(f"the request cannot be written as JSON: {exc}") from None


def _with_fields(body: bytes, fields: dict[str, Any]) -> bytes:
    """A JSON object, or the beginning of one, with more fields in front."""
    return orjson.dumps(fields)[:-1] + b"," + body[1:] if fields else body
