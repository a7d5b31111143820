"""Scripted answers: a file of rules that say what is answered to which request.

The file is a JSON list of rules, or JSON Lines with one rule per line. A rule depends on nothing but what the
request holds, so parallel requests and retries get the same answer. The first rule whose conditions all hold
answers; where none does, the answer is made up as usual.

    {"when": {"user": "make a file", "step": 0},
     "answer": {"reasoning": "A shell will do.",
                "tool_calls": [{"name": "exec_command", "arguments": {"cmd": "touch a.txt"}}]}}

when            every condition given must hold; without any the rule fits every request
  user          a part of the text of any user message
  last          a part of the text of the last message, whoever it is from
  step          the number of assistant messages so far: 0 in the first request of a conversation
  tool          the name of a function among the offered tools
  model         the model
answer          null or absent keys are left out of the answer, too
  reasoning     text; shown, hidden or put into the content as the request's reasoning_format says
  content       text, sent as it is: no JSON is made of it where the request asks for JSON
  tool_calls    a list of {"name", "arguments", "id"}; an object of arguments is written as JSON, a text goes out
                verbatim, broken or not (default {}); the id is made up unless it is given
  finish_reason default tool_calls with tool calls, else stop; length where max_completion_tokens cuts the answer
  completion_tokens   what usage says, and what the answer's time is computed from; default: counted
times           the rule fits this many requests and is passed over from then on; /_sim/reset counts anew
delay_s         seconds of silence before the first byte, whatever the speed
chunk_delay_s   seconds between the chunks of a stream, whatever the speed

Instead of an answer, the service can refuse:

  status        200 to 599, before the first byte
  error         the body: anything is written as JSON, a text verbatim (default: no body)
  headers       {"name": "value"}; they replace the service's own of the same name

or, instead of or beside an answer, one of the simulator's faults goes wrong on the way:

  fault         a fault's name (faults.py), as for --fault; a drawn fault is not looked at then

The stream can be other than usual. All this fits made-up answers, too:

  fragments     a tool call's arguments in this many pieces behind its name; 0: together with the name
  both          true: one chunk has the last of the reasoning and the first of the content; false: none has
  interleave    true: the fragments of several tool calls in turns
  omit          a list of what a lying server leaves out: usage (with time_info), finish_reason, done (the final
                [DONE]), id and index (both of the tool calls)

A request that is refused for want of quota does not count for `times`. What is checked before the rules (key,
fields, model, context length, a full server) is answered as ever.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from .faults import resolve
from .stream import USUAL, Shape
from .wire import ErrorAnswer

__all__ = ["Call", "Rule", "Said", "When", "parse_script", "read_script", "to_rules"]

_SPACE = re.compile(r"[ \t\r\n]*")
_OMITTED = ("usage", "finish_reason", "done", "id", "index")
_MADE = ("empty_answer", "invalid_output")  # faults of what is said, not of how it is sent


@dataclass(frozen=True, slots=True, kw_only=True)
class When:
    """What a request must hold; None: whatever it holds."""

    user: str | None = None
    last: str | None = None
    step: int | None = None
    tool: str | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """A scripted tool call; `arguments` is text, JSON or not."""

    name: str
    arguments: str
    id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A scripted answer."""

    reasoning: str = ""
    content: str | None = None
    tool_calls: tuple[Call, ...] = ()
    finish_reason: str | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule; `answer` None means the made-up one."""

    when: When
    answer: Said | None = None
    refusal: ErrorAnswer | None = None
    fault: str | None = None
    times: int | None = None
    delay_s: float = 0.0
    chunk_delay_s: float = 0.0
    shape: Shape = USUAL


def read_script(path: Path) -> tuple[Rule, ...]:
    """The rules of a file; raises ValueError, with file and line, and a hint on a second line."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as exc:
        raise ValueError(f"{path}: cannot be read: {exc.strerror}") from None
    except UnicodeDecodeError as exc:
        raise ValueError(f"{path}: is not UTF-8: {exc.reason} at byte {exc.start}") from None
    return parse_script(text, str(path))


