"""Conversations on a client that answers what a test tells it to."""

from __future__ import annotations

import asyncio
import fcntl
import json
import random
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cbatch.conversations import (
    AnswerNotSaved,
    Attachment,
    ConversationClient,
    Conversations,
    Message,
    MessageTooLong,
    SessionBusy,
    SessionEnded,
    SessionError,
    StoreError,
    UnknownModel,
    UnknownSession,
)
from cbatch.conversations import store as store_module
from cbatch.conversations.lock import exclusive
from cbatch.errors import APIConnectionError, AuthenticationError, BadRequestError, NotFoundError
from cbatch.library import Answer, Delta, Metrics, ModelCard
from cbatch.schema import TimeInfo, Usage

START = datetime(2026, 11, 20, 18, 0, tzinfo=UTC)
MODEL, SMALL = "gpt-oss-120b", "small"
METRICS = dict.fromkeys(Metrics.__slots__) | {"latency_s": 0.5, "attempts": 1, "server_tokens_per_s": 1_000.0}


def too_long(length: int, limit: int) -> BadRequestError:
    return BadRequestError(
        f"Please reduce the length of the messages or completion. Current length is {length} while limit is {limit}",
        status=400,
        code="context_length_exceeded",
    )


class FakeClient:
    """Answers "re: <message>"; `script` is what it does first: errors to raise, texts to answer."""

    def __init__(self) -> None:
        self.model = MODEL
        self.script: list[Exception | str] = []
        self.sent: list[dict[str, Any]] = []
        self.context: int | None = None  # in bytes / 4: a longer prompt is refused
        self.list_error: Exception | None = None
        self.hold: asyncio.Event | None = None  # waited for in the middle of a stream
        self.streams: list[FakeStream] = []

    async def aclose(self) -> None: ...

    async def models(self) -> list[ModelCard]:
        if self.list_error is not None:
            raise self.list_error
        unknown = {"created": None, "owned_by": None, "input_usd_per_mtok": None, "output_usd_per_mtok": None}
        return [ModelCard(id=name, context_tokens=None, max_output_tokens=None, **unknown) for name in (MODEL, SMALL)]

    async def chat(self, messages: list[dict[str, Any]], *, model: str, **params: Any) -> Answer:
        self.sent.append({"messages": messages, "model": model, **params})
        await asyncio.sleep(0)
        step = self.script.pop(0) if self.script else f"re: {messages[-1]['content']}"
        if isinstance(step, Exception):
            raise step
        tokens = len(json.dumps(messages)) // 4
        if self.context is not None and tokens > self.context:
            raise too_long(tokens, self.context)
        return Answer(
            text=step,
            reasoning="thought",
            tool_calls=None,
            finish_reason="stop",
            usage=Usage(prompt_tokens=tokens, completion_tokens=10, total_tokens=tokens + 10, reasoning_tokens=4),
            time_info=TimeInfo(),
            metrics=Metrics(**METRICS),  # type: ignore[arg-type]
            cost_usd=0.25 if model == MODEL else None,
            model=model,
            served_model=model,
            request_id=f"r{len(self.sent)}",
            system_fingerprint=None,
        )

    def stream(self, messages: list[dict[str, Any]], *, model: str, **params: Any) -> FakeStream:
        self.streams.append(FakeStream(self, messages, model, params))
        return self.streams[-1]


class FakeStream:
    def __init__(self, client: FakeClient, messages: list[dict[str, Any]], model: str, params: dict[str, Any]) -> None:
        self._client, self._call = client, (messages, model, params)
        self._answer: Answer | None = None
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[Delta]:
        messages, model, params = self._call
        self._answer = await self._client.chat(messages, model=model, **params)
        text = self._answer.text or ""
        yield Delta(text="", reasoning="thought", tool_calls=[], raw={})
        yield Delta(text=text[:4], reasoning="", tool_calls=[], raw={})
        if self._client.hold is not None:
            await self._client.hold.wait()
        if text == "broken":
            raise APIConnectionError("the connection broke")
        yield Delta(text=text[4:], reasoning="", tool_calls=[], raw={})

    async def answer(self) -> Answer:
        assert self._answer is not None
        return self._answer

    async def aclose(self) -> None:
        self.closed = True


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


