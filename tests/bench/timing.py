"""What clients report about answers of known timing: time to first token, speed, and what it cost to measure them.

    python -m tests.bench.timing [--in-flight N …] [--chunk N …] [--tools aiperf …] [--load | --batch] [--source DIR …]

The server (timing_server.py) writes the first token 50 ms after it has read the request, then 2,000 tokens/s, and
notes when it really did. Per answer:

    TTFT error = what the client reported - (first token's write - request read), both as the server really did them

so the network, the client, and what the machine makes of two busy processes count as the client's error, and a late
server does not. All figures are of the middle four fifths of a run's time, so that connections are there; `cold` is
the median error of the first requests, as many as are to be in flight. Requests/s and requests in flight are the
server's. CPU is of the client's whole process, without what a run of a few requests takes; with it for other tools.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from pathlib import Path

import click

from tests.bench import children
from tests.bench import timing_clients as clients
from tests.bench.timing_clients import Answer, Client, Outcome
from tests.bench.timing_log import Sent, read_log
from tests.bench.timing_plans import FIRST_S, PLANS, TOKENS_PER_S
from tests.bench.timing_server import serving

SECONDS = 2.0  # a cell, for a client that keeps up
MAX_PER_S = 5_000  # requests; nobody is asked for more than this many times SECONDS
TOOL_SHARE = 8  # other tools get so many times fewer requests at 256 in flight and more
FEW = 10  # requests of the run that tells what starting costs
ENOUGH = 500  # requests: fewer say little about the CPU of one
QUIET = 0.05  # share of the machine that others may take
NEAR = 0.01  # a speed this far from the truth is right
PLAN_OF_CHUNK = {1: "chunk-1", 4: "plain", 32: "chunk-32", 64: "one-chunk"}
TARGETS = """\
targets   TTFT p50 error <= 0.5 ms at 32, <= 1 ms at 256; p99 <= 15 ms at 256; >= 2,500 req/s and >= 90 % of 256 in
          flight; >= 5,000 req/s at 1,000; <= 0.3 ms CPU a request; <= 80 MB; first request <= 0.6 s after the start;
          speed within 1 % of the truth, or null; streaming <= 1.5 x the CPU of not streaming at 10 chunks an answer"""
# Heading, width, format; what the fields of Cell are printed as.
COLUMNS = (
    ("err p50", 8, "+.2f"),
    ("p99", 7, "+.1f"),
    ("cold", 6, "+.1f"),
    ("req/s", 6, ",.0f"),
    ("present", 7, ",.0f"),
    ("CPU", 5, ".2f"),
    ("MB", 5, ",.0f"),
    ("first", 5, ".2f"),
    ("server", 6, ",.0f"),
    ("client", 6, ",.0f"),
    ("null", 5, ".0%"),
    ("off", 5, ".0%"),
    ("true", 6, ",.0f"),
    ("late p50", 8, ".2f"),
    ("p99", 5, ".1f"),
    ("others", 6, ".0%"),
)
LEGEND = f"""\
err p50, p99    TTFT error, ms            CPU            ms a request           null  answers without a client speed
cold            of the first requests     MB             peak                   off   client speeds > {NEAR:.0%} off
present         really in flight          first          s to the 1st request   true  tokens/s as really sent
server, client  tokens/s as reported      late p50, p99  the server's first token against its plan, ms
others          CPU of the machine that is neither the client's nor the server's, of the two's run"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One client at one load; times in milliseconds."""

    error_p50: float
    error_p99: float
    cold_p50: float
    per_s: float
    in_flight: float
    cpu_ms: float | None
    peak_mb: float
    first_s: float
    server_speed: float | None
    client_speed: float | None
    null: float  # share of answers without a client speed
    off: float  # share of the client speeds that are not NEAR what was sent
    true_speed: float | None
    late_p50: float
    late_p99: float
    others: float  # share of the machine that was not ours