def parse_script(text: str, name: str) -> tuple[Rule, ...]:
    """The rules of a text that `name` and a line number stand for in messages; raises ValueError."""
    return to_rules((value, f"{name}:{line}: ") for line, value in _values(text, name))


def to_rules(values: Iterable[tuple[Any, str]]) -> tuple[Rule, ...]:
    """Decoded rules, each with what a message begins with; raises ValueError."""
    return tuple(
        value if isinstance(value, Rule) else _Checked(value, f"{where}rule {number}").rule()
        for number, (value, where) in enumerate(values, 1)
    )


def _values(text: str, name: str) -> Iterator[tuple[int, Any]]:
    """The values of a JSON list, or of a text of one value after the other, with the lines they begin in."""
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)

    def wrong(at: int, what: str) -> ValueError:
        return ValueError(f"{name}:{1 + text.count(chr(10), 0, at)}: {what}")

    def after_space(at: int) -> int:
        found = _SPACE.match(text, at)
        return found.end() if found else at

    at = after_space(0)
    listed = text.startswith("[", at)
    if listed:
        at = after_space(at + 1)
    first = True
    while at < len(text) and not (listed and text[at] == "]"):
        if listed and not first:
            if text[at] != ",":
                raise wrong(at, f"a comma or ] is expected between two rules, here is {text[at]!r}")
            at = after_space(at + 1)
        try:
            value, end = decoder.raw_decode(text, at)
            orjson.dumps(value)  # what cannot be sent is better found now: half a surrogate pair, huge integers
        except json.JSONDecodeError as exc:
            raise wrong(exc.pos, f"is not JSON: {exc.msg} in column {exc.colno}") from None
        except (TypeError, ValueError, RecursionError) as exc:
            raise wrong(at, f"cannot be sent as JSON: {exc}") from None
        yield 1 + text.count("\n", 0, at), value
        at = after_space(end)
        first = False
    if listed and (at >= len(text) or after_space(at + 1) < len(text)):
        raise wrong(at, "the list of rules does not end" if at >= len(text) else "something stands behind the list")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


