"""The key goes into the Authorization header of the API's host, and nowhere else, whatever goes wrong."""

from __future__ import annotations

import json
import os
import pty
import signal
import stat
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import PIPELINE, JobFolder, Result, Sim, questions, wait_for

KEY = "csk-0123456789abcdefghijklmnopqrstuvwxyz-secret"


def left_behind(job: JobFolder) -> dict[str, bytes]:
    """Every file of the job's folder and the run in it, the key files of the test left out."""
    found = {str(path): path.read_bytes() for path in job.path.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if "key" not in Path(name).name and ".env" not in name}


def has_no_key(job: JobFolder, result: Result, *more: str) -> None:
    said = {"stdout": result.out.encode(), "stderr": result.err.encode(), "more": "\n".join(more).encode()}
    for name, data in (left_behind(job) | said).items():
        assert KEY.encode() not in data, name
        assert KEY[4:-7].encode() not in data, name  # nor a part of it


# -- servers that say it back -------------------------------------------------------------------


class Echo(ThreadingHTTPServer):
    """Answers by the words of the prompt, with the Authorization header it got."""

    daemon_threads = True
    elsewhere = ""  # where it redirects to
    seen: list[str]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(404, b"{}")

    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Echo)
        key = self.headers.get("Authorization", "").removeprefix("Bearer ")
        server.seen.append(key)
        prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0]["content"]
        text = f"Bearer {key} is no key"
        html = f"<html><title>Oops</title>{text}</html>".encode()
        error: dict[str, Any] = {"message": text, "code": key, "type": key, "param": key}
        match prompt.removeprefix("Q "):
            case "flat":
                self.answer(400, json.dumps(error).encode())
            case "inner":
                self.answer(422, json.dumps({"error": error}).encode())
            case "html":
                self.answer(502, html)
            case "long":
                self.answer(400, b"x" * 180 + text.encode() * 100)
            case "headers":
                self.answer(503, b"", {"Retry-After": key, "x-should-retry": key, "x-ratelimit-reset-tokens": key})
            case "reason":
                self.answer(400, b"", reason=f"no {text}")
            case "redirect":
                self.answer(307, b"", {"Location": f"{server.elsewhere}/v1/chat/completions?key={key}"})
            case "html 200":
                self.answer(200, html)
            case "error 200":
                self.answer(200, json.dumps({"error": error}).encode())
            case "bad header":
                self.answer(200, b"", {f"X-{key}\x01": key})
            case "bad length":
                self.answer(200, b"", {"Content-Length": key})
            case "answer":
                choice = {"message": {"content": text, "reasoning": text}, "finish_reason": key}
                self.answer(200, json.dumps({"id": key, "model": key, "choices": [choice]}).encode())

    def answer(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, *, reason: str | None = None
    ) -> None:
        self.send_response(status, reason)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def echo() -> Iterator[Echo]:
    with Echo() as server, Echo() as other:
        server.elsewhere = other.url
        for each in (server, other):
            threading.Thread(target=each.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        for each in (server, other):
            each.shutdown()
        assert other.seen == []  # a redirect takes no key along


ERRORS = ["flat", "inner", "html", "long", "headers", "reason", "redirect"]


def ask_echo(job: JobFolder, echo: Echo, prompts: list[str]) -> Result:
    job.rows([{"q": name} for name in prompts])
    job.settings |= {"prompt": "Q {{ q }}", "retry": {"attempts": 1}, "results": {"input": True}}
    return job.execute(key=KEY, to=echo.url)


def test_a_key_that_a_server_says_back_is_not_kept(job: JobFolder, echo: Echo) -> None:
    """In bodies of every shape, in status lines, in headers, in the address of a redirect."""
    result = ask_echo(job, echo, ERRORS)
    assert result.code == 3, result.err
    assert echo.seen == [KEY] * len(ERRORS)
    assert len(job.results()) == len(ERRORS)
    assert "(key removed) is no key" in str([row["error_message"] for row in job.results()])
    has_no_key(job, result)


@pytest.mark.parametrize("said", ["html 200", "error 200", "bad header", "bad length", "answer"])
def test_a_key_in_an_answer_with_status_200_is_not_kept(job: JobFolder, echo: Echo, said: str) -> None:
    result = ask_echo(job, echo, [said])
    assert echo.seen == [KEY]
    assert len(job.results()) == 1
    has_no_key(job, result)


def test_a_short_key_may_be_a_word_of_an_answer(job: JobFolder, echo: Echo) -> None:
    """`EMPTY` is what servers without keys are given."""
    job.rows([{"q": "answer"}])
    job.settings |= {"prompt": "Q {{ q }}", "retry": {"attempts": 1}}
    job.execute(key="EMPTY", to=echo.url)
    assert [row["text"] for row in job.results()] == ["Bearer EMPTY is no key"]


# -- what a run leaves --------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0, 0o077, 0o777], ids=["umask 0000", "umask 0077", "umask 0777"])
def test_what_a_killed_run_leaves_is_private_and_has_no_key(
    job: JobFolder, sims: Callable[..., Sim], umask: int
) -> None:
    """Journal with -wal and -shm, lock, staging: nobody else may read the prompts in them, whatever the umask."""
    if umask == 0o777 and os.geteuid() != 0:
        pytest.skip("only root can use the folders that this umask makes")
    job.sim = sims("--speed", "5", "--fault", "server_error=0.2")
    job.rows(questions(300))
    job.settings |= {"results": {"part_rows": 10}, "retry": {"attempts": 1}}
    process = job.start(key=KEY, first=f"os.umask({umask})")
    wait_for(lambda: len(job.run.parts) >= 2, "two parts")
    killed = process.kill()
    for suffix in ("", "-wal", "-shm"):
        path = Path(f"{job.run.journal}{suffix}")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    for lock in job.run.locks:
        assert stat.S_IMODE(lock.stat().st_mode) & ~0o600 == 0
    assert stat.S_IMODE((job.run.path / "staging").stat().st_mode) & 0o077 == 0
    if umask == 0:  # what is published is as public as the user's other files
        assert stat.S_IMODE(job.run.parts[0].stat().st_mode) == 0o666
    has_no_key(job, killed)
    assert job.execute(key=KEY, first=f"os.umask({umask})").code == 3
    has_no_key(job, job.execute(key=KEY))


@pytest.mark.parametrize("debug", [False, True], ids=["told as a bug", "with its traceback"])
def test_a_crash_in_the_client_shows_no_key(job: JobFolder, debug: bool) -> None:
    """Nor do the stacks of faulthandler, with everything that Python and asyncio can say switched on."""
    crash = """
import asyncio, faulthandler, logging, warnings, cbatch.client as client
logging.basicConfig(level=logging.DEBUG)
warnings.simplefilter("always")
os.environ["PYTHONASYNCIODEBUG"] = "1"
def crash(reply, exchange=client.Client._exchange):
    faulthandler.dump_traceback(sys.stderr)
    asyncio.get_running_loop().call_exception_handler(
        {"message": "oops", "task": asyncio.current_task(), "reply": reply})
    raise TypeError("unexpected")
client.read_completion = crash
"""
    debugging = "os.environ['CBATCH_DEBUG'] = '1'\n" if debug else ""
    result = job.execute(key=KEY, first=debugging + crash)
    assert result.code == 1
    assert ("Traceback" in result.err) is debug
    assert "TypeError: unexpected" in result.err
    assert "most recent call first" in result.err
    has_no_key(job, result)


def test_the_terminal_shows_no_key(job: JobFolder, echo: Echo) -> None:
    """Progress, notes and summary, where stderr and stdout are a terminal."""
    job.rows([{"q": "flat"}] * 20)
    job.settings |= {"prompt": "Q {{ q }}", "retry": {"attempts": 2, "max_wait_s": 0.1}, "limits": {"concurrency": 2}}
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 200))
    shown: list[bytes] = []

    def read() -> None:
        try:
            while data := os.read(ours, 65_536):
                shown.append(data)
        except OSError:  # the last one has closed it
            pass

    reader = threading.Thread(target=read)
    reader.start()
    onto = f"for fd in (1, 2): os.dup2(os.open({os.ttyname(theirs)!r}, os.O_RDWR | os.O_NOCTTY), fd)\n"
    slow = "import time, cbatch.replies as c\nreal = c.read_error\n"
    slow += "def read_error(reply):\n    time.sleep(0.05)\n    return real(reply)\nc.read_error = read_error\n"
    result = job.execute(key=KEY, to=echo.url, first=onto + slow)
    os.close(theirs)
    reader.join(10)
    os.close(ours)
    text = b"".join(shown).decode()
    assert result.code == 3
    assert "/20" in text  # the progress line
    assert "(key removed) is no key" in text
    has_no_key(job, result, text)


