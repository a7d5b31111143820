"""What stands behind a slash in `cbatch chat`: reading it is a pure function, so every mistake has a test."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from cbatch.errors import JobError


@dataclass(frozen=True, slots=True)
class Command:
    """A slash command: how it is written and what it does."""

    name: str
    argument: str
    text: str


COMMANDS = (
    Command("help", "", "show this"),
    Command("model", "[ID]", "list the models, or ask another one"),
    Command("system", "[TEXT]", "show or set the system prompt; - removes it"),
    Command("retry", "", "ask again; the new answer replaces the old one"),
    Command("reasoning", "[on|off]", "show the model's reasoning, or hide it"),
    Command("metrics", "", "tokens, calls, cost and speed so far"),
    Command("summarize", "", "a summary of the conversation"),
    Command("export", "[FILE]", "write it all to a file: .json, else as text"),
    Command("new", "", "start a new session; this one is saved"),
    Command("exit", "", "leave, as by /quit; the session is saved"),
)
ALIASES = {"quit": "exit", "summarise": "summarize", "?": "help"}
KEYS = (
    ("Enter", "send"),
    ("Alt-Enter, or \\ before Enter", "new line"),
    ("Ctrl-C", "stop the answer; clear the line"),
    ("Ctrl-D", "leave"),
    ("↑ ↓, Ctrl-R", "earlier messages"),
    ("Ctrl-X Ctrl-E", "edit the message in $EDITOR"),
)
PLAIN_KEYS = (
    ('\\ at the end, or """ around lines', "a message of several lines"),
    ("Ctrl-C", "stop the answer"),
    ("Ctrl-D", "leave"),
)


def read_command(line: str) -> tuple[str, str] | None:
    """(command, argument) of a typed line; None where it is a message.

    A message may begin with a slash where it is a path, or doubled. Raises JobError for a command that
    is none, naming the nearest one.
    """
    line = line.strip()
    if not line.startswith("/") or line.startswith("//"):
        return None
    word, rest = (*line[1:].split(None, 1), "", "")[:2]
    if "/" in word or line[1:2].isspace():
        return None
    name = ALIASES.get(word.lower(), word.lower())
    known = {command.name: command for command in COMMANDS}
    if name not in known:
        near = difflib.get_close_matches(name, [*known, *ALIASES], n=1)
        raise JobError(
            f"/{word}: no such command",
            hint=(f"did you mean /{near[0]}?" if near else "/help lists them") + f"; {_ESCAPE}",
        )
    if rest and not known[name].argument:
        raise JobError(f"/{name} takes nothing behind it; read {rest!r}", hint=_ESCAPE)
    return name, rest


_ESCAPE = "a message may begin with //"


def message_of(line: str) -> str:
    """The message in a line that is no command: `//` stands for a slash."""
    stripped = line.strip()
    return stripped[1:] if stripped.startswith("//") else stripped


def help_lines(keys: tuple[tuple[str, str], ...]) -> list[str]:
    """The text of /help."""
    rows = [(f"/{command.name} {command.argument}".rstrip(), command.text) for command in COMMANDS]
    width = max(len(name) for name, _ in (*rows, *keys))
    return [f"{name:<{width}}  {text}" for name, text in (*rows, ("", ""), *keys)]


def words(text: str, models: list[str]) -> list[tuple[str, str]]:
    """What may follow a begun command line: (word, meaning)."""
    name, space, _ = text[1:].partition(" ")
    if not space:
        return [(f"/{command.name}", command.text) for command in COMMANDS]
    if name == "model":
        return [(model, "") for model in models]
    if name == "reasoning":
        return [("on", ""), ("off", "")]
    return []
