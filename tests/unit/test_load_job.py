"""The keys of load runs in job.yaml: what is accepted, and what is told with file, line, key, read and accepted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cbatch import jobfile
from cbatch.errors import JobError
from cbatch.job import Job, Load
from cbatch.jobs import as_load
from cbatch.jobschema import json_schema
from cbatch.loadplan import FIXED_CONCURRENCY
from cbatch.resume import recipe

BASE = "model: m\ninput: a.jsonl\nprompt: '{{ q }}'\n"  # what a test adds to it stands on line 4
MADE = "model: m\nprompt: '{{ prompt }}'\n"  # and to this on line 3
SLO = "slo: errors < 1%"


def parse(text: str, *overrides: str) -> Job:
    return jobfile.parse(text, Path("job.yaml"), overrides)


def refused(text: str, *overrides: str) -> str:
    """The message and the hint, as a user reads them."""
    with pytest.raises(JobError) as caught:
        parse(text, *overrides)
    return str(caught.value) + (f"\nhint: {caught.value.hint}" if caught.value.hint else "")


@pytest.fixture(scope="module")
def editor() -> jsonschema.Draft202012Validator:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


# -- accepted ---------------------------------------------------------------------------------------

ACCEPTED: list[tuple[str, dict[str, Any]]] = [
    ("{}", {"mode": "closed", "concurrency": None}),
    ("{concurrency: 8}", {"concurrency": [8]}),
    ("{concurrency: [1, 8, 64]}", {"concurrency": [1, 8, 64]}),
    ("{concurrency: 8, rate: }", {"rate": None}),
    ("{warmup_s: 5, duration_s: 60}", {"warmup_s": 5.0, "duration_s": 60.0}),
    ("{warmup_s: 0, duration_s: 90s}", {"warmup_s": 0.0, "duration_s": 90.0}),
    ("{warmup_s: 10s, duration_s: 2m}", {"warmup_s": 10.0, "duration_s": 120.0}),
    ("{requests: 2K, repeats: 6}", {"requests": 2_000, "repeats": 6}),
    ("{calibrate: false}", {"calibrate": False}),
    ("{mode: open, rate: 5}", {"rate": [5.0]}),
    ("{mode: open, rate: [0.5, 20], arrival: constant, seed: 7}", {"rate": [0.5, 20.0], "seed": 7}),
    ("{mode: open, rate: 5, max_in_flight: 20000}", {"max_in_flight": 20_000}),
    (f"{{mode: search, {SLO}}}", {"slo": ["errors < 1%"], "concurrency": None}),
    (f"{{mode: search, {SLO}, concurrency: 1..64}}", {"concurrency": (1, 64)}),
    (f"{{mode: search, {SLO}, concurrency: 1 - 64}}", {"concurrency": (1, 64)}),
    (f"{{mode: search, {SLO}, rate: 0.5..20, arrival: constant}}", {"rate": (0.5, 20.0)}),
    (f"{{mode: search, {SLO}, rate: 5..20, requests: 100}}", {"rate": (5.0, 20.0), "requests": 100}),
    ("{mode: search, slo: ['ttft_s p95 < 500ms', 'errors < 1%']}", {"slo": ["ttft_s p95 < 500ms", "errors < 1%"]}),
    # What is written and is the default is no contradiction.
    ("{mode: closed, seed: 0, speed: 1, slo: []}", {"seed": 0, "speed": 1.0}),
]


@pytest.mark.parametrize(("text", "found"), ACCEPTED, ids=[text for text, _ in ACCEPTED])
def test_a_load_is_accepted_by_the_job_and_by_editors(
    editor: jsonschema.Draft202012Validator, text: str, found: dict[str, Any]
) -> None:
    whole = f"{BASE}load: {text}\n"
    load = parse(whole).load
    assert load is not None
    assert {key: getattr(load, key) for key in found} == found
    editor.validate(yaml.safe_load(whole))


@pytest.mark.parametrize(
    "text",
    [
        "load: {mode: replay, of: runs/x}",
        "load: {mode: replay, of: runs/x, speed: 2, repeats: 3, requests: 10, max_in_flight: 5}",
        "input: {synthetic: {tokens: 512}}",
        "input: {synthetic: {tokens: [16, 4096], rows: 2K, seed: 3}}",
        "input: {synthetic: {tokens: 512}, limit: 5}\nload: {concurrency: 8}",
        "input: a.jsonl\ngates: errors < 1%",
        "input: a.jsonl\ngates: ['ttft_s p95 < 0.5', 'ttft_s < 500ms for 99%']",
        "input: a.jsonl\nparams: {stream: true, stream_options: {include_usage: true}}",
    ],
)
def test_what_goes_with_a_load_is_accepted_by_the_job_and_by_editors(
    editor: jsonschema.Draft202012Validator, text: str
) -> None:
    parse(MADE + text)
    editor.validate(yaml.safe_load(MADE + text))


def test_made_prompts_need_no_template(editor: jsonschema.Draft202012Validator) -> None:
    text = "model: m\ninput: {synthetic: {tokens: 64}}\n"
    assert parse(text).prompt.user == "{{ prompt }}"
    editor.validate(yaml.safe_load(text))


def test_a_load_can_be_given_on_the_command_line() -> None:
    job = parse(BASE, "load.mode=open", "load.rate=5", "load.duration_s=10s")
    assert job.load == Load(mode="open", rate=[5.0], duration_s=10.0)


def test_a_job_is_the_same_after_run_json() -> None:
    for text, _ in ACCEPTED:
        job = parse(f"{BASE}load: {text}\n")
        assert Job.model_validate(job.model_dump(mode="json")).load == job.load


# -- refused ----------------------------------------------------------------------------------------

RANGES = "a list of them, or 1..256"
REFUSED: list[tuple[str, str]] = [
    ("closed", 'load: read "closed"; accepted: a mapping with mode, concurrency, rate'),
    ("[]", "load: read []; accepted: a mapping with mode"),
    ("{mode: clsed}", 'load.mode: read "clsed"; accepted: closed, open, search, replay; did you mean closed?'),
    ("{modes: closed}", "load.modes: unknown key; did you mean mode?"),
    ("{zzz: 1}", "load.zzz: unknown key\nhint: accepted here: mode, concurrency, rate, arrival, "),
    ("{concurrency: 0}", "load.concurrency: 0 is not a number from 1 to 20,000"),
    ("{concurrency: [1, 20001]}", "load.concurrency: 20001 is not a number from 1 to 20,000"),
    ("{concurrency: []}", "load.concurrency: read []; accepted: at least one number"),
    ("{concurrency: [8, 8]}", "load.concurrency: read [8, 8]; accepted: at least one number, and none twice"),
    ("{concurrency: 1.5}", f"load.concurrency: read 1.5; accepted: a whole number, {RANGES}"),
    ('{concurrency: "8"}', f'load.concurrency: read "8"; accepted: a whole number, {RANGES}'),
    ("{concurrency: [1, x]}", f'load.concurrency: read "x"; accepted: a whole number, {RANGES}'),
    ("{concurrency: true}", f"load.concurrency: read true; accepted: a whole number, {RANGES}"),
    ("{concurrency: {a: 1}}", 'load.concurrency: read {"a": 1}; accepted: a whole number'),
    ("{concurrency: 1..64}", "load.concurrency: read 1..64; accepted in mode closed: a number or a list of them"),
    ("{rate: 5}", "load.rate: does not go with mode closed"),
    (f"{{{SLO}}}", "load.slo: does not go with mode closed"),
    ("{of: runs/x}", "load.of: does not go with mode closed"),
    ("{speed: 2}", "load.speed: does not go with mode closed"),
    ("{seed: 2}", "load.seed: does not go with mode closed"),
    ("{arrival: constant}", "load.arrival: does not go with mode closed"),
    ("{max_in_flight: 5}", "load.max_in_flight: does not go with mode closed"),
    ("{mode: open}", "load.rate: mode open needs it"),
    ("{mode: open, rate: 0}", "load.rate: 0 is not a number from 0.001 to 100,000"),
    ("{mode: open, rate: -5}", "load.rate: -5 is not a number from 0.001 to 100,000"),
    ("{mode: open, rate: x}", f'load.rate: read "x"; accepted: a number, {RANGES}'),
    ("{mode: open, rate: 1..5}", "load.rate: read 1..5; accepted in mode open: a number or a list of them"),
    ("{mode: open, rate: 5, concurrency: 3}", "load.concurrency: does not go with mode open"),
    ("{mode: open, rate: 5, arrival: burst}", 'load.arrival: read "burst"; accepted: constant, poisson'),
    (f"{{mode: open, rate: 5, {SLO}}}", "load.slo: does not go with mode open"),
    ("{mode: open, rate: 5, max_in_flight: 0}", "load.max_in_flight: read 0; accepted: 1 or more"),
    ("{mode: search}", "load.slo: mode search needs it"),
    ("{mode: search, slo: ttft p95}", "load.slo: 'ttft p95' is not a demand like 'ttft_s p95 < 0.5'"),
    ("{mode: search, slo: tttt_s p95 < 1}", "load.slo: 'tttt_s p95 < 1': tttt_s is no figure of a run; did you mean"),
    ("{mode: search, slo: 3}", "load.slo: read 3; accepted: text like 'ttft_s p95 < 0.5', or a list of them"),
    (f"{{mode: search, {SLO}, concurrency: 8}}", "load.concurrency: read [8]; accepted in mode search: a range such"),
    (f"{{mode: search, {SLO}, concurrency: 8..8}}", "load.concurrency: 8..8 is no range to search in"),
    (f"{{mode: search, {SLO}, concurrency: 64..1}}", "load.concurrency: 64..1 is no range to search in"),
    (f"{{mode: search, {SLO}, concurrency: 1..8, rate: 1..8}}", "load.rate: a search goes over concurrency or over"),
    (f"{{mode: search, {SLO}, repeats: 3}}", "load.repeats: does not go with mode search"),
    (f"{{mode: search, {SLO}, seed: 3}}", "load.seed: does not go with mode search over concurrency"),
    (f"{{mode: search, {SLO}, of: x}}", "load.of: does not go with mode search"),
    ("{duration_s: 0}", "load.duration_s: read 0; accepted: more than 0"),
    ("{duration_s: 90 sec}", "load.duration_s: not a time; accepted: 90, 90s, 15m, 2h, 1d; read"),
    ("{warmup_s: -1}", "load.warmup_s: read -1; accepted: 0 or more"),
    ("{requests: 0}", "load.requests: read 0; accepted: 1 or more"),
    ("{requests: 1.5}", "load.requests: read 1.5; accepted: a whole number"),
    ("{repeats: 1001}", "load.repeats: read 1001; accepted: 1,000 or less"),
    ("{calibrate: 1}", "load.calibrate: read 1; accepted: true or false"),
]


@pytest.mark.parametrize(("text", "said"), REFUSED, ids=[text for text, _ in REFUSED])
def test_a_wrong_load_is_told_with_its_key(text: str, said: str) -> None:
    assert refused(f"{BASE}load: {text}\n").startswith(f"job.yaml:4: {said}")


def test_the_line_is_that_of_the_key() -> None:
    assert refused(f"{BASE}load:\n  mode: open\n  rate: 5\n  speed: 2\n").startswith("job.yaml:7: load.speed: ")
    assert refused(BASE, "load.concurrency=0").startswith("--set load.concurrency=0: load.concurrency: 0 is not")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("input: a\nload: {mode: replay, of: x}", "job.yaml:3: input: a replay takes the prompts of `load.of`"),
        ("load: {mode: replay}", "job.yaml:3: load.of: mode replay needs it"),
        ("load: {mode: replay, of: x, warmup_s: 3}", "job.yaml:3: load.warmup_s: does not go with mode replay"),
        ("load: {mode: replay, of: x, duration_s: 3}", "job.yaml:3: load.duration_s: does not go with mode replay"),
        ("load: {mode: replay, of: x, rate: 3}", "job.yaml:3: load.rate: does not go with mode replay"),
        ("load: {mode: replay, of: x, speed: 0}", "job.yaml:3: load.speed: read 0.0; accepted: more than 0"),
        ("load: {mode: replay, of: 3}", "job.yaml:3: load.of: read 3; accepted: text"),
        ("load: {mode: closed}", "job.yaml: input: this key is needed and missing"),
        ("input: {synthetic: 3}", "job.yaml:3: input.synthetic: read 3; accepted: a mapping"),
        ("input: {synthetic: {}}", "job.yaml:3: input.synthetic.tokens: this key is needed and missing"),
        ("input: {synthetic: {tokens: 5}}", "job.yaml:3: input.synthetic.tokens.0: read 5; accepted: 16 or more"),
        ("input: {synthetic: {tokens: x}}", 'job.yaml:3: input.synthetic.tokens: read "x"; accepted: a whole number,'),
        ("input: {synthetic: {tokens: 64, rows: 0}}", "job.yaml:3: input.synthetic.rows: read 0; accepted: 1 or"),
        (
            "input: {synthetic: {tokens: 64, seeed: 0}}",
            "job.yaml:3: input.synthetic.seeed: unknown key; did you mean seed?",
        ),
        ("input: {synthetic: {tokens: 64}, path: a}", "job.yaml:3: input.synthetic: prompts are read from `path` or"),
        ("input: a\nsamples: 2\nload: {}", "job.yaml:4: samples: a load run asks its prompts again"),
        ("input: a\nretry: {hedge: 1%}\nload: {}", "job.yaml:4: retry.hedge: a load run asks what it was told"),
        ("input: a\ngates: 5", "job.yaml:4: gates: read 5; accepted: text like 'ttft_s p95 < 0.5', or a list"),
        ("input: a\ngates: [5]", "job.yaml:4: gates.0: read 5; accepted: text"),
        ("input: a\ngates: tttft_s p95 < 1", "job.yaml:4: gates: 'tttft_s p95 < 1': tttft_s is no figure of a run"),
        ("input: a\nparams: {stream: 1}", "job.yaml:4: params.stream: read 1; accepted: true or false"),
        ("input: a\nparams: {stream_options: 3}", "job.yaml:4: params.stream_options: read 3; accepted: a mapping"),
    ],
)
def test_what_does_not_go_with_a_load_is_told_with_its_key(text: str, said: str) -> None:
    assert refused(MADE + text).startswith(said)


@pytest.mark.parametrize("load", ["{mode: search, slo: errors < 1%}", "{mode: replay, of: x}"])
def test_a_search_and_a_replay_go_to_one_model(load: str) -> None:
    rows = "" if "replay" in load else "input: a\n"
    said = refused(f"model: [a, b]\n{rows}prompt: x\nload: {load}\n")
    assert said.startswith("job.yaml:1: model: a ")
    assert said.endswith("goes to one model, and here are 2")


@pytest.mark.parametrize(
    "text", ["{concurrency: x}", "{mode: clsed}", "{zzz: 1}", "3", "{repeats: 0}", "{requests: x}"]
)
def test_editors_refuse_what_no_job_may_hold(editor: jsonschema.Draft202012Validator, text: str) -> None:
    assert not editor.is_valid(yaml.safe_load(f"{BASE}load: {text}\n"))


# -- --repeat and --interleave ----------------------------------------------------------------------


def test_a_batch_stays_one_without_options() -> None:
    job = parse(BASE)
    assert as_load(job, None, interleaved=False) is job


@pytest.mark.parametrize(
    ("limits", "level"),
    [("", FIXED_CONCURRENCY), ("limits: {concurrency: 5}", 5), ("limits: {concurrency: 5..50}", FIXED_CONCURRENCY)],
)
def test_a_batch_becomes_a_closed_loop(limits: str, level: int) -> None:
    load = as_load(parse(BASE + limits), 6, interleaved=False).load
    assert load == Load(concurrency=[level], repeats=6)
    assert as_load(parse(BASE + limits), None, interleaved=True).load == Load(concurrency=[level])


def test_repeat_counts_more_than_the_job() -> None:
    load = as_load(parse(BASE + "load: {concurrency: 3, repeats: 2}"), 5, interleaved=False).load
    assert load == Load(concurrency=[3], repeats=5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("samples: 2", "job.yaml:4: samples: does not go with --repeat"),
        ("retry: {hedge: 1%}", "job.yaml:4: retry.hedge: does not go with --repeat"),
        (f"load: {{mode: search, {SLO}}}", "--repeat: a search decides itself what it runs"),
    ],
)
def test_what_cannot_be_repeated_is_refused(text: str, said: str) -> None:
    with pytest.raises(JobError) as caught:
        as_load(parse(BASE + text), 3, interleaved=False)
    assert str(caught.value).startswith(said)


def test_another_load_is_another_recipe() -> None:
    jobs = [parse(BASE + text) for text in ("", "load: {concurrency: 1}", "load: {concurrency: 2}")]
    assert len({recipe(job) for job in jobs}) == 3
