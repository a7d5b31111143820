"""Job with `load` -> blocks of one load each: the engine of a batch, asked the same prompts again and again.

Everything of `engine.py` holds: the journal, the bound on what a crash costs, pacing, retries. What is
other is where prompts come from (the input, from its beginning in every block, as often as it takes)
and that the number of requests in flight, or their times, are the job's and nobody else's. A block is
the unit: what came to its end is kept, what did not is run again.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

from cbatch import calibrate
from cbatch.crew import Crew
from cbatch.engine import Run
from cbatch.errors import CbatchError, JobError, JournalError
from cbatch.fleet import Fleet
from cbatch.journal import Writer, key_of
from cbatch.ledger import Ledger, Unknown, unknown
from cbatch.loadplan import SEARCH_S, Stage, Stages, arrivals, end_of, gates_of, judge, span, stages
from cbatch.meter import Lags, Meter
from cbatch.resume import Work, recipe
from cbatch.schema import COLUMN_INDEX, COLUMNS, Prompt, Record, Timeline
from cbatch.send import Sender
from cbatch.session import Summary
from cbatch.source import Source, Survey
from cbatch.throttle import Throttle
from cbatch.turns import Turns

WARMUP_S = 2.0  # where blocks are timed, and the job says nothing
NEARLY = 0.95  # of what was asked for is all in flight that one may ask for
FEW_ROWS, FEW_BYTES = 10_000, 16 << 20  # of prompts that are kept; more are read again in every round
FEW_VALUES = 100_000  # of a block are kept for its medians
_NUMBERS = {name: COLUMN_INDEX[name] for name, kind, _ in COLUMNS if kind in ("int64", "float64")}
_ALWAYS = ("ttft_s", "latency_s")
_TAIL, _LATENCY, _TOKENS = (COLUMN_INDEX[name] for name in ("tail_s", "latency_s", "completion_tokens"))


# Why answers in a folder are not of this load run, by what the journal keeps.
_DIFFERENT = {
    "batch": "a batch, not of a load run",
    "recipe": "another job (its model, prompt, params or load were edited, --repeat included)",
    "travel": "another params.stream",
    "source": "another input",
    "rows": "another --limit",
    "endpoint": "another endpoint",
}


class LoadRun(Run):
    """One session of a load run; `offsets` are the times of a replay, in seconds from its beginning."""

    def __init__(
        self,
        *args: Any,
        turns: Turns | None = None,
        with_: str | None = None,
        offsets: Sequence[float] = (),
        **named: Any,
    ) -> None:
        """`turns` are shared with the other jobs of an interleaved run, `with_` is where those write."""
        super().__init__(*args, **named)
        assert self.job.load is not None
        if self._options.retry_failed or self._options.changed:
            raise JobError(
                "--retry-failed and --changed are for batches: the requests of a load run are what it measures",
                hint="leave it out; --fresh measures all again",
            )
        self.load = self.job.load
        self._turns = turns
        self._with = with_
        self._offsets = offsets
        self._blocks: list[dict[str, Any]] = []
        self._stages: Stages
        self._stage: Stage | None = None
        self._planned = 0  # blocks in all; a search does not know
        self._search: list[dict[str, Any]] = []
        self._asked: dict[str, Iterator[Prompt]] = {}
        self._few: list[Prompt] | None = None
        if turns is not None:
            turns.join(self)

    async def execute(self) -> Summary:
        """Run the blocks that did not come to their end. Raises CbatchError where nothing could be started."""
        try:
            return await super().execute()
        finally:  # also where there was nothing to do: the others would wait for its turn for ever
            if self._turns is not None:
                self._turns.leave(self)

    # -- what a batch does otherwise ----------------------------------------------------------

    async def _take_stock(self, source: Source, survey: Survey, endpoint_said: str | None) -> None:
        """Find out which blocks the folder already holds. Raises JobError if they are another run's."""
        self._source, self._survey = source, survey
        journal = self._journal
        done, failed = journal.counts()
        mine = {
            "recipe": recipe(self.job),
            "travel": self.job.params.travel(),
            "source": survey.fingerprint,
            "rows": survey.rows,
            "endpoint": self._endpoint,
        }
        held = journal.get("load") or self._told()
        if done + failed and (held is None or any(held.get(key) != value for key, value in mine.items())):
            other = (
                _DIFFERENT["batch"]
                if held is None
                else " and ".join(
                    words for key, words in _DIFFERENT.items() if key in mine and held.get(key) != mine[key]
                )
            )
            raise JobError(
                f"{self.folder.path}: holds the answers of {other}",
                hint="--output DIR starts beside it; --fresh deletes it and starts over",
            )
        self._resume = _Held(done + failed)  # type: ignore[assignment]
        self._mine = mine
        self._blocks = list(held["blocks"]) if held and done + failed else []
        self._offsets = self._offsets[: survey.rows]
        self.progress.total, self.progress.done, self.progress.failed = done + failed, done, failed
        self.progress.left_by_model = dict.fromkeys(self.job.model, 0)
        self._uses = array("I", [journal.most_samples()]) * survey.rows

    def _told(self) -> dict[str, Any] | None:
        """What run.json says of the blocks, where the journal was lost and rebuilt from the parts."""
        info = self.folder.read_info()
        blocks = (info.get("load") or {}).get("blocks")
        if blocks is None:
            return None
        source = info.get("source") or {}
        told = {"recipe": info.get("recipe"), "source": source.get("sha256"), "rows": source.get("rows")}
        # How the answers travelled is not told: whether they came as a stream is in the job.
        travel = {"travel": self.job.params.travel()}
        return told | travel | {"endpoint": info.get("endpoint"), "blocks": blocks}

    async def _has_work(self, source: Source, survey: Survey) -> bool:
        """Whether the plan has more blocks than came to their end."""
        self._stages = stages(self.load, self.job.model)
        if self.load.mode != "search":
            self._planned = sum(1 for _ in stages(self.load, self.job.model))
        self._stage = next(self._stages, None)
        for block in self._blocks:
            if block["complete"]:
                self._note(block)
        if self._stage is not None:
            self._few = await asyncio.to_thread(self._kept)
        return self._more_to_do

    def _kept(self) -> list[Prompt] | None:
        """All prompts, where they are few: to look for 20 of a million rows again in every round blocks the loop."""
        if self._survey.rows > FEW_ROWS:
            return None
        found: list[Prompt] = []
        size = 0
        for prompt in islice(self._source.prompts(self._survey, self.job.model[:1]), self._survey.rows):
            size += len(prompt.raw)
            if size > FEW_BYTES:
                return None
            found.append(prompt)
        return found

    def _report_crash(self) -> None:
        earlier = unknown(self._journal)
        self._earlier = Unknown(earlier.rows, earlier.usd)
        if earlier.rows:
            self._warn(f"the last session was cut off: at most {earlier.rows:,} requests were sent and not saved")

    async def _settle(self, survey: Survey) -> None:
        """Nothing is left to be counted: rows that were not sent are no rows."""

    @property
    def _more_to_do(self) -> bool:
        return self._stage is not None or bool(self._uncalibrated())

    def _judged(self) -> tuple[int, int]:
        """Warm-ups, blocks without an end and loads that a search refused do not decide how a run ends."""
        counted = [block for block in self._blocks if block["complete"] and not block.get("why")]
        return sum(block["failed"] for block in counted), sum(block["requests"] for block in counted)

    def _more_info(self) -> dict[str, Any]:
        info: dict[str, Any] = {
            "load": {
                "mode": self.load.mode,
                "interleaved_with": self._with,
                "blocks": self._blocks,
                "search": self._searched() if self.load.mode == "search" else None,
            }
        }
        # How many requests it will have been, nobody knows before the end.
        return info if self._stage is None else info | {"total": None}

    async def _work(self, fleet: Fleet, ledger: Ledger) -> None:
        """Run block after block."""
        senders = {sender.model: sender for sender in fleet.senders}
        try:
            while self._stage is not None and not self.progress.draining:
                if self._turns is not None:
                    await self._turns.take(self, sum(block["complete"] for block in self._blocks))
                try:
                    if not self.progress.draining:
                        await self._run_block(self._stage, senders[self._stage.model], ledger)
                finally:
                    if self._turns is not None:
                        self._turns.give(self)
            if not self.progress.draining:
                if self._turns is not None:
                    await self._turns.take(self, sys.maxsize)  # when nobody measures any more
                await self._calibrate()
        finally:
            if self._turns is not None:
                self._turns.leave(self)

    # -- one block ----------------------------------------------------------------------------

    async def _run_block(self, stage: Stage, sender: Sender, ledger: Ledger) -> None:
        number = len(self._blocks)
        block = _Block(self, stage, number, self._offsets)
        most = block.workers
        self._throttle = sender.throttle = Throttle(most, most)
        done = sum(earlier["complete"] for earlier in self._blocks)
        of = f"/{self._planned}" if self._planned else ""
        self.progress.stage = f"block {done + 1}{of}: {stage.level:g} {stage.unit}"
        if len(self.job.model) > 1:
            self.progress.stage += f" of {stage.model}"

        async def worker(_: int) -> None:
            await self._load_worker(block, sender)

        self._crew = Crew(worker, throttle=self._throttle, places=self._places, ledger=ledger, on_error=self.stop)
        # In the journal before its first row: what a kill leaves of it has a number of its own.
        self._blocks.append(block.found(complete=False))
        self._writer.set("load", self._mine | {"blocks": self._blocks})
        await self._crew.run(most)
        complete = not self.progress.draining and self._error is None
        self._blocks[number] = found = block.found(complete=complete)
        with suppress(JournalError):  # which has stopped the run already
            # On disk with all its rows, which were written before, when the next one begins.
            await asyncio.wrap_future(self._writer.set("load", self._mine | {"blocks": self._blocks}))
        if complete:
            self._note(found)
            with suppress(JournalError):  # the next block tells, or the end
                self._write_info(self._source, self._survey, "running")

    async def _load_worker(self, block: _Block, sender: Sender) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self._opening is not None:
            await self._opening.acquire()
        try:
            while not self.progress.draining:
                if not self._places.take():
                    await self._places.wait()
                asked = block.next()
                if asked is None:
                    self._places.give_back(1)
                    if block.ended is not None:  # the last gap of an open loop is a part of it, too
                        await self._wait_until(block.ended)
                    return
                prompt, timeline = asked
                self.progress.left_by_model[sender.model] += 1
                work = Work(prompt, key_of(prompt.id, prompt.model), None)
                made = await self._answer(work, sender, task, timeline)
                block.answered(made, timeline)
                self.progress.total += 1  # not before: what an end gives up is no row that is left to do
                self._writer.put(made, None)
        except CbatchError as exc:
            self.stop(exc)

    def prompts_of_block(self, model: str) -> Iterator[Prompt]:
        """The prompts of the next block.

        In turns with another job every block asks the same ones, for they are compared in pairs. Else they go on
        where the last block ended: what was asked a minute ago would be answered from the server's cache.
        """
        if self._turns is not None or model not in self._asked:
            self._asked[model] = self._prompts(model)
        return self._asked[model]

    def _prompts(self, model: str) -> Iterator[Prompt]:
        """The input from its beginning, again and again; `sample` counts how often a prompt was asked."""
        while True:
            prompts = self._few if self._few is not None else self._source.prompts(self._survey, (model,))
            # Not the rows that were appended since: they are of the next run.
            for place, prompt in enumerate(islice(prompts, len(self._uses))):
                self._uses[place] += 1
                yield replace(prompt, model=model, sample=self._uses[place] - 1)

    @property
    def meter(self) -> Meter:
        """The health of this client."""
        assert self._meter is not None
        return self._meter

    def wall(self, stamp: float) -> datetime:
        """The wall clock of a stamp."""
        return self._anchor[0] + timedelta(seconds=stamp - self._anchor[1])

    @property
    def rows(self) -> int:
        """How many prompts the input has."""
        return self._survey.rows

    # -- between blocks -------------------------------------------------------------------------

    def _note(self, block: dict[str, Any]) -> None:
        """A block came to its end: go on to the next stage."""
        why = block.get("why")
        if self.load.mode == "search":
            self._search.append(
                {"level": block["level"], "block": block["block"], "passed": why is None, "why": why or ""}
            )
        try:
            self._stage = self._stages.send(why)
        except StopIteration:
            self._stage = None

    def _searched(self) -> dict[str, Any]:
        best = max((trial["level"] for trial in self._search if trial["passed"]), default=None)
        missed = [trial for trial in self._search if not trial["passed"] and (best is None or trial["level"] > best)]
        least = min(missed, key=lambda trial: trial["level"], default=None)
        unit = "requests/s" if self.load.rate else "in flight"
        why = f"{least['level']:g} {unit}: {least['why']}" if least else "the highest load of the search passed"
        why = why if self._stage is None else "not finished"
        return {"best": best, "unit": unit, "slo": self.load.slo, "why": why, "trials": self._search}

    def _uncalibrated(self) -> list[list[dict[str, Any]]]:
        """The blocks that wait for a calibration, those with the same number in flight together."""
        alike: dict[int, list[dict[str, Any]]] = {}
        for block in self._blocks:
            if self.load.calibrate and block["complete"] and block["overhead_s"] is None and block["times_s"]:
                asked = block["level"] if block["unit"] == "in flight" else 1
                alike.setdefault(round(max(asked, block["in_flight"])), []).append(block)
        return [alike[in_flight] for in_flight in sorted(alike)]

    async def _calibrate(self) -> None:
        """Measure this client at every load that was run, against an echo as fast as the server was."""
        for blocks in self._uncalibrated():
            if self.progress.draining:
                break
            in_flight = round(max(max(b["in_flight"], b["level"] * (b["unit"] == "in flight"), 1) for b in blocks))
            self.progress.stage = f"calibrating at {in_flight:,} in flight"
            first, rest = (statistics.median(block["times_s"][part] for block in blocks) for part in (0, 1))
            found = await calibrate.overhead(in_flight, first, rest)
            for block in blocks:
                block["overhead_s"] = found
                block["times_s"] = None
        self._writer.set("load", self._mine | {"blocks": self._blocks})


