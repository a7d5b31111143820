"""Saved conversations with real processes: two terminals, `kill -9`, a full disk, and `cbatch sessions`."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cbatch.conversations import AnswerNotSaved, Conversations, Message, MessageTooLong, StoreError
from cbatch.library import Client

from .conftest import Forking, Process, Result, Sim, belongs, wait_for

GOLDEN = Path(__file__).resolve().parents[1] / "golden"

# What a program does with the sessions of its user: the code below runs before `cbatch sessions --json`.
_PROGRAM = """
import asyncio, os
from cbatch.library import Client
from cbatch.conversations import Conversations
async def program():
    async with Client(base_url={url!r}) as api, Conversations(api) as talks:
{code}
asyncio.run(program())
"""


class Home:
    """A user's home folder, and what runs in it."""

    def __init__(self, path: Path, forking: Forking, sim: Sim) -> None:
        self.path, self._forking, self.sim = path, forking, sim
        path.mkdir()
        self.sessions = path / "home" / ".local" / "share" / "cbatch" / "sessions"

    def start(self, *args: str, first: str = "") -> Process:
        return self._forking.start(args, key="key", cwd=self.path, first=first)

    def cbatch(self, *args: str) -> Result:
        return self.start("sessions", *args).wait()

    def program(self, code: str, sim: Sim | None = None) -> Process:
        lines = "\n".join(" " * 8 + line for line in code.strip().split("\n"))
        return self.start("sessions", "--json", first=_PROGRAM.format(url=(sim or self.sim).url, code=lines))

    def made(self, code: str = "") -> str:
        """The id of a session that `code` was run with, as `sid`."""
        done = self.program(f"sid = await talks.start_new_session('ada', system='be brief')\n{code}").wait()
        assert done.code == 0, done.err
        session_id: str = done.summary["sessions"][0]["id"]
        return session_id

    def messages(self, session_id: str) -> list[dict[str, Any]]:
        shown = self.cbatch("show", session_id, "--json")
        assert shown.code == 0, shown.err
        found: list[dict[str, Any]] = shown.summary["messages"]
        return found


@pytest.fixture
def home(tmp_path: Path, forking: Forking, sim: Sim) -> Home:
    return Home(tmp_path / "user", forking, sim)


def test_sessions_survive_their_program_and_are_read_by_commands(home: Home, tmp_path: Path) -> None:
    listed = home.cbatch()
    assert (listed.code, listed.out) == (0, "")
    assert "cbatch chat" in listed.err
    session = home.made("await talks.send_message(sid, 'Why is the sky blue?')")
    for way in ((), ("list",), ("list", "--user", "ada")):
        assert f"{session}  " in home.cbatch(*way).out
        assert "Why is the sky blue?" in home.cbatch(*way).out
    assert home.cbatch("list", "--user", "bob", "--json").summary == {"sessions": []}
    question, answer = home.messages(session)
    assert (question["content"], question["role"]) == ("Why is the sky blue?", "user")
    assert belongs({"text": answer["content"]}, question["content"])
    assert answer["usage"]["total_tokens"] > 0
    assert home.cbatch("--json", "show", session).summary["messages"] == [question, answer]
    shown = home.cbatch("show", session).out
    assert "be brief" in shown
    assert answer["content"] in shown
    used = home.cbatch("metrics", session, "--json").summary
    assert (used["calls"], used["answered"], used["completion_tokens"]) == (1, 1, answer["usage"]["completion_tokens"])
    assert used["cost_usd"] == pytest.approx(answer["cost_usd"])
    assert "tokens/s" in home.cbatch("metrics", session).out
    for form in ("json", "text"):
        file = tmp_path / f"talk.{form}"
        done = home.cbatch("export", session, "--format", form, "--output", str(file))
        assert (done.code, done.out) == (0, "")
        assert file.stat().st_mode & 0o777 == 0o600
        to_stdout = home.cbatch("export", session, "--format", form).out
        if form == "json":
            exported = json.loads(to_stdout)
            assert exported.pop("exported_at")
            assert exported == {k: v for k, v in json.loads(file.read_text()).items() if k != "exported_at"}
        else:
            assert to_stdout == file.read_text()
            assert answer["content"] in to_stdout
    ended = home.cbatch("end", session, "--json").summary
    assert ended["session"] == session
    assert home.cbatch("end", session, "--json").summary == ended
    assert "(ended)" in home.cbatch().out
    assert {file.stat().st_mode & 0o777 for file in home.sessions.iterdir()} == {0o600}
    assert home.sessions.stat().st_mode & 0o777 == 0o700


