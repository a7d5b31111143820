"""One budget for all processes of a key: here the processes are real, and some of them die."""

from __future__ import annotations

import fcntl
import math
import os
import signal
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cbatch import account as account_module
from cbatch.account import HEADER, LAYOUT, UNUSED_S, Account, name_of
from cbatch.catalog import Quota
from cbatch.pace import FLOATS, Cost, Pacer, Said, Used
from cbatch.pace.windows import LEARNED, SAID, WINDOWS, Window

PIPELINE = Path(__file__).resolve().parents[2] / "pipeline"
SIZE = 8 * (HEADER + FLOATS)
RPM, RPD, TPM = WINDOWS.index(("requests", "minute")), WINDOWS.index(("requests", "day")), 4
ONE = Cost(0, 0, 0)
EVENING = datetime(2026, 11, 20, 20, 0, tzinfo=UTC)


class Machine:
    """A clock that is set by hand, wall and monotonic, and a boot id."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = folder / "key.budget"
        self.now, self.wall = 5_000.0, EVENING
        self._boot = folder / "boot_id"
        self._boot.write_text("first boot")
        monkeypatch.setattr(account_module, "_BOOT_ID", self._boot)

    def start(self) -> Account:
        return Account(self.path, monotonic=lambda: self.now, wall=lambda: self.wall)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.wall += timedelta(seconds=seconds)

    def reboot(self, away_s: float) -> None:
        self._boot.write_text(self._boot.read_text() + "!")
        self.now = 20.0
        self.wall += timedelta(seconds=away_s)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


# -- the file -------------------------------------------------------------------------------------


def test_the_name_of_a_file_tells_neither_key_nor_model_and_is_anothers_for_each() -> None:
    names = {
        name_of("https://api", "csk-secret", "llama"),
        name_of("https://api", "csk-secret", "qwen"),
        name_of("https://api", "csk-other", "llama"),
        name_of("https://other", "csk-secret", "llama"),
        name_of("https://api", None, "llama"),
    }
    assert len(names) == 5
    assert not any("secret" in name or "llama" in name or "/" in name for name in names)


def test_a_new_file_is_empty_private_and_of_this_layout(machine: Machine) -> None:
    machine.path = machine.path.parent / "new" / "folder" / "key.budget"
    account = machine.start()
    assert not any(account.floats[place] for place in range(1, FLOATS))
    assert machine.path.stat().st_mode & 0o777 == 0o600
    assert machine.path.parent.stat().st_mode & 0o777 == 0o700
    account.close()
    assert len(machine.path.read_bytes()) == SIZE
    assert struct.unpack_from("d", machine.path.read_bytes()) == (LAYOUT,)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"x", id="one byte"),
        pytest.param(b"garbage! " * 10, id="short garbage"),
        pytest.param(b"garbage! " * 1_000, id="long garbage"),
        pytest.param(struct.pack("d", LAYOUT)[:5], id="cut in the middle of the first number"),
        pytest.param(struct.pack("d", LAYOUT + 1) + b"\x40" * (SIZE - 8), id="a layout of another version"),
        pytest.param(struct.pack("d", LAYOUT) + b"\xff" * (SIZE - 8), id="no numbers"),
        pytest.param(struct.pack(f"{SIZE // 8}d", LAYOUT, *[math.inf] * (SIZE // 8 - 1)), id="infinite numbers"),
    ],
)
def test_a_file_that_is_none_is_begun_anew(machine: Machine, content: bytes) -> None:
    machine.path.write_bytes(content)
    account = machine.start()
    assert not any(account.floats[place] for place in range(1, FLOATS))
    pacer = Pacer(Quota(rpm=60), now=machine.now, floats=account.floats)
    assert pacer.ready_at(machine.now, ONE) <= machine.now
    account.close()
    assert len(machine.path.read_bytes()) >= SIZE


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=SIZE + 100))
def test_whatever_is_in_the_file_a_request_goes_within_its_minute(machine: Machine, content: bytes) -> None:
    machine.path.write_bytes(content)
    account = machine.start()
    try:
        pacer = Pacer(Quota(rpm=60, tpm=60_000), now=machine.now, floats=account.floats)
        assert pacer.ready_at(machine.now, Cost(1_000, 10, 10)) <= machine.now + 60
    finally:
        account.close()


def _fifo(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.budget")
    return folder / "pipe.budget"


def _below_a_file(folder: Path) -> Path:
    (folder / "file").write_text("")
    return folder / "file" / "key.budget"


def _a_folder(folder: Path) -> Path:
    (folder / "key.budget").mkdir()
    return folder / "key.budget"


def _read_only(folder: Path) -> Path:
    if not os.geteuid():
        pytest.skip("nothing is read-only for root")
    (folder / "locked").mkdir(mode=0o500)
    return folder / "locked" / "key.budget"


@pytest.mark.parametrize("make", [_fifo, _below_a_file, _a_folder, _read_only])
def test_a_file_that_cannot_be_had_is_an_oserror_with_words(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path)
    with pytest.raises(OSError) as info:  # noqa: PT011 - which one differs
        Account(path)
    assert info.value.strerror


def test_a_file_that_another_version_uses_is_left_alone(machine: Machine) -> None:
    """Two layouts in one file would each read nonsense; whoever comes second shares nothing."""
    other = machine.start()
    other.close()
    content = bytearray(machine.path.read_bytes())
    struct.pack_into("d", content, 0, LAYOUT + 1)
    machine.path.write_bytes(content)
    holder = machine.path.open("r+b")
    with holder:
        fcntl.flock(holder, fcntl.LOCK_SH)
        with pytest.raises(OSError, match="another version"):
            machine.start()
        assert machine.path.read_bytes() == content
    machine.start().close()
    assert struct.unpack_from("d", machine.path.read_bytes()) == (LAYOUT,)


def test_files_that_nobody_used_for_long_are_removed_when_a_new_one_is_made(machine: Machine) -> None:
    old, young, foreign = (machine.path.with_name(name) for name in ("old.budget", "young.budget", "old.txt"))
    for path, age_s in ((old, UNUSED_S + 10), (young, UNUSED_S - 10), (foreign, UNUSED_S * 2)):
        path.write_text("")
        moment = EVENING.timestamp() - age_s
        os.utime(path, (moment, moment))
    machine.start().close()
    assert (old.exists(), young.exists(), foreign.exists()) == (False, True, True)


# -- from one run to the next ---------------------------------------------------------------------


def test_what_was_told_is_forgotten_when_nobody_is_left_and_kept_while_somebody_is(machine: Machine) -> None:
    first = machine.start()
    Pacer(Quota(rpm=5), now=machine.now, floats=first.floats)
    second = machine.start()
    assert Pacer(now=machine.now, floats=second.floats).limits() == {"requests/min": 5}
    first.close()
    third = machine.start()
    assert Pacer(now=machine.now, floats=third.floats).limits() == {"requests/min": 5}
    second.close()
    third.close()
    fourth = machine.start()
    assert Pacer(now=machine.now, floats=fourth.floats).limits() == {}
    fourth.close()


def test_a_day_that_was_used_up_is_not_fresh_again_for_the_next_run(machine: Machine) -> None:
    """The same limit is told by every run; what the one before has spent of it still counts."""
    first = machine.start()
    pacer = Pacer(Quota(rpd=100), now=machine.now, floats=first.floats)
    for _ in range(100):
        pacer.take(machine.now, ONE)
    first.close()
    machine.wait(60)
    second = machine.start()
    pacer = Pacer(Quota(rpd=100), now=machine.now, floats=second.floats)
    assert pacer.ready_at(machine.now, ONE) > machine.now + 300
    second.close()


def test_who_comes_with_a_larger_limit_does_not_refill_what_others_have_spent(machine: Machine) -> None:
    account = machine.start()
    pacer = Pacer(Quota(rpd=100), now=machine.now, floats=account.floats)
    for _ in range(100):
        pacer.take(machine.now, ONE)
    other = Pacer(Quota(rpd=200), now=machine.now, floats=account.floats)
    assert other.ready_at(machine.now, ONE) > machine.now + 300
    account.close()


def _learn(machine: Machine, account: Account, rpm: float) -> None:
    Window(account.floats, RPM)[LEARNED] = rpm
    Window(account.floats, TPM)[SAID] = 60_000.0


@pytest.mark.parametrize(
    ("away_s", "said"),
    [
        pytest.param(3_600, 60_000.0, id="after an hour both are good"),
        pytest.param(86_300, 60_000.0, id="still on the same day"),
        pytest.param(86_500, 0.0, id="after a day what the server said is asked anew"),
        pytest.param(-40_000, 60_000.0, id="the wall clock was set back"),
    ],
)
def test_what_was_learned_stays_and_what_the_server_said_is_good_for_a_day(
    machine: Machine, away_s: float, said: float
) -> None:
    account = machine.start()
    _learn(machine, account, 40.0)
    account.close()
    machine.now += abs(away_s)
    machine.wall += timedelta(seconds=away_s)
    account = machine.start()
    assert Window(account.floats, RPM)[LEARNED] == 40
    assert Window(account.floats, TPM)[SAID] == said
    account.close()


def test_after_a_day_what_was_learned_is_a_guess_that_grows_again(machine: Machine) -> None:
    """A limit that was measured is doubted once a minute; one that is a day old, every second."""

    def grown(away_s: float) -> float:
        account = machine.start()
        pacer = Pacer(now=machine.now, floats=account.floats)
        for _ in range(2):  # the second refusal measures the limit: the doubt comes once a minute from here on
            for _ in range(31):
                pacer.take(machine.now, ONE)
                machine.wait(0.4)  # less than a pause, which would not be measured
            pacer.take(machine.now, ONE)
            pacer.refused(machine.now, machine.now - 0.1, ONE, kind="requests", period="minute", stated_s=5.0)
            machine.wait(5)
            pacer.ready_at(machine.now, ONE)
        account.close()
        machine.wait(away_s)
        account = machine.start()
        pacer = Pacer(now=machine.now, floats=account.floats)
        known = pacer.learned()["requests/min"]
        began = machine.now
        while machine.now < began + 20:
            machine.wait(max(pacer.ready_at(machine.now, ONE) - machine.now, 0))
            pacer.take(machine.now, ONE)
        more: float = pacer.learned().get("requests/min", 0.0) / known
        account.close()
        machine.path.unlink()
        return more

    assert grown(90_000) > 1.5
    assert grown(0.1) < 1.1


# -- another boot ---------------------------------------------------------------------------------


def test_after_a_restart_of_the_machine_minutes_begin_anew_and_days_go_on_by_wall_time(machine: Machine) -> None:
    account = machine.start()
    pacer = Pacer(now=machine.now, floats=account.floats)
    pacer.listen(machine.now, [Said("requests", "day", 86_400, None), Said("requests", "minute", 60, None)])
    for _ in range(86_400):
        pacer.take(machine.now, ONE)
    pacer.hold(machine.now + 1e6)
    account.close()
    machine.reboot(away_s=600)
    account = machine.start()
    pacer = Pacer(now=machine.now, floats=account.floats)
    assert pacer.ready_at(machine.now, ONE) <= machine.now
    day = Window(account.floats, RPD)
    day.refresh(1.0)
    assert day.level(machine.now) == pytest.approx(600, rel=0.01)
    account.close()


@pytest.mark.parametrize("away_s", [60, 1e6, -1e6])
def test_after_a_restart_no_old_moment_stalls_the_run_whatever_the_wall_clock_says(
    machine: Machine, away_s: float
) -> None:
    machine.now = 1e7  # a machine that ran for long, so that its moments are all in the future of the next boot
    account = machine.start()
    pacer = Pacer(Quota(rpm=600, tpm=60_000, rpd=5_000), now=machine.now, floats=account.floats)
    cost = Cost(1_000, 100, 100)
    for _ in range(50):
        machine.wait(max(pacer.ready_at(machine.now, cost) - machine.now, 0))
        pacer.take(machine.now, cost)
        pacer.settle(machine.now, cost, Used(100, 100))
    pacer.take(machine.now, cost)
    pacer.refused(machine.now, machine.now, cost, kind="requests", period="minute", stated_s=500.0)
    account.close()
    machine.reboot(away_s)
    account = machine.start()
    pacer = Pacer(Quota(rpm=600, tpm=60_000, rpd=5_000), now=machine.now, floats=account.floats)
    for _ in range(50):
        wait_s = pacer.ready_at(machine.now, cost) - machine.now
        assert wait_s < 10
        machine.wait(max(wait_s, 0))
        pacer.take(machine.now, cost)
        pacer.settle(machine.now, cost, Used(100, 100))
    account.close()


def test_a_limit_told_two_boots_ago_and_again_now_does_not_stall(machine: Machine) -> None:
    """In between nobody told it, so its numbers were of a clock that is gone."""
    machine.now = 1e7
    for told in (Quota(rpd=1_000, rpm=60), Quota(tpm=1_000)):
        account = machine.start()
        Pacer(told, now=machine.now, floats=account.floats).take(machine.now, Cost(1, 1, 1))
        account.close()
    machine.reboot(60)
    account = machine.start()
    pacer = Pacer(Quota(rpd=1_000, rpm=60), now=machine.now, floats=account.floats)
    assert pacer.ready_at(machine.now, ONE) <= machine.now
    account.close()


def test_a_lesson_soon_after_a_restart_does_not_count_what_was_spent_before_it(machine: Machine) -> None:
    account = machine.start()
    pacer = Pacer(now=machine.now, floats=account.floats)
    for _ in range(100_000):
        pacer.take(machine.now, ONE)
    account.close()
    machine.reboot(60)  # 20 s after it, no bucket was idle for so long as two minutes by this clock
    account = machine.start()
    pacer = Pacer(now=machine.now, floats=account.floats)
    for _ in range(30):
        pacer.take(machine.now, ONE)
        machine.wait(0.1)
    pacer.take(machine.now, ONE)
    pacer.refused(machine.now, machine.now, ONE, kind="requests", period="minute", stated_s=5.0)
    machine.wait(6)
    pacer.ready_at(machine.now, ONE)
    assert pacer.learned()["requests/min"] < 10_000
    account.close()


# -- real processes -------------------------------------------------------------------------------

CHILD = """
    import sys, time
    sys.path.insert(0, {pipeline!r})
    from pathlib import Path
    from cbatch.account import Account
    from cbatch.catalog import Quota
    from cbatch.pace import Cost, Pacer
    account = Account(Path({path!r}))
    one = Cost(0, 0, 0)
    with account:
        pacer = Pacer(Quota(rpm={rpm}), now=time.monotonic(), floats=account.floats)
    def go(seconds):
        sent, end = 0, time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            with account:
                ready = pacer.ready_at(now, one)
                if ready <= now:
                    pacer.take(now, one)
                    sent += 1
            if ready > now:
                time.sleep(min(ready - now, 0.005))
        return sent
    print("ready", flush=True)
    sys.stdin.readline()
