"""The OpenAI Agents SDK in front of the gateway, through both of its model classes; nothing is traced anywhere."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tests.integration.codex import calls, received, script, text, turns
from tests.integration.conftest import Gateway, Sim

agents = pytest.importorskip("agents", reason="openai-agents is not installed (pip install --group dev)")
openai = pytest.importorskip("openai", reason="openai is not installed (pip install --group dev)")

MODEL = "gpt-oss-120b"
PROMPT = "Do the work of this test."

Models = Callable[..., Any]


@pytest.fixture
def sim(sims: Callable[..., Sim]) -> Sim:
    """A simulator that answers at once and keeps what it was asked."""
    return sims("--speed", "inf", "--record")


@pytest.fixture(params=["OpenAIResponsesModel", "OpenAIChatCompletionsModel"])
async def model(
    request: pytest.FixtureRequest, gateways: Callable[..., Gateway], sim: Sim, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Any]:
    """A model of the SDK that asks the gateway."""
    monkeypatch.setenv("OPENAI_AGENTS_DISABLE_TRACING", "1")
    agents.set_tracing_disabled(True)
    url = f"{gateways(sim).url}/v1"
    async with openai.AsyncOpenAI(api_key="any", base_url=url, max_retries=0) as client:
        yield getattr(agents, request.param)(model=MODEL, openai_client=client)


async def run(agent: Any, *, streamed: bool) -> Any:
    """The result of a run, waited for."""
    config = agents.RunConfig(tracing_disabled=True)
    if not streamed:
        return await agents.Runner.run(agent, PROMPT, run_config=config)
    result = agents.Runner.run_streamed(agent, PROMPT, run_config=config)
    async for _ in result.stream_events():
        pass
    return result


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_function_is_called_with_its_arguments_and_its_result_is_used(
    model: Any, sim: Sim, tmp_path: Path, streamed: bool
) -> None:
    @agents.function_tool
    def note(city: str, degrees: int) -> str:
        """Write down how warm it is in a city."""
        with (tmp_path / "notes.txt").open("a") as file:
            file.write(f"{city} {degrees}\n")
        return f"noted {city}"

    script(
        sim,
        *turns(
            PROMPT,
            calls(
                {"name": "note", "arguments": {"city": "Bern", "degrees": 21}},
                {"name": "note", "arguments": {"city": "Rome", "degrees": 30}},
                reasoning="Two cities.",
            ),
            calls({"name": "note", "arguments": {"city": "Oslo", "degrees": 9}}, content="One more."),
            text("Three are noted."),
        ),
    )
    agent = agents.Agent(name="Noter", instructions="Note the weather.", model=model, tools=[note])
    result = await run(agent, streamed=streamed)
    assert result.final_output == "Three are noted."
    assert sorted((tmp_path / "notes.txt").read_text().splitlines()) == ["Bern 21", "Oslo 9", "Rome 30"]
    messages = received(sim)[-1]["messages"]
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "tool", "tool", "assistant", "tool"]
    assert [m["content"] for m in messages if m["role"] == "tool"] == ["noted Bern", "noted Rome", "noted Oslo"]
    usage = result.context_wrapper.usage
    assert usage.requests == 3
    if not streamed or isinstance(model, agents.OpenAIResponsesModel):  # chat streams are not asked for their usage
        assert usage.total_tokens == usage.input_tokens + usage.output_tokens > 0


@pytest.mark.parametrize("streamed", [False, True])
async def test_one_agent_hands_over_to_another(model: Any, sim: Sim, streamed: bool) -> None:
    writer = agents.Agent(name="Writer", instructions="Write the answer.", model=model)
    desk = agents.Agent(name="Desk", instructions="Find who answers.", model=model, handoffs=[writer])
    script(sim, *turns(PROMPT, calls({"name": "transfer_to_writer", "arguments": {}}), text("Written.")))
    result = await run(desk, streamed=streamed)
    assert result.last_agent.name == "Writer"
    assert result.final_output == "Written."
    first, second = received(sim)
    assert first["messages"][0]["content"] == "Find who answers."
    assert second["messages"][0]["content"] == "Write the answer."
    assert second["messages"][-1]["role"] == "tool"
    assert json.loads(second["messages"][-1]["content"]) == {"assistant": "Writer"}


class Weather(BaseModel):
    city: str
    degrees: int


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_output_is_of_its_type(model: Any, sim: Sim, streamed: bool) -> None:
    agent = agents.Agent(name="Reader", instructions="Read the weather.", model=model, output_type=Weather)
    script(sim, *turns(PROMPT, text('{"city": "Bern", "degrees": 21}')))
    result = await run(agent, streamed=streamed)
    assert result.final_output == Weather(city="Bern", degrees=21)
    assert received(sim)[0]["response_format"]["type"] == "json_schema"


async def test_what_the_gateway_stores_is_continued(
    gateways: Callable[..., Gateway], sim: Sim, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the new items are sent to the gateway, and the service gets all of them."""
    monkeypatch.setenv("OPENAI_AGENTS_DISABLE_TRACING", "1")
    agents.set_tracing_disabled(True)

    @agents.function_tool
    def look() -> str:
        """Look out of the window."""
        return "it rains"

    script(sim, *turns(PROMPT, calls({"name": "look", "arguments": {}}), text("It rains.")))
    url = f"{gateways(sim).url}/v1"
    async with openai.AsyncOpenAI(api_key="any", base_url=url, max_retries=0) as client:
        model = agents.OpenAIResponsesModel(model=MODEL, openai_client=client)
        agent = agents.Agent(name="Looker", model=model, tools=[look])
        result = await agents.Runner.run(
            agent, PROMPT, auto_previous_response_id=True, run_config=agents.RunConfig(tracing_disabled=True)
        )
    assert result.final_output == "It rains."
    assert [message["role"] for message in received(sim)[-1]["messages"]] == ["user", "assistant", "tool"]
