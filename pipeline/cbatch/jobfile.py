"""Text of job.yaml -> Job.

Everything that can be wrong with a job is found here, before anything is sent, and told with
file, line, key, what was read and what is accepted. A key of the contract whose feature is not
built yet is refused by name: an ignored key is a lie about what the run did.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from cbatch.errors import JobError
from cbatch.job import COUNT, FAIL_IF, LATER, Job

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
    # `rph:` with nothing behind it is the contract's way to say "no limit".
    limits = raw.get("limits")
    if isinstance(limits, dict):
        raw["limits"] = {k: v for k, v in limits.items() if v is not None}
    raw = {k: v for k, v in raw.items() if v is not None and (k,) not in _LATER_KEYS}
    for section in ("retry", "prompt"):
        if isinstance(raw.get(section), dict):
            raw[section] = {k: v for k, v in raw[section].items() if (section, k) not in _LATER_KEYS}
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
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            raise JobError(f"{path}: the file is empty", hint="`cbatch init` writes a job.yaml to start from")
        lines: dict[tuple[str, ...], int | str] = {}
        _walk(node, (), lines, set(), path)
        raw = loader.construct_document(node)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise JobError(f"{place}: not valid YAML: {exc.problem or exc.context}") from None
    except yaml.YAMLError as exc:
        raise JobError(f"{path}: not valid YAML: {exc}") from None
    except RecursionError:
        raise JobError(f"{path}: nested too deeply") from None
    finally:
        loader.dispose()
    if not isinstance(raw, dict):
        raise JobError(f"{path}: a mapping of keys is expected, read a {type(raw).__name__}")
    return raw, lines


def _walk(
    node: yaml.Node,
    prefix: tuple[str, ...],
    lines: dict[tuple[str, ...], int | str],
    seen: set[int],
    path: Path,
) -> None:
    if id(node) in seen:  # an alias: walking it again would be exponential
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        here: dict[str, int] = {}
        for key, value in node.value:
            name = str(key.value)
            line = key.start_mark.line + 1
            if name in here:
                raise JobError(f"{path}:{line}: {'.'.join((*prefix, name))}: given twice, first on line {here[name]}")
            here[name] = line
            lines[(*prefix, name)] = line
            _walk(value, (*prefix, name), lines, seen, path)
    elif isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            lines[(*prefix, str(position))] = item.start_mark.line + 1
            _walk(item, (*prefix, str(position)), lines, seen, path)


def _override(raw: dict[str, Any], override: str, lines: dict[tuple[str, ...], int | str]) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise JobError(f"--set {override}: not like key.path=value", hint="for example --set limits.concurrency=8")
    keys = tuple(key.strip().split("."))
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
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
            raise JobError(f"--set {override}: {'.'.join(keys[: depth + 1])} is not a mapping")
        place = inner
    place[keys[-1]] = value
    lines[keys] = f"--set {override}"


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
        name = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(form).name.removesuffix(".json"))
        form = _read_json(folder, form, place)
    if isinstance(form, dict):
        params["response_format"] = _response_format(form, name, place)


def _response_format(form: dict[str, Any], name: str, place: str) -> dict[str, Any]:
    if form.get("type") in ("text", "json_object"):
        return form
    if form.get("type") != "json_schema":  # a bare JSON Schema
        form = {
            "type": "json_schema",
            "json_schema": {"name": name, "strict": _fits_strict_mode(form), "schema": form},
        }
    inner = form.get("json_schema")
    schema = inner.get("schema") if isinstance(inner, dict) else None
    if not isinstance(schema, dict):
        raise JobError(f"{place}: json_schema needs a `schema` mapping")
    import jsonschema  # 60 ms, and only jobs with a schema need it

    try:
        jsonschema.validators.validator_for(schema).check_schema(schema)
    except jsonschema.SchemaError as exc:
        raise JobError(f"{place}: not a valid JSON Schema: {exc.message}") from None
    return form


def _fits_strict_mode(schema: object) -> bool:
    """Whether the server's strict mode takes the schema: every object closed. Otherwise it is a hint only."""
    if isinstance(schema, dict):
        if schema.get("type") == "object" and schema.get("additionalProperties") is not False:
            return False
        return all(_fits_strict_mode(v) for v in schema.values())
    if isinstance(schema, list):
        return all(_fits_strict_mode(v) for v in schema)
    return True


