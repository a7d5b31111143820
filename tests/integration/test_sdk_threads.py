"""The client without `await`: one loop in the background, from threads, in running loops, over forks, to the end."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cbatch.sdk import APIConnectionError, AsyncCerebras, Cerebras, NotFoundError, RateLimitError
from tests.integration.conftest import PIPELINE, Sim, wait_for
from tests.integration.sdk_sides import ASK, KEY, chunk, events, http, scripted


def client_of(sim: Sim, **options: Any) -> Cerebras:
    return Cerebras(**{"api_key": KEY, "base_url": sim.url, "warm_tcp_connection": False, **options})


def background_threads() -> int:
    return sum(thread.name == "cbatch" for thread in threading.enumerate())


def test_a_hundred_threads_share_one_loop(sim: Sim) -> None:
    """Every thread gets its own answer, and there is one thread more and not a hundred."""
    with client_of(sim) as client, ThreadPoolExecutor(100) as pool:

        def ask(number: int) -> tuple[int, str]:
            answer = client.chat.completions.create(
                messages=[{"role": "user", "content": f"Number {number}?"}], model="gpt-oss-120b"
            )
            return number, answer.choices[0].message.content or ""

        found = dict(pool.map(ask, range(400)))
        assert background_threads() == 1
    assert len(found) == 400
    assert len(set(found.values())) == 400  # the simulator's answers begin with a hash of the prompt
    assert sim.requests == 400


def test_streams_in_threads_do_not_mix(sim: Sim) -> None:
    with client_of(sim) as client, ThreadPoolExecutor(20) as pool:

        def ask(number: int) -> tuple[str, str]:
            messages = [{"role": "user", "content": f"Number {number}?"}]
            parts = client.chat.completions.create(messages=messages, model="gpt-oss-120b", stream=True)
            text = "".join(part.choices[0].delta.content or "" for part in parts)  # type: ignore[index,union-attr]
            whole = client.chat.completions.create(messages=messages, model="gpt-oss-120b")
            return text, whole.choices[0].message.content or ""

        for text, whole in pool.map(ask, range(60)):
            assert text == whole
            assert text


async def test_it_works_inside_a_running_loop(sim: Sim) -> None:
    """In a notebook, say. The loop stands still meanwhile, as with the official SDK."""
    with client_of(sim) as client:
        assert client.chat.completions.create(**ASK).choices
        assert [part async for part in _as_async(client.chat.completions.create(**ASK, stream=True))]


async def _as_async(parts: Any) -> Any:
    for part in parts:
        yield part


def test_both_clients_in_one_process(sim: Sim) -> None:
    async def main() -> None:
        async with AsyncCerebras(api_key=KEY, base_url=sim.url) as client:
            inside = client_of(sim)
            answers = [inside.chat.completions.create(**ASK), await client.chat.completions.create(**ASK)]
            inside.close()
            assert answers[0].choices == answers[1].choices

    asyncio.run(main())


async def test_a_cancelled_request_is_not_waited_for(sims: Callable[..., Sim]) -> None:
    sim = sims("--speed", "inf", "--fault", "slow_first_byte=1", "--slow-s", "30")
    async with AsyncCerebras(api_key=KEY, base_url=sim.url, warm_tcp_connection=False) as client:
        for streamed in (False, True):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await client.chat.completions.create(**ASK, stream=streamed)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_closing_tells_whoever_waits(sims: Callable[..., Sim]) -> None:
    """At once, and without another try."""
    sim = sims("--speed", "inf", "--fault", "slow_first_byte=1", "--slow-s", "30")
    client = client_of(sim)
    with ThreadPoolExecutor(2) as pool:
        create: Any = client.chat.completions.create
        waiting = [pool.submit(create, **ASK, stream=streamed) for streamed in (False, True)]
        wait_for(lambda: sim.requests == 2, "both to be sent")
        client.close()
        for one in waiting:
            assert isinstance(one.exception(timeout=1.0), APIConnectionError)
    assert sim.requests == 2


def test_closing_tells_whoever_waits_for_quota(sims: Callable[..., Sim]) -> None:
    sim = sims("--speed", "inf", "--rpm", "6", "--headers", "extended")
    client = client_of(sim)
    client.chat.completions.create(**ASK)
    with ThreadPoolExecutor(20) as pool:
        create: Any = client.chat.completions.create
        waiting = [pool.submit(create, **ASK, seed=number) for number in range(20)]
        (here,) = client._core._here.values()
        wait_for(lambda: any(len(lane._entering) > 5 for lane in here.lanes.values()), "some to wait")
        client.close()
        ended = [one.exception(timeout=5.0) for one in waiting]
    assert sum(isinstance(one, APIConnectionError) for one in ended) > 5
    assert all(one is None or isinstance(one, APIConnectionError) for one in ended)


def test_a_stream_that_nobody_reads_is_ended() -> None:
    """Its request is cancelled when the stream is forgotten: the server sees the connection end."""
    with scripted(events(chunk({"content": "a"}), end=b""), hold=True) as (url, asked):
        client = Cerebras(api_key=KEY, base_url=url, warm_tcp_connection=False)
        stream = client.chat.completions.create(**ASK, stream=True)
        next(stream)
        feed: Any = stream.response._feed
        del stream
        gc.collect()
        wait_for(feed.task.done, "the request to end")
        client.close()
    assert len(asked) == 1


def test_a_client_that_is_forgotten_closes_its_connections(sim: Sim) -> None:
    client = client_of(sim)
    client.models.list()
    (here,) = client._core._here.values()
    del client
    gc.collect()
    wait_for(lambda: here.wire._transport._closed, "the connections to close")  # type: ignore[attr-defined]


async def test_it_works_over_the_other_transport(sim: Sim, monkeypatch: pytest.MonkeyPatch) -> None:
    """aiohttp's session, which is what goes through a proxy: headers of one request, streams, and closing them."""
    monkeypatch.setenv("CBATCH_TRANSPORT", "session")
    good = http(b'{"id":"a","choices":[],"created":1,"model":"m","object":"chat.completion","system_fingerprint":"f"}')
    with scripted(good) as (url, asked):
        async with AsyncCerebras(api_key=KEY, base_url=url, warm_tcp_connection=False) as client:
            await client.chat.completions.create(**ASK, extra_headers={"X-One": "1"})
            await client.chat.completions.create(**ASK)
    assert [b"X-One: 1\r\n" in one for one in asked] == [True, False]
    async with AsyncCerebras(api_key=KEY, base_url=sim.url, warm_tcp_connection=False) as client:
        stream = await client.chat.completions.create(**ASK, stream=True)
        assert stream.response.headers["content-type"].startswith("text/event-stream")
        assert "".join([part.choices[0].delta.content or "" async for part in stream])
        stream = await client.chat.completions.create(**ASK, stream=True)
        await anext(stream)
        await stream.close()
        with pytest.raises(NotFoundError):
            await client.models.retrieve("nothing")
    await asyncio.sleep(0.05)  # aiohttp closes its sockets in the next turns
    assert asyncio.all_tasks() == {asyncio.current_task()}


