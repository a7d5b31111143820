"""What cbatch adds to sending: CPU per request of the bare aiohttp loop and of `cbatch run`, side by side.

    python -m tests.bench.overhead [--rows 20000] [--repeats 5] [--in-flight 64 --in-flight 1000] [--source DIR …]

Goals: the whole pipeline, journal and Parquet included, takes at most 0.9 x the bare loop with 64
requests in flight and at most 0.6 x with 1,000. The sides alternate (A B A B …), every side runs once
with many rows and once with few, and the difference is what a request costs without start-up:

    µs/request = (CPU(many) - CPU(few)) / (many - few)         raw: CPU(many) / many, start-up and all

Each --source is another `pipeline` folder to be measured in the same go: a change against its base.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from tests.bench import children
from tests.bench.server import nginx

GOALS = {64: 0.9, 1_000: 0.6}


@click.command()
@click.option("--rows", default=20_000, show_default=True, type=click.IntRange(5_000, 1_000_000))
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(1, 100))
@click.option("--in-flight", default=(64, 1_000), show_default=True, multiple=True, type=click.IntRange(1, 2_000))
@click.option("--source", multiple=True, type=click.Path(exists=True, path_type=Path), help="Repeatable.")
def main(rows: int, repeats: int, in_flight: tuple[int, ...], source: tuple[Path, ...]) -> None:
    """Print CPU per request and its ratio to the bare loop."""
    few = max(2_000, 2 * max(in_flight))  # so many that every connection is open in the short run too
    sources = [path.resolve() for path in source] or [children.SOURCE]
    with tempfile.TemporaryDirectory(prefix="cbatch-bench-") as name:
        folder = Path(name)
        for number in (few, rows):
            children.write_rows(folder, number)
        with nginx(folder) as url:
            sides: dict[str, Callable[[int, int], children.Usage]] = {
                "bare loop": partial(children.run_bare, folder, url)
            }
            for path in sources:
                label = "cbatch run" if len(sources) == 1 else f"cbatch run, {path.parent.name}/{path.name}"
                sides[label] = partial(children.run_cbatch, folder, url, source=path)
            for side in sides.values():  # compiles what is not compiled yet
                side(few, 64)
            print(f"{rows:,} and {few:,} rows, {repeats} repeats, medians; ratios are medians of the ratio per pair\n")
            print(
                f"{'in flight':>9}  {'':<28} {'µs/request':>10} {'ratio':>6} {'goal':>5}   {'raw µs':>7} {'req/s':>7}"
            )
            for number in in_flight:
                _measure(sides, rows, few, number, repeats)


def _measure(
    sides: dict[str, Callable[[int, int], children.Usage]], rows: int, few: int, in_flight: int, repeats: int
) -> None:
    per_request: dict[str, list[float]] = {label: [] for label in sides}
    raw: dict[str, list[float]] = {label: [] for label in sides}
    per_s: dict[str, list[float]] = {label: [] for label in sides}
    for _ in range(repeats):
        for label, side in sides.items():
            short, long = side(few, in_flight), side(rows, in_flight)
            per_request[label].append((long.cpu_s - short.cpu_s) / (rows - few) * 1e6)
            raw[label].append(long.cpu_s / rows * 1e6)
            per_s[label].append((rows - few) / (long.wall_s - short.wall_s))
    base = per_request["bare loop"]
    for label, values in per_request.items():
        ratio = statistics.median(a / b for a, b in zip(values, base, strict=True))
        goal = f"{GOALS[in_flight]:.1f}" if label != "bare loop" and in_flight in GOALS else ""
        print(
            f"{in_flight:>9,}  {label:<28} {statistics.median(values):>10.1f} {ratio:>6.2f} {goal:>5}   "
            f"{statistics.median(raw[label]):>7.1f} {statistics.median(per_s[label]):>7,.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