@click.command()
@click.option(
    "--in-flight", default=(1, 32, 256, 1_000), show_default=True, multiple=True, type=click.IntRange(1, 2_000)
)
@click.option("--chunk", default=(4, 1, 32, 64), show_default=True, multiple=True, type=click.Choice(PLAN_OF_CHUNK))
@click.option("--tools", multiple=True, type=click.Choice(clients.TOOLS), help="Also these, from PyPI; repeatable.")
@click.option("--venvs", type=click.Path(path_type=Path), help="Where the tools' venvs are kept.  [default: nowhere]")
@click.option("--load/--batch", default=False, show_default=True, help="How cbatch is run.")
@click.option("--source", multiple=True, type=click.Path(exists=True, path_type=Path), help="Repeatable.")
@click.option("--tries", default=3, show_default=True, type=click.IntRange(1), help="Of a cell, while others disturb.")
@click.option("--stream-cost/--no-stream-cost", default=True, show_default=True)
@click.option("--table/--no-table", default=True, show_default=True)
def main(
    in_flight: tuple[int, ...],
    chunk: tuple[int, ...],
    tools: tuple[str, ...],
    venvs: Path | None,
    load: bool,
    source: tuple[Path, ...],
    tries: int,
    stream_cost: bool,
    table: bool,
) -> None:
    """Print the table, and what streaming costs."""
    if sys.platform != "linux":
        print("the server of known timing needs Linux: its timer is the kernel's")
        sys.exit(2)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cbatch-bench-")))
        sources = [path.resolve() for path in source] or [children.SOURCE]
        names = ["cbatch"] if len(sources) == 1 else [f"cbatch {path.parent.name}" for path in sources]
        if table:
            measured: dict[str, Client] = {
                "asyncio protocol": clients.reference("protocol", folder),
                "aiohttp session": clients.reference("aiohttp", folder),
            }
            measured |= {
                name: clients.cbatch(folder, path, load=load) for name, path in zip(names, sources, strict=True)
            }
            where = venvs.resolve() if venvs else folder / "venvs"
            where.mkdir(parents=True, exist_ok=True)
            for tool in tools:
                if why := clients.install(tool, where):
                    print(f"{tool} is left out: {why}")
                else:
                    measured[tool] = {"aiperf": clients.aiperf, "guidellm": clients.guidellm}[tool](folder, where)
            _table(measured, in_flight, chunk, tries)
        if stream_cost:
            for name, path in zip(names, sources, strict=True):
                _stream_cost(name, folder, path)


def _table(measured: dict[str, Client], in_flight: Sequence[int], chunks: Sequence[int], tries: int) -> None:
    print(TARGETS + "\n")
    print(f"{LEGEND}\n")
    print(f"{'asked':>6} {'chunk':>5}  {'':<18}" + " ".join(f"{heading:>{width}}" for heading, width, _ in COLUMNS))
    starting = {}
    for name, client in list(measured.items()):
        try:
            starting[name] = _run(client, "plain", 1, FEW).outcome
        except (RuntimeError, OSError, KeyError, ValueError) as exc:
            if name not in clients.TOOLS:
                raise
            print(f"{name} is left out: {(str(exc).strip() or repr(exc)).splitlines()[-1]}")
            del measured[name]
    for number in in_flight:
        for size in chunks:
            for name, client in measured.items():
                if name in clients.TOOLS and size != chunks[0]:
                    continue  # slow, and no different
                plan = PLAN_OF_CHUNK[size]
                requests = _requests(number, plan, name)
                try:
                    run = _least_disturbed(client, plan, number, requests, tries)
                    found = cell(run, number, starting[name] if name not in clients.TOOLS else None)
                except (RuntimeError, OSError, KeyError, ValueError) as exc:
                    if name not in clients.TOOLS:
                        raise
                    said = (str(exc).strip() or repr(exc)).splitlines()[-1]
                    print(f"{number:>6,} {size:>5}  {name:<18} failed: {said}", flush=True)
                    continue
                print(_line(number, size, name, found), flush=True)


def _requests(in_flight: int, plan: str, name: str) -> int:
    """As many as a client that keeps up does in SECONDS."""
    tokens, first = PLANS[plan].tokens, PLANS[plan].first_tokens
    per_s = min(MAX_PER_S, in_flight / (FIRST_S + (tokens - first) / TOKENS_PER_S))
    if name in clients.TOOLS and in_flight >= 256:
        return max(2 * in_flight, round(per_s * SECONDS / TOOL_SHARE))
    return max(FEW + 10, round(per_s * SECONDS))


@dataclass(frozen=True, slots=True)
class Run:
    """What a client did, what the server did, and how busy the machine was with other things."""

    outcome: Outcome
    log: list[Sent]
    others: float


def _run(client: Client, plan: str, in_flight: int, requests: int) -> Run:
    ours, busy, total = _cpu_times()
    with serving() as address:
        outcome = client(f"{address}/{plan}/v1", in_flight, requests)
        log = read_log(address)
    ours, busy, total = (after - before for after, before in zip(_cpu_times(), (ours, busy, total), strict=True))
    return Run(outcome, log, max(0.0, (busy - ours) / total))


def _least_disturbed(client: Client, plan: str, in_flight: int, requests: int, tries: int) -> Run:
    """The first run that had the machine to itself, else the one of `tries` that came nearest to it."""
    best: Run | None = None
    while tries and (best is None or best.others > QUIET):
        run = _run(client, plan, in_flight, requests)
        best = run if best is None or run.others < best.others else best
        tries -= 1
    assert best is not None
    return best


