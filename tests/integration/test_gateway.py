"""`cbatch serve` over real sockets, in front of the simulator: routes, bounds, failures, and what it leaves behind.

What real clients make of it is in test_gateway_codex.py, test_gateway_openai_sdk.py and test_gateway_agents.py.
"""

from __future__ import annotations

import gzip
import http.client
import json
import signal
import stat
import sys
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.integration.conftest import Forking, Gateway, JobFolder, Sim, questions, wait_for

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Gateways = Callable[..., Gateway]
Sims = Callable[..., Sim]

HELLO = {"model": "gpt-oss-120b", "input": "Say hello", "store": False}
CHAT = {"model": "gpt-oss-120b", "messages": [{"role": "user", "content": "Say hello"}]}
CODEX = {"originator": "codex_exec", "User-Agent": "codex_exec/0.169.0"}


def text_of(response: dict[str, Any]) -> str:
    """The answer's text in a Response object."""
    return "".join(part["text"] for item in response["output"] if item["type"] == "message" for part in item["content"])


# -- answers ----------------------------------------------------------------------------------------


def test_an_answer_in_one_piece(gateways: Gateways, sim: Sim) -> None:
    said = gateways(sim).ask("/v1/responses", HELLO)
    assert said.status == 200, said.body
    assert (said.json["status"], said.json["object"]) == ("completed", "response")
    assert text_of(said.json).startswith("[prompt ")
    assert said.json["usage"]["output_tokens"] > 0


def test_a_stream_is_the_same_answer_in_events(gateways: Gateways, sim: Sim) -> None:
    """Created first, numbered without a gap, completed last, with the same text as without a stream."""
    gateway = gateways(sim)
    whole = text_of(gateway.ask("/v1/responses", HELLO).json)
    said = gateway.ask("/v1/responses", {**HELLO, "stream": True})
    assert said.headers["content-type"].startswith("text/event-stream")
    events = said.events
    assert events[0]["type"] == "response.created"
    assert events[-1]["type"] == "response.completed"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta") == whole
    assert text_of(events[-1]["response"]) == whole


def test_chat_completions_pass_as_they_are(gateways: Gateways, sim: Sim) -> None:
    """Byte for byte the same answer as without the gateway, but for the ids and times of a second request."""
    gateway = gateways(sim)
    ours = gateway.ask("/v1/chat/completions", CHAT).json
    theirs = Gateway(sim.url, gateway.process).ask("/v1/chat/completions", CHAT, {"Authorization": "Bearer key"}).json
    assert ours["choices"] == theirs["choices"]
    assert ours.keys() == theirs.keys()
    stream = gateway.ask("/chat/completions", {**CHAT, "stream": True})
    assert stream.events[-1] == "[DONE]"
    said = [choice["delta"].get("content") or "" for chunk in stream.events[:-1] for choice in chunk["choices"]]
    assert "".join(said) == ours["choices"][0]["message"]["content"]


def test_a_conversation_goes_on_from_a_response(gateways: Gateways, sim: Sim) -> None:
    """`previous_response_id` sends the whole conversation; what is not stored is refused, never ignored."""
    gateway = gateways(sim)
    first = gateway.ask("/v1/responses", {**HELLO, "store": True}).json
    second = gateway.ask("/v1/responses", {**HELLO, "store": True, "previous_response_id": first["id"]}).json
    assert second["previous_response_id"] == first["id"]
    assert second["usage"]["input_tokens"] > first["usage"]["input_tokens"]
    assert gateway.ask(f"/v1/responses/{first['id']}").json["output"] == first["output"]
    assert gateway.ask(f"/v1/responses/{first['id']}", method="DELETE").json["deleted"] is True
    for lost in (first["id"], second["id"], gateway.ask("/v1/responses", HELLO).json["id"]):
        refused = gateway.ask("/v1/responses", {**HELLO, "previous_response_id": lost})
        assert refused.status == 400
        assert refused.json["error"]["code"] == "previous_response_not_found"


