"""`cbatch chat`, typed on a terminal, a dumb one, and into a pipe."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Forking, Result, Sim, wait_for
from tests.integration.terminal import Terminal

KEY = "csk-0123456789abcdef-secret"
TAG = re.compile(r"\[prompt [0-9a-f]{12}\]")  # how every answer of the simulator begins

Open = Callable[..., Terminal]


@pytest.fixture
def chat(forking: Forking, sim: Sim, tmp_path: Path) -> Iterator[Open]:
    """`chat("--model", "x", to=sim, env={…}, size=(80, 24))` opens a chat on a terminal."""
    opened: list[Terminal] = []

    def start(*args: str, to: Sim = sim, key: str | None = KEY, **settings: Any) -> Terminal:
        command = ["chat", "--base-url", to.url, *args]
        opened.append(Terminal(forking, command, tmp_path, key=key, **settings))
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.close()


@pytest.fixture
def cbatch(forking: Forking, tmp_path: Path) -> Callable[..., Result]:
    def run(*args: str | Path, key: str | None = KEY, stdin: str | None = None) -> Result:
        first = ""
        if stdin is not None:
            (tmp_path / "stdin").write_text(stdin)
            first = f"os.dup2(os.open({str(tmp_path / 'stdin')!r}, os.O_RDONLY), 0)"
        return forking.start([str(arg) for arg in args], key=key, cwd=tmp_path, first=first).wait()

    return run


@pytest.fixture
def slow(sims: Callable[..., Sim]) -> Sim:
    """An answer takes minutes, and its first words a moment."""
    return sims("--speed", "0.2", "--answer-tokens", "30000")


def session_of(terminal: Terminal) -> str:
    found = re.search(r"--session-id (\w+-\w+-\d+)", terminal.text)
    assert found, terminal.text
    return found[1]


def history(cbatch: Callable[..., Result], session: str) -> list[dict[str, Any]]:
    found = cbatch("sessions", "export", session, "--format", "json")
    assert found.code == 0, found.err
    messages: list[dict[str, Any]] = json.loads(found.out)["messages"]
    return messages


def test_an_answer_is_streamed_with_its_speed_and_ctrl_d_leaves(chat: Open) -> None:
    terminal = chat()
    terminal.expect_prompt()
    assert "gpt-oss-120b · /help shows the commands" in terminal.text
    terminal.say("Why is the sky blue?")
    terminal.expect("tokens/s (server)")
    assert TAG.search(terminal.text)
    terminal.expect_prompt()
    terminal.type("ctrl-d")
    ended = terminal.wait()
    assert ended.code == 0
    assert "saved; `cbatch chat --session-id " in terminal.text
    assert terminal.settings_are_back()


def test_ctrl_c_stops_the_answer_and_not_the_program(chat: Open, slow: Sim, cbatch: Callable[..., Result]) -> None:
    terminal = chat("--no-reasoning", to=slow)
    terminal.expect_prompt()
    terminal.say("A long story")
    terminal.expect("thinking…")
    terminal.type("ctrl-c")
    terminal.expect("stopped")
    terminal.expect_prompt()
    terminal.say("/reasoning on")
    terminal.expect("reasoning is shown")
    terminal.expect_prompt()
    terminal.say("And another")
    terminal.expect(lambda: "the" in terminal.after("And another"))
    terminal.type("ctrl-c")
    terminal.expect(lambda: terminal.text.count("stopped") == 2)
    terminal.expect_prompt()
    terminal.say("/exit")
    assert terminal.wait().code == 0
    first, *_ = messages = history(cbatch, session_of(terminal))
    assert first["content"] == "A long story"
    assert [message["state"] for message in messages if message["role"] == "user"] == ["stopped", "stopped"]


def test_ctrl_c_at_the_prompt_clears_the_line_and_says_how_to_leave(chat: Open, sim: Sim) -> None:
    terminal = chat()
    terminal.expect_prompt()
    terminal.type("not this")
    terminal.expect(lambda: "not this" in terminal.line)
    terminal.type("ctrl-c")
    terminal.expect_prompt()
    terminal.type("ctrl-c")
    terminal.expect("Ctrl-D or /exit leaves")
    terminal.type("ctrl-d")
    assert terminal.wait().code == 0
    assert sim.requests == 0


def test_a_message_of_several_lines(chat: Open, cbatch: Callable[..., Result]) -> None:
    """By a backslash, by Alt-Enter, and pasted; Enter alone sends it."""
    terminal = chat()
    terminal.expect_prompt()
    terminal.type("one\\", "enter", "two", "alt-enter", "\x1b[200~three\nfour\x1b[201~")
    terminal.expect(lambda: "four" in terminal.line)
    terminal.type("enter")
    terminal.expect("tokens/s")
    terminal.expect_prompt()
    terminal.type("up")
    terminal.expect(lambda: terminal.line.count("\n") == 3)
    terminal.type("ctrl-c", "ctrl-d")
    assert terminal.wait().code == 0
    assert history(cbatch, session_of(terminal))[0]["content"] == "one\ntwo\nthree\nfour"


def test_what_is_typed_while_an_answer_comes_is_the_next_message(chat: Open, slow: Sim) -> None:
    terminal = chat(to=slow)
    terminal.expect_prompt()
    terminal.say("First")
    terminal.expect(lambda: "the" in terminal.after("First"))
    terminal.type("second, typed early")
    terminal.type("ctrl-c")
    terminal.expect(lambda: "› second, typed early" in terminal.line)
    assert terminal.text.count("second, typed early") == 1


def test_a_session_goes_on_where_it_was(chat: Open, cbatch: Callable[..., Result]) -> None:
    terminal = chat("--system", "Be brief.")
    terminal.expect_prompt()
    terminal.say("The first question")
    terminal.expect("tokens/s")
    terminal.expect_prompt()
    terminal.type("ctrl-d")
    terminal.wait()
    session = session_of(terminal)
    answer = TAG.search(terminal.text)
    assert answer

    again = chat("--session-id", session)
    again.expect_prompt()
    assert f"session {session} goes on" in again.text
    assert "› The first question" in again.text
    assert answer[0] in again.text
    again.say("/system")
    again.expect("Be brief.")
    again.expect_prompt()
    again.type("up")
    again.expect(lambda: "/system" in again.line)
    again.type("up")
    again.expect(lambda: "The first question" in again.line)  # of the earlier process
    again.type("ctrl-c")
    again.say("The second question")
    again.expect("tokens/s")
    again.expect_prompt()
    again.say("/exit")
    again.wait()
    messages = history(cbatch, session)
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant"]
    tokens = [message["usage"]["prompt_tokens"] for message in messages if message["role"] == "assistant"]
    assert tokens[1] > tokens[0] + 20  # the first question and answer were sent along


def test_commands(chat: Open, tmp_path: Path, sim: Sim) -> None:
    terminal = chat()
    terminal.expect_prompt()

    def command(line: str, seen: str) -> None:
        terminal.say(line)
        terminal.expect(lambda: seen in terminal.after(f"› {line}"))
        terminal.expect_prompt()

    command("/metrics", "error: nothing to count yet")
    command("/metrisc", "did you mean /metrics?")
    command("/help", "/summarize")
    command("/model", "* gpt-oss-120b")
    command("/model gpt-oss-12b", "did you mean gpt-oss-120b?")
    command("/model qwen-3.8-27b", "qwen-3.8-27b answers from now on")
    command("/exit now", "/exit takes nothing behind it")
    assert sim.requests == 0
    command("//exit is a message", "tokens/s (server)")
    command("/model gpt-oss-120b", "answers from now on")
    command("/retry", "tokens/s (server)")
    command("/metrics", "calls    2 calls")
    command("/summarize", "[prompt")
    command("/export talk.json", "written: ")
    command("/export talk.json", "exists already")
    command("/export nowhere/talk.txt", "No such file or directory")
    command("/new", "a new session begins")
    command("/export", "nothing to export yet")
    terminal.say("/quit")
    assert terminal.wait().code == 0
    found = json.loads((tmp_path / "talk.json").read_text())
    asked = [message for message in found["messages"] if message["role"] == "user"]
    assert asked[0]["content"] == "/exit is a message"
    assert {message["model"] for message in found["messages"]} == {"qwen-3.8-27b", "gpt-oss-120b"}


def test_the_menu_completes_a_command(chat: Open) -> None:
    terminal = chat()
    terminal.expect_prompt()
    terminal.type("/rea")
    terminal.expect("show the model's reasoning")
    terminal.type("tab", "enter", "enter")
    terminal.expect("reasoning is hidden")


def test_an_answer_that_breaks_off_is_told_and_the_chat_goes_on(chat: Open, sims: Callable[..., Sim]) -> None:
    terminal = chat(to=sims("--speed", "inf", "--fault", "drop_mid=1"))
    terminal.expect_prompt()
    terminal.say("one")
    terminal.expect("error: ")
    terminal.expect_prompt()
    terminal.say("two")
    terminal.expect(lambda: "error: " in terminal.after("two"))
    terminal.expect_prompt()
    terminal.say("/metrics")
    terminal.expect("2 failed")


def test_an_answer_that_was_cut_says_so(chat: Open) -> None:
    terminal = chat("--max-tokens", "50", size=(120, 24))
    terminal.expect_prompt()
    terminal.say("Say something long")
    terminal.expect("cut: the answer reached the most tokens it may have")
    terminal.expect("71 in, 50 out")


def test_a_window_that_changes_its_size(chat: Open, slow: Sim) -> None:
    """At the prompt and in the middle of an answer: what comes afterwards fits the new width."""
    terminal = chat(to=slow)
    terminal.expect_prompt()
    terminal.resize(50, 15)
    terminal.expect_prompt()
    terminal.say("Hello")
    terminal.expect(lambda: "the" in terminal.after("Hello"))
    seen = len(terminal.raw)
    terminal.resize(30, 12)
    terminal.expect(lambda: terminal.raw[seen:].count(b"the") > 30)
    seen = len(terminal.raw)
    terminal.type("ctrl-c")
    terminal.expect("stopped")
    terminal.expect_prompt()
    answer = re.sub(rb"\x1b\[[?\d;]*[A-Za-z]", b"", terminal.raw[seen:].partition(b"stopped")[0]).decode()
    lines = [line.strip("\r") for line in answer.splitlines()]
    assert 20 < max(map(len, lines)) <= 30, lines
    terminal.say("/help")
    terminal.expect("/metrics")


def test_markdown_and_colours_only_where_they_are_wanted(chat: Open) -> None:
    plain = chat()
    plain.expect_prompt()
    plain.say("/nothing")
    plain.expect("no such command")
    assert b"[31m" not in plain.raw  # NO_COLOR
    coloured = chat(env={"NO_COLOR": ""})
    coloured.expect_prompt()
    coloured.say("/nothing")
    coloured.expect("no such command")
    assert b"31merror" in coloured.raw


@pytest.mark.parametrize(("args", "term"), [([], "dumb"), (["--plain"], "xterm")], ids=["TERM=dumb", "--plain"])
def test_a_dumb_terminal_gets_no_escape_codes(chat: Open, slow: Sim, args: list[str], term: str) -> None:
    terminal = chat(*args, "--reasoning", to=slow, env={"TERM": term})
    terminal.expect_prompt()
    terminal.say("one\\")
    terminal.expect(lambda: terminal.screen.display[terminal.screen.cursor.y].rstrip() == ".")
    terminal.type("two", "enter")
    terminal.expect(lambda: "the" in terminal.after("two"))
    terminal.type("ctrl-c")
    terminal.expect("stopped")
    terminal.expect_prompt()
    terminal.say("/metrisc")
    terminal.expect("hint: did you mean /metrics?")
    terminal.expect_prompt()
    terminal.type("ctrl-c")
    terminal.expect("(Ctrl-D or /exit leaves)")
    terminal.expect_prompt()
    terminal.type("ctrl-d")
    assert terminal.wait().code == 0
    assert b"\x1b" not in terminal.raw
    assert "goes on" in terminal.text


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_chat_that_is_ended_keeps_what_came_and_gives_the_terminal_back(
    chat: Open, slow: Sim, cbatch: Callable[..., Result], signum: int
) -> None:
    terminal = chat(to=slow)
    terminal.expect_prompt()
    terminal.say("A long story")
    terminal.expect(lambda: "the" in terminal.after("story"))
    terminal.process.signal(signum)
    assert terminal.wait().code == 128 + signum
    assert terminal.settings_are_back()
    (session,) = cbatch("sessions", "list", "--json").summary["sessions"]
    assert history(cbatch, session["id"])[0]["state"] == "stopped"


def test_a_signal_at_the_prompt(chat: Open) -> None:
    terminal = chat()
    terminal.expect_prompt()
    terminal.process.signal(signal.SIGTERM)
    assert terminal.wait().code == 143
    assert terminal.settings_are_back()


def test_a_wrong_key_is_told_before_anything_is_typed(chat: Open) -> None:
    terminal = chat(key="wrong-key-123456")
    assert terminal.wait().code == 1
    assert "Wrong API Key" in terminal.text
    assert "CEREBRAS_API_KEY" in terminal.text
    assert terminal.settings_are_back()


def test_ctrl_c_while_the_server_says_nothing_at_the_start(forking: Forking, tmp_path: Path) -> None:
    """Not even its list of models: the chat begins without."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = ["chat", "--base-url", f"http://127.0.0.1:{server.getsockname()[1]}"]
        with closing(Terminal(forking, command, tmp_path, key=KEY)) as terminal:
            connection, _ = server.accept()
            with connection:
                terminal.type("ctrl-c")
                terminal.expect("stopped")
                terminal.expect_prompt()
                terminal.type("ctrl-d")
                assert terminal.wait().code == 0


