"""The JSON Schema of job.yaml, for editors: shorthands included, unbuilt keys marked."""

from __future__ import annotations

from typing import Any

from cbatch.job import COUNT, FAIL_IF, LATER, LATER_KEYS, PERCENT, RANGE, RATES, TIME, Job

_DEFINITIONS = {"limits": "Limits", "retry": "Retry", "prompt": "PromptSpec", "params": "Params"}


def json_schema() -> dict[str, Any]:
    """The JSON Schema of job.yaml, for editors: shorthands included, unbuilt keys marked."""
    schema = Job.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "cbatch job.yaml"
    schema.pop("description", None)
    properties = schema["properties"]
    properties.pop("folder")
    properties.pop("places")
    del schema["required"]
    lines = {"required": ["input"], "not": {"required": ["prompt"]}}  # of a batch API; only the file can tell
    schema["allOf"] = [
        {"anyOf": [{"required": ["input"]}, _has("load", {"properties": {"mode": {"const": "replay"}}}, "mode")]},
        {"anyOf": [{"required": ["prompt"]}, _has("input", {}, "synthetic"), lines]},
        {"anyOf": [{"required": ["model"]}, lines]},
    ]
    text: dict[str, Any] = {"type": "string"}
    texts: dict[str, Any] = {"type": "array", "items": text}
    definitions = schema["$defs"]
    properties["model"] = {"anyOf": [text, texts]}
    properties["input"] = {"anyOf": [text, texts, {"$ref": "#/$defs/Input"}]}
    properties["prompt"] = {"anyOf": [text, {"$ref": "#/$defs/PromptSpec"}]}
    properties["fail_if"] = {"type": "string", "pattern": f"^{FAIL_IF.pattern}$"}
    definitions.pop("FailIf")
    del definitions["Input"]["required"]
    definitions["Input"]["anyOf"] = [{"required": ["path"]}, {"required": ["synthetic"]}]
    definitions["Input"]["properties"]["path"] = {"anyOf": [text, texts]}
    definitions["Results"]["properties"]["carry"] = {"anyOf": [text, texts]}
    params = definitions["Params"]["properties"]
    params["response_format"] = {
        "anyOf": [text, {"type": "object"}],
        "description": "a file, or an inline JSON Schema",
    }
    params["tools"] = {"anyOf": [text, {"type": "array", "items": {"type": "object"}}]}
    count = {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": f"^\\s*{COUNT.pattern}\\s*$"}]}
    for section, name in (("Input", "limit"), ("Input", "sample"), ("Budget", "tokens")):
        definitions[section]["properties"][name] = {"anyOf": [*count["anyOf"], {"type": "null"}]}
    auto = {"const": "auto", "description": "learned from headers, 429s and what gets through"}
    limits = definitions["Limits"]["properties"]
    for name in ("rpm", "rph", "rpd", "tpm", "tph", "tpd"):
        limits[name] = {"anyOf": [*count["anyOf"], auto, {"type": "null"}]}
    limits["concurrency"] = {
        "anyOf": [
            {"type": "integer", "minimum": 1, "maximum": 20_000},
            {"type": "string", "pattern": f"^\\s*{RANGE.pattern}\\s*$"},
            {"const": "auto"},
        ]
    }
    properties["limits"] = {"anyOf": [properties["limits"], {"const": "auto"}]}
    time = {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "pattern": f"^{TIME.pattern}$"}]}
    share = {
        "anyOf": [
            {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
            {"type": "string", "pattern": f"^{PERCENT.pattern}$"},
        ]
    }
    limits["share"] = share
    retry = definitions["Retry"]["properties"]
    retry["max_wait_s"] = retry["max_outage_s"] = time
    retry["hedge"] = {"anyOf": [*share["anyOf"], {"const": "off"}, {"const": False}, {"type": "null"}]}
    definitions["Budget"]["properties"]["wall"] = {"anyOf": [*time["anyOf"], {"type": "null"}]}
    _add_load(schema, count, time)
    for key_path, feature in LATER_KEYS.items():
        place = properties if len(key_path) == 1 else definitions[_DEFINITIONS[key_path[0]]]["properties"]
        place[key_path[-1]] = {"deprecated": True, "description": f"{feature} {LATER}"}
    return schema


def _has(section: str, form: dict[str, Any], key: str) -> dict[str, Any]:
    """That a section is there, holds `key`, and has this form."""
    return {"required": [section], "properties": {section: {"type": "object", "required": [key], **form}}}


def _add_load(schema: dict[str, Any], count: dict[str, Any], time: dict[str, Any]) -> None:
    """The keys of load runs with their shorthands."""
    definitions, properties = schema["$defs"], schema["properties"]
    texts = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    properties["gates"] = {"anyOf": [*texts["anyOf"], {"type": "null"}]}
    made = definitions["Synthetic"]["properties"]
    size = made["tokens"]["items"]
    made["tokens"] = {"anyOf": [size, made["tokens"]]}
    made["rows"] = count
    load = definitions["Load"]["properties"]
    for key, one, pattern in (
        ("concurrency", {"type": "integer", "minimum": 1, "maximum": 20_000}, RANGE.pattern),
        ("rate", {"type": "number", "minimum": 0.001, "maximum": 100_000}, RATES.pattern),
    ):
        several = {"type": "array", "items": one, "minItems": 1, "uniqueItems": True}
        load[key] = {"anyOf": [one, several, {"type": "string", "pattern": f"^\\s*{pattern}\\s*$"}]}
    load["slo"] = texts
    load["requests"] = count
    load["duration_s"] = time
    load["warmup_s"] = {"anyOf": [{"type": "number", "minimum": 0}, *time["anyOf"]]}
    for key, form in load.items():  # a key with nothing behind it is as if it were not there
        load[key] = {"anyOf": [form, {"type": "null"}]}
