"""The command line: each command reads its arguments, builds objects, calls one function, prints.

Exit codes (a promise; see the README): 0 done · 1 the run could not go on · 2 wrong usage or
job.yaml · 3 finished with too many failed prompts · 4 stopped by a limit the user set · 5 a gate
said no · 6 the measurement is not valid · 130/143 interrupted, the same line resumes.

Nothing heavy is imported here: `cbatch --help` loads neither aiohttp nor pyarrow nor pydantic.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import re
import sys
from contextlib import suppress
from typing import Any

import click

from cbatch import __version__
from cbatch.cli.words import printable
from cbatch.errors import CbatchError

# name -> (module, one line for --help); the module is imported when its command is used.
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("run", "Run a job; the same line again resumes it."),
    "plan": ("plan", "Show what a job would send, take and cost; send nothing."),
    "status": ("status", "Show how far a run is and what is left."),
    "report": ("report", "Print the measurements of a run."),
    "compare": ("compare", "Did it get slower, costlier, worse? A verdict."),
    "export": ("export", "Write a run's rows as JSONL, CSV, Parquet, batch lines."),
    "verify": ("verify", "Prove a run: one row per prompt, nothing missing."),
    "init": ("init", "Write a commented job.yaml and sample rows."),
    "schema": ("schema", "Print the JSON Schema of job.yaml, for editors."),
    "models": ("models", "List the models this key sees, with prices."),
    "ping": ("ping", "Test key, endpoint and speed with one request."),
    "ask": ("ask", "Ask one prompt; the answer is streamed to stdout."),
    "chat": ("chat", "Chat with a model; conversations are saved."),
    "sessions": ("sessions", "Saved conversations: list, show, export, end."),
    "serve": ("serve", "Serve OpenAI clients here, Codex CLI too, on Cerebras."),
    "sim": ("sim", "Serve a local Cerebras: same wire format, limits, faults."),
}
PRICED = (
    "run",
    "plan",
    "models",
    "serve",
)  # these read the catalog; not sim, which a run starts for itself


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"cbatch.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as exc:
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            if not near:
                raise
            raise click.UsageError(f"{exc.message} Did you mean {near[0]!r}?", ctx) from None


@click.group(
    cls=_Lazy,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: cbatch run jobs/hello.yaml --sim",
)
@click.version_option(__version__, prog_name="cbatch")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Batch prompts through the Cerebras Inference API: JSONL or Parquet in, Parquet out.

    Runs survive kill -9, keep to the account's rate limits, and measure every answer.
    """
    from cbatch import catalog, environment

    catalog.overlay(environment.catalog_file())
    if ctx.invoked_subcommand in PRICED and (problem := catalog.overlay_problem()):
        ignored = f"{problem}; ignored: prices are those of {catalog.PACKAGED}"
        say(ignored, "write it anew with `cbatch models --refresh`, or delete it", "warning", "yellow")


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit with the code of the contract."""
    _hold_standard_streams()
    sys.exit(invoke(args))


def _hold_standard_streams() -> None:
    """Open what was closed by who started us (`cbatch … 0<&-`): else a socket becomes stdin, and uvloop aborts."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, and so this one
            setattr(sys, name, os.fdopen(null, "w" if fd else "r", closefd=False))
    out = sys.stdout
    if isinstance(getattr(out, "buffer", None), io.RawIOBase):
        # PYTHONUNBUFFERED: print() takes a write that was cut short, by a full disk, for a whole one.
        whole = io.BufferedWriter(out.buffer)
        sys.stdout = io.TextIOWrapper(whole, encoding=out.encoding, errors=out.errors, line_buffering=True)


def invoke(args: list[str] | None = None) -> int:
    """Run the command line; returns its exit code. Every way to fail ends here in one clear message."""
    decided(0)
    try:
        code = cli.main(args=args, prog_name="cbatch", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Abort:
        return 130
    except KeyboardInterrupt:
        return 130
    except click.ClickException as exc:
        ctx = getattr(exc, "ctx", None)
        return fail(exc.format_message(), f"see `{ctx.command_path if ctx else 'cbatch'} --help`", 2, args)
    except CbatchError as exc:
        return fail(str(exc), exc.hint, exc.exit_code, args)
    except (BrokenPipeError, SystemExit):  # SystemExit: click's own way to take a broken pipe, and it takes no other
        # `cbatch report … | head`: the reader has seen enough, and Python's flush at exit must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return _verdict
    except Exception as exc:
        if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left in the buffer would fail again at exit
            return fail(f"{exc.filename or 'stdout'}: cannot be written: {exc.strerror}", None, 1, args)
        if os.environ.get("CBATCH_DEBUG"):
            raise
        return fail(
            f"cbatch has a bug: {type(exc).__name__}: {exc}",
            "what was counted is safe; set CBATCH_DEBUG=1 for the traceback, and please report it",
            1,
            args,
        )
    return code if isinstance(code, int) else 0


_verdict = 0


def decided(code: int) -> int:
    """Say what the exit code is before anything is printed: who reads us may go in the middle. Returns it."""
    global _verdict
    _verdict = code
    return code


def fail(message: str, hint: str | None, code: int, args: list[str] | None) -> int:
    """End with an error: what happened, then what to do; with --json also as an object on stdout. Returns `code`."""
    say(message, hint)
    if "--json" in (sys.argv if args is None else args):
        import json

        with suppress(OSError):  # stdout may be what is full, or gone
            click.echo(json.dumps({"error": hide_keys(message), "hint": hint, "exit_code": code}, indent=2))
    return code


def hide_keys(text: str) -> str:
    """The text without what looks like an API key: given in the wrong place, it must not get into a log as well."""
    return re.sub(r"\bc?sk-[\w-]{8,}", "(key removed)", text)


def say(message: str, hint: str | None, word: str = "error", colour: str = "red") -> None:
    """Print an error, or what `word` says it is, and its hint on stderr."""
    for line in message.splitlines():
        # A row, a file name or a server's words may hold what moves the cursor or rings the bell.
        text = printable(hide_keys(line))
        click.echo(f"{click.style(f'{word}:', fg=colour, bold=True)} {text}", err=True)
    if hint:
        click.echo(f"{click.style('hint:', fg='cyan')} {hint}", err=True)


__all__ = ["COMMANDS", "cli", "decided", "invoke", "main", "say"]