def test_models_and_health(gateways: Gateways, sim: Sim) -> None:
    gateway = gateways(sim)
    models = gateway.ask("/v1/models").json
    assert "gpt-oss-120b" in [entry["id"] for entry in models["data"]]
    assert "models" not in models
    catalog = gateway.ask("/v1/models?client_version=0.169.0").json["models"]
    assert {entry["slug"] for entry in catalog} == {entry["id"] for entry in models["data"]}
    assert gateway.ask("/v1/models/gpt-oss-120b").json["id"] == "gpt-oss-120b"
    assert gateway.ask("/v1/models/nothing").status == 404
    assert gateway.ask("/health").json["status"] == "ok"


# -- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param({"background": True}, "background", id="background"),
        pytest.param({"model": None}, "model", id="no model"),
        pytest.param({"input": [{"type": "item_reference", "id": "x"}]}, "stored item", id="item reference"),
        pytest.param({"input": 7}, "input", id="input is a number"),
        pytest.param({"input": [{"type": ["x"]}]}, "input[0].type", id="a type that is a list"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    gateways: Gateways, sim: Sim, change: dict[str, Any], says: str
) -> None:
    said = gateways(sim).ask("/v1/responses", {**HELLO, **change})
    assert said.status == 400
    assert says in said.json["error"]["message"]
    assert sim.requests == 0


def test_bad_bodies_and_routes_get_an_error_that_clients_read(gateways: Gateways, sim: Sim) -> None:
    gateway = gateways(sim)
    for body, status in ((b"{", 400), (b"[]", 400), (b"", 400)):
        said = gateway.ask("/v1/responses", body)
        assert (said.status, said.json["error"]["code"]) == (status, "invalid_json")
    assert gateway.ask("/v1/embeddings", {}).json["error"]["code"] == "unknown_route"
    assert gateway.ask("/v1/chat/completions").status == 405


@pytest.mark.parametrize("where", ["tools", "metadata"])
def test_a_request_that_is_nested_too_deeply_is_refused(gateways: Gateways, sim: Sim, where: str) -> None:
    """JSON that can be read and not written: 400, and no bug of ours."""
    deep = json.loads('{"a":' * 400 + "1" + "}" * 400)
    value = [{"type": "function", "name": "f", "parameters": deep}] if where == "tools" else deep
    for stream in (False, True):
        said = gateways(sim).ask("/v1/responses", {**HELLO, where: value, "stream": stream})
        assert said.status in (200, 400)
        assert b"bug" not in said.body


def test_a_websocket_probe_is_answered_426(gateways: Gateways, sim: Sim) -> None:
    """Codex falls back to HTTP at once."""
    headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    assert gateways(sim).ask("/v1/responses", headers=headers).status == 426


def test_web_pages_and_strangers_are_kept_out(gateways: Gateways, sim: Sim) -> None:
    """A page in a browser, or a name that points here, must not spend the quota."""
    gateway = gateways(sim)
    assert gateway.ask("/v1/responses", HELLO, {"Origin": "https://evil.example"}).status == 403
    assert gateway.ask("/v1/responses", HELLO, {"Host": "evil.example"}).status == 403
    assert gateway.ask("/v1/responses", HELLO, {"Origin": "http://localhost:3000"}).status == 200
    assert sim.requests == 1


def test_a_client_key_is_demanded(gateways: Gateways, sim: Sim) -> None:
    gateway = gateways(sim, "--client-key", "sesame-open-please")
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        said = gateway.ask("/v1/responses", HELLO, headers)
        assert (said.status, said.json["error"]["code"]) == (401, "invalid_api_key")
    assert gateway.ask("/v1/models", headers={"Authorization": "Bearer nothing"}).status == 401
    assert gateway.ask("/health").status == 200
    assert gateway.ask("/v1/responses", HELLO, {"Authorization": "Bearer sesame-open-please"}).status == 200
    assert sim.requests == 1


