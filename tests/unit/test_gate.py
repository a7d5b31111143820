"""The waiting room under a virtual clock: who goes when, and that nothing is lost by who leaves early."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbatch.gate import Gate
from cbatch.pace import MARGIN, Pacer
from tests.conftest import VirtualLoop

Virtual = Callable[[Any], Any]


def gate(rpm: int | None = None, tpm: int | None = None) -> Gate:
    return Gate(Pacer(rpm, tpm, now=asyncio.get_running_loop().time()))


def now() -> float:
    """Seconds since the loop started."""
    return asyncio.get_running_loop().time() - 1_000.0


def timers() -> int:
    """Timers of the loop that are still to fire."""
    scheduled: list[asyncio.TimerHandle] = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    return sum(not handle.cancelled() for handle in scheduled)


async def turns(count: int = 5) -> None:
    """Let the loop go round without time passing."""
    for _ in range(count):
        await asyncio.sleep(0)


class Guests:
    """Tasks that enter a gate, and when each was let in."""

    def __init__(self, door: Gate) -> None:
        self.door = door
        self.admitted: list[tuple[str, float]] = []
        self.charged: dict[str, int] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    def come(self, name: str, tokens: int = 0) -> asyncio.Task[None]:
        async def enter() -> None:
            self.charged[name] = await self.door.enter(tokens)
            self.admitted.append((name, now()))

        self.tasks[name] = asyncio.get_running_loop().create_task(enter())
        return self.tasks[name]

    async def wait(self) -> None:
        await asyncio.wait(self.tasks.values())

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.admitted]


def test_who_may_go_at_once_does_not_even_wait_a_turn(virtual: Virtual) -> None:
    async def main() -> None:
        door = gate()
        enter = door.enter(100)
        with pytest.raises(StopIteration):
            enter.send(None)
        assert (len(door), timers()) == (0, 0)

    virtual(main())


def test_requests_are_let_in_at_their_rate(virtual: Virtual) -> None:
    async def main() -> None:
        guests = Guests(gate(rpm=60))
        for number in range(4):
            guests.come(str(number))
        await guests.wait()
        assert guests.names == ["0", "1", "2", "3"]
        assert [t for _, t in guests.admitted] == pytest.approx([0, 1 / MARGIN, 2 / MARGIN, 3 / MARGIN])

    virtual(main())


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param([50_000, 10, 10, 10], id="the large one came first"),
        pytest.param([10, 10, 50_000, 10], id="the large one came in the middle"),
        pytest.param([10, 50_000, 50_000, 10], id="two large ones"),
        pytest.param([60_000, 59_999, 1, 60_000], id="each nearly a whole minute"),
    ],
)
def test_first_come_first_served_whatever_the_sizes(virtual: Virtual, sizes: list[int]) -> None:
    """A small request never overtakes a large one, though it would fit."""

    async def main() -> None:
        guests = Guests(gate(tpm=60_000))

        async def one(name: str, tokens: int) -> None:
            await guests.come(name, tokens)
            await asyncio.sleep(0.1)
            guests.door.leave(tokens, guests.charged[name], tokens)

        async with asyncio.TaskGroup() as group:
            for number, tokens in enumerate(sizes):
                group.create_task(one(str(number), tokens))
        assert guests.names == ["0", "1", "2", "3"]
        assert (len(guests.door), timers()) == (0, 0)

    virtual(main())


def test_a_newcomer_does_not_overtake_who_waits_even_when_it_would_fit(virtual: Virtual) -> None:
    async def main() -> None:
        guests = Guests(gate(tpm=100_000))
        guests.come("in flight", 40_000)
        guests.come("large", 40_000)
        await asyncio.sleep(3600)
        assert guests.names == ["in flight"]
        guests.come("small", 1)
        await asyncio.sleep(3600)
        assert (guests.names, len(guests.door)) == (["in flight"], 2)
        guests.door.leave(40_000, guests.charged["in flight"], 10)
        await guests.wait()
        assert guests.names == ["in flight", "large", "small"]

    virtual(main())


def test_an_answer_lets_the_head_of_the_queue_go_in_the_same_moment(virtual: Virtual) -> None:
    """Reserved tokens that come back are used at once, not when a timer fires."""

    async def main() -> None:
        guests = Guests(gate(tpm=1_000_000))
        for name in ("a", "b", "c", "d"):
            guests.come(name, 250_000)
        await asyncio.sleep(100)
        assert (guests.names, timers()) == (["a", "b"], 0), "no timer runs while only an answer can help"
        guests.door.leave(250_000, guests.charged["a"], 10)
        await turns()
        assert guests.admitted[2:] == [("c", 100.0)]
        guests.door.leave(250_000, guests.charged["b"], 10)
        await turns()
        assert guests.admitted[3:] == [("d", 100.0)]

    virtual(main())


def test_an_answer_that_used_less_brings_the_next_one_forward(virtual: Virtual) -> None:
    """The wait is computed anew when tokens come back: no sleep from before goes on."""

    async def main() -> None:
        guests = Guests(gate(tpm=60_000))
        await guests.come("a", 29_000)
        guests.come("b", 100)
        await asyncio.sleep(1)
        assert (guests.names, timers()) == (["a"], 1)
        guests.door.leave(29_000, guests.charged["a"], 500)
        await turns()
        assert guests.admitted[1] == ("b", 1.0), "and not after half a minute"
        assert timers() == 0

    virtual(main())


def test_a_hold_delays_everyone_who_waits_and_everyone_who_comes(virtual: Virtual) -> None:
    async def main() -> None:
        guests = Guests(gate(rpm=60))
        await guests.come("before")
        guests.come("waiting")
        await turns()
        guests.door.hold(30)
        guests.come("later")
        assert guests.door.waiting_for == "a 429 to pass"
        await guests.wait()
        assert [t for _, t in guests.admitted] == pytest.approx([0, 30, 31], abs=0.03)

    virtual(main())


def test_a_hold_applies_to_a_gate_without_limits_and_to_an_empty_one(virtual: Virtual) -> None:
    async def main() -> None:
        door = gate()
        door.hold(5)
        await door.enter(10**9)
        assert now() == 5.0

    virtual(main())


def test_two_holds_are_the_longer_one(virtual: Virtual) -> None:
    async def main() -> None:
        guests = Guests(gate())
        guests.door.hold(10)
        guests.come("a")
        await asyncio.sleep(1)
        guests.door.hold(2)
        guests.door.hold(20)
        await guests.wait()
        assert guests.admitted == [("a", 21.0)]

    virtual(main())


def test_what_can_never_fit_is_refused_at_once_and_is_in_nobodys_way(virtual: Virtual) -> None:
    async def main() -> None:
        guests = Guests(gate(tpm=1_000))
        guests.come("a", 900)
        guests.come("b", 900)
        await turns()
        with pytest.raises(ValueError, match="1,001 tokens at once, and the limit is 1,000 a minute"):
            await guests.door.enter(1_001)
        guests.door.leave(900, guests.charged["a"], 0)
        await guests.wait()
        assert guests.names == ["a", "b"]

    virtual(main())


def test_a_thousand_who_wait_go_in_order_at_their_rate_with_one_timer(virtual: Virtual) -> None:
    async def main() -> None:
        guests = Guests(gate(rpm=6_000))
        most = 0
        for number in range(1_000):
            guests.come(str(number))
        await turns(2)
        assert len(guests.door) == 999
        while len(guests.door):
            most = max(most, timers())
            await asyncio.sleep(0.5)
        await guests.wait()
        assert guests.names == [str(n) for n in range(1_000)]
        assert guests.admitted[-1][1] == pytest.approx(999 * 0.01 / MARGIN, abs=0.02)
        assert most == 1
        assert timers() == 0

    virtual(main())


# -- who leaves early -------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["head", "middle", "last"])
def test_who_is_cancelled_leaves_the_queue_and_the_others_keep_their_order(virtual: Virtual, who: str) -> None:
    async def main() -> None:
        guests = Guests(gate(rpm=60))
        for name in ("in", "head", "middle", "last"):
            guests.come(name)
        await turns()
        guests.tasks[who].cancel()
        await turns()
        assert len(guests.door) == 2
        await guests.wait()
        left = [name for name in ("in", "head", "middle", "last") if name != who]
        assert guests.names == left
        assert [t for _, t in guests.admitted] == pytest.approx([0, 1, 2], abs=0.01), "and its turn is not lost"
        assert timers() == 0

    virtual(main())


def test_a_small_request_goes_at_once_when_the_large_head_before_it_is_cancelled(virtual: Virtual) -> None:
    async def main() -> None:
        guests = Guests(gate(tpm=100_000))
        guests.come("in flight", 40_000)
        guests.come("large", 40_000)
        guests.come("small", 5)
        await asyncio.sleep(600)
        guests.tasks["large"].cancel()
        await turns()
        assert guests.admitted[1:] == [("small", 600.0)]

    virtual(main())


def test_when_all_who_wait_are_cancelled_nothing_stays_behind(virtual: Virtual) -> None:
    async def main() -> None:
        guests = Guests(gate(rpm=60))
        for number in range(1_000):
            guests.come(str(number))
        await turns()
        for task in guests.tasks.values():
            task.cancel()
        await guests.wait()
        assert (len(guests.door), len(guests.door._queue), timers()) == (0, 0, 0)
        assert guests.door.waiting_for is None

    virtual(main())


def test_who_is_cancelled_in_the_turn_of_its_admission_gives_its_permit_back(virtual: Virtual) -> None:
    """Admitted and cancelled before it could run: its reservation must not stay in flight for ever."""

    async def main() -> None:
        guests = Guests(gate(tpm=100_000))
        guests.come("in flight", 40_000)
        guests.come("unlucky", 40_000)
        guests.come("next", 40_000)
        await asyncio.sleep(600)
        guests.door.leave(40_000, guests.charged["in flight"], 40_000)  # admits "unlucky", which has not run yet
        assert len(guests.door) == 1
        guests.tasks["unlucky"].cancel()
        await turns()
        assert guests.tasks["unlucky"].cancelled()
        await asyncio.sleep(60)
        assert guests.names == ["in flight", "next"]
        guests.door.leave(40_000, guests.charged["next"], 40_000)
        assert guests.door._pacer._reserved == 0

    virtual(main())


def test_who_is_cancelled_on_its_admission_by_the_timer_gives_its_permit_back(virtual: Virtual) -> None:
    async def main() -> None:
        guests = Guests(gate(rpm=60, tpm=60_000))
        await guests.come("first", 1_000)
        unlucky = guests.come("unlucky", 29_000)
        await turns()
        when = guests.door._pacer.ready_at(now(), 29_000)
        loop = asyncio.get_running_loop()
        loop.call_at(when, unlucky.cancel)  # the same moment as the gate's own timer
        await asyncio.wait([unlucky])
        assert unlucky.cancelled()
        assert guests.door._pacer._reserved == 1_000

    virtual(main())


def test_a_timeout_while_waiting_is_a_cancellation_like_any_other(virtual: Virtual) -> None:
    async def main() -> None:
        door = gate(rpm=1)
        await door.enter(0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await door.enter(0)
        assert (now(), len(door), timers()) == (5.0, 0, 0)

    virtual(main())


# -- words ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "tokens", "words"),
    [
        pytest.param({"rpm": 1}, 0, "requests/min", id="requests"),
        pytest.param({"tpm": 60_000}, 29_000, "tokens/min", id="tokens"),
        pytest.param({"tpm": 60_000}, 50_000, "tokens/min (reserved)", id="reservations in flight"),
    ],
)
def test_what_binds_is_said_while_somebody_waits_and_only_then(
    virtual: Virtual, limits: dict[str, int], tokens: int, words: str
) -> None:
    async def main() -> None:
        guests = Guests(gate(**limits))
        await guests.come("a", min(tokens, 29_000))
        waits = guests.come("b", tokens if tokens == 50_000 else 1)
        await turns()
        while_waiting = guests.door.waiting_for
        waits.cancel()
        await turns()
        assert (while_waiting, guests.door.waiting_for) == (words, None)

    virtual(main())


# -- laws -------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([(None, 60_000), (600, None), (600, 60_000), (None, None)]),
)
def test_whoever_comes_leaves_is_cancelled_or_is_held_nothing_leaks_and_nobody_overtakes(
    seed: int, limits: tuple[int | None, int | None]
) -> None:
    """At the end of any history no reservation is in flight, nobody waits and no timer runs."""
    rng = random.Random(seed)

    async def main() -> None:
        door = gate(*limits)
        order: list[int] = []

        async def guest(number: int) -> None:
            tokens = rng.randrange(1, 40_000)
            charged = await door.enter(tokens)
            order.append(number)
            try:
                await asyncio.sleep(rng.choice([0, 0.01, 5]))
            finally:
                door.leave(tokens, charged, rng.choice([None, 0, 10, tokens, tokens * 2]))

        tasks = []
        for number in range(40):
            tasks.append(asyncio.get_running_loop().create_task(guest(number)))
            match rng.randrange(6):
                case 0:
                    await asyncio.sleep(rng.choice([0, 0.1, 30]))
                case 1:
                    rng.choice(tasks).cancel()
                case 2:
                    door.hold(rng.choice([0, 1, 20]))
        await asyncio.wait(tasks)
        assert order == sorted(order)
        assert door._pacer._reserved == 0
        assert (len(door), len(door._queue), timers()) == (0, 0, 0)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())
