"""Fixtures: simulators and command lines as processes of their own, and a job in a folder.

Command lines are forked from a process that has imported everything: as real as one started by hand
(own process, real signals, real `kill -9`), and there in 30 ms instead of a second.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from cbatch.parquet import read_rows
from cbatch.rundir import RunDir
from cbatch.schema import COLUMN_INDEX
from cbatch.verify import Proof, verify

PIPELINE = Path(__file__).resolve().parents[2] / "pipeline"
GSM8K = Path(__file__).resolve().parents[3] / "shared" / "data" / "gsm8k-test.jsonl"
DEADLINE_S = 60.0  # of everything that is waited for: far more than any of it takes

T = TypeVar("T")

_FORKING = """
import gc, json, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may have it ignored
import cbatch.cli.run, cbatch.cli.sim, cbatch.engine, pyarrow.dataset, uvloop
from cbatch.cli import main
gc.freeze()  # what is imported by now is shared by all, and not to be copied by looking at it
while line := sys.stdin.readline():
    order = json.loads(line)
    if "wait" in order:
        pid, status = os.waitpid(order["wait"], os.WNOHANG)
        print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
        continue
    if pid := os.fork():
        print(pid, flush=True)
        continue
    for fd, path in enumerate([os.devnull, order["out"], order["err"]]):
        os.dup2(os.open(path, os.O_RDWR), fd)
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["cwd"])
    exec(order["first"])
    try:
        main(order["args"])
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(end.code)
"""


def wait_for(look: Callable[[], T], what: str) -> T:
    """What `look` returns once it is true; fails after DEADLINE_S."""
    end = time.monotonic() + DEADLINE_S
    while not (found := look()):
        assert time.monotonic() < end, f"waited {DEADLINE_S:g} s for {what}"
        time.sleep(0.003)
    return found


@dataclass(frozen=True, slots=True)
class Result:
    """How a command line ended; `summary` is what --json printed."""

    code: int
    out: str
    err: str

    @property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


class Process:
    """A command line that is running."""

    def __init__(self, forking: Forking, pid: int, out: Path, err: Path) -> None:
        self.pid = pid
        self._forking = forking
        self._out, self._err = out, err
        self._code: int | None = None

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    @property
    def first_line(self) -> str:
        """The first line of stdout; empty until it is there."""
        line, newline, _ = self._out.read_text().partition("\n")
        return line if newline else ""

    def signal(self, signum: int) -> None:
        if self.ended is None:
            os.kill(self.pid, signum)

    def kill(self) -> Result:
        self.signal(signal.SIGKILL)
        return self.wait()

    @property
    def ended(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self._code is None:
            self._code = self._forking.ask({"wait": self.pid})
        return self._code

    def wait(self) -> Result:
        wait_for(lambda: self.ended is not None, f"process {self.pid} to end; it said {self.err}")
        assert self._code is not None
        return Result(self._code, self._out.read_text(), self.err)


class Forking:
    """The process that command lines are forked from."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self._server = subprocess.Popen(
            [sys.executable, "-c", _FORKING],
            env={**os.environ, "PYTHONPATH": str(PIPELINE)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, order: dict[str, Any]) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def start(self, args: Sequence[str], *, key: str | None, cwd: Path, first: str = "") -> Process:
        """`first` is Python that the process runs before the command."""
        self._count += 1
        out, err = (self._folder / f"{self._count}.{name}" for name in ("out", "err"))
        out.touch()
        err.touch()
        env = {"PATH": os.environ["PATH"], "HOME": str(cwd / "home"), "NO_COLOR": "1", "PYTHONPATH": str(PIPELINE)}
        env |= {"CEREBRAS_API_KEY": key} if key else {}
        order = {"out": str(out), "err": str(err), "env": env, "cwd": str(cwd), "first": first, "args": list(args)}
        return Process(self, self.ask(order), out, err)

    def close(self) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait(10)


@pytest.fixture(scope="session")
def forking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forking]:
    server = Forking(tmp_path_factory.mktemp("output"))
    yield server
    server.close()


class Sim:
    """A simulator at `url`."""

    def __init__(self, url: str) -> None:
        self.url = url

    def stats(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/_sim/stats", timeout=30) as response:
            found: dict[str, Any] = json.load(response)
        return found

    @property
    def requests(self) -> int:
        """Chat requests seen since the last reset, refused keys not counted."""
        seen: int = self.stats()["chat_requests"]
        return seen

    def reset(self) -> None:
        with urllib.request.urlopen(f"{self.url}/_sim/reset", data=b"", timeout=30):
            pass


@pytest.fixture(scope="session")
def sims(forking: Forking, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Sim]]:
    """`sims("--speed", "5")` is a simulator with these options, started once and reset at every call."""
    started: dict[tuple[str, ...], Sim] = {}
    processes: list[Process] = []
    folder = tmp_path_factory.mktemp("sims")

    def find(*args: str) -> Sim:
        if args not in started:
            process = forking.start(["sim", "--port", "0", "--tier", "unlimited", *args], key=None, cwd=folder)
            processes.append(process)
            wait_for(lambda: process.first_line or process.ended is not None, f"the address of cbatch sim {args}")
            assert process.first_line, process.err
            started[args] = Sim(process.first_line)
        started[args].reset()
        return started[args]

    yield find
    for process in processes:
        process.signal(signal.SIGTERM)
        process.wait()


@pytest.fixture
def sim(sims: Callable[..., Sim]) -> Sim:
    """A simulator that answers at once."""
    return sims("--speed", "inf")


