"""A row and a template make exactly one request body, and one digest."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbatch.errors import JobError
from cbatch.job import Job
from cbatch.render import DEFAULT_RESERVE_TOKENS, Renderer, RenderError, condition
from cbatch.schema import Prompt, Request

MODEL = "gpt-oss-120b"


def job(prompt: Any, **keys: Any) -> Job:
    return Job.model_validate({"name": "j", "model": MODEL, "input": "a", "prompt": prompt, "folder": "/", **keys})


def row(fields: dict[str, Any]) -> Prompt:
    return Prompt(id="1", index=0, sample=0, model=MODEL, fields=fields, raw=b"{}", origin="a.jsonl:1")


def render(prompt: Any, fields: dict[str, Any], *, model: str = MODEL, **keys: Any) -> Request:
    return Renderer(job(prompt, **keys), model)(row(fields))


def body(prompt: Any, fields: dict[str, Any], **keys: Any) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(render(prompt, fields, **keys).body)
    return made


def said(prompt: Any, fields: dict[str, Any]) -> str:
    """What the user's message says."""
    text: str = body(prompt, fields)["messages"][-1]["content"]
    return text


# -- the body -----------------------------------------------------------------------------------


def test_the_body_has_the_model_the_messages_the_params_and_nothing_else() -> None:
    made = body(
        {"system": "You are {{ who }}.", "user": "{{ q }}"}, {"q": "Why?", "who": "x"}, params={"temperature": 0}
    )
    assert made == {
        "model": MODEL,
        "messages": [{"role": "system", "content": "You are x."}, {"role": "user", "content": "Why?"}],
        "temperature": 0.0,
    }


@pytest.mark.parametrize("prompt", ["x", {"messages": "m"}, {"body": "b"}], ids=["a template", "messages", "a body"])
def test_stream_is_sent_and_no_part_of_what_is_asked(prompt: Any) -> None:
    """Neither the digest nor the estimate of tokens knows of it: the answer is the same, whole or in pieces."""
    fields = {"m": TURNS, "b": {"messages": TURNS}}
    options = {"include_usage": True}
    plain = render(prompt, fields)
    for params in ({"stream": False}, {"stream_options": options}, {"stream": False, "stream_options": options}):
        assert render(prompt, fields, params=params) == plain
    streamed = render(prompt, fields, params={"stream": True, "stream_options": options})
    assert json.loads(streamed.body) == {**json.loads(plain.body), "stream": True, "stream_options": options}
    assert replace(streamed, body=plain.body) == plain


def test_a_streamed_body_takes_a_limit_like_any_other() -> None:
    made = render("x", {}, params={"stream": True, "temperature": 0})
    assert json.loads(made.with_limit(50)) == {**json.loads(made.body), "max_completion_tokens": 50}


@pytest.mark.parametrize(
    ("own", "params", "sent"),
    [
        pytest.param({"stream": True}, {}, {"stream": True}, id="a row asks for a stream"),
        pytest.param(
            {"stream": True, "stream_options": {"a": 1}},
            {},
            {"stream": True, "stream_options": {"a": 1}},
            id="with options",
        ),
        pytest.param({"stream": False}, {"stream": True}, {}, id="a row that wants none"),
        pytest.param({"stream": None}, {"stream": True}, {"stream": True}, id="a null in a row says nothing"),
        pytest.param(
            {"stream_options": {"a": 1}},
            {"stream": True, "stream_options": {"b": 1}},
            {"stream": True, "stream_options": {"a": 1}},
            id="a row with its own options",
        ),
        pytest.param({"stream_options": {"a": 1}}, {}, {}, id="options without a stream"),
    ],
)
def test_a_row_with_a_body_may_have_its_own_way_to_travel(
    own: dict[str, Any], params: dict[str, Any], sent: dict[str, Any]
) -> None:
    made = render({"body": "b"}, {"b": {"messages": TURNS, **own}}, params=params)
    assert json.loads(made.body) == {"model": MODEL, "messages": TURNS, **sent}
    assert made.digest == render({"body": "b"}, {"b": {"messages": TURNS}}).digest