def test_an_open_address_without_a_client_key_is_refused(forking: Forking, sim: Sim, tmp_path: Path) -> None:
    command = ["serve", "--host", "0.0.0.0", "--port", "0", "--base-url", sim.url]
    result = forking.start(command, key="key", cwd=tmp_path).wait()
    assert result.code == 2
    assert "--client-key" in result.err


# -- bodies -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoding", "encode"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("zstd", zstd.compress)],
)
def test_compressed_bodies(gateways: Gateways, sim: Sim, encoding: str, encode: Callable[[bytes], bytes]) -> None:
    gateway = gateways(sim)
    headers = {"Content-Encoding": encoding}
    body = encode(json.dumps(HELLO).encode())
    assert gateway.ask("/v1/responses", body, headers).status == 200
    for broken in (body[:-9], b"nonsense" + body):
        said = gateway.ask("/v1/responses", broken, headers)
        assert (said.status, said.json["error"]["code"]) == (400, "invalid_body")
    bomb = gateway.ask("/v1/responses", encode(b" " * (64 * 2**20 + 1)), headers)
    assert (bomb.status, bomb.json["error"]["code"]) == (413, "request_too_large")
    assert gateway.ask("/v1/responses", body, {"Content-Encoding": "br"}).status == 415


def test_a_body_of_40_megabytes(gateways: Gateways, sim: Sim) -> None:
    """It is read, and the upstream's word about it is told."""
    gateway = gateways(sim)
    said = gateway.ask("/v1/responses", {**HELLO, "input": "x" * (40 * 2**20)})
    assert said.status in (400, 413)
    assert said.json["error"]["message"]
    assert gateway.ask("/v1/responses", HELLO).status == 200


# -- failures ---------------------------------------------------------------------------------------


def test_a_wrong_key_is_told_and_not_asked_six_times(gateways: Gateways, sim: Sim) -> None:
    gateway = gateways(sim, key="wrong-key-of-the-gateway")
    for _ in range(6):
        said = gateway.ask("/v1/responses", {**HELLO, "stream": True})
        assert (said.status, said.json["error"]["code"]) == (401, "wrong_api_key")
        assert b"wrong-key-of-the-gateway" not in said.body
    error = gateway.ask("/v1/responses", {**HELLO, "stream": True}, CODEX).events[-1]["response"]["error"]
    assert (error["code"], error["message"]) == ("invalid_prompt", said.json["error"]["message"])
    assert sum(count for status, count in sim.stats()["status"].items() if str(status) == "401") == 1


def test_a_limit_of_the_account_is_waited_for(gateways: Gateways, sims: Sims) -> None:
    """A 429 is absorbed: the client only waits."""
    sim = sims("--speed", "inf", "--rpm", "2", "--clock-rate", "30")
    gateway = gateways(sim)
    assert [gateway.ask("/v1/responses", HELLO).status for _ in range(5)] == [200] * 5


def test_a_limit_that_lasts_is_told_in_the_form_that_the_client_understands(
    gateways: Gateways, sims: Sims, tmp_path: Path
) -> None:
    """Codex reads it inside a stream, and when to come back; everyone else gets 429."""
    sim = sims("--speed", "inf", "--rpm", "1")
    (tmp_path / "g.yaml").write_text("retry: {max_wait_s: 1}")
    gateway = gateways(sim, "--config", str(tmp_path / "g.yaml"))
    assert gateway.ask("/v1/responses", HELLO).status == 200
    said = gateway.ask("/v1/responses", HELLO)
    assert (said.status, said.json["error"]["type"]) == (429, "rate_limit_error"), said.body
    assert float(said.headers["retry-after"]) >= 1
    events = gateway.ask("/v1/responses", {**HELLO, "stream": True}, CODEX).events
    assert [event["type"] for event in events] == ["response.created", "response.in_progress", "response.failed"]
    error = events[-1]["response"]["error"]
    assert error["code"] == "rate_limit_exceeded"
    assert "Please try again in " in error["message"]


