"""The waiting room under a virtual clock: who goes when, and that nothing is lost by who leaves early."""

from __future__ import annotations

import asyncio
import random
from array import array
from collections.abc import Callable, MutableSequence
from types import TracebackType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbatch.catalog import Quota
from cbatch.gate import LOOK_AGAIN_S, Gate
from cbatch.pace import FLOATS, MARGIN, Cost, NeverFits, Pacer, Said, Used
from cbatch.pace.windows import SPENT_REQUESTS, SPENT_TOKENS
from tests.conftest import VirtualLoop

Virtual = Callable[[Any], Any]


def gate(rpm: int | None = None, tpm: int | None = None) -> Gate:
    return Gate(Pacer(Quota(rpm=rpm, tpm=tpm), now=asyncio.get_running_loop().time()))


def cost(tokens: float, uses: float | None = None) -> Cost:
    """A request that reserves so many tokens, and is expected to use all of them where nothing else is said."""
    uses = tokens if uses is None else uses
    return Cost(tokens, uses, uses)


def used(tokens: float) -> Used:
    return Used(tokens, tokens)


def conserved(door: Gate) -> bool:
    """Nothing is in flight, and no request or token was counted that was not sent."""
    return door.pacer.in_flight == 0 and door.pacer.floats[SPENT_REQUESTS] >= 0 <= door.pacer.floats[SPENT_TOKENS]


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
        self.tasks: dict[str, asyncio.Task[None]] = {}

    def come(self, name: str, tokens: float = 0, uses: float | None = None) -> asyncio.Task[None]:
        async def enter() -> None:
            await self.door.enter(cost(tokens, uses))
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
        enter = door.enter(cost(100))
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
            guests.door.leave(cost(tokens), used(tokens))

        async with asyncio.TaskGroup() as group:
            for number, tokens in enumerate(sizes):
                group.create_task(one(str(number), tokens))
        assert guests.names == ["0", "1", "2", "3"]
        assert (len(guests.door), timers()) == (0, 0)

    virtual(main())


def test_a_newcomer_does_not_overtake_who_waits_even_when_it_would_fit(virtual: Virtual) -> None:
    async def main() -> None:
        guests = Guests(gate(tpm=100_000))
        guests.come("in flight", 50_000)
        guests.come("large", 50_000)
        await asyncio.sleep(10)
        guests.come("small", 1)
        await asyncio.sleep(10)
        assert (guests.names, len(guests.door)) == (["in flight"], 2)
        guests.door.leave(cost(50_000), used(10))
        await guests.wait()
        assert guests.names == ["in flight", "large", "small"]

    virtual(main())


def test_an_answer_lets_the_head_of_the_queue_go_in_the_same_moment(virtual: Virtual) -> None:
    """Reserved tokens that come back are used at once, not when a timer fires."""

    async def main() -> None:
        guests = Guests(gate(tpm=1_000_000))
        for name in ("a", "b", "c", "d"):
            guests.come(name, 250_000, uses=10)
        await asyncio.sleep(5)
        assert (guests.names, timers()) == (["a", "b"], 1)
        guests.door.leave(cost(250_000, 10), used(10))
        await turns()
        assert guests.admitted[2:] == [("c", 5.0)]
        guests.door.leave(cost(250_000, 10), used(10))
        await turns()
        assert guests.admitted[3:] == [("d", 5.0)]
        assert timers() == 0

    virtual(main())


def test_an_answer_that_used_less_brings_the_next_one_forward(virtual: Virtual) -> None:
    """The wait is computed anew when tokens come back: no sleep from before goes on."""

    async def main() -> None:
        guests = Guests(gate(tpm=60_000))
        await guests.come("a", 29_000)
        guests.come("b", 100)
        await asyncio.sleep(1)
        assert (guests.names, timers()) == (["a"], 1)
        guests.door.leave(cost(29_000), used(500))
        await turns()
        assert guests.admitted[1] == ("b", 1.0), "and not after half a minute"
        assert timers() == 0

    virtual(main())


def test_what_was_never_sent_lets_the_head_go_at_once_too(virtual: Virtual) -> None:
    async def main() -> None:
        guests = Guests(gate(rpm=1))
        await guests.come("a")
        guests.come("b")
        await asyncio.sleep(1)
        guests.door.never_sent(cost(0))
        await turns()
        assert guests.admitted == [("a", 0.0), ("b", 1.0)]

    virtual(main())


