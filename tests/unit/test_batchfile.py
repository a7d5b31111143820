"""Batch files: a provider's request lines run as they are, and result lines are what its clients read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from cbatch import jobfile
from cbatch.batchfile import (
    LineError,
    Naming,
    cerebras_line,
    completion,
    is_line,
    model_of,
    openai_line,
    read_line,
    request_of,
    several,
)
from cbatch.cli.plan import lines as plan_lines
from cbatch.errors import JobError, SourceError
from cbatch.export import export
from cbatch.job import Job
from cbatch.jobschema import json_schema
from cbatch.parquet import write_part
from cbatch.plan import plan
from cbatch.render import Renderer, RenderError
from cbatch.responses import target, to_chat
from cbatch.rundir import RunDir
from cbatch.schema import COLUMNS, Prompt
from cbatch.source import MAX_MODELS, Source, Survey

MODEL = "gpt-oss-120b"
OTHER = "zai-glm-4.7"
CHAT: dict[str, Any] = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"model": MODEL, "messages": [{"role": "user", "content": "Why?"}]},
}
RESPONSES: dict[str, Any] = {
    "custom_id": "r",
    "method": "POST",
    "url": "/v1/responses",
    "body": {"model": MODEL, "instructions": "Be brief.", "input": "Why?", "max_output_tokens": 50},
}


def line(custom_id: object = "a", **body: Any) -> dict[str, Any]:
    return {**CHAT, "custom_id": custom_id, "body": {**CHAT["body"], **body}}


def made(folder: Path, lines: Sequence[object], text: str = "input: rows.jsonl\n", name: str = "rows.jsonl") -> Job:
    """The job that `text` is, beside a file with these lines."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in lines))
    (folder / "job.yaml").write_text(text)
    return jobfile.load(folder / "job.yaml")


def read(job: Job) -> tuple[Survey, list[Prompt]]:
    source = Source(job)
    survey = source.survey()
    return survey, list(source.prompts(survey, list(survey.models)))


def refused(folder: Path, lines: Sequence[object], text: str = "input: rows.jsonl\n") -> str:
    with pytest.raises((JobError, SourceError)) as caught:
        plan(made(folder, lines, text))
    return f"{caught.value}\n{caught.value.hint}"


# -- what is a batch file ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "yes"),
    [
        (CHAT, True),
        ({"custom_id": None, "url": "/v1/embeddings", "body": 3}, True),
        ({"custom_id": "a", "url": 5, "body": {}}, False),
        ({"id": "a", "question": "Why?"}, False),
        ({"custom_id": "a", "body": {"messages": []}}, False),
    ],
)
def test_a_row_with_an_id_an_endpoint_and_a_body_is_meant_as_a_request_line(first: dict[str, Any], yes: bool) -> None:
    assert is_line(first) is yes


def test_a_job_of_one_line_runs_a_batch_file(tmp_path: Path) -> None:
    """No model, no prompt: the lines hold both."""
    job = made(tmp_path, [CHAT])
    assert (job.input.format, job.input.id, job.model) == ("openai-batch", "custom_id", [])
    survey, prompts = read(job)
    assert survey.models == {MODEL: 1}
    assert [(prompt.id, prompt.model) for prompt in prompts] == [("a", MODEL)]


def test_the_first_row_that_can_be_read_decides(tmp_path: Path) -> None:
    assert made(tmp_path, ['{"custom_id": ', CHAT]).input.is_batch


@pytest.mark.parametrize("name", ["rows.json", "rows.ndjson"])
def test_json_lines_of_any_name_are_looked_into(tmp_path: Path, name: str) -> None:
    assert made(tmp_path, [CHAT], f"input: {name}\n", name).input.is_batch


@pytest.mark.parametrize("path", ["'*.jsonl'", "[rows.jsonl, more.jsonl]", "{path: ./rows.jsonl, limit: 3}"])
def test_an_input_is_looked_into_however_it_is_written(tmp_path: Path, path: str) -> None:
    assert made(tmp_path, [CHAT], f"input: {path}\n").input.is_batch


