"""Tools as a Responses client declares them -> functions of a chat request, and called names back again."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cbatch.responses.schemas import strict_schema

__all__ = ["Declared", "ToolNames", "TranslationError", "chosen", "declared_tools"]

_CHAT_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_-]")
_MAX_NAME_CHARS = 64
_HASH_CHARS = 8
_NO_PREFIX = "functions"  # Codex's namespace for its own tools; their names are meant to stand alone

# The keys are those of local_shell_call.action.
_LOCAL_SHELL = {
    "type": "object",
    "properties": {
        "command": {"type": "array", "items": {"type": "string"}, "description": "The program and its arguments."},
        "working_directory": {"type": "string"},
        "timeout_ms": {"type": "number"},
    },
    "required": ["command"],
    "additionalProperties": False,
}
_NO_PARAMETERS = {"type": "object", "properties": {}}


class TranslationError(ValueError):
    """The request asks for what chat completions cannot do: HTTP 400, in the fields of OpenAI's error object."""

    def __init__(self, message: str, *, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


@dataclass(frozen=True, slots=True)
class Declared:
    """A tool as the client declared it, which is how it must see a call of it."""

    kind: Literal["function", "custom", "tool_search", "local_shell"]
    name: str
    namespace: str | None = None


class ToolNames:
    """Both directions between declared tools and chat names; rebuilt from every request, it needs no memory.

    A chat name depends on its tool and on those declared before it, so tools that are added later rename nothing.
    """

    __slots__ = ("_chat", "_declared")

    def __init__(self, tools: Iterable[Declared] = ()) -> None:
        self._chat: dict[tuple[str, str], str] = {}
        self._declared: dict[str, Declared] = {}
        for tool in tools:
            self.add(tool)

    def add(self, tool: Declared) -> str:
        """The chat name of a tool; one that is declared again keeps its name and becomes what it is now."""
        key = _key(tool.name, tool.namespace)
        chat_name = self._chat.get(key)
        if chat_name is None:
            chat_name = _plain(*key)
            salt = 0
            while chat_name in self._declared:
                chat_name = _hashed(*key, salt)
                salt += 1
            self._chat[key] = chat_name
        self._declared[chat_name] = tool
        return chat_name

    def lift(self, chat_name: str) -> Declared:
        """The tool that was called; a name that nobody declared is passed on, for the client to refuse."""
        return self._declared.get(chat_name) or Declared("function", chat_name)

    def lower(self, name: str, namespace: str | None = None) -> str:
        """The chat name of a tool, also of one in the history that is not declared any more."""
        key = _key(name, namespace)
        return self._chat.get(key) or _plain(*key)

    def find(self, name: str, namespace: str | None = None) -> str | None:
        """The chat name of a declared tool, however it is named: by both names, the flat one, or the inner one."""
        chat_name = self._chat.get(_key(name, namespace))
        if chat_name is None and namespace is None:
            if name in self._declared:
                return name
            inner = [chat for (_, inside), chat in self._chat.items() if inside == name]
            return inner[0] if len(inner) == 1 else None
        return chat_name


def _key(name: str, namespace: str | None) -> tuple[str, str]:
    return ("" if namespace is None or namespace == _NO_PREFIX else namespace, name)


def _flat(namespace: str, name: str) -> str:
    return f"{namespace}__{name}" if namespace else name


def _plain(namespace: str, name: str) -> str:
    flat = _flat(namespace, name)
    if _CHAT_NAME.fullmatch(flat):
        return flat
    # Cut or cleaned names could meet each other, so the hash comes with the change and not with the collision:
    # a name must not depend on which other tools are there.
    return _hashed(namespace, name) if flat else "unnamed"


def _hashed(namespace: str, name: str, salt: int = 0) -> str:
    digest = hashlib.sha256(f"{namespace}\0{name}\0{salt}".encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_CHARS]
    clean = _NOT_IN_NAMES.sub("_", _flat(namespace, name))
    return f"{clean[: _MAX_NAME_CHARS - _HASH_CHARS - 1]}_{digest}"


def declared_tools(tools: Any, items: Iterable[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], ToolNames]:
    """Every tool that can be called: the request's, and those that the history adds. Raises TranslationError.

    A tool that is declared again replaces its first declaration in place. `strict` is all or nothing upstream, so it is
    sent only where every tool asks for it and can have it.
    """
    names = ToolNames()
    found: dict[str, dict[str, Any]] = {}
    strict = True
    for tool, kind, namespace, where in _callable(tools, items):
        function = _function(tool, kind, where)
        function["name"] = names.add(Declared(kind, function["name"], namespace))
        found[function["name"]] = function
        strict = strict and tool.get("strict") is True
    if strict:
        fitting = [strict_schema(function["parameters"]) for function in found.values()]
        if None not in fitting:
            for function, parameters in zip(found.values(), fitting, strict=True):
                function |= {"parameters": parameters, "strict": True}
    return [{"type": "function", "function": function} for function in found.values()], names


_Kind = Literal["function", "custom", "tool_search", "local_shell"]


def _callable(
    tools: Any, items: Iterable[Mapping[str, Any]]
) -> Iterator[tuple[Mapping[str, Any], _Kind, str | None, str]]:
    """(tool, kind, namespace, place) of everything that is not hosted, namespaces opened."""
    lists = [(tools, "tools")]
    for index, item in enumerate(items):
        if item.get("type") in ("additional_tools", "tool_search_output"):
            lists.append((item.get("tools"), f"input[{index}].tools"))
    for each, place in lists:
        if each is None:
            continue
        if not isinstance(each, list):
            raise TranslationError(f"{place} should be a list of tools", param=place, code="invalid_type")
        for number, tool in enumerate(each):
            where = f"{place}[{number}]"
            if not isinstance(tool, dict):
                raise TranslationError(f"{where} should be an object", param=where, code="invalid_type")
            if tool.get("type") != "namespace":
                kind = _kind(tool)
                if kind:
                    yield tool, kind, None, where
                continue
            namespace, about = _name(tool, where), tool.get("description")
            inside = tool.get("tools")
            for inner_number, inner in enumerate(inside if isinstance(inside, list) else ()):
                kind = _kind(inner) if isinstance(inner, dict) else None
                if kind:
                    yield _introduced(inner, namespace, about), kind, namespace, f"{where}.tools[{inner_number}]"
                    about = None


def _kind(tool: Mapping[str, Any]) -> _Kind | None:
    """What kind of tool the client runs itself; None for what only OpenAI's servers could run."""
    match tool.get("type"):
        case "function":
            return "function"
        case "custom":
            return "custom"
        case "local_shell":
            return "local_shell"
        case "tool_search" if tool.get("execution") == "client":
            return "tool_search"
    return None


def _introduced(tool: dict[str, Any], namespace: str, about: Any) -> dict[str, Any]:
    """The first tool of a namespace also tells what the namespace is for, which chat has no place for."""
    if not isinstance(about, str) or not about.strip() or about == f"Tools in the {namespace} namespace.":
        return tool
    return {**tool, "description": f"{about}\n\n{tool.get('description') or ''}".strip()}


def _name(tool: Mapping[str, Any], where: str) -> str:
    name = tool.get("name")
    if not isinstance(name, str) or not name:
        nested = "; it is not nested under `function` here" if "function" in tool else ""
        raise TranslationError(f"{where}.name is missing{nested}", param=f"{where}.name", code="missing_parameter")
    return name


def _function(tool: Mapping[str, Any], kind: _Kind, where: str) -> dict[str, Any]:
    """The function of a chat request, its keys always in the same order."""
    name = kind if kind in ("tool_search", "local_shell") else _name(tool, where)
    about = tool.get("description")
    description = about if isinstance(about, str) else ""
    if kind == "custom":
        parameters: Any = {
            "type": "object",
            "properties": {"input": {"type": "string", "description": "The whole text, as it is."}},
            "required": ["input"],
            "additionalProperties": False,
        }
        description = _custom_description(description, tool.get("format"))
    elif kind == "local_shell":
        parameters, description = _LOCAL_SHELL, description or "Runs a command on the user's machine."
    else:
        parameters = tool.get("parameters")
        if parameters is None:
            parameters = _NO_PARAMETERS
        elif not isinstance(parameters, dict):
            place = f"{where}.parameters"
            raise TranslationError(f"{place} should be a JSON Schema object", param=place, code="invalid_type")
    function: dict[str, Any] = {"name": name}
    if description:
        function["description"] = description
    function["parameters"] = parameters
    return function


def _custom_description(description: str, form: Any) -> str:
    """What a custom tool says of itself, and how its free text is to be passed."""
    pieces = [description] if description else []
    pieces.append("Pass the raw text in `input`: no JSON inside it, no markdown fence around it.")
    if isinstance(form, dict) and form.get("type") == "grammar" and isinstance(form.get("definition"), str):
        pieces.append(f"The text must match this {form.get('syntax') or 'lark'} grammar:\n{form['definition']}")
    return "\n\n".join(pieces)


def chosen(
    choice: Any, tools: Sequence[dict[str, Any]], names: ToolNames
) -> tuple[str | dict[str, Any] | None, Sequence[dict[str, Any]]]:
    """(chat tool_choice, tools that may be called), None where nothing was chosen. Raises TranslationError.

    A hosted tool cannot be forced, since it is not there: it becomes auto. `allowed_tools` has no chat equivalent but
    offering only those.
    """
    if choice is None or not tools:
        return None, tools
    if isinstance(choice, str):
        if choice not in ("auto", "none", "required"):
            message = (
                f"tool_choice is {choice[:60]!r}; accepted: 'auto', 'none', 'required', or an object naming a tool"
            )
            raise TranslationError(message, param="tool_choice")
        return choice, tools
    if not isinstance(choice, dict):
        raise TranslationError("tool_choice should be a string or an object", param="tool_choice", code="invalid_type")
    if choice.get("type") == "allowed_tools":
        listed = choice.get("tools")
        wanted = {_wanted(one, names) for one in (listed if isinstance(listed, list) else ()) if isinstance(one, dict)}
        allowed = [tool for tool in tools if tool["function"]["name"] in wanted]
        if not allowed:
            return "none", tools
        return "required" if choice.get("mode") == "required" else "auto", allowed
    name = _wanted(choice, names)
    if name is not None:
        return {"type": "function", "function": {"name": name}}, tools
    if choice.get("type") in ("function", "custom"):
        shown = str(choice.get("name"))[:60]
        raise TranslationError(
            f"tool_choice names the tool {shown!r}, which is not among the tools", param="tool_choice"
        )
    return "auto", tools


def _wanted(choice: Mapping[str, Any], names: ToolNames) -> str | None:
    kind = choice.get("type")
    name = kind if kind in ("tool_search", "local_shell") else choice.get("name")
    namespace = choice.get("namespace")
    if not isinstance(name, str):
        return None
    return names.find(name, namespace if isinstance(namespace, str) else None)
