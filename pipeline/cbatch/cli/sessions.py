"""`cbatch sessions`: saved conversations, read and ended."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from cbatch.cli.files import replace_whole
from cbatch.cli.shared import connection_options, json_option, print_json, run_async
from cbatch.cli.words import count, duration, money, plural, printable, rate
from cbatch.errors import JobError

if TYPE_CHECKING:
    from cbatch.conversations import Conversations, Session, UsageMetrics

T = TypeVar("T")


class _Sessions(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # as one needs them, not by the alphabet

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as exc:
            near = difflib.get_close_matches(args[0], self.commands, n=1)
            advice = f"Did you mean {near[0]!r}?" if near else f"For a session: cbatch sessions show {args[0]}"
            raise click.UsageError(f"{exc.message} {advice}", ctx) from None


@click.group(
    cls=_Sessions,
    invoke_without_command=True,
    epilog="Example: cbatch sessions export amber-falcon-42 --format text --output talk.txt\n\n"
    "A session goes on with `cbatch chat --session-id ID`.",
)
@json_option
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Saved conversations of `cbatch chat`; without a command: list them.

    They are in one file in the user's data folder, readable by this user only. Nothing here needs
    a key but `summarize`.
    """
    ctx.obj = as_json  # `cbatch sessions --json show ID` means the same as with --json at its end
    if ctx.invoked_subcommand is None:
        _list(None, as_json)


@command.command("list", epilog="Example: cbatch sessions list --json | jq -r '.sessions[].id'")
@click.option("--user", metavar="ID", help="Only this user's, as given to `start_new_session`.")
@json_option
@click.pass_obj
def list_command(before: bool, user: str | None, as_json: bool) -> None:
    """List the sessions, the last used first."""
    _list(user, as_json or before)


def _list(user: str | None, as_json: bool) -> None:
    sessions = _run(lambda talks: talks.list_sessions(user))
    if as_json:
        print_json({"sessions": [asdict(session) for session in sessions]})
        return
    if not sessions:
        click.echo("no sessions yet; `cbatch chat` starts one", err=True)
        return
    width = max(len(session.id) for session in sessions)
    models = max(len(session.model) for session in sessions)
    for session in sessions:
        click.echo(_line(session, width, models))


def _line(session: Session, width: int, models: int) -> str:
    used = f"{session.updated_at.astimezone():%Y-%m-%d %H:%M}"
    turns = plural(session.turns, "turn")
    title = "(ended) " * (session.ended_at is not None) + session.title
    return f"{session.id:<{width}}  {used}  {session.model:<{models}}  {turns:>9}  {printable(title)}".rstrip()


@command.command(epilog="Example: cbatch sessions show amber-falcon-42 | less")
@click.argument("session_id", metavar="ID")
@json_option
@click.pass_obj
def show(before: bool, session_id: str, as_json: bool) -> None:
    """Show what was said, by whom and when.

    With --json also what was measured of each answer.
    """
    _print(_run(lambda talks: _export(talks, session_id, "json" if as_json or before else "text")))


@command.command(epilog="Example: cbatch sessions export amber-falcon-42 --format json --output talk.json")
@click.argument("session_id", metavar="ID")
@click.option(
    "--format",
    "form",
    type=click.Choice(["json", "text"]),
    default="json",
    show_default=True,
    help="Everything that is kept, or a transcript to read.",
)
@click.option("--output", metavar="FILE", type=click.Path(path_type=Path), help="Write FILE, not stdout.")
@json_option
@click.pass_obj
def export(before: bool, session_id: str, form: Literal["json", "text"], output: Path | None, as_json: bool) -> None:
    """Write a session as JSON or as text.

    A FILE that is there is replaced once all is written.
    """
    text = _run(lambda talks: _export(talks, session_id, form))
    if output is not None and str(output) != "-":
        _write(output, text)
        if as_json or before:
            print_json({"session": session_id, "format": form, "file": str(output), "bytes": len(text.encode())})
        else:
            click.echo(f"written: {output}", err=True)
    elif (as_json or before) and form == "text":
        print_json({"session": session_id, "format": form, "text": text})
    else:
        _print(text)