def test_with_a_prompt_the_lines_are_rows_like_any_others(tmp_path: Path) -> None:
    """Jobs that were written before batch files were known go on meaning what they meant."""
    job = made(tmp_path, [CHAT], f"model: {OTHER}\ninput: rows.jsonl\nprompt: {{body: body}}\n")
    assert (job.input.format, job.input.id) == ("auto", None)
    ((prompt,),) = [read(job)[1]]
    assert json.loads(Renderer(job, OTHER)(prompt).body)["model"] == OTHER


@pytest.mark.parametrize("rows", [[{"q": "Why?"}], [], ["[1]"]])
def test_without_a_prompt_other_rows_are_refused(tmp_path: Path, rows: list[object]) -> None:
    said = refused(tmp_path, rows, f"model: {MODEL}\ninput: rows.jsonl\n")
    assert "job.yaml: prompt: this key is needed and missing" in said
    assert "lines of a batch API" in said


def test_a_file_that_is_not_there_is_no_batch_file(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("input: nowhere.jsonl\n")
    with pytest.raises(JobError, match="needed and missing"):
        jobfile.load(tmp_path / "job.yaml")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("input: {path: rows.jsonl, format: openai-batch}\nprompt: '{{ q }}'", "2: prompt: does not go with input"),
        ("input: {path: rows.jsonl, format: openai-batch, id: x}", "1: input.id: does not go with format openai-batch"),
        ("input: rows.jsonl\nload: {}", "model: a load run asks what it is told to ask"),
        ("input: rows.jsonl\noutput: runs/{model}", "2: output: {model} is a model of this file"),
        ("input: rows.jsonl\nmodel: [m, m]", "2: model: the same model twice"),
        ("input: {path: rows.jsonl, format: jsonl}\nprompt: x", "model: this key is needed and missing"),
        ("input: rows.jsonl\nmodel: []\nprompt: x", "2: model: read []; accepted: a model's name, or a list of them"),
    ],
)
def test_what_does_not_go_with_a_batch_file_is_told_with_its_line(tmp_path: Path, more: str, said: str) -> None:
    found = refused(tmp_path, [CHAT], more)
    assert said in found
    assert "job.yaml" in found


def test_a_job_that_run_json_keeps_is_read_back_as_it_was(tmp_path: Path) -> None:
    """`cbatch verify` makes the job from run.json, without job.yaml."""
    job = made(tmp_path, [CHAT])
    assert Job.model_validate(job.model_dump(mode="json", exclude_none=True)) == job.model_copy(update={"places": {}})


def test_editors_accept_a_job_without_model_and_prompt() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    editor = jsonschema.Draft202012Validator(json_schema())
    for job in ({"input": "a.jsonl"}, {"input": {"path": "a", "format": "openai-batch"}, "model": "m"}):
        editor.validate(job)
    for job in ({}, {"model": "m"}, {"input": "a", "prompt": "x"}, {"model": "m", "prompt": "x"}):
        assert not editor.is_valid(job)


# -- models -----------------------------------------------------------------------------------------


def test_every_line_goes_to_the_model_that_it_names(tmp_path: Path) -> None:
    job = made(tmp_path, [line("a"), line("b", model=OTHER), line("c")], "input: rows.jsonl\nsamples: 2\n")
    survey, prompts = read(job)
    assert survey.models == {MODEL: 2, OTHER: 1}
    assert [(p.id, p.model, p.sample) for p in prompts] == [
        (name, model, sample) for name, model in (("a", MODEL), ("b", OTHER), ("c", MODEL)) for sample in (0, 1)
    ]
    source = Source(job)
    for model, names in ((MODEL, ["a", "a", "c", "c"]), (OTHER, ["b", "b"])):  # as a run asks: model by model
        assert [prompt.id for prompt in source.prompts(survey, (model,))] == names


