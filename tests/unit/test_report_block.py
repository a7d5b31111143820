"""The block to paste: what it says, and that it fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cbatch.cli import invoke
from cbatch.report.block import LINES, WIDTH, lines, markdown, sparkline
from cbatch.report.evidence import read
from cbatch.report.findings import find
from cbatch.rundir import RunDir
from tests.made_runs import MadeBlock, made_batch, made_run


def block(run: RunDir, width: int | None = WIDTH) -> list[str]:
    evidence = read(run)
    return lines(evidence, find(evidence), width)


def bad(row: dict[str, Any], number: int) -> None:
    """Everything at once that makes a block long."""
    if row["status"] == "ok":
        row["finish_reason"] = ("stop", "length", "tool_calls", "content_filter")[number % 4]
        row["tainted"] = number % 5 == 0
        row["client_tokens_per_s"] = None if number % 3 == 0 else row["client_tokens_per_s"] * 0.5
        row["cached_tokens"] = 64
        row["server_tokens_per_s"] *= 1 - number / 5_000
    else:
        row["error_kind"] = ("server", "timeout", "connection", "truncated")[number % 4]
        row["error_message"] = "x" * 300


GATES = [f"ttft_s p{n} < 1ms" for n in range(50, 60)]
RUNS = {
    "one level": [MadeBlock(level=32, rows=300, repeat=n) for n in range(6)],
    "a ladder": [MadeBlock(level=float(4**n), rows=100) for n in range(6)],
    "a long ladder of two models": [
        MadeBlock(level=float(2**n), model=m, rows=60) for n in range(8) for m in ("llama-4-scout-17b-16e", "b")
    ],
    "all that can be wrong": [
        MadeBlock(level=32, rows=300, failed=40, in_flight=29, starved_s=9, loop_lag_s=(0.1, 0.2), rate_limited=99),
        MadeBlock(level=32, rows=30, complete=False),
    ],
    "a client at its end": [MadeBlock(level=512, rows=300, cpu_share=1.0)],
    "an open loop": [MadeBlock(level=30, rows=300, unit="requests/s")],
    "nothing": [MadeBlock(complete=False)],
}


@pytest.mark.parametrize("blocks", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("gates", [[], GATES], ids=["", "gates"])
def test_a_block_is_at_most_25_lines_of_100_columns(tmp_path: Path, blocks: list[MadeBlock], gates: list[str]) -> None:
    run = made_run(tmp_path / "a-run-with-a-long-name", blocks, change=bad, job={"gates": gates})
    out = block(run)
    assert len(out) <= LINES
    assert max(map(len, out)) <= WIDTH
    assert out[2].split()[0] in ("VALID", "SUSPECT", "INVALID")


def test_the_third_line_is_the_verdict_and_what_it_is_based_on(tmp_path: Path) -> None:
    out = block(made_run(tmp_path / "a", [MadeBlock(rows=100, overhead_s=(0.0003, 0.0021))]))
    assert out[2].startswith("VALID  ")
    assert "client +0.3 ms p50 +2.1 p99 (calibrated)" in out[2]
    assert "no drift (p=" in out[2]
    batch = block(made_batch(tmp_path / "b", rows=20))
    assert "client not calibrated" in batch[2]
    assert "drift not tested (n<60)" in batch[2]


def test_below_its_floor_no_percentile_is_printed(tmp_path: Path) -> None:
    few = "\n".join(block(made_batch(tmp_path / "a", rows=100)))
    assert "n<662" in few
    assert "n<64" not in few
    many = "\n".join(block(made_batch(tmp_path / "b", rows=700)))
    assert "n<" not in many


def test_a_client_bound_run_names_no_speed(tmp_path: Path) -> None:
    text = "\n".join(block(made_run(tmp_path / "a", [MadeBlock(cpu_share=0.99)])))
    assert "client-bound: no model speed" in text
    assert "tok/s" not in text
    assert "req/s" not in text


def test_a_ladder_has_a_line_per_level(tmp_path: Path) -> None:
    blocks = [MadeBlock(level=level, rows=700, overhead_s=(0.1, 0.1) if level == 64 else None) for level in (1, 8, 64)]
    out = block(made_run(tmp_path / "a", blocks))
    assert next(line for line in out if line.lstrip().startswith("in flight")).split()[:3] == ["in", "flight", "true"]
    assert any(line.split()[:2] == ["8", "8"] for line in out)
    assert any(line.split() == ["64!", "64", "client-bound:", "no", "model", "speed"] for line in out)


def test_what_is_left_out_and_a_kill_are_said(tmp_path: Path) -> None:
    blocks = [MadeBlock(rows=20, warmup_rows=3), MadeBlock(rows=30, complete=False)]
    out = block(made_run(tmp_path / "a", blocks, state="running"))
    assert "state killed" in out[1]
    assert out[-1] == "left out  8 requests of warm-ups ($0.001), 30 requests of 1 block that did not come to an end…"


def test_what_a_server_says_cannot_move_the_cursor(tmp_path: Path) -> None:
    def rude(row: dict[str, Any], number: int) -> None:
        if row["status"] == "error":
            row["error_message"] = "\x1b[2J\x07 gone"

    text = "\n".join(block(made_batch(tmp_path / "a", rows=20, block=MadeBlock(failed=1), change=rude)))
    assert "\x1b" not in text
    assert "\\x1b[2J" in text


def test_a_gate_that_was_missed_stands_first(tmp_path: Path) -> None:
    gates = ["errors < 1%", "latency_s p50 < 1ms", "ttft_s p95 < 1"]
    out = [line for line in block(made_batch(tmp_path / "a", rows=50, job={"gates": gates})) if line.startswith("gate")]
    assert ["MISSED" in out[0], "NOT JUDGED" in out[1], out[2].endswith("ok")] == [True, True, True]


def test_markdown_has_a_table_that_github_draws(tmp_path: Path) -> None:
    evidence = read(made_run(tmp_path / "a", [MadeBlock(rows=100, failed=3)]))
    out = markdown(evidence, find(evidence))
    head = next(n for n, line in enumerate(out) if line.startswith("|"))
    widths = {line.replace("\\|", "").count("|") for line in out[head:] if line.startswith("|")}
    assert len(widths) == 1
    assert out[head + 1].startswith("| --- | ---: |")
    assert any(line.startswith("**SUSPECT** ") for line in out)


def test_bars_start_at_zero() -> None:
    assert sparkline([100.0, 99.0, 101.0]) == "███"
    assert sparkline([0.0, None, 8.0]) == "▁ █"
    assert sparkline([None, None]) == ""


def test_the_command_exits_with_what_was_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batch, load = made_batch(tmp_path / "a", rows=50).path, made_run(tmp_path / "b", [MadeBlock(cpu_share=1)]).path
    assert invoke(["report", str(batch)]) == 0
    assert invoke(["report", str(batch), "--slo", "latency_s p50 < 1ms"]) == 5
    assert invoke(["report", str(load)]) == 6
    capsys.readouterr()
    assert invoke(["report", str(load), "--json"]) == 6
    said = json.loads(capsys.readouterr().out)
    assert said["spreads"] is None
    assert said["reason"].startswith("client-bound: ")
    assert said["verdict"]["state"] == "INVALID"
    assert said["levels"][0]["verdict"]["client_bound"] is True
    assert invoke(["report", str(batch), "--slo", "ttft < 1"]) == 2
    assert "did you mean ttft_s?" in capsys.readouterr().err


def test_json_has_every_figure_with_n_and_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made_run(tmp_path / "a", [MadeBlock(rows=100, repeat=n) for n in range(3)])
    assert invoke(["report", str(run.path), "--json", "--slo", "errors < 1%"]) == 0
    said = json.loads(capsys.readouterr().out)
    spread = said["levels"][0]["spreads"]["ttft_s"]
    assert (spread["n"], spread["unit"]) == (300, "blocks")
    assert spread["low"] < spread["p50"] < spread["high"]
    assert spread["certified"]["p99"] is None
    assert said["gates"][0]["passed"] is True
    assert (said["recipe"], said["metrics_version"], said["exit_code"]) == ("f" * 64, 1, 0)
