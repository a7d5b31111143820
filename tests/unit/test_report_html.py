"""The HTML report: what is left out is said, what is drawn is what was measured, and no text becomes markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbatch.report import html, plots
from cbatch.report.block import lines
from cbatch.report.curves import steps
from cbatch.report.evidence import Evidence, read
from cbatch.report.findings import Findings, find
from cbatch.report.phases import phases, typical
from cbatch.report.sampling import flow, line, rounded, shares, spread, thin
from cbatch.rundir import RunDir
from tests.made_runs import START, MadeBlock, made_batch, made_run

finite = st.floats(-1e6, 1e6)
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & 'quoted' \"twice\" <!--"


def seen(run: RunDir) -> tuple[Evidence, Findings]:
    evidence = read(run, also=html.ALSO)
    return evidence, find(evidence)


def page(run: RunDir) -> str:
    evidence, found = seen(run)
    return html.page(evidence, found, lines(evidence, found))


def data(text: str) -> Any:
    """What the page's script is given."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found is not None
    return json.loads(found[1])


def words(text: str) -> str:
    """The page as it is read: without its tags and scripts."""
    text = re.sub(r"<(script|style)\b.*?</\1>", "", text, flags=re.S)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", text)))


def series(text: str, plot: str, name: str) -> list[dict[str, Any]]:
    (found,) = (p for p in data(text)["plots"] if p["name"] == plot)
    return [s for s in found["series"] if s["name"] == name]


# --- few points that draw the same picture


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=500), st.integers(12, 100))
def test_thinning_keeps_the_extremes_and_not_more_than_it_may(points: list[tuple[float, float]], most: int) -> None:
    x, y = np.array(points).T
    kept = thin(x, y, most)
    assert len(kept) == min(len(x), len(set(kept.tolist())))
    assert len(kept) <= max(most, min(len(x), most))
    assert y[kept].max() == y.max()
    assert y[kept].min() == y.min()
    assert (np.diff(x[kept]) >= 0).all()


def test_a_single_slow_request_of_many_is_still_drawn() -> None:
    x, y = np.arange(100_000.0), np.ones(100_000)
    y[54_321] = 9.0
    assert 54_321 in thin(x, y, 2_400)


@given(st.lists(st.lists(finite, min_size=1, max_size=300), min_size=1, max_size=4))
def test_shares_are_those_of_the_values(groups: list[list[float]]) -> None:
    arrays = [np.sort(np.array(group)) for group in groups]
    axis, curves = shares(arrays)
    for group, curve in zip(arrays, curves, strict=True):
        for value, share in zip(axis, curve, strict=True):
            if group[0] <= value <= group[-1]:
                assert share == pytest.approx(np.mean(group <= value))
            else:
                assert np.isnan(share)


spans = st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50), st.integers(0, 1_000)), min_size=1, max_size=50)


@given(spans)
def test_what_flows_is_what_was_there(made: list[tuple[float, float, int]]) -> None:
    """The requests in flight over all time are the sum of their lengths, and no token is lost."""
    start, length, tokens = np.array(made, dtype=float).T
    edges = np.linspace(0.0, 101.0, 37)
    assert (flow(start, start + length, None, edges) * np.diff(edges)).sum() == pytest.approx(length.sum(), abs=1e-6)
    carried = flow(start, start + length, tokens, edges)
    assert (carried * np.diff(edges)).sum() == pytest.approx(tokens.sum(), abs=1e-3)


def test_in_flight_is_counted_in_the_interval_it_was() -> None:
    edges = np.array([0.0, 1.0, 2.0, 3.0])
    start, end = np.array([0.5, 1.0]), np.array([1.5, 2.0])
    assert flow(start, end, None, edges).tolist() == pytest.approx([0.5, 1.5, 0.0])


def test_a_quantile_of_an_interval_needs_its_values() -> None:
    t, y = np.array([0.1, 0.2, 0.3, 1.5]), np.array([3.0, 1.0, 2.0, 9.0])
    assert rounded(spread(t, y, np.array([0.0, 1.0, 2.0]), 0.5, 3)) == [2, None]