@pytest.fixture
def api() -> FakeClient:
    return FakeClient()


Open = Callable[..., Conversations]


@pytest.fixture
async def start(api: FakeClient, tmp_path: Path) -> AsyncIterator[Open]:
    opened: list[Conversations] = []
    clock = Clock()

    def open_(**settings: Any) -> Conversations:
        settings = {"path": tmp_path / "d" / "s.sqlite", "now": clock, "rng": random.Random(1)} | settings
        opened.append(Conversations(api, **settings))  # type: ignore[arg-type]
        return opened[-1]

    yield open_
    for talks in opened:
        await talks.aclose()


@pytest.fixture
def talks(start: Open) -> Conversations:
    return start()


def said(request: dict[str, Any]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in request["messages"]]


async def test_it_is_what_the_interface_promises(talks: Conversations) -> None:
    assert isinstance(talks, ConversationClient)
    with pytest.raises(TypeError):
        ConversationClient()  # type: ignore[abstract]


async def test_a_conversation_goes_on_after_a_restart(start: Open, api: FakeClient) -> None:
    session = await start().start_new_session("ada", MODEL, system="be brief")
    first = await start().send_message(session, "one")
    second = await start().send_message(session, "two")
    assert said(api.sent[-1]) == [
        ("system", "be brief"),
        ("user", "one"),
        ("assistant", "re: one"),
        ("user", "two"),
    ]
    assert (first.text, str(second), second.reasoning) == ("re: one", "re: two", "thought")
    history = await start().get_chat_history(session)
    assert [message.id for message in history] == [
        f"{session}/{n}/{role}" for n in (1, 2) for role in ("user", "assistant")
    ]
    assert history[-1] == second
    assert all(a.created_at <= b.created_at for a, b in pairwise(history))
    assert [m.content for m in await start().get_chat_history(session, 1)] == ["re: two"]


async def test_a_stream_gives_the_pieces_and_then_what_is_saved(talks: Conversations, api: FakeClient) -> None:
    session = await talks.start_new_session()
    stream = talks.stream_message(session, "hello", temperature=0)
    assert not api.sent
    pieces = [delta.text async for delta in stream]
    message = await stream.message()
    assert "".join(pieces) == message.content == "re: hello"
    assert message == (await talks.get_chat_history(session))[-1]
    assert (message.tokens_per_s, message.tokens_per_s_source) == (1_000.0, "server")
    assert api.sent[0]["temperature"] == 0
    await stream.aclose()


async def test_a_stopped_answer_is_kept_and_told_later(talks: Conversations, api: FakeClient) -> None:
    session = await talks.start_new_session()
    async with talks.stream_message(session, "hello") as stream:
        async for delta in stream:
            if delta.text:
                break
    message = (await talks.get_chat_history(session))[-1]
    assert (message.state, message.content, message.reasoning) == ("stopped", "re: ", "thought")
    assert api.streams[0].closed  # the request is cancelled, not only forgotten
    with pytest.raises(RuntimeError, match="closed before its end"):
        await stream.message()
    await talks.send_message(session, "go on")
    assert said(api.sent[-1])[:2] == [("user", "hello"), ("assistant", "re: ")]


async def test_a_cancelled_answer_is_kept(talks: Conversations, api: FakeClient) -> None:
    session = await talks.start_new_session()
    api.hold = asyncio.Event()
    came = asyncio.Event()

    async def watch() -> None:
        async for delta in talks.stream_message(session, "hello"):
            if delta.text:
                came.set()

    task = asyncio.create_task(watch())
    await came.wait()
    assert (await talks.get_chat_history(session))[0].state == "pending"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await talks.get_chat_history(session))[-1].content == "re: "