def test_a_summary_is_asked_for_and_kept(home: Home) -> None:
    session = home.made("await talks.send_message(sid, 'Why is the sky blue?')")
    before = home.sim.requests
    to = ("--base-url", home.sim.url)
    first = home.cbatch("summarize", session, "--json", *to)
    assert first.code == 0, first.err
    assert first.summary["session"] == session
    assert home.cbatch("summarize", session).out.rstrip("\n") == first.summary["summary"]  # kept: no key, no request
    assert home.sim.requests == before + 1
    assert home.cbatch("metrics", session, "--json").summary["summaries"] == 1


@pytest.mark.parametrize("command", ["", "list", "show", "export", "metrics", "summarize", "end"])
def test_help_texts_are_golden(home: Home, command: str, request: pytest.FixtureRequest) -> None:
    """A change of a help text is a decision: `pytest --update-golden` records it."""
    done = home.cbatch(*command.split(), "--help")
    assert done.code == 0
    assert "Example: cbatch sessions" in done.out
    golden = GOLDEN / f"help-sessions{'-' * bool(command)}{command}.txt"
    if request.config.getoption("--update-golden"):
        golden.write_text(done.out, "utf-8")
    assert done.out == golden.read_text("utf-8")


@pytest.mark.parametrize("args", [("show",), ("export",), ("metrics",), ("summarize",), ("end",)], ids=lambda a: a[0])
def test_an_unknown_session_is_an_error_with_the_nearest_id(home: Home, args: tuple[str, ...]) -> None:
    session = home.made()
    done = home.cbatch(*args, session[:-1])
    assert (done.code, done.out) == (2, "")
    assert f"no session '{session[:-1]}' in {home.sessions}" in done.err
    assert f"did you mean {session}?" in done.err
    assert json.loads(home.cbatch(*args, "nothing", "--json").out)["exit_code"] == 2


def test_wrong_words_are_explained(home: Home, tmp_path: Path) -> None:
    session = home.made()
    assert "Did you mean 'show'?" in home.cbatch("shwo", session).err
    assert f"cbatch sessions show {session}" in home.cbatch(session).err
    assert home.cbatch("export", session, "--format", "xml").code == 2
    nowhere = home.cbatch("export", session, "--output", str(tmp_path / "no" / "folder.json"))
    assert (nowhere.code, "cannot be written" in nowhere.err) == (2, True)
    empty = home.cbatch("summarize", session, "--base-url", home.sim.url)
    assert (empty.code, "nothing was answered yet" in empty.err) == (2, True)


def test_a_damaged_file_is_named_by_every_command_and_left_alone(home: Home) -> None:
    session = home.made("await talks.send_message(sid, 'hello')")
    file = home.sessions / "sessions.sqlite"
    rubbish = os.urandom(20_000)
    file.write_bytes(rubbish)
    for args in ((), ("show", session), ("export", session), ("metrics", session), ("end", session)):
        done = home.cbatch(*args)
        assert (done.code, done.out) == (1, "")
        assert f"{file}: damaged" in done.err
        assert "move the file away" in done.err
    assert file.read_bytes() == rubbish


def test_two_terminals_on_one_session_take_turns(home: Home) -> None:
    """Every message is answered in the order in which it was asked, with all before it in its history."""
    session = home.made()
    code = "for n in range(8): await talks.stream_message({!r}, '{} %d' % n).message()"
    terminals = [home.program(code.format(session, who)) for who in ("ada", "bob", "cyd")]
    for terminal in terminals:
        done = terminal.wait()
        assert done.code == 0, done.err
    messages = home.messages(session)
    assert len(messages) == 48
    prompt_tokens = [message["usage"]["prompt_tokens"] for message in messages[1::2]]
    assert prompt_tokens == sorted(set(prompt_tokens))  # each was told of more than the one before
    for question, answer in zip(messages[::2], messages[1::2], strict=True):
        assert belongs({"text": answer["content"]}, question["content"])
    for who in ("ada", "bob", "cyd"):
        mine = [m["content"] for m in messages[::2] if m["content"].startswith(who)]
        assert mine == [f"{who} {n}" for n in range(8)]
    assert not list(home.sessions.glob("*.lock"))