def test_the_properties_of_a_schema_stay_in_the_order_the_user_wrote() -> None:
    """Answers are written in the order of the schema: reasoning before verdict is not verdict before reasoning."""
    properties = {"reasoning": {"type": "string"}, "answer": {"type": "string"}, "a": {"type": "null"}}
    schema = {"type": "object", "properties": properties}
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    made = body("x", {}, params={"response_format": form})
    assert list(made["response_format"]["json_schema"]["schema"]["properties"]) == ["reasoning", "answer", "a"]


_TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@settings(max_examples=50)
@given(_TEXT, _TEXT)
def test_any_text_comes_out_as_it_went_in(question: str, other: str) -> None:
    """No escaping, no stripping, no normalisation: quotes, NUL, U+2028, CRLF and `{{` in a row are only text."""
    made = body("{{ q }}|{{ other }}", {"q": question, "other": other})
    assert made["messages"] == [{"role": "user", "content": f"{question}|{other}"}]


@settings(max_examples=30)
@given(_TEXT.filter(lambda text: "{" not in text))
def test_a_template_without_braces_is_sent_as_it_is(text: str) -> None:
    assert said({"user": text}, {"q": 1}) == text


@pytest.mark.parametrize(
    ("template", "fields", "text"),
    [
        pytest.param("{{ q }}\n", {"q": "x"}, "x\n", id="the last newline is kept"),
        pytest.param("{{ q }}", {"q": "<b> & 'c'"}, "<b> & 'c'", id="nothing is escaped for HTML"),
        pytest.param(
            "{{ q | tojson }}", {"q": {"b": "<&'é", "a": [1]}}, '{"b": "<&\'é", "a": [1]}', id="tojson is JSON"
        ),
        pytest.param("{{ q.a.b[0] }}", {"q": {"a": {"b": [7]}}}, "7", id="a path goes into a row"),
        pytest.param("{{ q['items'] }}", {"q": {"items": 3}}, "3", id="brackets reach a column with a method's name"),
        pytest.param("{{ self_ }}{{ loop }}", {"self_": 1, "loop": 2}, "12", id="columns may have odd names"),
        pytest.param('{"a": {{ q }}}', {"q": 1}, '{"a": 1}', id="braces alone are text"),
        pytest.param("{% raw %}{{ q }}{% endraw %}", {"q": 1}, "{{ q }}", id="raw is raw"),
        pytest.param("{% if q is defined %}a{% else %}b{% endif %}", {}, "b", id="a column may be asked for"),
        pytest.param("{{ q | default('b') }}", {}, "b", id="a column may have a default"),
        pytest.param("{% for x in q %}{{ loop.index }}{{ x }}{% endfor %}", {"q": ["a", "b"]}, "1a2b", id="loops work"),
        pytest.param("{{ q | map('upper') | join(',') }}", {"q": ["a", "b"]}, "A,B", id="filters work"),
        pytest.param("", {}, "", id="an empty template is an empty message"),
    ],
)
def test_templates_say_what_they_say(template: str, fields: dict[str, Any], text: str) -> None:
    assert said({"user": template}, fields) == text


