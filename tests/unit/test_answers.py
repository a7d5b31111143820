"""An answer fits params.response_format or it does not, and says why; it never stops a run by its shape."""

from __future__ import annotations

import urllib.request
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbatch.answers import AnswerCheck
from cbatch.errors import JobError
from cbatch.schema import Completion, TimeInfo, Usage

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "people": {"type": "integer", "minimum": 0}},
    "required": ["city"],
    "additionalProperties": False,
}
LISTS = {"$defs": {"list": {"type": "array", "items": {"$ref": "#/$defs/list"}}}, "$ref": "#/$defs/list"}


def answer(text: str | None, **fields: Any) -> Completion:
    given_as: dict[str, Any] = {
        "reasoning": None,
        "tool_calls": None,
        "finish_reason": "stop",
        "usage": Usage(),
        "time_info": TimeInfo(),
        "request_id": None,
        "served_model": None,
        "system_fingerprint": None,
        **fields,
    }
    return Completion(text=text, **given_as)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param('{"city":"Rome","people":3}', None, id="fits"),
        pytest.param(' \n{"city":"Rome"}\n', None, id="white space around it is no matter"),
        pytest.param('{"city":"Rome","people":3.0}', None, id="3.0 is an integer in JSON Schema"),
        pytest.param(None, "the answer is empty", id="no text"),
        pytest.param("", "the answer is empty", id="an empty text"),
        pytest.param("Rome", "not valid JSON: ", id="prose"),
        pytest.param('```json\n{"city":"Rome"}\n```', "not valid JSON: ", id="JSON in a fence is not JSON"),
        pytest.param('{"city":"Ro', "not valid JSON: ", id="cut"),
        pytest.param('{"city":"Rome"} {"city":"Oslo"}', "not valid JSON: ", id="two answers"),
        pytest.param('{"city":NaN}', "not valid JSON: ", id="NaN"),
        pytest.param('{"city":"\\ud800"}', "not valid JSON: ", id="half a character"),
        pytest.param(
            '{"people":3}', "does not fit the schema at $: 'city' is a required property", id="a field missing"
        ),
        pytest.param('{"city":7}', "does not fit the schema at $.city: 7 is not of type 'string'", id="another type"),
        pytest.param(
            '{"city":"Rome","people":-1}', "does not fit the schema at $.people: -1 is less", id="out of bounds"
        ),
        pytest.param('["Rome"]', "does not fit the schema at $: ['Rome'] is not of type 'object'", id="no object"),
        pytest.param("null", "does not fit the schema at $: None is not of type 'object'", id="null"),
    ],
)
def test_what_is_wrong_with_an_answer_is_said_and_where(text: str | None, problem: str | None) -> None:
    completion = answer(text)
    said = AnswerCheck(CITY)(completion)
    assert completion.valid is (problem is None)
    assert said == problem if problem is None else said is not None and said.startswith(problem)


def test_an_answer_that_fits_is_kept_parsed() -> None:
    completion = answer('{"city":"Rome"}')
    AnswerCheck(CITY)(completion)
    assert completion.parsed == {"city": "Rome"}


def test_json_that_does_not_fit_is_kept_parsed_too() -> None:
    completion = answer('{"city":7}')
    AnswerCheck(CITY)(completion)
    assert (completion.parsed, completion.valid) == ({"city": 7}, False)


def test_a_turn_that_calls_a_tool_carries_no_answer_yet() -> None:
    completion = answer(None, tool_calls=[{"id": "85e4fd267"}])
    assert AnswerCheck(CITY)(completion) is None
    assert completion.valid is None


def test_a_long_complaint_is_cut() -> None:
    said = AnswerCheck(CITY)(answer('{"city":[' + '"x",' * 50_000 + '"x"]}'))
    assert said is not None
    assert len(said) < 400


@pytest.mark.parametrize(
    ("depth", "schema", "problem"),
    [
        pytest.param(100, {}, None, id="100 levels are fine"),
        pytest.param(254, {"type": "array"}, None, id="254 are the most that can be stored"),
        pytest.param(255, {}, "nested too deeply to be stored", id="255 cannot be stored"),
        pytest.param(1_000, {"type": "array"}, "nested too deeply to be stored", id="nor can 1,000"),
        pytest.param(5_000, {}, "not valid JSON: ", id="5,000 cannot even be read"),
        pytest.param(30, LISTS, None, id="a schema that refers to itself, a few levels"),
        pytest.param(250, LISTS, "nested too deeply to be checked", id="a schema that refers to itself, many levels"),
    ],
)
def test_an_answer_nested_without_end_fails_its_row_and_not_the_run(
    depth: int, schema: dict[str, Any], problem: str | None
) -> None:
    """A model that falls into a loop writes `[[[[[[…`."""
    completion = answer("[" * depth + "]" * depth)
    said = AnswerCheck(schema)(completion)
    assert said == problem if problem is None else said is not None and said.startswith(problem)
    assert completion.valid is (problem is None)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        pytest.param({"$ref": "#/$defs/gone"}, "gone", id="a reference to what is not there"),
        pytest.param({"$ref": "http://example.com/x.json"}, "example.com", id="a reference to another place"),
        pytest.param({"pattern": "("}, "unterminated", id="a pattern that is none"),
    ],
)
def test_a_schema_that_cannot_be_applied_is_an_error_of_the_job_and_downloads_nothing(
    monkeypatch: pytest.MonkeyPatch, schema: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **kwargs: pytest.fail("it tried to download"))
    with pytest.raises(JobError, match=f"^params.response_format: the schema cannot be applied: .*{words}"):
        AnswerCheck(schema)(answer('"a"'))


def test_a_schema_may_refer_to_the_published_drafts() -> None:
    check = AnswerCheck({"$ref": "https://json-schema.org/draft/2020-12/schema"})
    assert check(answer('{"type":"string"}')) is None
    assert check(answer('{"type":5}')) is not None


@pytest.mark.parametrize("text", ["1e308", "123456789012345678901234567890", "0.1", "-0", "1e-320"])
def test_numbers_at_the_edge_are_checked_without_a_crash(text: str) -> None:
    AnswerCheck({"type": "number", "multipleOf": 0.01})(answer(text))


@given(st.text(max_size=40) | st.text(alphabet='{}[]":,city123e.-\\ntrufals', max_size=30))
def test_any_text_fits_or_gets_a_complaint(text: str) -> None:
    completion = answer(text)
    assert (CHECK(completion) is None) is completion.valid


CHECK = AnswerCheck(CITY)