async def test_a_failed_message_is_kept_with_its_error_and_not_told(talks: Conversations, api: FakeClient) -> None:
    session = await talks.start_new_session()
    api.script = [APIConnectionError("no way there"), "broken"]
    with pytest.raises(APIConnectionError):
        await talks.send_message(session, "one")
    with pytest.raises(APIConnectionError):
        await talks.stream_message(session, "two").message()
    await talks.send_message(session, "three")
    assert said(api.sent[-1]) == [("user", "three")]
    history = await talks.get_chat_history(session)
    assert [(m.role, m.state, m.content) for m in history] == [
        ("user", "failed", "one"),
        ("user", "failed", "two"),
        ("assistant", "failed", "brok"),
        ("user", "answered", "three"),
        ("assistant", "answered", "re: three"),
    ]
    assert history[0].error == "no way there"


async def test_a_retry_replaces_the_answer_once_it_is_there(talks: Conversations, api: FakeClient) -> None:
    session = await talks.start_new_session()
    with pytest.raises(SessionError, match="no message to ask again"):
        await talks.retry_message(session).message()
    await talks.send_message(session, "zero")
    await talks.send_message(session, "one", attachments=[Attachment(name="a", media_type="text/plain", data=b"A")])
    api.script = [APIConnectionError("not now"), "better"]
    with pytest.raises(APIConnectionError):
        await talks.retry_message(session).message()
    assert (await talks.get_chat_history(session))[3].content.startswith("re: ")
    assert (await talks.retry_message(session).message()).content == "better"
    assert len(api.sent[-1]["messages"]) == 3  # zero, its answer, and the message once
    assert api.sent[-1]["messages"][-1]["content"][-1]["text"] == "[attached: a]\nA"
    assert [m.content for m in await talks.get_chat_history(session)] == ["zero", "re: zero", "one", "better"]
    exported = json.loads(await talks.export_chat_history(session))
    assert [m["replaced"] for m in exported["messages"]] == [False, False, True, True, True, False, False]


async def test_messages_of_two_terminals_take_turns(start: Open, api: FakeClient) -> None:
    """Each waits for the other's answer, and is told of it: pairs are never torn."""
    ours, theirs = start(), start()
    session = await ours.start_new_session()
    async with asyncio.TaskGroup() as group:
        for number in range(10):
            for talks, who in ((ours, "a"), (theirs, "b")):
                group.create_task(talks.send_message(session, f"{who}{number}"))
    history = await ours.get_chat_history(session)
    assert len(history) == 40
    for question, answer in zip(history[::2], history[1::2], strict=True):
        assert answer.content == f"re: {question.content}"
    sent = sorted(len(request["messages"]) for request in api.sent)
    assert sent == list(range(1, 41, 2))
    for who in "ab":
        mine = [m.content for m in history[::2] if m.content.startswith(who)]
        assert mine == [f"{who}{number}" for number in range(10)]