@pytest.mark.parametrize(
    ("template", "fields", "why"),
    [
        pytest.param("{{ qq }}", {"q": 1, "id": 2}, "'qq' is undefined; the row has: q, id", id="a missing column"),
        pytest.param("{{ q.a }}", {"q": {}}, "has no attribute 'a'", id="a missing key"),
        pytest.param("{{ q[3] }}", {"q": [1]}, "has no element 3", id="a missing element"),
        pytest.param("{% if qq %}a{% endif %}", {}, "'qq' is undefined", id="a missing column in a condition"),
        pytest.param("{% for x in qq %}a{% endfor %}", {}, "'qq' is undefined", id="a missing column in a loop"),
        pytest.param("{{ q.items }}", {"q": {"items": 1}}, "a function is not text", id="a method instead of a column"),
        pytest.param("{{ range }}", {}, "a function is not text", id="a function of the language"),
        pytest.param("{{ q | map('upper') }}", {"q": "a"}, "an iterator is not text", id="a list that was never made"),
        pytest.param("{{ q + 1 }}", {"q": "a"}, "TypeError", id="text plus a number"),
        pytest.param("{{ 1 / q }}", {"q": 0}, "ZeroDivisionError", id="a division by zero"),
        pytest.param("{% include 'a' %}", {}, "no loader", id="another file"),
        pytest.param("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", {}, "RecursionError", id="an endless macro"),
        pytest.param("{{ ''.__class__.__mro__ }}", {}, "unsafe", id="a way out by attributes"),
        pytest.param("{{ ''['__class__'] }}", {}, "unsafe", id="a way out by brackets"),
        pytest.param("{{ '' | attr('__class__') }}", {}, "unsafe", id="a way out by a filter"),
        pytest.param("{{ '{0.__class__}'.format(q) }}", {"q": 1}, "unsafe", id="a way out by format"),
        pytest.param("{{ cycler.__init__.__globals__ }}", {}, "unsafe", id="a way out by a global"),
        pytest.param("{% for i in range(10**9) %}x{% endfor %}", {}, "Range too big", id="a billion rounds"),
        pytest.param("{{ q.append(1) }}", {"q": []}, "unsafe", id="a change of the row"),
        pytest.param("{{ q }}", {"q": "\ud800"}, "cannot be written as JSON", id="a lone surrogate"),
    ],
)
def test_a_row_that_cannot_be_rendered_is_an_error_of_that_row(template: str, fields: dict[str, Any], why: str) -> None:
    """Never an empty string, never `<built-in method …>`, never a way out of the sandbox."""
    renderer = Renderer(job({"user": template}), MODEL)
    with pytest.raises(RenderError) as caught:
        renderer(row(fields))
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        pytest.param("a\nb {{ q", "line 2 of the template: unexpected end of template", id="an open brace"),
        pytest.param("a\n\n{% if %}", "line 3 of the template: Expected an expression", id="an empty condition"),
        pytest.param(
            "{{ q | nofilter }}", "line 1 of the template: No filter named 'nofilter'", id="an unknown filter"
        ),
        pytest.param("{{ q | random }}", "No filter named 'random'", id="chance, for a resumed run would differ"),
        pytest.param("{% nope %}", "Encountered unknown tag 'nope'", id="an unknown tag"),
        pytest.param("{{ " + "(" * 300 + "q" + ")" * 300 + " }}", "nested too deeply", id="300 brackets"),
        pytest.param("{% for a in q %}" * 25 + "{% endfor %}" * 25, "too many statically nested blocks", id="25 loops"),
        pytest.param("{{ " + "9" * 5000 + " }}", "4300 digits", id="5,000 digits"),
    ],
)
def test_a_template_that_does_not_parse_is_an_error_of_the_job(template: str, why: str) -> None:
    with pytest.raises(JobError) as caught:
        Renderer(job({"user": "x", "system": template}), MODEL)
    assert str(caught.value).startswith("prompt.system: ")
    assert why in str(caught.value)


@settings(max_examples=100, deadline=None)
@given(st.text("{}%#|.()[]'\"~+-*/ \nqifornd0", max_size=24))
def test_any_template_parses_or_raises_a_job_error_and_renders_or_raises_a_render_error(template: str) -> None:
    try:
        renderer = Renderer(job({"user": template}), MODEL)
    except JobError:
        return
    try:
        renderer(row({"q": "x", "n": 1}))
    except RenderError:
        return


# -- messages and bodies from the row -----------------------------------------------------------

TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]


@pytest.mark.parametrize("column", [pytest.param(TURNS, id="a list"), pytest.param(json.dumps(TURNS), id="JSON text")])
def test_messages_may_come_from_a_column(column: Any) -> None:
    assert body({"messages": "m"}, {"m": column})["messages"] == TURNS


def test_a_system_prompt_goes_before_the_messages_of_a_column() -> None:
    made = body({"messages": "m", "system": "Be {{ how }}."}, {"m": TURNS, "how": "brief"})
    assert made["messages"] == [{"role": "system", "content": "Be brief."}, *TURNS]


