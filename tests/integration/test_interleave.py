"""Two jobs in turns: the supported way to compare them."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cbatch.rundir import RunDir
from tests.integration.conftest import Forking, Process, Result, Sim, questions, wait_for
from tests.integration.test_crash import die
from tests.integration.test_load import DONE, SLOW

Sims = Callable[..., Sim]
LOAD = {"concurrency": 2, "duration_s": 0.2, "warmup_s": 0.05, "calibrate": False}


class Pair:
    """Jobs A and B over the same rows, with their runs."""

    def __init__(self, path: Path, forking: Forking, sim: Sim) -> None:
        self.path, self.sim, self._forking = path, sim, forking
        self.runs = {name: RunDir(path / "out" / name) for name in "ab"}
        (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions(12)))
        self.settings: dict[str, dict[str, Any]] = {
            name: {
                "model": "gpt-oss-120b",
                "input": "rows.jsonl",
                "prompt": f"{name}\n\n{{{{ question }}}}",
                "params": {"stream": True},
                "output": str(self.runs[name].path),
                "load": LOAD,
            }
            for name in "ab"
        }

    def start(self, *args: str, first: str = "") -> Process:
        for name, settings in self.settings.items():
            (self.path / f"{name}.yaml").write_text(json.dumps(settings))
        order = ["run", "a.yaml", "--interleave", "b.yaml", "--base-url", self.sim.url, "--json", *args]
        return self._forking.start(order, key="key", cwd=self.path, first=first)

    def execute(self, *args: str, first: str = "") -> Result:
        return self.start(*args, first=first).wait()

    def blocks(self, name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (self.runs[name].read_info().get("load") or {}).get("blocks", [])
        return found

    def order(self) -> str:
        """Whose blocks came when, by their beginnings; no two may overlap."""
        all_of = [(b["started_at"], name, b) for name in "ab" for b in self.blocks(name) if b["complete"]]
        return "".join(name for _, name, _ in sorted(all_of, key=lambda one: one[0]))


@pytest.fixture
def pair(tmp_path: Path, forking: Forking, sims: Sims) -> Pair:
    return Pair(tmp_path, forking, sims(*SLOW))


def test_blocks_take_turns_over_one_pool_of_connections(pair: Pair) -> None:
    """A B, B A, so that what drifts drifts for both."""
    say = "import sys, cbatch.client as c\nreal = c.plain_transport\n"
    say += "def pool(*args):\n    print('a pool', file=sys.stderr)\n    return real(*args)\nc.plain_transport = pool\n"
    result = pair.execute("--repeat", "4", first=say)
    assert result.code in DONE, result.err
    assert pair.order() == "abbaabba"
    assert [summary["state"] for summary in result.summary["runs"]] == ["finished", "finished"]
    for name, other in ("ab", "ba"):
        found = pair.blocks(name)
        assert [(b["block"], b["repeat"], b["complete"]) for b in found] == [(n, n, True) for n in range(4)]
        assert pair.runs[name].read_info()["load"]["interleaved_with"] == str(pair.runs[other].path)
    assert pair.sim.stats()["max_in_flight"] == 2
    assert result.err.count("a pool") == 1


def test_a_finished_pair_sends_nothing(pair: Pair) -> None:
    assert pair.execute().code in DONE
    sent = pair.sim.requests
    assert pair.execute().code in DONE
    assert pair.sim.requests == sent


def test_batches_are_measured_in_blocks(pair: Pair) -> None:
    """Without `load` a block is once over the prompts, at the job's own concurrency."""
    for settings in pair.settings.values():
        del settings["load"]
        settings["limits"] = {"concurrency": 3}
    assert pair.execute("--repeat", "2").code in DONE
    assert pair.order() == "abba"
    for name in "ab":
        assert [(b["level"], b["requests"]) for b in pair.blocks(name)] == [(3, 12), (3, 12)]


def test_blocks_of_a_pair_ask_the_same_prompts(pair: Pair) -> None:
    """Both with the same arrivals, where these are drawn."""
    from cbatch.parquet import read_rows

    for settings in pair.settings.values():
        settings["load"] = {"mode": "open", "rate": 60, "duration_s": 0.2, "warmup_s": 0, "calibrate": False}
    assert pair.execute("--repeat", "2").code in DONE
    found: dict[tuple[str, int], list[tuple[float, int]]] = {}
    for name in "ab":
        for part in pair.runs[name].parts:
            for block, index, at, lag in read_rows(part, ["load_block", "index", "started_at", "sched_lag_s"]):
                found.setdefault((name, block), []).append((at / 1e6 - lag, index))
    for block in (0, 1):
        a, b = (sorted(found[name, block]) for name in "ab")
        assert [index for _, index in a] == [index for _, index in b]
        assert [at - a[0][0] for at, _ in a] == pytest.approx([at - b[0][0] for at, _ in b], abs=2e-4)


