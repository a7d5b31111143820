"""`cbatch.Client`, `cbatch.run` and `cbatch.arun` over real sockets: what the README shows, and what goes wrong."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cbatch
from cbatch.errors import (
    APIError,
    APIUnreachableError,
    AuthenticationError,
    BadRequestError,
    InternalServerError,
    JobError,
    KeyProblem,
    NotFoundError,
)
from cbatch.library import Client
from tests.integration.conftest import JobFolder, Sim, questions

KEY = "csk-0123456789abcdef"


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Limits learned here are forgotten with the test."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("CEREBRAS_API_KEY", KEY)


def client(sim: Sim, **settings: Any) -> Client:
    return cbatch.Client(**{"base_url": sim.url, "api_key": KEY, "attempts": 2, **settings})


def is_to(answer: cbatch.Answer | cbatch.Failed, prompt: str) -> bool:
    """Whether it is the simulator's answer to this very prompt."""
    tag = hashlib.sha256(prompt.encode()).hexdigest()[:12]
    return (answer.text or "").startswith(f"[prompt {tag}]")


async def test_one_answer_has_its_text_usage_speed_and_cost(sims: Callable[..., Sim]) -> None:
    async with client(sims()) as api:
        answer = await api.ask("Why?", system="Be brief.", max_completion_tokens=50)
    assert answer.ok
    assert answer.text
    assert answer.model == answer.served_model == "gpt-oss-120b"
    assert answer.usage.completion_tokens is not None
    assert (answer.tokens_per_s, answer.tokens_per_s_source) == (answer.server_tokens_per_s, "server")
    assert answer.cost_usd is not None
    assert answer.cost_usd > 0
    assert answer.metrics.attempts == 1
    assert answer.metrics.latency_s is not None
    assert answer.metrics.ttft_s is None, "it was no stream"
    assert "x-ratelimit-limit-requests-day" in answer.headers


async def test_many_answers_are_in_the_order_of_their_prompts(sim: Sim) -> None:
    prompts = [f"Question {number}" for number in range(300)]
    async with client(sim) as api:
        answers = await api.chat_parallel(iter(prompts), concurrency=50)
    assert [is_to(answer, prompt) for answer, prompt in zip(answers, prompts, strict=True)] == [True] * 300


async def test_a_failure_is_a_value_beside_the_others(sim: Sim) -> None:
    messages: list[Any] = ["a", [{"role": "nobody", "content": "b"}], "c", [{"role": "user", "content": object()}]]
    async with client(sim) as api:
        answers = await api.chat_parallel(messages)
    assert [answer.ok for answer in answers] == [True, False, True, False]
    wrong, unsent = answers[1], answers[3]
    assert isinstance(wrong, cbatch.Failed)
    assert (wrong.index, wrong.kind, wrong.http_status) == (1, "bad_request", 400)
    assert isinstance(wrong.error, BadRequestError)
    assert isinstance(unsent, cbatch.Failed)
    assert "cannot be sent as JSON" in unsent.message


async def test_what_dooms_all_is_raised_and_loses_no_answer(sims: Callable[..., Sim], sim: Sim) -> None:
    refusing = sims("--key", "another")
    async with client(refusing) as api:
        with pytest.raises(AuthenticationError) as caught:
            await api.chat_parallel(["a", "b", "c"])
    assert "CEREBRAS_API_KEY" in (caught.value.hint or "")
    async with client(sim) as api:
        real, asked = api._ask, 0

        async def ask(request: Any, *rest: Any) -> Any:
            nonlocal asked
            asked += 1
            if asked > 4:
                raise AuthenticationError("revoked", status=401)
            return await real(request, *rest)

        api._ask = ask  # type: ignore[method-assign, assignment]
        answers = await api.chat_parallel([str(n) for n in range(20)], concurrency=1)
    assert [answer.ok for answer in answers] == [True] * 4 + [False] * 16
    assert asked == 5, "the rest is not sent"
    assert {answer.kind for answer in answers if isinstance(answer, cbatch.Failed)} == {"auth"}


async def test_a_stream_comes_in_pieces_and_ends_as_an_answer(sims: Callable[..., Sim]) -> None:
    async with client(sims()) as api, api.stream("Tell me", max_completion_tokens=60) as stream:
        pieces = [delta async for delta in stream]
        answer = await stream.answer()
    assert len(pieces) > 2
    assert "".join(piece.text for piece in pieces) == (answer.text or "")
    assert "".join(piece.reasoning for piece in pieces) == answer.reasoning
    assert answer.metrics.ttft_s is not None
    assert answer.usage.completion_tokens == 60


