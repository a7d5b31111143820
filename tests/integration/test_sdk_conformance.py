"""The same calls to the official SDK and to the drop-in: results and exceptions are equal, field by field.

What is not equal is in pipeline/cbatch/sdk/DIFFERENCES.md, and the tests at the end hold both sides to it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

import cbatch.sdk as ours
from tests.integration.conftest import Sim
from tests.integration.sdk_sides import ASK, KEY, MODEL, Side, chunk, events, http, scripted

real = pytest.importorskip("cerebras.cloud.sdk", reason="cerebras-cloud-sdk is not installed (pip install --group dev)")

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "answer",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"answer": {"type": "integer"}, "why": {"type": "string"}},
            "required": ["answer", "why"],
            "additionalProperties": False,
        },
    },
}
DONE = "[DONE]"

Scenario = Callable[[Side], Any]


def both(scenario: Scenario, server: Sim | str, *, is_async: bool) -> tuple[Any, Any]:
    """What users of the official SDK and of the drop-in see."""
    found = []
    for sdk in (real, ours):
        if isinstance(server, Sim):
            server.reset()  # its prompt cache, above all
        url = server if isinstance(server, str) else server.url
        found.append(Side(sdk, url, is_async=is_async).seen(scenario))
    return found[0], found[1]


# -- against the simulator ----------------------------------------------------------------------------


def create(**fields: Any) -> Scenario:
    return lambda side: side.create(**fields)


def stream(**fields: Any) -> Scenario:
    return lambda side: side.chunks(side.create(stream=True, **fields))


def conversation(side: Side) -> Any:
    """An answer's own object goes into the next request."""
    client = side.client()
    first = side.create(client)
    messages = [*ASK["messages"], first.choices[0].message, {"role": "user", "content": "And 3 + 3?"}]
    return [first, side.create(client, messages=messages)]


def tool_round(side: Side) -> Any:
    client = side.client()
    first = side.create(client, tools=[TOOL], tool_choice="required")
    call = first.choices[0].message.tool_calls[0]
    said = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    messages = [*ASK["messages"], first.choices[0].message, said]
    return [json.loads(call.function.arguments), side.create(client, messages=messages, tools=[TOOL]).usage]


def iterators(side: Side) -> Any:
    messages = (message for message in [{"role": "user", "content": "½ · 数 · 🙂"}])
    return side.create(messages=messages, stop=("zebra",), logit_bias={11: 1})


def omitted(side: Side) -> Any:
    omit, not_given = side.sdk.omit, side.sdk.NOT_GIVEN
    return side.create(temperature=omit, top_p=not_given, seed=None, user="me")


def raw(side: Side) -> Any:
    client = side.client()
    response = side.do(client.chat.completions.with_raw_response.create(**ASK))
    parsed = side.do(response.parse())
    return [
        parsed,
        parsed is side.do(response.parse()),
        response.status_code,
        sorted(response.headers),
        response.headers["Content-Type"],
        response.method,
        str(response.url),
        response.retries_taken,
        response.http_version,
        response.is_closed,
        side.do(response.parse(to=dict[str, object])).keys(),
        side.do(response.json())["object"],
        len(side.do(response.read())) > 100,
    ]


def raw_models(side: Side) -> Any:
    response = side.do(side.client().with_raw_response.models.list())
    return [side.do(response.parse()), response.status_code]


def raw_stream(side: Side) -> Any:
    response = side.do(side.client().chat.completions.with_raw_response.create(**ASK, stream=True))
    return [response.status_code, response.headers["content-type"], side.chunks(side.do(response.parse()))]


def streaming_response(side: Side) -> Any:
    client = side.client()

    async def alines(response: Any) -> list[str]:
        return [line[:60].split("-")[0] async for line in response.iter_lines()]

    def lines(response: Any) -> Any:
        return alines(response) if side.is_async else [line[:60].split("-")[0] for line in response.iter_lines()]

    context = client.chat.completions.with_streaming_response.create(**ASK, stream=True)
    return side.inside(context, lines)


def streaming_whole(side: Side) -> Any:
    context = side.client().with_streaming_response.chat.completions.create(**ASK)
    return side.inside(context, lambda response: response.parse())


