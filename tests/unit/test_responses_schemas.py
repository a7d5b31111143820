"""Schemas for constrained decoding, and what is tried after a refusal."""

from __future__ import annotations

import copy
from typing import Any

import jsonschema
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cbatch.responses import fallback
from cbatch.responses.schemas import plain_schema, strict_schema
from cbatch.sim.strict import strict_problem


def _object(*, required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    names = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


STRING = {"type": "string"}


@pytest.mark.parametrize(
    ("given_schema", "expected"),
    [
        pytest.param(_object(a=STRING), _object(a=STRING), id="a fitting schema stays as it is"),
        pytest.param(
            _object(title={"type": "string", "minLength": 1, "maxLength": 36}),
            _object(title=STRING),
            id="Codex's title request loses its lengths",
        ),
        pytest.param(
            _object(a={"type": ["string", "null"], "description": "d"}),
            _object(a={"anyOf": [STRING, {"type": "null"}], "description": "d"}),
            id="a list of types is anyOf",
        ),
        pytest.param(
            _object(a={"type": ["string", "integer", "null"], "enum": ["x", 1, None], "minimum": 0}),
            _object(
                a={
                    "anyOf": [
                        {"type": "string", "enum": ["x"]},
                        {"type": "integer", "enum": [1], "minimum": 0},
                        {"type": "null"},
                    ]
                }
            ),
            id="each type of a list keeps its own keywords",
        ),
        pytest.param(
            {**_object(a={"$ref": "#/definitions/b"}), "definitions": {"b": STRING}},
            {**_object(a={"$ref": "#/$defs/b"}), "$defs": {"b": STRING}},
            id="definitions are $defs",
        ),
        pytest.param(
            _object(a={"oneOf": [STRING, {"type": "null"}]}),
            _object(a={"anyOf": [STRING, {"type": "null"}]}),
            id="oneOf is anyOf",
        ),
        pytest.param(
            {"type": "object", "properties": {"a": STRING}, "required": ["a"]},
            _object(a=STRING),
            id="an object with properties is closed",
        ),
        pytest.param(
            {"$schema": "x", **_object(a={"type": "array", "items": {**STRING, "pattern": "^a"}, "minItems": 1})},
            _object(a={"type": "array", "items": STRING}),
            id="keywords inside items",
        ),
        pytest.param(
            _object(pattern=STRING, format=STRING),
            _object(pattern=STRING, format=STRING),
            id="properties named like keywords",
        ),
    ],
)
def test_a_schema_is_said_in_the_words_that_the_decoder_knows(given_schema: Any, expected: Any) -> None:
    """Strictness is kept where a rewriting keeps the meaning, or only widens it; the client's schema is not touched."""
    before = copy.deepcopy(given_schema)
    assert strict_schema(given_schema) == expected
    assert given_schema == before


_DEEP: dict[str, Any] = _object(a=STRING)
for _ in range(10):
    _DEEP = _object(a=_DEEP)


NINETY: dict[str, Any] = {f"q{n}": {"type": "null"} for n in range(90)}


def _referring(times: int, name: dict[str, Any]) -> dict[str, Any]:
    """A schema that refers to another one so many times."""
    properties: dict[str, Any] = {f"p{n}": {"$ref": "#/$defs/d"} for n in range(times)}
    return {**_object(**properties), "$defs": {"d": name}}


@pytest.mark.parametrize(
    "schema",
    [
        pytest.param(_object(required=[], a=STRING), id="an optional property"),
        pytest.param(_object(a={"type": "object"}), id="an open object"),
        pytest.param({**_object(a=STRING), "additionalProperties": STRING}, id="a map"),
        pytest.param({**_object(a=STRING), "additionalProperties": True}, id="additional properties"),
        pytest.param(_object(a={"allOf": [STRING]}), id="allOf"),
        pytest.param(_object(a={"not": STRING}), id="not"),
        pytest.param(_object(a={**STRING, "nullable": True}), id="nullable"),
        pytest.param(_object(a={"$ref": "#"}), id="recursion to the root"),
        pytest.param(
            {**_object(a={"$ref": "#/$defs/n"}), "$defs": {"n": _object(n={"$ref": "#/$defs/n"})}}, id="recursion"
        ),
        pytest.param(_object(a={"$ref": "https://example.com/s.json"}), id="another file"),
        pytest.param(_object(a={"type": "array"}), id="an array of anything"),
        pytest.param(_object(a={"anyOf": [STRING] * 6}), id="more than five alternatives"),
        pytest.param(_object(a={"type": ["string", "null"], "anyOf": [STRING]}), id="a list of types beside anyOf"),
        pytest.param(_object(a={**STRING, "description": "x" * 5000}), id="too long"),
        pytest.param(_DEEP, id="too deep"),
        pytest.param(_object(a={"enum": [*range(501)]}), id="too many values"),
        pytest.param(
            _referring(6, _object(**NINETY)),
            id="too many properties, by reference",
        ),
        pytest.param(
            _referring(5, {"enum": [f"{'x' * 28}{n}" for n in range(60)]}), id="too many long values, by reference"
        ),
        pytest.param({"type": "array", "items": STRING}, id="the root is no object"),
        pytest.param({"type": "object", "properties": 7}, id="nonsense"),
        pytest.param("no schema", id="no schema at all"),
    ],
)
def test_where_strictness_cannot_be_had(schema: Any) -> None:
    """None: the schema is then sent as a hint instead of being refused."""
    assert strict_schema(schema) is None


def test_references_count_where_they_do_not_exceed_the_limits() -> None:
    """The neighbours of the two cases above are strict, so that the limits are what refuses those."""
    for schema in (
        _referring(5, _object(**NINETY)),
        _referring(4, {"enum": [f"{'x' * 28}{n}" for n in range(60)]}),
    ):
        assert strict_schema(schema) == schema


# Pairs of a schema and a value that it allows, in the words that clients use.
_LEAVES = st.sampled_from(
    [
        ({"type": "string", "minLength": 1, "pattern": "^a"}, "abc"),
        ({"type": ["string", "null"], "format": "date"}, None),
        ({"type": ["integer", "string"], "minimum": 3, "maxLength": 2}, 4),
        ({"type": ["integer", "string"], "minimum": 3, "maxLength": 2}, "ab"),
        ({"enum": ["x", 1, None]}, 1),
        ({"type": ["string", "boolean"], "enum": ["x", True]}, True),
        ({"type": "number", "exclusiveMinimum": 0, "default": 1}, 0.5),
        ({"const": "k", "title": "K"}, "k"),
        ({"type": ["number", "null"], "const": 2}, 2),
        ({"$ref": "#/definitions/name"}, "someone"),
    ]
)


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def as_object(pairs: list[Any]) -> Any:
        properties = {f"p{n}": schema for n, (schema, _) in enumerate(pairs)}
        return _object(**properties), {f"p{n}": value for n, (_, value) in enumerate(pairs)}

    def as_array(pair: Any) -> Any:
        return {"type": "array", "items": pair[0], "maxItems": 9, "uniqueItems": False}, [pair[1], pair[1]]

    def as_choice(pairs: list[Any]) -> Any:
        return {"anyOf": [schema for schema, _ in pairs]}, pairs[0][1]

    def as_maybe_array(pair: Any) -> Any:
        return {"type": ["array", "null"], "items": pair[0], "minItems": 1}, [pair[1]]

    some = st.lists(inner, min_size=1, max_size=4)
    return some.map(as_object) | inner.map(as_array) | some.map(as_choice) | inner.map(as_maybe_array)


@settings(max_examples=200)
@given(st.recursive(_LEAVES, _nested, max_leaves=12))
def test_a_strict_schema_is_accepted_upstream_and_allows_what_the_clients_schema_allows(pair: Any) -> None:
    """Constrained decoding by it can produce every answer that the client's schema permits."""
    schema = {**_object(root=pair[0]), "definitions": {"name": {"type": "string", "minLength": 1}}}
    value = {"root": pair[1]}
    jsonschema.Draft202012Validator(schema).validate(value)
    strict = strict_schema(schema)
    if strict is not None:
        assert strict_problem(strict) is None
        jsonschema.Draft202012Validator(strict).validate(value)
        assert strict_schema(strict) == strict
    plain = plain_schema(schema)
    jsonschema.Draft202012Validator(plain).validate(value)
    assert plain_schema(plain) == plain


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("type", "properties", "items", "anyOf", "oneOf", "$ref", "$defs", "definitions", "enum", "const"),
                    *("required", "additionalProperties", "prefixItems", "a", "pattern"),
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@settings(max_examples=200)
@given(_JSON)
@example({"const": None, "type": [None, []]})
@example({"type": [[]]})
@example({"$defs": 2, "definitions": {"a": 1}})
def test_no_schema_breaks_the_translation(schema: Any) -> None:
    """Nonsense is either accepted upstream or not strict, never an exception; a second cleaning changes nothing."""
    strict = strict_schema(schema)
    assert strict is None or strict_problem(strict) is None
    plain = plain_schema(schema)
    assert plain_schema(plain) == plain


def test_a_schema_that_is_nested_beyond_reason_is_no_crash() -> None:
    """It is not strict, and it goes as it is, for the upstream to refuse."""
    schema: dict[str, Any] = STRING
    for _ in range(2_000):
        schema = _object(a=schema)
    assert strict_schema(schema) is None
    assert plain_schema(schema) is schema


# -- fallback -----------------------------------------------------------------------------------------


def _tool(name: str = "f", **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": _object(a=STRING), **fields}}


def _chat(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}


def _format(schema: dict[str, Any] | None = None, *, strict: bool = False) -> dict[str, Any]:
    return {
        "type": "json_schema",
        "json_schema": {"name": "n", "strict": strict, "schema": schema or _object(a=STRING)},
    }


def _error(message: str, param: str = "validation_error", code: str = "wrong_api_format") -> dict[str, Any]:
    return {"message": message, "type": "invalid_request_error", "param": param, "code": code}


EXPECTED = "Expected 'auto' or 'none'"
LENGTHS = _object(a={"type": "string", "minLength": 1})


@pytest.mark.parametrize(
    ("chat", "error", "expected"),
    [
        pytest.param(
            _chat(tools=[_tool()], tool_choice={"type": "function", "function": {"name": "f"}}),
            _error(EXPECTED, "tool_choice"),
            _chat(tools=[_tool()], tool_choice="required"),
            id="a named tool: any tool",
        ),
        pytest.param(
            _chat(tools=[_tool()], tool_choice="required"),
            _error(EXPECTED),
            _chat(tools=[_tool()]),
            id="any tool: as it likes",
        ),
        pytest.param(
            _chat(tools=[_tool()], tool_choice="none"),
            _error("x", "tool_choice"),
            _chat(),
            id="no tool may be called: none offered",
        ),
        pytest.param(
            _chat(tools=[_tool()], parallel_tool_calls=True),
            _error("parallel_tool_calls is not supported by this model.", "parallel_tool_calls"),
            _chat(tools=[_tool()]),
            id="parallel calls",
        ),
        pytest.param(
            _chat(reasoning_effort="low"),
            _error("reasoning_effort='low' is not supported by this model.", "reasoning_effort"),
            _chat(),
            id="an effort",
        ),
        pytest.param(
            _chat(user="u", stream_options={}),
            _error(
                "body.user: property 'body.user' is unsupported\n"
                "body.stream_options: property 'body.stream_options' is unsupported"
            ),
            _chat(),
            id="unknown properties that do not matter",
        ),
        pytest.param(
            {"messages": [{"role": "assistant", "content": "a", "reasoning": "r"}]},
            _error("messages.0.assistant.reasoning: property 'messages.0.assistant.reasoning' is unsupported"),
            {"messages": [{"role": "assistant", "content": "a"}]},
            id="earlier reasoning",
        ),
        pytest.param(
            _chat(tools=[_tool(strict=True)], response_format=_format(strict=True)),
            _error("Tools with strict=True are not supported by this model"),
            _chat(tools=[_tool()], response_format=_format()),
            id="strictness",
        ),
        pytest.param(
            _chat(response_format=_format(LENGTHS)),
            _error("Unsupported JSON schema fields: {'minLength'}", "response_format"),
            _chat(response_format=_format()),
            id="a schema's keywords",
        ),
        pytest.param(
            _chat(tools=[{"type": "function", "function": {"name": "f", "parameters": LENGTHS}}]),
            _error("Unsupported JSON schema fields: {'minLength'}", "tools"),
            _chat(tools=[_tool()]),
            id="a tool's keywords",
        ),
        pytest.param(
            _chat(
                messages=[
                    {
                        "role": "user",
                        "content": [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {}}],
                    }
                ]
            ),
            _error("Model m does not support image inputs", "messages"),
            _chat(messages=[{"role": "user", "content": "see\n[image left out: it cannot be shown to this model]"}]),
            id="images",
        ),
        pytest.param(
            _chat(reasoning_effort="low"),
            {"error": _error("", "reasoning_effort")},
            _chat(),
            id="an error object inside an error object",
        ),
    ],
)
def test_what_was_refused_is_taken_away(chat: Any, error: Any, expected: Any) -> None:
    """The next request is the same without it, and the refused one is not changed."""
    before = copy.deepcopy(chat)
    assert fallback(chat, 400, error) == expected
    assert chat == before


def test_a_format_beside_tools_moves_into_the_prompt() -> None:
    """The wish stands behind the leading system messages; the schema itself is in it."""
    chat = _chat(tools=[_tool()], response_format=_format())
    chat["messages"] = [{"role": "system", "content": "s"}, *chat["messages"]]
    relaxed = fallback(chat, 400, _error("response_format is not supported together with tools"))
    assert relaxed is not None
    assert "response_format" not in relaxed
    assert relaxed["tools"] == chat["tools"]
    assert [message["role"] for message in relaxed["messages"]] == ["system", "system", "user"]
    assert orjson.dumps(_object(a=STRING)).decode() in relaxed["messages"][1]["content"]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        pytest.param(
            400, _error("too long, with this reasoning_effort", "messages", "context_length_exceeded"), id="too long"
        ),
        pytest.param(401, _error("Wrong API Key; reasoning_effort", "api_key"), id="not a matter of the body"),
        pytest.param(429, _error("tool_choice"), id="too many requests"),
        pytest.param(
            400, _error("temperature: Input should be between 0 and 2", "temperature"), id="the client's mistake"
        ),
        pytest.param(
            400, _error("HTTPS image URLs are not supported."), id="an image that the client can send otherwise"
        ),
        pytest.param(422, {}, id="nothing said"),
        pytest.param(400, _error("tool_choice", "tool_choice"), id="about something that was not sent"),
    ],
)
def test_what_cannot_be_mended_is_told_to_the_client(status: int, error: Any) -> None:
    """None: the upstream's own message is the answer."""
    chat = _chat(temperature=7.0, reasoning_effort="low", tools=[_tool()])
    assert fallback(chat, status, error) is None