def test_the_line_is_not_moved_by_a_quarter_of_wild_points() -> None:
    x = np.arange(400.0)
    y = 0.05 + 0.00004 * x
    y[::4] += np.random.default_rng(1).uniform(0, 5, 100)
    found = line(x, y)
    assert found is not None
    assert found.slope == pytest.approx(0.00004, rel=0.1)
    assert found.base == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize("x", [[5.0] * 50, [1.0, 2.0] * 20, [1.0, 2.0, 3.0]], ids=["one", "two", "few"])
def test_there_is_no_line_through_what_leaves_it_open(x: list[float]) -> None:
    assert line(np.array(x), np.arange(float(len(x)))) is None


def test_numbers_are_short_and_unmeasured_ones_are_null() -> None:
    assert rounded(np.array([1234.5678, 2.0, 0.000123456, np.nan, np.inf])) == [1235, 2, 0.0001235, None, None]


@pytest.mark.parametrize("top", [0.0, 0.003, 1.0, 7.0, 99.9, 100.0, 41_000.0])
def test_an_axis_reaches_over_its_values_in_few_steps(top: float) -> None:
    found = steps(top)
    assert found[0] == 0
    assert found[-1] >= top
    assert 2 <= len(found) <= 7


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0"), (0.0000416, "41.6 µs"), (0.142, "142 ms"), (2.314, "2.31 s"), (75, "75.0 s"), (185, "3 min 5 s")],
)
def test_durations_are_said_as_a_reader_says_them(seconds: float, text: str) -> None:
    assert plots.duration(seconds) == text


# --- where the time went


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_phases_add_up_to_the_time_of_the_request(tmp_path: Path, stream: bool) -> None:
    def change(row: dict[str, Any], number: int) -> None:
        row["attempts_s"] = 0.25 if number % 10 == 0 else 0.0

    evidence, _ = seen(made_batch(tmp_path / "run", rows=100, stream=stream, change=change))
    found = phases(evidence)
    whole = evidence.ended_at() - evidence.numbers("started_at")
    assert found.whole == pytest.approx(whole, abs=2e-6)
    assert ("tail" in found.parts) is stream
    assert "whole" not in found.parts


@pytest.mark.parametrize(("stream", "phase"), [(True, "first"), (False, "whole")], ids=["stream", "whole"])
def test_without_the_servers_clock_a_phase_is_what_the_client_saw(tmp_path: Path, stream: bool, phase: str) -> None:
    def change(row: dict[str, Any], _: int) -> None:
        for name in ("queue", "prompt", "completion", "total", "other"):
            row[f"server_{name}_s"] = None

    evidence, _ = seen(made_batch(tmp_path / "run", rows=20, stream=stream, change=change))
    found = phases(evidence)
    assert phase in found.parts
    assert not {"queue", "prompt", "net", "other"} & set(found.parts)


def test_typical_requests_show_what_slow_ones_wait_for(tmp_path: Path) -> None:
    def change(row: dict[str, Any], number: int) -> None:
        if number % 50 == 0:
            row["server_queue_s"] += 1.0
            row["ttft_s"] += 1.0
            row["latency_s"] += 1.0

    evidence, _ = seen(made_batch(tmp_path / "run", rows=1_000, stream=True, change=change))
    rows = typical(phases(evidence), np.arange(1_000))
    assert rows["median"]["queue"] < 0.01
    assert rows["p99"]["queue"] > 0.9
    assert "p99" not in typical(phases(evidence), np.arange(600))  # too few to say it


# --- the page