def test_the_nulls_that_parquet_fills_in_are_not_sent() -> None:
    """In a Parquet column every message has the keys of all; servers refuse `content: null` and `tool_calls: null`."""
    padded = [{"role": "user", "content": [{"type": "text", "text": "a", "image_url": None}], "tool_calls": None}]
    plain = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    assert render({"messages": "m"}, {"m": padded}) == render({"messages": "m"}, {"m": plain})


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        pytest.param({"x": 1}, "column 'm' is missing; the row has: x", id="no such column"),
        pytest.param({"m": None}, "column 'm' is not a list of messages; read NoneType", id="null"),
        pytest.param({"m": []}, "column 'm' is not a list of messages; read an empty list", id="an empty list"),
        pytest.param({"m": "hello"}, "column 'm' is not valid JSON", id="text"),
        pytest.param({"m": {"role": "user"}}, "column 'm' is not a list of messages; read dict", id="one message"),
        pytest.param({"m": [1]}, "column 'm': every message must be a mapping with role", id="a number"),
        pytest.param({"m": [{"content": "x"}]}, "column 'm': every message must be a mapping with role", id="no role"),
    ],
)
def test_a_column_without_messages_is_an_error_of_that_row(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(RenderError) as caught:
        render({"messages": "m"}, fields)
    assert str(caught.value).startswith(why)


def test_a_body_of_a_row_is_sent_with_the_params_it_does_not_set_and_the_model_of_the_job() -> None:
    request = {"model": "other", "messages": TURNS, "temperature": 1, "extra": {"z": None, "a": 1}}
    made = body({"body": "b"}, {"b": request}, params={"temperature": 0, "seed": 3})
    assert made == {"model": MODEL, "messages": TURNS, "temperature": 1, "seed": 3, "extra": {"z": None, "a": 1}}
    assert made == body({"body": "b"}, {"b": json.dumps(request)}, params={"temperature": 0, "seed": 3})


def test_a_null_in_a_body_is_a_key_that_is_not_there() -> None:
    """Parquet fills in every key that any row has: the job's parameter holds, and no server refuses a null."""
    request = {"messages": [{**TURNS[0], "name": None}, *TURNS[1:]], "temperature": None, "max_tokens": None}
    made = body({"body": "b"}, {"b": request}, params={"temperature": 0.1, "max_completion_tokens": 50})
    assert made == {"model": MODEL, "messages": TURNS, "temperature": 0.1, "max_completion_tokens": 50}


def test_a_body_with_the_old_name_of_the_limit_is_not_sent_with_both() -> None:
    made = render({"body": "b"}, {"b": {"messages": TURNS, "max_tokens": 5}}, params={"max_completion_tokens": 900})
    assert json.loads(made.body) == {"model": MODEL, "messages": TURNS, "max_tokens": 5}
    assert made.reserve_tokens == made.prompt_tokens_estimate + 5


@pytest.mark.parametrize(
    ("request_body", "why"),
    [
        pytest.param({}, "column 'b' is not a request body; read an empty dict", id="nothing"),
        pytest.param({"temperature": 0}, "the body has no messages", id="no messages"),
        pytest.param({"messages": TURNS, "n": 2}, "the body asks for more than one answer", id="several answers"),
        pytest.param([1], "column 'b' is not a request body; read list", id="a list"),
        pytest.param({"messages": TURNS, "x": 2**70}, "cannot be written as JSON", id="a number of 71 bits"),
    ],
)
def test_a_body_that_cannot_be_sent_is_an_error_of_that_row(request_body: Any, why: str) -> None:
    with pytest.raises(RenderError) as caught:
        render({"body": "b"}, {"b": request_body})
    assert why in str(caught.value)


# -- the digest ---------------------------------------------------------------------------------


def test_the_digest_of_a_template_is_the_sha256_of_the_body() -> None:
    made = render({"system": "s", "user": "{{ q }}"}, {"q": "x"}, params={"temperature": 0, "user": "me"})
    assert made.digest == hashlib.sha256(made.body).digest()


@pytest.mark.parametrize(
    ("prompt", "fields"),
    [
        pytest.param("{{ a }}{{ b }}", {"a": 1, "b": 2}, id="a template"),
        pytest.param({"messages": "m"}, {"m": [{"role": "user", "content": "x"}], "z": 1}, id="messages"),
        pytest.param({"body": "b"}, {"b": {"messages": TURNS, "seed": 1}, "z": 1}, id="a body"),
    ],
)
def test_the_order_of_keys_in_a_row_does_not_change_the_digest(prompt: Any, fields: dict[str, Any]) -> None:
    def turned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: turned(value[key]) for key in reversed(value)}
        return [turned(inner) for inner in value] if isinstance(value, list) else value

    assert render(prompt, fields).digest == render(prompt, turned(fields)).digest