def stream_closed(side: Side) -> Any:
    """What was not read is not waited for, and the client goes on."""
    client = side.client()
    begun = side.create(client, stream=True)

    async def one() -> Any:
        async for part in begun:
            return part

    first = side.do(one()) if side.is_async else next(begun)
    status = begun.response.status_code
    side.do(begun.close())
    return [first, status, begun.response.is_closed, side.create(client)]


def stream_context(side: Side) -> Any:
    begun = side.create(stream=True)

    async def collect(entered: Any) -> list[Any]:
        return [part async for part in entered]

    return side.inside(begun, collect if side.is_async else list)


def options(side: Side) -> Any:
    client = side.client(timeout=20.0, max_retries=1, default_headers={"X-One": "1"}, default_query={"a": "1"})
    other = client.with_options(timeout=5.0, max_retries=0, default_headers={"X-Two": "2"})
    alone = client.copy(set_default_headers={"X-Three": "3"}, set_default_query={}, warm_tcp_connection=False)
    return [
        [one.timeout, one.max_retries, one.api_key, str(one.base_url), one.is_closed(), dict(one.default_query)]
        for one in (client, other, alone)
    ] + [
        {k: v for k, v in one.default_headers.items() if k.startswith("X-") and "tainless" not in k and "3rd" not in k}
        for one in (client, other, alone)
    ]


def exclusive(side: Side) -> Any:
    side.client().copy(default_headers={}, set_default_headers={})


def undocumented(side: Side) -> Any:
    client = side.client()
    return [
        side.do(client.get("/v1/models", cast_to=object)),
        side.do(client.post("/v1/chat/completions", cast_to=object, body=ASK))["object"],
        side.do(client.post("/v1/nothing", cast_to=object, body=ASK)),
    ]


def client_context(side: Side) -> Any:
    client = side.client()
    found = side.inside(client, lambda entered: entered.models.list())
    return [found, client.is_closed()]


SCENARIOS: dict[str, Scenario] = {
    "plain": create(),
    "a stream": stream(),
    "stream=False": create(stream=False),
    "tools": create(tools=[TOOL], tool_choice="required"),
    "tools in a stream": stream(tools=[TOOL], tool_choice="required"),
    "a tool's answer": tool_round,
    "an answer goes back": conversation,
    "a JSON schema": create(response_format=SCHEMA),
    "a JSON schema in a stream": stream(response_format=SCHEMA),
    "a JSON object": create(response_format={"type": "json_object"}),
    "reasoning": create(reasoning_effort="high", reasoning_format="parsed"),
    "hidden reasoning": create(reasoning_format="hidden"),
    "reasoning in a stream": stream(reasoning_effort="low"),
    "logprobs": create(logprobs=True, top_logprobs=2, max_completion_tokens=60),
    "logprobs in a stream": stream(logprobs=True, top_logprobs=1, max_completion_tokens=60),
    "three answers": create(n=3),
    "three answers in a stream": stream(n=3),
    "cut": create(max_completion_tokens=1),
    "unicode": create(messages=[{"role": "user", "content": '数学 — ½, 🙂, \u2028, \x00, “q” \\ " \n'}]),
    "iterators and whole-number keys": iterators,
    "what is omitted": omitted,
    "an extra field": create(extra_body={"seed": 7, "user": "them"}),
    "an unknown model": create(model="no-such-model"),
    "a bad parameter": create(temperature=9),
    "an unknown extra field": create(extra_body={"nonsense": 1}),
    "a bad parameter in a stream": stream(temperature=9),
    "empty messages": create(messages=[]),
    "no such argument": lambda side: type(_error_of(lambda: side.create(nonsense=1))).__name__,
    "no messages": lambda side: type(_error_of(lambda: side.client().chat.completions.create(model=MODEL))).__name__,
    "NaN": lambda side: type(_error_of(lambda: side.create(temperature=math.nan))).__name__,
    "an object that is no JSON": lambda side: type(_error_of(lambda: side.create(user=object()))).__name__,
    "a wrong key": lambda side: side.create(side.client(api_key="wrong-0123456789")),
    "a wrong key in a stream": lambda side: side.create(side.client(api_key="wrong-0123456789"), stream=True),
    "models": lambda side: side.do(side.client().models.list()),
    "a model": lambda side: side.do(side.client().models.retrieve(MODEL)),
    "a model that is not there": lambda side: side.do(side.client().models.retrieve("no/such model")),
    "a model without a name": lambda side: side.do(side.client().models.retrieve("")),
    "models in a format": lambda side: side.do(side.client().models.list(format="openrouter")),
    "text completions, which the simulator has not": lambda side: side.do(
        side.client().completions.create(model=MODEL, prompt="It was")
    ),
    "a raw answer": raw,
    "raw models": raw_models,
    "a raw stream": raw_stream,
    "a raw error": lambda side: side.do(side.client().chat.completions.with_raw_response.create(**ASK, top_p=5)),
    "lines of a stream": streaming_response,
    "a whole answer, streamed": streaming_whole,
    "a stream that is closed": stream_closed,
    "a stream as a context": stream_context,
    "with_options": options,
    "options that exclude each other": exclusive,
    "addresses without a method": undocumented,
    "a client as a context": client_context,
}


