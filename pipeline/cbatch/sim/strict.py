"""Which JSON Schemas are acceptable for constrained decoding: `strict: true`, in answers and in tools."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import orjson

from .schemas import resolve_ref

__all__ = ["strict_problem"]

_MAX_CHARS = 5000
_MAX_DEPTH = 10
_MAX_PROPERTIES = 500
_MAX_ENUM = 500
_LONG_ENUM = 250
_MAX_LONG_ENUM_CHARS = 7500

_KEYWORDS = frozenset(
    {
        *("$defs", "$ref", "additionalProperties", "anyOf", "const", "description", "enum"),
        *("exclusiveMaximum", "exclusiveMinimum", "items", "maximum", "minimum", "multipleOf"),
        *("prefixItems", "properties", "required", "title", "type"),
    }
)
_TYPES = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})


def strict_problem(schema: dict[str, Any]) -> str | None:
    """Why this schema is refused for constrained decoding, in the provider's words where they are known."""
    text = orjson.dumps(schema)
    # Before the cache, which would otherwise keep what it must not: schemas of any size.
    if len(text.decode()) > _MAX_CHARS:
        return f"JSON schema exceeds the maximum length of {_MAX_CHARS} characters"
    return _problem(text)


@lru_cache(maxsize=256)  # a job sends one schema a million times
def _problem(text: bytes) -> str | None:
    schema = orjson.loads(text)
    if schema.get("type") != "object":
        return "The root of the JSON schema must have type 'object'"
    try:
        return _Strict(schema).check(schema, depth=1, inside=())
    except (AttributeError, TypeError):
        return "Invalid JSON schema"  # a keyword whose value has no business there


class _Strict:
    """One pass over a schema, counting what is limited in total."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._properties = 0
        self._enum_values = 0
        self._enum_chars = 0

    def check(self, node: Any, depth: int, inside: tuple[str, ...]) -> str | None:
        if not isinstance(node, dict):
            return f"Expected a JSON schema object, got {orjson.dumps(node).decode()}"
        if depth > _MAX_DEPTH:
            return f"JSON schema exceeds the maximum nesting depth of {_MAX_DEPTH}"
        problem = self._check_words(node) or self._check_counts(node)
        if problem:
            return problem
        ref = node.get("$ref")
        if ref is not None:
            return self._check_ref(ref, depth, inside)
        if node.get("type") == "object" or "properties" in node:
            if node.get("additionalProperties") is not False:
                return "additionalProperties must be set to false for all objects in JSON schema"
            unknown = set(node.get("required") or ()) - set(node.get("properties") or ())
            if unknown:
                return f"Required properties are not defined in JSON schema: {unknown}"
        if node.get("type") == "array" and not ("items" in node or "prefixItems" in node):
            return "Array fields require at least one of 'items' or 'prefixItems'."
        if node.get("items") is True:
            return "'items: true' is not supported in JSON schema"
        children = [*(node.get("properties") or {}).values(), *(node.get("anyOf") or ())]
        children += node.get("prefixItems") or ()
        if isinstance(node.get("items"), dict):
            children.append(node["items"])
        for child in children:
            problem = self.check(child, depth + 1, inside)
            if problem:
                return problem
        return None

    def _check_words(self, node: dict[str, Any]) -> str | None:
        if "definitions" in node:
            return "'definitions' is not supported in JSON schema. Use '$defs' instead"
        if isinstance(node.get("type"), list):
            return (
                "Lists of types are not supported in JSON schema. "
                "If you are trying to make a field Optional, use anyOf with a null type"
            )
        unsupported = node.keys() - _KEYWORDS
        if unsupported:
            return f"Unsupported JSON schema fields: {unsupported}"
        if "type" in node and node["type"] not in _TYPES:
            return f"Unsupported type in JSON schema: {node['type']!r}"
        for word, kind in (("properties", dict), ("required", list), ("enum", list), ("anyOf", list)):
            if word in node and not isinstance(node[word], kind):
                return f"'{word}' has the wrong type in JSON schema"
        return None

    def _check_counts(self, node: dict[str, Any]) -> str | None:
        self._properties += len(node.get("properties") or ())
        if self._properties > _MAX_PROPERTIES:
            return f"JSON schema exceeds the maximum of {_MAX_PROPERTIES} properties"
        values = node.get("enum") or ()
        self._enum_values += len(values)
        self._enum_chars += sum(len(value) for value in values if isinstance(value, str))
        if self._enum_values > _MAX_ENUM:
            return f"JSON schema exceeds the maximum of {_MAX_ENUM} enum values"
        if self._enum_values > _LONG_ENUM and self._enum_chars > _MAX_LONG_ENUM_CHARS:
            return f"JSON schema enum strings exceed the maximum of {_MAX_LONG_ENUM_CHARS} characters"
        return None

    def _check_ref(self, ref: Any, depth: int, inside: tuple[str, ...]) -> str | None:
        if not isinstance(ref, str) or not ref.startswith("#/$defs/"):
            return "External references are not supported in JSON schema"
        if ref in inside:
            return "Recursive JSON schemas are not supported"
        target = resolve_ref(self._root, ref)
        if target is None:
            return f"Reference {ref} is not defined in JSON schema"
        return self.check(target, depth + 1, (*inside, ref))