def test_a_pipe_is_a_message_a_line_and_stdout_is_answers(sim: Sim, cbatch: Callable[..., Result]) -> None:
    one = cbatch("chat", "--base-url", sim.url, stdin="hi\n")
    assert (one.code, one.err) == (0, "")
    assert TAG.match(one.out)
    assert one.out.endswith("\n")
    assert "\x1b" not in one.out
    several = cbatch(
        "chat", "--base-url", sim.url, stdin='one\n\n"""two\nlines"""\nthree\\\nlines\n/metrics\n/exit\nx\n'
    )
    assert (several.code, several.err) == (0, "")
    assert len(TAG.findall(several.out)) == 3
    assert "calls    3 calls" in several.out


def test_the_last_line_needs_no_newline_and_nothing_is_no_error(sim: Sim, cbatch: Callable[..., Result]) -> None:
    assert TAG.match(cbatch("chat", "--base-url", sim.url, stdin="hi").out)
    empty = cbatch("chat", "--base-url", sim.url, stdin="")
    assert (empty.code, empty.out, empty.err) == (0, "", "")


@pytest.mark.parametrize(
    ("args", "stdin", "code", "said"),
    [
        pytest.param([], "hi\n/metrisc\nhi\n", 2, "did you mean /metrics?", id="an unknown command"),
        pytest.param(["--session-id", "no-such-1"], "hi\n", 2, "no session 'no-such-1'", id="an unknown session"),
        pytest.param(["--model", "gpt-oss-12b"], "hi\n", 2, "did you mean gpt-oss-120b?", id="an unknown model"),
        pytest.param(["--system", " "], "hi\n", 2, "--system is empty", id="an empty system prompt"),
        pytest.param(["--param", "temprature=1"], "hi\n", 2, "did you mean temperature?", id="an unknown parameter"),
        pytest.param(["--base-url", "http://127.0.0.1:9"], "hi\n", 1, "is the address right", id="nobody there"),
    ],
)
def test_in_a_pipe_the_first_error_ends_it(
    sim: Sim, cbatch: Callable[..., Result], args: list[str], stdin: str, code: int, said: str
) -> None:
    ended = cbatch("chat", "--base-url", sim.url, *args, stdin=stdin)
    assert ended.code == code
    assert said in ended.err
    assert len(TAG.findall(ended.out)) == (1 if "hi\n/" in stdin else 0)


