"""What is wrong with a job.yaml is told with file, line, key, what was read and what is accepted."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cbatch import jobfile
from cbatch.errors import JobError
from cbatch.job import Job
from cbatch.jobschema import json_schema

REPOSITORY = Path(__file__).resolve().parents[2]
CONTRACT = REPOSITORY.parent / "shared" / "contract.md"
BASE = "model: m\ninput: a.jsonl\nprompt: '{{ q }}'\n"  # what a test adds to it stands on line 4
BUILT = """
name: gsm8k
model: [gpt-oss-120b, other]
endpoint: sim
input: {path: data/*.parquet, format: auto, id: question_id, limit: 1000, where: "difficulty > 3", shard: 1/4,
        sample: 500, seed: 7}
prompt: {system: "s", user: "{{ q }}"}
params: {max_completion_tokens: 100, temperature: 0, top_p: 1, seed: 1, stop: [a], reasoning_effort: low, stream: true,
         stream_options: {include_usage: true},
         response_format: {type: json_object}, tools: [{type: function}], logit_bias: {"50256": -100}}
samples: 2
limits: {concurrency: 8, rpm: 100, tpm: 1M, tier: developer, rph:, rpd:, tph:, tpd:}
retry: {attempts: 6, max_wait_s: 120, reask: 2}
timeouts: {connect_s: 1, total_s: 3}
fail_if: "errors > 1%"
results: {carry: [answer], input: true, part_rows: 50000, format: parquet}
output: runs/gsm8k-{date}-{time}-{model}-{name}
budget:
load:
gates:
"""


def parse(text: str, *overrides: str) -> Job:
    return jobfile.parse(text, Path("job.yaml"), overrides)


def refused(text: str, *overrides: str) -> str:
    """The message and the hint, as a user reads them."""
    with pytest.raises(JobError) as caught:
        parse(text, *overrides)
    assert "Traceback" not in str(caught.value)
    return str(caught.value) + (f"\nhint: {caught.value.hint}" if caught.value.hint else "")


def test_every_key_that_is_built_is_recognised() -> None:
    job = parse(BUILT)
    assert job.name == "gsm8k"
    assert job.input.shard_of == (0, 4)
    assert job.limits.tpm == 1_000_000
    assert job.params.body()["logit_bias"] == {"50256": -100.0}
    assert job.params.travel() == {"stream": True, "stream_options": {"include_usage": True}}
    assert job.fail_if.percent == 1.0


def test_a_key_that_is_promised_and_not_built_is_refused_by_name() -> None:
    """An ignored key would be a lie about what the run did."""
    said = refused("model: m\ninput: a\nprompt: {turns: t}\n")
    assert said.startswith("job.yaml:3: prompt.turns: multi-turn prompts comes in a later release")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        pytest.param("zzz: 1", "job.yaml:4: zzz: unknown key\nhint: accepted here: name, model, ", id="an unknown key"),
        pytest.param("sampels: 1", "job.yaml:4: sampels: unknown key; did you mean samples?", id="a misspelled key"),
        pytest.param(
            "params:\n  seed: 1\n  temprature: 0",
            "job.yaml:6: params.temprature: unknown key; did you mean temperature?",
            id="a misspelled key inside a section",
        ),
        pytest.param("Samples: 1", "job.yaml:4: Samples: unknown key; did you mean samples?", id="a key in capitals"),
        pytest.param(
            "temperature: 0",
            "job.yaml:4: temperature: unknown key; did you mean params.temperature?",
            id="a key outside its section",
        ),
        pytest.param("folder: /", "job.yaml:4: folder: unknown key", id="a field of Job that is no key"),
        pytest.param(
            "name: 2026", "job.yaml:4: name: read 2026; accepted: text\nhint: in quotes", id="a number for text"
        ),
        pytest.param("name: a/b", 'job.yaml:4: name: read "a/b"; accepted: text without /', id="a path for a name"),
        pytest.param(
            "samples: true", "job.yaml:4: samples: read true; accepted: a whole number", id="true for a number"
        ),
        pytest.param("samples: 0", "job.yaml:4: samples: read 0; accepted: 1 or more", id="a number too small"),
        pytest.param(
            "limits: {rpm: 3X}", "job.yaml:4: limits.rpm: not a number; accepted: 1000, 300K", id="a wrong unit"
        ),
        pytest.param(
            "limits: {concurrency: '8'}",
            "job.yaml:4: limits.concurrency: '8' is not a number from 1 to 20,000, a range such as 5..200, or auto",
            id="text for a number",
        ),
        pytest.param(
            "limits: {concurrency: 30000}",
            "job.yaml:4: limits.concurrency: 30000 is not a number from 1 to 20,000, a range such as 5..200, or auto",
            id="a number too large",
        ),
        pytest.param(
            "limits: {tier: develper}",
            'job.yaml:4: limits.tier: read "develper"; accepted: free-trial, developer; did you mean developer?',
            id="a misspelled value",
        ),
        pytest.param(
            "limits: fast", 'job.yaml:4: limits: read "fast"; accepted: a mapping of keys', id="text for a section"
        ),
        pytest.param(
            "params: [a]", 'job.yaml:4: params: read ["a"]; accepted: a mapping of keys', id="a list for a section"
        ),
        pytest.param("params: {n: 3}", "job.yaml:4: params.n: not accepted", id="several answers in one request"),
        pytest.param(
            "params: {model: m}", "job.yaml:4: params.model: a key of the job", id="the model among the params"
        ),
        pytest.param(
            "params: {max_tokens: 1, max_completion_tokens: 1}",
            "job.yaml:4: params.max_tokens: the old name of max_completion_tokens",
            id="two names of one limit",
        ),
        pytest.param(
            "params: {stop: [a, 3]}", "job.yaml:4: params.stop.1: read 3; accepted: text", id="one wrong in a list"
        ),
        pytest.param(
            "params: {temperature: .nan}", "job.yaml:4: params.temperature: read .nan: JSON has", id="not a number"
        ),
        pytest.param("params: {seed: 1" + "0" * 20 + "}", "job.yaml:4: params.seed: read 1000", id="more than 64 bits"),
        pytest.param("params: {seed: 1" + "0" * 5000 + "}", "job.yaml:4: params.seed: read 1000", id="5,000 digits"),
        pytest.param(
            "params: {user: '\\ud800'}".replace("'", '"'), "job.yaml:4: params.user: not Unicode", id="surrogates"
        ),
        pytest.param(
            "fail_if: 3", "job.yaml:4: fail_if: read 3; accepted: text like 'errors > 1%'", id="a bare number"
        ),
        pytest.param(
            "endpoint: Sim", "job.yaml:4: endpoint: 'Sim' is not cerebras, sim, or a http://", id="an endpoint"
        ),
        pytest.param(
            "output: 'runs/{dat}'", "job.yaml:4: output: {dat} is unknown; accepted: {date} {time}", id="an output"
        ),
        pytest.param(
            "results: {carry: [1]}", "job.yaml:4: results.carry.0: read 1; accepted: text", id="a carried number"
        ),
        pytest.param(
            "results: {format: csv}", 'job.yaml:4: results.format: read "csv"; accepted: parquet', id="a format"
        ),
        pytest.param(
            "limits: {tier: developer}", "job.yaml:4: limits.tier: no limits are known for model 'm'", id="a tier"
        ),
        pytest.param("model: n", "job.yaml:4: model: given twice, first on line 1", id="a key given twice"),
        pytest.param(
            "params: {seed: 1, seed: 2}", "job.yaml:4: params.seed: given twice", id="a key given twice, inside"
        ),
        pytest.param(
            "1: x", 'job.yaml:4: a key must be text, read 1\nhint: in quotes it is text: "1"', id="a number for a key"
        ),
        pytest.param("params: {no: x}", "job.yaml:4: params: a key must be text, read no", id="false for a key"),
        pytest.param("? [a]\n: x", "job.yaml:4: a key must be text, read a list", id="a list for a key"),
    ],
)
def test_a_wrong_key_or_value_is_told_with_its_line(line: str, said: str) -> None:
    assert refused(BASE + line + "\n").startswith(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("", "job.yaml: the file is empty", id="nothing"),
        pytest.param("# only a comment\n", "job.yaml: the file is empty", id="a comment"),
        pytest.param("---\n", "job.yaml: the file is empty", id="an empty document"),
        pytest.param("- a\n- b\n", "job.yaml: a mapping of keys is expected, read a list", id="a list"),
        pytest.param("hello", 'job.yaml: a mapping of keys is expected, read only "hello"', id="a word"),
        pytest.param("model: [a\n", "job.yaml:2: not valid YAML: expected ',' or ']'", id="an open bracket"),
        pytest.param("model: m: n\n", "job.yaml:1: not valid YAML: mapping values", id="two colons"),
        pytest.param("input:\n\tpath: x\n", "job.yaml:2: not valid YAML: found character '\\t'", id="a tab"),
        pytest.param(
            BASE + "---\n" + BASE, "job.yaml:4: not valid YAML: but found another document", id="two documents"
        ),
        pytest.param("a: b\nname: \x00\n", "job.yaml:2: not valid YAML: the character '\\x00' is not", id="a NUL"),
        pytest.param(
            "name: !!python/object/apply:os.system [ls]\n", "job.yaml:1: name: values of the YAML", id="a Python tag"
        ),
        pytest.param("name: !!binary aGVsbG8=\n", "job.yaml:1: name: values of the YAML type !!binary", id="binary"),
        pytest.param("name: !!int abc\n", "job.yaml:1: name: read abc: not a value of its type", id="a lying tag"),
        pytest.param("name: *nobody\n", "job.yaml:1: not valid YAML: found undefined alias", id="an alias of nothing"),
        pytest.param(
            "params: &p\n  a: *p\n", "job.yaml:1: params.a: an alias to something that holds it", id="a circle"
        ),
        pytest.param("params: " + "[" * 500 + "]" * 500, "job.yaml: nested too deeply", id="500 brackets"),
    ],
)
def test_what_is_no_job_at_all_is_refused_with_its_line(text: str, said: str) -> None:
    assert refused(text).startswith(said)


@pytest.mark.parametrize("place", ["{}", "params: {{model_parameters: {}}}", "params: {{response_format: {}}}"])
def test_a_few_aliases_cannot_stand_for_a_billion_values(place: str) -> None:
    bomb = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    bomb += [f"{chr(c)}: &{chr(c)} [{', '.join([f'*{chr(c - 1)}'] * 10)}]" for c in range(ord("b"), ord("k"))]
    text = "\n".join(bomb) if place == "{}" else place.format("{" + ", ".join(bomb) + "}")
    assert "more than 100,000 values" in refused(BASE + text)


def test_anchors_aliases_and_merge_keys_work() -> None:
    job = parse("model: &m gpt\nname: *m\nprompt: x\ninput: {<<: {path: a, limit: 3}, limit: 4}\n")
    assert (job.name, job.input.path, job.input.limit) == ("gpt", ["a"], 4)


def test_dates_are_text_and_exponents_are_numbers() -> None:
    """YAML 1.1 reads `2026-01-01` as a date, which JSON does not have, and `1e-1` as text."""
    job = parse(BASE + "name: 2026-01-01\nparams: {temperature: 1e-1}\nlimits: {tpm: 1e6}\n")
    assert (job.name, job.params.temperature, job.limits.tpm) == ("2026-01-01", 0.1, 1_000_000)


@pytest.mark.parametrize(
    "key", ["params", "limits", "retry", "timeouts", "results", "samples", "name", "output", "fail_if"]
)
def test_a_key_with_nothing_behind_it_is_as_if_it_were_not_there(key: str) -> None:
    assert parse(BASE + f"{key}:\n").model_dump() == parse(BASE).model_dump()


@pytest.mark.parametrize("key", ["model", "input", "prompt"])
def test_a_needed_key_that_is_missing_is_named(key: str) -> None:
    lines = [line for line in BASE.splitlines() if not line.startswith(key)]
    assert f"job.yaml: {key}: this key is needed and missing" in refused("\n".join(lines))


def test_several_mistakes_are_told_at_once() -> None:
    said = refused("modle: m\ninput: a\nprompt: x\nsamples: x\n")
    assert "modle: unknown key; did you mean model?" in said
    assert "job.yaml:4: samples" in said


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        pytest.param("input: a.jsonl", ["a.jsonl"], id="a path"),
        pytest.param("input: [a.jsonl, b.csv]", ["a.jsonl", "b.csv"], id="a list"),
        pytest.param("input: {path: a.jsonl}", ["a.jsonl"], id="a mapping with a path"),
        pytest.param("input: {path: [a.jsonl, b.csv]}", ["a.jsonl", "b.csv"], id="a mapping with a list"),
    ],
)
def test_an_input_may_be_written_short(text: str, paths: list[str]) -> None:
    assert parse(f"model: m\nprompt: x\n{text}\n").input.path == paths


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("3", "input: read 3; accepted: a path, a list of paths, or a mapping with `path`", id="a number"),
        pytest.param("[3]", "input.path.0: read 3; accepted: text", id="a number in a list"),
        pytest.param("[]", "input.path: read []; accepted: a path, or a list of paths", id="an empty list"),
        pytest.param("''", 'input.path.0: read ""; accepted: text that is not empty', id="an empty path"),
        pytest.param("{limit: 3}", "input.path: this key is needed and missing", id="no path"),
        pytest.param("{path: a, limt: 3}", "input.limt: unknown key; did you mean limit?", id="a misspelled key"),
        pytest.param("{path: a, format: xml}", 'input.format: read "xml"; accepted: auto, jsonl', id="a format"),
        pytest.param("{path: a, shard: 5/4}", "input.shard: '5/4' is not like '1/4'", id="a shard"),
        pytest.param("{path: a, where: true}", "input.where: read true; accepted: text", id="a condition"),
        pytest.param(
            "s3://a/b.jsonl", "input.path: s3://a/b.jsonl: reading from remote storage comes in a later", id="S3"
        ),
    ],
)
def test_an_input_that_is_none_is_refused(text: str, said: str) -> None:
    assert refused(f"model: m\nprompt: x\ninput: {text}\n").startswith(f"job.yaml:3: {said}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("3", "prompt: read 3; accepted: text, or a mapping with user", id="a number"),
        pytest.param(
            "{}", "prompt: exactly one of user, template_file, messages, body is needed; read none", id="nothing"
        ),
        pytest.param("{system: s}", "prompt: exactly one of user", id="a system prompt alone"),
        pytest.param(
            "{user: a, messages: b}", "prompt: exactly one of user, template_file, messages, body", id="two ways"
        ),
        pytest.param(
            "{body: b, system: s}", "prompt: system does not go with body", id="a system prompt for a raw body"
        ),
        pytest.param("{usr: a}", "prompt.usr: unknown key; did you mean user?", id="a misspelled key"),
        pytest.param("{template_file: 3}", "prompt.template_file: read 3; accepted: text", id="a number for a file"),
        pytest.param(
            "{template_file: no.j2}", "prompt.template_file: no.j2: no such file in ", id="a file that is missing"
        ),
        pytest.param("{template_file: .}", "prompt.template_file: .: cannot be read: Is a directory", id="a folder"),
        pytest.param(
            "{template_file: a, user: b}", "prompt.template_file: give either user or", id="a file and a text"
        ),
    ],
)
def test_a_prompt_that_is_none_is_refused(text: str, said: str) -> None:
    assert refused(f"model: m\ninput: a\nprompt: {text}\n").startswith(f"job.yaml:3: {said}")


def test_files_are_found_from_the_folder_of_the_job(tmp_path: Path) -> None:
    (tmp_path / "p.j2").write_bytes(b"\xef\xbb\xbfHello {{ q }}\n")
    (tmp_path / "t.json").write_text('[{"type": "function"}]')
    (tmp_path / "my answer.json").write_bytes(b'\xef\xbb\xbf{"type": "object", "properties": {"b": {}, "a": {}}}')
    (tmp_path / "job.yaml").write_text(
        "model: m\ninput: a\nprompt: {system: s, template_file: p.j2}\n"
        "params: {tools: t.json, response_format: my answer.json}\n"
    )
    job = jobfile.load(tmp_path / "job.yaml")
    assert (job.prompt.system, job.prompt.user, job.prompt.template_file) == ("s", "Hello {{ q }}\n", None)
    assert job.params.tools == [{"type": "function"}]
    assert job.params.response_format is not None
    inner = job.params.response_format["json_schema"]
    assert inner["name"] == "my_answer"
    assert list(inner["schema"]["properties"]) == ["b", "a"]
    assert (job.name, job.folder) == ("job", str(tmp_path.resolve()))


CLOSED: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "strict"),
    [
        pytest.param(CLOSED, True, id="closed objects are decoded strictly"),
        pytest.param({"type": "object", "properties": {}}, False, id="an open object is a hint"),
        pytest.param({**CLOSED, "properties": {"a": {"type": "object"}}}, False, id="an open object inside"),
        pytest.param({**CLOSED, "properties": {"a": {"type": ["string", "null"]}}}, False, id="a list of types"),
        pytest.param({**CLOSED, "properties": {"a": {"type": "string", "pattern": "x"}}}, False, id="a pattern"),
        pytest.param({**CLOSED, "properties": {"pattern": {"type": "string"}}}, True, id="a property named pattern"),
        pytest.param({"type": "array", "items": CLOSED}, False, id="a root that is no object"),
        pytest.param({"anyOf": [CLOSED]}, False, id="a root without a type"),
    ],
)
def test_strict_mode_is_asked_for_where_the_server_takes_the_schema(schema: dict[str, Any], strict: bool) -> None:
    """Outside strict mode the server would refuse every prompt; as a hint the schema works, and answers are checked."""
    form = parse(BASE + f"params: {{response_format: {json.dumps(schema)}}}\n").params.response_format
    assert form is not None
    assert (form["type"], form["json_schema"]["strict"]) == ("json_schema", strict)
    assert form["json_schema"]["schema"] == schema


@pytest.mark.parametrize(
    ("form", "said"),
    [
        pytest.param(
            "json_object", "read json_object, which is no file\nhint: write {type: json_object}", id="a bare word"
        ),
        pytest.param(
            "{type: json_objct}", 'read {"type": "json_objct"}; accepted: a JSON Schema', id="a misspelled type"
        ),
        pytest.param("{}", "read {}; accepted: a JSON Schema", id="nothing"),
        pytest.param("3", "read 3; accepted: a file name, a JSON Schema, or", id="a number"),
        pytest.param("{type: json_schema}", "json_schema needs a `schema` mapping", id="json_schema without a schema"),
        pytest.param(
            "{type: object, properties: 3}", "not a valid JSON Schema at $.properties: 3 is not", id="a bad schema"
        ),
        pytest.param("{type: string, pattern: '('}", "not a valid JSON Schema at $.pattern: ", id="a bad pattern"),
        pytest.param("{$schema: 3}", "not a valid JSON Schema: $schema is 3", id="a number for $schema"),
        pytest.param(
            "{$ref: 'http://x/y'}", '$ref "http://x/y" points to nothing in the schema', id="a remote reference"
        ),
        pytest.param(
            "{$ref: '#/$defs/a'}", '$ref "#/$defs/a" points to nothing in the schema', id="a dangling reference"
        ),
        pytest.param("no.json", "no.json: no such file in ", id="a file that is missing"),
    ],
)
def test_a_response_format_that_is_none_is_refused(form: str, said: str) -> None:
    assert refused(BASE + f"params: {{response_format: {form}}}").startswith(
        f"job.yaml:4: params.response_format: {said}"
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(b'{"a":', "f.json:1: not valid JSON: Expecting value", id="broken JSON, with its line"),
        pytest.param(b"[1]", "f.json: a JSON Schema is expected, read [1]", id="a list"),
        pytest.param(b'{"a": "\xe9"}', "f.json: not UTF-8 text", id="Latin-1"),
        pytest.param(b'{"const": NaN}', "f.json: not valid JSON: NaN is not JSON", id="NaN"),
        pytest.param(b"[" * 100_000, "f.json: nested too deeply", id="100,000 brackets"),
        pytest.param(b'{"a":' * 300 + b"1" + b"}" * 300, "cannot be sent as JSON", id="300 mappings"),
        pytest.param(b'{"a": ' + b"9" * 5000 + b"}", "f.json: not valid JSON: ", id="a number of 5,000 digits"),
    ],
)
def test_a_schema_file_that_is_none_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "f.json").write_bytes(content)
    (tmp_path / "job.yaml").write_text(BASE + "params: {response_format: f.json}\n")
    with pytest.raises(JobError) as caught:
        jobfile.load(tmp_path / "job.yaml")
    assert f"job.yaml:4: params.response_format: {said}" in str(caught.value)


def test_references_inside_the_schema_are_fine() -> None:
    schema = "{type: object, properties: {a: {$ref: '#/$defs/b'}, c: {$ref: '#'}}, $defs: {b: {type: string}}}"
    assert parse(BASE + f"params: {{response_format: {schema}}}\n").params.answer_schema is not None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(None, "no such file", id="no file"),
        pytest.param(b"model: \xff\n", "not UTF-8 text (byte 7)", id="not UTF-8"),
        pytest.param("model: m\n".encode("utf-16"), "not UTF-8 text", id="UTF-16"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / "job.yaml").write_bytes(content)
    with pytest.raises(JobError, match=r"job\.yaml: ") as caught:
        jobfile.load(tmp_path / "job.yaml")
    assert said in str(caught.value)


def test_a_folder_is_not_a_job_and_a_byte_order_mark_and_crlf_do_no_harm(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="is a folder"):
        jobfile.load(tmp_path)
    (tmp_path / "win.yaml").write_bytes(b"\xef\xbb\xbf" + BASE.replace("\n", "\r\n").encode())
    assert jobfile.load(tmp_path / "win.yaml").name == "win"


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        pytest.param("samples=3", "samples", 3, id="a number"),
        pytest.param("limits.rpm=300K", "limits.rpm", 300_000, id="a key of a section that is not there"),
        pytest.param("input.limit=5", "input.limit", 5, id="a key of a short input"),
        pytest.param("prompt.system=Be brief: yes", "prompt.system", {"Be brief": True}, id="YAML is YAML"),
        pytest.param("prompt=Q: {{ q }}", "prompt.user", "Q: {{ q }}", id="a template is text"),
        pytest.param("model=[a, b]", "model", ["a", "b"], id="a list"),
        pytest.param("name=2026-01-01", "name", "2026-01-01", id="a date is text"),
        pytest.param("output=runs/a=b", "output", "runs/a=b", id="only the first equals sign counts"),
        pytest.param("samples=", "samples", 1, id="nothing means the default"),
    ],
)
def test_set_overrides_any_key(override: str, key: str, value: object) -> None:
    if isinstance(value, dict):
        assert refused(BASE, override).startswith(f"--set {override}: {key}: read ")
        return
    found: Any = parse(BASE, override)
    for name in key.split("."):
        found = getattr(found, name)
    assert found == value


@pytest.mark.parametrize(
    ("override", "said"),
    [
        pytest.param("samples", "--set samples: not like key.path=value", id="no equals sign"),
        pytest.param("=3", "--set =3: not like key.path=value", id="no key"),
        pytest.param(
            "sampels=3", "--set sampels=3: sampels: unknown key; did you mean samples?", id="a misspelled key"
        ),
        pytest.param("samples=x", '--set samples=x: samples: read "x"; accepted: a whole number', id="a wrong type"),
        pytest.param("limits.rpm=3X", "--set limits.rpm=3X: limits.rpm: not a number", id="a wrong unit"),
        pytest.param("model.0=x", "--set model.0=x: model is not a mapping of keys", id="a key of text"),
        pytest.param(
            "prompt.turns=t",
            "--set prompt.turns=t: prompt.turns: multi-turn prompts comes in a later",
            id="a later key",
        ),
        pytest.param("params={a: &x [*x]}", "--set params={a: &x [*x]}: params: read ", id="a circle"),
        pytest.param("samples=" + "9" * 5000, "--set samples=9999", id="5,000 digits"),
    ],
)
def test_a_bad_override_is_refused_and_quoted(override: str, said: str) -> None:
    assert refused(BASE, override).startswith(said)


def test_an_override_hides_the_lines_of_what_it_replaces() -> None:
    assert refused(BASE + "limits: {rpm: 5}\n", "limits={rpm: x}").startswith("--set limits={rpm: x}: limits.rpm: ")


# -- the JSON Schema for editors ----------------------------------------------------------------


@pytest.fixture(scope="module")
def editor() -> jsonschema.Draft202012Validator:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "jobs").glob("*.yaml")), ids=lambda path: path.name)
def test_editors_accept_every_job_of_the_repository(editor: jsonschema.Draft202012Validator, path: Path) -> None:
    editor.validate(yaml.safe_load(path.read_text()))


def test_editors_accept_every_example_of_the_contract(editor: jsonschema.Draft202012Validator) -> None:
    if not CONTRACT.is_file():
        pytest.skip("the contract is not at hand")
    blocks = CONTRACT.read_text().split("```yaml\n")[1:]
    assert blocks
    for block in blocks:
        keys = yaml.safe_load(block.split("```")[0])
        editor.validate({"model": "m", "input": "a", "prompt": "x", **keys})


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("sampels: 1", id="a misspelled key"),
        pytest.param("params: {temprature: 0}", id="a misspelled key inside a section"),
        pytest.param("samples: many", id="text for a number"),
        pytest.param("limits: {rpm: 300X}", id="a wrong unit"),
        pytest.param("limits: {tier: gold}", id="an unknown tier"),
        pytest.param("fail_if: errors >= 1", id="a fail_if of another form"),
        pytest.param("folder: /", id="a field of Job that is no key"),
    ],
)
def test_editors_refuse_what_the_program_refuses(editor: jsonschema.Draft202012Validator, line: str) -> None:
    refused(BASE + line)
    assert not editor.is_valid(yaml.safe_load(BASE + line))


# -- whatever is read, only JobError comes out --------------------------------------------------

_PROPERTIES = json_schema()
_NAMES = sorted(
    {*_PROPERTIES["properties"], *(key for part in _PROPERTIES["$defs"].values() for key in part["properties"])}
)
_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["auto", "1M", "errors > 1%", "1/4", "{{ q }}", "s3://x", "json_object", "{date}", "runs/{x}", "~x"]
    )
)
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_NAMES) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=8,
)


def _only_job_errors(text: str, overrides: list[str]) -> None:
    with suppress(JobError):
        jobfile.parse(text, Path("job.yaml"), overrides)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(_NAMES), _VALUES, max_size=5), st.booleans())
def test_random_values_of_known_keys_raise_job_errors_or_nothing(keys: dict[str, Any], whole: bool) -> None:
    if whole:
        keys = {"model": "m", "input": "a", "prompt": "x", **keys}
    _only_job_errors(yaml.safe_dump(keys, allow_unicode=True), [])


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(_NAMES) | st.text(max_size=3), st.text("{}[]&*!|>-?:,#%@`'\"~ \n\tab01.=", max_size=20))
def test_random_text_raises_job_errors_or_nothing(key: str, text: str) -> None:
    _only_job_errors(f"{BASE}{key}: {text}", [])
    _only_job_errors(BASE, [f"{key}={text}"])
    _only_job_errors(text, [])
