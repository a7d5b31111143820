"""Values for a schema, and which schemas are refused for constrained decoding."""

from random import Random
from typing import Any

import jsonschema
import pytest

from cbatch.sim.schemas import instance
from cbatch.sim.strict import strict_problem

STRING = {"type": "string"}
NODE = {
    "type": "object",
    "properties": {"name": STRING, "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
    "required": ["name", "children"],
}
SCHEMAS = [
    pytest.param({"type": "object", "properties": {"a": STRING}, "required": ["a"]}, id="a string"),
    pytest.param({"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 4}, id="array sizes"),
    pytest.param({"type": "array", "prefixItems": [STRING, {"type": "boolean"}], "items": False}, id="a tuple"),
    pytest.param({"type": "integer", "minimum": 3, "maximum": 5}, id="integer bounds"),
    pytest.param({"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 5}, id="exclusive bounds"),
    pytest.param({"type": "integer", "multipleOf": 7, "minimum": 1}, id="multiples"),
    pytest.param({"type": "number", "minimum": 0.1, "maximum": 0.2}, id="number bounds"),
    pytest.param({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, id="exclusive number bounds"),
    pytest.param({"type": "number", "maximum": -5}, id="only a maximum"),
    pytest.param({"enum": ["a", 1, None]}, id="enum"),
    pytest.param({"const": {"k": 1}}, id="const"),
    pytest.param({"anyOf": [STRING, {"type": "null"}]}, id="anyOf"),
    pytest.param({"oneOf": [{"type": "boolean"}, {"type": "integer"}]}, id="oneOf"),
    pytest.param(
        {"allOf": [{"type": "object", "properties": {"a": STRING}}, {"required": ["a"]}]},
        id="allOf",
    ),
    pytest.param({"type": ["null", "integer"]}, id="a list of types"),
    pytest.param({"type": "string", "minLength": 90}, id="a long string"),
    pytest.param({"type": "string", "maxLength": 3}, id="a short string"),
    pytest.param({"type": "string", "format": "date-time"}, id="a date"),
    pytest.param({"type": "null"}, id="null"),
    pytest.param({"properties": {"a": {"type": "boolean"}}, "required": ["a"]}, id="an object without a type"),
    pytest.param({"$ref": "#/$defs/node", "$defs": {"node": NODE}}, id="recursion ends"),
    pytest.param(
        {"$ref": "#/definitions/a~1b", "definitions": {"a/b": {"type": "integer"}}},
        id="an escaped reference",
    ),
]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_the_value_satisfies_the_schema(schema: dict[str, Any]) -> None:
    for seed in range(100):
        jsonschema.validate(instance(schema, Random(seed), "[prompt abc]", "some words"), schema)


def test_the_first_free_string_carries_the_tag() -> None:
    schema = {"type": "object", "properties": {"kind": {"enum": ["x"]}, "a": STRING, "b": STRING}}
    value = instance(schema, Random(0), "[prompt abc]", "some words")
    assert value["a"].startswith("[prompt abc]")
    assert "[prompt" not in value["b"]


@pytest.mark.parametrize(
    "schema",
    [
        pytest.param({"type": "array", "minItems": "many", "items": {}}, id="a size that is no number"),
        pytest.param({"type": "object", "properties": [1]}, id="properties that are a list"),
        pytest.param({"enum": 7}, id="an enum that is a number"),
        pytest.param({"type": "integer", "minimum": "low"}, id="a bound that is a string"),
        pytest.param({"type": "array", "minItems": 10**12, "items": {"type": "null"}}, id="a trillion items"),
        pytest.param({"$ref": "#"}, id="a reference to itself"),
        pytest.param({"allOf": [1]}, id="allOf of numbers"),
    ],
)
def test_a_meaningless_schema_still_gets_a_value(schema: dict[str, Any]) -> None:
    """Without strict a schema is only a hint; it may not break the simulator."""
    instance(schema, Random(0), "[prompt abc]", "some words")


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels - 1):
        schema = _object(a=schema)
    return schema


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        pytest.param(_object(a=STRING), None, id="a closed object is accepted"),
        pytest.param(_object(a={"anyOf": [STRING, {"type": "null"}]}), None, id="an optional field by anyOf"),
        pytest.param(
            _object(a={"$ref": "#/$defs/b"}) | {"$defs": {"b": _object(c=STRING)}}, None, id="a local reference"
        ),
        pytest.param(_object(a={"type": "integer", "minimum": 0, "maximum": 9}), None, id="bounds are accepted"),
        pytest.param({"type": "array", "items": STRING}, "root", id="the root must be an object"),
        pytest.param({"type": "object", "properties": {}}, "additionalProperties", id="an open root"),
        pytest.param(_object(a={"type": "object", "properties": {}}), "additionalProperties", id="an open child"),
        pytest.param(
            _object(a={"$ref": "#/$defs/b"}) | {"$defs": {"b": {"type": "object"}}},
            "additionalProperties",
            id="an open object behind a reference",
        ),
        pytest.param(_object(a=STRING) | {"definitions": {}}, "Use '\\$defs' instead", id="definitions"),
        pytest.param(_object(a={"type": ["string", "null"]}), "Lists of types", id="a list of types"),
        pytest.param(_object(a={"type": "string", "nullable": True}), "{'nullable'}", id="an unknown keyword"),
        pytest.param(_object(a={"type": "string", "pattern": "x"}), "{'pattern'}", id="pattern"),
        pytest.param(_object(a={"type": "array"}), "Array fields require", id="an array of what"),
        pytest.param(_object(a={"type": "array", "items": STRING, "minItems": 1}), "{'minItems'}", id="minItems"),
        pytest.param(_object(a={"type": "array", "items": True}), "items: true", id="items: true"),
        pytest.param(_object(a={"$ref": "https://x/y"}), "External", id="an external reference"),
        pytest.param(_object(a={"$ref": "#/$defs/gone"}), "not defined", id="a reference to nothing"),
        pytest.param(
            _object(a={"$ref": "#/$defs/n"}) | {"$defs": {"n": _object(b={"$ref": "#/$defs/n"})}},
            "Recursive",
            id="recursion",
        ),
        pytest.param(_object(a={"enum": list(range(501))}), "500 enum values", id="501 enum values"),
        pytest.param(_object(**{f"p{n}": {} for n in range(400)}), None, id="400 properties fit"),
        pytest.param(_object(a={"type": "string", "description": "x" * 5000}), "5000 characters", id="too long"),
        pytest.param(_nested(10), None, id="ten levels are accepted"),
        pytest.param(_nested(11), "nesting depth of 10", id="eleven levels"),
        pytest.param(_object(a={"type": {}}), "Invalid", id="a type that is an object"),
        pytest.param(_object(a=STRING) | {"required": ["b"]}, "Required properties", id="required but not there"),
    ],
)
def test_strict_schemas(schema: dict[str, Any], problem: str | None) -> None:
    found = strict_problem(schema)
    if problem is None:
        assert found is None
    else:
        assert found is not None
        assert problem.replace("\\", "") in found
