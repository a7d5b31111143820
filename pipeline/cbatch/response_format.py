"""params.response_format as people write it -> as the API takes it: a file, a bare JSON Schema, or the full form."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from cbatch.errors import JobError
from cbatch.yamltext import shown

_JSON_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
# Keywords that constrained decoding knows. Source: Cerebras structured outputs documentation, mid-2026.
_STRICT_KEYWORDS = frozenset(
    {
        *("$defs", "$ref", "additionalProperties", "anyOf", "const", "description", "enum", "exclusiveMaximum"),
        *("exclusiveMinimum", "items", "maximum", "minimum", "multipleOf", "prefixItems", "properties", "required"),
        *("title", "type"),
    }
)


def response_format(form: dict[str, Any], name: str, place: str) -> dict[str, Any]:
    """The full form of what was written; `name` names a bare schema. Raises JobError at `place`."""
    kind = form.get("type")
    if kind in ("text", "json_object"):
        return form
    if not form or (isinstance(kind, str) and kind != "json_schema" and kind not in _JSON_TYPES):
        near = difflib.get_close_matches(kind or "", ["json_object", "json_schema", "text", *_JSON_TYPES], n=1)
        guess = f"; did you mean {near[0]}?" if near else ""
        raise JobError(
            f"{place}: read {shown(form)}; accepted: a JSON Schema, a file with one, or {{type: json_object}}{guess}"
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
        raise JobError(f"{place}: not a valid JSON Schema: $schema is {shown(schema['$schema'])}, not a URL")
    validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        validator.check_schema(schema)
    except jsonschema.SchemaError as exc:
        raise JobError(f"{place}: not a valid JSON Schema at {exc.json_path}: {exc.message}") from None
    for reference in _references(schema):
        if not _points_inside(reference, schema):
            raise JobError(
                f"{place}: $ref {shown(reference)} points to nothing in the schema",
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
