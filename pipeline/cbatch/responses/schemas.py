"""JSON Schemas as a Responses client writes them -> as constrained decoding upstream takes them.

Only what widens a schema or says the same in other words is done here: what the decoder lets through may then be more
than the client asked for, never less. (But objects are closed to undeclared properties, which strict mode demands.)
Source: Cerebras structured outputs documentation, mid-2026.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import orjson

__all__ = ["plain_schema", "strict_schema"]

_MAX_CHARS = 5000
_MAX_DEPTH = 10
_MAX_PROPERTIES = 500
_MAX_ENUM = 500  # values
_LONG_ENUM = 250
_MAX_LONG_ENUM_CHARS = 7500
_MAX_ANY_OF = 5

_KEYWORDS = frozenset(
    {
        *("$defs", "$ref", "additionalProperties", "anyOf", "const", "description", "enum"),
        *("exclusiveMaximum", "exclusiveMinimum", "items", "maximum", "minimum", "multipleOf"),
        *("prefixItems", "properties", "required", "title", "type"),
    }
)
# Keywords that carry a structure: without them the schema would be another one, not a wider one.
_STRUCTURE = frozenset(
    {
        *("allOf", "not", "if", "then", "else", "patternProperties", "dependentSchemas", "$dynamicRef"),
        *("unevaluatedProperties", "propertyNames", "contains", "$recursiveRef", "nullable"),
    }
)
# Where the type is a list, each keyword goes to the type that it speaks of.
_SPEAKS_OF = {
    **dict.fromkeys(("properties", "required", "additionalProperties"), ("object",)),
    **dict.fromkeys(("items", "prefixItems"), ("array",)),
    **dict.fromkeys(
        ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), ("number", "integer")
    ),
}
_TYPES: dict[str, tuple[type, ...]] = {
    "array": (list,),
    "boolean": (bool,),
    "integer": (int,),
    "null": (type(None),),
    "number": (int, float),
    "object": (dict,),
    "string": (str,),
}


def strict_schema(schema: Any) -> dict[str, Any] | None:
    """The schema for `strict: true`, or None where strictness cannot be had: it is then sent as a hint.

    None is for optional properties, open objects, recursion, combinations like allOf, and everything over the limits.
    """
    if not isinstance(schema, dict):
        return None
    try:
        text = _strict(orjson.dumps(schema))
    except orjson.JSONEncodeError:  # nested too deeply to be written
        return None
    return None if text is None else orjson.loads(text)


def plain_schema(schema: Any) -> Any:
    """The schema without the keywords that were ever refused: for a second try, after a 400 about them."""
    try:
        return _rewritten(schema, closing=False)
    except RecursionError:
        return schema


@lru_cache(maxsize=256)  # a client sends the same few schemas with every request
def _strict(text: bytes) -> bytes | None:
    schema = orjson.loads(text)
    try:
        if _has_structure(schema):
            return None
        schema = _rewritten(schema, closing=True)
        small = orjson.dumps(schema)
        if schema.get("type") != "object" or len(small.decode()) > _MAX_CHARS:
            return None
        return small if _Limits(schema).keep(schema, 1, ()) else None
    except (AttributeError, TypeError, ValueError, RecursionError):
        return None  # a keyword whose value has no business there


def _children(node: dict[str, Any]) -> list[Any]:
    found = [*(node.get("properties") or {}).values(), *(node.get("$defs") or {}).values()]
    found += [*(node.get("definitions") or {}).values()]
    for word in ("anyOf", "oneOf", "prefixItems"):
        found += node.get(word) or ()
    if isinstance(node.get("items"), dict):
        found.append(node["items"])
    return found


def _has_structure(node: Any) -> bool:
    if not isinstance(node, dict):
        return False
    return not _STRUCTURE.isdisjoint(node) or any(_has_structure(child) for child in _children(node))


def _rewritten(node: Any, *, closing: bool) -> Any:
    """Supported keywords only, `definitions` and `oneOf` and lists of types said in the supported words."""
    if not isinstance(node, dict):
        return node
    out: dict[str, Any] = {}
    for word, value in node.items():
        if word in ("properties", "$defs", "definitions") and isinstance(value, dict):
            inner = {name: _rewritten(each, closing=closing) for name, each in value.items()}
            word = "properties" if word == "properties" else "$defs"
            known = out.get(word)
            out[word] = {**known, **inner} if isinstance(known, dict) else inner
        elif word in ("anyOf", "oneOf", "prefixItems") and isinstance(value, list):
            word = "anyOf" if word == "oneOf" else word
            out[word] = [_rewritten(each, closing=closing) for each in value]
        elif word in ("items", "additionalProperties"):
            out[word] = _rewritten(value, closing=closing)
        elif word == "$ref" and isinstance(value, str) and value.startswith("#/definitions/"):
            out[word] = "#/$defs/" + value.removeprefix("#/definitions/")
        elif word in _KEYWORDS:
            out[word] = value
    if closing and out.get("properties"):
        out.setdefault("type", "object")
        out.setdefault("additionalProperties", False)
    if isinstance(out.get("type"), list):
        return _split(out)
    return out


def _split(node: dict[str, Any]) -> dict[str, Any]:
    """`"type": [a, b]` as anyOf, the provider's own advice."""
    kinds: list[Any] = node["type"]
    if "anyOf" in node or "$ref" in node or not all(isinstance(kind, str) for kind in kinds) or not kinds:
        return node  # cannot be said in the supported words; the limits refuse it
    del node["type"]
    if len(kinds) == 1:
        return {**node, "type": kinds[0]}
    about: dict[str, Any] = {word: node.pop(word) for word in ("title", "description", "$defs") if word in node}
    branches = [_branch(node, kind) for kind in kinds]
    return {"anyOf": [branch for branch in branches if branch is not None], **about}