def test_the_servers_word_that_everything_fits_lets_who_waits_go_at_once(virtual: Virtual) -> None:
    """At 5 a minute the timer of the head is 12 s away; what an answer says is not left lying so long."""

    async def main() -> None:
        door = Gate(Pacer(Quota(rpm=5), now=asyncio.get_running_loop().time()), rest=lambda: (3, 0.0))
        guests = Guests(door)
        for name in ("a", "b", "c"):
            guests.come(name)
        await asyncio.sleep(1)
        assert guests.names == ["a"]
        door.leave(cost(0), used(0))
        door.listen([Said("requests", "minute", 5, 4)])
        await turns()
        assert guests.admitted == [("a", 0.0), ("b", 1.0)], "3 are left to be sent, and 3.6 certainly fit"

    virtual(main())


# -- refusals ---------------------------------------------------------------------------------


def refuse(door: Gate, sent_at: float, stated_s: float | None) -> None:
    door.refused(
        cost(0), sent_at, kind="requests", period="minute", stated_s=stated_s, full_in_s=None, words=()
    )  # fmt: skip


def held(door: Gate) -> tuple[str, float]:
    why, seconds = door.waiting_for or ("nobody waits", 0.0)
    return why, round(seconds, 3)


def test_a_refusal_delays_everyone_who_waits_and_everyone_who_comes(virtual: Virtual) -> None:
    """A 429 delays every prompt, not only the one that met it."""

    async def main() -> None:
        guests = Guests(gate(rpm=60))
        sent_at = asyncio.get_running_loop().time()
        await guests.come("before")
        guests.come("waiting")
        await turns()
        refuse(guests.door, sent_at, 30)
        guests.come("later")
        assert guests.door.waiting_for == ("a 429 to pass", 30.0)
        await guests.wait()
        assert [t for _, t in guests.admitted][:2] == [0, 30]
        assert guests.names == ["before", "waiting", "later"]

    virtual(main())


def test_a_refusal_holds_a_gate_without_limits_and_an_empty_one(virtual: Virtual) -> None:
    async def main() -> None:
        guests = Guests(gate())
        sent_at = asyncio.get_running_loop().time()
        await guests.come("refused", 10**9)
        refuse(guests.door, sent_at, 5)
        assert not guests.door.try_enter(cost(0))
        guests.come("a", 10**9)
        await asyncio.sleep(4.99)
        assert guests.names == ["refused"]
        why, seconds = guests.door.waiting_for or ("", 0.0)
        assert (why, round(seconds, 6)) == ("a 429 to pass", 0.01)
        await guests.wait()

    virtual(main())


def test_two_refusals_are_the_longer_wait(virtual: Virtual) -> None:
    async def main() -> None:
        guests = Guests(gate(rpm=600))
        sent_at = asyncio.get_running_loop().time()
        for name in "abc":
            await guests.come(name)
        refuse(guests.door, sent_at, 10)
        guests.come("d")
        await asyncio.sleep(1)
        refuse(guests.door, sent_at, 2)
        assert held(guests.door) == ("a 429 to pass", 9)
        refuse(guests.door, sent_at, 20)
        assert held(guests.door) == ("a 429 to pass", 20)
        await guests.wait()

    virtual(main())


def test_while_nothing_paces_what_was_refused_one_goes_at_a_time_until_one_gets_through(virtual: Virtual) -> None:
    """One answer and two refusals teach no limit, and a crowd would be refused again."""

    async def main() -> None:
        guests = Guests(gate())
        door, sent_at = guests.door, asyncio.get_running_loop().time()
        for name in "abc":
            await guests.come(name)
        door.leave(cost(0), used(0))
        refuse(door, sent_at, 10)
        for name in "def":
            guests.come(name)
        await turns()
        assert held(door) == ("a 429 to pass", 10), "though c, that was sent before, is not answered yet"
        await asyncio.sleep(60)
        assert [(name, round(when, 3)) for name, when in guests.admitted[3:]] == [("d", 10)]
        assert held(door) == ("a 429 to pass", float("inf")), "for the answer of d"
        door.pacer.succeeded(sent_at + 10)
        door.leave(cost(0), used(0))
        await guests.wait()
        assert [(name, round(when, 3)) for name, when in guests.admitted[4:]] == [("e", 60), ("f", 60)]

    virtual(main())