def test_terminals_that_are_opened_at_once_make_one_file(home: Home) -> None:
    """SQLite does not wait where two switch the log on at the same moment: one of them would be an error."""
    code = """
while not os.path.exists('go'): pass
await talks.send_message(await talks.start_new_session(), 'hello')
"""
    terminals = [home.program(code) for _ in range(6)]
    (home.path / "go").touch()
    for terminal in terminals:
        done = terminal.wait()
        assert done.code == 0, done.err
    assert len(home.cbatch("--json").summary["sessions"]) == 6


def test_a_kill_in_mid_answer_costs_that_answer_only(home: Home, sims: Callable[..., Sim]) -> None:
    slow = sims("--speed", "0.02", "--answer-tokens", "400")
    session = home.made("await talks.send_message(sid, 'first')")
    code = f"""
async for delta in talks.stream_message({session!r}, 'second'):
    if delta.text: open('began', 'w').close()
"""
    program = home.program(code, slow)
    wait_for(lambda: (home.path / "began").exists() or program.ended is not None, "the answer to begin")
    assert home.messages(session)[-1]["state"] == "pending"
    program.kill()
    last = home.messages(session)[-1]
    assert (last["content"], last["state"]) == ("second", "unknown")
    assert "may have been paid for" in home.cbatch("show", session).out
    again = home.program(f"await talks.send_message({session!r}, 'third')").wait()
    assert again.code == 0, again.err
    states = [(m["content"][:6], m["state"]) for m in home.messages(session) if m["role"] == "user"]
    assert states == [("first", "answered"), ("second", "unknown"), ("third", "answered")]
    used = home.cbatch("metrics", session, "--json").summary
    assert (used["calls"], used["answered"], used["unknown"]) == (3, 2, 1)


