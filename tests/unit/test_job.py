"""What a Job is: defaults, what each key accepts, and what follows from them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from cbatch import catalog
from cbatch.job import AUTO_CONCURRENCY, FailIf, Input, Job, bound


def job(**keys: Any) -> Job:
    return Job.model_validate({"name": "j", "model": "m", "input": "a.jsonl", "prompt": "x", "folder": "/", **keys})


def test_a_job_needs_a_model_an_input_and_a_prompt_and_nothing_else() -> None:
    made = job()
    assert made.model == ["m"]
    assert made.input.path == ["a.jsonl"]
    assert made.prompt.user == "x"
    assert (made.samples, made.endpoint, made.output) == (1, "cerebras", "runs/{name}")
    assert (made.limits.rpm, made.limits.tpm, made.limits.tier) == (None, None, None)
    assert (made.retry.attempts, made.retry.max_wait_s, made.retry.reask) == (6, 120.0, 2)
    assert (made.results.carry, made.results.input, made.results.part_rows) == ([], True, 50_000)
    assert made.params.body() == {}


def test_a_job_cannot_be_changed_after_it_was_checked() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        job().samples = 2


@pytest.mark.parametrize(
    ("text", "number"),
    [
        pytest.param(1000, 1000, id="a number is itself"),
        pytest.param("1000", 1000, id="digits in quotes are a number"),
        pytest.param("300K", 300_000, id="K is a thousand"),
        pytest.param("1M", 1_000_000, id="M is a million"),
        pytest.param("1.5m", 1_500_000, id="small letters and a point are fine"),
        pytest.param("1.001K", 1001, id="decimals are exact, not binary"),
        pytest.param("1_000", 1000, id="underscores group digits"),
        pytest.param(" 20 M ", 20_000_000, id="blanks are ignored"),
        pytest.param(1e6, 1_000_000, id="a whole float is whole"),
    ],
)
def test_counts_are_read_as_people_write_them(text: object, number: int) -> None:
    assert job(limits={"tpm": text}).limits.tpm == number
    assert Input.model_validate({"path": "a", "limit": text}).limit == number


@pytest.mark.parametrize("text", ["", "300X", "K", "-5", "1e6", "1.5", "1.0001K", "٣٠", "9" * 400 + "M", 0, True, 2.5])
def test_what_is_no_count_is_refused(text: object) -> None:
    with pytest.raises(ValidationError):
        job(limits={"rpm": text})


@pytest.mark.parametrize(
    ("text", "says_no", "says_yes", "written"),
    [
        pytest.param("errors > 1%", (11, 1000), (10, 1000), "errors > 1%", id="a share of the prompts"),
        pytest.param("errors>0.5%", (6, 1000), (5, 1000), "errors > 0.5%", id="a fraction of a percent"),
        pytest.param(" errors > 10 ", (11, 1000), (10, 1000), "errors > 10", id="a number of errors"),
        pytest.param("errors > 0", (1, 1000), (0, 1000), "errors > 0", id="any error"),
        pytest.param(
            "errors > 0%", (1, 1000), (0, 0), "errors > 0%", id="a run without prompts has no share of errors"
        ),
    ],
)
def test_fail_if_draws_the_line_above_the_number_it_names(
    text: str, says_no: tuple[int, int], says_yes: tuple[int, int], written: str
) -> None:
    fail_if = FailIf.model_validate(text)
    assert fail_if.says_no(*says_no)
    assert not fail_if.says_no(*says_yes)
    assert str(fail_if) == written


def test_without_fail_if_a_single_error_is_one_too_many() -> None:
    assert job().fail_if.says_no(1, 1_000_000)
    assert not job().fail_if.says_no(0, 1_000_000)


@pytest.mark.parametrize("text", ["errors >= 1", "errors < 1", "error > 1", "errors > -1", "1%", "", "errors > 1 %%"])
def test_a_fail_if_that_is_not_of_the_two_forms_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="is not like 'errors > 1%' or 'errors > 10'"):
        FailIf.model_validate(text)


@pytest.mark.parametrize(
    ("shard", "which", "count"),
    [
        pytest.param("1/4", 0, 4, id="the first"),
        pytest.param("4/4", 3, 4, id="the last"),
        pytest.param("1/1", 0, 1, id="all"),
    ],
)
def test_shards_are_counted_from_one_in_the_job_and_from_zero_inside(shard: str, which: int, count: int) -> None:
    assert Input.model_validate({"path": "a", "shard": shard}).shard_of == (which, count)


@pytest.mark.parametrize("shard", ["0/4", "5/4", "1/0", "1", "1/", "a/b", "²/²", "-1/4", "1/4/4", "1/" + "9" * 5000])
def test_a_shard_outside_one_to_n_is_refused(shard: str) -> None:
    with pytest.raises(ValidationError, match="is not like '1/4'"):
        Input.model_validate({"path": "a", "shard": shard})


def test_a_tier_fills_in_the_limits_and_a_number_given_here_wins() -> None:
    quota = catalog.load()[0]["gpt-oss-120b"].tiers["developer"]
    rpm, tpm = quota.rpm, quota.tpm
    assert job(limits={"tier": "developer"}, model="gpt-oss-120b").limits.per_minute("gpt-oss-120b") == (rpm, tpm)
    mixed = job(limits={"tier": "developer", "rpm": 7}, model="gpt-oss-120b")
    assert mixed.limits.per_minute("gpt-oss-120b") == (7, tpm)
    assert job().limits.per_minute("gpt-oss-120b") == (None, None)


@pytest.mark.parametrize(
    ("params", "schema"),
    [
        pytest.param({}, None, id="free text has no schema"),
        pytest.param({"response_format": {"type": "text"}}, None, id="text has no schema"),
        pytest.param({"response_format": {"type": "json_object"}}, {"type": "object"}, id="json_object is any object"),
        pytest.param(
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "array"}}}},
            {"type": "array"},
            id="json_schema is its schema",
        ),
    ],
)
def test_answers_are_checked_by_the_schema_that_was_asked_for(params: dict[str, Any], schema: object) -> None:
    assert job(params=params).params.answer_schema == schema


def test_the_body_holds_what_was_given_and_nothing_else() -> None:
    """A default of ours would be a parameter that nobody asked for; a null inside a schema is the user's."""
    schema = {"type": "object", "properties": {"z": {"const": None}, "a": {"enum": [None, 1]}}}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    made = job(params={"temperature": 0, "stream": False, "seed": None, "response_format": form})
    assert made.params.body() == {"temperature": 0.0, "response_format": form}
    inner = made.params.body()["response_format"]["json_schema"]["schema"]["properties"]
    assert list(inner) == ["z", "a"]


