"""How declared tools become functions, how their names come back, and which one may be forced."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbatch.responses.tools import Declared, ToolNames, TranslationError, chosen, declared_tools

CHAT_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
OBJECT = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}


def _function(name: str = "f", **fields: Any) -> dict[str, Any]:
    return {"type": "function", "name": name, "parameters": OBJECT, **fields}


def _namespace(name: str, *tools: dict[str, Any], about: str = "") -> dict[str, Any]:
    return {"type": "namespace", "name": name, "description": about, "tools": list(tools)}


def _functions(
    *tools: dict[str, Any], items: tuple[dict[str, Any], ...] = ()
) -> tuple[list[dict[str, Any]], ToolNames]:
    chat, names = declared_tools(list(tools), items)
    assert all(tool["type"] == "function" and tool.keys() == {"type", "function"} for tool in chat)
    return [tool["function"] for tool in chat], names


def test_a_function_is_nested_and_keeps_its_schema() -> None:
    """Name, description and parameters arrive unchanged; `strict: false` is not sent."""
    found, names = _functions(_function("exec_command", description="Runs it.", strict=False))
    assert found == [{"name": "exec_command", "description": "Runs it.", "parameters": OBJECT}]
    assert names.lift("exec_command") == Declared("function", "exec_command")


def test_a_function_without_parameters_takes_an_empty_object() -> None:
    """`parameters: null` is legal for the client, and no schema at all is not sure to be legal upstream."""
    found, _ = _functions(_function(parameters=None))
    assert found[0]["parameters"] == {"type": "object", "properties": {}}


def test_a_custom_tool_takes_its_text_in_one_argument() -> None:
    """The grammar, and that the text is not to be wrapped, are told in the description."""
    tool = {
        "type": "custom",
        "name": "apply_patch",
        "description": "Edits files.",
        "format": {"type": "grammar", "syntax": "lark", "definition": "start: begin_patch"},
    }
    (found,), names = _functions(tool)
    assert found["parameters"]["required"] == ["input"]
    assert found["parameters"]["properties"]["input"]["type"] == "string"
    assert found["description"].startswith("Edits files.")
    assert "no markdown fence" in found["description"]
    assert "start: begin_patch" in found["description"]
    assert names.lift("apply_patch") == Declared("custom", "apply_patch")


def test_a_namespace_is_flattened_and_comes_back() -> None:
    """Both names are needed by the client: a call without its namespace is an unsupported call."""
    found, names = _functions(_namespace("mcp__demo", _function("add"), {"type": "custom", "name": "run"}))
    assert [function["name"] for function in found] == ["mcp__demo__add", "mcp__demo__run"]
    assert names.lift("mcp__demo__add") == Declared("function", "add", "mcp__demo")
    assert names.lift("mcp__demo__run") == Declared("custom", "run", "mcp__demo")
    assert names.lower("add", "mcp__demo") == "mcp__demo__add"


def test_codex_own_namespace_has_no_prefix() -> None:
    """Tools in `functions` stand alone, and a call in the history finds them with or without the namespace."""
    found, names = _functions(_namespace("functions", {"type": "custom", "name": "exec"}))
    assert found[0]["name"] == "exec"
    assert names.lower("exec") == names.lower("exec", "functions") == "exec"
    assert names.lift("exec").kind == "custom"


def test_what_a_namespace_says_of_itself_is_told_once() -> None:
    """The first of its tools has it; the sentence that only repeats the name is left out."""
    found, _ = _functions(
        _namespace("agents", _function("a", description="A."), _function("b", description="B."), about="For agents."),
        _namespace("mcp__x", _function("c", description="C."), about="Tools in the mcp__x namespace."),
    )
    assert [function["description"] for function in found] == ["For agents.\n\nA.", "B.", "C."]


def test_tool_search_of_the_client_and_local_shell_are_functions() -> None:
    """What the client runs itself can be called; the same search on OpenAI's servers cannot."""
    schema = {"type": "object", "properties": {"query": {"type": "string"}}}
    found, names = _functions(
        {"type": "tool_search", "execution": "client", "description": "Finds.", "parameters": schema},
        {"type": "local_shell"},
    )
    assert found[0] == {"name": "tool_search", "description": "Finds.", "parameters": schema}
    assert found[1]["parameters"]["required"] == ["command"]
    assert names.lift("tool_search").kind == "tool_search"
    assert names.lift("local_shell").kind == "local_shell"
    assert _functions({"type": "tool_search", "execution": "server"}, {"type": "tool_search"})[0] == []


@pytest.mark.parametrize(
    "kind", ["web_search", "image_generation", "file_search", "code_interpreter", "mcp", "brand_new"]
)
def test_hosted_tools_are_left_out(kind: str) -> None:
    """Codex offers web_search by default: refusing it would refuse every request."""
    found, _ = _functions({"type": kind, "external_web_access": True}, _function())
    assert [function["name"] for function in found] == ["f"]


