"""Whole runs -> a verdict: gates, refusals, histories, and what people and machines read."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from cbatch.compare import machine, text
from cbatch.compare.gates import parse
from cbatch.compare.runs import compare
from cbatch.compare.sides import load
from cbatch.compare.stats import repeats_needed
from cbatch.compare.unlike import ALLOWED, UnlikeRuns, allowed
from cbatch.compare.verdict import Comparison, Line
from cbatch.errors import JobError
from cbatch.rundir import RunDir
from tests import made_runs
from tests.made_runs import MadeBlock, made_batch, made_run

GATE = "server_tokens_per_s < -3%"
GATES = (GATE, "ttft_s p50 > +10%", "errors > +1pt")


def blocks(
    number: int = 6, *, seed: int, speed: float = 2_000, sd: float = 0.005, swing: float = 0.0, **more: Any
) -> list[MadeBlock]:
    """Repeats whose speed and time to first token differ by `sd` from run to run, and speeds by `swing` up and down."""
    rng = random.Random(seed)
    about = {"level": 8.0, "rows": 120, "prompts": 60, "spread": 0.02, "ttft_s": 0.14} | more
    return [
        MadeBlock(
            **about | {"ttft_s": about["ttft_s"] * math.exp(rng.gauss(0, sd))},
            repeat=n,
            speed=speed * math.exp(rng.gauss(0, sd) + (swing if n % 2 else -swing)),
        )
        for n in range(number)
    ]


def interleaved(folder: Path, **b: Any) -> list[Path]:
    """Two load runs that took turns."""
    a = made_run(folder / "a", blocks(seed=1), seed=1)
    found = made_run(folder / "b", blocks(**{"seed": 2} | b), seed=2, load={"interleaved_with": str(folder / "a")})
    return [a.path, found.path]


def judged(runs: list[Path], *gates: str, allow: str = "", **more: Any) -> Comparison:
    return compare([load(run) for run in runs], [parse(gate) for gate in gates], allow=allowed([allow]), **more)


def outcomes(found: Comparison) -> dict[str, str | None]:
    return {line.gate.text: line.outcome for _, line in found.gated if line.gate}


def line_of(found: Comparison, name: str) -> Line:
    return next(line for line in found.pairs[0].lines if line.measure.name == name)


def edit(run: Path, **values: Any) -> None:
    """Change keys of run.json."""
    info = RunDir(run).read_info()
    RunDir(run).write_info(info | values)


def test_a_slow_down_by_5_percent_fails_a_gate_of_3(tmp_path: Path) -> None:
    found = judged(interleaved(tmp_path, speed=1_900), *GATES)
    assert outcomes(found) == {GATE: "FAIL", "ttft_s p50 > +10%": "PASS", "errors > +1pt": "PASS"}
    line = line_of(found, "server_tokens_per_s")
    assert line.word == "SLOWER"
    assert line.difference.change is not None
    assert line.difference.change.p_sign_flip == 2 / 64
    assert found.pairs[0].design.kind == "interleaved"
    assert found.exit_code(strict=False) == 5


def test_an_identical_run_passes_all_gates(tmp_path: Path) -> None:
    found = judged(interleaved(tmp_path), *GATES)
    assert set(outcomes(found).values()) == {"PASS"}
    assert found.exit_code(strict=True) == 0
    assert line_of(found, "server_tokens_per_s").word == "~"


def test_failures_fail_their_gate_and_come_first(tmp_path: Path) -> None:
    found = judged(interleaved(tmp_path, failed=4), "errors > +0.5pt")
    assert outcomes(found) == {"errors > +0.5pt": "FAIL"}
    assert found.pairs[0].lines[0].measure.name == "errors"
    assert found.pairs[0].lines[0].word == "MORE"


def test_an_undecided_gate_says_how_many_repeats_decide_and_fails_only_where_strict(tmp_path: Path) -> None:
    found = judged(interleaved(tmp_path, speed=1_970, swing=0.03), GATE)
    assert outcomes(found) == {GATE: "INCONCLUSIVE"}
    assert [found.exit_code(strict=strict) for strict in (False, True)] == [0, 5]
    (said,) = [one for one in text.lines(found) if one.startswith("INCONCLUSIVE server")]
    change = line_of(found, "server_tokens_per_s").difference.change
    assert change is not None
    assert change.noise is not None
    needed = repeats_needed(change.noise, change.point - math.log(0.97))
    assert needed is not None
    assert said.endswith(f": {needed - 6} more repeats a side would decide, if the change stays")


def test_single_runs_say_that_drift_is_not_covered_and_fail_only_beyond_it(tmp_path: Path) -> None:
    """10 % slower may be the hour; 30 % is not. An identical one neither fails nor passes."""
    base = made_batch(tmp_path / "a", rows=300, seed=1).path
    for speed, outcome, word in (
        (2_000, "INCONCLUSIVE", "~"),
        (1_800, "INCONCLUSIVE", "slower?"),
        (1_400, "FAIL", "SLOWER"),
    ):
        b = made_batch(tmp_path / f"b{speed}", rows=300, seed=2, block=MadeBlock(speed=speed)).path
        found = judged([base, b], GATE)
        assert outcomes(found) == {GATE: outcome}, speed
        assert line_of(found, "server_tokens_per_s").word == word
        assert "blocks of one run: drift not covered" in "\n".join(text.lines(found))
        assert "interleaved repeats would decide" in "\n".join(text.lines(found)) or outcome == "FAIL"


def test_failures_of_single_runs_can_fail(tmp_path: Path) -> None:
    a = made_batch(tmp_path / "a", rows=300, seed=1).path
    b = made_batch(tmp_path / "b", rows=300, seed=2, block=MadeBlock(failed=15)).path
    assert outcomes(judged([a, b], "errors > +0.5pt")) == {"errors > +0.5pt": "FAIL"}


def test_a_run_in_which_everything_failed_fails_its_gate_and_has_no_speed(tmp_path: Path) -> None:
    a = made_batch(tmp_path / "a", rows=100, seed=1).path
    b = made_batch(tmp_path / "b", rows=100, seed=2, block=MadeBlock(failed=100)).path
    assert outcomes(judged([a, b], "errors > +1pt")) == {"errors > +1pt": "FAIL"}
    with pytest.raises(UnlikeRuns, match="every request of b failed"):
        judged([a, b], GATE)


def test_runs_one_after_the_other_are_compared_and_said_to_be(tmp_path: Path) -> None:
    a, b = interleaved(tmp_path, speed=1_800)
    edit(b, load=RunDir(b).read_info()["load"] | {"interleaved_with": None})
    found = judged([a, b], GATE)
    assert found.pairs[0].design.kind == "apart"
    assert outcomes(found) == {GATE: "FAIL"}
    assert "note: not interleaved: what changed between the runs looks like a change of B" in text.lines(found)


UNLIKE: dict[str, dict[str, Any]] = {
    "prompts": {"source": {"sha256": "beef" * 16, "rows": 9}},
    "endpoint": {"endpoint": "https://other.example/v1"},
    "simulated": {"simulated": True},
    "metrics_version": {"metrics_version": 2},
    "unfinished": {"state": "interrupted"},
    "params.max_completion_tokens": {"job": {"params": {"max_completion_tokens": 64}}},
    "limits.concurrency": {"job": {"limits": {"concurrency": 64}}},
    "prompts --limit": {"limit": 5},
    "prompt": {"job": {"prompt": {"user": "Other {{ question }}"}}},
    "samples": {"job": {"samples": 3}},
}


@pytest.mark.parametrize("what", UNLIKE)
def test_unlike_runs_are_refused_by_name_and_allowed_by_name(tmp_path: Path, what: str) -> None:
    a, b = (made_batch(tmp_path / name, rows=60).path for name in "ab")
    values = dict(UNLIKE[what])
    if "job" in values:
        values["job"] = RunDir(b).read_info()["job"] | values["job"]
    edit(b, **values)
    with pytest.raises(UnlikeRuns) as caught:
        judged([a, b])
    (difference,) = caught.value.differences
    assert difference.what == {"simulated": "endpoint"}.get(what, what)
    assert difference.allow in ALLOWED
    assert caught.value.exit_code == 6
    assert caught.value.hint is not None
    assert f"--allow {difference.allow}" in caught.value.hint
    found = judged([a, b], allow=difference.allow or "")
    assert [one.what for one in found.allowed] == [difference.what]
    assert any(line.startswith(f"allowed: {difference.what}") for line in text.lines(found))


def test_another_model_and_another_fingerprint_are_refused(tmp_path: Path) -> None:
    a = made_batch(tmp_path / "a", rows=60).path
    b = made_batch(tmp_path / "b", rows=60, models=["other"]).path
    c = made_batch(tmp_path / "c", rows=60, change=lambda row, n: row.update(system_fingerprint=f"fp_{n % 2}")).path
    with pytest.raises(UnlikeRuns, match="model: gpt-oss-120b in A, other in B"):
        judged([a, b])
    assert judged([a, b], allow="model").pairs[0].b.model == "other"
    with pytest.raises(UnlikeRuns, match="system_fingerprint: fp_1 in A, fp_0, fp_1 in B"):
        judged([a, c])


def test_other_levels_and_other_modes_are_refused(tmp_path: Path) -> None:
    a = made_run(tmp_path / "a", blocks(3, seed=1)).path
    b = made_run(tmp_path / "b", blocks(3, seed=1, level=16.0)).path
    c = made_run(tmp_path / "c", blocks(3, seed=1, unit="requests/s", level=8.0), mode="open").path
    batch = made_batch(tmp_path / "d", rows=60, stream=True).path
    for other, says in (
        (b, "load level: 8 in A, 16 in B"),
        (c, "load.mode: closed in A, open in B"),
        (batch, "a batch in B"),
    ):
        with pytest.raises(UnlikeRuns, match=says):
            judged([a, other])
        judged([a, other], allow="load")


def test_what_is_no_measurement_cannot_be_allowed(tmp_path: Path) -> None:
    """A run without rows, and one that measured its client."""
    a = made_run(tmp_path / "a", blocks(3, seed=1)).path
    bound = made_run(tmp_path / "b", blocks(3, seed=1, cpu_share=0.99)).path
    empty = made_run(tmp_path / "c", [replace(one, complete=False) for one in blocks(3, seed=1)]).path
    every = ",".join(ALLOWED)
    with pytest.raises(UnlikeRuns, match=r"b is INVALID: client CPU 99 % of a core") as caught:
        judged([a, bound], allow=every)
    assert caught.value.hint is None
    with pytest.raises(UnlikeRuns, match="c has no measured rows"):
        judged([a, empty], allow=every)


def test_a_gate_on_what_was_not_measured_is_refused_with_the_reason(tmp_path: Path) -> None:
    a, b = (made_batch(tmp_path / name, rows=60, change=lambda row, n: row.update(cost_usd=None)).path for name in "ab")
    with pytest.raises(UnlikeRuns) as caught:
        judged([a, b], "ttft_s > +10%", "cost_usd > +10%", "latency_s p99 > +5%", GATE)
    said = str(caught.value)
    assert "ttft_s needs params.stream: true; a has none" in said
    assert "no price is known for the model of a" in said
    assert "p99 needs 662 requests on each side; measured 60" in said
    assert GATE not in said


def test_different_prompts_are_compared_by_what_does_not_depend_on_lengths(tmp_path: Path) -> None:
    a = made_batch(tmp_path / "a", rows=60).path
    b = made_batch(tmp_path / "b", rows=60, change=lambda row, n: row.update(id=f"q{n}")).path
    edit(b, source={"sha256": "beef" * 16, "rows": 60})
    found = judged([a, b], GATE, allow="prompts")
    assert {line.measure.name for line in found.pairs[0].lines} == {"errors", "server_tokens_per_s", "server_queue_s"}
    assert "note: different prompts: only what does not depend on lengths is compared" in text.lines(found)
    with pytest.raises(UnlikeRuns, match="depends on the lengths"):
        judged([a, b], "latency_s > +10%", allow="prompts")


def test_warm_up_and_blocks_without_an_end_are_in_no_figure(tmp_path: Path) -> None:
    good = blocks(6, seed=1, warmup_rows=20)
    a = made_run(tmp_path / "a", good).path
    b = made_run(tmp_path / "b", [*good, replace(good[0], repeat=6, speed=100, complete=False)]).path
    found = judged([a, b], GATE)
    assert [len(pair.b.stretches) for pair in found.pairs] == [6]
    assert found.pairs[0].b.requests == 720


def test_the_level_is_the_highest_common_one_or_the_one_asked_for(tmp_path: Path) -> None:
    ladder = [one for level in (8.0, 32.0) for one in blocks(3, seed=1, level=level)]
    a = made_run(tmp_path / "a", ladder).path
    b = made_run(tmp_path / "b", [*ladder, *blocks(3, seed=1, level=64.0)]).path
    found = judged([a, b])
    assert found.pairs[0].a.level == 32
    assert "note: compared at level 32; both also have 8 (--level N)" in text.lines(found)
    assert judged([a, b], level=8).pairs[0].b.level == 8
    with pytest.raises(UnlikeRuns, match="--level 64 is not a level of both runs; common: 8, 32"):
        judged([a, b], level=64)


def test_every_model_is_compared_and_gated(tmp_path: Path) -> None:
    models = ["m1", "m2"]
    a, b = (made_batch(tmp_path / name, rows=120, models=models, seed=seed).path for seed, name in enumerate("ab"))
    found = judged([a, b], GATE)
    assert [pair.b.model for pair in found.pairs] == models
    assert len(found.gated) == 2
    assert {"m1", "m2"} <= set(text.lines(found))


def test_holm_is_over_all_gates(tmp_path: Path) -> None:
    found = judged(interleaved(tmp_path, speed=1_900), *GATES)
    line = line_of(found, "server_tokens_per_s")
    assert line.difference.change is not None
    assert line.difference.change.p is not None
    assert line.p_holm == pytest.approx(3 * line.difference.change.p)


def test_a_queue_below_a_millisecond_is_no_change(tmp_path: Path) -> None:
    """0.4 ms against 0.2 ms is twice as much, and nothing."""
    a = made_batch(tmp_path / "a", rows=60, change=lambda row, n: row.update(server_queue_s=0.0002)).path
    b = made_batch(tmp_path / "b", rows=60, change=lambda row, n: row.update(server_queue_s=0.0004)).path
    found = judged([a, b], "server_queue_s > +10%")
    assert outcomes(found) == {"server_queue_s > +10%": "PASS"}
    assert any("below 1 ms resolution" in line for line in text.lines(found))


def test_refusals_that_were_retried_are_counted(tmp_path: Path) -> None:
    a = made_run(tmp_path / "a", blocks(6, seed=1)).path
    b = made_run(tmp_path / "b", blocks(6, seed=1, rate_limited=10)).path
    found = judged([a, b], "rate_limited > +1pt")
    assert outcomes(found) == {"rate_limited > +1pt": "FAIL"}
    assert line_of(found, "rate_limited").difference.b == pytest.approx(60 / 720)


def test_cut_answers_are_a_share_of_answers(tmp_path: Path) -> None:
    """Half of B failed, some of it after a cut answer: what is left was cut as often as in A."""

    def cut(row: dict[str, Any], n: int) -> None:
        row["finish_reason"] = "length" if n % 2 else "stop"

    a = made_batch(tmp_path / "a", rows=60, change=cut).path
    b = made_batch(tmp_path / "b", rows=60, block=MadeBlock(failed=30), change=cut).path
    found = judged([a, b])
    counts = [side.counts["finish_length"] for side in (found.pairs[0].a, found.pairs[0].b)]
    assert counts[0] == (30, 60)
    assert counts[1][1] == 30
    assert 0 < counts[1][0] < 30


def test_failures_that_came_together_are_said_to(tmp_path: Path) -> None:
    a, good = made_run(tmp_path / "a", blocks(6, seed=1)).path, blocks(6, seed=1)
    b = made_run(tmp_path / "b", [replace(good[0], failed=20), *good[1:]]).path
    assert "note: 20 of 20 failures of B are in one block: they came together" in text.lines(judged([a, b]))


@pytest.fixture
def past(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve runs of one job, days apart, 2 % from run to run."""
    rng = random.Random(1)
    for day in range(12):
        monkeypatch.setattr(made_runs, "START", datetime(2026, 11, 1 + day, 9, tzinfo=UTC))
        block = MadeBlock(speed=2_000 * math.exp(rng.gauss(0, 0.02)))
        made_batch(tmp_path / "past" / f"day{day:02}", rows=60, seed=day, block=block)
    monkeypatch.setattr(made_runs, "START", datetime(2026, 11, 20, 9, tzinfo=UTC))
    return tmp_path / "past"