class _Checked:
    """A decoded object whose keys are taken one by one, each with its check; the first problem is raised."""

    def __init__(self, value: Any, where: str) -> None:
        self.where = where
        if not isinstance(value, Mapping):
            raise self._wrong("", f"is {_shown(value)}", "give an object")
        self.value = value

    def rule(self) -> Rule:
        self._only("when", "answer", "status", "error", "headers", "fault", "times", "delay_s", "chunk_delay_s",
                   "fragments", "both", "interleave", "omit")  # fmt: skip
        answer = None if self.value.get("answer") is None else self._inner("answer")._said()
        fault, refusal = self._fault(), self._refusal()
        if refusal is not None and (answer is not None or fault is not None):
            raise self._wrong("status", f"stands beside {'an answer' if answer else 'a fault'}", "make two rules of it")
        if fault in _MADE and answer is not None:
            raise self._wrong("fault", f"{fault} makes up an answer of its own", "write that answer into `answer`")
        return Rule(
            when=When() if self.value.get("when") is None else self._inner("when")._when(),
            answer=answer,
            refusal=refusal,
            fault=fault,
            times=self._integer("times", 1),
            delay_s=self._seconds("delay_s"),
            chunk_delay_s=self._seconds("chunk_delay_s"),
            shape=self._shape(),
        )

    def _when(self) -> When:
        self._only("user", "last", "step", "tool", "model")
        return When(
            user=self._text("user"),
            last=self._text("last"),
            step=self._integer("step", 0),
            tool=self._text("tool"),
            model=self._text("model"),
        )

    def _said(self) -> Said:
        self._only("reasoning", "content", "tool_calls", "finish_reason", "completion_tokens")
        calls = self._list("tool_calls")
        return Said(
            reasoning=self._text("reasoning") or "",
            content=self._text("content"),
            tool_calls=tuple(_Checked(c, f"{self.where}.tool_calls.{n}")._call() for n, c in enumerate(calls)),
            finish_reason=self._text("finish_reason"),
            completion_tokens=self._integer("completion_tokens", 0),
        )

    def _call(self) -> Call:
        self._only("name", "arguments", "id")
        name, arguments = self._text("name"), self.value.get("arguments", {})
        if name is None:
            raise self._wrong("name", "is missing", "give the function's name")
        if isinstance(arguments, Mapping):
            arguments = orjson.dumps(arguments).decode()
        if not isinstance(arguments, str):
            raise self._wrong("arguments", f"is {_shown(arguments)}", "give an object, or a text that is sent verbatim")
        return Call(name, arguments, self._text("id"))

    def _fault(self) -> str | None:
        name = self._text("fault")
        if name is None:
            return None
        try:
            (found,) = resolve({name: 1.0})
        except ValueError as exc:
            raise ValueError(f"{self.where}.fault: {exc}") from None
        return found

    def _refusal(self) -> ErrorAnswer | None:
        status = self._integer("status", 200, 599)
        given = [name for name in ("error", "headers") if self.value.get(name) is not None]
        if status is None:
            if given:
                raise self._wrong(given[0], "stands without a status", "give the status, too")
            return None
        error, headers = self.value.get("error"), self.value.get("headers") or {}
        if not isinstance(headers, Mapping) or not all(isinstance(one, str) for one in headers.values()):
            raise self._wrong("headers", f"is {_shown(headers)}", "give an object of texts")
        if any(bad in part for pair in headers.items() for part in pair for bad in "\r\n\0"):
            raise self._wrong("headers", "has a line break", "one line per header")
        body = b"" if error is None else error.encode() if isinstance(error, str) else orjson.dumps(error)
        code = error.get("code") if isinstance(error, Mapping) else None
        return ErrorAnswer(status, body, dict(headers), code if isinstance(code, str) else "scripted")

    def _shape(self) -> Shape:
        omit = self._list("omit")
        for one in omit:
            if one not in _OMITTED:
                raise self._wrong("omit", f"has {_shown(one)}", f"accepted: {', '.join(_OMITTED)}")
        return Shape(
            fragments=self._integer("fragments", 0),
            both=self._boolean("both"),
            interleave=self._boolean("interleave") or False,
            omit=frozenset(omit),
        )

    # -- one value -----------------------------------------------------------------------------------------

    def _wrong(self, key: str, what: str, hint: str) -> ValueError:
        path = f"{self.where}.{key}" if key else self.where
        return ValueError(f"{path}: {what}\n{hint}")

    def _only(self, *accepted: str) -> None:
        for key in self.value:
            if key not in accepted:
                near = difflib.get_close_matches(str(key), accepted, n=1, cutoff=0.6)
                hint = f"did you mean {near[0]}? " if near else ""
                raise self._wrong(str(key), "is no key here", f"{hint}accepted: {', '.join(accepted)}")

    def _inner(self, key: str) -> _Checked:
        return _Checked(self.value[key], f"{self.where}.{key}")

    def _text(self, key: str) -> str | None:
        value = self.value.get(key)
        if value is None or isinstance(value, str):
            return value
        raise self._wrong(key, f"is {_shown(value)}", "give a text")

    def _integer(self, key: str, low: int, high: int | None = None) -> int | None:
        value = self.value.get(key)
        if value is None or (type(value) is int and low <= value and (high is None or value <= high)):
            return value
        wanted = f"give a whole number, {low} or more" if high is None else f"give a number from {low} to {high}"
        raise self._wrong(key, f"is {_shown(value)}", wanted)

    def _seconds(self, key: str) -> float:
        value = self.value.get(key)
        if value is None:
            return 0.0
        if type(value) in (int, float) and 0 <= value < math.inf:
            return float(value)
        raise self._wrong(key, f"is {_shown(value)}", "give seconds, 0 or more")

    def _boolean(self, key: str) -> bool | None:
        value = self.value.get(key)
        if value is None or isinstance(value, bool):
            return value
        raise self._wrong(key, f"is {_shown(value)}", "give true or false")

    def _list(self, key: str) -> list[Any]:
        value = self.value.get(key)
        if value is None:
            return []
        if isinstance(value, (list, tuple)):
            return list(value)
        raise self._wrong(key, f"is {_shown(value)}", "give a list")


def _shown(value: Any) -> str:
    """A value in a message: what it is, not all of it."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}..."