def _error_of(work: Callable[[], Any]) -> BaseException | None:
    try:
        work()
    except Exception as exc:  # noqa: BLE001  that is what is compared
        return exc
    return None


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_results_and_exceptions_are_equal(sim: Sim, name: str, is_async: bool) -> None:
    theirs, mine = both(SCENARIOS[name], sim, is_async=is_async)
    assert mine == theirs


FAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    "429 of the request quota": ("rate_limited_requests=1", {}),
    "429 of the token quota": ("rate_limited_tokens=1", {}),
    "429 of a busy server": ("queue_exceeded=1", {}),
    "402": ("payment_required=1", {}),
    "408": ("timeout_408=1", {}),
    "500": ("server_error=1", {}),
    "502 with a page of HTML": ("bad_gateway_html=1", {}),
    "503": ("unavailable=1", {}),
    "503 in a stream": ("unavailable=1", {"stream": True}),
    "a dropped connection": ("drop_before=1", {}),
    "a dropped connection, in a stream": ("drop_before=1", {"stream": True}),
    "half an answer": ("drop_mid=1", {}),
    "an empty answer": ("empty_answer=1", {}),
    "an answer without usage": ("missing_usage=1", {}),
    "an answer of another model": ("wrong_model=1", {}),
    "a connection that closes": ("close_connection=1", {}),
}


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_tried_again_as_often_and_end_alike(sims: Callable[..., Sim], name: str, is_async: bool) -> None:
    fault, fields = FAULTS[name]
    sim = sims("--speed", "inf", "--fault", fault)
    found = []
    for sdk in (real, ours):
        sim.reset()
        side = Side(sdk, sim.url, is_async=is_async)
        seen = side.seen(lambda side: side.create(side.client(max_retries=1), **fields))
        found.append([seen, sim.requests])
    assert found[1] == found[0]


@pytest.mark.parametrize("fault", ["error_in_stream=1", "event_error_in_stream=1"])
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_an_error_inside_a_stream_is_raised(sims: Callable[..., Sim], fault: str, is_async: bool) -> None:
    sim = sims("--speed", "inf", "--fault", fault)

    def scenario(side: Side) -> Any:
        begun = side.create(stream=True)
        return [begun.response.status_code, side.chunks(begun)]

    theirs, mine = both(scenario, sim, is_async=is_async)
    assert mine == theirs
    assert "raised" in mine


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("given", ["client", "call", "object"])
def test_timeouts(sims: Callable[..., Sim], given: str, is_async: bool) -> None:
    """Of the client, of a call, and as an object; tried again like any other failure."""
    sim = sims("--speed", "inf", "--fault", "slow_first_byte=1", "--slow-s", "30")

    def scenario(side: Side) -> Any:
        timeout = side.sdk.Timeout(0.2, connect=5.0) if given == "object" else 0.2
        if given == "call":
            return side.create(side.client(max_retries=0), timeout=timeout)
        return side.create(side.client(max_retries=1, timeout=timeout))

    found = []
    for sdk in (real, ours):
        sim.reset()
        found.append([Side(sdk, sim.url, is_async=is_async).seen(scenario), sim.requests])
    assert found[1] == found[0]
    assert found[1][0]["raised"]["type"][0] == "APITimeoutError"


# -- against a server that says what a test says ----------------------------------------------------------

