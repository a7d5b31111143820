"""The clients that are held against the server of known timing: how each is started, and what it reported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet

from tests.bench import children
from tests.bench.timing_plans import MODEL

TOOLS = ("aiperf", "guidellm")
INSTALL_S = 600.0
PROMPT = "What is the capital of this country?"
# Memory: the peak of a child counts what its parent had at the fork, and we have pyarrow; this one has next to nothing.
_LAUNCHER = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    file.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(0 if code == 6 else code)  # 6: cbatch says that the measurement is not valid, which is for us to see
"""
# A tokenizer that needs no network: the tools want one, and count by the server's usage all the same.
TOKENIZER = {
    "tokenizer.json": {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "tok": 1}, "unk_token": "[UNK]"},
    },
    "tokenizer_config.json": {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "[UNK]",
        "eos_token": "[UNK]",
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a client said of one answer; null is None."""

    ttft_s: float
    tokens_per_s: float | None  # by the client's clock
    server_tokens_per_s: float | None = None  # of `time_info`, where the client reads it


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a client did: `answers` by the answer's id, or by the first digits of the request's x-request-id."""

    answers: dict[str, Answer]
    cpu_s: float
    peak_bytes: int
    started_ns: int  # CLOCK_MONOTONIC


# (base URL that ends in /v1, requests in flight, requests) -> Outcome
Client = Callable[[str, int, int], Outcome]


def reference(kind: str, folder: Path) -> Client:
    """One of reference_loops.py."""

    def run(url: str, in_flight: int, requests: int) -> Outcome:
        script = Path(__file__).with_name("reference_loops.py")
        command: list[str | Path] = [sys.executable, script, kind, f"{url}/chat/completions"]
        started_ns = time.monotonic_ns()
        used = _run([*command, str(in_flight), str(requests)], folder, children.environment(folder))
        rows = [json.loads(line) for line in used.stdout.splitlines()]
        answers = {row["id"]: Answer(ttft_s=row["ttft_s"], tokens_per_s=row["tokens_per_s"]) for row in rows}
        return Outcome(answers=answers, cpu_s=used.cpu_s, peak_bytes=used.peak_bytes, started_ns=started_ns)

    return run


def cbatch(folder: Path, source: Path, *, load: bool, streamed: bool = True) -> Client:
    """`cbatch run` as a whole process: a batch, or with `load` the closed loop of a load run. Parquet included."""

    def run(url: str, in_flight: int, requests: int) -> Outcome:
        if not (folder / f"rows-{requests}.jsonl").exists():
            children.write_rows(folder, requests)
        job: dict[str, Any] = {
            "name": "timing",
            "model": MODEL,
            "input": {"path": f"rows-{requests}.jsonl", "id": "id"},
            "prompt": "{{ question }}",
            "params": {"max_completion_tokens": 500, **({"stream": True} if streamed else {})},
        }
        job |= (
            {"load": {"mode": "closed", "concurrency": in_flight, "requests": requests}}
            if load
            else {"limits": {"concurrency": in_flight}}
        )
        (folder / "timing.yaml").write_text(json.dumps(job), "utf-8")
        command: list[str | Path] = [sys.executable, "-m", "cbatch", "run", folder / "timing.yaml", "--base-url", url]
        started_ns = time.monotonic_ns()
        used = _run(
            [*command, "--output", folder / "out", "--fresh", "--json"], folder, children.environment(folder, source)
        )
        columns = ["request_id", "ttft_s", "client_tokens_per_s", "server_tokens_per_s"]
        rows = pyarrow.parquet.read_table(folder / "out" / "results", columns=columns)
        answers = {
            name: Answer(ttft_s=ttft_s, tokens_per_s=speed, server_tokens_per_s=server_speed)
            for name, ttft_s, speed, server_speed in zip(*(rows[name].to_pylist() for name in columns), strict=True)
        }
        return Outcome(answers=answers, cpu_s=used.cpu_s, peak_bytes=used.peak_bytes, started_ns=started_ns)

    return run


def install(tool: str, venvs: Path) -> str | None:
    """Put a tool into a venv of its own, unless it is there; returns why it is not to be had, or None."""
    if (venvs / tool / "bin" / tool).exists():
        return None
    try:
        for command in ([sys.executable, "-m", "venv", tool], [f"{tool}/bin/pip", "install", "--quiet", tool]):
            subprocess.run(command, cwd=venvs, check=True, capture_output=True, text=True, timeout=INSTALL_S)
    except (subprocess.SubprocessError, OSError) as exc:
        said = getattr(exc, "stderr", None) or str(exc)
        shutil.rmtree(venvs / tool, ignore_errors=True)
        return str(said).strip().splitlines()[-1]
    return None


def aiperf(folder: Path, venvs: Path) -> Client:
    """NVIDIA's aiperf; it sends an x-request-id and does not keep the answer's id."""

    def run(url: str, in_flight: int, requests: int) -> Outcome:
        tokenizer = _tokenizer(folder)
        body = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}], "stream": True}
        (folder / "payloads.jsonl").write_text((json.dumps(body) + "\n") * 64, "utf-8")
        out = folder / "aiperf"
        shutil.rmtree(out, ignore_errors=True)
        address, _, path = url.removeprefix("http://").partition("/")
        options = {
            "model": MODEL,
            "url": f"http://{address}",
            "custom-endpoint": f"/{path}/chat/completions",
            "endpoint-type": "chat",
            "input-file": str(folder / "payloads.jsonl"),
            "custom-dataset-type": "raw_payload",
            "concurrency": str(in_flight),
            "request-count": str(requests),
            "tokenizer": str(tokenizer),
            "ui": "none",
            "artifact-dir": str(out),
        }
        command = [str(venvs / "aiperf/bin/aiperf"), "profile", "--streaming", "--use-server-token-count"]
        command += ["--no-gpu-telemetry", "--no-server-metrics"]
        command += [word for name, value in options.items() for word in (f"--{name}", value)]
        outcome = _run_tool(command, folder)
        for line in (out / "profile_export.jsonl").read_text("utf-8").splitlines():
            row = json.loads(line)
            figures = {name: found["value"] for name, found in row["metrics"].items()}
            outcome.answers[row["metadata"]["x_request_id"][:8]] = Answer(
                ttft_s=figures["time_to_first_token"] / 1e3,
                tokens_per_s=figures.get("output_token_throughput_per_user"),
            )
        return outcome

    return run