def test_tools_inside_the_history_are_declared_too() -> None:
    """`additional_tools` and what a tool search found come behind the request's own tools."""
    found, names = _functions(
        _function("own"),
        items=(
            {"type": "additional_tools", "role": "developer", "tools": [_function("added")]},
            {"type": "tool_search_output", "call_id": "c", "tools": [_namespace("ns", _function("found"))]},
        ),
    )
    assert [function["name"] for function in found] == ["own", "added", "ns__found"]
    assert names.lift("ns__found") == Declared("function", "found", "ns")


def test_no_tools_key_but_tools_in_the_history() -> None:
    """Codex's lite models send no `tools` at all."""
    chat, _ = declared_tools(None, [{"type": "additional_tools", "tools": [_function()]}])
    assert [tool["function"]["name"] for tool in chat] == ["f"]


def test_a_tool_that_is_declared_again_is_offered_once_as_it_is_now() -> None:
    """Two functions of one name would be refused; the newer one wins, at the place of the older one."""
    found, names = _functions(
        _function("f", description="old"),
        _function("g"),
        items=({"type": "additional_tools", "tools": [{"type": "custom", "name": "f", "description": "new"}]},),
    )
    assert [function["name"] for function in found] == ["f", "g"]
    assert found[0]["description"].startswith("new")
    assert names.lift("f").kind == "custom"


def test_names_that_meet_when_flattened_stay_apart() -> None:
    """The first keeps the plain name, the second gets a hash; each call comes back as its own."""
    found, names = _functions(_function("a__b"), _namespace("a", _function("b")))
    first, second = (function["name"] for function in found)
    assert first == "a__b"
    assert second != first
    assert CHAT_NAME.fullmatch(second)
    assert names.lift(first) == Declared("function", "a__b")
    assert names.lift(second) == Declared("function", "b", "a")


def test_long_names_that_differ_only_at_the_end_stay_apart() -> None:
    """Cutting at 64 characters alone would make them one tool."""
    long = "mcp__a_server_with_a_very_long_name_indeed"
    found, names = _functions(_namespace(long, _function("x" * 40 + "1"), _function("x" * 40 + "2")))
    first, second = (function["name"] for function in found)
    assert first != second
    assert len(first) == len(second) == 64
    assert names.lift(second).name.endswith("2")


@pytest.mark.parametrize(
    ("name", "namespace", "expected"),
    [
        pytest.param("old_tool", None, "old_tool", id="a plain name as it is"),
        pytest.param("add", "mcp__demo", "mcp__demo__add", id="a namespaced one flat"),
        pytest.param("", None, "unnamed", id="an empty one gets a word, since upstream wants a character"),
    ],
)
def test_a_call_of_a_tool_that_is_gone_still_has_a_name(name: str, namespace: str | None, expected: str) -> None:
    """The history outlives the tools."""
    assert ToolNames().lower(name, namespace) == expected


def test_an_unknown_name_is_passed_on() -> None:
    """The client tells the model that there is no such tool, which is better than an error here."""
    assert ToolNames().lift("invented.name") == Declared("function", "invented.name")


_NAMES = st.one_of(st.sampled_from(["a", "b", "a__b", "b__a", "a_b", "a.b", "é"]), st.text(min_size=1, max_size=90))
_DECLARED = st.builds(
    Declared,
    st.sampled_from(["function", "custom"]),
    _NAMES,
    st.one_of(st.none(), _NAMES.filter(lambda name: name != "functions")),
)


@given(st.lists(_DECLARED, max_size=12, unique_by=lambda tool: (tool.name, tool.namespace)))
def test_every_declared_tool_has_one_valid_name_and_comes_back(tools: list[Declared]) -> None:
    """lower then lift is the identity, whatever the names are."""
    names = ToolNames(tools)
    lowered = [names.lower(tool.name, tool.namespace) for tool in tools]
    assert len(set(lowered)) == len(tools)
    assert all(CHAT_NAME.fullmatch(name) for name in lowered)
    assert [names.lift(name) for name in lowered] == tools


@given(st.lists(_DECLARED, max_size=6), st.lists(_DECLARED, max_size=6))
def test_a_tool_that_is_added_renames_nothing(tools: list[Declared], more: list[Declared]) -> None:
    """Otherwise the whole history would change, and nothing of it would be cached upstream."""
    before, after = ToolNames(tools), ToolNames([*tools, *more])
    for tool in tools:
        assert before.lower(tool.name, tool.namespace) == after.lower(tool.name, tool.namespace)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        pytest.param([True, True], [True, True], id="strict where all ask for it"),
        pytest.param([True, False], [None, None], id="not where one does not"),
        pytest.param([False, True], [None, None], id="nor where only the last one does"),
        pytest.param([None, None], [None, None], id="not where nobody says"),
    ],
)
def test_strict_is_all_or_nothing(flags: list[bool | None], expected: list[bool | None]) -> None:
    """Mixed values are a 422 upstream."""
    found, _ = _functions(*(_function(f"f{n}", strict=flag) for n, flag in enumerate(flags)))
    assert [function.get("strict") for function in found] == expected


