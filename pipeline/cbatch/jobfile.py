"""Text of job.yaml -> Job.

Everything that can be wrong with a job is found here, before anything is sent, and told with
file, line, key, what was read and what is accepted. A key of the contract whose feature is not
built yet is refused by name: an ignored key is a lie about what the run did.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote

import orjson
import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from cbatch.errors import JobError
from cbatch.job import COUNT, FAIL_IF, LATER, Job

MAX_VALUES = 100_000  # with aliases filled in: ten lines of them can stand for a billion values

# Keys that are promised and not built: path -> what they will do. None and absent are fine.
_LATER_KEYS: dict[tuple[str, ...], str] = {
    ("budget",): "stopping at a budget",
    ("load",): "load modes for benchmarking",
    ("gates",): "gates on measurements",
    ("limits", "rph"): "an hourly request limit",
    ("limits", "rpd"): "a daily request limit",
    ("limits", "tph"): "an hourly token limit",
    ("limits", "tpd"): "a daily token limit",
    ("retry", "hedge"): "hedging slow requests",
    ("prompt", "turns"): "multi-turn prompts",
}
_LATER_VALUES: dict[tuple[str, ...], tuple[object, str]] = {
    ("limits", "concurrency"): ("auto", "automatic concurrency"),
    ("limits", "rpm"): ("auto", "learning the request limit"),
    ("limits", "tpm"): ("auto", "learning the token limit"),
    ("params", "max_completion_tokens"): ("auto", "right-sizing max_completion_tokens"),
    ("params", "stream"): (True, "streaming"),
}

_DEFINITIONS = {"limits": "Limits", "retry": "Retry", "prompt": "PromptSpec", "params": "Params"}
_SECTIONS = ("input", "prompt", "params", "limits", "retry", "timeouts", "results")

# What is accepted, in the words of a reader: for keys with more than one form, and for pydantic's kinds of errors.
_FORMS: dict[tuple[str, ...], str] = {
    ("model",): "a model's name, or a list of them",
    ("input",): "a path, a list of paths, or a mapping with `path`",
    ("input", "path"): "a path, or a list of paths",
    ("prompt",): "text, or a mapping with user, template_file, messages or body",
    ("params", "response_format"): "a file name, a JSON Schema, or {type: json_object}",
    ("params", "tools"): "a file name, or a list of tools",
    ("params", "tool_choice"): "text, or a mapping",
    ("params", "stop"): "text, or a list of text",
    ("results", "carry"): "a column's name, or a list of them",
    ("fail_if",): "text like 'errors > 1%' or 'errors > 10'",
}
_KINDS: dict[str, str] = {
    "string_type": "text",
    "string_unicode": "text",
    "string_too_short": "text that is not empty",
    "string_too_long": "text of at most {max_length} characters",
    "string_pattern_mismatch": "text without / and control characters",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping of keys",
    "model_type": "a mapping of keys",
    "too_short": "a list that is not empty",
    "finite_number": "a finite number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than_equal": "{le} or less",
}
_JSON_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
# Keywords that constrained decoding knows. Source: Cerebras structured outputs documentation, mid-2026.
_STRICT_KEYWORDS = frozenset(
    {
        *("$defs", "$ref", "additionalProperties", "anyOf", "const", "description", "enum", "exclusiveMaximum"),
        *("exclusiveMinimum", "items", "maximum", "minimum", "multipleOf", "prefixItems", "properties", "required"),
        *("title", "type"),
    }
)


def load(path: Path, overrides: Sequence[str] = ()) -> Job:
    """The job in the file `path`; `overrides` are `key.path=value` as on the command line.

    Raises JobError naming file, line, key, what was read and what is accepted.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except IsADirectoryError:
        raise JobError(f"{path} is a folder, not a job file", hint=f"try {path}/job.yaml") from None
    except FileNotFoundError:
        raise JobError(f"{path}: no such file", hint="`cbatch init` writes a job.yaml to start from") from None
    except UnicodeDecodeError as exc:
        raise JobError(f"{path}: not UTF-8 text (byte {exc.start})") from None
    except OSError as exc:
        raise JobError(f"{path}: cannot be read: {exc.strerror}") from None
    return parse(text, path, overrides)


