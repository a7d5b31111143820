"""`cbatch ask` and `cbatch ping`: one question, to a terminal, a file, a pipe."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from cbatch.cli.ask import ATTEMPTS
from tests.integration.conftest import PIPELINE, Forking, Result, Sim, wait_for
from tests.integration.terminal import Terminal

KEY = "csk-0123456789abcdef-secret"
TAG = re.compile(r"\[prompt [0-9a-f]{12}\]")  # how every answer of the simulator begins

Ask = Callable[..., Result]


@pytest.fixture
def ask(forking: Forking, sim: Sim, tmp_path: Path) -> Ask:
    """`ask("Why?", stdin="text")`: stdin is a file with this text, else /dev/null."""

    def run(*args: str, key: str | None = KEY, stdin: str | bytes | None = None, to: Sim | None = None) -> Result:
        first = ""
        if stdin is not None:
            (tmp_path / "stdin").write_bytes(stdin if isinstance(stdin, bytes) else stdin.encode())
            first = f"os.dup2(os.open({str(tmp_path / 'stdin')!r}, os.O_RDONLY), 0)"
        command = ["ask", "--base-url", (to or sim).url, *args]
        return forking.start(command, key=key, cwd=tmp_path, first=first).wait()

    return run


def tag(ask: Ask, prompt: str) -> str:
    """How the answer to a prompt begins."""
    found = TAG.match(ask(prompt).out)
    assert found
    return found[0]


def test_the_answer_is_all_that_is_printed(ask: Ask) -> None:
    answer = ask("Why is the sky blue?")
    assert (answer.code, answer.err) == (0, "")
    assert TAG.match(answer.out)
    assert answer.out.endswith("\n")
    assert not answer.out.endswith("\n\n")


@pytest.mark.parametrize(
    ("args", "stdin", "prompt"),
    [
        pytest.param(["-"], "from stdin\n", "from stdin", id="a dash"),
        pytest.param([], "from stdin\n", "from stdin", id="nothing but stdin"),
        pytest.param(["Summarize."], "a text\n", "Summarize.\n\na text", id="both"),
        pytest.param(["Summarize."], "", "Summarize.", id="an empty stdin adds nothing"),
        pytest.param(["-"], "\ufeffa\r\nb\n\n", "a\r\nb\n", id="only the last newline is not part of it"),
    ],
)
def test_where_the_prompt_comes_from(ask: Ask, args: list[str], stdin: str, prompt: str) -> None:
    assert ask(*args, stdin=stdin).out.startswith(tag(ask, prompt))


@pytest.mark.parametrize(
    ("args", "stdin", "said"),
    [
        pytest.param([], None, "the prompt is empty", id="nothing at all"),
        pytest.param(["-"], " \n", "the prompt is empty", id="an empty stdin"),
        pytest.param([""], None, "the prompt is empty", id="an empty argument"),
        pytest.param(["-"], b"\xff\xfe", "stdin is not text in UTF-8: byte 0xff at 0", id="no text"),
        pytest.param(["hi", "--model", "gpt-oss-12b"], None, "did you mean gpt-oss-120b?", id="an unknown model"),
        pytest.param(["hi", "--param", "temprature=1"], None, "did you mean temperature?", id="an unknown parameter"),
        pytest.param(["hi", "--temperature", "3"], None, "--temperature: Input should be less", id="a wrong value"),
        pytest.param(["hi", "there"], None, "unexpected extra argument", id="two prompts"),
    ],
)
def test_wrong_usage_is_told(ask: Ask, args: list[str], stdin: str | bytes | None, said: str) -> None:
    refused = ask(*args, stdin=stdin)
    assert (refused.code, refused.out) == (2, "")
    assert said in refused.err


def test_json_is_one_object_with_everything(ask: Ask) -> None:
    answer = ask("Why?", "--json", "--system", "Be brief.", "--param", "seed=7")
    found = answer.summary
    assert TAG.match(found["text"])
    assert found["reasoning"]
    assert found["finish_reason"] == "stop"
    assert (found["model"], found["served_model"]) == ("gpt-oss-120b", "gpt-oss-120b")
    assert found["usage"]["completion_tokens"] > found["usage"]["reasoning_tokens"] > 0
    assert found["metrics"]["latency_s"] >= found["metrics"]["ttft_s"] > 0
    assert (found["tokens_per_s_source"], found["tokens_per_s"]) == ("server", found["server_tokens_per_s"])
    assert found["cost_usd"] > 0
    assert found["request_id"].startswith("chatcmpl-")
    assert answer.err == ""


def test_an_error_is_an_object_with_json(ask: Ask) -> None:
    refused = ask("hi", "--json", key="wrong-key-123456")
    assert refused.code == refused.summary["exit_code"] == 1
    assert "Wrong API Key" in refused.summary["error"]
    assert "CEREBRAS_API_KEY" in refused.summary["hint"]
    assert "wrong-key-123456" not in refused.out + refused.err


def test_without_a_key_every_place_is_named(forking: Forking, tmp_path: Path) -> None:
    refused = forking.start(["ask", "hi"], key=None, cwd=tmp_path).wait()
    assert refused.code == 1
    for place in ("--api-key-file", "CEREBRAS_API_KEY", ".env.local", "api_key", "--sim"):
        assert place in refused.err


def test_nobody_there(forking: Forking, tmp_path: Path) -> None:
    refused = forking.start(["ask", "hi", "--base-url", "http://127.0.0.1:9"], key=KEY, cwd=tmp_path).wait()
    assert refused.code == 1
    assert "hint: is the address right" in refused.err


def test_an_answer_that_breaks_off_is_kept_as_far_as_it_came_and_an_error(ask: Ask, sims: Callable[..., Sim]) -> None:
    """What was printed cannot be taken back, so it is not asked again; with --json it is."""
    drops = sims("--speed", "inf", "--fault", "drop_mid=1")
    broken = ask("Why?", "--param", "reasoning_effort=low", to=drops)
    assert broken.code == 1
    assert broken.err.startswith("error: ")
    assert broken.out.endswith("\n")
    assert drops.requests == 1
    assert ask("Why?", "--json", to=drops).code == 1
    assert drops.requests == 1 + ATTEMPTS


def test_an_answer_that_was_cut_says_so(ask: Ask) -> None:
    cut = ask("Tell me a lot", "--max-tokens", "60")
    assert cut.code == 0
    assert cut.err == "cut: the answer reached the most tokens it may have; --max-tokens allows more\n"
    assert ask("Tell me a lot", "--max-tokens", "60", "--quiet").err == ""


def test_reasoning_goes_to_stderr(ask: Ask) -> None:
    answer = ask("Why?", "--reasoning")
    assert TAG.match(answer.out)
    assert answer.err.endswith(".\n\n")


def test_words_come_before_the_answer_is_whole(forking: Forking, sims: Callable[..., Sim], tmp_path: Path) -> None:
    """And Ctrl-C ends it with 130, keeping them, with a newline behind them."""
    slow = sims("--speed", "0.5", "--answer-tokens", "30000")
    command = ["ask", "A long story", "--base-url", slow.url, "--param", "reasoning_effort=low"]
    process = forking.start(command, key=KEY, cwd=tmp_path)
    wait_for(lambda: len(process.out) > 100, "the first words")
    process.signal(signal.SIGINT)
    ended = process.wait()
    assert (ended.code, ended.err.strip()) == (130, "")
    assert 100 < len(ended.out) < 30_000
    assert ended.out.endswith("\n")


def test_a_reader_who_has_seen_enough_is_no_error(sims: Callable[..., Sim]) -> None:
    """`cbatch ask … | head -1` ends at once with 0 and without a complaint, long before the answer does."""
    slow = sims("--speed", "0.5", "--answer-tokens", "30000")
    ask = f"{sys.executable} -m cbatch ask 'A long story' --base-url {slow.url} --param reasoning_effort=low"
    env = {"PYTHONPATH": str(PIPELINE), "PATH": os.environ["PATH"], "CEREBRAS_API_KEY": KEY}
    ended = subprocess.run(
        ["bash", "-c", f"{ask} | head -c 8; echo ${{PIPESTATUS[0]}}"],
        env=env, capture_output=True, text=True, check=True, timeout=25, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert (ended.stdout, ended.stderr) == ("[prompt 0\n", "")


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        pytest.param("0<&-", 0, "", id="stdin closed"),
        pytest.param("0<&- 1>&- 2>&-", 0, "", id="all closed"),
        pytest.param("> /dev/full", 1, "error: stdout cannot be written: No space left on device\n", id="disk full"),
    ],
)
def test_streams_that_are_closed_or_full(sim: Sim, end: str, code: int, said: str) -> None:
    env = {"PYTHONPATH": str(PIPELINE), "PATH": os.environ["PATH"], "CEREBRAS_API_KEY": KEY}
    line = f"{sys.executable} -m cbatch ask 'Why?' --base-url {sim.url} {end}"
    ended = subprocess.run(["bash", "-c", line], env=env, capture_output=True, text=True, check=False, timeout=25)
    assert (ended.returncode, ended.stderr) == (code, said)


def test_a_pipe_that_says_nothing_is_waited_for_and_that_is_said(forking: Forking, sim: Sim, tmp_path: Path) -> None:
    """Nobody gets an answer to half of the question because the other half came late."""
    os.mkfifo(tmp_path / "in")
    first = (
        f"import cbatch.cli.ask as a; a.PATIENCE_S = 0.05; os.dup2(os.open({str(tmp_path / 'in')!r}, os.O_RDONLY), 0)"
    )
    process = forking.start(["ask", "Summarize.", "--base-url", sim.url], key=KEY, cwd=tmp_path, first=first)
    with (tmp_path / "in").open("w") as pipe:
        wait_for(lambda: "reading stdin until it ends; `< /dev/null` keeps it out" in process.err, "the remark")
        pipe.write("late")
    assert process.wait().code == 0


def test_on_a_terminal_the_last_line_has_the_figures(forking: Forking, sim: Sim, tmp_path: Path) -> None:
    command = ["ask", "Why?", "--base-url", sim.url]
    with closing(Terminal(forking, command, tmp_path, key=KEY, size=(120, 24))) as terminal:
        assert terminal.wait().code == 0
        lines = [line for line in terminal.text.splitlines() if line]
    assert TAG.match(lines[0])
    assert re.fullmatch(
        r"[\d,.]+ tokens/s \(server\) · first token [\d.]+ ms, all [\d.]+ ms · [\d,]+ in, [\d,]+ out · \$[\d.]+",
        lines[-1],
    )
    with closing(Terminal(forking, [*command, "--quiet"], tmp_path, key=KEY)) as terminal:
        terminal.wait()
        assert "tokens/s" not in terminal.text


def test_no_prompt_on_a_terminal_is_not_waited_for(forking: Forking, sim: Sim, tmp_path: Path) -> None:
    with closing(Terminal(forking, ["ask", "--base-url", sim.url], tmp_path, key=KEY)) as terminal:
        assert terminal.wait().code == 2
        assert "error: no prompt" in terminal.text


def test_ping_says_whose_clock_the_speed_is_by(forking: Forking, sim: Sim, tmp_path: Path) -> None:
    def ping(*args: str, key: str = KEY) -> Result:
        return forking.start(["ping", "--base-url", sim.url, *args], key=key, cwd=tmp_path).wait()

    text = ping().out
    assert re.search(r"speed     [\d,.]+ tokens/s \(server\)", text)
    assert re.search(r"latency   first token [\d.]+ ms, all [\d.]+ ms; connecting", text)
    found = ping("--json").summary
    assert (found["tokens_per_s_source"], found["tokens_per_s"]) == ("server", found["server_tokens_per_s"])
    unknown = ping("--model", "gpt-oss-12b")
    assert unknown.code == 2
    assert "did you mean gpt-oss-120b?" in unknown.err