async def test_who_leaves_a_stream_early_cancels_its_request(sims: Callable[..., Sim]) -> None:
    server = sims("--speed", "0.1")
    async with client(server) as api:
        async with api.stream("Tell me", max_completion_tokens=400) as stream:
            async for _ in stream:
                break
        for _ in range(100):
            if not server.stats()["in_flight"]:
                break
            await asyncio.sleep(0.02)
        assert server.stats()["in_flight"] == 0
        assert (await api.ask("And now?", max_completion_tokens=5)).ok


async def test_a_stream_that_breaks_is_not_begun_again(sims: Callable[..., Sim]) -> None:
    """What was shown once must not be shown twice."""
    server = sims("--fault", "error_in_stream=1")
    async with client(server) as api:
        stream = api.stream("Tell me", max_completion_tokens=60)
        deltas = aiter(stream)
        assert (await anext(deltas)).raw
        with pytest.raises(InternalServerError):
            await stream.answer()
    assert server.requests == 1


async def test_what_a_caller_does_wrong_with_a_chunk_is_the_callers_error(sim: Sim) -> None:
    async with client(sim) as api:
        request = api._request([{"role": "user", "content": "x"}], None, {"stream": True})

        def explode(chunk: dict[str, Any]) -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await api._ask(request, explode)


async def test_a_stream_can_be_asked_for_again_after_its_end(sim: Sim) -> None:
    async with client(sim) as api:
        stream = api.stream("x")
        assert [delta async for delta in stream]
        assert [delta async for delta in stream] == []


async def test_nothing_is_lost_where_prompts_are_wrong_or_break_off(sim: Sim) -> None:
    def prompts() -> Any:
        yield "a"
        yield None
        yield "c"
        raise ValueError("the file ended")

    async with client(sim) as api:
        answers = await api.chat_parallel(prompts(), concurrency=2)
        assert [answer.ok for answer in answers] == [True, False, True, False]
        assert isinstance(last := answers[-1], cbatch.Failed)
        assert (last.kind, str(last.error)) == ("source", "the file ended")
        with pytest.raises(JobError, match="read one text"):
            await api.chat_parallel("hello")
        with pytest.raises(JobError, match="concurrency is -1"):
            await api.chat_parallel(["x"], concurrency=-1)


async def test_closing_ends_what_is_under_way(sims: Callable[..., Sim]) -> None:
    api = await client(sims("--speed", "0.05")).__aenter__()
    many = asyncio.ensure_future(api.chat_parallel(["a"] * 20))
    one = asyncio.ensure_future(api.ask("b"))
    await asyncio.sleep(0.1)
    await api.aclose()
    with pytest.raises(APIError, match="the client was closed"):
        await one
    with pytest.raises(APIError, match="the client was closed"):
        await many


async def test_a_stream_of_a_session_that_was_left_does_not_lock_it(sims: Callable[..., Sim], tmp_path: Path) -> None:
    from cbatch.conversations.problems import SessionError

    async with client(sims("--speed", "0.5")) as api, cbatch.Conversations(api, path=tmp_path / "s.sqlite") as talk:
        session = await talk.start_new_session()
        left = talk.stream_message(session, "one")
        async for _ in left:
            break
        answer = await asyncio.wait_for(talk.send_message(session, "two"), 20)
        assert answer.text
        with pytest.raises(SessionError, match="NoneType, not text"):
            await talk.send_message(session, None)  # type: ignore[arg-type]
        states = [message.state for message in await talk.get_chat_history(session)]
        left = talk.stream_message(session, "three")
        async for _ in left:
            break
    assert "stopped" in states
    assert not left.is_idle or left.has_begun


async def test_models_and_ping(sims: Callable[..., Sim]) -> None:
    async with client(sims()) as api:
        models = {model.id: model for model in await api.models()}
        ping = await api.ping()
    assert models["gpt-oss-120b"].context_tokens == 131_072
    assert models["gpt-oss-120b"].input_usd_per_mtok == 0.35
    assert ping.tokens_per_s_source == "server"
    assert ping.ttft_s is not None