def parse(text: str, path: Path, overrides: Sequence[str] = ()) -> Job:
    """The job in `text`; `path` is where it was read, for messages and for relative input paths."""
    raw, lines = _read_yaml(text, path)
    for override in overrides:
        _override(raw, override, lines)
    where = _Where(path, lines)
    for key_path, feature in _LATER_KEYS.items():
        if _get(raw, key_path) is not None:
            raise JobError(f"{where(key_path)}: {feature} {LATER}", hint=f"take {'.'.join(key_path)} out for now")
    for key_path, (value, feature) in _LATER_VALUES.items():
        read = _get(raw, key_path)
        if read == value and type(read) is type(value):
            raise JobError(
                f"{where(key_path)}: {feature} {LATER}",
                hint=f"give {'.'.join(key_path)} a number, or leave it out"
                if value == "auto"
                else f"take {'.'.join(key_path)} out for now",
            )
    # A key with nothing behind it (`rph:`) is as if it were not there.
    raw = {k: v for k, v in raw.items() if v is not None}
    for section in _SECTIONS:
        if isinstance(raw.get(section), dict):
            raw[section] = {k: v for k, v in raw[section].items() if v is not None}
    if "folder" in raw:  # a field of Job, not a key of job.yaml
        raise JobError(f"{where(('folder',))}: unknown key", hint=f"accepted here: {', '.join(_accepted(()))}")
    _load_files(raw, where)
    folder = str(path.parent.resolve())
    try:
        return Job.model_validate({"name": path.stem, **raw, "folder": folder})
    except ValidationError as exc:
        raise _job_error(exc, where) from None


class _Where:
    """Says `job.yaml:12: limits.rpm` for a key path."""

    def __init__(self, path: Path, lines: Mapping[tuple[str, ...], int | str]) -> None:
        self.path = path
        self.lines = lines

    def __call__(self, key_path: Sequence[object]) -> str:
        keys = tuple(str(k) for k in key_path)
        for length in range(len(keys), 0, -1):
            if (line := self.lines.get(keys[:length])) is not None:
                place = f"{self.path}:{line}" if isinstance(line, int) else line
                return f"{place}: {'.'.join(keys)}"
        return f"{self.path}: {'.'.join(keys)}" if keys else str(self.path)


def _read_yaml(text: str, path: Path) -> tuple[dict[str, Any], dict[tuple[str, ...], int | str]]:
    """The mapping in `text`, and the line of every key."""
    lines: dict[tuple[str, ...], int | str] = {}
    try:
        raw = _parse_yaml(text, lines)
    except _Refused as exc:
        raise JobError(f"{path}:{exc.line}: {exc}", hint=exc.hint) from None
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise JobError(f"{place}: not valid YAML: {exc.problem or exc.context}") from None
    except yaml.reader.ReaderError as exc:
        line = text[: exc.position].count("\n") + 1
        raise JobError(f"{path}:{line}: not valid YAML: the character {chr(exc.character)!r} is not allowed") from None
    except yaml.YAMLError as exc:
        raise JobError(f"{path}: not valid YAML: {exc}") from None
    except RecursionError:
        raise JobError(f"{path}: nested too deeply") from None
    if raw is None:
        raise JobError(f"{path}: the file is empty", hint="`cbatch init` writes a job.yaml to start from")
    if not isinstance(raw, dict):
        kind = "a list" if isinstance(raw, list) else f"only {_short(raw)}"
        raise JobError(f"{path}: a mapping of keys is expected, read {kind}", hint="for example `model: gpt-oss-120b`")
    return raw, lines


class _Refused(yaml.YAMLError):
    """Valid YAML that no job may hold."""

    def __init__(self, keys: tuple[str, ...], node: yaml.Node, problem: str, hint: str | None = None) -> None:
        super().__init__(f"{'.'.join(keys)}: {problem}" if keys else problem)
        self.line = node.start_mark.line + 1
        self.hint = hint