def test_a_model_in_job_yaml_replaces_that_of_the_lines(tmp_path: Path) -> None:
    job = made(tmp_path, [line("a", model="gpt-4o"), line("b")], f"input: rows.jsonl\nmodel: [{MODEL}, {OTHER}]\n")
    survey, prompts = read(job)
    assert survey.models == {MODEL: 2, OTHER: 2}
    assert [(p.id, p.model) for p in prompts] == [(i, m) for i in ("a", "b") for m in (MODEL, OTHER)]
    assert json.loads(Renderer(job, OTHER)(prompts[1]).body)["model"] == OTHER


def test_lines_without_a_model_are_errors_of_the_first_one_and_no_others(tmp_path: Path) -> None:
    nameless = {**CHAT, "custom_id": "b", "body": {"messages": CHAT["body"]["messages"]}}
    survey, prompts = read(made(tmp_path, [line("a", model=OTHER), nameless, "{", line("c", model=OTHER)]))
    assert (survey.rows, survey.problems, survey.models) == (4, 2, {OTHER: 4})
    assert {prompt.model for prompt in prompts} == {OTHER}
    assert [prompt.problem for prompt in prompts][0::3] == [None, None]
    assert "body.model is missing" in str(prompts[1].problem)


@pytest.mark.parametrize(
    ("lines", "more", "said"),
    [
        ([{**CHAT, "body": {"messages": []}}], "", "model: no line names one"),
        ([line(str(n), model=f"m{n}") for n in range(MAX_MODELS + 1)], "", "more than 32 models"),
        ([line(model="gpt-4o")], "budget: {usd: 1}\n", "job.yaml:2: budget.usd: no price is known for model 'gpt-4o'"),
        ([line(model="gpt-4o")], "limits: {tier: developer}\n", "job.yaml:2: limits.tier: no limits are known"),
    ],
)
def test_models_that_the_job_does_not_go_with_are_refused_before_anything_is_sent(
    tmp_path: Path, lines: list[object], more: str, said: str
) -> None:
    assert said in refused(tmp_path, lines, f"input: rows.jsonl\n{more}")


def test_a_plan_shows_each_model(tmp_path: Path) -> None:
    found = plan(made(tmp_path, [line("a"), line("b", model=OTHER), line("c", stream=True)]))
    assert [(one.model, one.requests) for one in found.models] == [(MODEL, 1), (OTHER, 1)]
    assert (found.rows, found.unrenderable_rows) == (3, 1)
    assert "rows.jsonl:3: body.stream" in str(found.first_problem)


def test_a_plan_names_the_models_of_lines_that_the_catalog_does_not_have(tmp_path: Path) -> None:
    """Those of job.yaml are named by whoever wrote it, and a run stops at once if they are wrong."""
    lines = [line("a"), line("b", model="gpt-4o-mini"), line("c", model="gpt-5")]
    job = made(tmp_path, lines)
    found = plan(job)
    assert found.unknown_models == ["gpt-4o-mini", "gpt-5"]
    (said,) = [text for text in plan_lines(job, found, RunDir(tmp_path)) if text.startswith("  unknown")]
    assert "'gpt-4o-mini', 'gpt-5'" in said
    assert "`model: NAME` in job.yaml" in said
    for job in (made(tmp_path / "a", lines[:1]), made(tmp_path / "b", lines, "input: rows.jsonl\nmodel: gpt-4o\n")):
        found = plan(job)
        assert found.unknown_models == []
        assert not any("unknown " in text for text in plan_lines(job, found, RunDir(tmp_path))[:2])


def test_a_custom_id_stands_for_one_line(tmp_path: Path) -> None:
    said = refused(tmp_path, [line("a"), line("b"), line("a", seed=1)])
    assert "rows.jsonl:3: id 'a' again, first at rows.jsonl:1" in said
    assert "custom_id" in said


