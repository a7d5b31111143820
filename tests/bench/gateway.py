"""The gateway under load: what it adds to the first token, whether streams are mixed up, whether memory stays flat.

    python -m tests.bench.gateway [--clients 200] [--seconds 60] [--chunk-delay-s 0.05]

`clients` stream at the same time, each one answer after the other for so many seconds: half of them through
`cbatch serve` (`/v1/responses`, with a 30 KB conversation), half straight at the simulator (the same prompt as
chat completions). Both sides at once, so both meet the same machine. A time to first token is from the write of
the request to the read that completes the first text. Every answer must begin with the tag of its own prompt,
and its events must add up to the answer that the last of them holds.

Goals: added time to the first token <= 2 ms at p50; no stream mixed up; memory flat after the first ten seconds.
Exit code 1 where a goal is missed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import click

from tests.bench import children

MODEL = "gpt-oss-120b"
GOAL_S, GOAL_GROWTH = 0.002, 1.05
SETTLED_S = 10.0
HISTORY = "You are a coding agent. " * 1_250  # 30 KB: an empty conversation with Codex


@dataclass(slots=True)
class Side:
    """What one kind of client saw."""

    first_s: list[float] = field(default_factory=list)
    answers: int = 0
    mixed_up: int = 0
    failed: int = 0


@contextmanager
def server(*args: str, folder: Path) -> Iterator[tuple[str, int]]:
    """(address, pid) of a `cbatch` server that prints its address first."""
    command = [sys.executable, "-m", "cbatch", *args]
    env = {**children.environment(folder), "CEREBRAS_API_KEY": "bench-key"}
    with subprocess.Popen(command, env=env, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip(), process.pid
        finally:
            process.terminate()


def resident_bytes(pid: int) -> int:
    """Of a process, now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def tag(prompt: str) -> str:
    """How the simulator's answer to a prompt begins."""
    return f"[prompt {hashlib.sha256(prompt.encode()).hexdigest()[:12]}]"


async def through_gateway(session: aiohttp.ClientSession, url: str, prompt: str, side: Side) -> None:
    """One answer by `/v1/responses`."""
    items = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": HISTORY}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": prompt}]},
    ]
    body = {"model": "gpt-5-codex", "stream": True, "store": False, "input": items}
    said: list[str] = []
    whole: str | None = None
    async for data in events(session, f"{url}/v1/responses", body, side, b"_text.delta"):
        event = json.loads(data)
        if event["type"] == "response.output_text.delta":
            said.append(event["delta"])
        elif event["type"] == "response.completed":
            output = event["response"]["output"]
            whole = next(item["content"][0]["text"] for item in output if item["type"] == "message")
    judge(side, prompt, "".join(said), whole)


async def direct(session: aiohttp.ClientSession, url: str, prompt: str, side: Side) -> None:
    """The same by chat completions, without the gateway."""
    messages = [{"role": "system", "content": HISTORY}, {"role": "user", "content": prompt}]
    body = {"model": MODEL, "stream": True, "messages": messages, "stream_options": {"include_usage": True}}
    said: list[str] = []
    done = False
    async for data in events(session, f"{url}/v1/chat/completions", body, side, b'"reasoning":"'):
        if data == b"[DONE]":
            done = True
            continue
        for choice in json.loads(data).get("choices") or []:
            said.append(choice["delta"].get("content") or "")
    judge(side, prompt, "".join(said), "".join(said) if done else None)


async def events(session: aiohttp.ClientSession, url: str, body: dict[str, Any], side: Side, mark: bytes) -> Any:
    """The data of a stream; the first with `mark` in it is stamped."""
    rest = b""
    stamped = False
    data = json.dumps(body).encode()
    sent = time.perf_counter()
    headers = {"Content-Type": "application/json", "Authorization": "Bearer bench-key"}
    async with session.post(url, data=data, headers=headers) as answer:
        answer.raise_for_status()
        async for piece in answer.content.iter_any():
            rest += piece
            if not stamped and mark in rest:
                side.first_s.append(time.perf_counter() - sent)
                stamped = True
            *blocks, rest = rest.split(b"\n\n")
            for block in blocks:
                yield block.partition(b"data: ")[2]


