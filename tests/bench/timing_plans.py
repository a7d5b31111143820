"""What the server of known timing sends, and when: plans, and the writes that are made of them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

MODEL = "gpt-oss-120b"
TOKENS_PER_S = 2_000
FIRST_S = 0.05  # request read -> first token written
TOKEN = " tok"  # every token has as many characters, so that a share of the characters is a share of the tokens
WIDE = " tök"
PROMPT_TOKENS = 100
PAUSE_S = 0.001  # between the two halves of an event that is cut: so long that they are two reads
ID = b"chatcmpl-000000000000"  # in the prepared writes, where the number of the request comes


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One way to answer; the fields but the first three are traps for whoever measures it."""

    tokens: int = 64
    chunk: int = 4  # tokens a write
    events: int = 1  # events a write, its tokens dealt out among them
    first: int | None = None  # tokens in the first write, where they are not `chunk`
    reasoning: int = 0  # how many of the first tokens are reasoning; a write at the border carries both
    role_at_once: bool = False  # headers and a chunk with nothing but the role, as soon as the request is read
    headers_at_once: bool = False
    usage: bool = True
    time_info: bool = True
    last_apart: bool = False  # usage and time_info in a chunk of their own, without choices
    queue_s: float = 0.0  # of FIRST_S, what time_info calls queue
    done_late_s: float = 0.0
    refuse_every: int = 0  # the n-th, 2n-th, … request of the plan is refused with 429
    cut: bool = False  # every event in two writes, cut in the middle of a character
    newline: str = "\n"
    comments: bool = False  # comment lines before the first token and between the chunks

    @property
    def first_tokens(self) -> int:
        """Tokens in the first write."""
        return min(self.tokens, self.first or self.chunk)

    @property
    def completion_s(self) -> float:
        """Start of the first token until the last one is there, as time_info says it."""
        return self.tokens / TOKENS_PER_S

    @property
    def prompt_s(self) -> float:
        """What is left of FIRST_S: the first write is made when its last token is there."""
        return FIRST_S - self.first_tokens / TOKENS_PER_S - self.queue_s