def test_the_digest_changes_with_whatever_changes_the_answer() -> None:
    digests = [
        render("{{ q }}", {"q": "x"}).digest,
        render("{{ q }}", {"q": "y"}).digest,
        render("{{ q }} ", {"q": "x"}).digest,
        render({"system": "", "user": "{{ q }}"}, {"q": "x"}).digest,
        render("{{ q }}", {"q": "x"}, model="other").digest,
        render("{{ q }}", {"q": "x"}, params={"temperature": 0}).digest,
        render("{{ q }}", {"q": "x"}, params={"temperature": 1}).digest,
        render("{{ q }}", {"q": "x"}, params={"seed": 0}).digest,
    ]
    assert len(set(digests)) == len(digests)


def test_the_order_of_params_does_not_change_the_digest_and_the_order_of_schema_properties_does() -> None:
    def form(*names: str) -> dict[str, Any]:
        schema = {"type": "object", "properties": {name: {} for name in names}}
        return {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}}

    one = render("x", {}, params={"seed": 1, "temperature": 0})
    assert one == render("x", {}, params={"temperature": 0, "seed": 1})
    assert render("x", {}, params=form("a", "b")).digest != render("x", {}, params=form("b", "a")).digest


def test_a_row_is_rendered_the_same_every_time() -> None:
    renderer = Renderer(job("{{ q | tojson }} {{ q | sort | join }}"), MODEL)
    prompt = row({"q": ["b", "a"]})
    assert renderer(prompt) == renderer(prompt)
    assert prompt.fields == {"q": ["b", "a"]}


# -- estimates ----------------------------------------------------------------------------------


def test_what_is_reserved_is_the_prompt_and_the_limit_of_the_answer() -> None:
    made = render("{{ q }}", {"q": "word " * 4000}, params={"max_completion_tokens": 100})
    assert 4_000 < made.prompt_tokens_estimate < 8_000
    assert made.reserve_tokens == made.prompt_tokens_estimate + 100
    unlimited = render("x", {})
    assert unlimited.reserve_tokens == unlimited.prompt_tokens_estimate + DEFAULT_RESERVE_TOKENS


def test_a_schema_and_a_system_prompt_count_as_prompt() -> None:
    plain = render("x", {}).prompt_tokens_estimate
    assert render({"system": "s" * 4000, "user": "x"}, {}).prompt_tokens_estimate >= plain + 1000
    tools = [{"type": "function", "function": {"name": "f", "description": "d" * 4000}}]
    assert render("x", {}, params={"tools": tools}).prompt_tokens_estimate >= plain + 1000


def test_params_that_json_cannot_hold_are_an_error_of_the_job() -> None:
    with pytest.raises(JobError, match="params: cannot be sent as JSON"):
        Renderer(job("x", params={"seed": 2**70}), MODEL)


# -- input.where --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fields", "holds"),
    [
        pytest.param("level > 3", {"level": 4}, True, id="a number is compared"),
        pytest.param("level > 3", {"level": 3}, False, id="and may be too small"),
        pytest.param("lang == 'en' and not done", {"lang": "en", "done": False}, True, id="words combine"),
        pytest.param("tag in ['a', 'b']", {"tag": "c"}, False, id="lists are searched"),
        pytest.param("x is defined", {}, False, id="a column may be asked for"),
        pytest.param("context == 2", {"self": 1, "context": 2, "": 3}, True, id="columns may have odd names"),
        pytest.param("text", {"text": ""}, False, id="an empty text is false"),
    ],
)
def test_a_condition_is_a_jinja_expression_over_the_columns(text: str, fields: dict[str, Any], holds: bool) -> None:
    assert condition(text)(fields) is holds


@pytest.mark.parametrize("fields", [{}, {"level": "x"}, {"level": None}])
def test_a_condition_that_cannot_be_decided_is_an_error_of_that_row(fields: dict[str, Any]) -> None:
    """Neither kept nor dropped in silence."""
    with pytest.raises(RenderError, match=r"input\.where cannot be decided: "):
        condition("level > 3")(fields)