def _read_file(folder: Path, name: str, place: str) -> str:
    try:
        return (folder / name).read_text("utf-8")
    except FileNotFoundError:
        raise JobError(f"{place}: {name}: no such file in {folder}") from None
    except (OSError, UnicodeDecodeError, ValueError) as exc:
        raise JobError(f"{place}: {name}: cannot be read: {exc}") from None


def _read_json(folder: Path, name: str, place: str) -> Any:
    try:
        return json.loads(_read_file(folder, name, place))
    except (json.JSONDecodeError, RecursionError) as exc:
        raise JobError(f"{place}: {name}: not valid JSON: {exc}") from None


def _job_error(exc: ValidationError, where: _Where) -> JobError:
    """What pydantic found, in the words of job.yaml; the first five."""
    messages: list[str] = []
    hints: list[str] = []
    seen: set[tuple[object, ...]] = set()
    for error in exc.errors(include_url=False):
        # A union reports each member it tried: one message per key is enough.
        location = tuple(part for part in error["loc"] if part != "function-before")
        keys = _clean(location)
        if keys in seen:
            continue
        seen.add(keys)
        place = where(keys)
        read = error.get("input")
        kind = error["type"]
        if kind == "extra_forbidden":
            accepted = _accepted(keys[:-1])
            near = difflib.get_close_matches(str(keys[-1]), accepted, n=1)
            messages.append(f"{place}: unknown key" + (f"; did you mean {near[0]}?" if near else ""))
            if not near:
                hints.append(f"accepted here: {', '.join(accepted)}")
        elif kind == "missing":
            messages.append(f"{place}: this key is needed and missing")
        elif kind == "value_error":
            messages.append(f"{place}: {error['msg'].removeprefix('Value error, ')}{_as_read(read)}")
        elif kind == "literal_error":
            expected = error["ctx"]["expected"].replace(" or ", ", ")
            messages.append(f"{place}: {read!r} is not accepted; accepted: {expected}")
        else:
            text = error["msg"].removeprefix("Input should be ")
            messages.append(f"{place}: read {_short(read)}; accepted: {text}")
        if len(messages) == 5:
            break
    return JobError("\n".join(messages), hint=hints[0] if hints else None)


def _clean(location: tuple[object, ...]) -> tuple[object, ...]:
    """The key path without pydantic's names for the members of a union."""
    names = ("str", "list[str]", "dict[str,any]", "dict[str,float]")
    return tuple(part for part in location if not (isinstance(part, str) and part in names))


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


def _as_read(value: object) -> str:
    return f"; read {_short(value)}" if isinstance(value, str | int | float | bool) else ""


def _short(value: object) -> str:
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
    properties["fail_if"] = {"type": "string", "pattern": FAIL_IF.pattern}
    definitions.pop("FailIf")
    definitions["Input"]["properties"]["path"] = {"anyOf": [text, texts]}
    definitions["Results"]["properties"]["carry"] = {"anyOf": [text, texts]}
    params = definitions["Params"]["properties"]
    params["response_format"] = {
        "anyOf": [text, {"type": "object"}],
        "description": "a file, or an inline JSON Schema",
    }
    params["tools"] = {"anyOf": [text, {"type": "array", "items": {"type": "object"}}]}
    count = {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": COUNT.pattern}]}
    for section, name in (("Limits", "rpm"), ("Limits", "tpm"), ("Input", "limit"), ("Input", "sample")):
        definitions[section]["properties"][name] = {"anyOf": [*count["anyOf"], {"type": "null"}]}
    for key_path, feature in _LATER_KEYS.items():
        section_name = {"limits": "Limits", "retry": "Retry", "prompt": "PromptSpec"}.get(key_path[0])
        place = properties if len(key_path) == 1 else definitions[section_name]["properties"]
        place[key_path[-1]] = {"deprecated": True, "description": f"{feature} {LATER}"}
    return schema
