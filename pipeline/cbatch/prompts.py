"""Prompts of a load run: made of common words, or those of an earlier run with the times they were sent.

Both are written as JSONL, so that what is asked can be read, hashed and asked again as any input. A made
prompt shares no first words with another one, so no server answers it from the cache of a prompt before:

    {"prompt": "castle order the … Tell a very long and detailed story about these words.", "tokens": 512}
"""

from __future__ import annotations

import os
import random
import struct
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import orjson

from cbatch.errors import JobError, JournalError, SourceError
from cbatch.parquet import fsync_folder, read_rows
from cbatch.schema import COLUMN_INDEX

# 1,024 of them: ten bits choose one. They are short and frequent, so that the usual BPE vocabularies have each
# as one token with the space before it. To change one is to change every prompt that a seed ever made.
WORDS = """
able about above access across action active actual add adult advice affect after again age agency agent ago
agree ahead air album all almost alone along also always among amount and angle animal answer any anyone appear
apple apply area around art ask aspect asset author avoid award aware away baby back bad bag ball band bank bar
base basic bath bear beat became become bed before began begin behind being bell below belt beside best better
beyond big bike bill bird birth bit black block blog blue board boat body bold bone book boot border born both
bottle bought bound box boy brain branch brand brave bread break breath bridge brief bright bring broke brown
brush budget build bus bush busy but butter button buy cabin cake call calm came camera camp can car card care
career case castle cat catch cause cell center chair chance change charge chart check chief child choice choose
church circle city claim class clean clear climb clock close cloud club coast coat code coffee coin cold color
column come common cook cool copy core corn corner cost could count couple course court cover cream create
credit crew crop cross crowd crown curve cycle daily dance dark data date day deal dear debate decade decide
deep defend define degree delay demand depend depth desert design desire desk detail device differ direct dish
divide doctor dog dollar domain door double doubt down dragon draw dream dress drink drive driver drop dry due
during dust each ear early earn earth ease east easy eat edge edit effect effort egg eight either elect else
employ empty enable end energy engine enjoy enough ensure enter entire entry equal escape essay estate even
event ever every except exist exit expect expert extra eye face fact factor fail fair fall false family fan far
farm fast father favor feed feel feet felt few field fifth figure file fill film final find fine finger finish
fire firm first fish fit five fix flag flat flight float floor flow flower fly focus fold follow food foot for
force forget form formal former found four frame free fresh friend from front frozen fruit fuel full fun fund
future gain game gap garden gas gate gave get giant gift girl give glad glass global goal gold golden gone good
govern grade grant graph gray great green grew ground group grow growth guess guest guide hair half hall hand
handle happen happy hard hat have head health hear heart heat heavy held hello help her here high hill him his
hold hole home honest hope host hour house how huge human humor hung ice idea image impact import income indeed
index inform input inside intend into invite iron island issue item job join joint joke juice jump just keep
kept key kind king knee knew know label labor lack lady lake land large laser last late later latter launch law
lay layer lead leader lean learn least leave left leg legal length less let letter level lie life lift light
like limit line link lion list listen little live local locate lock log logic long look loose lord lose lot loud
love low luck made magic mail main major make manage manner many map march mark market mass master match math
matter may maybe meal mean meat media meet member memory mental menu metal method middle might mile milk mill
mind mine minute mix mobile mode model modern moment money month mood moon more most mother motion motor move
movie much music must myself name native near neat neck need net never new news next nice night nine noise none
nor normal north nose note notice novel now number nurse object obtain occur ocean odd off offer office often
oil old once one only onto open opera option order origin other our outer output over own owner pace pack page
paint pair panel paper parent park part party pass past path pay peace pen people per period permit person phase
phone photo phrase piano pick piece place plain plan plane plant play player please plenty point policy pool
poor post power press pretty price prime print prior prize proof proper prove public pull pure push put queen
quick quiet quite quote race radio rail rain raise range rank rare rate rather reach react read ready real
reason recent recipe record red reduce refer reform regard region relate relax rely remain remote remove rent
repair repeat reply report rest result return reveal review reward rice rich ride right ring rise river road
robot rock role roll roof room root rose round route row royal rule run safe same sample sand save scale scene
school score screen sea search season seat second secret secure see seem sell send sense series serve set seven
shake shall shape share she shift ship shirt shop short should show shower side sight sign signal since sing
site six size skill sky sleep slow small smart smile snow social soft solar solid solve some song soon sort soul
sound source south space spare speak speech speed spend split spoke sport spot staff stage stand star start
state stay step stick still stock stone stood stop store story stream street string strong studio study stuff
style such sudden summer sun supply sure system table tail take talk target task taste tea teach team tell ten
tend term test text than thank that the their them theme then theory there these they thin thing think third
this those though three tight time tiny tip tired title today told tone too tool top topic total touch tour
toward tower town toy track trade trail train travel treat tree trip true trust truth try turn twin two type
under union unique unit unity until upon use user usual value van very via video view visit vital voice wait
walk wall want warm watch water wave way wear web week weight well went were west wet what when where which
while white who whose why wide wife wild will wind window winter wish with within woman wood word work world
worth would write yard year yes yet you young your zone
""".split()  # noqa: SIM905 - as literals they would be 1,024 lines

