"""The block to paste: what it says, and that it fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cbatch.cli import invoke
from cbatch.report.block import LINES, WIDTH, lines, markdown, sparkline
from cbatch.report.evidence import read
from cbatch.report.findings import as_json, find
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
    assert out[-1] == "left out  8 requests of warm-ups ($0.001), 30 requests of 1 incomplete block ($0.004)"


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


def test_only_a_terminal_cuts_and_never_within_a_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def long(row: dict[str, Any], number: int) -> None:
        if row["status"] == "error":
            row["error_message"] = "word 1,234 " * 30

    run = made_batch(tmp_path / "a", rows=50, block=MadeBlock(failed=1), change=long)
    cut, whole = (next(line for line in block(run, width) if line.startswith("failed  ")) for width in (WIDTH, None))
    assert len(cut) <= WIDTH
    assert cut.removesuffix("…").split() == whole.split()[: len(cut.split())]
    assert whole.count("1,234") == 30
    assert invoke(["report", str(run.path)]) == 0
    assert whole in capsys.readouterr().out


def test_the_number_of_undefined_speeds_fits(tmp_path: Path) -> None:
    def one_read(row: dict[str, Any], number: int) -> None:
        row["server_prefill_tokens_per_s"] = 20_000.0 + number
        if number == 0:
            row["client_tokens_per_s"] = None

    out = block(made_batch(tmp_path / "a", rows=1_319, stream=True, change=one_read))
    assert any(line.endswith("1,318 (1 undefined)") for line in out)


def test_a_search_names_the_highest_load_that_is_valid(tmp_path: Path) -> None:
    blocks = [MadeBlock(level=level, rows=700, overhead_s=(0.02, 0.1) if level == 64 else None) for level in (32, 64)]
    trials = [{"level": float(level), "block": n, "passed": True, "why": ""} for n, level in enumerate((32, 64))]
    search = {"best": 64.0, "unit": "in flight", "slo": ["ttft_s p95 < 1"], "why": "the highest", "trials": trials}
    run = made_run(tmp_path / "a", blocks, mode="search", load={"search": search})
    out = block(run)
    said = [line.removeprefix("search    ") for line in out if line.startswith("search")]
    assert said[0] == "32 in flight is the highest valid load that meets ttft_s p95 < 1"
    assert said[1] == "64 in flight passed too, but the client was the bottleneck there"
    assert out[2].startswith("INVALID  at 64 in flight: client overhead")
    evidence = read(run)
    assert as_json(evidence, find(evidence))["load"]["search"]["best_valid"] == 32


def test_why_a_load_missed_has_one_unit(tmp_path: Path) -> None:
    trials = [{"level": 8.0, "block": 0, "passed": False, "why": "x"}]
    why = "8 in flight: ttft_s p95 < 1ms: 0.02081"
    search = {"best": None, "unit": "in flight", "slo": ["ttft_s p95 < 1ms"], "why": why, "trials": trials}
    out = block(made_run(tmp_path / "a", [MadeBlock()], mode="search", load={"search": search}))
    assert [line.removeprefix("search    ") for line in out if line.startswith("search")] == [
        "no load meets ttft_s p95 < 1ms",
        "8 in flight: ttft_s p95 < 1ms: 20.8 ms",
    ]


def test_an_open_ladder_shows_what_waited_from_its_schedule(tmp_path: Path) -> None:
    def late(row: dict[str, Any], number: int) -> None:
        row["response_s"] = row["latency_s"] + (2.0 if row["load_level"] == 80 else 0.0)

    blocks = [MadeBlock(level=level, rows=100, unit="requests/s") for level in (20.0, 80.0)]
    waited = block(made_run(tmp_path / "a", blocks, mode="open", change=late))
    head = next(n for n, line in enumerate(waited) if line.startswith("requests/s"))
    assert "requests/s  in flight  req/s" in waited[head]
    assert "resp p50" in waited[head]
    assert any(cell.startswith("2,1") for cell in waited[head + 2].split())
    on_time = block(made_run(tmp_path / "b", blocks, mode="open"))
    assert "total p50" in on_time[head]


def test_a_ladder_of_two_models_is_not_cut(tmp_path: Path) -> None:
    models = ("llama-4-scout-17b-16e-instruct", "b")
    run = made_run(tmp_path / "a", [MadeBlock(level=n, model=m, rows=700) for m in models for n in (8.0, 512.0)])
    assert max(map(len, block(run, None))) <= WIDTH
    assert models[0] in block(run)


def test_a_run_stopped_in_its_first_block_says_what_is_left_out_and_what_it_cost(tmp_path: Path) -> None:
    out = block(made_run(tmp_path / "a", [MadeBlock(rows=100, warmup_rows=0, complete=False)], state="stopped"))
    assert out[2] == "INVALID  nothing was measured: 1 block did not come to an end"
    assert any("cost $0.00 of what was measured" in line for line in out)
    assert out[-1].startswith("left out  100 requests of 1 incomplete block ($0.01")


def test_a_load_run_has_no_rates_of_the_whole(tmp_path: Path) -> None:
    """Other levels and repeats lie between the blocks of a level."""
    evidence = read(made_run(tmp_path / "a", [MadeBlock(level=n, rows=100) for n in (1.0, 8.0, 1.0, 8.0)]))
    for level in as_json(evidence, find(evidence))["levels"]:
        system = level["system"]
        assert [system[f"{name}_whole"] for name in ("output_tokens_per_s", "completed_per_s", "in_flight")] == [
            None
        ] * 3
    assert not any("whole" in line for line in block(made_run(tmp_path / "b", [MadeBlock(rows=100)])))