async def test_errors_say_what_to_do(sim: Sim, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    async with client(sim) as api:
        with pytest.raises(NotFoundError) as unknown:
            await api.ask("x", model="gpt-oss-120")
    assert "did you mean gpt-oss-120b?" in (unknown.value.hint or "")
    monkeypatch.delenv("CEREBRAS_API_KEY")
    with pytest.raises(KeyProblem, match=r"looked at --api-key-file, CEREBRAS_API_KEY, \.env\.local"):
        async with cbatch.Client(base_url="https://api.example.com"):
            pass
    with pytest.raises(KeyProblem, match="api_key has a space"):
        async with client(sim, api_key="a b"):
            pass
    with pytest.raises(JobError, match="limits"):
        client(sim, limits={"rpm": "many"})
    with pytest.raises(RuntimeError, match="async with"):
        await client(sim).ask("x")


async def test_a_server_that_is_not_there_is_an_error_soon(unused_tcp_port: int) -> None:
    async with cbatch.Client(base_url=f"http://127.0.0.1:{unused_tcp_port}", attempts=2) as api:
        with pytest.raises(APIUnreachableError, match="cannot connect"):
            await api.ask("x")


async def test_limits_are_kept(sims: Callable[..., Sim]) -> None:
    server = sims("--rps", "20", "--retry-after")
    async with client(server, limits={"rpm": 1_200, "concurrency": 50}) as api:
        answers = await api.chat_parallel([str(n) for n in range(30)])
    assert all(answer.ok for answer in answers)
    assert server.requests == 30, "no 429 that arithmetic could foresee"


# -- jobs -------------------------------------------------------------------------------------------


def job_of(sim: Sim, tmp_path: Path) -> dict[str, Any]:
    import orjson

    (tmp_path / "rows.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in questions(12)))
    return {
        "model": "gpt-oss-120b",
        "input": str(tmp_path / "rows.jsonl"),
        "prompt": "{{ question }}",
        "endpoint": sim.url,
        "output": str(tmp_path / "out"),
    }


def test_a_job_from_a_script_resumes_like_the_command(sim: Sim, tmp_path: Path) -> None:
    job = job_of(sim, tmp_path)
    first = cbatch.run(job, limit=5)
    assert (first.state, first.done, first.exit_code) == ("finished", 5, 0)
    second = cbatch.run(job)
    assert (second.done, second.sent) == (12, 7)
    assert cbatch.run(job).sent == 0


def test_a_job_from_a_file(job: JobFolder) -> None:
    assert job.execute("--limit", "3").code == 0  # writes job.yaml, and a run of its own
    summary = cbatch.run(job.path / "job.yaml", output=job.path / "elsewhere", base_url=job.sim.url, limit=3)
    assert (summary.done, Path(summary.folder)) == (3, job.path / "elsewhere")


async def test_a_job_where_a_loop_is_running_already(sim: Sim, tmp_path: Path) -> None:
    """As in a notebook."""
    job = job_of(sim, tmp_path)
    assert cbatch.run(job, limit=5).done == 5
    summary = await cbatch.arun(job, fresh=True)
    assert (summary.done, summary.sent) == (12, 12)


def test_gates_of_a_job_decide_its_exit_code(sim: Sim, tmp_path: Path) -> None:
    summary = cbatch.run(job_of(sim, tmp_path) | {"gates": ["latency_s p50 < 0.000001"]})
    assert (summary.state, summary.exit_code) == ("finished", 5)


def test_a_wrong_job_is_an_error_in_words(sim: Sim, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"inputs: unknown key; did you mean input\?"):
        cbatch.run(job_of(sim, tmp_path) | {"inputs": 1})
    with pytest.raises(JobError, match="not made of plain values"):
        cbatch.run({"model": object()})


def test_two_threads_run_two_jobs(sim: Sim, tmp_path: Path) -> None:
    job = job_of(sim, tmp_path)
    ended: list[int] = []

    def work(name: str) -> None:
        ended.append(cbatch.run(job | {"output": str(tmp_path / name)}).done)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == [12, 12]


def test_the_top_of_the_package_is_cheap_and_complete() -> None:
    assert {"Client", "Cerebras", "AsyncCerebras", "Conversations", "run", "arun"} <= set(dir(cbatch))
    for name in cbatch.__all__:
        assert getattr(cbatch, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = cbatch.nothing
    assert issubclass(AuthenticationError, APIError)