# -- one line ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"url": "/v1/embeddings"}, 'url: read "/v1/embeddings"; accepted: /v1/chat/completions, /v1/responses'),
        ({"url": None}, "url: read null"),
        ({"method": "GET"}, 'method: read "GET"; accepted: POST'),
        ({"method": 5}, "method: read 5"),
        ({"body": [1]}, "body: read [1]; accepted: the request"),
        ({"body": {}}, "body: read {}"),
        ({"body": {**CHAT["body"], "stream": True}}, "body.stream"),
        ({"body": {**CHAT["body"], "n": 3}}, "body.n: read 3"),
        ({"url": "/v1/responses", "body": {"input": "x", "background": True}}, "body.background"),
        ({"url": "/v1/responses", "body": {"input": "x", "previous_response_id": "resp_1"}}, "previous_response_id"),
    ],
)
def test_a_line_that_cannot_be_sent_says_why(change: dict[str, Any], said: str) -> None:
    with pytest.raises(LineError) as caught:
        read_line({**CHAT, **change})
    assert said in str(caught.value)


@pytest.mark.parametrize("key", ["url", "body"])
def test_a_key_that_a_line_lacks_is_named(key: str) -> None:
    with pytest.raises(LineError, match=f"`{key}` is missing"):
        read_line({name: value for name, value in CHAT.items() if name != key})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"body": {"messages": []}}, "body.model is missing, and so is `model` in job.yaml"),
        ({"body": {"model": None, "messages": []}}, "body.model is missing"),
        ({"body": {"model": 5}}, "body.model: read 5; accepted: a model's name"),
        ({"body": {"model": ""}}, 'body.model: read ""; accepted'),
        ({"body": "text"}, 'body: read "text"; accepted: the request'),
        ({"url": "/v1/embeddings", "body": {"input": "x"}}, 'url: read "/v1/embeddings"'),
    ],
)
def test_a_line_that_names_no_model_says_what_is_wrong_first(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    _, prompts = read(made(tmp_path, [line("a"), {**CHAT, "custom_id": "b", **change}]))
    assert said in str(prompts[1].problem)


def test_a_missing_body_is_not_a_missing_model(tmp_path: Path) -> None:
    """The line with the wrong key: it is what somebody looks for."""
    nobody = {key: value for key, value in CHAT.items() if key != "body"} | {"custom_id": "b", "Body": {}}
    _, prompts = read(made(tmp_path, [line("a"), nobody]))
    assert prompts[1].problem == "`body` is missing; a request line has custom_id, method, url, body"


def test_a_line_may_do_without_its_method() -> None:
    assert read_line({name: value for name, value in CHAT.items() if name != "method"}).body == CHAT["body"]


@given(
    st.dictionaries(
        st.sampled_from(["custom_id", "method", "url", "body", "x"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.sampled_from(["POST", CHAT["url"], RESPONSES["url"]]),
            lambda inner: (
                st.lists(inner, max_size=2)
                | st.dictionaries(st.sampled_from(["model", "messages", "input", "stream", "n"]), inner, max_size=3)
            ),
            max_leaves=6,
        ),
    )
)
def test_whatever_a_line_holds_only_a_line_error_comes_out(fields: dict[str, Any]) -> None:
    is_line(fields)
    model_of(fields)
    with suppress(LineError):
        assert read_line(fields).body is fields["body"]


def prompt_of(fields: dict[str, Any]) -> Prompt:
    return Prompt(id="1", index=0, sample=0, model=MODEL, fields=fields, raw=b"{}", origin="rows.jsonl:1")


def test_a_chat_line_is_sent_as_it_is_with_what_the_job_adds(tmp_path: Path) -> None:
    job = made(tmp_path, [CHAT], "input: rows.jsonl\nparams: {temperature: 0.5, seed: 7}\n")
    request = Renderer(job, MODEL)(prompt_of(line(seed=1, logit_bias={"5": 2})))
    assert json.loads(request.body) == {**CHAT["body"], "seed": 1, "logit_bias": {"5": 2}, "temperature": 0.5}


def test_params_may_ask_for_a_stream_though_a_line_may_not(tmp_path: Path) -> None:
    job = made(tmp_path, [CHAT], "input: rows.jsonl\nparams: {stream: true}\n")
    request = Renderer(job, MODEL)(prompt_of(CHAT))
    assert json.loads(request.body)["stream"] is True
    with pytest.raises(RenderError, match="do not stream"):
        Renderer(job, MODEL)(prompt_of(line(stream=True)))


def test_a_responses_line_is_the_chat_request_that_it_means(tmp_path: Path) -> None:
    """Its digest too: a line that asks the same in the other form is known already."""
    job = made(tmp_path, [RESPONSES])
    request = Renderer(job, MODEL)(prompt_of(RESPONSES))
    chat = to_chat(RESPONSES["body"], target(MODEL)).chat
    assert json.loads(request.body) == chat
    assert [message["content"] for message in chat["messages"]] == ["Be brief.", "Why?"]
    assert request.limit_tokens == 50
    assert request.digest == Renderer(job, MODEL)(prompt_of({**CHAT, "body": chat})).digest
    assert request.body == Renderer(job, MODEL)(prompt_of(RESPONSES)).body


def test_a_responses_line_that_cannot_be_translated_is_an_error_of_its_row(tmp_path: Path) -> None:
    job = made(tmp_path, [RESPONSES])
    with pytest.raises(RenderError):
        Renderer(job, MODEL)(prompt_of({**RESPONSES, "body": {"model": MODEL, "input": 5}}))


_ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["message", "function_call", "user", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "role", "content", "text", "call_id", "name", "output", "format", "effort"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(
        st.sampled_from(["input", "instructions", "tools", "tool_choice", "text", "reasoning", "max_output_tokens"]),
        _ANY,
        min_size=1,
    )
)
def test_whatever_a_responses_line_holds_no_other_row_suffers(body: dict[str, Any]) -> None:
    """It is sent, or it is an error row: anything else would end the run."""
    job = Job.model_validate(
        {"name": "j", "model": MODEL, "input": {"path": "a", "format": "openai-batch"}, "folder": "/"}
    )
    with suppress(RenderError):
        Renderer(job, MODEL)(prompt_of({**RESPONSES, "body": {"model": MODEL, **body}}))


def test_a_file_of_wrong_lines_only_is_refused_with_the_first(tmp_path: Path) -> None:
    said = refused(tmp_path, [{**CHAT, "custom_id": str(n), "url": "/v1/embeddings"} for n in range(3)])
    assert "no row can be rendered; rows.jsonl:1: url: read" in said


# -- result lines -----------------------------------------------------------------------------------


def row(**values: Any) -> dict[str, Any]:
    found: dict[str, Any] = dict.fromkeys(name for name, _, _ in COLUMNS)
    found |= {
        "id": "a",
        "index": 0,
        "sample": 0,
        "model": MODEL,
        "digest": "d" * 64,
        "status": "ok",
        "text": "Because.",
    }
    return found | {"finish_reason": "stop", "http_status": 200, "request_id": "chatcmpl-1"} | values


_COUNT = st.none() | st.integers(0, 2**53)
_TEXT = st.none() | st.text(max_size=20)
_CALLS = st.lists(
    st.fixed_dictionaries(
        {"function": st.fixed_dictionaries({"name": st.text(max_size=5), "arguments": st.text(max_size=9)})},
        optional={"id": st.text(min_size=1, max_size=5), "type": st.just("function")},
    ),
    max_size=3,
)
answers = st.builds(
    row,
    text=_TEXT,
    reasoning=_TEXT,
    tool_calls=st.none() | _CALLS.map(lambda calls: orjson.dumps(calls).decode()),
    finish_reason=st.sampled_from(["stop", "length", "tool_calls", "content_filter"]),
    prompt_tokens=_COUNT,
    cached_tokens=_COUNT,
    completion_tokens=_COUNT,
    reasoning_tokens=_COUNT,
    total_tokens=_COUNT,
    server_queue_s=st.none() | st.floats(0, 9),
    started_at=st.none() | st.integers(0, 4_000_000_000_000_000),
    request_id=st.none() | st.text(min_size=1, max_size=9),
    served_model=_TEXT,
    system_fingerprint=_TEXT,
)


@given(found=answers)
def test_an_answer_is_a_completion_for_the_openai_package_and_holds_what_the_row_holds(found: dict[str, Any]) -> None:
    body = completion(found)
    read = ChatCompletion.model_validate(orjson.loads(orjson.dumps(body)))
    (choice,) = read.choices
    assert (choice.message.content, choice.finish_reason) == (found["text"], found["finish_reason"])
    assert getattr(choice.message, "reasoning", None) == found["reasoning"]
    calls = orjson.loads(found["tool_calls"] or "[]")
    assert [call.to_dict()["function"] for call in choice.message.tool_calls or []] == [c["function"] for c in calls]
    assert all(call.id for call in choice.message.tool_calls or [])
    if found["prompt_tokens"] is None or found["completion_tokens"] is None:
        assert read.usage is None
    else:
        assert read.usage is not None
        assert (read.usage.prompt_tokens, read.usage.completion_tokens) == (
            found["prompt_tokens"],
            found["completion_tokens"],
        )
    assert body == completion(found), "the same whenever it is exported"


def test_a_result_line_has_a_response_or_an_error_never_both() -> None:
    answer = completion(row())
    assert openai_line(row(), "a", answer) == {
        "id": openai_line(row(), "a", answer)["id"],
        "custom_id": "a",
        "response": {"status_code": 200, "request_id": "chatcmpl-1", "body": answer},
        "error": None,
    }


@pytest.mark.parametrize(
    ("values", "response", "error"),
    [
        (
            {"error_kind": "bad_request", "http_status": 400, "error_code": "wrong_api_format"},
            {"status_code": 400, "type": "invalid_request_error", "code": "wrong_api_format"},
            None,
        ),
        (
            {"error_kind": "rate_limited", "http_status": 429, "error_code": None},
            {"status_code": 429, "type": "rate_limit_error", "code": None},
            None,
        ),
        (
            {"error_kind": "server", "http_status": 503},
            {"status_code": 503, "type": "server_error", "code": None},
            None,
        ),
        ({"error_kind": "timeout", "http_status": None}, None, {"code": "timeout", "message": "it broke"}),
        ({"error_kind": "render", "http_status": None}, None, {"code": "invalid_request", "message": "it broke"}),
        ({"error_kind": "source", "http_status": None}, None, {"code": "invalid_request", "message": "it broke"}),
        (
            {"error_kind": "invalid_output", "http_status": 200},
            None,
            {"code": "invalid_response", "message": "it broke"},
        ),
        ({"error_kind": "connection", "http_status": None}, None, {"code": "connection_error", "message": "it broke"}),
        (
            {"error_kind": "not_found", "http_status": None, "error_code": "model_not_found"},
            None,
            {"code": "model_not_found", "message": "it broke"},
        ),
    ],
)
def test_a_failure_is_told_as_the_provider_tells_it(
    values: dict[str, Any], response: dict[str, Any] | None, error: dict[str, Any] | None
) -> None:
    found = row(status="error", text=None, request_id=None, error_message="it broke", **values)
    made = openai_line(found, "a", None)
    if response is None:
        assert (made["response"], made["error"]) == (None, error)
    else:
        said = {"message": "it broke", "type": response["type"], "param": None, "code": response["code"]}
        assert made["response"] == {
            "status_code": response["status_code"],
            "request_id": None,
            "body": {"error": said},
        }
        assert made["error"] is None
    failed = cerebras_line(found, "a", None)
    assert (failed["custom_id"], failed["status"], failed["error"]["message"]) == ("a", "failed", "it broke")
    assert cerebras_line(row(), "a", {"x": 1}) == {"custom_id": "a", "status": "succeeded", "response": {"x": 1}}


@pytest.mark.parametrize(
    ("job", "load", "name"),
    [
        ({"model": []}, False, "a"),
        ({"model": ["m"], "samples": 1}, False, "a"),
        ({"model": ["m", "n"]}, False, f"a:{MODEL}"),
        ({"model": ["m"], "samples": 2}, False, "a:3"),
        ({"model": ["m", "n"], "samples": 2}, False, f"a:{MODEL}:3"),
        ({"model": ["m"]}, True, "a:3"),
        ({}, False, "a"),
    ],
)
def test_a_custom_id_is_the_rows_id_and_what_tells_it_from_others(job: dict[str, Any], load: bool, name: str) -> None:
    assert several(job, load=load)(row(sample=3)) == name
    assert Naming()(row(sample=3)) == "a"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('{"method": "POST", "url": "x", "body": {}}', None),
        ('{"custom_id": null, "body": {}}', None),
        ('{"custom_id": ["a"], "body": {}}', None),
        ('{"custom_id": "", "body": {}}', None),
        ('{"custom_id": "cut', None),
        ("[1]", None),
        ('{"custom_id": "b", "body": {}}', "b"),
        ('{"custom_id": 7, "body": {}}', "7"),
        (None, "0123456789abcdef"),
    ],
)
def test_a_line_that_cannot_be_sent_keeps_its_custom_id_and_is_given_none(text: str | None, name: str | None) -> None:
    """The row's id is then a hash, which nobody who wrote the file knows; without the line nobody knows better."""
    broken = row(id="0123456789abcdef", status="error", error_kind="source", input=text)
    assert several({"input": {"format": "openai-batch"}}, load=False)(broken) == name
    assert several({"input": {"format": "jsonl"}}, load=False)(broken) == "0123456789abcdef", "rows, and no lines"
    assert openai_line(broken, name, None)["custom_id"] == name


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (json.dumps(RESPONSES), RESPONSES["body"]),
        (json.dumps(CHAT), None),
        ('{"q": 1}', None),
        ('{"broken', None),
        (None, None),
        ("[]", None),
        (json.dumps({**RESPONSES, "body": 5}), None),
    ],
)
def test_only_a_responses_line_is_answered_with_a_response(text: str | None, found: Any) -> None:
    assert request_of(row(input=text)) == found


