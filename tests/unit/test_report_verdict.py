"""When figures are to be believed: every rule met and just not met."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cbatch.report.evidence import read
from cbatch.report.findings import Findings, find
from cbatch.rundir import RunDir
from tests.made_runs import Change, MadeBlock, made_batch, made_run

GOOD = MadeBlock(level=8, rows=700)


def found(run: RunDir) -> Findings:
    return find(read(run))


def verdict(tmp_path: Path, block: MadeBlock = GOOD, change: Change | None = None, **more: Any) -> tuple[str, str]:
    said = found(made_run(tmp_path / "run", [block], change=change, **more)).verdict
    return said.state, "; ".join(said.reasons)


def every(n: int, **values: Any) -> Change:
    """Every nth answer gets these values."""

    def change(row: dict[str, Any], number: int) -> None:
        if number % n == 0 and row["status"] == "ok":
            row.update(values)

    return change


def scaled(column: str, factor: float) -> Change:
    def change(row: dict[str, Any], number: int) -> None:
        if row.get(column) is not None:
            row[column] *= factor

    return change


def test_a_good_run_is_valid(tmp_path: Path) -> None:
    assert verdict(tmp_path) == ("VALID", "")


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        pytest.param(replace(GOOD, overhead_s=(0.003, 0.005)), "client overhead p50 3 ms", id="late by half"),
        pytest.param(replace(GOOD, overhead_s=(0.001, 0.030)), "client overhead p99 30 ms", id="late at the tail"),
        pytest.param(replace(GOOD, cpu_share=0.96), "client CPU 96 % of a core", id="busy"),
        pytest.param(replace(GOOD, in_flight=6.0, starved_s=5.0), "6 in flight of 8 asked", id="not delivered"),
    ],
)
def test_a_client_that_was_the_bottleneck_is_invalid_and_prints_no_speed(
    tmp_path: Path, block: MadeBlock, reason: str
) -> None:
    said = found(made_run(tmp_path / "run", [block]))
    assert said.verdict.state == "INVALID"
    assert said.verdict.client_bound
    assert reason in said.verdict.reasons[0]
    assert said.exit_code == 6
    figures = said.figures
    assert figures.spreads is None
    assert figures.levels[0].spreads is None
    assert figures.system.output_tokens_per_s is None
    assert reason in (figures.reason or "")


@pytest.mark.parametrize(
    ("block", "change", "reason"),
    [
        pytest.param(replace(GOOD, loop_lag_s=(0.001, 0.004)), None, "event loop lag p99 4 ms", id="loop lag"),
        pytest.param(GOOD, scaled("client_tokens_per_s", 0.8), "client speed / server speed is 0.8", id="two clocks"),
        pytest.param(replace(GOOD, in_flight=7.2, starved_s=5.0), None, "7.2 in flight of 8 asked", id="a little less"),
        pytest.param(GOOD, every(50, tainted=True), "tainted", id="tainted"),
        pytest.param(replace(GOOD, rate_limited=10), None, "429s are 1.43 %", id="429s"),
        pytest.param(replace(GOOD, failed=10), None, "1.43 % failed", id="failed"),
        pytest.param(GOOD, every(10, cached_tokens=64), "came from the cache", id="cached"),
        pytest.param(GOOD, every(10, finish_reason="length"), "were cut", id="cut"),
    ],
)
def test_what_somebody_should_look_at_is_suspect(
    tmp_path: Path, block: MadeBlock, change: Change | None, reason: str
) -> None:
    state, reasons = verdict(tmp_path, block, change)
    assert state == "SUSPECT"
    assert reason in reasons


@pytest.mark.parametrize(
    ("block", "change"),
    [
        pytest.param(replace(GOOD, overhead_s=(0.002, 0.020)), None, id="an overhead within bounds"),
        pytest.param(replace(GOOD, in_flight=6.0, starved_s=0.0), None, id="no prompts were due"),
        pytest.param(replace(GOOD, overhead_s=None), None, id="not calibrated"),
        pytest.param(GOOD, every(1, finish_reason="length"), id="all of a fixed length"),
        pytest.param(GOOD, every(200, tainted=True), id="few tainted"),
        pytest.param(replace(GOOD, rate_limited=5), None, id="few 429s"),
        pytest.param(replace(GOOD, failed=5), None, id="few failures"),
    ],
)
def test_what_stays_within_bounds_is_valid(tmp_path: Path, block: MadeBlock, change: Change | None) -> None:
    assert verdict(tmp_path, block, change) == ("VALID", "")


def test_drift_is_suspect_if_it_is_large(tmp_path: Path) -> None:
    def slower(by: float) -> Change:
        def change(row: dict[str, Any], number: int) -> None:
            if row["status"] == "ok":
                row["server_tokens_per_s"] *= 1 - by * number / 700

        return change

    state, reasons = verdict(tmp_path, change=slower(0.2))
    assert state == "SUSPECT"
    assert "drift: server_tokens_per_s -" in reasons
    assert found(made_run(tmp_path / "b", [GOOD], change=slower(0.03))).verdict.state == "VALID"


def test_an_open_loop_that_sends_late_or_too_little_is_suspect(tmp_path: Path) -> None:
    block = MadeBlock(level=40, rows=800, unit="requests/s")
    assert verdict(tmp_path, block, mode="open") == ("VALID", "")
    late = found(made_run(tmp_path / "b", [block], mode="open", change=every(50, sched_lag_s=0.5)))
    assert "behind schedule" in late.verdict.reasons[0]
    later = found(made_run(tmp_path / "e", [block], mode="open", change=every(50, sched_lag_s=5140.0)))
    assert later.verdict.reasons[0] == "sent 5,140 s behind schedule (p99)"
    short = made_run(tmp_path / "c", [replace(block, rows=2_000)], mode="open")
    info = short.read_info()
    info["load"]["blocks"][0]["level"] = 60.0
    short.write_info(info)
    said = found(short).verdict
    assert (said.state, said.client_bound) == ("INVALID", False)
    assert said.reasons[0].startswith("39.9 of 60 requests/s asked were sent")
    after = made_run(tmp_path / "d", [block], mode="open")
    info = after.read_info()
    info["load"]["blocks"][0]["measured_s"] /= 4
    info["load"]["blocks"][0]["level"] *= 4  # all that was due was sent, three quarters of it too late
    after.write_info(info)
    said = found(after).verdict
    assert (said.state, said.client_bound) == ("INVALID", False)
    assert said.reasons[0].startswith("40 of 160 requests/s asked were sent")


def test_a_load_held_back_by_limits_is_not_client_bound_and_keeps_its_speeds(tmp_path: Path) -> None:
    run = made_run(tmp_path / "a", [replace(GOOD, in_flight=2.0, starved_s=9.0)], change=every(1, wait_s=1.0))
    assert found(run).verdict.client_bound  # nobody says that there was a limit
    info = run.read_info()
    info["sessions"][0]["time_lost_s"] = {"tokens/min": 0.5, "requests/min": 9.0}
    run.write_info(info)
    said = found(run)
    assert (said.verdict.state, said.verdict.client_bound, said.exit_code) == ("INVALID", False, 6)
    assert said.verdict.reasons[0] == "held back by limits (requests/min): 2 in flight of 8 asked"
    assert said.figures.spreads
    assert said.figures.system.output_tokens_per_s
    info["load"]["blocks"][0]["cpu_s"] = info["load"]["blocks"][0]["measured_s"]
    run.write_info(info)
    assert found(run).verdict.client_bound


def test_an_open_loop_that_is_full_names_its_bound(tmp_path: Path) -> None:
    job = {"load": {"max_in_flight": 5}}
    run = made_run(tmp_path / "a", [MadeBlock(level=40, rows=800, unit="requests/s", in_flight=4.9)], job=job)
    info = run.read_info()
    block = info["load"]["blocks"][0]
    block["measured_s"] /= 4
    block["level"] *= 4
    run.write_info(info)
    said = found(run)
    assert said.verdict.reasons[0] == (
        "40 of 160 requests/s asked were sent on time: max_in_flight 5 is too low or the server too slow"
    )
    assert said.figures.spreads
    block["in_flight"] = 2.0
    run.write_info(info)
    assert found(run).verdict.reasons[0].endswith("were sent on time, 2 in flight of max_in_flight 5")


def test_of_several_levels_the_worst_value_is_told(tmp_path: Path) -> None:
    def late(row: dict[str, Any], number: int) -> None:
        row["sched_lag_s"] = 3.0 if row["load_level"] == 60 else 0.02

    blocks = [MadeBlock(level=level, rows=100, unit="requests/s") for level in (20.0, 60.0)]
    said = found(made_run(tmp_path / "a", blocks, mode="open", change=late)).verdict
    assert "at 60 requests/s: sent 3.0 s behind schedule (p99) (also at 20)" in said.reasons


def test_one_client_bound_level_makes_a_ladder_invalid_and_the_others_keep_their_figures(tmp_path: Path) -> None:
    blocks = [GOOD, replace(GOOD, level=64, overhead_s=(0.02, 0.1))]
    said = found(made_run(tmp_path / "run", blocks))
    assert said.verdict.state == "INVALID"
    assert said.verdict.reasons[0].startswith("at 64 in flight: ")
    assert [verdict.state for verdict in said.levels] == ["VALID", "INVALID"]
    good, bad = said.figures.levels
    assert good.spreads
    assert bad.spreads is None
    assert said.exit_code == 6


def test_nothing_measured_is_invalid(tmp_path: Path) -> None:
    assert verdict(tmp_path, replace(GOOD, complete=False))[0] == "INVALID"
    assert found(made_batch(tmp_path / "b", rows=10, block=MadeBlock(failed=10))).verdict.state == "INVALID"


def test_a_batch_is_never_invalid_for_its_client(tmp_path: Path) -> None:
    """Not calibrated, slowed by the account's limit, on a busy client: its headline is by the server's clock."""
    run = made_batch(tmp_path / "a", rows=200)
    info = run.read_info()
    info["sessions"][0]["cpu_s"] = 2 * info["sessions"][0]["elapsed_s"]
    info["sessions"][0]["time_lost_s"] = {"requests/min": 100.0}
    run.write_info(info)
    said = found(run)
    assert said.verdict.state == "SUSPECT"
    assert "client CPU" in said.verdict.reasons[0]
    assert said.figures.spreads
    assert said.exit_code == 0
    assert found(made_batch(tmp_path / "b", rows=200)).verdict.state == "VALID"
