"""The real Codex CLI in front of the gateway: what it did is looked up on the disk, not in what it says.

The newest and the oldest version that are looked after, each against a simulator with scripted answers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.integration.codex import (
    NEWEST,
    OLDEST,
    Codex,
    Desk,
    Run,
    calls,
    headers,
    install,
    received,
    script,
    seconds_in,
    text,
    turns,
)
from tests.integration.conftest import Forking, Gateway, Sim, wait_for

PROMPT = "Do the work of this test."
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "people": {"type": "integer"}},
    "required": ["city", "people"],
    "additionalProperties": False,
}
MCP_SERVER = """
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message:
        continue
    params = message.get("params") or {}
    result = {}
    if message["method"] == "initialize":
        info = {"name": "demo", "version": "1"}
        result = {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": info}
    elif message["method"] == "tools/list":
        numbers = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
        result = {"tools": [{"name": "add_numbers", "description": "Add two numbers", "inputSchema": numbers}]}
    elif message["method"] == "tools/call":
        numbers = params["arguments"]
        with open(sys.argv[1], "w") as file:
            json.dump(numbers, file)
        result = {"content": [{"type": "text", "text": f"the sum is {numbers['a'] + numbers['b']}"}]}
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""

Desks = Callable[..., Desk]


def by_version(names: str, newest: Sequence[Any], oldest: Sequence[Any]) -> pytest.MarkDecorator:
    """Cases of each version; what the gateway alone decides is looked at with the newest only."""
    cases = [(NEWEST, case) for case in newest] + [(OLDEST, case) for case in oldest]
    several = "," in names
    values = [(version, *case) if several else (version, case) for version, case in cases]
    return pytest.mark.parametrize(("codex", *names.split(",")), values, indirect=["codex"])


@pytest.fixture(scope="session", params=[NEWEST, OLDEST])
def codex(request: pytest.FixtureRequest) -> Codex:
    return install(request.param)


@pytest.fixture
def sim(sims: Callable[..., Sim]) -> Sim:
    """A simulator that answers at once and keeps what it was asked."""
    return sims("--speed", "inf", "--record")


@pytest.fixture(scope="session")
def printed(forking: Forking, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """`printed()` is the config.toml that `cbatch serve` prints with these options."""

    def make(*args: str) -> str:
        folder = tmp_path_factory.mktemp("printed")
        result = forking.start(["serve", "--print-codex-config", *args], key=None, cwd=folder).wait()
        assert result.code == 0, result.err
        return result.out

    return make


@pytest.fixture(scope="session")
def config(printed: Callable[..., str]) -> str:
    """What every Codex here runs with."""
    return printed()


@pytest.fixture
def desks(codex: Codex, tmp_path: Path, config: str) -> Desks:
    """`desks(gateway)` is a Codex that asks this gateway."""

    def make(gateway: Gateway, config: str = config) -> Desk:
        return Desk(codex, tmp_path / "desk", config, gateway.url)

    return make


@pytest.fixture
def desk(desks: Desks, gateways: Callable[..., Gateway], sim: Sim) -> Desk:
    """A Codex in front of the simulator."""
    return desks(gateways(sim))


def patient(tmp_path: Path, *, attempts: int, max_wait_s: float) -> tuple[str, str]:
    """Options of a gateway with these retries."""
    path = tmp_path / "gateway.yaml"
    path.write_text(f"retry: {{attempts: {attempts}, max_wait_s: {max_wait_s}}}\n")
    return "--config", str(path)


# -- what works ---------------------------------------------------------------------------------------


def test_a_text_answer_is_said_once_with_its_thoughts_and_its_tokens(desk: Desk, sim: Sim) -> None:
    script(sim, *turns(PROMPT, text("Hello, I am here.", reasoning="A greeting is due.", completion_tokens=77)))
    run = desk.run(PROMPT)
    assert run.code == 0, run.out + run.err
    assert run.messages == ["Hello, I am here."]
    assert run.reasoning == ["A greeting is due."]
    assert run.errors == []
    assert run.usage["output_tokens"] == 77
    assert run.usage["input_tokens"] > 1_000
    assert sim.requests == 1
    assert not [name for name in headers(sim) if name.startswith(("x-codex", "originator", "session", "thread"))]


def test_a_shell_command_is_run_once(desk: Desk, sim: Sim) -> None:
    script(sim, *turns(PROMPT, calls(desk.codex.shell("echo done >> out.txt"), reasoning="By shell."), text("It ran.")))
    run = desk.run(PROMPT)
    assert run.code == 0, run.out + run.err
    assert desk.read("out.txt") == "done\n"
    assert run.messages == ["It ran."]
    assert run.errors == []


def test_five_steps_build_on_each_other_and_each_request_begins_as_the_one_before(desk: Desk, sim: Sim) -> None:
    """The history only grows, so that the service finds it in its prompt cache."""
    shell = desk.codex.shell
    script(
        sim,
        *turns(
            PROMPT,
            calls(shell("echo 1 > steps.txt"), content="I begin."),
            calls(shell("echo 2 >> steps.txt"), reasoning="Next."),
            calls(shell("wc -l < steps.txt > count.txt; false")),
            calls(shell("cat steps.txt count.txt")),
            calls(shell("cp steps.txt copy.txt")),
            text("Five steps."),
        ),
    )
    run = desk.run(PROMPT)
    assert run.code == 0, run.out + run.err
    assert desk.read("copy.txt") == "1\n2\n"
    assert desk.read("count.txt").strip() == "2"
    assert run.messages[-1] == "Five steps."
    bodies = received(sim)
    assert len(bodies) == 6
    for before, after in pairwise(bodies):
        assert after["messages"][: len(before["messages"])] == before["messages"]
        assert list(after) == list(before)
        assert after["tools"] == before["tools"]
    roles = [message["role"] for message in bodies[-1]["messages"]]
    assert roles[roles.index("assistant") :] == ["assistant", "tool"] * 5
    outputs = [message["content"] for message in bodies[-1]["messages"] if message["role"] == "tool"]
    assert "1\n2\n2" in outputs[3].replace("\\n", "\n")


INTERLEAVED = {"interleave": True, "fragments": 5}


@by_version("shape", [{}, INTERLEAVED, *({"omit": omit} for omit in (["id"], ["index"], ["id", "index"]))], [{}])
def test_parallel_calls_are_each_run_once(desk: Desk, sim: Sim, shape: dict[str, Any]) -> None:
    """As the service streams them, with the fragments of both in turns, and without ids: nothing mixes."""
    shell = desk.codex.shell
    both = calls(shell("echo one >> one.txt"), shell("echo two >> two.txt"), content="Both at once.")
    done = text("Both are there.")
    # The old one has each output behind its call, as if they had been made one after the other.
    first, second, later = turns(PROMPT, both, done, done)
    script(sim, first | shape, second, later)
    run = desk.run(PROMPT)
    assert run.code == 0, run.out + run.err
    assert (desk.read("one.txt"), desk.read("two.txt")) == ("one\n", "two\n")
    assert run.messages == ["Both at once.", "Both are there."]
    assert sim.requests == 2
    history = received(sim)[-1]["messages"]
    history = history[[message["role"] for message in history].index("assistant") :]
    roles = ["assistant", "tool", "assistant", "tool"] if desk.codex.is_old else ["assistant", "tool", "tool"]
    assert [message["role"] for message in history] == roles
    called = [call["id"] for message in history for call in message.get("tool_calls", [])]
    assert called == [message["tool_call_id"] for message in history if message["role"] == "tool"]
    assert len(set(called)) == 2


def test_a_patch_is_applied(desk: Desk, sim: Sim) -> None:
    (desk.project / "old.py").write_text("x = 1\ny = 2\n")
    patch = (
        "*** Begin Patch\n*** Add File: new.py\n+print('hé \"quoted\"')\n"
        "*** Update File: old.py\n@@\n x = 1\n-y = 2\n+y = 3\n*** End Patch\n"
    )
    desk.overrides["include_apply_patch_tool"] = "true"  # what the old one needs to offer it
    script(sim, *turns(PROMPT, calls(desk.codex.patch(patch)), text("Patched.")))
    run = desk.run(PROMPT)
    assert run.code == 0, run.out + run.err
    assert desk.read("new.py") == "print('hé \"quoted\"')\n"
    assert desk.read("old.py") == "x = 1\ny = 3\n"
    assert "Success" in received(sim)[-1]["messages"][-1]["content"]


def test_a_tool_of_an_mcp_server_is_called(desk: Desk, sim: Sim) -> None:
    server = desk.path("server.py")
    server.write_text(MCP_SERVER)
    desk.overrides["mcp_servers.demo.command"] = f'"{sys.executable}"'
    desk.overrides["mcp_servers.demo.args"] = json.dumps([str(server), str(desk.path("added.json"))])
    script(sim, *turns(PROMPT, calls(desk.codex.mcp("demo", "add_numbers", a=2, b=40)), text("It is 42.")))
    run = desk.run(PROMPT)
    assert run.code == 0, run.out + run.err
    assert run.messages == ["It is 42."]
    assert json.loads(desk.path("added.json").read_text()) == {"a": 2, "b": 40}
    assert "the sum is 42" in received(sim)[-1]["messages"][-1]["content"]


STRICTER = ("--refuse", "tools_with_schema")


@by_version(
    "refused,finish_reason",
    [((), "stop"), ((), "tool_calls"), (STRICTER, "stop"), (STRICTER, "tool_calls")],
    [((), "stop"), (STRICTER, "stop")],
)
def test_structured_output_is_that_json_in_the_file(
    desks: Desks,
    gateways: Callable[..., Gateway],
    sims: Callable[..., Sim],
    refused: tuple[str, ...],
    finish_reason: str,
) -> None:
    """Also where the service takes no schema beside tools, and where it ends the answer as if it were a call."""
    sim = sims("--speed", "inf", "--record", *refused)
    desk = desks(gateways(sim))
    (desk.project / "notes.txt").write_text("Bern has 134000 people.\n")
    desk.path("schema.json").write_text(json.dumps(SCHEMA))
    answer = '{"city":"Bern","people":134000}'
    script(
        sim,
        *turns(PROMPT, calls(desk.codex.shell("cat notes.txt")), text(answer, finish_reason=finish_reason)),
    )
    target = desk.path("answer.json")
    run = desk.run(PROMPT, "--output-schema", str(desk.path("schema.json")), "--output-last-message", str(target))
    assert run.code == 0, run.out + run.err
    assert json.loads(target.read_text()) == {"city": "Bern", "people": 134000}
    assert run.errors == []
    if refused:
        assert '"people"' in json.dumps(received(sim)[-1]["messages"]).replace('\\"', '"')


def test_a_session_is_resumed_with_its_history(desk: Desk, sim: Sim) -> None:
    script(
        sim,
        *turns(PROMPT, calls(desk.codex.shell("echo first > first.txt")), text("First is there.")),
        *turns(
            "And now the second.", calls(desk.codex.shell("cp first.txt second.txt")), text("Second, too."), since=2
        ),
    )
    assert desk.run(PROMPT).code == 0
    run = desk.run("And now the second.", resumes=True)
    assert run.code == 0, run.out + run.err
    assert desk.read("second.txt") == "first\n"
    history = received(sim)[-1]["messages"]
    assert [m["content"] for m in history if m["role"] == "assistant" and m.get("content")] == ["First is there."]
    assert PROMPT in json.dumps(history)


def test_a_mistake_of_the_model_is_told_to_the_model_and_it_goes_on(desk: Desk, sim: Sim) -> None:
    """Broken arguments and an unknown tool come back as results; the history with them is still taken."""
    good = desk.codex.shell("echo mended > mended.txt")
    script(
        sim,
        *turns(
            PROMPT,
            calls({"name": good["name"], "arguments": '{"cmd": "echo half > half.txt'}),
            calls({"name": "no_such_tool", "arguments": {"a": 1}}),
            calls(good),
            text("Mended."),
        ),
    )
    run = desk.run(PROMPT)
    assert run.code == 0, run.out + run.err
    assert desk.files == ["mended.txt"]
    assert run.messages == ["Mended."]
    assert sim.requests == 4


# -- what goes wrong ----------------------------------------------------------------------------------

QUOTA = {
    "message": "Requests per minute limit exceeded - too many requests sent.",
    "type": "too_many_requests_error",
    "param": "quota",
    "code": "request_quota_exceeded",
}
BUSY = {
    "message": "We're experiencing high traffic right now! Please try again soon.",
    "type": "too_many_requests_error",
    "param": "queue",
    "code": "queue_exceeded",
}
TOO_LONG = {
    "message": "Please reduce the length of the messages or completion. Current length is 196699 while limit is 131072",
    "type": "invalid_request_error",
    "param": "messages",
    "code": "context_length_exceeded",
    "id": "",
}


def refusal(status: int, error: dict[str, Any], **rest: Any) -> dict[str, Any]:
    """A rule that refuses what this test asks."""
    return {"when": {"user": PROMPT}, "status": status, "error": error, **rest}


def says(run: Run, desk: Desk, message: str, status: str) -> bool:
    """Whether a user is told; the old one reads no message beside a status."""
    accepted = [message, status] if desk.codex.is_old else [message]
    return any(text in error for error in run.errors for text in accepted)


PASSING = {
    "quota": refusal(429, QUOTA, headers={"retry-after": "1"}, times=1),
    "busy": refusal(429, BUSY, times=2),
    "failure": refusal(500, {"message": "Internal server error", "type": "server_error", "code": "error"}, times=1),
    "overload": refusal(503, {"message": "Model is overloaded", "type": "server_error", "code": "overloaded"}, times=1),
    "page": {"when": {"user": PROMPT}, "fault": "bad_gateway_html", "times": 1},
    "silence": {"when": {"user": PROMPT}, "fault": "drop_before", "times": 1},
}


@by_version("name", list(PASSING), ["quota"])
def test_what_passes_is_waited_for_and_never_shown(desk: Desk, sim: Sim, name: str) -> None:
    first = PASSING[name]
    script(sim, first, *turns(PROMPT, calls(desk.codex.shell("echo once >> out.txt")), text("Done.")))
    run = desk.run(PROMPT)
    assert run.code == 0, run.out + run.err
    assert desk.read("out.txt") == "once\n"
    assert run.messages == ["Done."]
    assert run.errors == []
    assert sim.requests == 2 + first["times"]


def test_a_quota_that_stays_used_up_is_told_with_the_time_to_wait(
    desks: Desks, gateways: Callable[..., Gateway], sim: Sim, tmp_path: Path
) -> None:
    """Codex waits as long as it is told, asks again, and then says why it stops."""
    script(sim, refusal(429, QUOTA, headers={"retry-after": "1"}))
    desk = desks(gateways(sim, *patient(tmp_path, attempts=1, max_wait_s=1)))
    run = desk.run(PROMPT)
    assert not run.is_done or desk.codex.is_old, run.out
    assert run.code == (0 if desk.codex.is_old else 1)
    told = run.errors[-1]
    assert "Requests per minute limit exceeded" in told, run.errors
    assert 0.5 <= (seconds_in(told) or 0) <= 2
    assert run.seconds > 1
    assert sim.requests == 2


@pytest.mark.parametrize("status", [500, 503])
def test_a_service_that_stays_broken_is_said(
    desks: Desks, gateways: Callable[..., Gateway], sim: Sim, tmp_path: Path, status: int
) -> None:
    script(sim, refusal(status, {"message": "Out of order.", "type": "server_error", "code": "error"}))
    desk = desks(gateways(sim, *patient(tmp_path, attempts=1, max_wait_s=1)))
    run = desk.run(PROMPT)
    assert run.code == (0 if desk.codex.is_old else 1)
    assert run.messages == []
    assert run.errors
    assert sim.requests <= 4  # Codex repeats it by itself: each of two turns once more


def test_a_context_that_is_too_long_is_said_at_once(desk: Desk, sim: Sim) -> None:
    script(sim, refusal(400, TOO_LONG))
    run = desk.run(PROMPT)
    assert run.messages == []
    if desk.codex.is_old:  # it asks again, and shows what the service said
        assert any("reduce the length" in error for error in run.errors)
    else:
        assert run.code == 1
        assert any("ran out of room in the model's context window" in error for error in run.errors)
        assert sim.requests == 1


def test_a_wrong_key_is_said_without_the_key(desks: Desks, gateways: Callable[..., Gateway], sim: Sim) -> None:
    """The service is asked once, however often Codex asks."""
    desk = desks(gateways(sim, key="wrong-key-of-the-gateway"))
    run = desk.run(PROMPT)
    assert run.messages == []
    assert run.code == (0 if desk.codex.is_old else 1)
    assert says(run, desk, "Wrong API Key", "401"), run.errors
    assert "wrong-key-of-the-gateway" not in run.out + run.err
    assert sim.stats()["status"] == {"401": 1}


@by_version("fault", ["drop_mid", "error_in_stream", "event_error_in_stream", "malformed_json"], ["drop_mid"])
def test_a_stream_that_breaks_off_runs_no_half_command_and_is_asked_again(desk: Desk, sim: Sim, fault: str) -> None:
    shell = desk.codex.shell(f"echo begin >> out.txt; {': ' + 'x' * 400 + ';'} echo end >> out.txt")
    # No text: what was said before the break stays in Codex's history, and would be a step of the script.
    answer = calls(shell, reasoning="It takes a long line. " * 20)
    first, second = turns(PROMPT, answer, text("Both are there."))
    script(sim, {**first, "fragments": 20, "fault": fault, "times": 1}, first, second)
    run = desk.run(PROMPT)
    assert run.code == 0, run.out + run.err
    assert desk.read("out.txt") == "begin\nend\n"
    assert run.messages[-1] == "Both are there."
    assert sim.requests == 3


def test_a_stream_that_always_breaks_off_is_a_failure_and_never_an_answer(desk: Desk, sim: Sim) -> None:
    shell = desk.codex.shell("echo never >> out.txt")
    (rule,) = turns(PROMPT, calls(shell, reasoning="It takes a long line. " * 20))
    script(sim, {**rule, "fragments": 20, "fault": "error_in_stream"})
    run = desk.run(PROMPT)
    assert run.code == (0 if desk.codex.is_old else 1)
    assert desk.files == []
    assert run.messages == []
    assert any("stream disconnected" in error for error in run.errors), run.errors
    assert sim.requests == 2


def test_a_call_that_is_cut_by_the_token_limit_is_not_run(desk: Desk, sim: Sim) -> None:
    cut = {"name": desk.codex.shell("")["name"], "arguments": '{"cmd": "rm -rf ./some'}
    script(sim, *turns(PROMPT, {**calls(cut, content="I begin."), "finish_reason": "length"}))
    (desk.project / "some").write_text("kept")
    run = desk.run(PROMPT)
    assert desk.files == ["some"]
    assert run.errors
    if not desk.codex.is_old:
        assert run.code == 1
        assert sim.requests == 1


def test_an_upstream_that_is_not_there_is_said(desks: Desks, gateways: Callable[..., Gateway], tmp_path: Path) -> None:
    desk = desks(gateways("http://127.0.0.1:9", *patient(tmp_path, attempts=1, max_wait_s=1)))
    run = desk.run(PROMPT)
    assert run.code == (0 if desk.codex.is_old else 1)
    assert run.messages == []
    assert says(run, desk, "127.0.0.1:9", "502"), run.errors


def test_a_silent_upstream_does_not_lose_codex(desks: Desks, forking: Forking, sim: Sim, tmp_path: Path) -> None:
    """It gives up after a second without a sign of life; the gateway gives several in it, at 75 times its pace."""
    process = forking.start(
        ["serve", "--port", "0", "--base-url", sim.url],
        key="key",
        cwd=tmp_path,
        first="import cbatch.gateway.streaming as streaming; streaming.KEEP_ALIVE_S /= 75",
    )
    try:
        wait_for(lambda: process.first_line or process.ended is not None, "the address of cbatch serve")
        desk = desks(Gateway(process.first_line, process))
        desk.overrides["model_providers.cbatch.stream_idle_timeout_ms"] = "1000"
        first, second = turns(PROMPT, calls(desk.codex.shell("echo slow > out.txt")), text("Done."))
        script(sim, {**first, "fragments": 0, "chunk_delay_s": 1.3}, second)
        run = desk.run(PROMPT)
        assert run.code == 0, run.out + run.err
        assert desk.read("out.txt") == "slow\n"
        assert run.errors == []
        assert sim.requests == 2
    finally:
        process.kill()


def test_who_gives_up_waiting_ends_the_request_upstream(desk: Desk, sim: Sim) -> None:
    (rule,) = turns(PROMPT, text("A long answer. " * 50))
    script(sim, {**rule, "chunk_delay_s": 0.5})
    running = desk.start(PROMPT)
    wait_for(lambda: sim.requests == 1, "the request to reach the simulator")
    running.interrupt()
    running.wait()
    wait_for(lambda: sim.stats()["disconnected"] == 1, "the simulator to see that the request was ended")


# -- how it is set up ---------------------------------------------------------------------------------

# Written by hand: no model, and no catalog of models.
OWN_CONFIG = """
model_provider = "cbatch"
[model_providers.cbatch]
name = "cbatch"
wire_api = "responses"
"""


def test_a_key_that_the_gateway_asks_for_comes_from_the_environment(
    desks: Desks, gateways: Callable[..., Gateway], printed: Callable[..., str], sim: Sim
) -> None:
    key = ["--client-key", "key-of-the-clients"]
    desk = desks(gateways(sim, *key), printed(*key))
    script(sim, *turns(PROMPT, text("Hello.")))
    for given in (None, "another-key"):
        desk.env = {} if given is None else {"CBATCH_CLIENT_KEY": given}
        run = desk.run(PROMPT)
        assert run.messages == []
        assert run.errors or "CBATCH_CLIENT_KEY" in run.err, run.out + run.err
    assert sim.requests == 0
    desk.env = {"CBATCH_CLIENT_KEY": "key-of-the-clients"}
    assert desk.run(PROMPT).messages == ["Hello."]


def test_the_models_that_codex_asks_for_by_itself_are_answered(
    codex: Codex, desks: Desks, gateways: Callable[..., Gateway], sim: Sim
) -> None:
    """Its own model names, with the tools that it gives to those: a script in JavaScript, in the new one."""
    gateway = gateways(sim)
    desk = desks(gateway, OWN_CONFIG)
    if codex.is_old:
        model, call = "gpt-5-codex", codex.shell("echo own > out.txt")
    else:
        model = "gpt-5.6-sol"  # it has no `tools`, but an item in its input
        call = {"name": "exec", "arguments": {"input": "text(await tools.exec_command({cmd: 'echo own > out.txt'}))"}}
    script(sim, *turns(PROMPT, calls(call), text("Done.")))
    run = desk.run(PROMPT, "-m", model)
    assert run.code == 0, run.out + run.err
    assert desk.read("out.txt") == "own\n"
    assert run.messages == ["Done."]
    assert {body["model"] for body in received(sim)} == {"gpt-oss-120b"}
