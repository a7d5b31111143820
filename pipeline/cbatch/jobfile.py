"""Text of job.yaml -> Job.

Everything that can be wrong with a job is found here, before anything is sent, and told with
file, line, key, what was read and what is accepted. A key of the contract whose feature is not
built yet is refused by name: an ignored key is a lie about what the run did.
"""

from __future__ import annotations

import glob
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import orjson
import yaml
from pydantic import ValidationError

from cbatch import batchfile
from cbatch.errors import JobError, SourceError
from cbatch.formats import read
from cbatch.job import BATCH, LATER, LATER_KEYS, Job
from cbatch.joberrors import accepted, job_error
from cbatch.render import Renderer, condition
from cbatch.response_format import response_format
from cbatch.yamltext import Lines, Where, parse_yaml, read_yaml, shown

LOOK_ROWS = 20  # of an input without a `prompt`: whether they are request lines
_SECTIONS = ("input", "prompt", "params", "limits", "retry", "timeouts", "results")


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


def of_mapping(content: Mapping[str, Any], overrides: Sequence[str] = ()) -> Job:
    """The job with the keys of job.yaml in a mapping; paths are relative to the current folder. Raises JobError."""
    try:
        text = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)
    except yaml.YAMLError as exc:
        raise JobError(f"the job is not made of plain values: {exc}") from None
    return parse(text, Path("job"), overrides)  # for messages, and the name where it has none


def parse(text: str, path: Path, overrides: Sequence[str] = ()) -> Job:
    """The job in `text`; `path` is where it was read, for messages and for relative input paths."""
    raw, lines = read_yaml(text, path)
    for override in overrides:
        _override(raw, override, lines)
    where = Where(path, lines)
    for key_path, feature in LATER_KEYS.items():
        if _get(raw, key_path) is not None:
            raise JobError(f"{where(key_path)}: {feature} {LATER}", hint=f"take {'.'.join(key_path)} out for now")
    # A key with nothing behind it (`rph:`) is as if it were not there.
    raw = {k: v for k, v in raw.items() if v is not None}
    for section in _SECTIONS:
        if isinstance(raw.get(section), dict):
            raw[section] = {k: v for k, v in raw[section].items() if v is not None}
    for name in ("folder", "places"):  # fields of Job, not keys of job.yaml
        if name in raw:
            raise JobError(f"{where((name,))}: unknown key", hint=f"accepted here: {', '.join(accepted(()))}")
    _load_files(raw, where)
    _recognise_lines(raw, path.parent)
    folder = str(path.parent.resolve())
    try:
        places = {".".join(keys): f"{path}:{line}" if isinstance(line, int) else line for keys, line in lines.items()}
        job = Job.model_validate({"name": path.stem, **raw, "folder": folder, "places": places})
    except ValidationError as exc:
        raise job_error(exc, where) from None
    for key_path, check in (
        (("prompt",), lambda: Renderer(job, job.model[0] if job.model else "")),
        (("input", "where"), lambda: condition(job.input.where) if job.input.where else None),
    ):
        try:
            check()
        except JobError as exc:  # which knows the template, and not the file it stands in
            raise JobError(f"{where(key_path).rpartition(':')[0]}: {exc}", hint=exc.hint) from None
    return job


def _override(raw: dict[str, Any], override: str, lines: Lines) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise JobError(f"--set {override}: not like key.path=value", hint="for example --set limits.concurrency=8")
    keys = tuple(key.strip().split("."))
    try:
        value = parse_yaml(text, {})
    except (yaml.YAMLError, RecursionError):  # `--set prompt=Answer: {{ q }}` means what it says
        value = text
    # What the file says below this key no longer counts.
    for stale in [known for known in lines if known[: len(keys)] == keys]:
        del lines[stale]
    place = raw
    for depth, name in enumerate(keys[:-1]):
        inner = place.get(name)
        if inner is None:
            inner = place[name] = {}
        elif isinstance(inner, str | list) and keys[: depth + 1] == ("input",):
            inner = place[name] = {"path": inner}
        elif isinstance(inner, str) and keys[: depth + 1] == ("prompt",):
            inner = place[name] = {"user": inner}
        elif inner == "auto" and keys[: depth + 1] == ("limits",):
            inner = place[name] = {}  # what `auto` means
        elif not isinstance(inner, dict):
            raise JobError(f"--set {override}: {'.'.join(keys[: depth + 1])} is not a mapping of keys")
        place = inner
    place[keys[-1]] = value
    for depth in range(1, len(keys) + 1):
        lines.setdefault(keys[:depth], f"--set {override}")