def guidellm(folder: Path, venvs: Path) -> Client:
    """The vLLM project's guidellm."""

    def run(url: str, in_flight: int, requests: int) -> Outcome:
        (folder / "prompts.jsonl").write_text((json.dumps({"prompt": PROMPT}) + "\n") * requests, "utf-8")
        command = [str(venvs / "guidellm/bin/guidellm"), "run", "--disable-console"]
        options = {
            "backend": f"kind=openai_http,target={url.removesuffix('/v1')},model={MODEL}",
            "profile": f"kind=concurrent,streams={in_flight}",
            "constraint": f"kind=max_requests,count={requests}",
            "data": f"kind=json_file,path={folder / 'prompts.jsonl'}",
            "output": f"kind=json,path={folder / 'guidellm.json'}",
        }
        outcome = _run_tool(
            [*command, *(word for name, value in options.items() for word in (f"--{name}", value))], folder
        )
        report = json.loads((folder / "guidellm.json").read_bytes())
        for row in report["benchmarks"][0]["requests"]["successful"]:
            itl = row["inter_token_latency_ms"]
            outcome.answers[row["response_id"]] = Answer(
                ttft_s=row["time_to_first_token_ms"] / 1e3, tokens_per_s=1e3 / itl if itl else itl
            )
        return outcome

    return run


def _tokenizer(folder: Path) -> Path:
    path = folder / "tokenizer"
    path.mkdir(exist_ok=True)
    for name, content in TOKENIZER.items():
        (path / name).write_text(json.dumps(content), "utf-8")
    return path


def _run(command: Sequence[str | Path], folder: Path, env: Mapping[str, str]) -> children.Usage:
    peak = folder / "peak"
    used = children.run([sys.executable, "-ISc", _LAUNCHER, peak, *command], folder, env)
    return replace(used, peak_bytes=int(peak.read_text()) * 1024)


def _run_tool(command: Sequence[str], folder: Path) -> Outcome:
    """Run a tool of several processes; its memory is what all of them have, looked at four times a second."""
    with _watched_memory() as peak:
        started_ns = time.monotonic_ns()
        used = _run(command, folder, children.environment(folder))
    return Outcome(answers={}, cpu_s=used.cpu_s, peak_bytes=max(peak[0], used.peak_bytes), started_ns=started_ns)


@contextmanager
def _watched_memory() -> Iterator[list[int]]:
    before = set(_descendants(os.getpid()))  # the server
    peak = [0]
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.25):
            family = [pid for pid in _descendants(os.getpid()) if pid not in before]
            peak[0] = max(peak[0], sum(map(_proportional_bytes, family)))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield peak
    finally:
        ended.set()
        watching.join()


def _descendants(pid: int) -> Iterator[int]:
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found = path.read_text().split()
        except OSError:  # gone meanwhile
            continue
        for child in map(int, found):
            yield child
            yield from _descendants(child)


def _proportional_bytes(pid: int) -> int:
    """The memory of a process; what it shares with others is shared out."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