def test_a_conversation_that_is_too_long(gateways: Gateways, sim: Sim) -> None:
    """Codex learns it inside a stream, everyone else by status 400 and the code."""
    gateway = gateways(sim)
    long = {**HELLO, "input": "word " * 200_000}
    said = gateway.ask("/v1/responses", long)
    assert (said.status, said.json["error"]["code"]) == (400, "context_length_exceeded"), said.body[:500]
    events = gateway.ask("/v1/responses", {**long, "stream": True}, CODEX).events
    assert events[-1]["response"]["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("fault", ["drop_mid", "malformed_json", "missing_done", "error_in_stream"])
def test_a_stream_that_breaks_off_is_a_failure(gateways: Gateways, sims: Sims, fault: str) -> None:
    """Never a completed answer, in neither protocol."""
    gateway = gateways(sims("--fault", f"{fault}=1"))
    events = gateway.ask("/v1/responses", {**HELLO, "stream": True}).events
    assert events[-1]["type"] == "response.failed", events[-1]
    assert "response.completed" not in [event["type"] for event in events]
    chat = gateway.ask("/v1/chat/completions", {**CHAT, "stream": True}).events
    assert "[DONE]" not in chat
    assert "error" in chat[-1]


@pytest.mark.parametrize(
    ("fault", "status"), [("unavailable", 503), ("server_error", 500), ("bad_gateway_html", 502), ("drop_before", 502)]
)
def test_a_server_that_fails_before_the_first_byte(
    gateways: Gateways, sims: Sims, tmp_path: Path, fault: str, status: int
) -> None:
    (tmp_path / "g.yaml").write_text("retry: {attempts: 2, max_wait_s: 1}")
    gateway = gateways(sims("--speed", "inf", "--fault", f"{fault}=1"), "--config", str(tmp_path / "g.yaml"))
    for body in (HELLO, {**HELLO, "stream": True}):
        said = gateway.ask("/v1/responses", body)
        assert said.status == status
        assert said.json["error"]["message"]
    failed = gateway.ask("/v1/responses", {**HELLO, "stream": True}, CODEX).events[-1]["response"]["error"]
    assert (failed["code"], failed["message"]) == ("server_error", said.json["error"]["message"])


def test_faults_that_pass_are_not_seen(gateways: Gateways, sims: Sims, tmp_path: Path) -> None:
    sim = sims("--speed", "inf", "--fault", "server_error=0.1", "--fault", "drop_before=0.1", "--seed", "3")
    (tmp_path / "g.yaml").write_text("retry: {attempts: 12, max_wait_s: 1}")
    gateway = gateways(sim, "--config", str(tmp_path / "g.yaml"))
    assert [gateway.ask("/v1/responses", {**HELLO, "input": f"{n}"}).status for n in range(12)] == [200] * 12
    assert sim.requests > 12


def test_nobody_there(gateways: Gateways, tmp_path: Path) -> None:
    (tmp_path / "g.yaml").write_text("retry: {attempts: 1}")
    said = gateways("http://127.0.0.1:9", "--config", str(tmp_path / "g.yaml")).ask("/v1/responses", HELLO)
    assert said.status == 502
    assert "cannot connect to 127.0.0.1:9" in said.json["error"]["message"]


def test_a_client_that_goes_away_cancels_the_request(gateways: Gateways, sims: Sims) -> None:
    """Codex' user presses Esc: nothing goes on upstream, and the exchange is counted as cancelled."""
    sim = sims("--fault", "stall=1", "--stall-s", "30")
    gateway = gateways(sim, "--json")
    link = http.client.HTTPConnection(urlsplit(gateway.url).netloc, timeout=30)
    link.request("POST", "/v1/responses", json.dumps({**HELLO, "stream": True}))
    answer = link.getresponse()
    assert answer.status == 200
    assert b"response.created" in answer.read(200)
    link.close()
    answer.close()
    wait_for(lambda: sim.stats()["in_flight"] == 0, "the simulator to see that nobody waits")
    summary = json.loads(gateway.stop().out.partition("{")[2].join(["{", ""]))
    assert (summary["cancelled"], summary["ok"]) == (1, 0)


# -- models and providers ---------------------------------------------------------------------------


def test_codex_models_are_mapped_without_a_file(gateways: Gateways, sim: Sim) -> None:
    gateway = gateways(sim)
    for model in ("gpt-5-codex", "gpt-5.5", "gpt-6-sol"):
        assert gateway.ask("/v1/responses", {**HELLO, "model": model}).json["model"] == "gpt-oss-120b"
    assert gateway.ask("/v1/chat/completions", {**CHAT, "model": "gpt-5.5"}).json["model"] == "gpt-oss-120b"


def test_models_and_providers_change_without_a_restart(gateways: Gateways, sims: Sims, tmp_path: Path) -> None:
    """The next request follows the file; a broken file changes nothing, and is told once."""
    cerebras, other = sims("--speed", "inf"), sims("--speed", "inf", "--seed", "9")
    config = tmp_path / "g.yaml"
    config.write_text("models: {fast: gpt-oss-120b}")
    gateway = gateways(cerebras, "--config", str(config))

    def served(model: str = "fast", **headers: str) -> Any:
        said = gateway.ask("/v1/responses", {**HELLO, "model": model}, headers)
        return said.json.get("model") or said.json["error"]["code"]

    assert served() == "gpt-oss-120b"
    lab = f"providers: {{lab: {{mode: translate, base_url: '{other.url}'}}}}\n"
    config.write_text(lab + "models: {fast: zai-glm-4.7}")
    assert served() == "zai-glm-4.7"
    assert (cerebras.requests, other.requests) == (2, 0)
    assert served("zai-glm-4.7", **{"X-Cbatch-Provider": "lab"}) == "zai-glm-4.7"
    assert (cerebras.requests, other.requests) == (2, 1)
    assert served("zai-glm-4.7", **{"X-Cbatch-Provider": "nobody"}) == "unknown_provider"
    config.write_text("models: [")
    assert [served(), served()] == ["zai-glm-4.7"] * 2
    assert gateway.process.err.count("still using the settings") == 1
    config.write_text(lab + "provider: lab\nmodels: {fast: gpt-oss-120b}")
    assert served() == "gpt-oss-120b"
    assert other.requests == 2


def test_a_provider_that_speaks_responses_is_passed_through_untouched(
    gateways: Gateways, sim: Sim, tmp_path: Path
) -> None:
    """Body and stream go through as they are; the provider's own key is used, and not the client's."""
    inner = gateways(sim, "--client-key", "inner-key-123456")
    config = tmp_path / "g.yaml"
    config.write_text(
        f"provider: inner\nproviders: {{inner: {{mode: responses, base_url: '{inner.url}/v1', key_env: INNER_KEY}}}}"
    )
    home = tmp_path / "outer"
    home.mkdir()
    forked = "import os; os.environ['INNER_KEY'] = 'inner-key-123456'"
    outer = gateways("http://127.0.0.1:9", "--config", str(config), cwd=home, first=forked)
    whole = outer.ask("/v1/responses", HELLO, {"Authorization": "Bearer anything"})
    assert whole.status == 200, whole.body
    body = zstd.compress(json.dumps({**HELLO, "stream": True}).encode())
    stream = outer.ask("/v1/responses", body, {"Content-Encoding": "zstd"})
    assert stream.events[-1]["type"] == "response.completed"
    assert text_of(stream.events[-1]["response"]) == text_of(whole.json)
    assert outer.ask("/v1/responses", {**HELLO, "background": True}).status == 400  # the inner one's word
    assert "gpt-oss-120b" in [entry["id"] for entry in outer.ask("/v1/models").json["data"]]


# -- what it leaves behind --------------------------------------------------------------------------


def test_the_log_has_every_exchange_and_no_key(gateways: Gateways, sim: Sim, tmp_path: Path) -> None:
    gateway = gateways(sim, "--log", "logs", "--client-key", "client-key-123456", key="csk-gateway-key-1234567890")
    headers = {"Authorization": "Bearer client-key-123456"}
    body = {**HELLO, "input": "The key is csk-gateway-key-1234567890, keep it"}
    gateway.ask("/v1/responses", {**body, "stream": True}, headers)
    gateway.ask("/v1/chat/completions", CHAT, headers)
    gateway.ask("/v1/responses", HELLO, {"Authorization": "Bearer not-the-key-654321"})
    gateway.stop()
    (file,) = (tmp_path / "logs").glob("*.jsonl")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    text = file.read_text()
    for secret in ("csk-gateway-key-1234567890", "client-key-123456", "not-the-key-654321"):
        assert secret not in text
    first, second, third = (json.loads(line) for line in text.splitlines())
    assert first["request"]["input"].startswith("The key is ")
    assert first["chat_request"]["messages"][-1]["role"] == "user"
    assert first["events"][-1]["type"] == "response.completed"
    assert first["upstream"][0]["object"] == "chat.completion.chunk"
    assert first["timings"]["latency_s"] > 0
    assert first["usage"]["completion_tokens"] > 0
    assert second["upstream"][0]["choices"]
    assert (third["status"], third["outcome"]) == (401, "failed")


def test_metrics_and_the_summary_count_the_same(gateways: Gateways, sim: Sim) -> None:
    gateway = gateways(sim, "--json")
    for _ in range(3):
        gateway.ask("/v1/responses", HELLO)
    gateway.ask("/v1/responses", {**HELLO, "model": "nothing"})
    page = gateway.ask("/metrics").body.decode()
    line = next(
        line for line in page.splitlines() if line.startswith("cbatch_exchanges_total") and 'status="200"' in line
    )
    assert line.endswith(" 3.0")
    result = gateway.stop(signal.SIGINT)
    assert result.code == 0
    summary = json.loads(result.out)
    assert (summary["requests"], summary["ok"], summary["failed"]) == (4, 3, 1)
    assert summary["cost_usd"] > 0
    assert summary["completion_tokens"] > 0


def test_the_end_prints_a_summary(gateways: Gateways, sim: Sim) -> None:
    gateway = gateways(sim)
    gateway.ask("/v1/responses", HELLO)
    result = gateway.stop()
    assert result.code == 0
    assert result.out.splitlines() == [gateway.url]
    assert "1 request" in result.err
    assert "tokens" in result.err


def test_no_key_is_told_before_it_listens(forking: Forking, tmp_path: Path) -> None:
    result = forking.start(["serve", "--port", "0"], key=None, cwd=tmp_path).wait()
    assert result.code == 1
    assert "CEREBRAS_API_KEY" in result.err


def test_a_port_that_is_taken(forking: Forking, gateways: Gateways, sim: Sim, tmp_path: Path) -> None:
    port = gateways(sim).url.rpartition(":")[2]
    result = forking.start(["serve", "--port", port, "--base-url", sim.url], key="key", cwd=tmp_path).wait()
    assert result.code == 1
    assert f"127.0.0.1:{port}" in result.err


def test_the_gateway_shares_the_accounts_limits_with_jobs(gateways: Gateways, sims: Sims, job: JobFolder) -> None:
    """Both at once are as fast as the account allows, and not each: 20 requests a second, told by nobody else."""
    job.sim = sim = sims("--speed", "inf", "--rpm", "1200", "--headers", "none")
    job.settings["limits"] = {"rpm": 1200, "concurrency": 16}
    (job.path / "g.yaml").write_text("limits: {rpm: 1200}")
    gateway = gateways(sim, "--config", "g.yaml", cwd=job.path)  # the same home, so the same budgets
    job.rows(questions(50))
    started = time.monotonic()
    run = job.start()
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda n: gateway.ask("/v1/responses", {**HELLO, "input": str(n)}).status, range(50)))
    assert (found, run.wait().code) == ([200] * 50, 0)
    assert time.monotonic() - started > 98 * 0.05  # with a limit of its own for each: 2.5 s, and the start


