"""The `openai` SDK in front of the gateway: what a program sees that only changes its base_url."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tests.integration.codex import calls, received, script, text, turns
from tests.integration.conftest import Gateway, Sim, wait_for

openai = pytest.importorskip("openai", reason="openai is not installed (pip install --group dev)")

MODEL = "gpt-oss-120b"
PROMPT = "Do the work of this test."
WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "description": "Weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
GRAMMAR: dict[str, Any] = {
    "type": "custom",
    "name": "query",
    "description": "Run a query",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: /SELECT .+/"},
}
BERN = {"name": "weather", "arguments": {"city": "Bern"}}
ROME = {"name": "weather", "arguments": {"city": "Rome"}}


@pytest.fixture
def sim(sims: Callable[..., Sim]) -> Sim:
    """A simulator that answers at once and keeps what it was asked."""
    return sims("--speed", "inf", "--record")


@pytest.fixture
def clients() -> Iterator[Callable[..., Any]]:
    """`clients(gateway)` is a client that repeats nothing by itself."""
    made = []

    def make(gateway: Gateway, **options: Any) -> Any:
        made.append(openai.OpenAI(**{"api_key": "any", "base_url": f"{gateway.url}/v1", "max_retries": 0, **options}))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def client(clients: Callable[..., Any], gateways: Callable[..., Gateway], sim: Sim) -> Any:
    """A client of a gateway in front of the simulator."""
    return clients(gateways(sim))


def shown(value: Any) -> Any:
    """Output items without their ids, which are of one answer, and without what the SDK's streams add."""
    if isinstance(value, list):
        return [shown(one) for one in value]
    if isinstance(value, BaseModel):
        value = value.model_dump()
    if isinstance(value, dict):
        own = ("id", "call_id", "parsed", "parsed_arguments")
        return {key: shown(inner) for key, inner in value.items() if key not in own}
    return value


# -- responses ----------------------------------------------------------------------------------------


def test_an_answer_in_one_piece(client: Any, sim: Sim) -> None:
    script(sim, *turns(PROMPT, text("Hello.", reasoning="A greeting.", completion_tokens=40)))
    answer = client.responses.create(
        model=MODEL, input=PROMPT, instructions="Be brief.", metadata={"a": "b"}, reasoning={"effort": "low"}
    )
    assert answer.output_text == "Hello."
    assert [item.type for item in answer.output] == ["reasoning", "message"]
    assert answer.output[0].summary[0].text == "A greeting."
    assert (answer.status, answer.error, answer.incomplete_details) == ("completed", None, None)
    assert answer.instructions == "Be brief."
    assert answer.metadata == {"a": "b"}
    usage = answer.usage
    assert usage.output_tokens == 40
    assert usage.total_tokens == usage.input_tokens + 40
    (body,) = received(sim)
    assert [(message["role"], message["content"]) for message in body["messages"]] == [
        ("system", "Be brief."),
        ("user", PROMPT),
    ]
    assert body["reasoning_effort"] == "low"
    assert "metadata" not in body


def test_a_model_of_openai_is_served_by_another(client: Any, sim: Sim) -> None:
    script(sim, *turns(PROMPT, text("Hello.")))
    assert client.responses.create(model="gpt-5.1", input=PROMPT).output_text == "Hello."
    assert received(sim)[0]["model"] == MODEL


