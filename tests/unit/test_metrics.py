"""What Prometheus is told: the counts of this session, in its text format, and no text of anybody's."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cbatch.metrics import Metrics
from cbatch.schema import COLUMN_INDEX, COLUMNS
from cbatch.session import Activity, OnTheWire, Progress

MODEL = "gpt-oss-120b"


def row(**values: Any) -> list[Any]:
    """An answered prompt, with what is changed about it."""
    given: dict[str, Any] = {
        "id": "secret-id",
        "model": MODEL,
        "status": "ok",
        "text": "secret answer",
        "input": '{"question": "secret prompt"}',
        "prompt_tokens": 100,
        "cached_tokens": 64,
        "completion_tokens": 200,
        "reasoning_tokens": 50,
        "cost_usd": 0.25,
        "latency_s": 0.4,
        "ttft_s": 0.12,
        "server_tokens_per_s": 2_000.0,
    }
    out: list[Any] = [None] * len(COLUMNS)
    for name, value in (given | values).items():
        out[COLUMN_INDEX[name]] = value
    return out


def failed(kind: str) -> list[Any]:
    measured = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "cost_usd", "latency_s")
    nothing = dict.fromkeys((*measured, "ttft_s", "server_tokens_per_s", "text"))
    return row(status="error", error_kind=kind, error_message="secret message", **nothing)


def samples(metrics: Metrics) -> dict[str, float]:
    """Every sample as `name{label="value"}` -> value, read as Prometheus would read the page."""
    found = {}
    for family in text_string_to_metric_families(metrics.page().decode()):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()) if name != "model")
            found[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
    return found


def test_rows_are_counted_by_what_became_of_them() -> None:
    metrics = Metrics(Progress())
    for one in (row(), row(cost_usd=None), failed("timeout"), failed("timeout"), failed("server")):
        metrics.observe(one)
    found = samples(metrics)
    assert found["cbatch_prompts_total{status=ok}"] == 2
    assert found["cbatch_prompts_total{status=error}"] == 3
    assert found["cbatch_errors_total{kind=timeout}"] == 2
    assert found["cbatch_errors_total{kind=server}"] == 1
    assert found["cbatch_tokens_total{kind=prompt}"] == 200
    assert found["cbatch_tokens_total{kind=completion}"] == 400
    assert found["cbatch_cached_tokens_total"] == 128
    assert found["cbatch_reasoning_tokens_total"] == 100
    assert found["cbatch_cost_usd_total"] == 0.25
    assert found["cbatch_unpriced_total"] == 1


def test_an_answer_that_was_paid_and_cannot_be_used_counts_its_tokens_and_not_its_time() -> None:
    metrics = Metrics(Progress())
    metrics.observe(row(status="error", error_kind="invalid_output"))
    found = samples(metrics)
    assert found["cbatch_tokens_total{kind=completion}"] == 200
    assert found["cbatch_cost_usd_total"] == 0.25
    assert found["cbatch_latency_seconds_count"] == 0


def test_times_and_speeds_are_histograms_of_the_answers_that_have_them() -> None:
    """A bucket counts all up to its bound, the bound itself included."""
    metrics = Metrics(Progress())
    for latency_s, ttft_s in ((0.04, None), (0.5, 0.1), (0.51, None), (1_000.0, 0.11)):
        metrics.observe(row(latency_s=latency_s, ttft_s=ttft_s, server_tokens_per_s=None))
    found = samples(metrics)
    assert found["cbatch_latency_seconds_bucket{le=0.05}"] == 1
    assert found["cbatch_latency_seconds_bucket{le=0.5}"] == 2
    assert found["cbatch_latency_seconds_bucket{le=0.75}"] == 3
    assert found["cbatch_latency_seconds_bucket{le=120.0}"] == 3
    assert found["cbatch_latency_seconds_bucket{le=+Inf}"] == found["cbatch_latency_seconds_count"] == 4
    assert found["cbatch_latency_seconds_sum"] == pytest.approx(1_001.05)
    assert found["cbatch_ttft_seconds_bucket{le=0.1}"] == 1
    assert found["cbatch_ttft_seconds_count"] == 2
    assert found["cbatch_server_tokens_per_second_count"] == 0


async def test_what_goes_on_is_read_when_it_is_asked_for() -> None:
    progress = Progress(total=10, activity=Activity())
    metrics = Metrics(progress)
    assert samples(metrics)["cbatch_requests_total"] == 0
    task = asyncio.current_task()
    assert task is not None
    progress.activity = Activity(
        sent=7,
        retries=3,
        rate_limited=2,
        backing_off=1,
        pace_wait_s=1.5,
        backoff_s=2.5,
        hedged=4,
        server_queue_s=0.125,
        on_the_wire={task: OnTheWire("secret-id", 0.0)},
    )
    progress.left_by_model = {MODEL: 6}
    found = samples(metrics)
    assert found["cbatch_requests_total"] == 7
    assert found["cbatch_retries_total"] == 3
    assert found["cbatch_rate_limited_total"] == 2
    assert found["cbatch_hedged_total"] == 4
    assert found["cbatch_backing_off"] == 1
    assert found["cbatch_in_flight"] == 1
    assert found["cbatch_job_prompts"] == 10
    assert found["cbatch_prompts_left"] == 6
    assert found["cbatch_waiting_seconds_total{cause=rate_limit}"] == 1.5
    assert found["cbatch_waiting_seconds_total{cause=backoff}"] == 2.5
    assert found["cbatch_waiting_seconds_total{cause=server_queue}"] == 0.125


def test_every_model_has_its_own_series_from_the_start() -> None:
    """A counter that begins with its first increase loses that one in every rate."""
    metrics = Metrics(Progress(left_by_model={"a": 1, "b": 1}))
    metrics.observe(row(model="a"))
    page = metrics.page().decode()
    assert 'cbatch_prompts_total{model="a",status="ok"} 1.0' in page
    assert 'cbatch_prompts_total{model="b",status="ok"} 0.0' in page
    assert 'cbatch_latency_seconds_count{model="b"} 0.0' in page


def test_other_gauges_are_read_where_the_caller_says_and_left_out_while_unknown() -> None:
    lag: list[float] = []
    gauges = {
        "in_flight_limit": ("Requests allowed in flight", lambda: 32.0),
        "loop_lag_seconds": ("How late the event loop is", lambda: lag[0] if lag else None),
    }
    metrics = Metrics(Progress(), gauges)
    assert samples(metrics)["cbatch_in_flight_limit"] == 32
    assert "cbatch_loop_lag_seconds" not in samples(metrics)
    lag.append(0.002)
    assert samples(metrics)["cbatch_loop_lag_seconds"] == 0.002


def test_names_are_as_prometheus_wants_them_and_nobodys_text_is_on_the_page() -> None:
    metrics = Metrics(Progress(samples={"server": "secret message"}))
    for one in (row(), failed("server")):
        metrics.observe(one)
    page = metrics.page().decode()
    assert "secret" not in page
    families = re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE)
    assert len(families) == len(dict(families)) > 15
    for name, kind in families:
        assert re.fullmatch(r"cbatch_[a-z_]+", name)
        assert name.endswith("_total") == (kind == "counter"), name


def test_a_run_without_the_option_does_not_load_the_library() -> None:
    code = f"import sys; sys.path[:] = {sys.path}; import cbatch.metrics; print('prometheus_client' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code]) == b"False\n"