# -- the end, and what the terminal says ------------------------------------------------------------


def test_a_second_signal_does_not_wait_for_what_is_being_answered(gateways: Gateways, sims: Sims) -> None:
    """The first says what it waits for; after the second the summary comes at once, and no traceback."""
    sim = sims("--fault", "stall=1", "--stall-s", "30")
    gateway = gateways(sim)
    link = http.client.HTTPConnection(urlsplit(gateway.url).netloc, timeout=30)
    link.request("POST", "/v1/responses", json.dumps({**HELLO, "stream": True}))
    answer = link.getresponse()
    answer.read(100)
    gateway.process.signal(signal.SIGINT)
    wait_for(lambda: "1 request still to be answered; Ctrl-C again stops at once" in gateway.process.err, "a word")
    gateway.process.signal(signal.SIGINT)
    result = gateway.process.wait()
    answer.close()
    link.close()
    assert result.code == 0
    assert "Traceback" not in result.err
    assert "Task was destroyed" not in result.err
    assert "gateway: 1 request" in result.err


def test_what_the_user_of_the_gateway_can_mend_is_told_on_the_terminal_once(gateways: Gateways, sim: Sim) -> None:
    """A refused key, and not the mistakes of clients."""
    gateway = gateways(sim, key="wrong-key-of-the-gateway")
    for _ in range(3):
        gateway.ask("/v1/responses", HELLO)
        gateway.ask("/v1/responses", {**HELLO, "input": 7})
    assert gateway.process.err.count("cerebras: 401: the upstream refuses the gateway's key: ") == 1
    assert len(gateway.process.err.splitlines()) == 2


