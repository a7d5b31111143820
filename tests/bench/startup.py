"""What `cbatch --help` costs over a bare click program: nothing heavy may be imported for it.

    python -m tests.bench.startup [--repeats 40] [--source DIR …]

Goal: at most 1.2 x. Both sides are `python -m NAME --help` from a folder on PYTHONPATH, so both pay
for the interpreter, the venv's site-packages, click and a group of ten commands; an installed console
script would add the same few lines to each. The bare program's commands are functions of one file,
the least that click allows. They alternate, and the ratio is the median over the pairs.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

import click

from tests.bench import children

GOAL = 1.2

_BARE = '''"""A bare click program: a group of ten commands, each with a line of help."""

import click


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog="Example: bare zero")
@click.version_option("1.0", prog_name="bare")
def cli() -> None:
    """Ten commands that do nothing.

    They are here so that there is something to list.
    """

'''
_COMMAND = '''
@cli.command()
def {name}() -> None:
    """Do nothing for the {name}th time, and say so."""

'''


@click.command()
@click.option("--repeats", default=40, show_default=True, type=click.IntRange(1, 1_000))
@click.option("--source", multiple=True, type=click.Path(exists=True, path_type=Path), help="Repeatable.")
def main(repeats: int, source: tuple[Path, ...]) -> None:
    """Print CPU and wall time of both and their ratio."""
    sources = [path.resolve() for path in source] or [children.SOURCE]
    with tempfile.TemporaryDirectory(prefix="cbatch-bench-") as name:
        folder = Path(name)
        (folder / "bare").mkdir()
        names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
        text = _BARE + "".join(_COMMAND.format(name=n) for n in names)
        (folder / "bare" / "__init__.py").write_text(text, "utf-8")
        (folder / "bare" / "__main__.py").write_text("from bare import cli\n\ncli()\n", "utf-8")
        sides = {"bare click": ("bare", folder)}
        for path in sources:
            sides["cbatch" if len(sources) == 1 else f"cbatch, {path.parent.name}/{path.name}"] = ("cbatch", path)
        cpu: dict[str, list[float]] = {label: [] for label in sides}
        wall: dict[str, list[float]] = {label: [] for label in sides}
        for turn in range(repeats + 1):
            for label, (module, path) in sides.items():
                command = [sys.executable, "-m", module, "--help"]
                used = children.run(command, folder, children.environment(folder, path))
                if turn:  # the first one compiles
                    cpu[label].append(used.cpu_s * 1e3)
                    wall[label].append(used.wall_s * 1e3)
    print(f"--help, {repeats} repeats, medians; ratios are medians of the ratio per pair\n")
    print(f"{'':<28} {'CPU ms':>7} {'ratio':>6}  {'wall ms':>7} {'ratio':>6}  goal")
    for label in sides:
        ratios = [statistics.median(a / b for a, b in zip(d[label], d["bare click"], strict=True)) for d in (cpu, wall)]
        print(
            f"{label:<28} {statistics.median(cpu[label]):>7.1f} {ratios[0]:>6.2f}  "
            f"{statistics.median(wall[label]):>7.1f} {ratios[1]:>6.2f}"
            + ("" if label == "bare click" else f"  {GOAL:.1f}")
        )


if __name__ == "__main__":
    main()