# -- processes of their own ----------------------------------------------------------------------------------


def run(script: str, sim: Sim, **options: Any) -> subprocess.CompletedProcess[str]:
    """A script with `client`, every warning an error."""
    begin = f"""
import asyncio, os, signal, sys, threading, time
from cbatch import sdk
from cbatch.sdk import AsyncCerebras, Cerebras
ASK = {ASK!r}
client = Cerebras(api_key={KEY!r}, base_url={sim.url!r}, warm_tcp_connection=False)
"""
    env = {**os.environ, "PYTHONPATH": str(PIPELINE)}
    return subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", begin + script],
        env=env, capture_output=True, text=True, timeout=60, **options,
    )  # fmt: skip


def test_an_interpreter_ends_cleanly_with_everything_left_open(sims: Callable[..., Sim]) -> None:
    sim = sims("--speed", "inf", "--fault", "slow_first_byte=0.5", "--slow-s", "30")
    done = run(
        """
def ask():
    try:
        client.chat.completions.create(**ASK, user=str(time.perf_counter()))
        list(client.chat.completions.create(**ASK, stream=True, user=str(time.perf_counter())))
    except sdk.CerebrasError: pass
for _ in range(20): threading.Thread(target=ask, daemon=True).start()
client.models.list()
other = Cerebras(api_key="k" * 20, base_url=str(client.base_url))
print("ok")
""",
        sim,
    )
    assert (done.stdout, done.returncode) == ("ok\n", 0), done.stderr
    assert "Traceback" not in done.stderr


def test_an_asyncio_run_that_forgets_to_close_leaves_nothing_open(sim: Sim) -> None:
    """A ResourceWarning would be an error."""
    done = run(
        """
async def main():
    other = AsyncCerebras(api_key="k" * 20, base_url=str(client.base_url))
    print(len((await other.models.list()).data) > 0)
    stream = await other.chat.completions.create(**ASK, stream=True)
    print((await anext(stream)).choices[0].delta.role)
asyncio.run(main())
import gc; gc.collect()
""",
        sim,
    )
    assert (done.stdout, done.returncode, done.stderr) == ("True\nassistant\n", 0, "")


def test_a_fork_starts_a_loop_of_its_own(sim: Sim) -> None:
    """Parent and child go on, each with its own connections."""
    done = run(
        """
client.models.list()
stream = client.chat.completions.create(**ASK, stream=True)
next(stream)
pid = os.fork()
if not pid:
    for _ in range(3): client.chat.completions.create(**ASK)
    client.close()
    Cerebras(api_key="k" * 20, base_url=str(client.base_url)).models.list()
    print("child", flush=True)
    sys.exit()
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
client.chat.completions.create(**ASK)
print(len(list(stream)) > 1)
""",
        sim,
    )
    assert (done.stdout, done.returncode, done.stderr) == ("child\n0\nTrue\n", 0, "")