class _Loader(yaml.SafeLoader):
    """YAML with the values that JSON has: a date is text, and 1e-3 is a number."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in forms if not tag.endswith((":timestamp", ":value"))]
    for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), [*"-+0123456789"])


def _parse_yaml(text: str, lines: dict[tuple[str, ...], int | str]) -> Any:
    """The value in `text`; puts the line of every key into `lines`. Raises yaml.YAMLError, RecursionError."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _walk(loader, node, (), lines, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _walk(
    loader: _Loader,
    node: yaml.Node,
    keys: tuple[str, ...],
    lines: dict[tuple[str, ...], int | str],
    sizes: dict[int, int | None],
) -> int:
    """How many values the node at `keys` stands for, aliases filled in; refuses what no job may hold."""
    if id(node) in sizes:  # an alias: walking it again would be exponential
        known = sizes[id(node)]
        if known is None:
            raise _Refused(keys, node, "an alias to something that holds it")
        return known
    sizes[id(node)] = None
    size = 1
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if kind not in ("str", "int", "float", "bool", "null", "map", "seq"):
        name = kind if kind == node.tag else f"!!{kind}"
        raise _Refused(keys, node, f"values of the YAML type {name} are not accepted")
    if isinstance(node, yaml.ScalarNode):
        _check_scalar(loader, node, keys)
    elif isinstance(node, yaml.MappingNode):
        here: dict[str, int] = {}
        for key, value in node.value:
            if not key.tag.endswith((":str", ":merge")):
                if not isinstance(key, yaml.ScalarNode):
                    raise _Refused(keys, key, "a key must be text, read a list or a mapping")
                hint = f'in quotes it is text: "{key.value}"'
                raise _Refused(keys, key, f"a key must be text, read {_short(key.value)[1:-1]}", hint)
            inner = (*keys, key.value)
            _check_scalar(loader, key, keys)
            if key.value in here:
                raise _Refused(inner, key, f"given twice, first on line {here[key.value]}")
            here[key.value] = lines[inner] = key.start_mark.line + 1
            size += _walk(loader, value, inner, lines, sizes)
    elif isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            inner = (*keys, str(position))
            lines[inner] = item.start_mark.line + 1
            size += _walk(loader, item, inner, lines, sizes)
    if size > MAX_VALUES:
        raise _Refused(keys, node, f"more than {MAX_VALUES:,} values")
    sizes[id(node)] = size
    return size


def _check_scalar(loader: _Loader, node: yaml.ScalarNode, keys: tuple[str, ...]) -> None:
    """Refuse a scalar that JSON has no form for."""
    problem: str | None = None
    if node.tag.endswith((":str", ":merge")):
        try:
            node.value.encode()
        except UnicodeEncodeError:
            raise _Refused(keys, node, "not Unicode text: a lone surrogate") from None
        return
    try:
        value = loader.construct_object(node)
    except (ValueError, LookupError):
        problem = "not a value of its type"
    else:
        if isinstance(value, float) and not math.isfinite(value):
            problem = "JSON has no such number"
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            problem = "more than 64 bits"
    if problem is not None:
        raise _Refused(keys, node, f"read {_short(node.value)[1:-1]}: {problem}")


def _override(raw: dict[str, Any], override: str, lines: dict[tuple[str, ...], int | str]) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise JobError(f"--set {override}: not like key.path=value", hint="for example --set limits.concurrency=8")
    keys = tuple(key.strip().split("."))
    try:
        value = _parse_yaml(text, {})
    except (yaml.YAMLError, RecursionError):  # `--set prompt=Answer: {{ q }}` means what it says
        value = text
    # What the file says below this key no longer counts.
    for stale in [known for known in lines if known[: len(keys)] == keys]:
        del lines[stale]
    place = raw
    for depth, name in enumerate(keys[:-1]):
        inner = place.get(name)
        if inner is None:
            inner = place[name] = {}
        elif isinstance(inner, str | list) and keys[: depth + 1] == ("input",):
            inner = place[name] = {"path": inner}
        elif isinstance(inner, str) and keys[: depth + 1] == ("prompt",):
            inner = place[name] = {"user": inner}
        elif not isinstance(inner, dict):
            raise JobError(f"--set {override}: {'.'.join(keys[: depth + 1])} is not a mapping of keys")
        place = inner
    place[keys[-1]] = value
    for depth in range(1, len(keys) + 1):
        lines.setdefault(keys[:depth], f"--set {override}")