# -- what can never fit -----------------------------------------------------------------------


def test_what_can_never_fit_is_refused_at_once_and_is_in_nobodys_way(virtual: Virtual) -> None:
    async def main() -> None:
        guests = Guests(gate(tpm=1_000))
        guests.come("a", 900)
        guests.come("b", 900)
        await turns()
        assert len(guests.door) == 1
        with pytest.raises(NeverFits, match="1,001 tokens at once, and the limit is 1,000 a minute"):
            await guests.door.enter(cost(1_001))
        assert (now(), len(guests.door)) == (0.0, 1), "at once, though somebody waits"
        assert not guests.door.try_enter(cost(1_001))
        guests.door.leave(cost(900), used(0))
        await guests.wait()
        assert guests.names == ["a", "b"]
        guests.door.leave(cost(900), used(0))
        assert conserved(guests.door)

    virtual(main())


def test_a_limit_that_becomes_known_refuses_who_waits_and_can_never_fit_any_more(virtual: Virtual) -> None:
    """Asking what is waited for does no harm meanwhile, and the next in the queue goes on."""

    async def main() -> None:
        door = gate(rpm=60)
        guests = Guests(door)
        await guests.come("first", 10)
        large = guests.come("large", 5_000)
        guests.come("small", 10)
        await turns()
        door.pacer.listen(asyncio.get_running_loop().time(), [Said("tokens", "minute", 1_000, 1_000)])
        assert door.waiting_for is None
        door.listen([Said("tokens", "minute", 1_000, 1_000)])
        await turns()
        assert isinstance(large.exception(), NeverFits)
        await guests.wait()
        assert guests.names == ["first", "small"]

    virtual(main())


def test_who_is_cancelled_as_it_is_told_that_it_never_fits_gives_nothing_back(virtual: Virtual) -> None:
    async def main() -> None:
        door = gate(rpm=60)
        guests = Guests(door)
        await guests.come("first", 10)
        large = guests.come("large", 5_000)
        await turns()
        door.listen([Said("tokens", "minute", 1_000, 1_000)])
        large.cancel()
        await asyncio.wait([large])
        assert door.pacer.in_flight == 1
        assert door.pacer.floats[SPENT_REQUESTS] == 1

    virtual(main())


# -- many -------------------------------------------------------------------------------------


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
        guests.come("in flight", 40_000, uses=10)
        guests.come("large", 90_000)
        guests.come("small", 5)
        await asyncio.sleep(10)
        assert guests.names == ["in flight"]
        guests.tasks["large"].cancel()
        await turns()
        assert guests.admitted[1:] == [("small", 10.0)]

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
        guests.come("in flight", 50_000, uses=10)
        guests.come("unlucky", 50_000, uses=10)
        guests.come("next", 50_000, uses=10)
        await asyncio.sleep(1)
        guests.door.leave(cost(50_000, 10), used(10))  # admits "unlucky", which has not run yet
        assert len(guests.door) == 1
        guests.tasks["unlucky"].cancel()
        await turns()
        assert guests.tasks["unlucky"].cancelled()
        assert guests.admitted[1:] == [("next", 1.0)]
        guests.door.leave(cost(50_000, 10), used(10))
        assert conserved(guests.door)
        assert guests.door.pacer.floats[SPENT_TOKENS] == 20

    virtual(main())


def test_who_is_cancelled_on_its_admission_by_the_timer_gives_its_permit_back(virtual: Virtual) -> None:
    async def main() -> None:
        guests = Guests(gate(rpm=60, tpm=60_000))
        await guests.come("first", 1_000)
        unlucky = guests.come("unlucky", 29_000)
        await turns()
        loop = asyncio.get_running_loop()
        when = guests.door.pacer.ready_at(loop.time(), cost(29_000))
        loop.call_at(when, unlucky.cancel)  # the same moment as the gate's own timer
        await asyncio.wait([unlucky])
        assert unlucky.cancelled()
        assert guests.door.pacer.in_flight == 1
        assert guests.door.pacer.floats[SPENT_TOKENS] == 1_000

    virtual(main())


