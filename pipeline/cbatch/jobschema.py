"""The JSON Schema of job.yaml, for editors: shorthands included, unbuilt keys marked."""

from __future__ import annotations

from typing import Any

from cbatch.job import COUNT, FAIL_IF, LATER, LATER_KEYS, PERCENT, RANGE, TIME, Job

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
    for key_path, feature in LATER_KEYS.items():
        place = properties if len(key_path) == 1 else definitions[_DEFINITIONS[key_path[0]]]["properties"]
        place[key_path[-1]] = {"deprecated": True, "description": f"{feature} {LATER}"}
    return schema