_BITS = 10
_MASK = len(WORDS) - 1
_TABLE = WORDS * 64  # by 16 random bits at once

# Without it a model would end after a line or two, and not at max_completion_tokens.
ENDING = ". Tell a very long and detailed story about these words."
ENDING_TOKENS = 12

# The first words are the row's number, spread out and written in base 1,024 with the lowest digit first. So
# 1,024 rows differ from their first word on, a million from the second, 2**40 from the fourth.
NUMBER_WORDS = 4
NUMBER_MASK = (1 << (_BITS * NUMBER_WORDS)) - 1
STRIDE = 0x9E3779B97F  # odd, so that no two rows have one number

_ASKED = ("model", "load_phase", "started_at", "input")


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What was taken from an earlier run, and what was not."""

    offsets_s: array[float]  # when each prompt was sent, since the first
    warmup: int  # rows of warmups, left out
    never_sent: int  # rows without a request, left out
    without_input: int  # rows that did not keep their prompt, left out


def synthetic(rows: int, tokens: Sequence[int], seed: int) -> Iterator[dict[str, Any]]:
    """Rows of a `prompt` of about `tokens` tokens each (at least 16; the chat template comes on top).

    Of several lengths each comes once in every round, in an order of its own. The same seed gives the same rows
    on every platform and version of Python: only `getrandbits` is drawn from, which is promised to stay.
    """
    rng = random.Random(seed)
    start = rng.getrandbits(_BITS * NUMBER_WORDS)
    lengths: list[int] = []
    for row in range(rows):
        if not lengths:
            lengths = _shuffled(tokens, rng)
        asked = lengths.pop()
        number = (start + row * STRIDE) & NUMBER_MASK
        words = [WORDS[number >> (_BITS * digit) & _MASK] for digit in range(NUMBER_WORDS)]
        more = max(0, asked - NUMBER_WORDS - ENDING_TOKENS)
        drawn = rng.getrandbits(16 * more).to_bytes(2 * more, "little")
        words += map(_TABLE.__getitem__, struct.unpack(f"<{more}H", drawn))
        yield {"prompt": " ".join(words) + ENDING, "tokens": asked}


def _shuffled(values: Sequence[int], rng: random.Random) -> list[int]:
    out = list(values)
    for last in range(len(out) - 1, 0, -1):  # Fisher and Yates; `rng.shuffle` may draw otherwise in another version
        other = rng.getrandbits(32) % (last + 1)
        out[last], out[other] = out[other], out[last]
    return out


def write_synthetic(path: Path, rows: int, tokens: Sequence[int], seed: int) -> None:
    """Write `synthetic` rows as JSONL: whole, or not at all. Raises JournalError."""
    with _replacing(path) as file:
        for row in synthetic(rows, tokens, seed):
            file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))


def write_replay(
    path: Path,
    earlier: Path,
    parts: Sequence[Path],
    pending: Sequence[Sequence[Any]],
    *,
    model: str,
    limit: int | None = None,
) -> Replay:
    """Write what an earlier run asked `model` as JSONL, in the order it was sent, and tell when that was.

    `earlier` is its folder, for messages; `pending` are its rows that are in no part yet. Each sample of a
    prompt is a row. Raises JobError where there is nothing to ask again, SourceError for a part that cannot
    be read, and JournalError.
    """
    # Read twice, rather than hold all prompts: the first time tells where in the file each line belongs.
    left_out: Counter[str] = Counter()
    sent, sizes = array("q"), array("Q")
    for at, line in _sent(parts, pending, model, left_out):
        sent.append(at)
        sizes.append(len(line))
    if not sent:
        raise _nothing(earlier, model, left_out)
    order = sorted(range(len(sent)), key=sent.__getitem__)[:limit]
    places, end = array("q", [-1]) * len(sent), 0
    for row in order:
        places[row] = end
        end += sizes[row]
    with _replacing(path) as file:
        rows = 0
        for (_, line), place, size in zip(_sent(parts, pending, model, Counter()), places, sizes, strict=False):
            if len(line) != size:
                break
            if place >= 0:
                file.seek(place)
                file.write(line)
            rows += 1
        if rows != len(sent):
            raise SourceError(f"{earlier}: its rows changed while they were read", hint="wait until that run has ended")
    first = sent[order[0]]
    return Replay(
        offsets_s=array("d", ((sent[row] - first) / 1e6 for row in order)),
        warmup=left_out["warmup"],
        never_sent=left_out["never sent"],
        without_input=left_out["without input"],
    )


def _sent(
    parts: Sequence[Path], pending: Sequence[Sequence[Any]], model: str, left_out: Counter[str]
) -> Iterator[tuple[int, bytes]]:
    """When each prompt was sent (µs), and its row as a line."""
    for asked, phase, sent_at, row in _asked(parts, pending):
        if asked != model:
            continue
        if phase == "warmup":
            left_out["warmup"] += 1
        elif sent_at is None:
            left_out["never sent"] += 1
        elif row is None:
            left_out["without input"] += 1
        else:
            # In JSON a line break stands between values only.
            yield sent_at, row.replace("\n", " ").encode() + b"\n"


def _asked(parts: Sequence[Path], pending: Sequence[Sequence[Any]]) -> Iterator[Sequence[Any]]:
    try:
        for part in parts:
            yield from read_rows(part, _ASKED)
    except OSError as exc:
        raise SourceError(str(exc)) from None
    places = [COLUMN_INDEX[name] for name in _ASKED]
    for row in pending:
        yield [row[place] for place in places]


def _nothing(earlier: Path, model: str, left_out: Counter[str]) -> JobError:
    if left_out["without input"]:
        return JobError(
            f"{earlier}: its rows do not hold the prompts, so they cannot be sent again",
            hint="it was run with `results.input: false`: replay a run that keeps them",
        )
    found = ", ".join(f"{count:,} {what}" for what, count in left_out.items())
    return JobError(
        f"{earlier}: no prompt was sent to {model}" + (f" (rows: {found})" if found else ""),
        hint="`cbatch status` tells what is in a run",
    )


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` once it is whole and durable. Raises JournalError."""
    staged = path.with_name(f".{path.name}.tmp")
    try:
        with staged.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
        fsync_folder(path.parent)
    except BaseException as exc:
        with suppress(OSError):
            staged.unlink(missing_ok=True)
        if isinstance(exc, OSError):
            raise JournalError(
                f"{path}: cannot be written: {exc.strerror or exc}",
                hint="free some space, or choose another --output",
            ) from None
        raise
