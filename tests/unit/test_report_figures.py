"""Figures of runs whose truth is known: medians, intervals, rates, windows, drift."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cbatch.report.clock import clock_of
from cbatch.report.evidence import read
from cbatch.report.figures import Figures, figures
from cbatch.report.windows import flight
from cbatch.rundir import RunDir
from tests.made_runs import MadeBlock, made_batch, made_run


def of(run: RunDir) -> Figures:
    return figures(read(run))


def test_percentiles_are_of_the_answers(tmp_path: Path) -> None:
    def numbered(row: dict[str, Any], number: int) -> None:
        row["latency_s"] = (number + 1) / 1_000

    found = (of(made_batch(tmp_path / "a", rows=1_000, change=numbered)).spreads or {})["latency_s"]
    assert found.n == 1_000
    assert [found.p50, found.p90, found.p99] == pytest.approx([0.5005, 0.9001, 0.99001])
    assert (found.low, found.high, found.unit) == (0.469, 0.532, "requests")  # order statistics 469 and 532
    assert found.certified == {
        "p90": pytest.approx(0.922, abs=0.002),
        "p95": pytest.approx(0.965, abs=0.002),
        "p99": 0.998,
        "p99.9": None,
    }


def test_a_speed_is_certified_at_its_slow_end(tmp_path: Path) -> None:
    found = (of(made_batch(tmp_path / "a", rows=700)).spreads or {})["server_tokens_per_s"]
    assert set(found.certified) == {"p10", "p5", "p1", "p0.1"}
    assert found.certified["p1"] is not None
    assert found.certified["p1"] < found.p1 < found.p10 < found.p50


def test_from_three_blocks_on_the_block_is_the_unit(tmp_path: Path) -> None:
    """Blocks that differ by 5 % leave the median of 6 x 400 requests as unsure as 6 blocks are."""
    speeds = [1_900, 2_000, 2_100, 1_950, 2_050, 2_000]
    blocks = [MadeBlock(speed=speed, repeat=n, rows=400) for n, speed in enumerate(speeds)]
    level = of(made_run(tmp_path / "a", blocks)).levels[0]
    spread = (level.spreads or {})["server_tokens_per_s"]
    assert (level.blocks, spread.unit, spread.n) == (6, "blocks", 2_400)
    assert spread.half_width is not None
    assert 0.03 < spread.half_width < 0.06
    two = (of(made_run(tmp_path / "b", blocks[:2])).levels[0].spreads or {})["server_tokens_per_s"]
    assert two.unit == "requests"


def test_levels_and_models_are_kept_apart(tmp_path: Path) -> None:
    blocks = [MadeBlock(model=m, level=level, rows=30) for m in ("a", "b") for level in (1.0, 8.0)]
    found = of(made_run(tmp_path / "a", blocks))
    assert [(level.model, level.level, level.requests) for level in found.levels] == [
        ("a", 1.0, 30),
        ("a", 8.0, 30),
        ("b", 1.0, 30),
        ("b", 8.0, 30),
    ]
    assert found.is_ladder
    assert found.spreads == {}


def test_rates_of_a_steady_load_are_what_littles_law_says(tmp_path: Path) -> None:
    """8 in flight at 114 ms each: 70 a second."""
    found = of(made_run(tmp_path / "a", [MadeBlock(level=8, rows=2_000)]))
    latency = (found.spreads or {})["latency_s"].mean + 0.0005
    assert found.system.completed_per_s == pytest.approx(8 / latency, rel=0.02)
    assert found.system.output_tokens_per_s == pytest.approx(128 * 8 / latency, rel=0.03)
    assert found.system.in_flight == 8


def test_a_block_without_a_warm_up_counts_what_ended_in_its_window(tmp_path: Path) -> None:
    def window(row: dict[str, Any], number: int) -> None:
        row["latency_s"] = 1.0
        row["tail_s"] = 0.0

    run = made_run(tmp_path / "a", [MadeBlock(level=10, rows=30, warmup_rows=0)], change=window)
    info = run.read_info()
    block = info["load"]["blocks"][0]
    del block["completed"]  # as runs of earlier versions have it
    block["measured_s"] = 1.0  # all were sent in 0.4 s; they end after 1.0 to 1.4 s
    run.write_info(info)
    found = of(run)
    assert found.system.completed_per_s == pytest.approx(10)


@pytest.mark.parametrize("counted", [True, False])
def test_a_load_that_cannot_be_kept_up_has_the_rate_that_was_there(tmp_path: Path, counted: bool) -> None:
    """600 are due in a window in which 200 are sent and 190 end: what comes after it is not of it."""
    run = made_run(tmp_path / "a", [MadeBlock(level=10, rows=600, unit="requests/s")], mode="open")
    info = run.read_info()
    block = info["load"]["blocks"][0]
    seconds = block["measured_s"] = block["measured_s"] / 3
    block |= {"completed": 190, "completed_tokens": 19_000} if counted else {"completed": None}
    run.write_info(info)
    system = of(run).system
    assert system.completed_per_s == pytest.approx((190 if counted else 200) / seconds, rel=0.03)
    assert system.output_tokens_per_s == pytest.approx((19_000 if counted else 128 * 200) / seconds, rel=0.05)


def test_in_flight_is_the_integral() -> None:
    found = flight(np.array([0.0, 0.0, 1.0, np.nan]), np.array([2.0, 1.0, 3.0, 5.0]))
    assert found.mean(0.0, 3.0) == pytest.approx(5 / 3)
    assert found.mean(2.0, 3.0) == pytest.approx(1.0)
    assert found.steady(2.0) == (0.0, 2.0)
    assert flight(np.empty(0), np.empty(0)).steady(None) is None


def test_the_steady_window_leaves_out_start_and_end(tmp_path: Path) -> None:
    """Twenty at once, but one long straggler: steady until the others have ended."""

    def straggler(row: dict[str, Any], number: int) -> None:
        if number == 399:
            row["latency_s"] = 30.0

    found = of(made_batch(tmp_path / "a", rows=400, concurrency=20, change=straggler)).system
    assert found.steady_s < 3
    assert found.whole_s > 30
    assert found.completed_per_s is not None
    assert found.completed_per_s_whole is not None
    assert found.completed_per_s > 5 * found.completed_per_s_whole


def test_the_pause_before_a_resumed_session_is_no_time_of_the_run(tmp_path: Path) -> None:
    """The second half of 400 an hour later: the same rates, window, in-flight and sparklines as without the pause."""
    whole = of(made_batch(tmp_path / "a", rows=400, concurrency=8))
    middle: list[int] = []

    def resumed(row: dict[str, Any], number: int) -> None:
        if number >= 200:
            middle.append(row["started_at"])
            row["started_at"] += 3_600_000_000

    run = made_batch(tmp_path / "b", rows=400, concurrency=8, change=resumed)
    info = run.read_info()
    first = info["sessions"][0] | {"series": None}
    again = datetime.fromtimestamp(min(middle) / 1e6 + 3_600, tz=UTC)
    info["sessions"] = [first, first | {"started_at": again.isoformat()}]
    run.write_info(info)
    found = of(run)
    assert found.system.whole_s == pytest.approx(whole.system.whole_s, rel=0.05)
    assert found.system.completed_per_s == pytest.approx(whole.system.completed_per_s or 0, rel=0.05)
    assert found.system.in_flight == pytest.approx(8, rel=0.05)
    assert None not in found.sparklines["latency_s" if "latency_s" in found.sparklines else "ttft"]
    info["sessions"] = [first]  # within one session waiting is a part of it
    run.write_info(info)
    assert of(run).system.whole_s > 3_600


def test_a_clock_goes_there_and_back() -> None:
    sent, ended = np.array([100.0, 101.0, 500.0]), np.array([101.0, 103.0, 502.0])
    clock = clock_of(sent, ended, [100.0, 500.0])
    assert clock(sent).tolist() == [0.0, 1.0, 3.0]
    assert clock(ended).tolist() == [1.0, 3.0, 5.0]
    assert (clock.epoch(2.0), clock.epoch(4.0)) == (102.0, 501.0)
    assert (clock.epoch(3.0, ending=True), clock.epoch(3.0)) == (103.0, 500.0)


def test_a_concurrency_that_never_was_is_no_steady_window(tmp_path: Path) -> None:
    """1,000 asked and the rate limit let 8 through: steady is what there was."""
    job = {"name": "a", "model": ["m"], "limits": {"concurrency": 1_000}}
    found = of(made_batch(tmp_path / "a", rows=400, concurrency=8, job=job)).system
    assert found.in_flight == pytest.approx(8, rel=0.01)


def test_drift_is_found_with_its_size_and_not_where_none_is(tmp_path: Path) -> None:
    def slower(row: dict[str, Any], number: int) -> None:
        if row["status"] == "ok":
            row["server_tokens_per_s"] *= 1 - 0.2 * number / 600

    level = of(made_batch(tmp_path / "a", rows=600, change=slower)).levels[0]
    found = level.health.drifts[0]
    assert found.measure == "server_tokens_per_s"
    assert found.p < 0.001
    assert found.change == pytest.approx(-0.2, abs=0.04)
    still = of(made_batch(tmp_path / "b", rows=600)).levels[0].health.drifts[0]
    assert still.p > 0.05


def test_no_drift_is_looked_for_in_a_few_rows(tmp_path: Path) -> None:
    assert of(made_batch(tmp_path / "a", rows=59)).levels[0].health.drifts == []


def test_sums_are_of_all_rows_and_money_is_unknown_without_a_price(tmp_path: Path) -> None:
    def unpriced(row: dict[str, Any], number: int) -> None:
        row["cost_usd"] = None

    found = of(made_batch(tmp_path / "a", rows=50, block=MadeBlock(failed=5)))
    assert (found.rows, found.ok, found.failed, found.prompt_tokens) == (50, 45, 5, 4_500)
    assert found.usd_per_1k_requests == pytest.approx(1_000 * (found.cost_usd or 0) / 45)
    free = of(made_batch(tmp_path / "b", rows=50, change=unpriced))
    assert (free.cost_usd, free.unpriced, free.usd_per_1k_requests) == (None, 50, None)


def test_a_client_speed_that_is_undefined_is_counted(tmp_path: Path) -> None:
    def one_read(row: dict[str, Any], number: int) -> None:
        if number < 7:
            row["client_tokens_per_s"] = None

    found = (of(made_batch(tmp_path / "a", rows=50, stream=True, change=one_read)).spreads or {})["client_tokens_per_s"]
    assert (found.n, found.undefined) == (43, 7)


def test_sparklines_follow_the_run(tmp_path: Path) -> None:
    blocks = [MadeBlock(level=level, rows=300, ttft_s=ttft) for level, ttft in ((1.0, 0.05), (8.0, 0.4))]
    cells = of(made_run(tmp_path / "a", blocks)).sparklines
    first, last = cells["ttft"][0], cells["ttft"][-1]
    assert len(cells["in_flight"]) == len(cells["ttft"]) == 12
    assert first is not None
    assert last is not None
    assert last > 5 * first


def test_nothing_is_a_run_too(tmp_path: Path) -> None:
    found = of(made_batch(tmp_path / "a", rows=0))
    assert (found.rows, found.levels, found.spreads) == (0, [], {})