@pytest.mark.parametrize(
    "text", ["level >", "{{ level }}", " ", "level = 3", "x | nofilter", "(" * 300 + "x" + ")" * 300]
)
def test_a_condition_that_is_no_expression_is_an_error_of_the_job(text: str) -> None:
    with pytest.raises(JobError, match=r"input\.where: .* is not an expression: "):
        condition(text)


@pytest.mark.parametrize(
    "template",
    [
        pytest.param("{{ 'x' * 10**9 }}", id="a billion characters"),
        pytest.param("{{ 9**9**9 }}", id="a number with 370 million digits"),
        pytest.param("{{ q * 100000000 }}", id="a column repeated a hundred million times"),
        pytest.param("{{ [q] * 10**8 * 10 }}", id="a list that fills the memory"),
    ],
)
def test_no_operator_can_eat_the_machine(template: str) -> None:
    with pytest.raises(RenderError, match=r"\*"):
        render(template, {"q": "x"})


@pytest.mark.parametrize("template", ["{{ q }}", "{{ q }}{{ 1 + 1 }}"], ids=["a plain column", "jinja's way"])
def test_a_null_is_not_sent_as_the_word_none(template: str) -> None:
    with pytest.raises(RenderError, match="null has no text"):
        render(template, {"q": None})
    assert said("{{ q | default('-', true) }}", {"q": None}) == "-"


def test_multiplying_sensibly_is_as_in_python() -> None:
    assert said("{{ '-' * 3 }}{{ 2**10 }}{{ 1.5 * n }}", {"n": 4}) == "---10246.0"


def test_a_right_sized_limit_changes_neither_the_body_nor_the_digest() -> None:
    """`auto` is ours to choose for every request: a resumed run must know its rows again."""
    plain, auto = render("x", {}), render("x", {}, params={"max_completion_tokens": "auto"})
    assert (auto.body, auto.digest, auto.limit_tokens) == (plain.body, plain.digest, None)
    assert json.loads(auto.with_limit(256)) == json.loads(plain.body) | {"max_completion_tokens": 256}
    assert render("x", {}, params={"max_completion_tokens": 7}).limit_tokens == 7


@pytest.mark.parametrize("name", ["max_completion_tokens", "max_tokens"])
def test_a_row_that_brings_its_own_limit_keeps_it_where_the_job_says_auto(name: str) -> None:
    own = {"messages": [{"role": "user", "content": "x"}], name: 9}
    params = {"max_completion_tokens": "auto"}
    assert render({"body": "b"}, {"b": own}, params=params).limit_tokens == 9
    del own[name]
    assert render({"body": "b"}, {"b": own}, params=params).limit_tokens is None


ROUNDS = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"
DOUBLES = "{% set n = namespace(x=3, s='x') %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}"
CALLS = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
LITERAL = "{% for a in [1, 2, 3, 4, 5, 6, 7, 8, 9, 10] %}" * 18 + "{% endfor %}" * 18
TREE = "{% for x in range(90) recursive %}{% if loop.depth < 12 %}{{ loop(range(90)) }}{% endif %}{% endfor %}"


