"""`cbatch ask`."""

from __future__ import annotations

import os
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson

from cbatch.cli.advice import advised
from cbatch.cli.answered import as_object, figures, harmless, write
from cbatch.cli.sampling import sampling_options
from cbatch.cli.shared import connection_options, json_option, run_async
from cbatch.errors import JobError

if TYPE_CHECKING:
    from cbatch.library import Answer, Client

ATTEMPTS = 4  # in 4 s at most: somebody is waiting, and can try again
PATIENCE_S = 3.0  # with an input that says nothing: a forgotten pipe looks like a program that hangs


@click.command(
    epilog="Example: cbatch ask 'Why is the sky blue?'\n\nExample: git diff | cbatch ask 'Write a commit message.'"
    "\n\nExample: cbatch ask - --json < prompt.txt | jq -r .text"
)
@click.argument("prompt", required=False)
@click.option("--model", metavar="ID", help="The model to ask [default: gpt-oss-120b].")
@click.option("--system", metavar="TEXT", help="The system prompt.")
@click.option("--reasoning", is_flag=True, help="Print the model's reasoning, too, on stderr.")
@click.option("--quiet", is_flag=True, help="Print the answer and nothing about it.")
@sampling_options
@connection_options
@json_option
def command(
    prompt: str | None,
    model: str | None,
    system: str | None,
    reasoning: bool,
    quiet: bool,
    params: dict[str, Any],
    sim: bool,
    base_url: str | None,
    api_key_file: Path | None,
    as_json: bool,
) -> None:
    """Ask one prompt; the answer is streamed to stdout.

    Without PROMPT, or with -, the prompt is read from stdin. What is piped in, or redirected from a
    file, beside a PROMPT is added below it, after an empty line; `< /dev/null` keeps that out.
    """
    text = _prompt(prompt, quiet=quiet)

    async def ask() -> Answer:
        from cbatch.library import DEFAULT_MODEL, Client

        async with Client(
            sim=sim, base_url=base_url, api_key_file=api_key_file, model=model or DEFAULT_MODEL, attempts=ATTEMPTS
        ) as api:
            if as_json:  # nobody sees the pieces: an answer that breaks off is asked again
                return await api.ask(text, system=system, stream=True, **params)
            return await _stream(api, text, system, params, reasoning=reasoning)

    with advised():
        answer = run_async(ask())
    if as_json:
        write(orjson.dumps(as_object(answer), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode())
    if not quiet:
        _remark(answer)


async def _stream(api: Client, prompt: str, system: str | None, params: dict[str, Any], *, reasoning: bool) -> Answer:
    """Write the answer as it comes, with a newline at its end, wherever that is."""
    on_terminal = sys.stdout.isatty()
    last, thinking = "\n", False
    async with api.stream(prompt, system=system, **params) as stream:
        try:
            async for delta in stream:
                if reasoning and delta.reasoning:
                    click.echo(click.style(harmless(delta.reasoning), dim=True), nl=False, err=True)
                    thinking = True
                if delta.text:
                    if thinking:
                        click.echo("\n", err=True)
                        thinking = False
                    write(harmless(delta.text) if on_terminal else delta.text)
                    last = delta.text
        finally:
            if thinking:
                click.echo(err=True)
            if not last.endswith("\n"):
                write("\n")
        return await stream.answer()


def _remark(answer: Answer) -> None:
    """What should be known of the answer; its figures for who watches."""
    if answer.finish_reason == "length":
        click.echo("cut: the answer reached the most tokens it may have; --max-tokens allows more", err=True)
    elif not answer.text and not answer.tool_calls:
        click.echo(f"no text came (finish_reason {answer.finish_reason})", err=True)
    if sys.stderr.isatty():
        line = figures(
            tokens_per_s=answer.tokens_per_s,
            source=answer.tokens_per_s_source,
            ttft_s=answer.metrics.ttft_s,
            latency_s=answer.metrics.latency_s,
            usage=answer.usage,
            cost_usd=answer.cost_usd,
            attempts=answer.metrics.attempts,
            wait_s=answer.metrics.wait_s,
        )
        click.echo(click.style(line, dim=True), err=True)


def _prompt(argument: str | None, *, quiet: bool) -> str:
    """The prompt from the argument, from stdin, or from both. Raises JobError where there is none."""
    if argument in (None, "-"):
        if argument is None and sys.stdin.isatty():
            raise JobError("no prompt", hint="cbatch ask 'Why is the sky blue?'; or pipe one in")
        parts = [_stdin(quiet=quiet)]
    else:
        assert argument is not None
        # A terminal is not waited for, nor what is no input: /dev/null, a socket of a service manager.
        mode = os.fstat(sys.stdin.fileno()).st_mode
        piped = stat.S_ISFIFO(mode) or stat.S_ISREG(mode)
        parts = [argument, _stdin(quiet=quiet) if piped else ""]
    text = "\n\n".join(part for part in parts if part.strip())
    if not text:
        raise JobError("the prompt is empty", hint="cbatch ask 'Why is the sky blue?'; or pipe one in")
    return text


def _stdin(*, quiet: bool) -> str:
    """All of stdin, without the newline at its end. Raises JobError where that is no text."""
    with _patience(quiet=quiet or sys.stdin.isatty()):
        read = sys.stdin.buffer.read()
    try:
        return read.decode("utf-8-sig").removesuffix("\n")
    except UnicodeDecodeError as exc:
        raise JobError(
            f"stdin is not text in UTF-8: byte {read[exc.start]:#04x} at {exc.start:,}",
            hint="convert it first, for example with iconv",
        ) from None


@contextmanager
def _patience(*, quiet: bool) -> Iterator[None]:
    """Say what is waited for where it takes long."""
    timer = threading.Timer(
        PATIENCE_S, lambda: click.echo("reading stdin until it ends; `< /dev/null` keeps it out", err=True)
    )
    timer.daemon = True
    if not quiet:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
