"""Prompts for load runs: of the length asked for, different from the first words on, the same for the same seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cbatch import prompts
from cbatch.errors import JobError, JournalError, SourceError
from cbatch.parquet import write_part
from cbatch.prompts import ENDING, ENDING_TOKENS, WORDS, Replay, synthetic, write_replay, write_synthetic
from cbatch.schema import COLUMN_INDEX, COLUMNS

MODEL = "gpt-oss-120b"
GOLDEN = "afe0d771b2874cf29438e4cbd9430e33ba45a407250b75ea19dbd81d8b367ac1"


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


# -- made prompts -----------------------------------------------------------------------


def test_words_are_those_that_ten_bits_can_choose() -> None:
    assert len(set(WORDS)) == len(WORDS) == 1_024
    assert all(word.isascii() and word.isalpha() and word.islower() for word in WORDS)


@pytest.mark.parametrize("tokens", [16, 17, 100, 4_096])
def test_a_prompt_has_as_many_words_and_marks_as_tokens_were_asked_for(tokens: int) -> None:
    """A word is a token, and so is each of the two full stops."""
    (row,) = synthetic(1, [tokens], seed=3)
    words = row["prompt"].removesuffix(ENDING).split()
    assert len(words) + len(ENDING.replace(".", " . ").split()) == tokens
    assert len(ENDING.replace(".", " . ").split()) == ENDING_TOKENS
    assert set(words) <= set(WORDS)
    assert row["tokens"] == tokens


def test_no_two_prompts_begin_alike() -> None:
    """1,024 rows in a row differ in their first word, and all in their first two, short ones too."""
    firsts = [tuple(row["prompt"].split()[:3]) for row in synthetic(50_000, [16, 20], seed=5)]
    assert len({first[:2] for first in firsts}) == len(firsts)
    for start in (0, 1_024, 20_000):
        assert len({first[0] for first in firsts[start : start + 1_024]}) == 1_024


def test_two_seeds_have_no_prompt_in_common() -> None:
    one, two = ({row["prompt"][:60] for row in synthetic(5_000, [32], seed=seed)} for seed in (0, 1))
    assert not one & two


def test_of_several_lengths_each_comes_once_in_every_round_and_the_order_varies() -> None:
    found = [row["tokens"] for row in synthetic(800, [16, 32, 64, 128], seed=1)]
    rounds = [tuple(found[n : n + 4]) for n in range(0, 800, 4)]
    assert {tuple(sorted(one)) for one in rounds} == {(16, 32, 64, 128)}
    assert len(set(rounds)) == 24  # all orders there are


def test_a_seed_makes_the_same_bytes_for_ever(tmp_path: Path) -> None:
    """The hash was taken once: another platform or version of Python must not change what a seed asks."""
    write_synthetic(tmp_path / "a.jsonl", 200, [16, 64, 300], 7)
    assert hashlib.sha256((tmp_path / "a.jsonl").read_bytes()).hexdigest() == GOLDEN
    assert lines(tmp_path / "a.jsonl") == list(synthetic(200, [16, 64, 300], 7))


def test_rows_are_made_one_by_one() -> None:
    assert len(list(islice(synthetic(10**12, [64], seed=0), 10))) == 10


def test_a_file_that_could_not_be_made_whole_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "prompts.jsonl"
    write_synthetic(path, 3, [16], 0)
    before = path.read_bytes()

    def full(rows: int, tokens: Sequence[int], seed: int) -> Iterator[dict[str, Any]]:
        yield {"prompt": "x"}
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prompts, "synthetic", full)
    with pytest.raises(JournalError, match=r"prompts\.jsonl: cannot be written: No space left"):
        write_synthetic(path, 3, [16], 1)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="cannot be written: No such file"):
        write_synthetic(tmp_path / "nowhere" / "prompts.jsonl", 3, [16], 1)


# -- prompts of an earlier run ----------------------------------------------------------


def row(n: int, at_s: float | None, **values: Any) -> list[Any]:
    """Row `n` of a run, sent `at_s` after it began."""
    out: list[Any] = [None] * len(COLUMNS)
    started = None if at_s is None else 1_790_000_000_000_000 + round(at_s * 1e6)
    given = {"id": f"p{n}", "model": MODEL, "sample": 0, "status": "ok", "attempts": 1, "started_at": started}
    for name, value in (given | {"input": json.dumps({"n": n})} | values).items():
        out[COLUMN_INDEX[name]] = value
    return out


Earlier = Callable[..., list[Path]]


@pytest.fixture
def earlier(tmp_path: Path) -> Earlier:
    """Parts with these rows, one each."""

    def write(*parts: list[list[Any]]) -> list[Path]:
        paths = [tmp_path / "earlier" / "results" / f"part-{n:05}.parquet" for n in range(len(parts))]
        (tmp_path / "earlier").mkdir()
        for path, rows in zip(paths, parts, strict=True):
            write_part(rows, {}, tmp_path / "earlier" / "staging" / path.name, path)
        return paths

    return write


def replay(tmp_path: Path, parts: Sequence[Path], pending: Sequence[list[Any]] = (), **more: Any) -> Replay:
    return write_replay(tmp_path / "out.jsonl", tmp_path / "earlier", parts, pending, **{"model": MODEL} | more)


def test_prompts_come_in_the_order_they_were_sent_and_with_their_times(tmp_path: Path, earlier: Earlier) -> None:
    """Rows stand in the order they were answered, in parts and in the journal; each sample is one."""
    parts = earlier([row(2, 2.5), row(0, 0.25)], [row(3, 3.0), row(1, 1.0), row(1, 1.5, sample=1)])
    found = replay(tmp_path, parts, [row(5, 9.0), row(4, 4.000001)])
    assert [line["n"] for line in lines(tmp_path / "out.jsonl")] == [0, 1, 1, 2, 3, 4, 5]
    assert found.offsets_s.typecode == "d"
    assert list(found.offsets_s) == [0.0, 0.75, 1.25, 2.25, 2.75, 3.750001, 8.75]
    assert (found.warmup, found.never_sent, found.without_input) == (0, 0, 0)


def test_the_first_sent_are_the_ones_that_a_limit_leaves(tmp_path: Path, earlier: Earlier) -> None:
    found = replay(tmp_path, earlier([row(2, 2.0), row(1, 1.0), row(0, 0.5)]), limit=2)
    assert [line["n"] for line in lines(tmp_path / "out.jsonl")] == [0, 1]
    assert list(found.offsets_s) == [0.0, 0.5]


def test_what_was_no_measured_request_to_this_model_is_left_out_and_counted(tmp_path: Path, earlier: Earlier) -> None:
    parts = earlier(
        [
            row(0, 0.0, load_phase="warmup"),
            row(1, 1.0, load_phase="measure"),
            row(2, None, status="error", error_kind="source", input="{broken"),
            row(3, 1.5, model="another"),
            row(4, 2.0, input=None),
            row(5, 3.0, status="error", error_kind="server"),
        ]
    )
    found = replay(tmp_path, parts)
    assert [line["n"] for line in lines(tmp_path / "out.jsonl")] == [1, 5]
    assert list(found.offsets_s) == [0.0, 2.0]
    assert (found.warmup, found.never_sent, found.without_input) == (1, 1, 1)


def test_rows_are_copied_byte_for_byte_whatever_their_length(tmp_path: Path, earlier: Earlier) -> None:
    """Characters of several bytes, and U+2028, which splits lines of text but not of bytes; out of order."""
    texts = ['{"q": "café"}', '{"q": "日本語 \u2028 🎉"}', '{"q": 1.50}', json.dumps({"q": "x" * 100_000})]
    parts = earlier([row(n, 10.0 - n, input=text) for n, text in enumerate(texts)])
    replay(tmp_path, parts)
    assert (tmp_path / "out.jsonl").read_bytes() == "".join(f"{text}\n" for text in reversed(texts)).encode()


def test_a_row_that_was_spread_over_lines_becomes_one(tmp_path: Path, earlier: Earlier) -> None:
    replay(tmp_path, earlier([row(0, 0.0, input='{\n  "n": "a\\nb"\n}')]))
    assert lines(tmp_path / "out.jsonl") == [{"n": "a\nb"}]


def test_a_run_of_an_older_version_can_be_replayed(tmp_path: Path, earlier: Earlier) -> None:
    """Its parts have no column that tells the phase."""
    (part,) = parts = earlier([row(1, 1.0), row(0, 0.0)])
    pq.write_table(pq.read_table(part).drop_columns(["load_phase", "load_block", "load_level"]), part)
    replay(tmp_path, parts)
    assert [line["n"] for line in lines(tmp_path / "out.jsonl")] == [0, 1]


def test_a_run_that_kept_no_prompts_is_refused(tmp_path: Path, earlier: Earlier) -> None:
    with pytest.raises(JobError, match="its rows do not hold the prompts") as caught:
        replay(tmp_path, earlier([row(0, 0.0, input=None), row(1, None, input=None)]))
    assert "results.input: false" in (caught.value.hint or "")
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        pytest.param([], r"no prompt was sent to gpt-oss-120b$", id="no rows"),
        pytest.param([row(0, None)], r"\(rows: 1 never sent\)", id="only rows that were never sent"),
        pytest.param([row(0, 1.0, load_phase="warmup")], r"\(rows: 1 warmup\)", id="only a warmup"),
        pytest.param([row(0, 1.0, model="another")], "no prompt was sent to gpt-oss-120b$", id="another model"),
    ],
)
def test_a_run_that_sent_nothing_is_refused(tmp_path: Path, earlier: Earlier, rows: Any, why: str) -> None:
    with pytest.raises(JobError, match=why):
        replay(tmp_path, earlier(rows) if rows else [])
    assert not (tmp_path / "out.jsonl").exists()


def test_a_part_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    part = tmp_path / "part-00000.parquet"
    part.write_bytes(b"no Parquet")
    with pytest.raises(SourceError, match=r"part-00000\.parquet: not a readable Parquet file"):
        replay(tmp_path, [part])
    with pytest.raises(SourceError, match=r"gone\.parquet"):
        replay(tmp_path, [tmp_path / "gone.parquet"])


class Growing(list[list[Any]]):
    """Rows of a run that goes on: there is another one whenever they are read."""

    def __iter__(self) -> Iterator[list[Any]]:
        yield from list(super().__iter__())
        self.insert(0, row(len(self), 0.0))


def test_rows_that_change_between_the_two_readings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="changed while they were read"):
        replay(tmp_path, [], Growing([row(10, 1.0)]))
    assert not (tmp_path / "out.jsonl").exists()