_WORDS = [
    "tool_choice",
    "parallel_tool_calls",
    "reasoning_effort",
    "strict",
    "schema",
    "response_format",
    "tools",
    "reasoning",
]
_PATHS = [
    "body.user",
    "body.stream_options",
    "messages.0.assistant.reasoning",
    "body.tools.0.function.strict",
    "messages.0",
]
_MESSAGES = st.one_of(
    st.lists(st.sampled_from(_WORDS), min_size=1, max_size=4).map(" ".join),
    st.sampled_from(_PATHS).map(lambda path: f"{path}: property '{path}' is unsupported"),
)


@settings(max_examples=200)
@given(_MESSAGES, st.booleans(), st.sampled_from(["none", "required", {"type": "function", "function": {"name": "f"}}]))
def test_asking_again_ends(message: str, strict: bool, choice: Any) -> None:
    """An upstream that gives the same refusal for ever gets a bounded number of requests, each another one."""
    tool = _tool(strict=True) if strict else _tool()
    chat: Any = _chat(
        tools=[tool],
        tool_choice=choice,
        parallel_tool_calls=True,
        user="u",
        stream_options={},
        reasoning_effort="low",
        response_format=_format(LENGTHS, strict=strict),
    )
    chat["messages"].append({"role": "assistant", "content": "a", "reasoning": "r"})
    seen = [orjson.dumps(chat)]
    while (chat := fallback(chat, 400, _error(message))) is not None:
        assert orjson.dumps(chat) not in seen
        seen.append(orjson.dumps(chat))
        assert len(seen) < 12
