"""What is typed behind a slash, and what only looks like it."""

from __future__ import annotations

import pytest

from cbatch.cli.chat_commands import COMMANDS, KEYS, PLAIN_KEYS, help_lines, message_of, read_command, words
from cbatch.errors import JobError


@pytest.mark.parametrize(
    ("line", "command"),
    [
        pytest.param("/help", ("help", ""), id="a command"),
        pytest.param("  /Exit  ", ("exit", ""), id="with spaces and capitals"),
        pytest.param("/quit", ("exit", ""), id="another name"),
        pytest.param("/summarise", ("summarize", ""), id="British"),
        pytest.param("/model  gpt-oss-120b ", ("model", "gpt-oss-120b"), id="with an argument"),
        pytest.param("/system be brief\nand kind", ("system", "be brief\nand kind"), id="an argument of two lines"),
        pytest.param("/system\nbe brief", ("system", "be brief"), id="an argument on the next line"),
        pytest.param("hello /help", None, id="a slash inside"),
        pytest.param("/etc/passwd: what is it?", None, id="a path"),
        pytest.param("//help", None, id="a doubled slash"),
        pytest.param("/ 2 is what?", None, id="a slash alone"),
    ],
)
def test_reading_a_line(line: str, command: tuple[str, str] | None) -> None:
    assert read_command(line) == command


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        pytest.param("/metrisc", "did you mean /metrics?", id="two letters swapped"),
        pytest.param("/quti", "did you mean /quit?", id="another name, misspelled"),
        pytest.param("/xyzzy", "/help lists them", id="like none"),
        pytest.param("/", "/help lists them", id="nothing behind it"),
    ],
)
def test_an_unknown_command_names_the_nearest(line: str, hint: str) -> None:
    with pytest.raises(JobError, match=line) as caught:
        read_command(line)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(hint)


def test_an_argument_that_nobody_reads_is_an_error() -> None:
    """`/exit that program` may be meant for the model."""
    with pytest.raises(JobError, match="/exit takes nothing behind it; read 'that program'"):
        read_command("/exit that program")


def test_a_message_may_begin_with_a_slash() -> None:
    assert message_of("//help me") == "/help me"
    assert message_of(" /etc/passwd ") == "/etc/passwd"


def test_help_names_all_and_fits() -> None:
    lines = help_lines(KEYS)
    assert max(map(len, lines)) < 80
    for command in COMMANDS:
        assert any(line.startswith(f"/{command.name}") for line in lines)
    assert '"""' in "\n".join(help_lines(PLAIN_KEYS))


def test_what_completes() -> None:
    models = ["a", "b"]
    assert ("/metrics", "tokens, calls, cost and speed so far") in words("/me", models)
    assert [word for word, _ in words("/model ", models)] == models
    assert [word for word, _ in words("/reasoning o", models)] == ["on", "off"]
    assert words("/export x", models) == []
