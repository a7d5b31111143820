"""Peak memory of `cbatch run` with few and with many rows: it must not depend on their number.

    python -m tests.bench.memory [--rows 200000] [--few 2000] [--in-flight 64] [--repeats 1] [--source DIR …]

Goal: 200,000 rows peak at no more than 1.3 x what 2,000 rows do. Peak: the resident set as the kernel
counted it (ru_maxrss), all threads, arenas and mapped files of the process included.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import click

from tests.bench import children
from tests.bench.server import nginx

GOAL = 1.3


@click.command()
@click.option("--rows", default=200_000, show_default=True, type=click.IntRange(1, 5_000_000))
@click.option("--few", default=2_000, show_default=True, type=click.IntRange(1, 5_000_000))
@click.option("--in-flight", default=64, show_default=True, type=click.IntRange(1, 2_000))
@click.option("--repeats", default=1, show_default=True, type=click.IntRange(1, 100))
@click.option("--source", multiple=True, type=click.Path(exists=True, path_type=Path), help="Repeatable.")
def main(rows: int, few: int, in_flight: int, repeats: int, source: tuple[Path, ...]) -> None:
    """Print the peaks and their ratio."""
    sources = [path.resolve() for path in source] or [children.SOURCE]
    peaks: dict[tuple[Path, int], list[float]] = {(path, number): [] for path in sources for number in (few, rows)}
    with tempfile.TemporaryDirectory(prefix="cbatch-bench-") as name:
        folder = Path(name)
        for number in (few, rows):
            children.write_rows(folder, number)
        with nginx(folder) as url:
            for _ in range(repeats):
                for (path, number), found in peaks.items():
                    found.append(children.run_cbatch(folder, url, number, in_flight, path).peak_bytes / 1e6)
    print(f"{in_flight:,} in flight, {repeats} repeats, medians\n")
    print(f"{'':<28} {few:>9,} rows {rows:>9,} rows   ratio  goal")
    for path in sources:
        small, large = statistics.median(peaks[path, few]), statistics.median(peaks[path, rows])
        label = "cbatch run" if len(sources) == 1 else f"{path.parent.name}/{path.name}"
        print(f"{label:<28} {small:>11.1f} MB {large:>11.1f} MB   {large / small:>5.2f}  {GOAL:.1f}")


if __name__ == "__main__":
    main()