def ask(row: dict[str, Any]) -> str:
    """What the template below makes of a row."""
    return f"Solve.\n\n{row['question']}"


class JobFolder:
    """A job.yaml with its input, and the run it makes."""

    def __init__(self, path: Path, forking: Forking, sim: Sim) -> None:
        path.mkdir(exist_ok=True)
        self.path = path
        self.sim = sim
        self.run = RunDir(path / "run")
        self.settings: dict[str, Any] = {
            "model": "gpt-oss-120b",
            "input": "rows.jsonl",
            "prompt": "Solve.\n\n{{ question }}",
            "output": str(self.run.path),
            "limits": {"concurrency": 16},
        }
        self._forking = forking
        self._started: list[Process] = []

    def rows(self, rows: Sequence[dict[str, Any] | str]) -> None:
        """Write the input; a text is a line as it is."""
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (self.path / "rows.jsonl").write_text("".join(line + "\n" for line in lines))

    def start(self, *args: str, key: str | None = "key", to: str | None = None, first: str = "") -> Process:
        """`cbatch run` with these options, at the simulator unless `to` names another place or is empty."""
        (self.path / "job.yaml").write_text(json.dumps(self.settings))
        where = ["--base-url", self.sim.url] if to is None else ["--base-url", to] if to else []
        command = ["run", str(self.path / "job.yaml"), "--json", *where, *args]
        self._started.append(self._forking.start(command, key=key, cwd=self.path, first=first))
        return self._started[-1]

    def execute(self, *args: str, key: str | None = "key", to: str | None = None, first: str = "") -> Result:
        return self.start(*args, key=key, to=to, first=first).wait()

    def close(self) -> None:
        for process in self._started:
            process.kill()

    @property
    def durable(self) -> int:
        """Rows in the journal: what a kill now must not lose."""
        if not self.run.journal.exists():
            return 0
        try:
            with closing(sqlite3.connect(f"{self.run.journal.as_uri()}?mode=ro", uri=True)) as db:
                found: int = db.execute("SELECT COUNT(*) FROM result").fetchone()[0]
        except sqlite3.OperationalError:  # just being made
            return 0
        return found

    def results(self) -> list[dict[str, Any]]:
        """The rows of results/, as they stand."""
        return [
            {name: row[place] for name, place in COLUMN_INDEX.items()}
            for part in self.run.parts
            for row in read_rows(part)
        ]

    def proof(self) -> Proof:
        """What `cbatch verify` says, which must be nothing bad."""
        found = verify(self.run)
        assert not found.problems
        return found


def belongs(result: dict[str, Any], prompt: str) -> bool:
    """Whether an answer is the simulator's answer to this very prompt."""
    tag = hashlib.sha256(prompt.encode()).hexdigest()[:12]
    return str(result["text"]).startswith(f"[prompt {tag}]")


@pytest.fixture
def job(tmp_path: Path, forking: Forking, sim: Sim) -> Iterator[JobFolder]:
    """A job of 40 rows in a folder of its own."""
    folder = JobFolder(tmp_path / "job", forking, sim)
    folder.rows(questions(40))
    yield folder
    folder.close()


def questions(count: int) -> list[dict[str, Any]]:
    """Rows from GSM8K where it is at hand, else made up."""
    if GSM8K.is_file():
        lines = GSM8K.read_bytes().split(b"\n")[:count]
        if len(found := [json.loads(line) for line in lines if line]) == count:
            return found
    return [{"question": f"What is {n} plus {n * 7}? " + "Explain. " * (n % 30)} for n in range(count)]


@dataclass(frozen=True, slots=True)
class Said:
    """One HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The data of an event stream, in order; what is no JSON is a text."""
        found = []
        for block in self.body.replace(b"\r\n", b"\n").split(b"\n\n"):
            for line in block.split(b"\n"):
                if line.startswith(b"data: "):
                    text = line[6:].decode()
                    found.append(json.loads(text) if text.startswith(("{", "[{")) else text)
        return found


class Gateway:
    """A running `cbatch serve`."""

    def __init__(self, url: str, process: Process) -> None:
        self.url, self.process = url, process

    def ask(
        self, path: str, body: Any = None, headers: dict[str, str] | None = None, method: str | None = None
    ) -> Said:
        """POST with a body (JSON unless bytes), GET without."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **(headers or {})}
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE_S) as response:
                return Said(response.status, _lower(response.headers), response.read())
        except urllib.error.HTTPError as exc:
            with exc:
                return Said(exc.code, _lower(exc.headers), exc.read())

    def stop(self, signum: int = signal.SIGTERM) -> Result:
        self.process.signal(signum)
        return self.process.wait()


def _lower(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


@pytest.fixture
def gateways(forking: Forking, tmp_path: Path) -> Iterator[Callable[..., Gateway]]:
    """`gateways(sim, "--log", "logs")` is a gateway in front of it, on a free port, with its folder as home."""
    started: list[Process] = []

    def start(sim: Sim | str, *args: str, key: str | None = "key", cwd: Path = tmp_path, first: str = "") -> Gateway:
        url = sim if isinstance(sim, str) else sim.url
        process = forking.start(["serve", "--port", "0", "--base-url", url, *args], key=key, cwd=cwd, first=first)
        started.append(process)

        # With --json, stdout is for the one object at the end.
        def address() -> str:
            return process.err.partition("\n")[0] if "--json" in args else process.first_line

        wait_for(lambda: address() or process.ended is not None, "the address of cbatch serve")
        assert address().startswith("http"), process.err
        return Gateway(address(), process)

    yield start
    for process in started:
        process.kill()
