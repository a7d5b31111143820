"""What a running job shows: one moving line on a terminal, one line every 30 s in a log.

The line is drawn by a timer from what the engine has counted, never per row: a display that is
updated by every answer costs more than the answers.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections import deque
from collections.abc import Sequence

import click
from tqdm import tqdm

from cbatch.cli.words import count, duration, money, rate
from cbatch.engine import Run
from cbatch.session import Progress

TERMINAL_S = 0.2
LOG_S = 30.0
LATE_S = 3.0  # answers take 0.1 to 2 s
NEAR_THE_END = 16  # prompts left, from which on single ones are named
NAMED = 3
BATCH = "{desc} {percentage:3.0f}%|{bar:16}| {unit}"
LOAD = "{desc} {unit}"  # how many requests there will be is what is found out: the line has the room for its stage
WINDOW_S = 10.0  # over which the rates are taken


async def watch(runs: Sequence[Run], *, simulated: bool) -> None:
    """Show the progress of `runs` on stderr until cancelled: of several, the one whose turn it is."""
    if sys.stderr.isatty():
        await _on_terminal(runs, simulated=simulated)
    else:
        await _in_log(runs)


def _active(runs: Sequence[Run]) -> Run:
    return max(runs, key=lambda run: len(run.progress.activity.on_the_wire))


async def _on_terminal(runs: Sequence[Run], *, simulated: bool) -> None:
    rates = {run: _Rates(run.progress) for run in runs}
    # tqdm's own rate counts what earlier sessions did; ours are passed in instead.
    with (
        tqdm(
            total=1,  # until the input is read
            desc=runs[0].job.name[:30],
            bar_format=BATCH,
            dynamic_ncols=True,
            leave=False,
            file=sys.stderr,
            miniters=0,
            mininterval=0,
        ) as bar
    ):
        while True:
            run = _active(runs)
            name = run.job.name + (" (simulated)" if simulated else "")
            longest, used, bar.bar_format = (20, 2, LOAD) if run.progress.stage else (30, 27, BATCH)
            bar.set_description_str(name if len(name) <= longest else name[: longest - 1] + "…", refresh=False)
            bar.total, bar.n = run.progress.total, run.progress.done + run.progress.failed
            width = shutil.get_terminal_size().columns - len(bar.desc) - used
            bar.unit = _fit(_state(run, rates[run]), width)  # tqdm puts a comma before its postfix
            bar.refresh()
            await asyncio.sleep(TERMINAL_S)


async def _in_log(runs: Sequence[Run]) -> None:
    rates = {run: _Rates(run.progress) for run in runs}
    for begun in rates.values():  # or the first line would have no rate
        begun.now()
    while True:
        await asyncio.sleep(LOG_S)
        run = _active(runs)
        click.echo(f"{run.job.name}: {', '.join(_state(run, rates[run]))}", err=True)


def _fit(parts: list[str], width: int) -> str:
    """As many parts as the line has room for: what matters most comes first."""
    text = ""
    for part in parts:
        longer = f"{text}, {part}" if text else part
        if len(longer) > width:
            break
        text = longer
    return text


def _state(run: Run, rates: _Rates) -> list[str]:
    progress = run.progress
    if not progress.total and not progress.stage:
        return ["reading the input"]
    requests_per_s, tokens_per_s, eta_s = rates.now()
    parts = [progress.stage or f"{progress.done + progress.failed:,}/{progress.total:,}"]
    if progress.draining:
        return [*parts, "stopping", f"{len(progress.activity.on_the_wire)} in flight"]
    parts += [f"{progress.failed:,} failed"] if progress.failed else []
    parts += [f"ETA {duration(eta_s)}"] if eta_s is not None and not progress.stage else []
    parts.append(f"{rate(requests_per_s)} req/s")
    parts.append(f"{count(round(tokens_per_s))} tok/s")
    parts.append(money(progress.cost_usd) + ("+?" if progress.unpriced else ""))
    parts.append(f"{len(progress.activity.on_the_wire)} in flight")
    if progress.activity.backing_off:
        parts.append(f"{progress.activity.backing_off} in retry")
    if waiting := progress.waiting_for():
        why, seconds = waiting
        parts.append(f"waiting for {why}" + (f" ({duration(seconds)})" if 5 <= seconds < float("inf") else ""))
    if late := _stragglers(run):
        parts.append(f"late: {late}")
    return parts


def _stragglers(run: Run) -> str:
    """Who has been on the wire for much longer than is usual, near the end: the oldest first."""
    progress = run.progress
    flying = progress.activity.on_the_wire
    if not flying or progress.total - progress.done - progress.failed > max(NEAR_THE_END, len(flying)):
        return ""
    now = run.clock()
    late = [(now - one.sent, one.prompt_id) for one in flying.values() if now - one.sent > LATE_S]
    late.sort(reverse=True)
    return " ".join(f"{_short(name)} {duration(seconds)}" for seconds, name in late[:NAMED]) + (
        f" and {len(late) - NAMED} more" if len(late) > NAMED else ""
    )


def _short(name: str) -> str:
    return name if len(name) <= 16 else name[:15] + "…"


class _Rates:
    """Durable rows and tokens per second over the last WINDOW_S, and the time left at these rates."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._marks: deque[tuple[float, int, int, dict[str, int]]] = deque()

    def now(self) -> tuple[float, float, float | None]:
        """(requests/s, tokens/s, seconds left); None before anything is known of every model."""
        now = asyncio.get_running_loop().time()
        progress = self._progress
        left = dict(progress.left_by_model)
        self._marks.append((now, progress.answered, progress.completion_tokens, left))
        while now - self._marks[0][0] > WINDOW_S and len(self._marks) > 2:
            self._marks.popleft()
        then, rows, tokens, before = self._marks[0]
        seconds = max(now - then, 1e-3)
        # The slowest model decides when the run ends. Rows that were skipped as known count as
        # answered here, so the first seconds of a resumed run look too good; the window forgets them.
        pairs = [(number, before[model] - number) for model, number in left.items() if number]
        known = pairs and now - then > 1 and all(gone for _, gone in pairs)
        eta_s = max(number * seconds / gone for number, gone in pairs) if known else None
        return (progress.answered - rows) / seconds, (progress.completion_tokens - tokens) / seconds, eta_s
