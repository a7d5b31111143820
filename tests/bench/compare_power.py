"""How often `cbatch compare` cries wolf, and how often it sees the wolf: simulated runs, its own code from blocks on.

    python -m tests.bench.compare_power [--trials 200] [--requests 200] [--seed 1] [--limit-s 300]

Goals, for 6 interleaved repeats with 3 % noise from run to run: at most 5 % false alarms on pairs of
identical runs, at least 85 % of true slow-downs by 10 % seen. A column counts the share of trials in which

    differ    the 95 % interval of the change does not hold 0 (nominal 5 % where nothing changed)
    word      the line says slower or faster: significant, and 2 % at least
    FAIL      the gate `server_tokens_per_s < -3%` fails, beside a gate on ttft_s (Holm over both)
    PASS      it passes; what is left is INCONCLUSIVE
    MWU       a Mann-Whitney test on the requests calls them different: what tools do that count requests

`drift` is a random walk: each block starts from the one before it, whichever side that is of. `trend`: each is
so much slower than the one before. AABB: all blocks of A first, compared as what they are, not interleaved.
1 repeat: one block on either side, three times as long. ABAB has a trend of one block in every pair; ABBA has not.
Every prompt has its own length, so its own speed and time; both sides ask the same prompts.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import click
import numpy as np
from scipy.stats import mannwhitneyu

from cbatch.compare.gates import parse
from cbatch.compare.pairing import design, difference
from cbatch.compare.sides import Side, Stretch
from cbatch.compare.stats import Floats
from cbatch.compare.verdict import Pair, decided, lines_of

GATES = [parse("server_tokens_per_s < -3%"), parse("ttft_s > +10%")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is simulated: `change` is the true one of B's speed, `noise` of one block; then from block to block."""

    repeats: int
    order: str  # "ABAB", "ABBA" or "AABB"
    noise: float
    drift: float = 0.0
    trend: float = 0.0
    change: float = 0.0


CASES = [
    *(Case(repeats=n, order="ABAB", noise=0.03) for n in (5, 6, 8)),
    Case(repeats=6, order="AABB", noise=0.03),
    *(Case(repeats=n, order="ABAB", noise=0.02, drift=0.02) for n in (5, 6, 8)),
    *(Case(repeats=n, order="AABB", noise=0.02, drift=0.02) for n in (5, 6, 8)),
    *(Case(repeats=6, order=order, noise=0.02, trend=0.02) for order in ("ABAB", "ABBA", "AABB")),
    Case(repeats=1, order="ABAB", noise=0.03),
    *(Case(repeats=n, order="ABAB", noise=0.03, change=-0.10) for n in (5, 6, 8)),
    Case(repeats=6, order="ABAB", noise=0.02, drift=0.02, change=-0.10),
    Case(repeats=6, order="AABB", noise=0.03, change=-0.10),
    Case(repeats=6, order="ABAB", noise=0.01, change=-0.05),
    Case(repeats=1, order="ABAB", noise=0.03, change=-0.10),
    Case(repeats=1, order="ABAB", noise=0.03, change=-0.30),
]


def sides(case: Case, requests: int, rng: np.random.Generator) -> tuple[Side, Side]:
    """Two runs, their blocks in the order of the case."""
    lengths = rng.normal(0, 0.3, requests)  # of each prompt: the same on both sides
    order = {
        "ABAB": "AB" * case.repeats,
        "ABBA": "ABBA" * case.repeats,
        "AABB": "A" * case.repeats + "B" * case.repeats,
    }
    turns = order[case.order][: 2 * case.repeats]
    each = requests if case.repeats > 1 else 3 * requests
    speeds: dict[str, list[Floats]] = {"A": [], "B": []}
    times: dict[str, list[Floats]] = {"A": [], "B": []}
    begun: dict[str, list[float]] = {"A": [], "B": []}
    walk = np.cumsum(rng.normal(-case.trend, case.drift, len(turns)))
    for place, name in enumerate(turns):
        weather = rng.normal(0, case.noise) + walk[place]
        slower = weather + (math.log1p(case.change) if name == "B" else 0.0)
        prompts = np.tile(lengths, each // requests)
        speeds[name].append(np.exp(math.log(2_000) + 0.2 * prompts + rng.normal(0, 0.05, each) + slower))
        times[name].append(np.exp(math.log(0.14) + prompts + rng.normal(0, 0.15, each) + rng.normal(0, case.noise)))
        begun[name].append(60.0 * place)
    return _side("A", speeds["A"], times["A"], begun["A"], requests), _side(
        "B", speeds["B"], times["B"], begun["B"], requests
    )


def _side(name: str, speeds: list[Floats], times: list[Floats], begun: list[float], prompts: int) -> Side:
    ends = np.cumsum([len(one) for one in speeds])
    columns = {
        "server_tokens_per_s": np.concatenate(speeds),
        "ttft_s": np.concatenate(times),
        "started_at": np.arange(ends[-1], dtype=np.float64),
    }
    stretches = tuple(
        Stretch(repeat=n, begun_s=begun[n], ended_s=begun[n] + 59, answered=np.arange(end - len(speeds[n]), end))
        for n, end in enumerate(ends)
    )
    return Side(
        name=name,
        model="m",
        level=8.0,
        unit="in flight",
        stretches=stretches,
        codes=np.concatenate([np.arange(len(one)) % prompts for one in speeds]),
        prompts=prompts,
        numbers=columns.__getitem__,
        requests=int(ends[-1]),
        counts={},
    )


@click.command()
@click.option("--trials", default=200, show_default=True, type=click.IntRange(10, 10_000))
@click.option("--requests", default=200, show_default=True, type=click.IntRange(20, 10_000), help="In each block.")
@click.option("--seed", default=1, show_default=True)
@click.option("--limit-s", default=300.0, show_default=True, help="Stop after so many seconds.")
def main(trials: int, requests: int, seed: int, limit_s: float) -> None:
    """Print the table."""
    print(f"{trials} trials of each, {requests} requests in a block\n")
    print("repeats order   noise  drift  trend   true   differ  word  FAIL  PASS   MWU  smallest")
    end = time.monotonic() + limit_s
    for case in CASES:
        rng = np.random.default_rng(seed)
        counts = np.zeros(5)
        smallest = []
        for trial in range(1, trials + 1):
            a, b = sides(case, requests, rng)
            how = design(a, b, turns=case.order != "AABB", same_prompts=True)
            changes = [difference(gate.measure, a, b, how) for gate in GATES]
            pair = Pair(a=a, b=b, design=how, lines=tuple(lines_of(changes, GATES)), notes=())
            line = decided([pair])[0].lines[0]
            change = line.difference.change
            assert change is not None
            values = [side.numbers("server_tokens_per_s") for side in (a, b)]
            counts += [
                not change.low <= 0 <= change.high,
                line.word.lower() in ("slower", "faster"),
                line.outcome == "FAIL",
                line.outcome == "PASS",
                mannwhitneyu(*values).pvalue < 0.05,
            ]
            smallest.append(change.smallest or 0.0)
            if time.monotonic() > end:
                raise SystemExit(f"stopped after {limit_s:g} s, in trial {trial} of {case}")
        cells = "  ".join(f"{100 * share:3.0f}%" for share in counts / trials)
        about = f"{case.noise:>6.0%} {case.drift:>6.0%} {case.trend:>6.0%} {case.change:>+6.0%}"
        print(
            f"{case.repeats:>7} {case.order:<6} {about}     {cells}   {np.expm1(np.median(smallest)):>6.1%}", flush=True
        )


if __name__ == "__main__":
    main()