def _cpu_times() -> tuple[float, float, float]:
    """Seconds of CPU of ours and of our children that have ended, of everybody's, and how many there were."""
    times = [int(field) / os.sysconf("SC_CLK_TCK") for field in Path("/proc/stat").read_text().split()[1:9]]
    idle = times[3] + times[4]
    return sum(os.times()[:4]), sum(times) - idle, sum(times)


def cell(run: Run, in_flight: int, starting: Outcome | None) -> Cell:
    """The figures of one run. Raises ValueError if the client reported nothing that was sent."""
    outcome = run.outcome
    sent = sorted((one for one in run.log if one.complete), key=lambda one: one.read_ns)
    begin, end = sent[0].read_ns, max(one.stamps_ns[-1] for one in sent)
    low, high = begin + (end - begin) // 10, end - (end - begin) // 10
    pairs = [(one, answer) for one in sent if (answer := outcome.answers.get(one.id) or outcome.answers.get(one.tag))]
    cold = [_error_ms(*pair) for pair in pairs[:in_flight]]
    pairs = [(one, answer) for one, answer in pairs if low <= one.read_ns < high]
    if not pairs:
        raise ValueError("nothing was reported of the answers that were sent")
    errors = [_error_ms(*pair) for pair in pairs]
    speeds = [(answer.tokens_per_s, one.tokens_per_s) for one, answer in pairs if answer.tokens_per_s is not None]
    of_server = [answer.server_tokens_per_s for _, answer in pairs if answer.server_tokens_per_s is not None]
    of_truth = [speed for one, _ in pairs if (speed := one.tokens_per_s) is not None]
    late = [one.late_s * 1e3 for one, _ in pairs]
    present = sum(max(0, min(high, one.stamps_ns[-1]) - max(low, one.read_ns)) for one in sent)
    before_s, before = (starting.cpu_s, len(starting.answers)) if starting else (0.0, 0)
    return Cell(
        error_p50=_quantile(errors, 0.5),
        error_p99=_quantile(errors, 0.99),
        cold_p50=_quantile(cold, 0.5),
        per_s=sum(low <= one.stamps_ns[-1] < high for one in sent) / (high - low) * 1e9,
        in_flight=present / (high - low),
        cpu_ms=(outcome.cpu_s - before_s) / (len(sent) - before) * 1e3 if len(sent) >= ENOUGH else None,
        peak_mb=outcome.peak_bytes / 1e6,
        first_s=(begin - outcome.started_ns) / 1e9,
        server_speed=statistics.median(of_server) if of_server else None,
        client_speed=statistics.median(said for said, _ in speeds) if speeds else None,
        null=1 - len(speeds) / len(pairs),
        off=sum(true is None or abs(said / true - 1) > NEAR for said, true in speeds) / len(speeds) if speeds else 0.0,
        true_speed=statistics.median(of_truth) if of_truth else None,
        late_p50=_quantile(late, 0.5),
        late_p99=_quantile(late, 0.99),
        others=run.others,
    )


def _error_ms(one: Sent, answer: Answer) -> float:
    return (answer.ttft_s - one.ttft_s) * 1e3


def _quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def _line(in_flight: int, chunk: int, name: str, found: Cell) -> str:
    values = zip(astuple(found), COLUMNS, strict=True)
    texts = (f"{'-' if value is None else format(value, how):>{width}}" for value, (_, width, how) in values)
    return f"{in_flight:>6,} {chunk:>5}  {name:<18}" + " ".join(texts)


def _stream_cost(
    name: str,
    folder: Path,
    source: Path,
    *,
    in_flight: int = 256,
    few: int = 1_000,
    many: int = 6_000,
    repeats: int = 3,
) -> None:
    """CPU per request with and without streaming, 10 chunks an answer; the sides alternate."""
    per_request: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(repeats):
        for streamed, values in per_request.items():
            client = clients.cbatch(folder, source, load=False, streamed=streamed)
            short = _run(client, "ten-chunks", in_flight, few).outcome
            long = _run(client, "ten-chunks", in_flight, many).outcome
            values.append((long.cpu_s - short.cpu_s) / (many - few) * 1e3)
    ratio = statistics.median(a / b for a, b in zip(per_request[True], per_request[False], strict=True))
    print(
        f"\n{name}: {statistics.median(per_request[True]):.3f} ms CPU a request streamed in 10 chunks, "
        f"{statistics.median(per_request[False]):.3f} ms not streamed: {ratio:.2f} x (goal <= 1.5 x)   "
        f"{in_flight} in flight, {repeats} repeats"
    )


if __name__ == "__main__":
    main()