def test_the_events_of_a_stream_are_in_order_and_add_up(client: Any, sim: Sim) -> None:
    said = "Hello to you, in a few words. " * 20
    script(sim, *turns(PROMPT, text(said, reasoning="A greeting is due.")))
    with client.responses.create(model=MODEL, input=PROMPT, stream=True) as stream:
        events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [events[0].type, events[1].type, events[-1].type] == [
        "response.created",
        "response.in_progress",
        "response.completed",
    ]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 1
    assert "".join(deltas) == said == events[-1].response.output_text
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert [item.model_dump() for item in done] == [item.model_dump() for item in events[-1].response.output]


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"interleave": True, "fragments": 4},
        {"fragments": 0},
        {"both": True},
        {"omit": ["usage"]},
        {"omit": ["index"]},
        {"omit": ["id"]},
        {"omit": ["id", "index"]},
    ],
    ids=["usual", "interleaved", "whole", "both", "no-usage", "no-index", "no-id", "neither"],
)
def test_a_stream_and_an_answer_in_one_piece_are_the_same(client: Any, sim: Sim, shape: dict[str, Any]) -> None:
    """The SDK's own state machine takes the stream, and its result is the other answer, however it was cut."""
    (rule,) = turns(PROMPT, calls(BERN, ROME, content="I look.", reasoning="Two cities."))
    script(sim, rule | shape)
    asked: dict[str, Any] = {"model": MODEL, "input": PROMPT, "tools": [WEATHER]}
    with client.responses.stream(**asked) as stream:
        types = [event.type for event in stream]
        streamed = stream.get_final_response()
    whole = client.responses.create(**asked)
    assert shown(streamed.output) == shown(whole.output)
    assert [item.type for item in whole.output] == ["reasoning", "message", "function_call", "function_call"]
    assert [json.loads(item.arguments) for item in whole.output[2:]] == [{"city": "Bern"}, {"city": "Rome"}]
    assert len({item.call_id for item in streamed.output[2:]}) == 2
    assert types.count("response.function_call_arguments.done") == 2


class Weather(BaseModel):
    city: str
    degrees: int


@pytest.mark.parametrize("streamed", [False, True])
def test_an_answer_is_parsed_into_a_model(client: Any, sim: Sim, streamed: bool) -> None:
    script(sim, *turns(PROMPT, text('{"city": "Bern", "degrees": 21}')))
    if streamed:
        with client.responses.stream(model=MODEL, input=PROMPT, text_format=Weather) as stream:
            stream.until_done()
            answer = stream.get_final_response()
    else:
        answer = client.responses.parse(model=MODEL, input=PROMPT, text_format=Weather)
    assert answer.output_parsed == Weather(city="Bern", degrees=21)
    assert received(sim)[0]["response_format"]["json_schema"]["schema"]["required"] == ["city", "degrees"]


@pytest.mark.parametrize("streamed", [False, True])
def test_tools_there_and_back(client: Any, sim: Sim, streamed: bool) -> None:
    """The output items of an answer are the input of the next request, as they are."""
    script(sim, *turns(PROMPT, calls(BERN, ROME, reasoning="Two cities."), text("Both are sunny.")))
    history: list[Any] = [{"role": "user", "content": PROMPT}]
    answers = []
    for _ in range(2):
        if streamed:
            with client.responses.stream(model=MODEL, input=history, tools=[WEATHER], store=False) as stream:
                answers.append(stream.get_final_response())
        else:
            answers.append(client.responses.create(model=MODEL, input=history, tools=[WEATHER], store=False))
        history += answers[-1].output
        history += [
            {"type": "function_call_output", "call_id": item.call_id, "output": f"sunny in {item.arguments}"}
            for item in answers[-1].output
            if item.type == "function_call"
        ]
    assert answers[-1].output_text == "Both are sunny."
    messages = received(sim)[-1]["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool"]
    assert [call["id"] for call in messages[1]["tool_calls"]] == [message["tool_call_id"] for message in messages[2:]]
    assert "Bern" in messages[2]["content"]
    assert "Rome" in messages[3]["content"]


def test_a_custom_tool_gets_its_text_and_not_json(client: Any, sim: Sim) -> None:
    call = {"name": "query", "arguments": {"input": 'SELECT "a"\nFROM b'}}
    script(sim, *turns(PROMPT, calls(call), text("Three rows.")))
    answer = client.responses.create(model=MODEL, input=PROMPT, tools=[GRAMMAR])
    (item,) = answer.output
    assert (item.type, item.name, item.input) == ("custom_tool_call", "query", 'SELECT "a"\nFROM b')
    result = {"type": "custom_tool_call_output", "call_id": item.call_id, "output": "1, 2, 3"}
    answer = client.responses.create(model=MODEL, input=[result], previous_response_id=answer.id, tools=[GRAMMAR])
    assert answer.output_text == "Three rows."
    assert received(sim)[-1]["messages"][-1]["content"] == "1, 2, 3"