def _branch(node: dict[str, Any], kind: Any) -> dict[str, Any] | None:
    """The node for one of its types; None where its values have no such type."""
    branch: dict[str, Any] = {"type": kind}
    for word, value in node.items():
        if word == "enum" and isinstance(value, list) and kind != "null":
            branch[word] = [each for each in value if _is_a(each, kind)]
            if not branch[word]:
                return None
        elif word == "const":
            if not _is_a(value, kind):
                return None
            branch[word] = value
        elif kind in _SPEAKS_OF.get(word, ()):
            branch[word] = value
    return branch


def _is_a(value: Any, kind: Any) -> bool:
    return isinstance(value, _TYPES.get(kind, ())) and (kind == "boolean" or not isinstance(value, bool))


class _Limits:
    """One pass over a rewritten schema, counting what is limited in total: anew wherever it is referred to."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._defs = root.get("$defs") or {}
        self._properties = 0
        self._enum_values = 0
        self._enum_chars = 0

    def keep(self, node: Any, depth: int, inside: tuple[str, ...]) -> bool:
        """Whether the schema from here on is one that the decoder takes."""
        if not isinstance(node, dict) or depth > _MAX_DEPTH:
            return False
        values = node.get("enum") or ()
        self._properties += len(node.get("properties") or ())
        self._enum_values += len(values)
        self._enum_chars += sum(len(value) for value in values if isinstance(value, str))
        if self._properties > _MAX_PROPERTIES or self._enum_values > _MAX_ENUM:
            return False
        if self._enum_values > _LONG_ENUM and self._enum_chars > _MAX_LONG_ENUM_CHARS:
            return False
        kind = node.get("type")
        if kind is not None and (not isinstance(kind, str) or kind not in _TYPES):
            return False
        ref = node.get("$ref")
        if ref is not None:
            name = ref.removeprefix("#/$defs/")
            if name == ref or ref in inside or name not in self._defs:  # elsewhere, recursive, or nowhere
                return False
            return self.keep(self._defs[name], depth + 1, (*inside, ref))
        if kind == "object":
            # Every property required: an optional one may be refused, and the client's own reading decides anyway.
            if node.get("additionalProperties") is not False:
                return False
            if set(node.get("required") or ()) != set(node.get("properties") or ()):
                return False
        if kind == "array" and not ("items" in node or "prefixItems" in node):
            return False
        if len(node.get("anyOf") or ()) > _MAX_ANY_OF:
            return False
        children = [
            *(node.get("properties") or {}).values(),
            *(node.get("anyOf") or ()),
            *(node.get("prefixItems") or ()),
        ]
        if node.get("items") not in (None, False):
            children.append(node["items"])
        return all(self.keep(child, depth + 1, inside) for child in children)