def test_a_limit_of_the_day_does_not_send_codex_to_sleep(gateways: Gateways, sims: Sims) -> None:
    """It would wait for eight hours without a word: it is told to stop, and when there is room again."""
    gateway = gateways(sims("--speed", "inf", "--rpd", "1"))
    gateway.ask("/v1/responses", HELLO)
    error = gateway.ask("/v1/responses", {**HELLO, "stream": True}, CODEX).events[-1]["response"]["error"]
    assert error["code"] == "invalid_prompt", error
    assert "There is room again in " in error["message"]
    assert "try again in" not in error["message"]


def test_no_more_requests_are_on_the_way_than_the_file_says(gateways: Gateways, sims: Sims, tmp_path: Path) -> None:
    sim = sims("--speed", "5")
    (tmp_path / "g.yaml").write_text("concurrency: 2")
    gateway = gateways(sim, "--config", str(tmp_path / "g.yaml"))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: gateway.ask("/v1/responses", {**HELLO, "input": str(n)}).status, range(16)))
    assert found == [200] * 16
    assert sim.stats()["max_in_flight"] == 2


def test_the_client_key_may_come_from_the_environment(gateways: Gateways, sim: Sim) -> None:
    """On the command line all users of the machine see it."""
    gateway = gateways(sim, first="import os; os.environ['CBATCH_CLIENT_KEY'] = 'from-the-environment'")
    assert gateway.ask("/v1/responses", HELLO).status == 401
    assert gateway.ask("/v1/responses", HELLO, {"Authorization": "Bearer from-the-environment"}).status == 200