ODD: dict[str, tuple[bytes, bool]] = {
    "fields that nobody knows": (
        http(b'{"id":"a","choices":[],"created":1,"model":"m","object":"chat.completion","system_fingerprint":"f",'
             b'"new":{"deep":[1]},"usage":{"total_tokens":1,"x":2}}'),
        False,
    ),
    "fields that are missing": (http(b'{"id":"a","choices":[{"index":0,"message":{"content":"hi"}}]}'), False),
    "fields of the wrong type": (
        http(b'{"id":1,"choices":[{"index":"x","message":{"role":"robot","content":3}}],"created":"now",'
             b'"model":null,"object":"chat.completion","system_fingerprint":"f","time_info":{"total_time":1}}'),
        False,
    ),
    "an error with status 200": (http(b'{"error":{"message":"no","code":"x"},"status_code":503}'), False),
    "NaN": (http(b'{"id":"a","choices":[],"created":1,"model":"m","object":"chat.completion",'
                 b'"system_fingerprint":"f","time_info":{"total_time":NaN,"new":[1]}}'), False),
    "an error under `error`": (http(b'{"error":{"message":"no","code":"x","type":"t","param":"p"}}',
                                    status="400 Bad Request"), False),
    "an error with a status of its own": (http(b'{"message":"no","status_code":429}', status="400 Bad Request"), False),
    "an error that is no JSON": (http(b" teapot \n", "Content-Type: text/plain", status="418 I'm a teapot"), False),
    "an error without a body": (http(b"", status="404 Not Found"), False),
    "an error with a list": (http(b"[1]", status="422 Unprocessable Entity"), False),
    "409, which must not be tried again": (http(b"{}", "x-should-retry: false", status="409 Conflict"), False),
    "a stream": (
        events(chunk({"role": "assistant"}), chunk({"content": "½"}), chunk({}, new=1),
               chunk({}, finish="stop", usage={"total_tokens": 3}), DONE, chunk({"content": "late"})),
        True,
    ),
    "an empty list of choices": (events(chunk({"content": "a"}), {**chunk({}), "choices": []},
                                        chunk({}, finish="stop"), DONE), True),
    "a stream without [DONE]": (events(chunk({"content": "a"}), chunk({}, finish="stop")), True),
    "an error in a stream, with a status": (
        events(chunk({"content": "a"}), {"error": {"message": "busy", "code": "q"}, "status_code": 429}), True),
    "an error in a stream, a text": (events(chunk({"content": "a"}), {"error": "busy"}), True),
    "an event named error": (events({"error": {"message": "gone"}}, names=("error",)), True),
}  # fmt: skip


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("name", ODD)
def test_odd_answers_are_taken_alike(name: str, is_async: bool) -> None:
    answer, streamed = ODD[name]
    with scripted(answer) as (url, _):

        def scenario(side: Side) -> Any:
            found = side.create(side.client(max_retries=0), stream=streamed)
            return side.chunks(found) if streamed else found

        theirs, mine = both(scenario, url, is_async=is_async)
    assert str(mine) == str(theirs)  # NaN is not equal to itself


GOOD = http(b'{"id":"a","choices":[],"created":1,"model":"m","object":"chat.completion","system_fingerprint":"f"}')


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_the_same_bytes_and_headers_are_sent(is_async: bool) -> None:
    """The body byte for byte, the address, and every header that a user gave."""
    sent = []
    for sdk in (real, ours):
        with scripted(GOOD) as (url, asked):
            side = Side(sdk, url, is_async=is_async)

            def scenario(side: Side) -> Any:
                client = side.client(
                    default_headers={"X-One": "1", "User-Agent": "me"}, default_query={"q": ["a", "b"]}
                )
                headers = {"x-one": "2", "X-Three": "3"}
                extra = {"extra_headers": headers, "extra_query": {"b": True}, "extra_body": {"new": [1]}}
                messages = [{"role": "user", "content": "½"}]
                side.create(client, temperature=0.5, messages=messages, cf_ray="ray", x_delay_time=1.5, **extra)
                side.create(client, stream=False, tools=[TOOL], extra_headers={"User-Agent": side.sdk.omit})
                side.do(client.models.list(format="huggingface"))
                side.do(client.models.retrieve("a b/c"))

            side.seen(scenario)
            found: list[Any] = []
            for one in asked:
                head, _, body = one.partition(b"\r\n\r\n")
                lines = head.decode().split("\r\n")
                named = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines[1:])}
                kept = ("x-one", "x-three", "authorization", "accept", "cf-ray", "x-delay-time", "user-agent")
                found.append([lines[0], {k: v for k, v in named.items() if k in kept}, body])
            sent.append(found)
    theirs, mine = sent
    assert mine[1][1].pop("user-agent", None) is None  # httpx then sends its own
    theirs[1][1].pop("user-agent")
    assert mine == theirs
    assert len(mine) == 4


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_answers_after_a_failure_count_their_retries(is_async: bool) -> None:
    def scenario(side: Side) -> Any:
        response = side.do(side.client().chat.completions.with_raw_response.create(**ASK))
        return [response.retries_taken, response.status_code]

    for sdk in (real, ours):
        with scripted(http(b"{}", status="503 Service Unavailable"), GOOD) as (url, asked):
            assert Side(sdk, url, is_async=is_async).seen(scenario) == [1, 200]
            assert len(asked) == 2