async def test_a_lock_file_that_was_replaced_meanwhile_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last holder removes it: who had opened it before holds a lock that nobody else can see."""
    path, flock = tmp_path / "x.lock", fcntl.flock
    taken: list[int] = []

    def late(fd: int, how: int) -> None:
        if not taken:
            path.unlink()
        taken.append(fd)
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    async with exclusive(path, 1, "x"):
        assert path.exists()
    assert len(taken) == 2


async def test_waiting_for_another_terminal_has_an_end(start: Open, api: FakeClient) -> None:
    talks = start(wait_s=0.02)
    session = await talks.start_new_session()
    async with exclusive(talks.store.lock_path(session), 1, session):
        with pytest.raises(SessionBusy, match=session):
            await talks.send_message(session, "hello")
    assert await talks.get_chat_history(session) == []
    assert await talks.send_message(session, "hello")
    assert not talks.store.lock_path(session).exists()


@pytest.mark.parametrize("message", ["", "  \n\t"])
async def test_an_empty_message_is_refused(talks: Conversations, api: FakeClient, message: str) -> None:
    session = await talks.start_new_session()
    with pytest.raises(SessionError, match="the message is empty"):
        await talks.send_message(session, message)
    assert await talks.get_chat_history(session) == []


async def test_wrong_ids_and_ended_sessions_are_refused(talks: Conversations, api: FakeClient) -> None:
    session = await talks.start_new_session()
    await talks.send_message(session, "hello")
    for bad in ("", "../../etc/passwd", session + "x"):
        for call in (talks.get_chat_history, talks.get_usage_metrics, talks.export_chat_history, talks.end_session):
            with pytest.raises(UnknownSession):
                await call(bad)
        with pytest.raises(UnknownSession):
            await talks.send_message(bad, "hello")
    await talks.end_session(session)
    await talks.end_session(session)
    for change in (talks.send_message, talks.set_system, talks.switch_model):
        with pytest.raises(SessionEnded):
            await change(session, SMALL)
    assert len(await talks.get_chat_history(session)) == 2
    assert len(api.sent) == 1


async def test_a_model_that_is_not_served_is_refused_with_the_nearest(talks: Conversations) -> None:
    with pytest.raises(UnknownModel, match="gpt-oss-120") as found:
        await talks.start_new_session("ada", "gpt-oss-120")
    assert f"did you mean {MODEL}?" in str(found.value.hint)
    session = await talks.start_new_session()
    with pytest.raises(UnknownModel):
        await talks.switch_model(session, "other")
    assert (await talks.get_session(session)).model == MODEL


async def test_a_server_without_a_list_is_believed_and_a_refused_key_is_not(start: Open, api: FakeClient) -> None:
    api.list_error = NotFoundError("no such path", status=404)
    session = await start().start_new_session("ada", "anything")
    assert (await start().send_message(session, "hello")).model == "anything"
    api.list_error = AuthenticationError("wrong key", status=401)
    with pytest.raises(AuthenticationError):
        await start().start_new_session()


async def test_another_model_and_system_prompt_hold_from_the_next_message(
    talks: Conversations, api: FakeClient
) -> None:
    session = await talks.start_new_session()
    await talks.send_message(session, "one")
    await talks.switch_model(session, SMALL)
    await talks.set_system(session, "be long")
    await talks.send_message(session, "two")
    assert (api.sent[1]["model"], said(api.sent[1])[0]) == (SMALL, ("system", "be long"))
    await talks.set_system(session, None)
    await talks.send_message(session, "three")
    assert said(api.sent[2])[0] == ("user", "one")
    used = await talks.get_usage_metrics(session)
    assert used.models == {MODEL: 1, SMALL: 2}
    assert (used.calls, used.measured, used.unpriced, used.cost_usd) == (3, 3, 2, 0.25)
    assert (used.completion_tokens, used.reasoning_tokens) == (30, 12)
    assert used.tokens_per_s == pytest.approx(1_000)


async def test_history_that_outgrows_the_context_never_is_an_error(talks: Conversations, api: FakeClient) -> None:
    """The server's limit is far below what is known of the model: it is learned once."""
    session = await talks.start_new_session("ada", MODEL, system="be brief")
    api.context = 4_000
    refused = 0
    for number in range(12):
        before = len(api.sent)
        answer = await talks.send_message(session, f"{number} " + "word " * 1_000)
        refused += len(api.sent) - before - 1
        assert said(api.sent[-1])[0] == ("system", "be brief")
        assert len(api.sent[-1]["messages"]) % 2 == 0  # whole turns
        assert answer.left_out == number - (len(api.sent[-1]["messages"]) - 2) // 2
    assert refused == 1
    assert answer.left_out > 0
    assert len(await talks.get_chat_history(session)) == 24