def test_a_file_size_limit_in_mid_session_leaves_it_as_it_was(home: Home) -> None:
    """What a quota does: writing fails although the disk has room."""
    session = home.made("await talks.send_message(sid, 'first')")
    code = f"""
import resource
from cbatch.conversations import StoreError
await talks.get_session({session!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    await talks.send_message({session!r}, 'x' * 50_000)
except StoreError as exc:
    open('said', 'a').write(str(exc))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
await talks.send_message({session!r}, 'second')
"""
    before = home.sim.requests
    done = home.program(code).wait()
    assert done.code == 0, done.err
    assert "what was saved before is unchanged" in (home.path / "said").read_text()
    assert home.sim.requests == before + 1
    assert [m["content"] for m in home.messages(session)][::2] == ["first", "second"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB; skips where none can be mounted."""
    point = tmp_path / "disk"
    point.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run(
            [mount, "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(point)], check=False, capture_output=True
        ).returncode
    ):
        pytest.skip("cannot mount a tmpfs")
    yield point
    subprocess.run(["umount", "--lazy", str(point)], check=True)


def fill(disk: Path) -> Path:
    """A file that takes all that is free."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            with suppress(OSError):
                while True:
                    file.write(b"\0" * size)
    return filler


async def _open(sim: Sim, path: Path) -> AsyncIterator[Conversations]:
    async with Client(base_url=sim.url, api_key="key") as api, Conversations(api, path=path) as talks:
        yield talks


async def test_a_full_disk_is_an_error_before_anything_is_sent(sim: Sim, small_disk: Path) -> None:
    path = small_disk / "sessions" / "sessions.sqlite"
    async for talks in _open(sim, path):
        session = await talks.start_new_session()
        await talks.send_message(session, "first")
        filler, before = fill(small_disk), sim.requests
        with pytest.raises(StoreError, match="the disk is full; nothing was sent") as found:
            await talks.send_message(session, "second")
        assert str(path) in str(found.value)
        assert found.value.hint == "free some space, then try again"
        assert sim.requests == before
        with pytest.raises(StoreError, match="the disk is full"):
            await talks.start_new_session(system="long " * 100_000)
        assert len(await talks.get_chat_history(session)) == 2
        filler.unlink()
        await talks.send_message(session, "second")
        assert [m.content for m in await talks.get_chat_history(session)][::2] == ["first", "second"]


async def test_sessions_can_be_read_from_a_full_disk(sim: Sim, small_disk: Path, tmp_path: Path) -> None:
    path = small_disk / "sessions" / "sessions.sqlite"
    async for talks in _open(sim, path):
        session = await talks.start_new_session()
        await talks.send_message(session, "first")
    fill(small_disk)
    async for talks in _open(sim, path):
        assert len(await talks.get_chat_history(session)) == 2
        assert "first" in await talks.export_chat_history(session, "text")


async def test_an_answer_for_which_the_disk_became_full_is_not_lost(sims: Callable[..., Sim], small_disk: Path) -> None:
    sim = sims("--speed", "0.5", "--answer-tokens", "3000")
    async for talks in _open(sim, small_disk / "sessions" / "sessions.sqlite"):
        session = await talks.start_new_session()
        stream = talks.stream_message(session, "tell me all")
        filler: Path | None = None
        async for delta in stream:
            if delta.text:
                filler = fill(small_disk)
                break
        assert filler is not None
        with pytest.raises(AnswerNotSaved, match="the disk is full") as found:
            await stream.message()
        answer: Message = found.value.answer
        assert answer.usage.completion_tokens >= 3_000  # type: ignore[operator]
        assert (await talks.get_chat_history(session))[-1].role == "user"
        filler.unlink()
        assert (await talks.get_chat_history(session))[-1] == answer


async def test_a_long_conversation_never_meets_the_servers_limit(sims: Callable[..., Sim], tmp_path: Path) -> None:
    """On a trial account, whose context is half of what the catalog says: learned by one refused request."""
    much = "1000000000"
    sim = sims("--speed", "inf", "--tier", "free-trial", "--rpm", much, "--tpm", much, "--tph", much, "--tpd", much)
    async for talks in _open(sim, tmp_path / "s.sqlite"):
        session = await talks.start_new_session(system="be brief")
        for number in range(12):
            message = await talks.send_message(session, f"{number} " + "some words here " * 2_500)
            assert message.finish_reason == "stop"
        assert message.left_out > 3
        assert sim.stats()["status"].get("400", 0) == 1
        with pytest.raises(MessageTooLong):
            await talks.send_message(session, "some words here " * 40_000)
        assert len(await talks.get_chat_history(session)) == 24


async def test_reasoning_is_sent_back_as_the_api_accepts_it(sim: Sim, tmp_path: Path) -> None:
    async with (
        Client(base_url=sim.url, api_key="key") as api,
        Conversations(api, path=tmp_path / "s.sqlite", send_reasoning=True) as talks,
    ):
        session = await talks.start_new_session()
        first = await talks.send_message(session, "first", reasoning_effort="high")
        assert first.reasoning
        await talks.send_message(session, "second")
        with_it = (await talks.get_chat_history(session))[-1].usage.prompt_tokens
    async for silent in _open(sim, tmp_path / "s.sqlite"):
        without = (await silent.retry_message(session).message()).usage.prompt_tokens
    assert with_it is not None
    assert without is not None
    assert with_it > without


async def test_many_sessions_at_once_share_one_file(sim: Sim, tmp_path: Path) -> None:
    async for talks in _open(sim, tmp_path / "s.sqlite"):
        sessions = [await talks.start_new_session(f"user {n}") for n in range(30)]
        async with asyncio.TaskGroup() as group:
            for session in sessions:
                for n in range(3):
                    group.create_task(talks.send_message(session, f"{session} {n}"))
        for session in sessions:
            history = await talks.get_chat_history(session)
            assert [m.content for m in history[::2]] == [f"{session} {n}" for n in range(3)]
