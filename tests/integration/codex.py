"""The real Codex CLI from npm, installed once per machine and run in folders of its own.

It talks to the loopback only: every other way out is a proxy that nobody listens at.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
import pytest

from tests.integration.conftest import Sim

NEWEST = os.environ.get("CBATCH_CODEX_VERSION", "0.169.0")  # a newer one can be tried before it stands here
OLDEST = "0.42.0"  # the last before `wire_api = "responses"` became usual, and the oldest that is looked after

# Both read before any test: fixtures hide the environment, and the home, from what runs in a test.
_CACHE = Path(os.environ.get("CBATCH_CODEX_DIR") or platformdirs.user_cache_path("cbatch-tests") / "codex")
_ENVIRONMENT = dict(os.environ)
_INSTALL_S = 180.0
_RUN_S = 40.0  # a run takes less than a second; those that wait for a retry a few
_NOWHERE = "http://127.0.0.1:9"  # the port of `discard`

# -- getting it ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Codex:
    """One version of it. What it offers a model is spelled differently in each."""

    version: str
    program: Path

    @property
    def is_old(self) -> bool:
        return self.version == OLDEST

    def shell(self, command: str) -> dict[str, Any]:
        """The tool call that runs a command."""
        if self.is_old:
            return {"name": "shell", "arguments": {"command": ["bash", "-c", command]}}
        return {"name": "exec_command", "arguments": {"cmd": command}}

    def patch(self, text: str) -> dict[str, Any]:
        """The tool call that applies a patch: a function in the old one, a custom tool that was lowered in the new."""
        return {"name": "apply_patch", "arguments": {"input": text}}

    def mcp(self, server: str, tool: str, **arguments: Any) -> dict[str, Any]:
        """The call of a tool of an MCP server: a function in the old one, one of a namespace in the new."""
        return {"name": f"{server}__{tool}" if self.is_old else f"mcp__{server}__{tool}", "arguments": arguments}


def install(version: str) -> Codex:
    """Codex of this version, from npm where it is not there yet. Skips the test where it cannot be had."""
    program = _CACHE / version / "node_modules" / ".bin" / "codex"
    if shutil.which("node") is None:
        pytest.skip("Codex needs node, which is not installed")
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / f"{version}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run of the tests may be at it
        if not program.exists():
            _npm(version, _CACHE / version)
    environment = {"PATH": os.environ["PATH"], "HOME": str(_CACHE)}
    code, said = _bounded([str(program), "--version"], environment, _RUN_S)
    if code != 0:
        pytest.skip(f"@openai/codex@{version} does not start on this machine (exit {code}): {said[-300:]}")
    found = said.split()[-1]
    return Codex(version if version == OLDEST else found, program)


def _npm(version: str, prefix: Path) -> None:
    """Install into a folder that is complete or not there at all."""
    if shutil.which("npm") is None:
        pytest.skip("Codex comes from npm, which is not installed")
    partial = prefix.with_name(f"{version}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    command = ["npm", "install", "--no-save", "--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=1"]
    code, said = _bounded([*command, "--prefix", str(partial), f"@openai/codex@{version}"], _ENVIRONMENT, _INSTALL_S)
    if code != 0:
        shutil.rmtree(partial, ignore_errors=True)
        ended = "took too long" if code is None else f"failed (exit {code})"
        why = [line for line in said.splitlines() if line.startswith("npm error")] or [said[-300:]]
        pytest.skip(f"npm install @openai/codex@{version} {ended}: {'; '.join(why[:3])}")
    partial.rename(prefix)


def _bounded(command: Sequence[str], env: dict[str, str], limit_s: float) -> tuple[int | None, str]:
    """Exit code and output of a command; None where it was ended at the limit, with all that it started."""
    process = subprocess.Popen(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None, process.communicate()[0]
    return process.returncode, said


# -- running it ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Run:
    """How `codex exec --json` ended. The old one exits with 0 whatever happened."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def events(self) -> list[dict[str, Any]]:
        """What it printed; the events of the old one as they are inside of their envelope."""
        found = [json.loads(line) for line in self.out.splitlines() if line.startswith("{")]
        return [event["msg"] if isinstance(event.get("msg"), dict) else event for event in found]

    @property
    def messages(self) -> list[str]:
        """What the assistant said."""
        return self._texts("agent_message", "message", "agent_message")

    @property
    def reasoning(self) -> list[str]:
        """What it showed of the model's thoughts."""
        return self._texts("agent_reasoning", "text", "reasoning")

    @property
    def errors(self) -> list[str]:
        """Everything that a user is told about something going wrong, retries included."""
        found = []
        for event in self.events:
            if event.get("type") in ("error", "stream_error"):
                found.append(event["message"])
            elif event.get("type") == "turn.failed":
                found.append(event["error"]["message"])
            elif _is_item(event, "error"):
                found.append(event["item"]["message"])
        return found

    @property
    def is_done(self) -> bool:
        """Whether it says that the turn came to its end."""
        return any(event.get("type") in ("turn.completed", "task_complete") for event in self.events)

    @property
    def usage(self) -> dict[str, int]:
        """Tokens of the whole run, in the words of the Responses API."""
        for event in reversed(self.events):
            if event.get("type") == "turn.completed":
                return dict(event["usage"])
            if event.get("type") == "token_count" and event.get("info"):
                return dict(event["info"]["total_token_usage"])
        return {}

    def _texts(self, old: str, key: str, new: str) -> list[str]:
        found = []
        for event in self.events:
            if event.get("type") == old:
                found.append(event[key])
            elif _is_item(event, new):
                found.append(event["item"]["text"])
        return found