@pytest.mark.parametrize("refused", [(), ("--refuse", "named_tool_choice"), ("--refuse", "required_tool_choice")])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "weather"}])
def test_a_choice_of_a_tool_is_relaxed_where_the_service_does_not_take_it(
    clients: Callable[..., Any],
    gateways: Callable[..., Gateway],
    sims: Callable[..., Sim],
    refused: tuple[str, ...],
    choice: Any,
) -> None:
    sim = sims("--speed", "inf", "--record", *refused)
    script(sim, *turns(PROMPT, calls(BERN)))
    client = clients(gateways(sim))
    answer = client.responses.create(model=MODEL, input=PROMPT, tools=[WEATHER], tool_choice=choice)
    assert [item.name for item in answer.output] == ["weather"]


def test_responses_are_chained_looked_up_and_forgotten(client: Any, sim: Sim) -> None:
    script(sim, *turns(PROMPT, text("One."), text("Two."), text("Three.")))
    first = client.responses.create(model=MODEL, input=PROMPT)
    with client.responses.stream(
        model=MODEL, input="And then?", instructions="Count.", previous_response_id=first.id
    ) as stream:
        second = stream.get_final_response()
    third = client.responses.create(model=MODEL, input="And then?", previous_response_id=second.id)
    assert (third.output_text, third.previous_response_id) == ("Three.", second.id)
    # Instructions are of one request and not inherited, as OpenAI's documentation has it.
    assert [(message["role"], message["content"]) for message in received(sim)[-1]["messages"]] == [
        ("user", PROMPT),
        ("assistant", "One."),
        ("user", "And then?"),
        ("assistant", "Two."),
        ("user", "And then?"),
    ]
    assert client.responses.retrieve(second.id).output_text == "Two."
    client.responses.delete(second.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(second.id)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=MODEL, input="And then?", previous_response_id=third.id)
    assert caught.value.code == "previous_response_not_found"
    assert caught.value.param == "previous_response_id"


def test_what_is_not_stored_cannot_be_continued(client: Any, sim: Sim) -> None:
    script(sim, *turns(PROMPT, text("One.")))
    first = client.responses.create(model=MODEL, input=PROMPT, store=False)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=MODEL, input="And then?", previous_response_id=first.id)
    assert caught.value.code == "previous_response_not_found"
    assert sim.requests == 1


@pytest.mark.parametrize("streamed", [False, True])
def test_an_answer_that_was_cut_is_incomplete(client: Any, sim: Sim, streamed: bool) -> None:
    script(sim, *turns(PROMPT, text("A long answer. " * 200)))
    asked = {"model": MODEL, "input": PROMPT, "max_output_tokens": 20}
    if streamed:
        with client.responses.create(**asked, stream=True) as stream:
            last = list(stream)[-1]
        assert last.type == "response.incomplete"
        answer = last.response
    else:
        answer = client.responses.create(**asked)
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.output_text.startswith("A long answer.")


@pytest.mark.parametrize("streamed", [False, True])
def test_a_call_that_was_cut_is_none(client: Any, sim: Sim, streamed: bool) -> None:
    """Half of its arguments may be another command."""
    cut = {"name": "weather", "arguments": '{"city": "Ber'}
    script(sim, *turns(PROMPT, calls(BERN, cut, content="I look.", finish_reason="length")))
    asked = {"model": MODEL, "input": PROMPT, "tools": [WEATHER]}
    if streamed:
        with client.responses.create(**asked, stream=True) as stream:
            events = list(stream)
        answer = events[-1].response
        done = [event.item for event in events if event.type == "response.output_item.done"]
        assert [item.type for item in done] == [item.type for item in answer.output]
    else:
        answer = client.responses.create(**asked)
    assert (answer.status, answer.output_text) == ("incomplete", "I look.")
    assert '{"city": "Ber' not in [item.arguments for item in answer.output if item.type == "function_call"]