def _get(raw: Mapping[str, Any], key_path: tuple[str, ...]) -> object:
    value: object = raw
    for key in key_path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _load_files(raw: dict[str, Any], where: _Where) -> None:
    """Replace the file names that job.yaml may hold by what is in the files."""
    folder = where.path.parent
    prompt = raw.get("prompt")
    if isinstance(prompt, dict) and isinstance(prompt.get("template_file"), str):
        if prompt.get("user") is not None:
            raise JobError(f"{where(('prompt', 'template_file'))}: give either user or template_file, not both")
        text = _read_file(folder, prompt["template_file"], where(("prompt", "template_file")))
        raw["prompt"] = {**{k: v for k, v in prompt.items() if k != "template_file"}, "user": text}
    params = raw.get("params")
    if not isinstance(params, dict):
        return
    params = raw["params"] = dict(params)
    if isinstance(params.get("tools"), str):
        params["tools"] = _read_json(folder, params["tools"], where(("params", "tools")))
    form = params.get("response_format")
    place = where(("params", "response_format"))
    name = "answer"
    if isinstance(form, str):
        if form in ("text", "json_object"):
            raise JobError(f"{place}: read {form}, which is no file", hint=f"write {{type: {form}}}")
        name = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(form).name.removesuffix(".json"))[:64] or name
        form, file = _read_json(folder, form, place), form
        if not isinstance(form, dict):
            raise JobError(f"{place}: {file}: a JSON Schema is expected, read {_short(form)}")
    for key, value in params.items():
        try:
            orjson.dumps(form if key == "response_format" else value)
        except TypeError as exc:
            raise JobError(f"{where(('params', key))}: cannot be sent as JSON: {exc}") from None
    if isinstance(form, dict):
        params["response_format"] = _response_format(form, name, place)


def _response_format(form: dict[str, Any], name: str, place: str) -> dict[str, Any]:
    kind = form.get("type")
    if kind in ("text", "json_object"):
        return form
    if not form or (isinstance(kind, str) and kind != "json_schema" and kind not in _JSON_TYPES):
        near = difflib.get_close_matches(kind or "", ["json_object", "json_schema", "text", *_JSON_TYPES], n=1)
        guess = f"; did you mean {near[0]}?" if near else ""
        raise JobError(
            f"{place}: read {_short(form)}; accepted: a JSON Schema, a file with one, or {{type: json_object}}{guess}"
        )
    if kind == "json_schema":
        inner = form.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, dict) else None
        if not isinstance(inner, dict) or not isinstance(schema, dict):
            raise JobError(f"{place}: json_schema needs a `schema` mapping")
        form = {**form, "json_schema": {"name": name, **inner}}
    else:  # a bare JSON Schema
        schema = form
        strict = schema.get("type") == "object" and _fits_strict_mode(schema)
        form = {"type": "json_schema", "json_schema": {"name": name, "strict": strict, "schema": schema}}
    import jsonschema  # 60 ms, and only jobs with a schema need it

    if not isinstance(schema.get("$schema", ""), str):
        raise JobError(f"{place}: not a valid JSON Schema: $schema is {_short(schema['$schema'])}, not a URL")
    validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        validator.check_schema(schema)
    except jsonschema.SchemaError as exc:
        raise JobError(f"{place}: not a valid JSON Schema at {exc.json_path}: {exc.message}") from None
    for reference in _references(schema):
        if not _points_inside(reference, schema):
            raise JobError(
                f"{place}: $ref {_short(reference)} points to nothing in the schema",
                hint="like '#/$defs/name'; other files and addresses are not read",
            )
    return form


def _references(schema: object) -> Iterator[str]:
    """Every `$ref` in a schema."""
    if isinstance(schema, dict):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"]
        schema = list(schema.values())
    if isinstance(schema, list):
        for inner in schema:
            yield from _references(inner)


def _points_inside(reference: str, schema: dict[str, Any]) -> bool:
    place: Any = schema
    root, _, pointer = reference.partition("#")
    if root not in ("", schema.get("$id")):
        return False
    if not pointer.startswith("/"):  # the whole schema, or an anchor
        return not pointer or f'"{pointer}"' in json.dumps(schema)
    for step in unquote(pointer)[1:].split("/"):
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(place, list) and step.isdecimal() and int(step) < len(place):
            place = place[int(step)]
        elif isinstance(place, dict) and step in place:
            place = place[step]
        else:
            return False
    return isinstance(place, dict | bool)