def test_an_ended_session_takes_no_more_messages(sim: Sim, cbatch: Callable[..., Result]) -> None:
    cbatch("chat", "--base-url", sim.url, stdin="hi\n")
    (session,) = cbatch("sessions", "list", "--json").summary["sessions"]
    assert cbatch("sessions", "end", session["id"]).code == 0
    refused = cbatch("chat", "--base-url", sim.url, "--session-id", session["id"], stdin="hi\n")
    assert refused.code == 2
    assert "was ended" in refused.err
    assert f"cbatch sessions show {session['id']}" in refused.err


def test_messages_that_come_one_by_one_are_answered_one_by_one(forking: Forking, sim: Sim, tmp_path: Path) -> None:
    """A program at the other end of two pipes reads an answer before it asks on; Ctrl-C ends it with 130."""
    os.mkfifo(tmp_path / "in")
    first = f"os.dup2(os.open({str(tmp_path / 'in')!r}, os.O_RDONLY), 0)"
    process = forking.start(["chat", "--base-url", sim.url], key=KEY, cwd=tmp_path, first=first)
    with (tmp_path / "in").open("w") as pipe:
        for i in range(3):
            pipe.write(f"question {i}\n")
            pipe.flush()
            wait_for(lambda i=i: len(TAG.findall(process.out)) == i + 1, f"answer {i}")  # type: ignore[misc]
        process.signal(signal.SIGINT)
        assert process.wait().code == 130


def test_what_is_typed_is_kept_from_others(chat: Open, tmp_path: Path) -> None:
    terminal = chat()
    terminal.expect_prompt()
    terminal.say("my secret question")
    terminal.expect("tokens/s")
    terminal.expect_prompt()
    terminal.type("ctrl-d")
    terminal.wait()
    files = [path for path in (tmp_path / "home").rglob("*") if path.is_file() and path.stat().st_size]
    kept = [path for path in files if b"my secret question" in path.read_bytes()]
    assert kept
    for path in kept:
        assert path.stat().st_mode & 0o077 == 0, path