@pytest.mark.parametrize(
    ("params", "travel"),
    [
        pytest.param({}, {}, id="in one piece"),
        pytest.param({"stream": False}, {}, id="no stream"),
        pytest.param({"stream": True}, {"stream": True}, id="a stream"),
        pytest.param(
            {"stream": True, "stream_options": {"include_usage": True}},
            {"stream": True, "stream_options": {"include_usage": True}},
            id="a stream with options",
        ),
        pytest.param({"stream_options": {"include_usage": True}}, {}, id="options without a stream are not sent"),
    ],
)
def test_how_an_answer_travels_is_no_part_of_the_body(params: dict[str, Any], travel: dict[str, Any]) -> None:
    made = job(params={"seed": 1, **params})
    assert (made.params.body(), made.params.travel()) == ({"seed": 1}, travel)


def test_either_name_of_the_completion_limit_counts() -> None:
    assert job(params={"max_tokens": 5}).params.completion_limit == 5
    assert job(params={"max_completion_tokens": 6}).params.completion_limit == 6
    assert job().params.completion_limit is None


def test_a_crash_costs_at_most_a_quarter_more_than_the_concurrency_and_sixteen() -> None:
    for concurrency in (1, 3, 32, 20_000):
        assert bound(concurrency) <= 1.25 * concurrency + 16


@pytest.mark.parametrize(
    ("concurrency", "bounds"),
    [
        pytest.param("auto", AUTO_CONCURRENCY, id="auto is learned"),
        pytest.param(None, AUTO_CONCURRENCY, id="and the default"),
        pytest.param(32, (32, 32), id="a number is fixed"),
        pytest.param("5..200", (5, 200), id="a range is learned inside it"),
        pytest.param("5 - 200", (5, 200), id="with a dash and spaces"),
        pytest.param("8..8", (8, 8), id="a range of one"),
        pytest.param((1, 20_000), (1, 20_000), id="a pair"),
    ],
)
def test_concurrency_is_a_number_a_range_or_learned(concurrency: object, bounds: tuple[int, int]) -> None:
    made = job(limits={} if concurrency is None else {"concurrency": concurrency})
    assert made.limits.in_flight == bounds