@command.command(epilog="Example: cbatch sessions metrics amber-falcon-42")
@click.argument("session_id", metavar="ID")
@json_option
@click.pass_obj
def metrics(before: bool, session_id: str, as_json: bool) -> None:
    """Show what a session used: calls, tokens, cost, speed."""
    found = _run(lambda talks: talks.get_usage_metrics(session_id))
    if as_json or before:
        print_json(asdict(found))
        return
    for line in _lines(found):
        click.echo(line)


def _lines(found: UsageMetrics) -> list[str]:
    """The metrics, for people."""
    states = ("answered", "stopped", "failed", "unknown", "pending")
    parts = [f"{number:,} {state}" for state in states if (number := getattr(found, state))]
    parts += [plural(found.summaries, "request") + " for summaries"] if found.summaries else []
    models = ", ".join(f"{name} {number:,}" for name, number in found.models.items())
    lines = [
        f"{found.session_id}: {plural(found.calls, 'call')}" + (f" ({', '.join(parts)})" if parts else ""),
        f"  tokens    {count(found.prompt_tokens)} in ({count(found.cached_tokens)} from the cache), "
        f"{count(found.completion_tokens)} out ({count(found.reasoning_tokens)} reasoning)",
        f"  cost      {money(found.cost_usd)}",
    ]
    if found.unpriced:
        lines[-1] += f", and {plural(found.unpriced, 'call')} without a known price"
    if found.tokens_per_s is not None:
        lines.append(f"  speed     {rate(found.tokens_per_s)} tokens/s, {duration(found.latency_s)} an answer")
    if models:
        lines.append(f"  models    {models}")
    if found.unknown:
        lines.append("  unknown   sent without a saved answer: may have been paid for")
    return lines


@command.command(epilog="Example: cbatch sessions summarize amber-falcon-42 --sim")
@click.argument("session_id", metavar="ID")
@click.option("--model", metavar="ID", help="The model to ask [default: the session's].")
@connection_options
@json_option
@click.pass_obj
def summarize(
    before: bool,
    session_id: str,
    model: str | None,
    sim: bool,
    base_url: str | None,
    api_key_file: Path | None,
    as_json: bool,
) -> None:
    """Ask a model for a summary.

    It is kept: paid for once, and again only after new messages.
    """
    settings = {"sim": sim, "base_url": base_url, "api_key_file": api_key_file}
    text = _run(lambda talks: talks.summarize_conversation(session_id, model=model), **settings)
    if as_json or before:
        print_json({"session": session_id, "summary": text})
    else:
        _print(text)


@command.command(epilog="Example: cbatch sessions end amber-falcon-42")
@click.argument("session_id", metavar="ID")
@json_option
@click.pass_obj
def end(before: bool, session_id: str, as_json: bool) -> None:
    """End a session: it takes no more messages.

    It can still be read. Ending it again changes nothing.
    """

    async def ended(talks: Conversations) -> Session:
        await talks.end_session(session_id)
        return await talks.get_session(session_id)

    session = _run(ended)
    if as_json or before:
        print_json({"session": session.id, "ended_at": session.ended_at})
    else:
        click.echo(f"{session.id}: ended; `cbatch sessions show {session.id}` still shows it")


def _run(work: Callable[[Conversations], Coroutine[Any, Any, T]], **settings: Any) -> T:
    """Do one thing with the saved conversations; `settings` are those of `cbatch.Client`, if it is needed."""

    async def run() -> T:
        from cbatch.conversations import Conversations

        async with Conversations(**settings) as talks:
            return await work(talks)

    return run_async(run())


async def _export(talks: Conversations, session_id: str, form: Literal["json", "text"]) -> str:
    return await talks.export_chat_history(session_id, form)


def _print(text: str) -> None:
    """Print a text; on a terminal without what moves its cursor: a model, or a page it was given, may have said it."""
    if sys.stdout.isatty():
        text = "\n".join(printable(line.replace("\t", "    ")) for line in text.split("\n"))
    click.echo(text, nl=not text.endswith("\n"))


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all, for this user only: it is a private conversation. Raises JobError."""
    try:
        if path.exists() and not path.is_file():  # /dev/stdout, a pipe
            path.write_text(text, "utf-8")
        else:
            replace_whole(path, text.encode())
    except OSError as exc:
        raise JobError(
            f"{path}: cannot be written: {exc.strerror or exc}", hint="name another file with --output FILE"
        ) from None
