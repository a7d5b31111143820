"""Earlier responses: bounded, and a conversation is whole or unknown."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbatch.gateway.store import ENTRY_BYTES, Responses

Item = dict[str, Any]


def item(text: str) -> Item:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


def texts(items: list[Item]) -> list[str]:
    return [one["content"][0]["text"] for one in items]


def is_known(store: Responses, name: str) -> bool:
    try:
        store.history(name)
    except KeyError:
        return False
    return True


def test_a_history_is_all_items_of_the_chain_in_order() -> None:
    store = Responses()
    store.put("r1", None, [item("a"), item("b")])
    store.put("r2", "r1", [item("c")])
    store.put("r3", "r2", [item("d")])
    store.put("side", "r1", [item("x")])
    assert texts(store.history("r3")) == ["a", "b", "c", "d"]
    assert texts(store.history("side")) == ["a", "b", "x"]


def test_what_is_missing_is_named() -> None:
    """The message of the 400 says which response is gone, not the one that was asked for."""
    store = Responses()
    store.put("r2", "r1", [item("b")])
    with pytest.raises(KeyError) as caught:
        store.history("r2")
    assert caught.value.args == ("r1",)
    with pytest.raises(KeyError) as caught:
        store.history("r9")
    assert caught.value.args == ("r9",)


def test_a_response_is_given_back_as_it_was() -> None:
    store = Responses()
    response = {"id": "r1", "output": [item("hi")]}
    store.put("r1", None, [item("hi")], response)
    response["output"].clear()  # type: ignore[attr-defined]
    assert store.get("r1") == {"id": "r1", "output": [item("hi")]}
    store.history("r1").clear()
    assert texts(store.history("r1")) == ["hi"]
    assert store.get("r2") is None
    store.put("r3", None, [item("without")])
    assert store.get("r3") is None


def test_deleting_makes_what_followed_unknown() -> None:
    store = Responses()
    store.put("r1", None, [item("a")])
    store.put("r2", "r1", [item("b")])
    assert store.delete("r1")
    assert not store.delete("r1")
    with pytest.raises(KeyError):
        store.history("r2")
    assert len(store) == 1
    store.delete("r2")
    assert store.size_bytes == 0


def test_a_response_that_took_the_name_of_another_is_not_its_history() -> None:
    store = Responses()
    store.put("r1", None, [item("a")])
    store.put("r2", "r1", [item("b")])
    store.put("r1", None, [item("another")])
    assert not is_known(store, "r2")
    assert texts(store.history("r1")) == ["another"]


def test_responses_that_name_each_other_end() -> None:
    store = Responses()
    store.put("a", "b", [item("1")])
    store.put("b", "a", [item("2")])
    store.put("c", "c", [item("3")])
    assert not any(is_known(store, name) for name in "abc")


def test_using_a_chain_keeps_the_whole_of_it() -> None:
    store = Responses(max_count=4)
    store.put("r1", None, [item("a")])
    store.put("r2", "r1", [item("b")])
    store.put("other", None, [item("x")])
    store.history("r2")
    for name in ("new1", "new2"):
        store.put(name, None, [item(name)])
    assert texts(store.history("r2")) == ["a", "b"]
    assert not is_known(store, "other")


def test_the_room_of_a_long_chat_grows_with_its_turns() -> None:
    """Copies instead of links would need 500 times as much."""
    store = Responses()
    previous = None
    for turn in range(1_000):
        store.put(f"r{turn}", previous, [item("x" * 1_000)])
        previous = f"r{turn}"
    assert store.size_bytes < 1_000 * (ENTRY_BYTES + 1_100)
    assert len(store.history("r999")) == 1_000


def test_the_least_used_go_where_bytes_run_out() -> None:
    store = Responses(max_bytes=5_000)
    for name in "abcd":
        store.put(name, None, [item("x" * 700)])
    assert store.size_bytes <= 5_000
    assert [name for name in "abcd" if is_known(store, name)] == ["c", "d"]


def test_one_response_larger_than_the_store_pushes_nothing_out() -> None:
    store = Responses(max_bytes=5_000)
    store.put("r1", None, [item("a")])
    store.put("big", "r1", [item("x" * 10_000)])
    assert is_known(store, "r1")
    assert not is_known(store, "big")


def test_what_cannot_be_written_as_json_is_forgotten_and_no_error() -> None:
    """Its answer is out already."""
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    store = Responses()
    store.put("r1", None, [{"deep": deep}])
    assert not is_known(store, "r1")


NAMES = st.sampled_from("abcdefgh")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), NAMES, st.none() | NAMES, st.integers(0, 400)),
        st.tuples(st.just("history"), NAMES),
        st.tuples(st.just("get"), NAMES),
        st.tuples(st.just("delete"), NAMES),
    ),
    max_size=60,
)


@given(steps=STEPS, max_count=st.integers(0, 6), max_bytes=st.integers(0, 8 * ENTRY_BYTES))
def test_the_bounds_hold_and_a_history_is_whole_or_unknown(
    steps: list[tuple[Any, ...]], max_count: int, max_bytes: int
) -> None:
    """Never shorter, never of another conversation, whatever was pushed out, deleted or put twice."""
    store = Responses(max_count=max_count, max_bytes=max_bytes)
    whole: dict[str, list[Item] | None] = {}  # what the history of a name must be; None: it was never known
    for number, step in enumerate(steps):
        if step[0] == "put":
            _, name, previous, size = step
            added = [item(f"{number}:" + "x" * size)]
            before = [] if previous is None else whole.get(previous) if previous != name else None
            store.put(name, previous, added, {"id": name, "n": number})
            whole[name] = None if before is None else before + added
        elif step[0] == "delete":
            store.delete(step[1])
            whole[step[1]] = None
        elif step[0] == "get":
            found = store.get(step[1])
            assert found is None or found["id"] == step[1]
        for name in whole if step[0] == "history" else ():
            try:
                history = store.history(name)
            except KeyError:
                continue
            assert history == whole[name]
        assert len(store) <= max_count
        assert 0 <= store.size_bytes <= max_bytes


@given(chains=st.lists(st.integers(1, 6), min_size=1, max_size=6))
def test_with_room_enough_nothing_is_forgotten(chains: list[int]) -> None:
    store = Responses()
    for chain, length in enumerate(chains):
        for turn in range(length):
            store.put(f"{chain}.{turn}", f"{chain}.{turn - 1}" if turn else None, [item(f"{chain}.{turn}")])
    for chain, length in enumerate(chains):
        assert texts(store.history(f"{chain}.{length - 1}")) == [f"{chain}.{turn}" for turn in range(length)]
