"""What is read of a run, and what is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cbatch.errors import JournalError
from cbatch.report.evidence import NAMES, read
from cbatch.report.figures import READ
from tests.made_runs import MadeBlock, made_batch, made_run


def test_warm_ups_and_blocks_without_an_end_are_counted_and_not_read(tmp_path: Path) -> None:
    blocks = [MadeBlock(rows=20, warmup_rows=3), MadeBlock(rows=30, warmup_rows=4, complete=False)]
    found = read(made_run(tmp_path / "a", blocks))
    assert (found.rows.num_rows, found.warmup_rows, found.incomplete_rows) == (20, 7, 30)
    assert [block.number for block in found.measured] == [0]


def test_a_batch_is_read_whole(tmp_path: Path) -> None:
    found = read(made_batch(tmp_path / "a", rows=40, models=("a", "b"), block=MadeBlock(failed=4)))
    assert (found.rows.num_rows, found.load) == (80, None)
    assert found.failures == {"server": (8, "500: something broke")}
    assert found.is_("model", "a").sum() == 40
    assert found.is_("model", "nobody").sum() == 0
    assert found.tally("model", found.is_("status", "ok")) == {"a": 36, "b": 36}


def test_a_number_that_was_not_measured_is_nan_and_no_value(tmp_path: Path) -> None:
    found = read(made_batch(tmp_path / "a", rows=40, block=MadeBlock(failed=4)))
    assert np.isnan(found.numbers("completion_tokens")).sum() == 4
    assert len(found.values("completion_tokens")) == 36
    assert list(found.values("latency_s")) == sorted(found.values("latency_s"))
    assert not len(found.values("ttft_s"))
    assert (found.ended_at() - found.sent_at())[found.is_("status", "ok")] == pytest.approx(
        found.numbers("latency_s")[found.is_("status", "ok")], abs=1e-5
    )


def test_a_prompt_that_came_from_the_cache_the_second_time_is_counted(tmp_path: Path) -> None:
    def cache(row: dict[str, object], number: int) -> None:
        row["cached_tokens"] = 64 if number >= 20 else 0

    run = made_run(tmp_path / "a", [MadeBlock(rows=50, warmup_rows=0, prompts=10)], change=cache)
    assert read(run).repeated_cached == 30


def test_a_run_that_no_one_runs_any_more_was_killed(tmp_path: Path) -> None:
    assert read(made_batch(tmp_path / "a", rows=3, state="running")).state == "killed"
    assert read(made_batch(tmp_path / "b", rows=3)).state == "finished"


def test_a_part_of_an_older_version_has_no_columns_of_this_one(tmp_path: Path) -> None:
    run = made_batch(tmp_path / "a", rows=10)
    old = pq.read_table(run.parts[0]).drop_columns(["tainted", "load_block", "load_level", "load_phase", "net_s"])
    pq.write_table(old, run.parts[0])
    found = read(run)
    assert found.rows.num_rows == 10
    assert np.isnan(found.numbers("net_s")).all()


def test_a_damaged_part_says_what_to_do(tmp_path: Path) -> None:
    run = made_batch(tmp_path / "a", rows=10)
    run.parts[0].write_bytes(b"nothing")
    with pytest.raises(JournalError, match="part-00000") as caught:
        read(run)
    assert "verify" in str(caught.value.hint)


def test_only_what_is_needed_is_read(tmp_path: Path) -> None:
    found = read(made_batch(tmp_path / "a", rows=10), also=("id",), only=("status", "latency_s"))
    assert set(found.rows.column_names) >= {"status", "latency_s", "id"}
    assert "prompt_tokens" not in found.rows.column_names
    assert set(READ) <= set(NAMES)