def test_ctrl_c_ends_the_wait_and_the_request(sims: Callable[..., Sim]) -> None:
    sim = sims("--speed", "inf", "--fault", "slow_first_byte=1", "--slow-s", "30")
    done = run(
        """
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may have it ignored
def interrupt():
    while not client._core._here or not next(iter(client._core._here.values())).wire._transport._busy: time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)
for fields in ({}, {"stream": True}):
    threading.Thread(target=interrupt).start()
    try: client.chat.completions.create(**ASK, **fields)
    except KeyboardInterrupt: print("interrupted")
    here = next(iter(client._core._here.values()))
    while here.wire._transport._busy: time.sleep(0.01)
print(len(client.models.list().data) > 0)
""",
        sim,
    )
    assert (done.stdout, done.returncode, done.stderr) == ("interrupted\ninterrupted\nTrue\n", 0, "")


def test_an_import_is_cheap() -> None:
    """Neither aiohttp nor pydantic nor numpy before there is a client."""
    code = "import sys, cbatch.sdk; from cbatch.sdk import Cerebras; print([m for m in " \
        "('aiohttp', 'pydantic', 'jinja2', 'numpy', 'pyarrow', 'uvloop') if m in sys.modules])"  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(PIPELINE)}
    assert subprocess.check_output([sys.executable, "-c", code], env=env, text=True) == "[]\n"


# -- under the account's limits --------------------------------------------------------------------------------


async def test_requests_wait_for_the_accounts_limits(sims: Callable[..., Sim]) -> None:
    """The limit that the server told is kept, so that nothing is refused where the official SDK is refused for good."""
    sim = sims("--speed", "inf", "--rpm", "600", "--clock-rate", "60", "--headers", "extended")
    async with AsyncCerebras(api_key=KEY, base_url=sim.url, warm_tcp_connection=False) as client:
        await client.chat.completions.create(**ASK, max_completion_tokens=50)
        answers = []
        async with asyncio.TaskGroup() as group:
            for number in range(100):
                answers.append(
                    group.create_task(client.chat.completions.create(**ASK, seed=number, max_completion_tokens=50))
                )
    assert all(answer.result().choices for answer in answers)


def test_a_day_that_is_used_up_is_not_waited_for(sims: Callable[..., Sim]) -> None:
    """Hours would look like a hang: the server's own refusal is handed over instead."""
    sim = sims("--speed", "inf", "--rpd", "3", "--headers", "extended")
    with client_of(sim, max_retries=0) as client:
        for _ in range(3):
            client.chat.completions.create(**ASK)
        with pytest.raises(RateLimitError, match="Requests per day"):
            client.chat.completions.create(**ASK)


async def test_whoever_is_cancelled_in_the_queue_gives_his_place_back(sims: Callable[..., Sim]) -> None:
    sim = sims("--speed", "inf", "--rpm", "60", "--clock-rate", "20", "--headers", "extended")
    async with AsyncCerebras(api_key=KEY, base_url=sim.url, warm_tcp_connection=False) as client:
        await client.chat.completions.create(**ASK)
        tasks = [asyncio.create_task(client.chat.completions.create(**ASK, seed=number)) for number in range(200)]
        await asyncio.sleep(0.3)
        for task in tasks[10:]:
            task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) or one.choices for one in found)  # type: ignore[union-attr]
        (here,) = client._core._here.values()
        (lane,) = here.lanes.values()
        assert (len(lane._gate), lane._gate.pacer.in_flight) == (0, 0)


def test_a_refusal_is_waited_out() -> None:
    """A 429 that says how long is waited for, then tried again."""
    refused = http(
        b'{"message":"Requests per minute limit exceeded","code":"request_quota_exceeded"}',
        "retry-after: 0.2", status="429 Too Many Requests",
    )  # fmt: skip
    good = http(b'{"id":"a","choices":[],"created":1,"model":"m","object":"chat.completion","system_fingerprint":"f"}')
    with scripted(refused, good) as (url, asked):
        with Cerebras(api_key=KEY, base_url=url, warm_tcp_connection=False) as client:
            answer = client.chat.completions.with_raw_response.create(**ASK)
            assert answer.retries_taken == 1
            assert answer.elapsed.total_seconds() > 0.15
        assert len(asked) == 2


def test_nothing_listens_is_a_connection_error() -> None:
    with Cerebras(api_key=KEY, base_url="http://127.0.0.1:9", max_retries=0, warm_tcp_connection=False) as client:
        with pytest.raises(APIConnectionError, match=r"^Connection error\.$") as caught:
            client.models.list()
        assert "cannot connect" in str(caught.value.__cause__)
