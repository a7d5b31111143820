"""The account's limits, against a server that enforces them: no 429 that arithmetic could foresee."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.integration.conftest import JobFolder, Sim, questions, wait_for


def test_a_paced_run_meets_no_429(job: JobFolder, sims: Callable[..., Sim]) -> None:
    """The server allows 1,200 requests/min with nothing to spare at the start, and 64 workers want more."""
    job.sim = sims("--speed", "inf", "--rpm", "1200", "--headers", "none")
    job.rows(questions(60))
    job.settings["limits"] = {"concurrency": 64, "rpm": 1200}
    summary = job.execute().summary
    assert (summary["done"], summary["sent"], summary["rate_limited"]) == (60, 60, 0)
    # 59 gaps of 50 ms: a run that is not paced needs a tenth of this.
    assert summary["elapsed_s"] > 2.9


def test_tokens_per_minute_are_paced_by_what_answers_use(job: JobFolder, sims: Callable[..., Sim]) -> None:
    """Reservations of 3,000 tokens against 100,000/min: 33 at once at most, and no 429 among 60."""
    job.sim = sims("--speed", "10", "--tpm", "100000")
    job.rows(questions(60))
    job.settings["limits"] = {"concurrency": 64, "tpm": 100_000}
    job.settings["params"] = {"max_completion_tokens": 3_000}
    process = job.start()
    wait_for(lambda: job.durable >= 12 or process.ended is not None, "12 rows")
    process.signal(2)
    summary = process.wait().summary
    assert summary["done"] >= 12
    assert summary["rate_limited"] == 0


def test_a_request_that_can_never_fit_fails_here_with_the_numbers(job: JobFolder) -> None:
    job.settings["limits"] = {"tpm": 10_000}
    job.settings["params"] = {"max_completion_tokens": 20_000}
    result = job.execute()
    assert result.code == 3
    assert result.summary["sent"] == job.sim.requests == 0
    message = job.results()[0]["error_message"]
    assert "the limit is 10,000 a minute" in message
    assert "max_completion_tokens" in message


@pytest.mark.parametrize("retry_after", [True, False], ids=["with Retry-After", "without"])
def test_an_untold_limit_loses_no_row(job: JobFolder, sims: Callable[..., Sim], retry_after: bool) -> None:
    """A 429 holds everyone and is not held against the prompt that met it, as long as others get through."""
    job.sim = sims("--speed", "inf", "--rps", "40", *(["--retry-after"] if retry_after else []))
    job.rows(questions(150))
    job.settings["limits"] = {"concurrency": 32}
    job.settings["retry"] = {"attempts": 3}
    result = job.execute()
    assert result.code == 0
    assert result.summary["done"] == 150
    assert result.summary["rate_limited"] > 0
