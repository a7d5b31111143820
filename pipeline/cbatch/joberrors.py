"""What pydantic found wrong with a job -> one message in the words of job.yaml."""

from __future__ import annotations

import difflib
import re
from typing import TypeGuard, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from cbatch.errors import JobError
from cbatch.job import LATER_KEYS, Job
from cbatch.yamltext import Where, shown

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
    ("input", "synthetic", "tokens"): "a whole number, or a list of them",
    ("load",): "a mapping with mode, concurrency, rate, …",
    ("load", "slo"): "text like 'ttft_s p95 < 0.5', or a list of them",
    ("gates",): "text like 'ttft_s p95 < 0.5', or a list of them",
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


def job_error(exc: ValidationError, where: Where) -> JobError:
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


def _one_error(error: ErrorDetails, keys: tuple[object, ...], where: Where) -> tuple[str, str | None]:
    """The message, and the hint where there is one."""
    place, kind, read, context = where(keys), error["type"], error.get("input"), error.get("ctx", {})
    if kind == "extra_forbidden":
        known = accepted(keys[:-1])
        name = str(keys[-1])
        near = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1) or _elsewhere(name)
        if near:
            return f"{place}: unknown key; did you mean {near[0]}?", None
        return f"{place}: unknown key", f"accepted here: {', '.join(known)}"
    if kind == "missing":
        needs_none = "only lines of a batch API (custom_id, method, url, body) as input need no model and no prompt"
        return f"{place}: this key is needed and missing", needs_none if keys == ("prompt",) else None
    if kind == "value_error":
        text = error["msg"].removeprefix("Value error, ")
        text = text if len(text) <= 300 else text[:299] + "…"
        if found := re.match(r"([a-z_]+(?:\.[a-z_]+)*): ", text):
            place, text = where((*keys, *found[1].split("."))), text[found.end() :]
            return f"{place}: {text}", None
        return f"{place}: {text}" + (
            f"; read {shown(read)}" if isinstance(read, str) and read not in text else ""
        ), None
    if kind == "literal_error":
        expected = re.findall(r"'([^']*)'", context["expected"]) or [context["expected"].lower()]
        near = difflib.get_close_matches(str(read).lower(), expected, n=1)
        guess = f"; did you mean {near[0]}?" if near else ""
        return f"{place}: read {shown(read)}; accepted: {', '.join(expected)}{guess}", None
    names = tuple(str(key) for key in keys)
    if kind in _KINDS and (kind.endswith("_type") or kind == "too_short"):
        accepted_text = _FORMS.get(names, _KINDS[kind])
    else:
        bounds = {k: f"{v:,.0f}" if isinstance(v, int | float) and v == int(v) else v for k, v in context.items()}
        accepted_text = _KINDS[kind].format(**bounds) if kind in _KINDS else error["msg"]
    is_scalar = isinstance(read, int | float) and kind in ("string_type", "list_type")
    return f"{place}: read {shown(read)}; accepted: {accepted_text}", "in quotes it is text" if is_scalar else None


def _clean(location: tuple[object, ...]) -> tuple[object, ...]:
    """The key path without pydantic's names for validators and for the members of a union."""
    names = ("str", "list[str]", "dict[str,any]", "dict[str,float]", "[key]")
    # Unions are below a key of a section: above, `str` is what somebody wrote.
    return location[:2] + tuple(part for part in location[2:] if part not in names)


def _elsewhere(name: str) -> list[str]:
    """Where else in job.yaml a key of this name is accepted."""
    return [
        f"{section}.{name}"
        for section in ("params", "input", "limits", "retry", "timeouts", "results", "prompt", "load")
        if name in accepted((section,))
    ][:1]


def _is_section(annotation: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def accepted(keys: tuple[object, ...]) -> list[str]:
    """The keys accepted in the mapping at `keys`."""
    model: type[BaseModel] = Job
    for key in keys:
        annotation = model.model_fields[str(key)].annotation
        inner = next((one for one in (annotation, *get_args(annotation)) if _is_section(one)), None)
        if inner is None:
            return []
        model = inner
    names = [name for name in model.model_fields if (model, name) not in ((Job, "folder"), (Job, "places"))]
    return names + [path[-1] for path in LATER_KEYS if path[:-1] == tuple(str(k) for k in keys)]
