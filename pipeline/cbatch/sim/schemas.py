"""A value that satisfies a JSON Schema."""

from __future__ import annotations

import math
from random import Random
from typing import Any

__all__ = ["instance", "resolve_ref"]


def resolve_ref(root: Any, ref: str) -> Any:
    """What `#/a/b` points at, or None."""
    node = root
    for step in ref.removeprefix("#").split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(node, dict) or step not in node:
            return None
        node = node[step]
    return node


def instance(schema: dict[str, Any], chance: Random, tag: str, words: str) -> Any:
    """A value for `schema`, keys in schema order; `tag` begins its first free string, `words` fill the rest.

    Knows what constrained decoding knows, and the common rest (lengths, sizes, date formats); not `pattern`.
    """
    try:
        return _Value(schema, chance, tag, words.split()).make(schema, depth=0)
    except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError):
        return {}  # a schema without strict is a hint, and this one means nothing


_FORMATS = {
    "date": "2026-03-14",
    "date-time": "2026-03-14T09:26:53Z",
    "time": "09:26:53Z",
    "email": "reader@example.com",
    "uri": "https://example.com/",
    "url": "https://example.com/",
    "uuid": "7d444840-9dc0-41d1-b245-5ffdce74fad2",
    "ipv4": "192.0.2.7",
    "hostname": "example.com",
}
_MAX_ITEMS = 1000  # no schema may make the simulator build a list of a billion
_DEEP = 8  # from here on a recursive schema gets its shortest value


class _Value:
    def __init__(self, root: dict[str, Any], chance: Random, tag: str, words: list[str]) -> None:
        self._root = root
        self._chance = chance
        self._tag: str | None = tag
        self._words = words or ["word"]

    def make(self, node: Any, depth: int) -> Any:
        if not isinstance(node, dict) or not node:
            return self._string({})
        if "const" in node:
            return node["const"]
        if node.get("enum"):
            return self._chance.choice(node["enum"])
        if "$ref" in node:
            target = resolve_ref(self._root, str(node["$ref"]))
            return self.make(target, depth + 1) if depth < 4 * _DEEP else None
        for word in ("anyOf", "oneOf"):
            if node.get(word):
                return self._alternative(node[word], depth)
        if node.get("allOf"):
            merged: dict[str, Any] = {}
            for part in node["allOf"]:
                part = resolve_ref(self._root, str(part["$ref"])) if "$ref" in part else part
                merged = merged | (part or {})
                if "properties" in merged and part and "properties" in part:
                    merged["properties"] = merged["properties"] | part["properties"]
            return self.make(merged, depth + 1)
        return self._typed(_kind(node), node, depth)

    def _alternative(self, options: list[Any], depth: int) -> Any:
        """One of several schemas; deep down the simplest, so that recursion ends."""
        if depth < _DEEP:
            return self.make(self._chance.choice(options), depth + 1)
        simple = [o for o in options if isinstance(o, dict) and _kind(o) not in ("object", "array") and "$ref" not in o]
        return self.make((simple or options)[0], depth + 1)

    def _typed(self, kind: str, node: dict[str, Any], depth: int) -> Any:
        match kind:
            case "object":
                return self._object(node, depth)
            case "array":
                return self._array(node, depth)
            case "integer":
                return self._integer(node)
            case "number":
                return self._number(node)
            case "boolean":
                return self._chance.random() < 0.5
            case "null":
                return None
            case _:
                return self._string(node)

    def _object(self, node: dict[str, Any], depth: int) -> dict[str, Any]:
        properties = node.get("properties") or {}
        required = node.get("required") or ()
        made = {
            name: self.make(child, depth + 1) for name, child in properties.items() if depth < _DEEP or name in required
        }
        for name in required:
            if name not in made:
                made[name] = self._string({})
        return made

    def _array(self, node: dict[str, Any], depth: int) -> list[Any]:
        made = [self.make(child, depth + 1) for child in node.get("prefixItems") or ()]
        items = node.get("items")
        if items is False or (items is None and made):
            return made
        low = int(node.get("minItems", 0 if depth >= _DEEP else 1))
        high = int(node.get("maxItems", max(low, 0 if depth >= _DEEP else 3)))
        size = min(_MAX_ITEMS, self._chance.randint(min(low, high), high))
        while len(made) < size:
            made.append(self.make(items, depth + 1))
        return made

    def _integer(self, node: dict[str, Any]) -> int:
        low, high = _bounds(node, 1)
        step = max(1, int(node.get("multipleOf", 1)))
        first, last = math.ceil(low / step), math.floor(high / step)
        return step * self._chance.randint(first, max(first, last))

    def _number(self, node: dict[str, Any]) -> float:
        low, high = _bounds(node, 1e-6)
        step = node.get("multipleOf")
        if step:
            first, last = math.ceil(low / step), math.floor(high / step)
            return float(step * self._chance.randint(first, max(first, last)))
        value = low + (high - low) * self._chance.random()
        rounded = round(value, 3)
        return rounded if low <= rounded <= high else value

    def _string(self, node: dict[str, Any]) -> str:
        form = node.get("format")
        if form in _FORMATS:
            return _FORMATS[form]
        text = " ".join(self._chance.choice(self._words) for _ in range(self._chance.randint(1, 4)))
        if self._tag is not None:
            text, self._tag = f"{self._tag} {text}", None
        low, high = int(node.get("minLength", 0)), node.get("maxLength")
        if len(text) < low:
            text = (text + " " + "x" * low)[:low]
        return text if high is None else text[: int(high)]


def _kind(node: dict[str, Any]) -> str:
    kind = node.get("type")
    if isinstance(kind, list):
        kind = next((one for one in kind if one != "null"), "null")
    if isinstance(kind, str):
        return kind
    if "properties" in node or "required" in node:
        return "object"
    if "items" in node or "prefixItems" in node:
        return "array"
    return "number" if "minimum" in node or "maximum" in node else "string"


def _bounds(node: dict[str, Any], nudge: float) -> tuple[float, float]:
    """The smallest and largest allowed number; `nudge` steps off an exclusive bound."""
    low, high = node.get("minimum"), node.get("maximum")
    above, below = node.get("exclusiveMinimum"), node.get("exclusiveMaximum")
    # Draft 4 wrote the exclusive bounds as booleans.
    if isinstance(above, bool):
        above = low if above else None
    if isinstance(below, bool):
        below = high if below else None
    if above is not None and (low is None or above >= low):
        low = math.floor(above) + 1 if nudge == 1 else above + nudge
    if below is not None and (high is None or below <= high):
        high = math.ceil(below) - 1 if nudge == 1 else below - nudge
    if low is None:
        low = 0 if high is None else high - 100
    return low, low + 100 if high is None else high