def judge(side: Side, prompt: str, said: str, whole: str | None) -> None:
    """Count an answer."""
    side.answers += 1
    side.failed += whole is None
    side.mixed_up += whole is not None and not (said == whole and said.startswith(tag(prompt)))


async def load(gateway: str, upstream: str, clients: int, seconds: float, watch: Any) -> tuple[Side, Side]:
    """Both sides at once for so long."""
    ours, theirs = Side(), Side()
    end = time.perf_counter() + seconds

    async def client(number: int) -> None:
        await asyncio.sleep(number / clients)  # not all in the same millisecond
        side, ask, url = (ours, through_gateway, gateway) if number % 2 else (theirs, direct, upstream)
        turn = 0
        while time.perf_counter() < end:
            turn += 1
            await ask(session, url, f"Client {number}, question {turn}: why is the sky blue?", side)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        watching = asyncio.create_task(watch(end))
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(client(number))
        await watching
    return ours, theirs


@click.command()
@click.option("--clients", default=400, show_default=True, type=click.IntRange(2, 5_000), help="Half use the gateway.")
@click.option("--seconds", default=60.0, show_default=True, type=click.FloatRange(1.0, 3_600.0))
@click.option("--chunk-delay-s", default=0.1, show_default=True, type=click.FloatRange(0.0, 10.0))
def main(clients: int, seconds: float, chunk_delay_s: float) -> None:
    """Print the time to the first token of both sides, what was mixed up, and the gateway's memory over time."""
    with tempfile.TemporaryDirectory(prefix="cbatch-bench-") as name:
        folder = Path(name)
        script = folder / "script.json"
        script.write_text(json.dumps([{"when": {}, "chunk_delay_s": chunk_delay_s}]))
        sim = ["sim", "--port", "0", "--tier", "unlimited", "--answer-tokens", "150", "--script", str(script)]
        with server(*sim, folder=folder) as (upstream, _):
            serve = ["serve", "--port", "0", "--base-url", upstream, "--quiet"]
            with server(*serve, folder=folder) as (gateway, pid):
                sizes: list[tuple[float, int]] = []
                started = time.perf_counter()

                async def watch(end: float) -> None:
                    while time.perf_counter() < end:
                        sizes.append((time.perf_counter() - started, resident_bytes(pid)))
                        await asyncio.sleep(1.0)

                ours, theirs = asyncio.run(load(gateway, upstream, clients, seconds, watch))
    print(f"{'':24}{'answers':>9}{'failed':>8}{'mixed up':>10}{'ttft p50':>11}{'p99':>10}")
    for label, side in (("through the gateway", ours), ("straight", theirs)):
        p50, p99 = statistics.median(side.first_s), statistics.quantiles(side.first_s, n=100)[98]
        cells = f"{side.answers:>9,}{side.failed:>8}{side.mixed_up:>10}{p50 * 1e3:>8.2f} ms{p99 * 1e3:>7.2f} ms"
        print(f"{label:24}{cells}")
    added_s = statistics.median(ours.first_s) - statistics.median(theirs.first_s)
    settled = [size for at, size in sizes if at >= min(SETTLED_S, seconds / 3)]
    growth = statistics.median(settled[-5:]) / statistics.median(settled[:5])
    print(f"added to the first token at p50: {added_s * 1e3:.2f} ms (goal {GOAL_S * 1e3:g})")
    print(f"gateway's memory: {settled[0] / 1e6:.0f} MB, then {settled[-1] / 1e6:.0f} MB, x {growth:.3f}")
    bad = ours.failed + ours.mixed_up + theirs.failed + theirs.mixed_up
    sys.exit(bad > 0 or added_s > GOAL_S or growth > GOAL_GROWTH)


if __name__ == "__main__":
    main()