def test_work_in_the_background_is_refused_and_not_done_at_once(client: Any, sim: Sim) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=MODEL, input=PROMPT, background=True)
    assert caught.value.param == "background"
    assert sim.requests == 0


def test_streams_at_the_same_time_do_not_mix(gateways: Callable[..., Gateway], sim: Sim) -> None:
    count = 20
    rules = [
        rule | {"chunk_delay_s": 0.005}
        for n in range(count)
        for rule in turns(f"Number {n}!", text(f"This is {n}, " * 5 + "and no other.", reasoning=f"It is {n}."))
    ]
    script(sim, *rules)

    async def ask(client: Any, n: int) -> str:
        async with client.responses.stream(model=MODEL, input=f"Number {n}!") as stream:
            return str((await stream.get_final_response()).output_text)

    async def all_of_them() -> list[str]:
        url = f"{gateways(sim).url}/v1"
        async with (
            openai.AsyncOpenAI(api_key="any", base_url=url, max_retries=0) as client,
            asyncio.TaskGroup() as group,
        ):
            tasks = [group.create_task(ask(client, n)) for n in range(count)]
        return [task.result() for task in tasks]

    assert asyncio.run(all_of_them()) == [f"This is {n}, " * 5 + "and no other." for n in range(count)]


# -- chat completions and models ----------------------------------------------------------------------


def test_chat_completions_pass_through(client: Any, sim: Sim) -> None:
    script(sim, *turns(PROMPT, calls(BERN, content="I look.", reasoning="A city.")))
    asked: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": PROMPT}],
        "tools": [{"type": "function", "function": {k: v for k, v in WEATHER.items() if k != "type"}}],
    }
    whole = client.chat.completions.create(**asked)
    message = whole.choices[0].message
    assert (message.content, message.reasoning) == ("I look.", "A city.")
    assert json.loads(message.tool_calls[0].function.arguments) == {"city": "Bern"}
    assert whole.usage.total_tokens > 0
    with client.chat.completions.stream(**asked, stream_options={"include_usage": True}) as stream:
        streamed = stream.get_final_completion()
    assert streamed.choices[0].message.content == "I look."
    assert streamed.choices[0].message.tool_calls[0].function.name == "weather"
    assert streamed.usage.completion_tokens == whole.usage.completion_tokens
    assert [body["messages"] for body in received(sim)] == [asked["messages"]] * 2


def test_the_models_are_those_of_the_service(client: Any, sim: Sim) -> None:
    listed = list(client.models.list())
    assert MODEL in [model.id for model in listed]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


# -- what goes wrong ----------------------------------------------------------------------------------


def create(client: Any) -> Any:
    return client.responses.create(model=MODEL, input=PROMPT)


def stream(client: Any) -> Any:
    with client.responses.create(model=MODEL, input=PROMPT, stream=True) as stream:
        return list(stream)


def chat(client: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": PROMPT}])


def chat_stream(client: Any) -> Any:
    messages = [{"role": "user", "content": PROMPT}]
    with client.chat.completions.create(model=MODEL, messages=messages, stream=True) as stream:
        return list(stream)


WAYS = [create, stream, chat, chat_stream]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "BadRequestError"),
        (402, "APIStatusError"),
        (403, "PermissionDeniedError"),
        (404, "NotFoundError"),
        (422, "UnprocessableEntityError"),
        (429, "RateLimitError"),
        (500, "InternalServerError"),
        (503, "InternalServerError"),
    ],
)
def test_an_error_of_the_service_is_the_sdks_own_with_its_words(
    clients: Callable[..., Any], gateways: Callable[..., Gateway], sim: Sim, tmp_path: Path, status: int, kind: str
) -> None:
    """The same class, message and code by every way; the flat body of the service is wrapped for it."""
    (tmp_path / "gateway.yaml").write_text("retry: {attempts: 1, max_wait_s: 1}\n")
    gateway = gateways(sim, "--config", str(tmp_path / "gateway.yaml"))
    error = {"message": f"Said by the service, {status}.", "type": "some_error", "param": "field", "code": "some_code"}
    script(sim, {"status": status, "error": error, "headers": {"retry-after": "1"} if status == 429 else {}})
    for way in WAYS:
        with pytest.raises(getattr(openai, kind)) as caught:
            way(clients(gateway))
        assert caught.value.status_code == status
        assert f"Said by the service, {status}." in caught.value.message
        assert (caught.value.code, caught.value.type, caught.value.param) == ("some_code", "some_error", "field")
        if status == 429:
            assert int(caught.value.response.headers["retry-after"]) in (1, 2)


