"""Text -> a mapping, and the line of every key in it: YAML as a person writes it, with messages that say where."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cbatch.errors import JobError

MAX_VALUES = 100_000  # with aliases filled in: ten lines of them can stand for a billion values

Lines = dict[tuple[str, ...], int | str]


class Where:
    """Says `job.yaml:12: limits.rpm` for a key path."""

    def __init__(self, path: Path, lines: Lines) -> None:
        self.path = path
        self.lines = lines

    def __call__(self, key_path: Sequence[object]) -> str:
        """The place of a key, or of the nearest one above it that is written down."""
        keys = tuple(str(k) for k in key_path)
        for length in range(len(keys), 0, -1):
            if (line := self.lines.get(keys[:length])) is not None:
                place = f"{self.path}:{line}" if isinstance(line, int) else line
                return f"{place}: {'.'.join(keys)}"
        return f"{self.path}: {'.'.join(keys)}" if keys else str(self.path)


def read_yaml(text: str, path: Path) -> tuple[dict[str, Any], Lines]:
    """The mapping in `text`, and the line of every key."""
    lines: Lines = {}
    try:
        raw = parse_yaml(text, lines)
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
        kind = "a list" if isinstance(raw, list) else f"only {shown(raw)}"
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


def parse_yaml(text: str, lines: Lines) -> Any:
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
    lines: Lines,
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
                    hint = 'a template in braces goes in quotes: "{{ column }}"'
                    raise _Refused(keys, key, "a key must be text, read a list or a mapping", hint)
                hint = f'in quotes it is text: "{key.value}"'
                raise _Refused(keys, key, f"a key must be text, read {shown(key.value)[1:-1]}", hint)
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
        raise _Refused(keys, node, f"read {shown(node.value)[1:-1]}: {problem}")


def shown(value: object) -> str:
    """A value as it stands in the file, short enough for a message."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except ValueError:
        text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
