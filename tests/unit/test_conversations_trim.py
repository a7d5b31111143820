"""What of a conversation is sent: the rule, as laws."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbatch.conversations import trim
from cbatch.conversations.interface import Attachment, Reply
from cbatch.conversations.problems import SessionError
from cbatch.conversations.prompting import check_attachments, prepare
from cbatch.conversations.trim import Budget, left_out
from cbatch.conversations.turns import Turn, replaced

AT = datetime(2026, 11, 20, tzinfo=UTC)
SIZES = st.lists(st.integers(1, 20_000), max_size=60)


def turn(n: int, message: str = "hi", answer: str | None = "ho", **changed: object) -> Turn:
    return Turn(
        **{  # type: ignore[arg-type]
            "n": n,
            "state": "answered",
            "replaces": None,
            "asked_at": AT,
            "model": "m",
            "message": message,
            "answered_at": AT,
            "answer": answer,
            "reply": Reply(),
            **changed,
        }
    )


@given(SIZES, st.integers(0, 30_000), st.integers(1_000, 131_072), st.floats(0.5, 4.0))
def test_what_is_left_fits_or_nothing_is_left(sizes: list[int], fixed: int, context: int, factor: float) -> None:
    budget = Budget(context=context, factor=factor)
    gone = left_out(sizes, fixed, budget)
    assert sum(sizes[gone:]) + fixed <= budget.prompt or gone == len(sizes)


@given(SIZES, st.integers(0, 30_000), st.integers(1_000, 131_072))
def test_no_more_than_an_eighth_of_the_context_is_left_out_without_need(
    sizes: list[int], fixed: int, context: int
) -> None:
    budget = Budget(context=context)
    gone = left_out(sizes, fixed, budget)
    if gone:
        without_need = sum(sizes[gone - 1 :]) + fixed + context // trim.PARTS
        assert without_need > budget.prompt


def test_the_beginning_stays_where_it_is_for_several_messages() -> None:
    """What begins alike comes from the server's prompt cache."""
    budget = Budget(context=10_000)
    sizes, cuts = [], []
    for _ in range(200):
        sizes.append(100)
        cuts.append(left_out(sizes, 100, budget))
    moved = sum(now != before for before, now in pairwise(cuts))
    assert cuts[-1] > 100
    assert moved <= cuts[-1] // 10


@pytest.mark.parametrize(
    ("message", "context", "factor"),
    [
        pytest.param("Current length is 70000 while limit is 65536", 65_536, 2.0, id="both numbers are believed"),
        pytest.param("too long", 38_538, 1.0, id="without numbers a quarter less than was sent"),
        pytest.param("Current length is 9 while limit is 999999", 131_072, 1.0, id="a limit never grows"),
    ],
)
def test_a_refusal_teaches(message: str, context: int, factor: float) -> None:
    learned = Budget().refused(35_000, message)
    assert (learned.context, learned.factor) == (context, factor)
    assert learned.prompt < Budget().prompt or context == 131_072


@pytest.mark.parametrize(
    ("estimate", "counted", "factor"),
    [(1_000, 1_500, 1.5), (1_000, None, 1.0), (100, 300, 1.0), (1_000, 90_000, 4.0), (1_000, 1, 0.5)],
)
def test_an_answer_teaches_within_reason(estimate: int, counted: int | None, factor: float) -> None:
    assert Budget().learned(estimate, counted).factor == factor


def test_an_answer_takes_at_most_a_quarter_of_the_context() -> None:
    assert Budget(context=8_192, answer=16_384).answer_tokens == 2_048


def test_the_system_prompt_and_whole_turns_are_sent() -> None:
    turns = [turn(n, f"question {n} " + "x" * 4_000, f"answer {n}") for n in range(1, 11)]
    prepared = prepare("be brief", turns, "new", (), Budget(context=8_192), send_reasoning=False)
    roles = [message["role"] for message in prepared.messages]
    assert roles[0] == "system"
    assert roles[1:-1] == ["user", "assistant"] * (len(turns) - prepared.left_out)
    assert prepared.messages[-1] == {"role": "user", "content": "new"}
    assert prepared.messages[-2]["content"] == "answer 10"
    assert 0 < prepared.left_out < 10


def test_reasoning_goes_back_only_where_asked_and_by_the_name_the_api_accepts() -> None:
    turns = [turn(1, reply=Reply(reasoning="thought"))]
    silent = prepare(None, turns, "new", (), Budget(), send_reasoning=False).messages[1]
    told = prepare(None, turns, "new", (), Budget(), send_reasoning=True).messages[1]
    assert silent == {"role": "assistant", "content": "ho"}
    assert told == {"role": "assistant", "content": "ho", "reasoning": "thought"}


def test_attachments_become_parts() -> None:
    files = (
        Attachment(name="a.txt", media_type="text/plain", data=b"text"),
        Attachment(name="b.png", media_type="image/png", data=b"\x89PNG"),
    )
    content = prepare(None, [], "look", files, Budget(), send_reasoning=False).messages[0]["content"]
    assert content == [
        {"type": "text", "text": "look"},
        {"type": "text", "text": "[attached: a.txt]\ntext"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}},
    ]


@pytest.mark.parametrize(("media_type", "data"), [("application/pdf", b"%PDF"), ("text/plain", b"\xff\xfe")])
def test_what_cannot_be_attached_is_refused_by_name(media_type: str, data: bytes) -> None:
    with pytest.raises(SessionError, match=r"f\.x.*cannot be sent"):
        check_attachments([Attachment(name="f.x", media_type=media_type, data=data)])


def test_an_answer_replaces_all_earlier_tries() -> None:
    failed = turn(2, answer=None, state="failed", replaces=1)
    assert replaced([turn(1), failed]) == set()  # the old answer stands until there is a new one
    assert replaced([turn(1), failed, turn(3, replaces=2)]) == {1, 2}
    assert replaced([turn(1), failed], also=2) == {1, 2}