def run_of(folder: Path, rows: Sequence[dict[str, Any]], job: dict[str, Any]) -> RunDir:
    """A run directory with these rows."""
    run = RunDir(folder)
    folder.mkdir()
    write_part([list(one.values()) for one in rows], {}, folder / "staging" / "x", run.results / "part-00000.parquet")
    run.write_info({"state": "finished", "job": job})
    return run


def test_a_responses_line_is_answered_with_a_response_object(tmp_path: Path) -> None:
    rows = [row(input=json.dumps(CHAT)), row(id="r", input=json.dumps(RESPONSES), prompt_tokens=9, completion_tokens=4)]
    job = {"model": [], "input": {"format": "openai-batch"}, "results": {"input": True}}
    run = run_of(tmp_path / "run", rows, job)
    export(run, tmp_path / "x.jsonl", "openai-batch")
    chat, response = (json.loads(one)["response"]["body"] for one in (tmp_path / "x.jsonl").read_text().splitlines())
    assert ChatCompletion.model_validate(chat).choices[0].message.content == "Because."
    read = Response.model_validate(response)
    assert (read.output_text, read.instructions, read.max_output_tokens) == ("Because.", "Be brief.", 50)
    assert read.usage is not None
    assert (read.usage.input_tokens, read.usage.output_tokens) == (9, 4)
    export(run, tmp_path / "y.jsonl", "cerebras-batch")
    lines = [json.loads(one) for one in (tmp_path / "y.jsonl").read_text().splitlines()]
    assert [one["response"]["object"] for one in lines] == ["chat.completion"] * 2, "Cerebras has no other endpoint"


def test_without_its_input_nobody_knows_what_a_line_was_for(tmp_path: Path) -> None:
    job = {"model": [], "input": {"format": "openai-batch"}, "results": {"input": False}}
    run = run_of(tmp_path / "run", [row()], job)
    with pytest.raises(JobError, match="stored without their input") as caught:
        export(run, tmp_path / "x.jsonl", "openai-batch")
    assert "results: {input: true}" in str(caught.value.hint)
    assert export(run, tmp_path / "x.jsonl", "cerebras-batch") == 1
    other = run_of(tmp_path / "other", [row()], {**job, "input": {"format": "jsonl"}})
    assert export(other, tmp_path / "y.jsonl", "openai-batch") == 1, "no batch file, so no such lines"