async def test_a_server_that_does_not_say_its_limit_is_asked_a_few_times(talks: Conversations, api: FakeClient) -> None:
    session = await talks.start_new_session()
    for _ in range(3):
        await talks.send_message(session, "word " * 5_000)
    refusal = BadRequestError("no", status=400, code="context_length_exceeded")
    api.script = [refusal, refusal, refusal]
    answer = await talks.send_message(session, "short")
    assert (len(api.sent[-1]["messages"]), answer.left_out) == (1, 3)


async def test_a_server_that_refuses_without_reason_gets_the_message_alone(
    talks: Conversations, api: FakeClient
) -> None:
    session = await talks.start_new_session()
    await talks.send_message(session, "one")
    api.script = [too_long(5, 999_999)] * 3
    assert (await talks.send_message(session, "two")).left_out == 1
    assert [len(request["messages"]) for request in api.sent] == [1, 3, 3, 3, 1]


async def test_a_message_over_the_context_is_an_error_and_leaves_no_trace(
    talks: Conversations, api: FakeClient
) -> None:
    session = await talks.start_new_session()
    await talks.send_message(session, "hello")
    before = await talks.get_chat_history(session)
    api.context = 100
    for send in (talks.send_message, lambda s, m: talks.stream_message(s, m).message()):
        with pytest.raises(MessageTooLong, match="the message is too long for gpt-oss-120b: about") as found:
            await send(session, "word " * 1_000)
        assert "in parts" in str(found.value.hint)
    assert await talks.get_chat_history(session) == before
    api.context = None
    assert await talks.send_message(session, "hello")


async def test_answers_have_an_explicit_limit_that_may_be_chosen(talks: Conversations, api: FakeClient) -> None:
    session = await talks.start_new_session()
    await talks.send_message(session, "hello")
    await talks.send_message(session, "hello", max_completion_tokens=5)
    await talks.send_message(session, "hello", max_tokens=6)
    limits = [{k: v for k, v in request.items() if k.startswith("max")} for request in api.sent]
    assert limits == [{"max_completion_tokens": 16_384}, {"max_completion_tokens": 5}, {"max_tokens": 6}]


async def test_reasoning_is_kept_and_goes_back_only_where_asked(start: Open, api: FakeClient) -> None:
    session = await start().start_new_session()
    await start().send_message(session, "one")
    await start().send_message(session, "two")
    await start(send_reasoning=True).send_message(session, "three")
    assert "reasoning" not in str(api.sent[1]["messages"])
    assert api.sent[2]["messages"][1] == {"role": "assistant", "content": "re: one", "reasoning": "thought"}


async def test_an_answer_without_text_is_not_told(talks: Conversations, api: FakeClient) -> None:
    session = await talks.start_new_session()
    api.script = [""]
    message = await talks.send_message(session, "one")
    assert (message.state, message.content) == ("answered", "")
    await talks.send_message(session, "two")
    assert said(api.sent[-1]) == [("user", "two")]