def test_the_embedded_simulator_is_not_given_the_key(tmp_path: Path) -> None:
    """And no command line holds it, for every user of a machine sees those."""
    (tmp_path / "rows.jsonl").write_text('{"q": "x"}\n' * 500)
    (tmp_path / "job.yaml").write_text(
        'model: gpt-oss-120b\ninput: rows.jsonl\nprompt: "{{ q }}"\nlimits: {concurrency: 1}\n'
    )
    (tmp_path / ".env").write_text(f"CEREBRAS_API_KEY={KEY}\nOTHER_SECRET=hunter2hunter2\n")
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(PIPELINE), "CEREBRAS_API_KEY": KEY}
    with subprocess.Popen(
        [sys.executable, "-m", "cbatch", "run", "job.yaml", "--sim"],
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as run:
        try:
            proc = Path("/proc") / str(run.pid)
            journal = tmp_path / "runs" / "job" / "journal.sqlite"
            wait_for(lambda: journal.exists() or run.poll() is not None, "a journal")
            children = wait_for((proc / "task" / str(run.pid) / "children").read_text, "the simulator").split()
            wait_for(
                lambda: b"--until-stdin-closes" in (Path("/proc") / children[0] / "cmdline").read_bytes(),
                "its command line",
            )
            environs = [(Path("/proc") / child / "environ").read_bytes() for child in children]
            lines = [(Path("/proc") / pid / "cmdline").read_bytes() for pid in (str(run.pid), *children)]
        finally:
            run.send_signal(signal.SIGINT)
            out, _ = run.communicate(timeout=60)
    assert all(b"PYTHONPATH=" in environ for environ in environs)
    for said in (*environs, *lines, out.encode()):
        assert KEY.encode() not in said
        assert b"hunter2" not in said


# -- keys in odd forms and in wrong places ------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(f"  {KEY}  \r\n\n".encode(), id="blanks and newlines around it"),
        pytest.param(b"\xef\xbb\xbf" + KEY.encode(), id="a byte order mark"),
    ],
)
@pytest.mark.parametrize("name", ["key.txt", ".env"])
def test_a_key_as_editors_write_it_is_found(job: JobFolder, name: str, content: bytes) -> None:
    """Also in a file that others may read, as containers mount secrets: that is no reason to nag at every run."""
    if name == ".env":
        content = content.replace(KEY.encode(), f"CEREBRAS_API_KEY={KEY}".encode())
        content += b"\nDB_PASSWORD='hunter2hunter2'\nthis is no assignment\n"
    (job.path / name).write_bytes(content)
    (job.path / name).chmod(0o644)
    result = job.execute(*(["--api-key-file", name] if name == "key.txt" else []), key=None)
    assert result.code == 0, result.err
    assert "hunter2" not in result.err + str(left_behind(job))
    has_no_key(job, result)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(f"{KEY} {KEY}".encode(), "a space or another character", id="a space"),
        pytest.param(f"{KEY}\x07".encode(), "a space or another character", id="a bell"),
        pytest.param(f"{KEY}\0".encode(), "a space or another character", id="a NUL"),
        pytest.param(f"{KEY}é".encode(), "a space or another character", id="no ASCII"),
        pytest.param(f"{KEY}\n{KEY}".encode(), "a newline in it", id="two lines"),
        pytest.param(f"CEREBRAS_API_KEY = {KEY}".encode(), "a space or another character", id="an assignment"),
        pytest.param(KEY.encode() * 10_000, "longer than any key", id="470 KB"),
        pytest.param(KEY.encode("utf-16"), "cannot be read as text", id="UTF-16"),
        pytest.param(b"", "is empty", id="nothing"),
    ],
)
def test_a_file_that_holds_no_key_is_refused_unsaid(job: JobFolder, content: bytes, said: str) -> None:
    (job.path / "key.txt").write_bytes(content)
    result = job.execute("--api-key-file", "key.txt", key=None)
    assert result.code == 1
    assert said in result.err
    assert "key.txt" in result.err
    has_no_key(job, result)