@pytest.mark.parametrize("slower", ["a", "b"])
def test_who_has_no_blocks_left_does_not_hold_the_other(pair: Pair, slower: str) -> None:
    pair.settings[slower]["load"] = LOAD | {"repeats": 3}
    assert pair.execute().code in DONE
    assert sorted(pair.order()) == sorted("ab" + 2 * slower)


def test_who_was_finished_before_does_not_hold_the_other(pair: Pair) -> None:
    """One of the two runs is gone: only its blocks are run again."""
    assert pair.execute("--repeat", "2").code in DONE
    before = pair.blocks("a")
    pair.runs["b"].clear()
    assert pair.execute("--repeat", "2").code in DONE
    assert pair.blocks("a") == before
    assert [block["complete"] for block in pair.blocks("b")] == [True, True]


def test_a_kill_costs_the_block_that_was_under_way(pair: Pair) -> None:
    ended = pair.execute("--repeat", "3", first=die("cbatch.load:LoadRun._note", 3))
    assert ended.code == -signal.SIGKILL
    assert pair.execute("--repeat", "3").code in DONE
    for name in "ab":
        assert [b["repeat"] for b in pair.blocks(name) if b["complete"]] == [0, 1, 2]


def test_a_signal_ends_both(pair: Pair) -> None:
    process = pair.start("--repeat", "3", "--set", "load.duration_s=0.6")
    wait_for(lambda: len(pair.blocks("a")) > 0, "the first block")
    process.signal(signal.SIGINT)
    ended = process.wait()
    assert ended.code == 130, ended.err
    assert {summary["state"] for summary in ended.summary["runs"]} == {"interrupted"}
    assert pair.execute("--repeat", "3", "--set", "load.duration_s=0.6").code in DONE
    for name in "ab":
        assert [b["repeat"] for b in pair.blocks(name) if b["complete"]] == [0, 1, 2]


def test_a_budget_of_one_ends_the_run_with_4(pair: Pair) -> None:
    """The other goes on, and both can be resumed."""
    pair.settings["a"]["budget"] = {"usd": 0.0005}
    assert pair.execute("--repeat", "2").code == 4
    assert [run.read_info()["state"] for run in pair.runs.values()] == ["stopped", "finished"]
    pair.settings["a"]["budget"] = {}
    assert pair.execute("--repeat", "2").code in DONE
    assert [b["repeat"] for b in pair.blocks("a") if b["complete"]] == [0, 1]


@pytest.mark.parametrize(
    ("change", "args", "said"),
    [
        pytest.param({"output": "{a}"}, (), "both jobs write to", id="one folder"),
        pytest.param({"samples": 2, "load": None}, (), "does not go with --interleave", id="samples"),
        pytest.param({}, ("--metrics-port", "0"), "--metrics-port: does not go with --interleave", id="metrics"),
        pytest.param({"input": "none.jsonl"}, (), "none.jsonl: no such file", id="an input that is missing"),
        pytest.param({"prompt": "{{ other }}"}, (), "can be rendered", id="a template that fits nothing"),
        pytest.param(
            {"load": {"mode": "search", "slo": "errors < 1%"}}, ("--repeat", "2"), "--repeat: a search", id="a search"
        ),
    ],
)
def test_what_cannot_be_interleaved_is_refused(
    pair: Pair, change: dict[str, Any], args: tuple[str, ...], said: str
) -> None:
    """With exit 2, and nothing sent by the other."""
    change = {key: str(pair.runs["a"].path) if value == "{a}" else value for key, value in change.items()}
    pair.settings["b"] |= change
    result = pair.execute(*args)
    assert result.code == 2, result.err
    assert said in result.err
    assert pair.sim.requests == 0


def test_the_other_run_may_be_in_use(pair: Pair) -> None:
    """Who has the folder goes on; the pair stops at once, though A could have begun."""
    pair.settings["b"]["load"] = LOAD | {"duration_s": 1.5}
    for name, settings in pair.settings.items():
        (pair.path / f"{name}.yaml").write_text(json.dumps(settings))
    alone = pair._forking.start(["run", "b.yaml", "--base-url", pair.sim.url], key="key", cwd=pair.path)
    wait_for(lambda: pair.sim.requests, "requests of B")
    result = pair.execute()
    assert result.code == 1
    assert "another cbatch" in result.err
    assert alone.wait().code in DONE