# -- settings from outside ------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_the_environment_is_read_alike(monkeypatch: pytest.MonkeyPatch, is_async: bool) -> None:
    with scripted(GOOD) as (url, asked):
        monkeypatch.setenv("CEREBRAS_API_KEY", KEY)
        monkeypatch.setenv("CEREBRAS_BASE_URL", url)
        monkeypatch.setenv("CEREBRAS_CUSTOM_HEADERS", "X-Env: 1\nX-Both: env\nno colon")

        def scenario(side: Side) -> Any:
            client = side.client(api_key=None, base_url=None, default_headers={"X-Both": "given"})
            side.create(client)
            return [
                client.api_key,
                str(client.base_url),
                client.max_retries,
                client.timeout.read,
                client.timeout.connect,
            ]

        theirs, mine = both(scenario, "", is_async=is_async)
        assert mine == theirs
        for one in asked:
            assert b"x-env: 1\r\n" in one.lower()
            assert b"x-both: given\r\n" in one.lower()
            assert f"Bearer {KEY}".encode() in one


@pytest.mark.parametrize("name", ["Cerebras", "AsyncCerebras"])
def test_no_key_is_an_error_of_the_constructor(name: str) -> None:
    with pytest.raises(real.CerebrasError) as theirs:
        getattr(real, name)()
    with pytest.raises(ours.CerebrasError) as mine:
        getattr(ours, name)()
    assert str(mine.value).startswith(str(theirs.value))
    assert ".config/cerebras/api_key" in str(mine.value)  # ours says where else it looked
    with pytest.raises(TypeError):
        getattr(real, name)(api_key=KEY, max_retries=None)
    with pytest.raises(TypeError):
        getattr(ours, name)(api_key=KEY, max_retries=None)


def test_the_classes_have_the_same_names_and_ancestors() -> None:
    kinds = [name for name in real.__all__ if name.endswith("Error")]
    for name in kinds:
        theirs, mine = ([one.__name__ for one in getattr(sdk, name).__mro__] for sdk in (real, ours))
        assert mine == theirs
    missing = {name for name in real.__all__ if not hasattr(ours, name)}
    assert missing == {
        "DEFAULT_CONNECTION_LIMITS", "DefaultAioHttpClient", "DefaultAsyncHttpxClient", "DefaultHttpxClient",
        "NoneType", "ProxiesTypes", "RequestOptions", "Transport", "__title__", "__version__", "file_from_path",
    }  # fmt: skip


def test_the_types_have_the_same_names_and_fields() -> None:
    from importlib import import_module

    for place in ("chat.chat_completion", "completion", "model_list_response", "model_retrieve_response"):
        theirs, mine = (import_module(f"{root}.types.{place}") for root in ("cerebras.cloud.sdk", "cbatch.sdk"))
        for name in theirs.__all__:
            one, other = getattr(theirs, name), getattr(mine, name)
            if isinstance(one, type):
                fields, others = one.model_fields, other.model_fields  # type: ignore[attr-defined]
                assert [(k, f.is_required()) for k, f in others.items()] == [
                    (k, f.is_required()) for k, f in fields.items()
                ]