"""


class Children:
    """Processes of one budget, which do as they are told on their stdin."""

    def __init__(self, path: Path, rpm: int) -> None:
        self._head = textwrap.dedent(CHILD).format(pipeline=str(PIPELINE), path=str(path), rpm=rpm)
        self._all: list[subprocess.Popen[str]] = []

    def start(self, then: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-S", "-c", self._head + textwrap.dedent(then)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._all.append(child)
        return child

    def go(self) -> None:
        for child in self._all:
            assert self.line(child) == "ready"
        for child in self._all:
            self.tell(child)

    @staticmethod
    def tell(child: subprocess.Popen[str]) -> None:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()

    @staticmethod
    def line(child: subprocess.Popen[str]) -> str:
        assert child.stdout is not None
        return child.stdout.readline().strip()

    def end(self) -> None:
        for child in self._all:
            child.kill()
            child.communicate()


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    family = Children(tmp_path / "key.budget", rpm=6_000)
    yield family
    family.end()


def test_two_processes_together_send_no_more_than_the_limit_and_hardly_less(children: Children) -> None:
    pair = [children.start("print(go(0.5))") for _ in range(2)]
    children.go()
    sent = [int(children.line(child)) for child in pair]
    assert sum(sent) <= 100 * (0.5 + 0.2 + 0.02) + 1  # they need not begin in the same moment
    assert sum(sent) > 30
    assert min(sent) > 0


def test_a_process_that_is_killed_while_it_holds_the_lock_leaves_it_to_the_others(
    children: Children, tmp_path: Path
) -> None:
    child = children.start(
        "account.__enter__(); pacer.take(time.monotonic(), one); print('in', flush=True); time.sleep(60)"
    )
    children.go()
    assert children.line(child) == "in"
    account = Account(tmp_path / "key.budget")
    try:
        pacer = Pacer(Quota(rpm=6_000), now=time.monotonic(), floats=account.floats)
        with account:
            held = not account._locked
        assert held
        child.send_signal(signal.SIGKILL)
        child.wait()
        with account:
            free, ready = account._locked, pacer.ready_at(time.monotonic(), ONE)
        assert free
        assert ready <= time.monotonic() + 0.011
    finally:
        account.close()
    account = Account(tmp_path / "key.budget")
    assert not Pacer(now=time.monotonic(), floats=account.floats).limits(), "and who dies is not here any more"
    account.close()


def test_a_process_that_is_stopped_while_it_holds_the_lock_does_not_stop_the_others(
    children: Children, tmp_path: Path
) -> None:
    """They go on within their pace without it, and wait for it once, not at every request."""
    child = children.start("account.__enter__(); print('in', flush=True); time.sleep(60)")
    children.go()
    assert children.line(child) == "in"
    child.send_signal(signal.SIGSTOP)
    account = Account(tmp_path / "key.budget")
    try:
        began = time.monotonic()
        for _ in range(50):
            with account, account:
                pass
        took_s = time.monotonic() - began
        assert took_s < 0.2
    finally:
        account.close()
        child.send_signal(signal.SIGCONT)


def test_who_died_before_the_file_was_begun_leaves_it_to_the_next(
    children: Children, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one saw the file taken, waited, and finds it empty: it begins it."""
    real, refusals = account_module._try_lock, [False]
    monkeypatch.setattr(account_module, "_try_lock", lambda fd: refusals.pop() if refusals else real(fd))
    account = Account(tmp_path / "key.budget")
    account.close()
    assert struct.unpack_from("d", (tmp_path / "key.budget").read_bytes()) == (LAYOUT,)