class _Balanced(HTMLParser):
    VOID = frozenset({"meta", "link", "br", "img", "line", "circle", "polyline"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID and (not self.open or self.open.pop() != tag):
            self.wrong.append(tag)


RUNS: dict[str, Callable[[Path], RunDir]] = {
    "ten rows": lambda path: made_batch(path, rows=10),
    "one row": lambda path: made_batch(path, rows=1, stream=True),
    "nothing answered": lambda path: made_batch(path, rows=9, block=MadeBlock(failed=9)),
    "no row": lambda path: made_batch(path, rows=0),
    "three models": lambda path: made_batch(path, rows=60, stream=True, models=("a", "b", "c")),
    "a ladder": lambda path: made_run(path, [MadeBlock(level=n) for n in (1.0, 4.0, 16.0)]),
    "open": lambda path: made_run(path, [MadeBlock(level=20.0, unit="requests/s")], mode="open"),
    "client-bound": lambda path: made_run(path, [MadeBlock(overhead_s=(0.02, 0.2))]),
    "never complete": lambda path: made_run(path, [MadeBlock(complete=False)]),
}


@pytest.mark.parametrize("made", RUNS.values(), ids=RUNS)
def test_a_page_is_whole_and_needs_nothing_else(tmp_path: Path, made: Callable[[Path], RunDir]) -> None:
    """Whatever a run holds: tags are balanced, every plot has its place, and only the page's own scripts may run."""
    text = page(made(tmp_path / "run"))
    parser = _Balanced()
    parser.feed(text)
    assert (parser.wrong, parser.open) == ([], [])
    assert sorted(re.findall(r'id="plot-(\w+)"', text)) == sorted(plot["name"] for plot in data(text)["plots"])
    assert re.findall(r"""(?:src|href)=\S*""", re.sub(r"<script\b.*?</script>", "", text, flags=re.S)) == [
        'href="data:,">'
    ]
    assert "url(" not in text
    scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)
    assert allowed is not None
    assert re.findall(r"'sha256-([^']+)'", allowed[1]) == hashes
    assert "default-src 'none'" in allowed[1]
    assert "nan" not in words(text).lower().split()


def test_text_of_users_and_servers_stays_text(tmp_path: Path) -> None:
    """An id, a model's name, a message, the name of the run and of a file cannot open or end an element."""

    def change(row: dict[str, Any], number: int) -> None:
        row["id"] = f"{EVIL}{number}"
        row["request_id"] = EVIL
        if row["status"] == "error":
            row["error_message"] = EVIL
            row["error_kind"] = "server"

    source = {"files": [EVIL], "rows": 1, "sha256": EVIL}
    models = (f"one {EVIL}", f"two {EVIL}")
    run = made_batch(
        tmp_path / "run", rows=20, stream=True, models=models, block=MadeBlock(failed=2), change=change, source=source
    )
    run.write_info(run.read_info() | {"name": EVIL, "endpoint": EVIL, "recipe": EVIL, "cbatch": EVIL})
    text = page(run)
    assert "<script>alert" not in text
    assert "<img" not in text
    assert set(data(text)["groups"]) == set(models)
    assert text.count("</script>") == 3
    parser = _Balanced()
    parser.feed(text)
    assert (parser.wrong, parser.open) == ([], [])


def test_dots_and_shares_are_the_measured_values(tmp_path: Path) -> None:
    run = made_batch(tmp_path / "run", rows=50, stream=True)
    evidence, _ = seen(run)
    text = page(run)
    (dots,) = series(text, "ttft", "one request")
    assert sorted(dots["y"]) == rounded(1000 * evidence.values("ttft_s"))
    (shown,) = series(text, "speed", "server's clock")
    assert shown["x"][0] == rounded(evidence.values("server_tokens_per_s"))[0]
    assert (shown["y"][0], shown["y"][-1]) == (0, 100)


def test_a_page_of_many_requests_is_no_larger_and_says_what_it_left_out(tmp_path: Path) -> None:
    few, many = (page(made_batch(tmp_path / f"{n}", rows=n, stream=True)) for n in (2_000, 8_000))
    assert len(many.encode()) < 1.1 * len(few.encode()) < 500_000
    assert "of 8,000 are drawn" in words(many)
    assert "are drawn" not in words(few)
    assert len(series(many, "ttft", "one request")[0]["x"]) <= plots.DOTS


def test_what_was_not_measured_is_said_in_a_sentence(tmp_path: Path) -> None:
    """Without a stream there is no first token, no client speed and no plot of them."""
    text = page(made_batch(tmp_path / "run", rows=30))
    assert "No time to first token: that needs params.stream: true ." in words(text)
    assert "None has one by the client's clock" in words(text)
    assert "Not calibrated" in words(text)
    assert [plot["name"] for plot in data(text)["plots"]][-1] == "latency_s_by_completion_tokens"
    assert "ttft_s_by_prompt_tokens" not in text


def test_a_client_bound_run_shows_its_verdict_first_and_no_speed(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", [MadeBlock(overhead_s=(0.02, 0.2), rows=400)])
    said = words(page(run))
    assert said.index("INVALID") < said.index("Provenance")
    assert [plot["name"] for plot in data(page(run))["plots"]] == ["in_flight", "loop_lag"]
    assert not {"Output speed", "Percentiles", "Slowest requests", "Where the time went"} & set(
        re.findall(r"<h2>(.*?)</h2>", page(run))
    )
    assert "client-bound" in said
    assert "The client" in said


def test_a_level_that_was_the_clients_is_left_out_of_a_ladder_by_name(tmp_path: Path) -> None:
    blocks = [MadeBlock(level=4.0), MadeBlock(level=8.0), MadeBlock(level=64.0, overhead_s=(0.02, 0.2))]
    text = page(made_run(tmp_path / "run", blocks))
    assert data(text)["groups"] == ["4 in flight", "8 in flight"]
    assert "64 in flight: client-bound" in words(text)


def test_a_ladder_says_its_knee_and_draws_its_gates(tmp_path: Path) -> None:
    blocks = [
        MadeBlock(level=1.0, rows=100),
        MadeBlock(level=8.0, rows=200),
        MadeBlock(level=32.0, rows=300, speed=300.0, ttft_s=0.9),
    ]
    run = made_run(tmp_path / "run", blocks)
    run.write_info(run.read_info() | {"job": {"gates": ["ttft_s p95 < 800ms"]}})
    text = page(run)
    assert "The most throughput per time waited (ringed) is at 8 in flight." in words(text)
    assert '<text class="slo"' in text
    assert "p95 &lt; 800 ms</text>" in text
    assert "dashed: the p90;" in words(text)
    assert "A p99 needs 662 requests at each level." in words(text)
    assert ": time to first token p99" not in text


@pytest.mark.parametrize(
    ("rows", "tail"), [(700, "dashed: the p99;"), (50, "no tail: a level has fewer than 64 requests")]
)
def test_a_ladder_draws_the_tail_it_has_requests_for(tmp_path: Path, rows: int, tail: str) -> None:
    text = page(
        made_run(tmp_path / "run", [MadeBlock(level=level, rows=rows, overhead_s=None) for level in (1.0, 8.0)])
    )
    assert tail in words(text)
    assert ("<polyline class=dashed" in text) == (rows == 700)


def test_percentiles_of_too_few_requests_are_not_printed(tmp_path: Path) -> None:
    said = words(page(made_batch(tmp_path / "run", rows=100, stream=True)))
    assert "n < 662" in said
    assert "n < 64" not in said
    assert "n < 64" in words(page(made_batch(tmp_path / "small", rows=20, stream=True)))


def test_a_pause_between_two_sessions_is_not_drawn(tmp_path: Path) -> None:
    """A run that was resumed an hour later is not an hour of nothing; a wait within a session is shown."""

    def pause(row: dict[str, Any], number: int) -> None:
        if number >= 50:
            row["started_at"] += 3_600 * 1_000_000

    run = made_batch(tmp_path / "run", rows=100, stream=True, change=pause)
    assert max(series(page(run), "ttft", "one request")[0]["x"]) > 3_600
    info = run.read_info()
    resumed = info["sessions"][0] | {"started_at": START.replace(hour=10).isoformat()}
    run.write_info(info | {"sessions": [info["sessions"][0], resumed]})
    text = page(run)
    assert max(series(text, "ttft", "one request")[0]["x"]) < 10
    assert all(len(plot["marks"]) == 1 for plot in data(text)["plots"] if plot["sync"])


def test_failures_have_their_count_status_time_and_one_message(tmp_path: Path) -> None:
    block = MadeBlock(failed=6, refused=3)
    said = words(page(made_batch(tmp_path / "run", rows=90, stream=True, block=block)))
    assert re.search(r"server 6 \(6\.67 %\) 500 2026-11-20 09:12:\d\d .*500: something broke", said)
    assert re.search(r"rate_limited 3 \(3\.33 %\) 429 2026-11-20", said)


def test_the_slowest_requests_are_named_with_where_their_time_went(tmp_path: Path) -> None:
    def change(row: dict[str, Any], number: int) -> None:
        if number == 33:
            row |= {"id": "the slow one", "request_id": "req-slow", "latency_s": row["latency_s"] + 7.0}

    text = page(made_batch(tmp_path / "run", rows=60, stream=True, change=change))
    rows = re.findall(r"<tr><th scope=\"row\" class=\"key\">(.*?)</tr>", text.partition("Slowest requests")[2])
    assert rows[0].startswith("the slow one")
    assert "req-slow" in rows[0]
    assert len([row for row in rows if 'class="stack"' in row]) == 20
