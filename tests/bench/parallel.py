"""Thousands of prompts at once from Python: `chat_parallel` and the drop-in beside the official SDK, in one run.

    python -m tests.bench.parallel [--prompts 5000] [--repeats 3] [--answer-s 0.5] [--most 10000] [--source DIR]

Goals: at 1,000 in flight at most a tenth of the official async client's CPU per request, at most 100 KB per
request in flight, and no answer lost with 10,000 in flight. Every client is a process of its own, its CPU and
peak memory are the kernel's (wait4), and the server answers each request after the same time.

    µs/request      = (CPU(many prompts) - CPU(few)) / (many - few), with the same number in flight
    requests/s      = many / wall time, start-up included
    KB in flight    = (peak(1,000 prompts at once) - peak(64 at once)) / 936; answers kept, as in the list returned
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import click

from tests.bench import children
from tests.bench.slow_server import slow_server

CLIENTS = Path(__file__).with_name("parallel_clients.py")
IN_FLIGHT, FEW = 1_000, 64
GOAL_TIMES, GOAL_KB = 10.0, 100.0
THREADS_DO = 30  # prompts each: 5,000 by 20 threads would take minutes and measure the same
SIDES = [
    ("cbatch chat_parallel", "library", IN_FLIGHT),
    ("cbatch AsyncCerebras", "dropin-async", IN_FLIGHT),
    ("cbatch Cerebras, 100 threads", "dropin-sync", 100),
    ("cbatch Cerebras, 20 threads", "dropin-sync", 20),
    ("SDK AsyncCerebras", "sdk-async", IN_FLIGHT),
    ("SDK, its own 100 connections", "sdk-default", IN_FLIGHT),
    ("SDK on aiohttp", "sdk-aiohttp", IN_FLIGHT),
    ("SDK Cerebras, 100 threads", "sdk-sync", 100),
    ("SDK Cerebras, 20 threads", "sdk-sync", 20),
]


def ask(folder: Path, url: str, name: str, prompts: int, in_flight: int, source: Path) -> children.Usage:
    """One client on so many prompts. Raises RuntimeError if an answer is lost."""
    command: list[str | Path] = [sys.executable, CLIENTS, name, url, str(prompts), str(in_flight)]
    used = children.run(command, folder, children.environment(folder, source))
    if int(used.stdout) != prompts:
        raise RuntimeError(f"{name}: {int(used.stdout)} of {prompts} answers with {in_flight} in flight")
    return used


@click.command()
@click.option("--prompts", default=5_000, show_default=True, type=click.IntRange(2_500, 1_000_000))
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1, 100))
@click.option("--answer-s", default=0.5, show_default=True, type=click.FloatRange(0.0, 60.0))
@click.option(
    "--most", default=10_000, show_default=True, type=click.IntRange(1_000, 20_000), help="In flight at once."
)
@click.option("--source", default=children.SOURCE, type=click.Path(exists=True, path_type=Path))
def main(prompts: int, repeats: int, answer_s: float, most: int, source: Path) -> None:
    """Print CPU per request, its ratio to the official async client, and memory per request in flight."""
    source = source.resolve()
    with tempfile.TemporaryDirectory(prefix="cbatch-bench-") as name, slow_server(answer_s) as url:
        folder = Path(name)
        cpu: dict[str, list[float]] = {label: [] for label, _, _ in SIDES}
        memory: dict[str, list[float]] = {label: [] for label, _, _ in SIDES}
        per_s: dict[str, list[float]] = {label: [] for label, _, _ in SIDES}
        sides = [side for side in SIDES if side[1] != "sdk-aiohttp" or find_spec("httpx_aiohttp")]
        for _, client, _ in sides:  # compiles what is not compiled yet
            ask(folder, url, client, FEW, FEW, source)
        for _ in range(repeats):
            for label, client, in_flight in sides:
                few = max(2 * in_flight, 200)  # every connection is open in the short run, too
                many = min(prompts, THREADS_DO * in_flight)
                short, long = (ask(folder, url, client, number, in_flight, source) for number in (few, many))
                cpu[label].append((long.cpu_s - short.cpu_s) / (many - few) * 1e6)
                per_s[label].append(many / long.wall_s)
                if in_flight == IN_FLIGHT:
                    high, low = (ask(folder, url, client, number, number, source) for number in (IN_FLIGHT, FEW))
                    memory[label].append((high.peak_bytes - low.peak_bytes) / (IN_FLIGHT - FEW) / 1e3)
        print(f"{prompts:,} prompts, answers after {answer_s:g} s, {repeats} repeats, medians\n")
        print(
            f"{'':<29} {'in flight':>9} {'µs/request':>10} {'of the SDK':>10} {'requests/s':>10} {'KB in flight':>12}"
        )
        base = statistics.median(cpu["SDK AsyncCerebras"])
        for label, _, in_flight in sides:
            own = statistics.median(cpu[label])
            kept = f"{statistics.median(memory[label]):>12.1f}" if memory[label] else f"{'':>12}"
            print(
                f"{label:<29} {in_flight:>9,} {own:>10.0f} {f'1/{base / own:.1f}':>10} "
                f"{statistics.median(per_s[label]):>10,.0f} {kept}",
                flush=True,
            )
        times = base / statistics.median(cpu["cbatch chat_parallel"])
        kilobytes = statistics.median(memory["cbatch chat_parallel"])
        print(f"\n{times:.1f} times less CPU than the SDK's async client (goal: {GOAL_TIMES:g})")
        print(f"{kilobytes:.1f} KB per request in flight (goal: at most {GOAL_KB:g})")
        for label, client in (("chat_parallel", "library"), ("the drop-in", "dropin-async")):
            used = ask(folder, url, client, most, most, source)
            print(
                f"{label}: {most:,} answers of {most:,} with {most:,} in flight, "
                f"{used.wall_s:.1f} s, {used.peak_bytes / 1e6:.0f} MB at most"
            )


if __name__ == "__main__":
    main()
