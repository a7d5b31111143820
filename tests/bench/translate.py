"""What the translation of the Responses API costs: a request of Codex, and a chunk of its answer.

    python -m tests.bench.translate [--repeats 400] [--source DIR …]

Goals: at most 1 ms for a body of 60 KB, and 10 µs for a chunk of text with the frame it becomes. The bodies are those
that Codex was recorded with; the one of 60 KB is its longest, with its last tool call repeated until it is as long, and
so is the one of 1 MB. `read` and `write` are orjson's, before and behind the translation, as the gateway does it.

Medians and 99th percentiles of wall time on one core, in a process of its own for each source.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import orjson

RECORDED = Path(__file__).resolve().parents[1] / "data" / "codex"
SOURCE = Path(__file__).resolve().parents[2] / "pipeline"
LONGEST = "0.169.0-tool-loop"
GOAL_MS, GOAL_CHUNK_US = 1.0, 10.0
ANSWER_CHUNKS = 400
NS_PER_US = 1e3


def lengthened(body: dict[str, Any], size: int) -> dict[str, Any]:
    """The body with more steps of the session in it, at least `size` bytes."""
    items = list(body["input"])
    calls = [item for item in items if item["type"] == "function_call"]
    outputs = [item for item in items if item["type"] == "function_call_output"]
    missing = size - len(orjson.dumps(body))
    number = 0
    while missing > 0:
        number += 1
        step = [{**calls[-1], "call_id": f"call_more_{number}"}, {**outputs[-1], "call_id": f"call_more_{number}"}]
        items += step
        missing -= len(orjson.dumps(step)) - 1
    return {**body, "input": items}


def spread(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median and 99th percentile in µs, after a few rounds to warm up."""
    taken: list[int] = []
    for turn in range(repeats + 10):
        before = time.perf_counter_ns()
        work()
        if turn >= 10:
            taken.append(time.perf_counter_ns() - before)
    taken.sort()
    return taken[len(taken) // 2] / NS_PER_US, taken[min(len(taken) - 1, int(len(taken) * 0.99))] / NS_PER_US


def requests(repeats: int) -> None:
    """Print the cost of every recorded request."""
    from cbatch.responses import target, to_chat

    recorded = {path.stem: orjson.loads(path.read_bytes()) for path in sorted(RECORDED.glob("*.json"))}
    bodies = {**recorded, "60 KB": lengthened(recorded[LONGEST], 60_000), "1 MB": lengthened(recorded[LONGEST], 10**6)}
    to = target("gpt-oss-120b")
    print(f"{'request':<24} {'bytes':>9} {'items':>6} {'read µs':>8} {'translate µs':>13} {'p99':>7} {'write µs':>9}")
    for name, body in bodies.items():
        raw = orjson.dumps(body)
        chat = to_chat(body, to).chat
        read, _ = spread(lambda raw=raw: orjson.loads(raw), repeats)  # type: ignore[misc]
        cost, slow = spread(lambda body=body: to_chat(body, to), repeats)  # type: ignore[misc]
        write, _ = spread(lambda chat=chat: orjson.dumps(chat), repeats)  # type: ignore[misc]
        goal = f"   goal {GOAL_MS * 1e3:.0f} in all: {read + cost + write:.0f}" if name == "60 KB" else ""
        head = f"{name:<24} {len(raw):>9,} {len(body['input']):>6}"
        print(f"{head} {read:>8.0f} {cost:>13.0f} {slow:>7.0f} {write:>9.0f}{goal}")


def chunks(repeats: int) -> None:
    """Print the cost of a chunk of each kind, its frame included."""
    from cbatch.responses import Events, encode, target, to_chat

    body = orjson.loads((RECORDED / f"{LONGEST}.json").read_bytes())
    translation = to_chat(body, target("gpt-oss-120b"))

    def call(number: int) -> dict[str, Any]:
        function = {"arguments": '{"cmd": "' if number == 0 else "echo hello "}
        first = {"id": "c1", "type": "function", "function": {"name": "exec_command", **function}}
        return {"tool_calls": [{"index": 0, **(first if number == 0 else {"function": function})}]}

    kinds: dict[str, Callable[[int], dict[str, Any]]] = {
        "text": lambda _: {"content": "Message received, what next? "},
        "reasoning": lambda _: {"reasoning": "Short answer is fine. "},
        "arguments": call,
    }

    def answer(deltas: list[dict[str, Any]]) -> int:
        events = Events(translation, response_id="resp_0", created_at=0)
        size = sum(len(encode(event)) for event in events.start())
        for delta in deltas:
            size += sum(len(encode(event)) for event in events.chunk({"choices": [{"index": 0, "delta": delta}]}))
        events.chunk({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        return size + sum(len(encode(event)) for event in events.finish())

    print(
        f"\n{'answer of ' + str(ANSWER_CHUNKS) + ' chunks':<24} {'µs/chunk':>9} {'p99':>7}   {'begin and end µs':>16}"
    )
    few = max(10, repeats // 10)
    for kind, delta in kinds.items():
        deltas = [delta(number) for number in range(ANSWER_CHUNKS)]
        ends, _ = spread(lambda deltas=deltas: answer(deltas[:1]), few)  # type: ignore[misc]
        cost, slow = spread(lambda deltas=deltas: answer(deltas), few)  # type: ignore[misc]
        each, each_slow = (cost - ends) / (ANSWER_CHUNKS - 1), (slow - ends) / (ANSWER_CHUNKS - 1)
        goal = f"   goal {GOAL_CHUNK_US:.0f} a chunk" if kind == "text" else ""
        print(f"{kind:<24} {each:>9.2f} {each_slow:>7.2f}   {ends:>16.0f}{goal}")


@click.command()
@click.option("--repeats", default=400, show_default=True, type=click.IntRange(20, 100_000))
@click.option("--source", multiple=True, type=click.Path(exists=True, path_type=Path), help="Repeatable.")
@click.option("--inside", is_flag=True, hidden=True)
def main(repeats: int, source: tuple[Path, ...], inside: bool) -> None:
    """Print the cost per request and per chunk."""
    if inside:
        requests(repeats)
        chunks(repeats)
        return
    for path in [one.resolve() for one in source] or [SOURCE]:
        if len(source) > 1:
            print(f"\n== {path}")
        command = [sys.executable, "-m", "tests.bench.translate", "--inside", "--repeats", str(repeats)]
        environment = {**os.environ, "PYTHONPATH": str(path)}
        subprocess.run(command, check=True, env=environment, cwd=Path(__file__).resolve().parents[2])


if __name__ == "__main__":
    main()