def test_a_timeout_while_waiting_is_a_cancellation_like_any_other(virtual: Virtual) -> None:
    async def main() -> None:
        door = gate(rpm=1)
        await door.enter(cost(0))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await door.enter(cost(0))
        assert (now(), len(door), timers()) == (5.0, 0, 0)

    virtual(main())


# -- an endpoint that does not answer -------------------------------------------------------------


def test_an_endpoint_that_is_gone_is_tried_by_one_at_a_time_until_it_answers(virtual: Virtual) -> None:
    async def main() -> None:
        guests = Guests(gate())
        await guests.come("lost")
        guests.door.try_one_in(10, "the endpoint")
        for name in ("a", "b", "c"):
            guests.come(name)
        await asyncio.sleep(20)
        assert guests.names == ["lost"], "the lost one is still in flight"
        assert guests.door.waiting_for == ("the endpoint", 0.0)
        guests.door.leave(cost(0), None)
        await turns()
        assert guests.names == ["lost", "a"]
        assert not guests.door.try_enter(cost(0))
        await asyncio.sleep(100)
        assert guests.names == ["lost", "a"], "one, until it is answered"
        guests.door.reopen()
        await guests.wait()
        assert guests.admitted[2:] == [("b", 120.0), ("c", 120.0)]
        assert timers() == 0

    virtual(main())


def test_the_next_trial_waits_as_long_as_was_said(virtual: Virtual) -> None:
    async def main() -> None:
        guests = Guests(gate())
        await guests.come("lost")
        guests.door.leave(cost(0), None)
        guests.door.try_one_in(10, "the endpoint")
        guests.come("a")
        guests.come("b")
        await asyncio.sleep(10.5)
        guests.door.never_sent(cost(0))  # the trial failed, too
        guests.door.try_one_in(20, "the endpoint")
        await asyncio.sleep(60)
        assert guests.admitted[1:] == [("a", 10.0), ("b", 10.5)]

    virtual(main())


# -- shared with other processes ------------------------------------------------------------------


class Held:
    """An account that counts how often it is taken, and whether the pacer is used without it."""

    def __init__(self) -> None:
        self.depth = self.times = 0

    def __enter__(self) -> Held:
        self.depth += 1
        self.times += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.depth -= 1


class Watched(Pacer):
    """A pacer that insists on its account being held."""

    def __init__(self, told: Quota, held: Held, now: float, floats: MutableSequence[float]) -> None:
        super().__init__(told, now=now, floats=floats)
        self.held = held

    def _current(self) -> Any:
        assert not hasattr(self, "held") or self.held.depth
        return super()._current()


def test_the_account_is_held_whenever_the_pacer_is_used_and_never_longer(virtual: Virtual) -> None:
    async def main() -> None:
        held = Held()
        pacer = Watched(Quota(rpm=6_000), held, asyncio.get_running_loop().time(), array("d", bytes(8 * FLOATS)))
        door = Gate(pacer, account=held)
        sent_at = asyncio.get_running_loop().time()
        guests = Guests(door)
        for number in range(5):
            guests.come(str(number))
        await turns()
        assert held.depth == 0
        assert door.waiting_for is not None
        await guests.wait()
        door.leave(cost(0), used(0))
        door.never_sent(cost(0))
        door.try_enter(cost(0))
        door.listen([Said("requests", "minute", 6_000, 100)])
        refuse(door, sent_at, 1)
        door.try_one_in(1, "x")
        door.reopen()
        assert (held.depth, held.times > 8) == (0, True)

    virtual(main())


def test_what_another_process_gives_back_is_seen_within_a_second(virtual: Virtual) -> None:
    """Nobody tells this process, so its timer looks again long before its own arithmetic would."""

    async def main() -> None:
        start = asyncio.get_running_loop().time()
        floats = array("d", bytes(8 * FLOATS))
        other = Pacer(Quota(rpm=1), now=start, floats=floats)
        guests = Guests(Gate(Pacer(Quota(rpm=1), now=start, floats=floats), account=Held()))
        other.take(start, cost(0))
        guests.come("a")
        await asyncio.sleep(7.5)
        assert guests.names == []
        other.give_back(asyncio.get_running_loop().time(), cost(0))
        await guests.wait()
        assert 7.5 < guests.admitted[0][1] <= 7.5 + LOOK_AGAIN_S

    virtual(main())