def test_an_env_file_in_another_encoding_is_told(job: JobFolder) -> None:
    (job.path / ".env").write_bytes(f"CEREBRAS_API_KEY={KEY}\n".encode("utf-16"))
    result = job.execute(key=None)
    assert result.code == 1
    assert ".env: cannot be read as text" in result.err
    has_no_key(job, result)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        pytest.param(["--api-key", KEY], "No such option '--api-key'. Did you mean '--api-key-file'", id="an option"),
        pytest.param([f"--api-key={KEY}"], "No such option '--api-key'", id="an option with ="),
        pytest.param([f"-k{KEY}"], "No such option '-k'", id="a short option"),
        pytest.param([KEY], "unexpected extra argument", id="an argument"),
        pytest.param(["--api-key-file", KEY], "no such file", id="instead of its file"),
        pytest.param(["--set", f"api_key={KEY}"], "api_key: unknown key", id="--set"),
        pytest.param(["--set", f"endpoint=https://{KEY}@host"], "user name or password", id="in the endpoint"),
        pytest.param(["--limit", KEY], "not a valid", id="another option's value"),
    ],
)
@pytest.mark.parametrize(
    "to",
    ["", *(form.format(KEY) for form in ("https://me:{}@h.ai", "https:/me:{}@h", "me:{}@h", "https://me:a/{}@h"))],
    ids=["there", "and in the address", "one slash", "no scheme", "a slash in it"],
)
def test_a_key_on_the_command_line_is_not_said_again(job: JobFolder, args: list[str], said: str, to: str) -> None:
    """A shell's history has it already; a log must not have it too."""
    result = job.execute(*args, key=None, to=to)
    assert result.code in (1, 2)
    assert (said in result.err) or (to and "user name or password" in result.err)
    assert not job.run.path.exists() or "--api-key-file" in args
    has_no_key(job, result)