def test_a_wrong_key_of_the_gateway_is_an_authentication_error(
    clients: Callable[..., Any], gateways: Callable[..., Gateway], sim: Sim
) -> None:
    gateway = gateways(sim, key="wrong-key-of-the-gateway")
    for way in WAYS:
        with pytest.raises(openai.AuthenticationError) as caught:
            way(clients(gateway))
        assert "Wrong API Key" in caught.value.message
    assert "wrong-key-of-the-gateway" not in gateway.stop().err


def test_a_client_needs_the_key_that_the_gateway_asks_for(
    clients: Callable[..., Any], gateways: Callable[..., Gateway], sim: Sim
) -> None:
    """And the service gets the gateway's key, never the client's."""
    gateway = gateways(sim, "--client-key", "key-of-the-clients", key="key-of-the-gateway")
    for way in WAYS:
        with pytest.raises(openai.AuthenticationError):
            way(clients(gateway, api_key="another"))
        way(clients(gateway, api_key="key-of-the-clients"))
    assert sim.requests == len(WAYS)
    said = gateway.stop()
    assert "key-of" not in said.err + said.out


def test_a_prompt_that_is_too_long_is_a_bad_request_with_its_code(client: Any, sim: Sim) -> None:
    for streamed in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model=MODEL, input="long " * 200_000, stream=streamed)
        assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize("fault", ["drop_mid", "error_in_stream", "event_error_in_stream"])
def test_a_stream_that_breaks_off_never_looks_whole(client: Any, sim: Sim, fault: str) -> None:
    (rule,) = turns(PROMPT, text("A long answer. " * 100, reasoning="Long. " * 50))
    script(sim, {**rule, "fault": fault})
    last = stream(client)[-1]
    assert last.type == "response.failed"
    assert last.response.status == "failed"
    assert last.response.error.message
    with pytest.raises(openai.APIError):
        chat_stream(client)


@pytest.mark.parametrize("way", ["responses", "chat"])
def test_a_stream_that_is_closed_ends_the_request_upstream(client: Any, sim: Sim, way: str) -> None:
    (rule,) = turns(PROMPT, text("A long answer. " * 100))
    script(sim, {**rule, "chunk_delay_s": 0.3})
    if way == "responses":
        answer = client.responses.create(model=MODEL, input=PROMPT, stream=True)
    else:
        messages = [{"role": "user", "content": PROMPT}]
        answer = client.chat.completions.create(model=MODEL, messages=messages, stream=True)
    next(iter(answer))
    answer.close()
    wait_for(lambda: sim.stats()["disconnected"] == 1, "the simulator to see that the request was ended")
    assert sim.stats()["in_flight"] == 0
    assert sim.requests == 1


def test_an_answer_that_nobody_waits_for_any_more_ends_upstream(
    clients: Callable[..., Any], gateways: Callable[..., Gateway], sim: Sim
) -> None:
    client = clients(gateways(sim), timeout=0.5)
    script(sim, {"when": {"user": PROMPT}, "delay_s": 20})
    with pytest.raises(openai.APITimeoutError):
        create(client)
    wait_for(lambda: sim.stats()["disconnected"] == 1, "the simulator to see that the request was ended")
