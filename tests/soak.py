"""A run that is killed again and again, on a disk that fills up, against a server of which a fifth of the answers fail.

    python -m tests.soak [--rows 50000] [--minutes 30] [--fault-rate 0.2] [--seed N] [--kill-every 2..8]

Starts a simulator and `cbatch run` as processes of their own, kills only the latter, by its pid, until it says
that it is finished; then reads what is on disk and asks the simulator what was paid for. Exit code 1: a promise
was broken, or the time was too short. The disk that fills up is a tmpfs of its own, which takes root or
`unshare --user --map-root-user --mount python -m tests.soak`; without either there is none, and the figures say so.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import click
import pyarrow.parquet

SOURCE = Path(__file__).resolve().parents[1] / "pipeline"
MAX_DISK_MB = 512  # more than this is never filled
DISK_MB, DISK_BYTES_A_ROW = 48, 6_000  # measured: about 3 kB a row, journal and parts together
DISK_FULL_SHARE = 0.2  # of the sessions that are disturbed
QUIET_SHARE = 0.25  # of the time, at its end, in which nothing is disturbed, so that the run can finish
TOTAL_S = 1.5  # the client's patience; a stall lasts longer, a slow first byte does not
STOP_S = 240.0  # for a run to meet a full disk, or to end: a journal that has grown once needs no space for a while

# Every fault that a retry gets through. Of an answer that met one of UNUSABLE nothing could be kept, and it is paid.
UNUSABLE = ("drop_mid", "malformed_json", "stall")
FAULTS = (
    "rate_limited_requests",
    "rate_limited_tokens",
    "queue_exceeded",
    "timeout_408",
    "server_error",
    "unavailable",
    "bad_gateway_html",
    "html_200",
    "empty_body_200",
    "drop_before",
    "error_in_stream",
    "event_error_in_stream",
    "missing_usage",
    "wrong_model",
    "slow_first_byte",
    "close_connection",
    *UNUSABLE,
)


@dataclass(kw_only=True)
class Figures:
    """What came out; `problems` are broken promises."""

    rows: int
    sessions: int = 0
    kills: int = 0
    disk_full_episodes: int = 0
    disk: str = ""
    requests_seen: int = 0
    faults_met: int = 0
    answers_paid: int = 0
    answers_paid_and_unusable: int = 0
    rows_in_results: int = 0
    answers_paid_twice: int = 0
    reported_as_paid_twice_at_most: int = 0
    left_rows: int = 0
    lost_rows: int = 0
    doubled_rows: int = 0
    failed_rows: int = 0
    mixed_up_rows: int = 0
    wall_s: float = 0.0
    problems: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For people."""
        out = []
        for name in (f.name for f in fields(self) if f.name != "problems"):
            value = getattr(self, name)
            text = f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
            out.append(f"{name.replace('_', ' '):<32} {text}")
        out += [f"BROKEN: {problem}" for problem in self.problems]
        return [*out, "every promise was kept" if not self.problems else f"{len(self.problems)} problems"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to soak; seconds."""

    rows: int = 50_000
    limit_s: float = 1_800.0
    fault_rate: float = 0.2
    seed: int = 0
    kill_every: tuple[float, float] = (2.0, 8.0)
    concurrency: int = 16
    disturbances: int | None = None  # at most this many sessions are killed or have their disk filled
    fill_first: bool = False  # the first disturbance is a full disk, where there is one


@contextmanager
def small_disk(folder: Path, need_mb: int) -> Iterator[tuple[Path, bool, str]]:
    """(a folder, whether it may be filled up, what it is): a tmpfs of `need_mb`, a small /dev/shm, or neither."""
    if need_mb > MAX_DISK_MB:
        yield folder, False, f"none that fills up: so many rows need {need_mb} MB, and {MAX_DISK_MB} MB are the most"
        return
    place = folder / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={need_mb}m", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
        refused = mounted.stderr.strip() if mounted.returncode else ""
    except FileNotFoundError as exc:
        refused = str(exc)
    if not refused:
        try:
            yield place, True, f"tmpfs of {need_mb} MB"
        finally:
            subprocess.run(["umount", "--lazy", str(place)], check=True)
        return
    shared = Path("/dev/shm")
    free_mb = shutil.disk_usage(shared).free >> 20 if shared.is_dir() else 0
    if need_mb <= free_mb <= MAX_DISK_MB:
        with tempfile.TemporaryDirectory(prefix="cbatch-soak-", dir=shared) as name:
            yield Path(name), True, f"{shared} with {free_mb} MB free"
        return
    yield folder, False, f"none that fills up: {refused or 'no tmpfs'}"


class Soak:
    """One soak in `folder`."""

    def __init__(self, settings: Settings, folder: Path, disk: Path, can_fill: bool) -> None:
        self.settings = settings
        self.figures = Figures(rows=settings.rows)
        self.rng = random.Random(settings.seed)
        self.folder = folder
        self.run = disk / "run"
        self.ballast = disk / "ballast"
        self.can_fill = can_fill
        self.env = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "LC_ALL", "TMPDIR")}
        self.env |= {"HOME": str(folder), "PYTHONPATH": str(SOURCE), "CEREBRAS_API_KEY": "soak"}
        self.began = time.monotonic()
        self.durable = 0
        self.disturbed = 0
        self.finished = False

    def prompt(self, number: int) -> str:
        """What row `number` asks: all differ."""
        return f"What is {number} plus {number * 7}? " + "Explain. " * (number % 30)

    def prepare(self) -> None:
        with (self.folder / "rows.jsonl").open("w") as out:
            for number in range(self.settings.rows):
                out.write(json.dumps({"id": f"r{number}", "question": self.prompt(number)}) + "\n")
        job = {
            "model": "gpt-oss-120b",
            "input": {"path": "rows.jsonl", "id": "id"},
            "prompt": "{{ question }}",
            "limits": {"concurrency": self.settings.concurrency},
            "retry": {"attempts": 100, "max_wait_s": 0.05},
            "timeouts": {"total_s": TOTAL_S},
            "results": {"part_rows": max(50, self.settings.rows // 40), "input": False},
        }
        (self.folder / "job.yaml").write_text(json.dumps(job))

    @contextmanager
    def simulator(self) -> Iterator[str]:
        """Its address; it ends with its stdin, however this process ends."""
        each = 1 - (1 - self.settings.fault_rate) ** (1 / len(FAULTS))  # the first fault that is drawn is the only one
        command = [sys.executable, "-m", "cbatch", "sim", "--port", "0", "--tier", "unlimited", "--until-stdin-closes"]
        command += ["--seed", str(self.settings.seed), "--stall-s", str(3 * TOTAL_S), "--slow-s", str(TOTAL_S / 4)]
        command += [part for fault in FAULTS for part in ("--fault", f"{fault}={each}")]
        with subprocess.Popen(command, env=self.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as sim:
            assert sim.stdin is not None
            assert sim.stdout is not None
            try:
                yield sim.stdout.readline().strip()
            finally:
                sim.stdin.close()
                try:
                    sim.wait(10)
                except subprocess.TimeoutExpired:
                    sim.kill()

    # -- sessions ---------------------------------------------------------------------------

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.began

    def sessions(self, url: str) -> None:
        """Start it until it is finished, or the time is over."""
        settings = self.settings
        while not self.finished and not self.figures.problems:
            left_s = settings.limit_s - self.elapsed_s
            if left_s <= 0:
                self.problem(f"not finished within {settings.limit_s:g} s")
                return
            quiet = self.elapsed_s > settings.limit_s * (1 - QUIET_SHARE)
            quiet |= settings.disturbances is not None and self.disturbed >= settings.disturbances
            with self.session(url) as process:
                if quiet:
                    self.await_end(process, left_s)
                    continue
                if self.await_end(process, min(left_s, self.rng.uniform(*settings.kill_every))):
                    continue
                first = self.disturbed == 0 and settings.fill_first
                self.disturbed += 1
                if self.can_fill and (first or self.rng.random() < DISK_FULL_SHARE):
                    self.fill_disk(process)
                else:
                    self.kill(process)

    @contextmanager
    def session(self, url: str) -> Iterator[subprocess.Popen[bytes]]:
        """`cbatch run`; whatever happens it is gone afterwards, and no counted row is."""
        self.figures.sessions += 1
        command = [sys.executable, "-m", "cbatch", "run", "job.yaml", "--json", "--base-url", url]
        out, err = self.folder / "out", self.folder / "err"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                [*command, "--output", str(self.run)], cwd=self.folder, env=self.env, stdout=stdout, stderr=stderr
            )
            try:
                yield process
            finally:
                process.kill()  # only if it is still there
                process.wait()
        self.note_reported(err.read_text("utf-8", "replace"))
        now = self.count_durable()
        if now < self.durable:
            self.problem(f"session {self.figures.sessions}: {self.durable:,} rows were durable, now {now:,} are")
        self.durable = now

    def await_end(self, process: subprocess.Popen[bytes], seconds: float) -> bool:
        """Whether the process ended by itself within that time, as it should."""
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        if process.returncode is None:
            return False
        if process.returncode == 0:
            self.finished = json.loads((self.folder / "out").read_bytes())["state"] == "finished"
        if not self.finished:
            self.problem(f"session {self.figures.sessions} ended with {process.returncode}: {self.said()}")
        return True

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        self.figures.kills += 1
        process.kill()
        process.wait()

    def fill_disk(self, process: subprocess.Popen[bytes]) -> None:
        """The run must stop by itself and say why; so must one that is started on the full disk. Then make room."""
        try:
            with self.ballast.open("wb", buffering=0) as out, suppress(OSError):
                while out.tell() < MAX_DISK_MB << 20:
                    out.write(bytes(1 << 16))
            with self.ballast.open("ab", buffering=0) as out, suppress(OSError):
                while out.tell() < MAX_DISK_MB << 20:
                    out.write(bytes(1))  # tmpfs gives whole pages: this ends soon
            self.await_disk_full(process)
            if not self.finished and self.rng.random() < 0.5:
                self.start_on_full_disk(process.args)
        finally:
            self.ballast.unlink()

    def start_on_full_disk(self, command: Any) -> None:
        self.figures.sessions += 1
        try:
            again = subprocess.run(
                command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=STOP_S, check=False
            )
        except subprocess.TimeoutExpired:
            self.problem("a run started on a full disk did not stop")
            return
        self.note_reported(again.stderr)
        if again.returncode != 1 or not _names_the_disk(again.stderr):
            self.problem(f"a run started on a full disk ended with {again.returncode}: {again.stderr[-1_000:]}")

    def await_disk_full(self, process: subprocess.Popen[bytes]) -> None:
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.problem(f"the disk is full and after {STOP_S:g} s the run has not stopped: {self.said()}")
            return
        if process.returncode == 0:  # it was just done
            self.await_end(process, 0)
        elif process.returncode == 1 and _names_the_disk(self.said()):
            self.figures.disk_full_episodes += 1
        else:
            self.problem(f"on a full disk the run ended with {process.returncode}: {self.said()}")

    def note_reported(self, text: str) -> None:
        """Add what a session said at its start about the one before."""
        if said := re.search(r"at most ([\d,]+) prompts were sent and not saved", text):
            self.figures.reported_as_paid_twice_at_most += int(said[1].replace(",", ""))

    def said(self) -> str:
        return (self.folder / "err").read_text("utf-8", "replace")[-1_000:]

    def problem(self, text: str) -> None:
        self.figures.problems.append(text)

    def count_durable(self) -> int:
        """Rows in the journal, as it stands."""
        journal = self.run / "journal.sqlite"
        if not journal.exists():
            return 0
        try:
            with closing(sqlite3.connect(f"{journal.as_uri()}?mode=ro", uri=True)) as db:
                found: int = db.execute("SELECT COUNT(*) FROM result").fetchone()[0]
        except sqlite3.OperationalError as exc:
            if "no such table" in str(exc):  # killed while it was made
                return 0
            raise
        return found

    # -- what came out ----------------------------------------------------------------------

    def judge(self, stats: dict[str, Any]) -> None:
        """Compare what is on disk with what was asked, and with what the simulator says was paid for."""
        found = self.figures
        if self.finished:  # else rows are missing, and that is told already
            command = [sys.executable, "-m", "cbatch", "verify", str(self.run), "--json"]
            proof = subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, text=True, check=False)
            if proof.returncode:
                self.problem(f"verify: exit code {proof.returncode}: {(proof.stdout + proof.stderr)[-1_000:]}")
        seen: set[str] = set()
        ok = 0
        for part in sorted((self.run / "results").glob("*.parquet")):
            table = pyarrow.parquet.read_table(part, columns=["id", "index", "status", "text"])
            for row in table.to_pylist():
                found.rows_in_results += 1
                seen.add(row["id"])
                ok += row["status"] == "ok"
                tag = hashlib.sha256(self.prompt(row["index"]).encode()).hexdigest()[:12]
                fits = row["id"] == f"r{row['index']}" and str(row["text"]).startswith(f"[prompt {tag}]")
                found.mixed_up_rows += row["status"] == "ok" and not fits
        missing = found.rows - len(seen)
        found.lost_rows, found.left_rows = (missing, 0) if self.finished else (0, missing)
        found.doubled_rows = found.rows_in_results - len(seen)
        found.failed_rows = found.rows_in_results - ok
        found.requests_seen = stats["chat_requests"]
        found.faults_met = sum(stats["faults"].values())
        found.answers_paid = stats["prompts_seen"]["answered"]
        found.answers_paid_and_unusable = sum(stats["faults"].get(name, 0) for name in UNUSABLE)
        found.answers_paid_twice = found.answers_paid - found.answers_paid_and_unusable - ok
        for name in ("lost_rows", "doubled_rows", "failed_rows", "mixed_up_rows"):
            if count := getattr(found, name):
                self.problem(f"{count:,} {name.replace('_', ' ')}")
        if not self.finished:  # paid answers still wait in the journal
            return
        if found.answers_paid_twice > found.reported_as_paid_twice_at_most:
            self.problem("more answers were paid twice than was reported as the most")
        bound = self.settings.concurrency * 5 // 4 + 16
        if found.answers_paid_twice > found.kills * bound + found.disk_full_episodes * 2 * bound:
            self.problem(f"more answers were paid twice than {bound} a kill")


def _names_the_disk(text: str) -> bool:
    return "bug" not in text and any(words in text for words in ("disk is full", "No space left on device"))


def soak(settings: Settings) -> Figures:
    """Soak, clean up, and say what came out."""
    need_mb = DISK_MB + settings.rows * DISK_BYTES_A_ROW // 1_000_000
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cbatch-soak-")))
        disk, can_fill, name = stack.enter_context(small_disk(folder, need_mb))
        it = Soak(settings, folder, disk, can_fill)
        it.figures.disk = name
        it.prepare()
        with it.simulator() as url:
            it.sessions(url)
            with urllib.request.urlopen(f"{url}/_sim/stats", timeout=30) as response:
                stats = json.load(response)
        it.judge(stats)
        it.figures.wall_s = it.elapsed_s
        return it.figures


def _seconds(_: click.Context, __: click.Parameter, text: str) -> tuple[float, float]:
    low, dots, high = text.partition("..")
    try:
        found = float(low), float(high if dots else low)
    except ValueError:
        raise click.BadParameter("not like 2..8") from None
    if not 0 < found[0] <= found[1]:
        raise click.BadParameter("not like 2..8")
    return found


@click.command()
@click.option("--rows", default=50_000, show_default=True, type=click.IntRange(100, 1_000_000))
@click.option("--minutes", default=30.0, show_default=True, type=click.FloatRange(0.1, 1_440))
@click.option("--fault-rate", default=0.2, show_default=True, type=click.FloatRange(0, 0.9), help="Of all requests.")
@click.option("--seed", type=int, help="Of faults and of moments; default: another every time.")
@click.option("--kill-every", default="2..8", show_default=True, metavar="S..S", callback=_seconds, help="Seconds.")
@click.option("--concurrency", default=16, show_default=True, type=click.IntRange(1, 1_000))
def main(
    rows: int, minutes: float, fault_rate: float, seed: int | None, kill_every: tuple[float, float], concurrency: int
) -> None:
    """Kill a run until it is finished, then count."""
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, lambda signum, _: sys.exit(128 + signum))  # the blocks above clean up
    print(f"{rows:,} rows, at most {minutes:g} minutes, {fault_rate:.0%} faults, seed {seed}", flush=True)
    settings = Settings(
        rows=rows,
        limit_s=minutes * 60,
        fault_rate=fault_rate,
        seed=seed,
        kill_every=kill_every,
        concurrency=concurrency,
    )
    figures = soak(settings)
    for line in figures.lines():
        print(line)
    sys.exit(1 if figures.problems else 0)


if __name__ == "__main__":
    main()