@pytest.mark.parametrize(
    "proxy",
    [
        pytest.param(f"http://me:{KEY}@127.0.0.1:99999", id="a port that cannot be"),
        pytest.param(f"socks5://me:{KEY}@127.0.0.1:1", id="SOCKS"),
        pytest.param(f"http://me:{KEY}@", id="no host"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_refused_unsaid(job: JobFolder, proxy: str) -> None:
    """Before anything is sent: as the failure of every row its password would be in every part."""
    result = job.execute(to="https://api.invalid", first=f"os.environ['HTTPS_PROXY'] = {proxy!r}")
    assert result.code == 2
    assert "HTTPS_PROXY" in result.err
    assert job.results() == []
    has_no_key(job, result)


@pytest.mark.parametrize("scheme", ["http://", ""], ids=["with http://", "without"])
def test_a_proxy_that_does_not_answer_is_told_without_its_password(job: JobFolder, scheme: str) -> None:
    job.settings["retry"] = {"attempts": 1}
    result = job.execute(to="https://api.invalid", first=f"os.environ['HTTPS_PROXY'] = '{scheme}me:{KEY}@127.0.0.1:1'")
    assert result.code == 1
    assert "cannot connect to 127.0.0.1:1" in result.err
    has_no_key(job, result)


def test_a_key_in_the_job_is_refused_by_its_name(job: JobFolder) -> None:
    """Nor is an address with a password accepted."""
    for settings, said in (
        ({"api_key": KEY}, "api_key: unknown key"),
        ({"params": {"api_key": KEY}}, "params.api_key: unknown key"),
        ({"limits": KEY}, "a mapping of keys"),
        ({"endpoint": f"https://me:{KEY}@host/v1"}, "user name or password"),
        ({"endpoint": f"https:/me:{KEY}@host"}, "user name or password"),
        ({"endpoint": f"me:{KEY}@host"}, "user name or password"),
        ({"endpoint": f"https://me:{KEY}/{KEY}@host"}, "user name or password"),
        ({"endpoint": f"ftp://me:{KEY}@host"}, "user name or password"),
    ):
        before = dict(job.settings)
        job.settings |= settings
        result = job.execute(key=None, to="")
        assert result.code == 2
        assert said in result.err
        assert not job.run.path.exists()
        assert KEY not in result.err + result.out
        job.settings = before