def _fits_strict_mode(schema: object) -> bool:
    """Whether constrained decoding takes the schema; where it does not, the server would refuse every prompt."""
    if not isinstance(schema, dict) or not schema.keys() <= _STRICT_KEYWORDS or isinstance(schema.get("type"), list):
        return False
    is_object = schema.get("type") == "object" or "properties" in schema
    if is_object and schema.get("additionalProperties") is not False:
        return False
    if schema.get("type") == "array" and not ("items" in schema or "prefixItems" in schema):
        return False
    inner = [*schema.get("properties", {}).values(), *schema.get("$defs", {}).values()]
    inner += [*schema.get("anyOf", []), *schema.get("prefixItems", [])]
    if schema.get("items", False) is not False:
        inner.append(schema["items"])
    return all(_fits_strict_mode(each) for each in inner)


def _read_file(folder: Path, name: str, place: str) -> str:
    try:
        return (folder / name).read_text("utf-8-sig")
    except FileNotFoundError:
        raise JobError(f"{place}: {name}: no such file in {folder}") from None
    except UnicodeDecodeError as exc:
        raise JobError(f"{place}: {name}: not UTF-8 text (byte {exc.start})") from None
    except OSError as exc:
        raise JobError(f"{place}: {name or 'an empty name'}: cannot be read: {exc.strerror}") from None
    except ValueError as exc:  # a NUL in the name
        raise JobError(f"{place}: {name!r}: cannot be read: {exc}") from None


def _read_json(folder: Path, name: str, place: str) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(_read_file(folder, name, place), parse_constant=refuse)
    except json.JSONDecodeError as exc:
        raise JobError(f"{place}: {name}:{exc.lineno}: not valid JSON: {exc.msg} (column {exc.colno})") from None
    except RecursionError:
        raise JobError(f"{place}: {name}: nested too deeply") from None
    except ValueError as exc:
        raise JobError(f"{place}: {name}: not valid JSON: {exc}") from None


def _job_error(exc: ValidationError, where: _Where) -> JobError:
    """What pydantic found, in the words of job.yaml; the first five."""
    messages: list[str] = []
    hint: str | None = None
    seen: list[tuple[object, ...]] = []
    errors = exc.errors(include_url=False)
    locations = [_clean(error["loc"]) for error in errors]
    for error, keys in zip(errors, locations, strict=True):
        # A union reports each member it tried: one message per key is enough, and the most exact one.
        if keys in seen or any(other[: len(keys)] == keys and len(other) > len(keys) for other in locations):
            continue
        seen.append(keys)
        message, advice = _one_error(error, keys, where)
        messages.append(message)
        hint = hint or advice
        if len(messages) == 5:
            break
    return JobError("\n".join(messages), hint=hint)


def _one_error(error: ErrorDetails, keys: tuple[object, ...], where: _Where) -> tuple[str, str | None]:
    """The message, and the hint where there is one."""
    place, kind, read, context = where(keys), error["type"], error.get("input"), error.get("ctx", {})
    if kind == "extra_forbidden":
        accepted = _accepted(keys[:-1])
        name = str(keys[-1])
        near = difflib.get_close_matches(name.lower().replace("-", "_"), accepted, n=1) or _elsewhere(name)
        if near:
            return f"{place}: unknown key; did you mean {near[0]}?", None
        return f"{place}: unknown key", f"accepted here: {', '.join(accepted)}"
    if kind == "missing":
        return f"{place}: this key is needed and missing", None
    if kind == "value_error":
        text = error["msg"].removeprefix("Value error, ")
        text = text if len(text) <= 300 else text[:299] + "…"
        if found := re.match(r"([a-z_]+(?:\.[a-z_]+)*): ", text):
            place, text = where((*keys, *found[1].split("."))), text[found.end() :]
            return f"{place}: {text}", None
        return f"{place}: {text}" + (
            f"; read {_short(read)}" if isinstance(read, str) and read not in text else ""
        ), None
    if kind == "literal_error":
        expected = re.findall(r"'([^']*)'", context["expected"]) or [context["expected"].lower()]
        near = difflib.get_close_matches(str(read).lower(), expected, n=1)
        guess = f"; did you mean {near[0]}?" if near else ""
        return f"{place}: read {_short(read)}; accepted: {', '.join(expected)}{guess}", None
    names = tuple(str(key) for key in keys)
    if kind in _KINDS and (kind.endswith("_type") or kind == "too_short"):
        accepted_text = _FORMS.get(names, _KINDS[kind])
    else:
        bounds = {k: f"{v:,.0f}" if isinstance(v, int | float) and v == int(v) else v for k, v in context.items()}
        accepted_text = _KINDS[kind].format(**bounds) if kind in _KINDS else error["msg"]
    is_scalar = isinstance(read, int | float) and kind in ("string_type", "list_type")
    return f"{place}: read {_short(read)}; accepted: {accepted_text}", "in quotes it is text" if is_scalar else None


