"""Child processes that are measured: their CPU, peak memory and wall time from wait4, as the kernel counted them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.server import MODEL

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCE = REPOSITORY / "pipeline"
BEFORE = b'{"max_completion_tokens":500,"messages":[{"content":"'
AFTER = b'","role":"user"}],"model":"%s"}' % MODEL.encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one child process took."""

    cpu_s: float  # user + system, all its threads
    wall_s: float
    peak_bytes: int  # resident; at least this process's own at the fork, which is smaller than any child's
    stdout: bytes


def run(command: Sequence[str | Path], folder: Path, env: Mapping[str, str]) -> Usage:
    """Run a command to its end. Raises RuntimeError with its stderr if it fails."""
    with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
        started = time.perf_counter()
        child = subprocess.Popen([str(part) for part in command], cwd=folder, env=dict(env), stdout=out, stderr=err)
        _, status, used = os.wait4(child.pid, 0)
        wall_s = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        said = (folder / "stderr").read_text("utf-8", "replace")
        raise RuntimeError(f"{' '.join(map(str, command))}: exit code {child.returncode}\n{said}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Usage(
        cpu_s=used.ru_utime + used.ru_stime,
        wall_s=wall_s,
        peak_bytes=used.ru_maxrss * unit,
        stdout=(folder / "stdout").read_bytes(),
    )


def environment(folder: Path, source: Path = SOURCE) -> dict[str, str]:
    """What a child sees: `source` to import from, a home of its own, and nothing of the user's settings."""
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "LC_ALL", "TMPDIR")}
    return {**kept, "HOME": str(folder), "PYTHONPATH": str(source)}


def write_rows(folder: Path, rows: int) -> None:
    """`rows-N.jsonl`, and `bodies-N` with the very bytes that a client sends for each of them."""
    with (folder / f"rows-{rows}.jsonl").open("wb") as data, (folder / f"bodies-{rows}").open("wb") as bodies:
        for number in range(rows):
            question = b"What is the capital of country number %d, and on which river does it lie?" % number
            data.write(b'{"id":"q%07d","question":"%s"}\n' % (number, question))
            bodies.write(BEFORE + question + AFTER + b"\n")


def run_cbatch(folder: Path, url: str, rows: int, in_flight: int, source: Path = SOURCE, fields: str = "") -> Usage:
    """`cbatch run` as a whole process: JSONL in, journal, Parquet out. Raises RuntimeError if a row is missing.

    `fields` is more YAML for the job.
    """
    job = folder / "bench.yaml"
    job.write_text(
        f"name: bench\nmodel: {MODEL}\ninput: {{path: rows-{rows}.jsonl, id: id}}\n"
        f'prompt: "{{{{ question }}}}"\nparams: {{max_completion_tokens: 500}}\n'
        f"limits: {{concurrency: {in_flight}}}\n{fields}\n",
        "utf-8",
    )
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "cbatch",
        "run",
        job,
        "--base-url",
        url,
        "--output",
        folder / "out",
    ]
    used = run([*command, "--fresh", "--json"], folder, environment(folder, source))
    done = json.loads(used.stdout)["done"]
    if done != rows:
        raise RuntimeError(f"cbatch did {done} of {rows} rows")
    return used


def run_bare(folder: Path, url: str, rows: int, in_flight: int) -> Usage:
    """The bare loop on the same prompts. Raises RuntimeError if an answer is missing."""
    command: list[str | Path] = [sys.executable, Path(__file__).with_name("bare_loop.py"), f"{url}/chat/completions"]
    used = run([*command, folder / f"bodies-{rows}", str(in_flight)], folder, environment(folder))
    if int(used.stdout) != rows:
        raise RuntimeError(f"the bare loop did {int(used.stdout)} of {rows} rows")
    return used