# -- words ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "first", "second", "words"),
    [
        pytest.param({"rpm": 1}, cost(0), cost(0), "requests/min", id="requests"),
        pytest.param({"tpm": 60_000}, cost(29_000), cost(1), "tokens/min", id="tokens in use"),
        pytest.param({"tpm": 60_000}, cost(29_000, 1), cost(29_000, 1), "tokens/min", id="tokens reserved"),
        pytest.param({"rpm": 600, "tpm": 60_000}, cost(29_000), cost(1), "tokens/min", id="the one that waits longest"),
    ],
)
def test_what_binds_is_said_while_somebody_waits_and_only_then(
    virtual: Virtual, limits: dict[str, int], first: Cost, second: Cost, words: str
) -> None:
    async def main() -> None:
        door = gate(**limits)
        await door.enter(first)
        waits = asyncio.get_running_loop().create_task(door.enter(second))
        await turns()
        while_waiting = door.waiting_for
        waits.cancel()
        await turns()
        assert while_waiting is not None
        assert while_waiting[0] == words
        assert while_waiting[1] > 0.5
        assert door.waiting_for is None

    virtual(main())


def test_the_time_in_which_somebody_waited_is_booked_to_what_it_waited_for(virtual: Virtual) -> None:
    """A second counts once, however many wait, and a second in which nobody waits does not count."""

    async def main() -> None:
        guests = Guests(gate(rpm=60))
        for number in range(4):
            guests.come(str(number))
        await asyncio.sleep(2)
        assert guests.door.time_lost() == {"requests/min": pytest.approx(2.0)}
        await guests.wait()
        await asyncio.sleep(50)
        sent_at = asyncio.get_running_loop().time()
        await guests.come("refused")
        refuse(guests.door, sent_at, 7)
        guests.come("held")
        await guests.wait()
        assert guests.door.time_lost() == pytest.approx({"requests/min": 3 / MARGIN, "a 429 to pass": 7.0}, rel=0.01)

    virtual(main())


# -- laws -------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([(None, 60_000), (600, None), (600, 60_000), (None, None)]),
)
def test_whoever_comes_leaves_is_cancelled_or_is_refused_nothing_leaks_and_nobody_overtakes(
    seed: int, limits: tuple[int | None, int | None]
) -> None:
    """At the end of any history nothing is in flight, nobody waits and no timer runs."""
    rng = random.Random(seed)

    async def main() -> None:
        door = gate(*limits)
        order: list[int] = []
        sent = refused = 0

        async def guest(number: int) -> None:
            nonlocal sent, refused
            tokens = rng.randrange(1, 40_000)
            charge = cost(tokens, rng.choice([tokens, 10]))
            await door.enter(charge)
            order.append(number)
            sent += 1
            sent_at = asyncio.get_running_loop().time()
            how = rng.randrange(8)
            try:
                await asyncio.sleep(rng.choice([0, 0.01, 5]))
            finally:
                if how == 0:
                    refused += 1
                    stated_s = rng.choice([None, 0.5, 20])
                    door.refused(
                        charge, sent_at, kind=rng.choice(["requests", "tokens"]), period="minute",
                        stated_s=stated_s, full_in_s=None, words=(),
                    )  # fmt: skip
                elif how == 1:
                    refused += 1
                    door.never_sent(charge)
                else:
                    door.leave(charge, rng.choice([None, used(0), used(10), used(tokens), used(tokens * 2)]))

        tasks = []
        for number in range(40):
            tasks.append(asyncio.get_running_loop().create_task(guest(number)))
            match rng.randrange(7):
                case 0:
                    await asyncio.sleep(rng.choice([0, 0.1, 30]))
                case 1:
                    rng.choice(tasks).cancel()
                case 2:
                    if door.try_enter(cost(5)):
                        door.leave(cost(5), None)
                        sent += 1
                case 3:
                    door.try_one_in(rng.choice([0, 3]), "a trial")
                    asyncio.get_running_loop().call_later(rng.choice([1, 9]), door.reopen)
        await asyncio.wait(tasks)
        door.reopen()
        await asyncio.sleep(10)
        assert order == sorted(order)
        assert conserved(door)
        assert door.pacer.floats[SPENT_REQUESTS] == sent - refused
        assert (len(door), len(door._queue), timers()) == (0, 0, 0)
        assert sum(door.time_lost().values()) <= now()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())