def _get(raw: Mapping[str, Any], key_path: tuple[str, ...]) -> object:
    value: object = raw
    for key in key_path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _recognise_lines(raw: dict[str, Any], folder: Path) -> None:
    """Give the input its format where the job has no `prompt` and the first row is a request line of a batch API."""
    rows = raw.get("input")
    spec = dict(rows) if isinstance(rows, dict) else {"path": rows}
    names = spec.get("path") if isinstance(spec.get("path"), list) else [spec.get("path")]
    if raw.get("prompt") is not None or spec.get("format", "auto") != "auto" or not names:
        return
    if isinstance(names[0], str) and _starts_with_a_line(folder, names[0]):
        raw["input"] = {**spec, "format": BATCH}


def _starts_with_a_line(folder: Path, name: str) -> bool:
    """Whether the first row that can be read is a request line; False where that cannot be found out."""
    with suppress(SourceError, OSError, EOFError, ValueError, RuntimeError, zlib.error):
        path = folder / Path(name).expanduser()
        found = path if path.is_file() else min(map(Path, glob.glob(str(path), recursive=True)), default=None)  # noqa: PTH207
        if found is None or not {".jsonl", ".ndjson", ".json"} & {suffix.lower() for suffix in found.suffixes[-2:]}:
            return False
        first = next((row.fields for row in islice(read(found, "auto", 0), LOOK_ROWS) if row.fields is not None), None)
        return first is not None and batchfile.is_line(first)
    return False


def _load_files(raw: dict[str, Any], where: Where) -> None:
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
        if form in ("text", "json_object"):
            raise JobError(f"{place}: read {form}, which is no file", hint=f"write {{type: {form}}}")
        name = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(form).name.removesuffix(".json"))[:64] or name
        form, file = _read_json(folder, form, place), form
        if not isinstance(form, dict):
            raise JobError(f"{place}: {file}: a JSON Schema is expected, read {shown(form)}")
    for key, value in params.items():
        try:
            orjson.dumps(form if key == "response_format" else value)
        except TypeError as exc:
            raise JobError(f"{where(('params', key))}: cannot be sent as JSON: {exc}") from None
    if isinstance(form, dict):
        params["response_format"] = response_format(form, name, place)


def _read_file(folder: Path, name: str, place: str) -> str:
    try:
        return (folder / name).read_text("utf-8-sig")
    except FileNotFoundError:
        raise JobError(f"{place}: {name}: no such file in {folder}") from None
    except UnicodeDecodeError as exc:
        raise JobError(f"{place}: {name}: not UTF-8 text (byte {exc.start})") from None
    except OSError as exc:
        raise JobError(f"{place}: {name or 'an empty name'}: cannot be read: {exc.strerror}") from None
    except ValueError as exc:  # a NUL in the name
        raise JobError(f"{place}: {name!r}: cannot be read: {exc}") from None


def _read_json(folder: Path, name: str, place: str) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(_read_file(folder, name, place), parse_constant=refuse)
    except json.JSONDecodeError as exc:
        raise JobError(f"{place}: {name}:{exc.lineno}: not valid JSON: {exc.msg} (column {exc.colno})") from None
    except RecursionError:
        raise JobError(f"{place}: {name}: nested too deeply") from None
    except ValueError as exc:
        raise JobError(f"{place}: {name}: not valid JSON: {exc}") from None