PLANS = {
    "plain": Plan(),
    "chunk-1": Plan(chunk=1),
    "chunk-32": Plan(chunk=32),
    "one-chunk": Plan(chunk=64),
    "ten-chunks": Plan(tokens=40),
    "half-in-first": Plan(first=32),
    "role-at-once": Plan(role_at_once=True),
    "headers-at-once": Plan(headers_at_once=True),
    "reasoning": Plan(reasoning=32),
    "mixed": Plan(reasoning=30),
    "no-usage": Plan(usage=False),
    "no-time-info": Plan(time_info=False),
    "queue": Plan(queue_s=0.02),
    "last-apart": Plan(last_apart=True),
    "done-late": Plan(done_late_s=0.04),
    "refusing": Plan(refuse_every=10),
    "cut": Plan(cut=True),
    "crlf": Plan(newline="\r\n"),
    "comments": Plan(comments=True),
    "four-events": Plan(events=4),
}
NAMES = list(PLANS)


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes that are due so long after the request was read; `tokens` of the answer become whole with them."""

    at_ns: int
    data: bytes
    tokens: int = 0


def stream(plan: Plan) -> list[Write]:
    """The writes of a streamed answer, in order."""
    due: list[tuple[float, str, int]] = []  # seconds, text/event-stream, tokens
    if plan.role_at_once:
        due.append((0.0, _event(plan, delta={"role": "assistant"}), 0))
    if plan.headers_at_once:
        due.append((0.0, "", 0))
    if plan.comments:
        due.append((FIRST_S / 2, f": keep-alive{plan.newline}{plan.newline}", 0))
    done = 0
    while done < plan.tokens:
        size = min(plan.tokens - done, plan.chunk if done else plan.first_tokens)
        deltas = [_delta(plan, done + size * n // plan.events, done + size * (n + 1) // plan.events)
                  for n in range(plan.events)]  # fmt: skip
        at_s = FIRST_S + (done + size - plan.first_tokens) / TOKENS_PER_S
        due.append((at_s, "".join(_event(plan, delta=delta) for delta in deltas), size))
        done += size
        if plan.comments and done < plan.tokens:
            due.append((at_s + PAUSE_S, f": {done}{plan.newline}{plan.newline}", 0))
    # The end is in the write of the last tokens: what comes later is a plan's doing.
    at_s, text, size = due.pop()
    text += _event(plan, delta={}, finish="stop", last={} if plan.last_apart else _last(plan))
    if plan.last_apart:
        text += _event(plan, last=_last(plan))
    end = f"data: [DONE]{plan.newline}{plan.newline}"
    due += [(at_s, text, size), (at_s + plan.done_late_s, end, 0)] if plan.done_late_s else [(at_s, text + end, size)]
    before = head(200, "text/event-stream; charset=utf-8", "transfer-encoding: chunked")
    writes: list[Write] = []
    for at_s, text, size in due:
        data = text.encode()
        parts = _halves(data) if plan.cut and size else [data]
        for number, part in enumerate(parts):
            framed = b"%x\r\n%b\r\n" % (len(part), part) if part else b""
            tokens = size if number == len(parts) - 1 else 0
            writes.append(Write(round((at_s + number * PAUSE_S) * 1e9), framed, tokens))
    writes[0] = replace(writes[0], data=before + writes[0].data)
    writes[-1] = replace(writes[-1], data=writes[-1].data + b"0\r\n\r\n")
    return writes


def whole(plan: Plan) -> list[Write]:
    """The one write of an answer that is not streamed."""
    text = {key: value for key, value in _delta(plan, 0, plan.tokens).items() if value}
    choice = {"finish_reason": "stop", "index": 0, "message": {**text, "role": "assistant"}}
    body = _json({**_envelope("chat.completion"), "choices": [choice], **_last(plan)}).encode()
    at_s = FIRST_S + (plan.tokens - plan.first_tokens) / TOKENS_PER_S
    before = head(200, "application/json", f"content-length: {len(body)}")
    return [Write(round(at_s * 1e9), before + body, plan.tokens)]


def _delta(plan: Plan, start: int, stop: int) -> dict[str, str]:
    token = WIDE if plan.cut else TOKEN
    reasoning = max(0, min(stop, plan.reasoning) - start)
    texts = {"reasoning": token * reasoning, "content": token * (stop - start - reasoning)}
    return {name: text for name, text in texts.items() if text}


def _last(plan: Plan) -> dict[str, object]:
    usage = {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": plan.tokens,
        "total_tokens": PROMPT_TOKENS + plan.tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": plan.reasoning},
    }
    clock = {
        "queue_time": plan.queue_s,
        "prompt_time": plan.prompt_s,
        "completion_time": plan.completion_s,
        "total_time": plan.queue_s + plan.prompt_s + plan.completion_s,
        "created": 1767225600.0,
    }
    return {**({"usage": usage} if plan.usage else {}), **({"time_info": clock} if plan.time_info else {})}


def _envelope(kind: str) -> dict[str, object]:
    return {"id": ID.decode(), "created": 1767225600, "model": MODEL, "system_fingerprint": "fp_0", "object": kind}


def _event(
    plan: Plan,
    *,
    delta: dict[str, str] | None = None,
    finish: str | None = None,
    last: dict[str, object] | None = None,
) -> str:
    ended = {"finish_reason": finish} if finish else {}
    choices = [] if delta is None else [{"delta": delta, **ended, "index": 0}]
    event = {**_envelope("chat.completion.chunk"), "choices": choices, **(last or {})}
    return f"data: {_json(event)}{plan.newline}{plan.newline}"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _halves(data: bytes) -> list[bytes]:
    """Cut in the middle of the first character that has more than one byte."""
    middle = data.index("ö".encode()) + 1
    return [data[:middle], data[middle:]]


def head(status: int, kind: str, *lines: str) -> bytes:
    said = {200: "OK", 404: "Not Found", 429: "Too Many Requests"}[status]
    return "\r\n".join((f"HTTP/1.1 {status} {said}", f"content-type: {kind}", *lines, "", "")).encode()