async def test_a_paid_answer_that_cannot_be_written_is_handed_over_and_written_later(
    talks: Conversations, api: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await talks.start_new_session()
    finish = talks.store.finish

    def full(*_: Any) -> None:
        raise StoreError("s.sqlite: the disk is full", hint="free some space")

    monkeypatch.setattr(talks.store, "finish", full)
    with pytest.raises(AnswerNotSaved, match=r"the answer \(10 tokens, \$0\.25") as found:
        await talks.send_message(session, "one")
    assert isinstance(found.value.answer, Message)
    assert found.value.answer.content == "re: one"
    assert [m.content for m in await talks.get_chat_history(session)] == ["one"]
    monkeypatch.setattr(talks.store, "finish", finish)
    assert [m.content for m in await talks.get_chat_history(session)] == ["one", "re: one"]


async def test_a_full_disk_is_found_before_anything_is_sent(
    talks: Conversations, api: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await talks.start_new_session()
    await talks.send_message(session, "one")
    monkeypatch.setattr(store_module, "ROOM_BYTES", 1 << 62)
    with pytest.raises(StoreError, match="the disk is full; nothing was sent"):
        await talks.send_message(session, "two")
    assert len(api.sent) == 1
    assert len(await talks.get_chat_history(session)) == 2


async def test_a_summary_is_paid_for_once_per_message(talks: Conversations, api: FakeClient) -> None:
    session = await talks.start_new_session()
    with pytest.raises(SessionError, match="nothing was answered yet"):
        await talks.summarize_conversation(session)
    await talks.send_message(session, "one")
    api.script = ["short"]
    assert await talks.summarize_conversation(session) == "short"
    assert await talks.summarize_conversation(session) == "short"
    assert len(api.sent) == 2
    assert "User: one\n\nAssistant: re: one" in api.sent[1]["messages"][1]["content"]
    await talks.send_message(session, "two")
    assert said(api.sent[2])[-1] == ("user", "two")  # the summary is no part of the conversation
    assert "re: two" in await talks.summarize_conversation(session)
    used = await talks.get_usage_metrics(session)
    assert (used.calls, used.answered, used.summaries, used.cost_usd) == (4, 2, 2, 1.0)


async def test_a_long_conversation_is_summarized_part_by_part(talks: Conversations, api: FakeClient) -> None:
    session = await talks.start_new_session()
    for number in range(8):
        await talks.send_message(session, f"{number} " + "word " * 2_000)
    api.context = 8_000
    sent = len(api.sent)
    api.script = [too_long(60_000, 8_000), *(f"so far {n}" for n in range(60))]
    text = await talks.summarize_conversation(session)
    parts = api.sent[sent + 1 :]
    assert len(parts) > 3
    assert text == f"so far {len(parts) - 1}"
    assert "so far 0" in parts[1]["messages"][1]["content"]


async def test_exports_have_everything(talks: Conversations, api: FakeClient) -> None:
    session = await talks.start_new_session("ada", MODEL, system="be brief")
    image = Attachment(name="a.png", media_type="image/png", data=b"\xff\x00")
    await talks.send_message(session, "Grüße", attachments=[image])
    api.script = [APIConnectionError("gone")]
    with pytest.raises(APIConnectionError):
        await talks.send_message(session, "again")
    found = json.loads(await talks.export_chat_history(session, "json"))
    assert found["session"]["system"] == "be brief"
    assert [m["content"] for m in found["messages"]] == ["Grüße", found["messages"][1]["content"], "again"]
    assert found["messages"][0]["attachments"] == [{"name": "a.png", "media_type": "image/png", "base64": "/wA="}]
    assert found["messages"][1]["usage"]["completion_tokens"] == 10
    assert found["messages"][2]["error"] == "gone"
    assert (found["metrics"]["calls"], found["summary"]) == (2, None)
    text = await talks.export_chat_history(session, "text")
    for part in (session, "be brief", "Grüße", "[attached: a.png, image/png, 2 bytes]", "[not answered: gone]"):
        assert part in text
    with pytest.raises(SessionError, match="'xml'"):
        await talks.export_chat_history(session, "xml")  # type: ignore[arg-type]
    with pytest.raises(SessionError, match="limit is 0"):
        await talks.get_chat_history(session, 0)


async def test_sessions_are_listed_by_use_and_by_user(talks: Conversations) -> None:
    ada = await talks.start_new_session("ada")
    bob = await talks.start_new_session("bob")
    await talks.send_message(ada, "What\nis  " + "long " * 30)
    assert [session.id for session in await talks.list_sessions()] == [ada, bob]
    (found,) = await talks.list_sessions("ada")
    assert (found.title[:12], len(found.title), found.turns) == ("What is long", 60, 1)


async def test_reading_needs_no_client(api: FakeClient, start: Open, tmp_path: Path) -> None:
    session = await start().start_new_session()
    async with Conversations(path=tmp_path / "d" / "s.sqlite", base_url="https://nowhere.invalid") as talks:
        assert (await talks.get_session(session)).turns == 0
        assert await talks.export_chat_history(session)