@pytest.mark.parametrize(
    "concurrency", [0, -1, 20_001, "200..5", "0..5", "5..30000", "5..", "many", True, 2.5, [5, 200]]
)
def test_a_concurrency_that_is_none_is_refused(concurrency: object) -> None:
    with pytest.raises(ValidationError):
        job(limits={"concurrency": concurrency})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("15m", 900), ("15min", 900), ("90s", 90), ("2h", 7_200), ("1d", 86_400), ("1.5h", 5_400), (90, 90)],
)
def test_times_have_units(text: str | int, seconds: float) -> None:
    made = job(budget={"wall": text}, retry={"max_outage_s": text, "max_wait_s": text})
    assert (made.budget.wall, made.retry.max_outage_s, made.retry.max_wait_s) == (seconds, seconds, seconds)


@pytest.mark.parametrize("text", ["15 minutes", "m", "-1s", "0s", 0, True, "1e3", "", "nan"])
def test_a_time_that_is_none_is_refused(text: object) -> None:
    with pytest.raises(ValidationError):
        job(budget={"wall": text})


def test_all_limits_may_be_given_and_auto_is_none_of_them() -> None:
    limits = {"rpm": 1, "rph": "2K", "rpd": 3, "tpm": "4M", "tph": 5, "tpd": 6, "share": "50%"}
    made = job(limits=limits).limits
    assert made.quota("m") == catalog.Quota(rpm=1, rph=2_000, rpd=3, tpm=4_000_000, tph=5, tpd=6)
    assert made.share == 0.5
    assert job(limits=dict.fromkeys(("rpm", "rph", "rpd", "tpm", "tph", "tpd"), "auto")).limits == job().limits
    assert job(limits="auto").limits == job().limits


@pytest.mark.parametrize(
    ("hedge", "share"), [("off", None), (False, None), (0, None), (None, None), ("1%", 0.01), (0.05, 0.05)]
)
def test_hedging_is_off_unless_it_has_a_share(hedge: object, share: float | None) -> None:
    assert job(retry={"hedge": hedge}).retry.hedge == share
    assert job().retry.hedge is None


def test_a_budget_has_dollars_tokens_and_a_time() -> None:
    budget = job(model="gpt-oss-120b", budget={"usd": 5, "tokens": "20M", "wall": "2h"}).budget
    assert (budget.usd, budget.tokens, budget.wall) == (5.0, 20_000_000, 7_200.0)
    assert job().budget.usd is None


def test_a_right_sized_limit_is_no_part_of_the_request() -> None:
    """The digest would change with what was learned, and a resumed run would send everything again."""
    auto = job(params={"max_completion_tokens": "auto", "seed": 1}).params
    assert (auto.right_sized, auto.completion_limit, auto.body()) == (True, None, {"seed": 1})
    given = job(params={"max_completion_tokens": 7}).params
    assert (given.right_sized, given.completion_limit, given.body()) == (False, 7, {"max_completion_tokens": 7})


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param({"budget": {"usd": 5}}, id="dollars for a model without a price"),
        pytest.param({"model": "gpt-oss-120b", "budget": {"usd": 0}}, id="a budget of nothing"),
        pytest.param({"budget": {"tokens": 0}}, id="no tokens"),
        pytest.param({"retry": {"hedge": 1.5}}, id="more than everything twice"),
        pytest.param({"retry": {"hedge": True}}, id="hedging without a share"),
        pytest.param({"limits": {"share": "0%"}}, id="no share at all"),
        pytest.param({"params": {"max_completion_tokens": "auto", "max_tokens": 5}}, id="two names of one limit"),
        pytest.param({"params": {"max_tokens": "auto"}}, id="the old name has no auto"),
        pytest.param({"model": ["m", "m"]}, id="the same model twice"),
        pytest.param({"model": []}, id="no model"),
        pytest.param(
            {"model": "gpt-oss-120b", "params": {"max_tokens": 10**6}}, id="more tokens than the model writes"
        ),
        pytest.param({"limits": {"tier": "developer"}}, id="a tier of a model that nobody knows"),
        pytest.param({"name": ".."}, id="a name that is the folder above"),
        pytest.param({"name": "a/b"}, id="a name that is a path"),
        pytest.param({"output": ""}, id="an output that is the current folder by accident"),
        pytest.param({"output": "runs/{nmae}"}, id="an unknown placeholder"),
        pytest.param({"output": "runs/{name"}, id="half a placeholder"),
        pytest.param({"endpoint": "ftp://x"}, id="an endpoint of another protocol"),
        pytest.param({"input": "s3://bucket/a.jsonl"}, id="remote storage, which is not built yet"),
        pytest.param({"input": ""}, id="an empty path"),
        pytest.param({"params": {"temperature": float("nan")}}, id="a temperature that is no number"),
        pytest.param({"retry": {"max_wait_s": float("inf")}}, id="an endless wait"),
        pytest.param({"params": {"n": 2}}, id="several answers in one request"),
    ],
)
def test_a_job_that_cannot_be_run_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        job(**keys)