def _is_item(event: dict[str, Any], kind: str) -> bool:
    return event.get("type") == "item.completed" and event["item"].get("type") == kind


class Desk:
    """Where one Codex works: a home with its configuration, and a project."""

    def __init__(self, codex: Codex, folder: Path, config: str, base_url: str) -> None:
        self.codex = codex
        self.project, self._home, self._tmp = (folder / name for name in ("project", "home", "tmp"))
        for path in (self.project, self._home / ".codex", self._tmp):  # its home must not be below TMPDIR
            path.mkdir(parents=True)
        (self._home / ".codex" / "config.toml").write_text(config)
        self.overrides = {
            "model_providers.cbatch.base_url": f'"{base_url}/v1"',
            "model_providers.cbatch.request_max_retries": "1",
            "model_providers.cbatch.stream_max_retries": "1",
            "check_for_update_on_startup": "false",
            "analytics.enabled": "false",
        }
        self.env: dict[str, str] = {}
        self._folder = folder
        self._count = 0

    def path(self, name: str) -> Path:
        """A file in its home's .codex."""
        return self._home / ".codex" / name

    def start(self, prompt: str, *args: str, resumes: bool = False) -> Running:
        """`codex exec` at work; `args` are its options."""
        command = [str(self.codex.program), "exec", "--skip-git-repo-check", "--json"]
        # Nobody is there to approve, and what it runs are the scripted commands of the tests.
        command += ["--dangerously-bypass-approvals-and-sandbox", "-C", str(self.project)]
        for key, value in self.overrides.items():
            command += ["-c", f"{key}={value}"]
        command += args
        if resumes:  # the old one takes the prompt in front of the sub-command only
            command += [prompt, "resume", "--last"] if self.codex.is_old else ["resume", "--last", prompt]
        else:
            command += [prompt]
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self._home),
            "CODEX_HOME": str(self._home / ".codex"),
            "TMPDIR": str(self._tmp),
            "HTTP_PROXY": _NOWHERE,
            "HTTPS_PROXY": _NOWHERE,
            "NO_PROXY": "127.0.0.1",
            **self.env,
        }
        self._count += 1
        return Running(command, env, self._folder / f"{self._count}")

    def run(self, prompt: str, *args: str, resumes: bool = False) -> Run:
        return self.start(prompt, *args, resumes=resumes).wait()

    def read(self, name: str) -> str:
        """A file of the project."""
        return (self.project / name).read_text()

    @property
    def files(self) -> list[str]:
        """What is in the project."""
        return sorted(path.name for path in self.project.iterdir())


class Running:
    """One `codex exec`, in a process group of its own."""

    def __init__(self, command: Sequence[str], env: dict[str, str], output: Path) -> None:
        self._out, self._err = output.with_suffix(".out"), output.with_suffix(".err")
        self._since = time.monotonic()
        with self._out.open("w") as out, self._err.open("w") as err:
            self._process = subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
            )

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def wait(self) -> Run:
        """How it ended; fails after a while, and leaves nothing behind."""
        try:
            code = self._process.wait(_RUN_S)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"codex did not end in {_RUN_S:g} s; it said:\n{self._said()}")
        self.kill()  # what it left running
        return Run(code, self._out.read_text(), self._err.read_text(), time.monotonic() - self._since)

    def interrupt(self) -> None:
        """As Ctrl-C would, for all of the group."""
        os.killpg(self._process.pid, signal.SIGINT)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _said(self) -> str:
        return (self._out.read_text() + self._err.read_text())[-3000:]


# -- what it is told ----------------------------------------------------------------------------------


def script(sim: Sim, *rules: dict[str, Any]) -> None:
    """The simulator's rules from now on."""
    request = urllib.request.Request(f"{sim.url}/_sim/script", data=json.dumps(rules).encode())
    try:
        with urllib.request.urlopen(request, timeout=30):
            pass
    except urllib.error.HTTPError as exc:
        with exc:
            pytest.fail(f"the simulator does not take the script: {exc.read().decode()}")


def turns(prompt: str, *answers: dict[str, Any], since: int = 0, **rest: Any) -> list[dict[str, Any]]:
    """Rules for a conversation that begins with `prompt`: the n-th answer to the n-th request."""
    return [
        {"when": {"user": prompt, "step": step}, "answer": answer, **rest} for step, answer in enumerate(answers, since)
    ]


def calls(*tool_calls: dict[str, Any], **rest: Any) -> dict[str, Any]:
    """A scripted answer that calls tools."""
    return {"tool_calls": list(tool_calls), **rest}


def text(content: str, **rest: Any) -> dict[str, Any]:
    """A scripted answer in words."""
    return {"content": content, **rest}


def received(sim: Sim) -> list[dict[str, Any]]:
    """The chat requests that reached a simulator with --record, oldest first, as parsed bodies."""
    return [json.loads(one["body"]) for one in _recorded(sim)]


def headers(sim: Sim) -> list[str]:
    """The names of all headers that reached a simulator with --record."""
    return sorted({name for one in _recorded(sim) for name in one["headers"]})


def _recorded(sim: Sim) -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"{sim.url}/_sim/requests", timeout=30) as response:
        found: list[dict[str, Any]] = json.load(response)
    return found


def seconds_in(message: str) -> float | None:
    """The time that Codex reads out of a message and waits for."""
    found = re.search(r"try again in\s*(\d+(?:\.\d+)?)\s*(s|ms|seconds?)", message, re.IGNORECASE)
    return None if found is None else float(found[1]) / (1000 if found[2] == "ms" else 1)