class _Held:
    """What `Resume` is to a batch: a load run replaces nothing, and its rows have no orphans."""

    may_replace = False
    orphaned = not_seen = 0

    def __init__(self, rows: int) -> None:
        self.known_before = self.known_seen = rows

    def settle(self, writer: Writer, survey: Survey, endpoint: str) -> None:
        """Nothing: `load` in the journal says it all."""

    def unsettle(self, writer: Writer) -> None:
        """Nothing."""


class _Block:
    """One block while it runs: which prompt is next, and what was measured."""

    def __init__(self, run: LoadRun, stage: Stage, number: int, offsets: Sequence[float]) -> None:
        load = run.load
        self._run, self._stage, self._number, self._load = run, stage, number, load
        self._open = stage.unit == "requests/s"
        self._level = stage.level
        self._duration_s = load.duration_s or (SEARCH_S if load.mode == "search" and not load.requests else None)
        self._most = load.requests or (None if self._duration_s else len(offsets) or run.rows)
        # Where blocks are counted and not timed, so is the warm-up: once around, for connections and caches.
        once = min(int(stage.level), self._most or int(stage.level))
        self._warming = 0 if self._open or self._duration_s or load.warmup_s is not None else once
        self._warmup_s = load.warmup_s if load.warmup_s is not None else 0.0 if self._warming else WARMUP_S
        self._window_s = self._duration_s  # None: as long as it takes
        self._times: Iterator[float] | None = None
        if load.mode == "replay":
            self._most = min(self._most or len(offsets), len(offsets))
            times = [offset / stage.level for offset in offsets[: self._most]]
            self._times, self._warmup_s = iter(times), 0.0
            self._window_s = span(times)
            self._level = round(len(times) / self._window_s, 3)
        elif self._open:
            self._times = arrivals(load, stage.level, stage.repeat)
            if self._most is not None:
                counted = end_of(arrivals(load, stage.level, stage.repeat), self._warmup_s, self._most)
                self._window_s = min(counted - self._warmup_s, self._duration_s or counted)
        self.workers = load.max_in_flight if self._open else int(stage.level)
        if self._open and self._most is not None:
            self.workers = min(self.workers, self._most)
        self._prompts = run.prompts_of_block(stage.model)
        self._issued = 0
        self._flying_s = 0.0  # on the wire in the measured window, summed over requests
        needed = {*_ALWAYS, *(gate.metric for gate in gates_of(load))} & _NUMBERS.keys()
        self._values: dict[str, array[float]] = {name: array("d") for name in needed}
        self._most_values = sys.maxsize if load.mode == "search" else FEW_VALUES  # a search is judged by all of them
        self._requests = self._failed = self._in_time = 0
        self._completed = self._completed_tokens = 0  # answers that ended in the measured window, whenever sent
        self._has_begun = False
        self.ended: float | None = None  # when the measured window was over, or is going to be
        self._timer: asyncio.TimerHandle | None = None
        self._lags: Lags | None = None
        self._starved_s = 0.0
        self._cpu_s: float | None = None
        self._begin()

    def _begin(self) -> None:
        """The block starts now: when its first request is asked for, so nothing that is written before delays it."""
        run = self._run
        self._begun = run.clock()
        self._from = self._begun + self._warmup_s
        self._until = self._from + self._window_s if self._window_s else float("inf")
        self._wall = run.wall(self._begun)
        activity = run.progress.activity
        self._refused, self._paced_s = activity.rate_limited, activity.pace_wait_s

    def next(self) -> tuple[Prompt, Timeline] | None:
        """The next request and when it is due; None when the block has no more."""
        if not self._has_begun:
            self._has_begun = True
            self._begin()
            if self._open:  # requests are taken before they are due: the window goes by the clock
                self._timer = asyncio.get_running_loop().call_later(self._warmup_s, self._start_measuring)
        now = self._run.clock()
        due: float | None = now
        if self._times is not None:
            offset = next(self._times, None)
            due = self._begun + offset if offset is not None else None
        if self.ended is not None or due is None or self._is_over(due):
            self._end(now)
            return None
        measured = due >= self._from and not self._warming
        self._warming -= self._warming > 0
        if measured:
            if not self._issued:
                self._prompts = self._run.prompts_of_block(self._stage.model)
                if not self._open:  # the window is as long as was asked, however long the last of the warm-up took
                    self._from = now
                    self._until = now + self._window_s if self._window_s else float("inf")
                    self._start_measuring()
            self._issued += 1
        timeline = Timeline(
            ready=max(now, due),  # a worker has its request before that is due
            scheduled=due if self._open else None,
            block=self._number,
            level=self._level,
            phase="measure" if measured else "warmup",
        )
        return next(self._prompts), timeline

    def _is_over(self, due: float) -> bool:
        if self._issued == self._most or self._is_cut:
            return True
        return due >= self._until and (self._issued > 0 or self._open)

    @property
    def _rate_limited(self) -> int:
        return self._run.progress.activity.rate_limited - self._refused

    def answered(self, made: Record, timeline: Timeline) -> None:
        """A request has its outcome."""
        row = made.row
        sent, latency_s = timeline.sent, row[_LATENCY]
        if sent is not None:
            end = sent + latency_s + (row[_TAIL] or 0.0) if latency_s is not None else self._run.clock()
            window = self.ended if self.ended is not None else self._until
            self._flying_s += max(min(end, window) - max(sent, self._from), 0.0)
            if made.ok and self._from <= end <= window:
                self._completed += 1
                self._completed_tokens += row[_TOKENS] or 0
        if timeline.phase != "measure":
            return
        self._requests += 1
        self._failed += not made.ok
        self._in_time += timeline.first_sent is not None and timeline.first_sent <= self._until
        if made.ok:
            for name, values in self._values.items():
                if (value := row[_NUMBERS[name]]) is not None and len(values) < self._most_values:
                    values.append(value)

    def found(self, *, complete: bool) -> dict[str, Any]:
        """What run.json says of the block."""
        run, stage = self._run, self._stage
        if self._timer is not None:
            self._timer.cancel()
        end = self.ended if self.ended is not None else run.clock()
        paced_s = run.progress.activity.pace_wait_s - self._paced_s
        self._stop_measuring()
        seconds = max(end - self._from, 0.0)
        ttft, latency = self._values["ttft_s"], self._values["latency_s"]
        block = {
            "block": self._number,
            "model": stage.model,
            "repeat": stage.repeat,
            "level": self._level,
            "unit": stage.unit,
            "started_at": self._wall.astimezone(UTC).isoformat(timespec="microseconds"),
            "warmup_s": round(self._from - self._begun, 6),
            "measured_s": round(seconds, 6),
            "complete": complete,
            "requests": self._requests,
            "failed": self._failed,
            "rate_limited": self._rate_limited,
            "completed": self._completed,
            "completed_tokens": self._completed_tokens,
            "in_flight": round(self._flying_s / seconds, 2) if seconds else 0.0,
            "starved_s": round(self._starved_s, 3),
            "cpu_s": round(self._cpu_s, 3) if self._cpu_s is not None else None,
            "loop_lag_s": self._lags.found() if self._lags is not None else None,
            "times_s": _typical(ttft, latency),
            "overhead_s": None,
        }
        if self._load.mode == "search":
            block["why"] = judge(
                gates_of(self._load),
                self._values,
                requests=self._requests,
                failed=self._failed,
                rate_limited=self._rate_limited,
                per_s=(self._completed / seconds, self._completed_tokens / seconds) if seconds else (0.0, 0.0),
                held=paced_s / (paced_s + self._flying_s) if paced_s else 0.0,
                late=1 - self._in_time / self._requests if self._requests and self._open else 0.0,
            )
        return block

    def _start_measuring(self) -> None:
        """The warm-up is over: from here on it counts."""
        meter = self._run.meter
        self._flying_s = 0.0
        self._completed = self._completed_tokens = 0
        self._paced_s = self._run.progress.activity.pace_wait_s
        self._lags = meter.stretch = Lags()
        meter.wanted = None if self._open else NEARLY * self._stage.level
        self._starved_before, self._cpu_before = meter.starved_s, time.process_time()
        if self._window_s is not None:  # by the clock: who notices that it is over may wait for the account's limits
            left_s = self._until - self._run.clock()
            asyncio.get_running_loop().call_later(max(left_s, 0.0), self._stop_measuring)

    def _end(self, now: float) -> None:
        """Nothing more is sent. The window of an open loop may go on: then it is over when it is."""
        if self.ended is not None:
            return
        if not self._open and self._most is not None and self._most <= self.workers:
            return  # all was sent at once: what is in flight is what is measured
        self.ended = max(min(now, self._until), self._from) if not self._open or self._is_cut else self._until
        asyncio.get_running_loop().call_later(max(self.ended - now, 0.0), self._stop_measuring)

    @property
    def _is_cut(self) -> bool:
        """Whether a search has seen enough: one 429 is a no, and more of them cost."""
        return self._load.mode == "search" and self._rate_limited > 0

    def _stop_measuring(self) -> None:
        meter = self._run.meter
        if self._lags is not None and meter.stretch is self._lags:
            meter.stretch = meter.wanted = None
            self._starved_s = meter.starved_s - self._starved_before
            self._cpu_s = time.process_time() - self._cpu_before


def _typical(ttft: Sequence[float], latency: Sequence[float]) -> list[float] | None:
    """[median time to first token, median time from there to the end]; without streams all is the first."""
    if not latency:
        return None
    whole = statistics.median(latency)
    first = statistics.median(ttft) if ttft else whole
    return [round(first, 6), round(max(whole - first, 0.0), 6)]