def test_one_schema_that_cannot_be_strict_makes_all_tools_loose() -> None:
    """A weaker promise is better than a 400, and the schema itself stays as the client wrote it."""
    optional = {**OBJECT, "required": []}
    found, _ = _functions(_function("f", strict=True), _function("g", strict=True, parameters=optional))
    assert [function.get("strict") for function in found] == [None, None]
    assert found[1]["parameters"] == optional


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        pytest.param({"type": "function"}, "tools", id="not a list"),
        pytest.param(["f"], "tools[0]", id="a tool that is no object"),
        pytest.param([{"type": "function", "function": {"name": "f"}}], "tools[0].name", id="the shape of chat"),
        pytest.param([{"type": "custom", "name": ""}], "tools[0].name", id="an empty name"),
        pytest.param([{"type": "function", "name": "f", "parameters": "x"}], "tools[0].parameters", id="no schema"),
        pytest.param([_namespace("n", {"type": "function"})], "tools[0].tools[0].name", id="inside a namespace"),
    ],
)
def test_a_malformed_tool_is_named_with_its_place(tools: Any, param: str) -> None:
    """The client's error says where it is."""
    with pytest.raises(TranslationError) as caught:
        declared_tools(tools, [])
    assert caught.value.param == param
    assert param in caught.value.message


# -- tool_choice --------------------------------------------------------------------------------------


TOOLS, NAMES = declared_tools(
    [
        _function("f"),
        {"type": "custom", "name": "apply_patch"},
        _namespace("mcp__demo", _function("add")),
        {"type": "tool_search", "execution": "client"},
    ],
    [],
)


def _named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        pytest.param("auto", "auto", id="auto"),
        pytest.param("none", "none", id="none"),
        pytest.param("required", "required", id="required"),
        pytest.param(None, None, id="nothing said"),
        pytest.param({"type": "function", "name": "f"}, _named("f"), id="a function is nested"),
        pytest.param(
            {"type": "custom", "name": "apply_patch"}, _named("apply_patch"), id="a custom tool is a function"
        ),
        pytest.param(
            {"type": "function", "name": "add", "namespace": "mcp__demo"}, _named("mcp__demo__add"), id="in a namespace"
        ),
        pytest.param({"type": "function", "name": "add"}, _named("mcp__demo__add"), id="by the inner name alone"),
        pytest.param({"type": "function", "name": "mcp__demo__add"}, _named("mcp__demo__add"), id="by the flat name"),
        pytest.param({"type": "tool_search"}, _named("tool_search"), id="a tool named by its type"),
        pytest.param({"type": "web_search_preview"}, "auto", id="a hosted tool cannot be forced"),
    ],
)
def test_tool_choice(choice: Any, expected: Any) -> None:
    """A choice is said in chat's words, and all tools stay on offer."""
    assert chosen(choice, TOOLS, NAMES) == (expected, TOOLS)


@pytest.mark.parametrize(("mode", "expected"), [("auto", "auto"), ("required", "required")])
def test_allowed_tools_are_the_only_ones_offered(mode: str, expected: str) -> None:
    """Chat cannot offer a tool and forbid it; hosted ones in the list are as absent as everywhere."""
    listed = [{"type": "function", "name": "f"}, {"type": "custom", "name": "apply_patch"}, {"type": "web_search"}]
    choice, offered = chosen({"type": "allowed_tools", "mode": mode, "tools": listed}, TOOLS, NAMES)
    assert choice == expected
    assert [tool["function"]["name"] for tool in offered] == ["f", "apply_patch"]


def test_only_hosted_tools_allowed_means_none() -> None:
    """None of ours may be called then."""
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "web_search"}]}
    assert chosen(choice, TOOLS, NAMES) == ("none", TOOLS)


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "name": "f"}])
def test_no_choice_without_tools(choice: Any) -> None:
    """Codex's compaction sends `tools: []` and `tool_choice: auto`, which the upstream refuses together."""
    assert chosen(choice, [], ToolNames()) == (None, [])


@pytest.mark.parametrize(
    "choice",
    [
        pytest.param("sometimes", id="a word"),
        pytest.param({"type": "function", "name": "gone"}, id="a tool that is not there"),
        pytest.param({"type": "function", "name": "add", "namespace": "other"}, id="another namespace"),
        pytest.param(7, id="a number"),
    ],
)
def test_an_impossible_choice_is_refused(choice: Any) -> None:
    """Calling another tool than the one asked for would be worse."""
    with pytest.raises(TranslationError, match="tool_choice"):
        chosen(choice, TOOLS, NAMES)