@pytest.mark.parametrize(
    "template",
    [
        pytest.param(ROUNDS, id="loops in loops"),
        pytest.param(LITERAL, id="loops over a literal list"),
        pytest.param(TREE, id="a recursive loop"),
        pytest.param(CALLS, id="macros that call themselves twice"),
        pytest.param(DOUBLES, id="a number that is squared again and again"),
        pytest.param(DOUBLES.replace("n.x * n.x", "n.x + n.x").replace("x=3", "x='x'"), id="a text that is doubled"),
        pytest.param(DOUBLES.replace("n.x * n.x", "n.x ~ n.x").replace("x=3", "x='x'"), id="a text, with ~"),
        pytest.param("{{ '%1000000000d' % 1 }}", id="percent and a width"),
        pytest.param("{{ '%.*f' % (1000000000, 1.5) }}", id="percent and a precision from the values"),
        pytest.param("{{ '%1000000000d' | format(1) }}", id="the filter format"),
        pytest.param("{{ q | center(1000000000) }}", id="the filter center"),
        pytest.param("{{ q | indent(1000000000, true) }}", id="the filter indent"),
        pytest.param("{{ [1] | batch(1000000000, 1) | list }}", id="the filter batch"),
        pytest.param("{{ [1] | tojson(1000000000) }}", id="the filter tojson"),
        pytest.param("{{ q.ljust(1000000000) }}", id="the method ljust"),
        pytest.param("{{ '{:1000000000d}'.format(1) }}", id="a format and a width"),
        pytest.param("{{ '{:{}}'.format(q, 1000000000) }}", id="a format and a width from the values"),
        pytest.param("{{ '{q:1000000000}'.format_map({'q': 1}) }}", id="format_map"),
        pytest.param("{{ ('a' * 9000000).replace('a', 'b' * 9000000) }}", id="replace"),
        pytest.param("{{ range(100000) | join('b' * 9000000) }}", id="join"),
        pytest.param("{% for i in range(100000) %}{{ long }}{% endfor %}", id="a long column again and again"),
        pytest.param("{% for i in range(100000) %}{% set x = range(100000) | sum %}{% endfor %}", id="sums in a loop"),
    ],
)
def test_no_template_fills_the_memory_or_stops_the_event_loop(template: str) -> None:
    """It becomes an error of its row within seconds, where it took minutes in which not even Ctrl-C worked."""
    with pytest.raises(RenderError, match=r"more than 64 MB of text|of numbers this large|an indent of"):
        render(template, {"q": "x", "long": "y" * 1_000_000})


def test_a_condition_is_bounded_too() -> None:
    """Every row anew: what one row uses is not missing for the next."""
    holds = condition("(q | center(40000000)) | length > 1")
    assert [holds({"q": "x"}) for _ in range(3)] == [True] * 3
    with pytest.raises(RenderError, match="more than 64 MB"):
        condition("(q | center(1000000000)) | length > 1")({"q": "x"})


def test_what_is_bounded_is_otherwise_as_in_jinja() -> None:
    template = (
        "{{ '%5.1f|%s' % (n, 'a') }}{{ n % 3 }}{{ '{:>4}'.format(n) }}{{ q.ljust(3) }}{{ q | center(3) }}"
        "{{ q ~ n ~ '!' }}{{ [1] + [2] }}"
        "{% for k, v in d.items() %}{{ loop.index }}/{{ loop.length }}{{ k }}{{ v }}{% endfor %}"
        "{% for x in [] %}{% else %}none{% endfor %}{% for x in [1, 2, 3] if x > 1 %}{{ x }}{{ ',' if not loop.last }}"
        "{% endfor %}{% set t %}{{ q }}{{ q }}{% endset %}{{ t }}{{ [[1, [2]], 3] | map('string') | join(';') }}"
    )
    assert said({"user": template}, {"q": "x", "n": 7, "d": {"a": 1, "b": 2}}) == (
        "  7.0|a1   7x   x x7![1, 2]1/2a12/2b2none2,3xx[1, [2]];3"
    )


def test_a_long_output_is_whole() -> None:
    assert said("{% for i in range(n) %}{{ i }}{{ none_ }},{% endfor %}", {"n": 5000, "none_": ""}) == "".join(
        f"{i}," for i in range(5000)
    )


def test_a_body_that_is_nested_too_deeply_is_an_error_of_that_row() -> None:
    deep: Any = "x"
    for _ in range(990):
        deep = [deep]
    with pytest.raises(RenderError, match=r"nested too deeply|cannot be written as JSON"):
        render({"body": "b"}, {"b": {"messages": [{"role": "user", "content": deep}]}})


@pytest.mark.parametrize("name", ["max_completion_tokens", "max_tokens"])
def test_an_endless_limit_is_sent_as_it_is_and_reckoned_with_as_a_trillion(name: str) -> None:
    """Its sum with anything would fit no column of 64 bits, and the part could never be written."""
    own = {"messages": TURNS, name: 2**63 - 1}
    for made in (
        render({"body": "b"}, {"b": own}),
        Renderer(job("x", model="unknown", params={name: 2**63 - 1}), "unknown")(row({})),
    ):
        assert json.loads(made.body)[name] == 2**63 - 1
        assert made.limit_tokens == 10**12
        assert made.reserve_tokens == made.prompt_tokens_estimate + 10**12
