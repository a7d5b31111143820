"""Rows that no honest program writes: each ends as one row or is refused in words, and harms no other."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from tests.integration.conftest import JobFolder, belongs

DEEP = "[" * 1000 + "]" * 1000
CONTROL = "".join(map(chr, range(32))) + "\x7f\x85\u2028\u2029\u202e\u200f\ufeff"
TELLS_MEMORY = """
real = main
def main(args):
    import resource
    try:
        real(args)
    finally:
        print("peak KB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr, flush=True)
"""


def outcomes(job: JobFolder) -> dict[str, dict[str, Any]]:
    """The rows by their ids, or by their text where they have none; proven to be all there, and each once."""
    assert job.proof().rows == len(job.results())
    return {row["id"]: row for row in job.results()}


def test_every_hostile_row_ends_as_itself(job: JobFolder) -> None:
    """Sent to the letter, or an error row with file, line and reason; no other row is harmed, and none is lost."""
    asked = {
        "control": CONTROL,
        "astral": "\U0001f600" * 3 + "e\u0301" + "\U000e0041",
        "empty": "",
        "template": "{{ 7 * 7 }} {% raw %} {{ ''.__class__ }} {# #}",
        "last": "fine",
    }
    broken = {
        '{"id": "surrogate", "q": "\\ud800"}': "no low surrogate",
        '{"id": "nan", "q": NaN}': "not valid JSON",
        '{"id": "infinity", "q": -Infinity}': "not valid JSON",
        '{"id": "huge", "q": 1' + "0" * 400 + "}": "number is infinity",
        '{"id": "abyss", "q": ' + DEEP.replace("]", "]" * 2).replace("[", "[" * 2) + "}": "depth limit",
        '{"id": "cut", "q": "': "not valid JSON",
        "[1, 2]": "not a JSON object but a list",
        "null": "not a JSON object but null",
        '"text"': "not a JSON object but text",
        '{"q": "no id"}': "id column 'id' is missing",
        '{"id": {}, "q": "an id of no type"}': "id column 'id' is missing",
        '{"id": "", "q": "an empty id"}': "id column 'id' is missing",
    }
    unfit = {
        "null": ('{"id": "null", "q": null}', "a column is null"),
        "no q": (json.dumps({"id": "no q", "\x1b[2J": 1, "q ": 1, "q.a": 1}), "'q' is undefined; the row has: id, "),
        "ten megabytes": (json.dumps({"id": "ten megabytes", "q": "x" * 10_000_000}), "Please reduce the length"),
        "deep": (f'{{"id": "deep", "q": {DEEP}}}', "RecursionError"),
    }
    good = {
        "twice": ('{"id": "twice", "q": "first", "q": "second"}', "second"),
        "beyond": ('{"id": "beyond", "q": 123456789012345678901234567890}', "1.2345678901234568e+29"),
        "deep elsewhere": (f'{{"id": "deep elsewhere", "q": "fine", "x": {DEEP}}}', "fine"),
        "wide": (json.dumps({"id": "wide", "q": "fine", **{f"a.b c-{n} \u00e9": n for n in range(10_000)}}), "fine"),
        CONTROL: (json.dumps({"id": CONTROL, "q": "an id of anything"}), "an id of anything"),
    }
    lines = [json.dumps({"id": name, "q": text}) for name, text in asked.items()]
    lines[:0] = [*(line for line, _ in good.values()), *broken, *(line for line, _ in unfit.values())]
    data = b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b'\r\n{"id": "bytes", "q": "\xff"}\r\n'
    (job.path / "rows.jsonl").write_bytes(data)
    job.settings |= {"input": {"path": "rows.jsonl", "id": "id"}, "prompt": "Q: {{ q }}"}
    result = job.execute()
    assert result.code == 3, result.err
    found = outcomes(job)
    assert len(found) == len(lines) + 1
    asked |= {name: text for name, (_, text) in good.items()}
    for name, text in asked.items():
        assert found[name]["status"] == "ok", (name, found[name]["error_message"])
        assert belongs(found[name], f"Q: {text}"), name
    for name, (_, why) in unfit.items():
        assert found[name]["error_kind"] == ("context_length" if name == "ten megabytes" else "render")
        assert why in found[name]["error_message"]
    unread = {row["index"]: row["error_message"] for row in found.values() if row["error_kind"] == "source"}
    for number, why in enumerate(broken.values(), len(good)):
        assert f"rows.jsonl:{number + 1}: " in unread[number]
        assert why in unread[number]
    assert "not UTF-8 text" in unread[len(lines)]
    assert job.sim.requests == len(asked) + 1
    assert "\x1b" not in result.err
    assert "Traceback" not in result.err


def test_what_a_row_says_cannot_leave_the_sandbox(job: JobFolder) -> None:
    """A template that is fine for other rows gives a hostile one no attribute, no format and no memory."""
    job.settings["prompt"] = (
        "{{ q }}{% if name %}{{ q[name] }}{{ q | attr(name) }}{% endif %}{% if form %}{{ form.format(q) }}{% endif %}"
        "{% if n %}{{ 'x' * n }}{% endif %}{% if m %}{% for i in range(m) %}{% endfor %}{% endif %}"
    )
    names = ["__class__", "__init__", "__globals__", "__subclasses__", "mro", "_", "\0", "format_map"]
    forms = ["{0.__class__}", "{0.__class__.__mro__}", "{0[__class__]}", "{99}", "{"]
    rows: list[dict[str, Any]] = [{"q": "x", "name": name} for name in names]
    rows += [{"q": "x", "form": form} for form in forms]
    rows += [{"q": "x", "n": 10**9}, {"q": "x", "m": 10**9}, {"q": "x", "n": -1, "m": -1}, {"q": "fine"}]
    job.rows([{"name": "", "form": "", "n": 0, "m": 0, **row} for row in rows])
    result = job.execute()
    assert result.code == 3, result.err
    found = sorted(job.results(), key=lambda row: row["index"])
    assert [row["status"] for row in found] == ["error"] * (len(rows) - 2) + ["ok"] * 2
    assert {row["error_kind"] for row in found[:-2]} == {"render"}
    assert not [row for row in found if "<class" in str(row["error_message"])]
    assert job.sim.requests == 2
    assert job.proof().rows == len(rows)


@pytest.mark.parametrize(
    "where", ["q.__class__.__mro__", "cycler.__init__.__globals__.os.system('true')", "'x' * 10**10", "q[name]"]
)
def test_a_condition_cannot_leave_the_sandbox(job: JobFolder, where: str) -> None:
    """It is refused with its line, before anything is sent."""
    job.settings |= {"input": {"path": "rows.jsonl", "where": where}, "prompt": "{{ q }}"}
    job.rows([{"q": "x", "name": "__class__"}])
    result = job.execute()
    assert result.code == 2
    assert "job.yaml:1: input.where: " in result.err
    assert not job.run.path.exists()


MESSAGE = '[{"role": "user", "content": %s}]'


@pytest.mark.parametrize("column", ["messages", "body"])
def test_hostile_messages_end_as_rows(job: JobFolder, column: str) -> None:
    """From a column of messages or of whole bodies, as JSON or as text: deep, of wrong types, or not JSON at all."""

    def row(name: str, messages: str, more: str = "") -> list[str]:
        value = messages if column == "messages" else f'{{"messages": {messages}{more}}}'
        return [
            f'{{"id": "{name}", "c": {value}}}',
            json.dumps({"id": f"{name}, as text", "c": value}),
        ]

    unfit = {
        "a number": row("a number", "[5]"),
        "a role": row("a role", '[{"role": {"a": 1}, "content": 5}]'),
        "nothing": row("nothing", "[]"),
        "250 levels": row("250 levels", MESSAGE % ("[" * 249 + "]" * 249)),
        "300 levels": row("300 levels", MESSAGE % ("[" * 300 + "]" * 300)),
        "not JSON": ['{"id": "not JSON", "c": "{"}', '{"id": "not JSON, as text", "c": "\\u0000"}'],
        "a list": ['{"id": "a list", "c": 7}', '{"id": "a list, as text", "c": null}'],
    }
    if column == "messages":  # a body of 900 levels: see the next test
        unfit["900 levels"] = row("900 levels", MESSAGE % ("[" * 900 + "]" * 900))
    else:
        unfit["two answers"] = row("two answers", MESSAGE % '"hi"', ', "n": 2')
        unfit["an unknown key"] = row("an unknown key", MESSAGE % '"hi"', ', "\\u0000": 1')
    lines = [*(line for pair in unfit.values() for line in pair), *row("good", MESSAGE % json.dumps(CONTROL), "")]
    job.rows(lines)
    job.settings |= {"input": {"path": "rows.jsonl", "id": "id"}, "prompt": {column: "c"}}
    result = job.execute()
    assert result.code == 3, result.err
    found = outcomes(job)
    assert len(found) == len(lines)
    assert {name for name, row in found.items() if row["status"] == "ok"} == {"good", "good, as text"}
    assert all(belongs(found[name], CONTROL) for name in ("good", "good, as text"))
    assert {row["error_kind"] for row in found.values()} <= {None, "render", "bad_request"}


@pytest.mark.parametrize(
    "body",
    [
        f'{{"messages": {MESSAGE % ("[" * 900 + "]" * 900)}}}',
        f'{{"messages": {MESSAGE % 1}, "max_tokens": 9223372036854775807}}',
    ],
    ids=["900 levels", "a limit of 63 bits"],
)
def test_a_hostile_body_is_an_error_of_its_row(job: JobFolder, body: str) -> None:
    job.rows([f'{{"c": {body}}}', f'{{"c": {{"messages": {MESSAGE % json.dumps("hi")}}}}}'])
    job.settings["prompt"] = {"body": "c"}
    result = job.execute()
    assert result.code == 3, result.err
    assert [row["status"] for row in sorted(job.results(), key=lambda row: row["index"])] == ["error", "ok"]


def test_a_deep_value_is_refused_before_its_answer_is_paid_for(job: JobFolder) -> None:
    """It cannot be written to a carried column: found out after the answer, every start would pay again."""
    job.rows([{"question": "fine", "c": [1]}, f'{{"question": "x", "c": {DEEP}}}', {"question": "fine too", "c": 2}])
    job.settings["results"] = {"carry": ["c"]}
    result = job.execute()
    assert result.code == 3, result.err
    assert job.sim.requests == 2
    (bad,) = [row for row in job.results() if row["status"] == "error"]
    assert bad["error_kind"] == "source"
    assert bad["error_message"] == "rows.jsonl:2: a column of results.carry is nested too deeply"
    assert job.proof().rows == 3


def test_a_gzip_bomb_is_a_row_that_is_too_long(job: JobFolder) -> None:
    """400 KB that unpack to a line of 400 MB: memory stays bounded, and the rows around it run."""
    zeros = b"0" * (100 << 20)
    packed = gzip.compress(b'{"question": "a"}\n{"question": "') + gzip.compress(zeros, 1) * 4
    (job.path / "rows.jsonl.gz").write_bytes(packed + gzip.compress(b'"}\n{"question": "b"}\n'))
    job.settings["input"] = "rows.jsonl.gz"
    result = job.execute(first=TELLS_MEMORY)
    assert result.code == 3, result.err
    first, bomb, last = sorted(job.results(), key=lambda row: row["index"])
    assert (first["status"], last["status"], bomb["error_kind"]) == ("ok", "ok", "source")
    assert bomb["error_message"] == "rows.jsonl.gz:2: a row of more than 64 MB"
    assert int(result.err.split("peak KB")[1]) < 600_000


@pytest.mark.parametrize(
    ("name", "head", "more"),
    [("rows.csv.gz", b"question\n", b"0"), ("rows.json.gz", b'[{"question": "a"},', b" ")],
    ids=["CSV", "JSON"],
)
def test_a_gzip_bomb_where_rows_cannot_be_told_apart_is_refused(
    job: JobFolder, name: str, head: bytes, more: bytes
) -> None:
    (job.path / name).write_bytes(gzip.compress(head) + gzip.compress(more * (100 << 20), 1) * 2)
    job.settings["input"] = name
    result = job.execute(first=TELLS_MEMORY)
    assert result.code == 2
    assert f"{name}: cannot be read after row" in result.err
    assert "a row of more than 64 MB" in result.err
    assert int(result.err.split("peak KB")[1]) < 600_000
