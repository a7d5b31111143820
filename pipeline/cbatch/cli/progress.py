"""What a running job shows: one moving line on a terminal, one line every 30 s in a log.

The line is drawn by a timer from what the engine has counted, never per row: a display that is
updated by every answer costs more than the answers.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque

import click
from tqdm import tqdm

from cbatch.cli.words import count, duration, money, rate
from cbatch.engine import Run
from cbatch.session import Progress

TERMINAL_S = 0.2
LOG_S = 30.0
WINDOW_S = 10.0  # over which the rates are taken


async def watch(run: Run, *, simulated: bool) -> None:
    """Show the progress of `run` on stderr until cancelled."""
    if sys.stderr.isatty():
        await _on_terminal(run, simulated=simulated)
    else:
        await _in_log(run)


async def _on_terminal(run: Run, *, simulated: bool) -> None:
    progress = run.progress
    name = run.job.name + (" (simulated)" if simulated else "")
    rates = _Rates(progress)
    # tqdm's own rate counts what earlier sessions did; ours are passed in instead.
    with (
        tqdm(
            total=1,  # until the input is read
            desc=name if len(name) <= 30 else name[:29] + "…",
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
            dynamic_ncols=True,
            leave=False,
            file=sys.stderr,
            miniters=0,
            mininterval=0,
        ) as bar
    ):
        while True:
            bar.total, bar.n = progress.total, progress.done + progress.failed
            bar.set_postfix_str(_state(progress, rates, run) if progress.total else "reading the input", refresh=False)
            bar.refresh()
            await asyncio.sleep(TERMINAL_S)


async def _in_log(run: Run) -> None:
    progress = run.progress
    rates = _Rates(progress)
    while True:
        await asyncio.sleep(LOG_S)
        done = progress.done + progress.failed
        click.echo(f"{run.job.name}: {done:,}/{progress.total:,}, {_state(progress, rates, run)}", err=True)


def _state(progress: Progress, rates: _Rates, run: Run) -> str:
    requests_per_s, tokens_per_s = rates.now()
    parts = [f"{progress.failed:,} failed"] if progress.failed else []
    parts.append(f"{rate(requests_per_s)} req/s")
    parts.append(f"{count(round(tokens_per_s))} tok/s")
    cost = money(progress.cost_usd)
    parts.append(cost + "+?" if progress.unpriced else cost)
    parts.append(f"{len(progress.activity.on_the_wire)} in flight")
    left = progress.total - progress.done - progress.failed
    if progress.draining:
        parts.append("stopping: waiting for the answers in flight")
    else:
        waiting = progress.waiting_for()
        if waiting:
            parts.append(f"waiting for {waiting}")
        elif progress.activity.backing_off:
            parts.append(f"{progress.activity.backing_off} in retry")
        if requests_per_s > 0 and left:
            parts.append(f"ETA {duration(left / requests_per_s)}")
    return ", ".join(parts)


class _Rates:
    """Durable rows and tokens per second over the last WINDOW_S."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._marks: deque[tuple[float, int, int]] = deque()

    def now(self) -> tuple[float, float]:
        now = asyncio.get_running_loop().time()
        progress = self._progress
        self._marks.append((now, progress.answered, progress.completion_tokens))
        while now - self._marks[0][0] > WINDOW_S and len(self._marks) > 2:
            self._marks.popleft()
        then, rows, tokens = self._marks[0]
        if now <= then:
            then, rows, tokens = progress.started_s, 0, 0
        seconds = max(now - then, 1e-3)
        return (progress.answered - rows) / seconds, (progress.completion_tokens - tokens) / seconds