def _clean(location: tuple[object, ...]) -> tuple[object, ...]:
    """The key path without pydantic's names for validators and for the members of a union."""
    names = ("str", "list[str]", "dict[str,any]", "dict[str,float]", "[key]")
    # Unions are below a key of a section: above, `str` is what somebody wrote.
    return location[:2] + tuple(part for part in location[2:] if part not in names)


def _elsewhere(name: str) -> list[str]:
    """Where else in job.yaml a key of this name is accepted."""
    return [
        f"{section}.{name}"
        for section in ("params", "input", "limits", "retry", "timeouts", "results", "prompt")
        if name in _accepted((section,))
    ][:1]


def _accepted(keys: tuple[object, ...]) -> list[str]:
    """The keys accepted in the mapping at `keys`."""
    model: type[BaseModel] = Job
    for key in keys:
        inner = model.model_fields[str(key)].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    names = [name for name in model.model_fields if (model, name) != (Job, "folder")]
    return names + [path[-1] for path in _LATER_KEYS if path[:-1] == tuple(str(k) for k in keys)]


def _short(value: object) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except ValueError:
        text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def json_schema() -> dict[str, Any]:
    """The JSON Schema of job.yaml, for editors: shorthands included, unbuilt keys marked."""
    schema = Job.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "cbatch job.yaml"
    schema.pop("description", None)
    properties = schema["properties"]
    properties.pop("folder")
    schema["required"] = ["model", "input", "prompt"]
    text: dict[str, Any] = {"type": "string"}
    texts: dict[str, Any] = {"type": "array", "items": text}
    definitions = schema["$defs"]
    properties["model"] = {"anyOf": [text, texts]}
    properties["input"] = {"anyOf": [text, texts, {"$ref": "#/$defs/Input"}]}
    properties["prompt"] = {"anyOf": [text, {"$ref": "#/$defs/PromptSpec"}]}
    properties["fail_if"] = {"type": "string", "pattern": f"^{FAIL_IF.pattern}$"}
    definitions.pop("FailIf")
    definitions["Input"]["properties"]["path"] = {"anyOf": [text, texts]}
    definitions["Results"]["properties"]["carry"] = {"anyOf": [text, texts]}
    params = definitions["Params"]["properties"]
    params["response_format"] = {
        "anyOf": [text, {"type": "object"}],
        "description": "a file, or an inline JSON Schema",
    }
    params["tools"] = {"anyOf": [text, {"type": "array", "items": {"type": "object"}}]}
    count = {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": f"^\\s*{COUNT.pattern}\\s*$"}]}
    for section, name in (("Limits", "rpm"), ("Limits", "tpm"), ("Input", "limit"), ("Input", "sample")):
        definitions[section]["properties"][name] = {"anyOf": [*count["anyOf"], {"type": "null"}]}
    for key_path, feature in _LATER_KEYS.items():
        place = properties if len(key_path) == 1 else definitions[_DEFINITIONS[key_path[0]]]["properties"]
        place[key_path[-1]] = {"deprecated": True, "description": f"{feature} {LATER}"}
    for (section, name), (value, feature) in _LATER_VALUES.items():
        place = definitions[_DEFINITIONS[section]]["properties"]
        later = {"const": value, "deprecated": True, "description": f"{feature} {LATER}"}
        place[name] = {"anyOf": [place[name], later]}
    return schema