def test_a_run_alone_is_compared_with_its_history(tmp_path: Path, past: Path) -> None:
    """The last ten earlier runs of the job say what is usual: 2,000 is, 1,700 is not."""
    for speed, outcome in ((2_000, "INCONCLUSIVE"), (1_700, "FAIL")):
        new = made_batch(tmp_path / f"new{speed}", rows=60, seed=99, block=MadeBlock(speed=speed)).path
        found = judged([new], GATE, history=past)
        assert outcomes(found) == {GATE: outcome}
        assert "note: against 10 earlier runs of the same job: day02 to day11" in text.lines(found)


def test_a_history_replaces_the_allowance_for_drift(tmp_path: Path, past: Path) -> None:
    """Two single runs 14 % apart: too little where drift is unknown and taken for 10 %, enough where it is known."""
    a = made_batch(tmp_path / "a", rows=60, seed=98).path
    b = made_batch(tmp_path / "b", rows=60, seed=99, block=MadeBlock(speed=1_720)).path
    intervals = []
    for history in (None, past):
        change = line_of(judged([a, b], GATE, history=history), "server_tokens_per_s").difference.change
        assert change is not None
        intervals.append(change.high - change.low)
    assert intervals[1] < 0.8 * intervals[0]


def test_a_history_takes_only_like_and_earlier_runs(
    tmp_path: Path, past: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(past / "day11", state="interrupted")
    edit(past / "day10", recipe="e" * 64)
    (past / "day09" / "results" / "part-00000.parquet").write_bytes(b"damaged")
    new = made_batch(tmp_path / "new", rows=60, seed=99).path
    monkeypatch.setattr(made_runs, "START", datetime(2026, 11, 25, tzinfo=UTC))
    made_batch(past / "later", rows=60, seed=99)
    found = judged([new], history=past)
    assert found.history is not None
    assert found.history.names == [f"day{day:02}" for day in range(8, -1, -1)]
    assert [one.split(":")[0] for one in found.history.skipped] == ["day11", "day09"]


def test_a_history_of_two_runs_is_none(tmp_path: Path, past: Path) -> None:
    new = made_batch(tmp_path / "new", rows=60, recipe="e" * 64).path
    with pytest.raises(UnlikeRuns, match="the history has 0 runs of this recipe that can be used, and 3 are needed"):
        judged([new], history=past)
    with pytest.raises(JobError, match="not a folder"):
        judged([new], history=tmp_path / "nowhere")


def test_the_block_is_100_columns_wide_at_most(tmp_path: Path) -> None:
    long = "a-run-with-a-very-long-name-that-nobody-reads"
    runs = interleaved(tmp_path, speed=1_200_000, failed=3)
    runs += [made_run(tmp_path / f"{long}-{n}", blocks(seed=n), seed=n).path for n in range(5)]
    for some in (runs[:2], [runs[0], runs[2]], runs):
        found = judged(some, *GATES, "latency_s p95 > +12.5%", "response_s > +3%")
        assert max(len(line) for line in text.lines(found)) <= 100
    assert sum(line.startswith("geomean, as speed") for line in text.lines(found)) == 2


def test_the_geomean_counts_a_shorter_time_as_a_gain(tmp_path: Path) -> None:
    runs = interleaved(tmp_path, speed=4_000, ttft_s=0.07)
    mean = text.geomean(judged(runs).pairs[0])
    assert mean is not None
    assert mean == pytest.approx(math.log(2), abs=0.1)


def test_json_has_every_line_as_plain_numbers(tmp_path: Path) -> None:
    found = machine.as_dict(judged(interleaved(tmp_path, speed=1_900), *GATES))
    assert (found["verdict"], found["exit_code"]) == ("FAIL", 5)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    (line,) = [one for one in found["comparisons"][0]["lines"] if one["gate"] == GATE]
    assert line["change"] == pytest.approx(-0.05, abs=0.01)
    assert line["low"] < line["change"] < line["high"] < -0.03
    assert (line["outcome"], line["statistic"], line["n_a"]) == ("FAIL", "p50", 720)


def test_junit_has_one_case_for_each_gate(tmp_path: Path) -> None:
    found = judged(interleaved(tmp_path, speed=1_970, swing=0.03, failed=5), *GATES)
    assert sorted(filter(None, outcomes(found).values())) == ["FAIL", "INCONCLUSIVE", "PASS"]
    for strict, counts in ((False, ("1", "1")), (True, ("2", "0"))):
        suite = ElementTree.fromstring(machine.junit(found, strict=strict).partition("\n")[2]).find("testsuite")
        assert suite is not None
        assert suite.get("tests") == "3"
        assert (suite.get("failures"), suite.get("skipped")) == counts
        assert [case.get("name") for case in suite] == [line.gate.text for _, line in found.gated if line.gate]


def test_github_gets_an_error_for_a_failed_gate_and_a_warning_for_an_undecided_one(tmp_path: Path) -> None:
    found = judged(interleaved(tmp_path, speed=1_970, swing=0.03, failed=5), *GATES)
    lines = machine.workflow_commands(found)
    assert [line.split(" ")[0] for line in lines] == ["::error", "::warning", "::notice"]
    assert "errors > +1pt" in lines[0]
    assert "-3%25::" in lines[1]
    assert machine.workflow_commands(found, strict=True)[1].startswith("::error")


def test_a_refusal_is_an_error_in_every_format(tmp_path: Path) -> None:
    a, b = (made_batch(tmp_path / name, rows=60, models=[name]).path for name in "ab")
    with pytest.raises(UnlikeRuns) as caught:
        judged([a, b])
    assert machine.refusal(caught.value)["differences"] == [{"what": "model", "a": "a", "b": "b", "allow": "model"}]
    gates = [parse(gate) for gate in GATES]
    tree = ElementTree.fromstring(machine.junit_refusal(caught.value, gates).partition("\n")[2])
    assert len(tree.findall("testsuite/testcase/error")) == 3
    (line,) = machine.workflow_refusal(caught.value)
    assert line.startswith("::error")
    assert "%0Amodel: a in A, b in B" in line


def test_a_name_that_xml_cannot_hold_still_makes_xml(tmp_path: Path) -> None:
    a, b = (made_batch(tmp_path / name, rows=60, seed=1).path for name in ("a", "b\x1b[31m<&"))
    ElementTree.fromstring(machine.junit(judged([a, b], GATE)).partition("\n")[2])
    edit(b, state="interrupted")
    with pytest.raises(UnlikeRuns) as caught:
        judged([a, b])
    ElementTree.fromstring(machine.junit_refusal(caught.value, []).partition("\n")[2])


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    a, b = (made_batch(tmp_path / name / "run", rows=60, seed=1).path for name in "ab")
    found = judged([a, b], GATE)
    assert [side.name for side in (found.pairs[0].a, found.pairs[0].b)] == [str(a), str(b)]
    assert max(len(line) for line in text.lines(found)) <= 100


def test_markdown_says_the_verdict_first(tmp_path: Path) -> None:
    lines = text.markdown(judged(interleaved(tmp_path, speed=1_900), *GATES))
    assert lines[0] == "**FAIL: 1 failed of 3 gates   exit 5**"
    table = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert any(f"`{GATE}` **FAIL**" in line for line in table)


def test_an_unknown_name_to_allow_is_refused_with_the_nearest() -> None:
    with pytest.raises(JobError, match="modle") as caught:
        allowed(["prompts, modle"])
    assert caught.value.hint is not None
    assert "did you mean model?" in caught.value.hint
