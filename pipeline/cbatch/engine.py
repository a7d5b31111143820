"""Job -> Summary: the only file that sees every stage.

    source -> render -> [known? skip] -> gate -> send -> measure -> journal (durable) -> counted -> part

Workers pull prompts from one shared iterator, so memory does not depend on the number of rows.
One rule bounds what a crash can cost: at most `job.bound(workers)` rows are sent and not yet durable,
and the ledger has that on disk before it is true. A worker is free as soon as its answer is in; its
place under the bound is free when the answer is on disk.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import orjson
from aiolimiter import AsyncLimiter

from cbatch import __version__, catalog
from cbatch.client import Client
from cbatch.crew import Crew
from cbatch.errors import BudgetReached, CbatchError, JobError, JournalError, RunStopped, SourceError
from cbatch.feed import Pending, Places
from cbatch.filesystem import require_local
from cbatch.fleet import Fleet
from cbatch.job import Job
from cbatch.journal import Journal, Writer
from cbatch.ledger import Ledger, Unknown, unknown
from cbatch.measure import METRICS_VERSION, cost_usd, record
from cbatch.meter import Meter
from cbatch.parquet import failures, table, text_length
from cbatch.publish import Publisher, carried_types, rebuild
from cbatch.purse import Purse
from cbatch.render import RenderError, Renderers
from cbatch.resume import Resume, Work, recipe, try_template
from cbatch.rundir import RunDir
from cbatch.runlock import RunLock
from cbatch.schema import COLUMN_INDEX, Completion, Failure, Prompt, Record, Timeline
from cbatch.send import Sender, UnservedModel, send
from cbatch.session import Options, Progress, Summary, unfinished_session
from cbatch.source import Source, Survey, carried, check_carry
from cbatch.throttle import Throttle

HEARTBEAT_S = 1.0  # how old `cbatch status` of a running job may be
DRAIN_S = 30.0  # after the first Ctrl-C, answers in flight get this long
PART_BYTES = 256 << 20  # a part is cut at this much text, however few its rows
PART_S = 300.0  # and at least this often, so that long runs can be looked into
TIMER_ROUNDING_S = 0.0005  # uvloop rounds to whole milliseconds, in both directions
KEPT_SERIES = 5  # sessions whose time series stays in run.json
HANDSHAKES_PER_S = 500  # TLS handshakes cost 1-2 ms each: connections open gradually

_ERROR_KIND, _MODEL = COLUMN_INDEX["error_kind"], COLUMN_INDEX["model"]

Connect = Callable[[], AbstractAsyncContextManager[Client]]


class Run:
    """One session of a run: `await Run(...).execute()`, and `interrupt()` from a signal handler."""

    def __init__(
        self,
        job: Job,
        folder: RunDir,
        *,
        connect: Connect,
        endpoint: str,
        simulated: bool = False,
        options: Options | None = None,
        warn: Callable[[str], None] = lambda message: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: Callable[[], float] = time.perf_counter,
        rng: random.Random | None = None,
        accounts: Path | None = None,
    ) -> None:
        """`accounts` is the folder of the budgets that all processes of a key share; None shares nothing."""
        self.job = job
        self.folder = folder
        self.progress = Progress()
        self._connect = connect
        self._endpoint = endpoint
        self.simulated = simulated
        self._options = options or Options()
        self._warn = warn
        self._now = now
        self.clock = clock
        self._rng = rng or random.Random()
        self._renderers = Renderers(job)
        self._models: Sequence[str] = job.model  # or what the lines of a batch file name, once they are read
        self._accounts = accounts
        self._crew: Crew | None = None
        self.observe: Callable[[Sequence[Any]], None] | None = None  # sees every durable row
        self._fleet: Fleet | None = None
        self._learned: dict[str, float] = {}
        self._meter: Meter | None = None
        self._throttle = Throttle(*job.limits.in_flight)
        self._cpu_s = 0.0
        self._error: BaseException | None = None
        self._signal: int | None = None
        self._cut_off: set[asyncio.Task[Any]] = set()  # cancelled on the wire: their answers may have been paid
        self._earlier = Unknown(0, None)
        self._uncut_bytes = 0
        check_carry(job)

    @property
    def is_sending(self) -> bool:
        """Whether requests may be on the wire."""
        return self._crew is not None and bool(self._crew.tasks)

    # -- the whole session ------------------------------------------------------------------

    async def execute(self) -> Summary:
        """Run what has no row yet. Raises CbatchError where nothing could be started."""
        loop = asyncio.get_running_loop()
        self._loop = loop
        self.progress.started_s = self._last_cut = loop.time()
        self._cpu_s = time.process_time()
        self._anchor = self._now(), self.clock()
        # Reading the job and the input comes before the folder is touched: a typo must leave no trace.
        source = Source(self.job, limit=self._options.limit)
        survey = await asyncio.to_thread(source.survey)
        self._models = list(survey.models)
        try_template(source, survey, self._renderers, self.job.at("input" if self.job.input.is_batch else "prompt"))
        self.folder.check()
        require_local(self.folder.journal.parent)
        lock = RunLock(*self.folder.locks)
        try:
            if self._options.fresh:
                self.folder.clear()
            for note in (*lock.notes, *self.folder.settle()):
                self._warn(note)
            return await self._execute(source, survey)
        finally:
            lock.close()

    async def _execute(self, source: Source, survey: Survey) -> Summary:
        folder, progress = self.folder, self.progress
        journal = Journal(folder.journal, create=True)
        writer = Writer(journal, on_durable=self._on_durable, on_error=self._on_writer_error)
        self._journal, self._writer = journal, writer
        self._carry = survey.carry_types
        publisher = self._publisher = Publisher(folder.path, journal, writer, self._carry)
        try:
            if adopted := await asyncio.to_thread(rebuild, folder.path, writer):
                self._warn(f"{folder.journal.name} did not know {adopted:,} rows: they were read from results/")
            self._check_carry_types()
            await asyncio.to_thread(publisher.recover)
            progress.cost_usd, progress.unpriced = writer.paid.cost_usd, writer.paid.unpriced
            info = folder.read_info()
            self._sessions = list(info.get("sessions", []))[-99:]
            if info.get("state") == "running":  # killed: what its heartbeat and its rows tell
                live = unfinished_session(journal.get("live"), self._sessions, sum(journal.counts()))
                self._sessions.append(live | {"killed": True})
            await self._take_stock(source, survey, info.get("endpoint"))
            self._report_crash()
            priced = all(catalog.price(model) is not None for model in self._models)
            self._ledger = Ledger(writer, self._earlier, priced=priced)
            if self._resume.may_replace:
                # Rows that may be replaced must be in a part, and no part may be in the making.
                await asyncio.to_thread(publisher.cut_unplaced)
            self._uncut_seq = journal.unplaced()[0]
            if nothing_new := not await self._has_work(source, survey):
                summary = await self._close(survey)
            else:
                self._resume.unsettle(writer)
                writer.set("live", None).result()  # an earlier session's figures would be taken for those of this one
                self._write_info(source, survey, "running")
                try:
                    await self._send_all()
                except CbatchError:  # no key, no simulator: nothing was sent
                    self._write_info(source, survey, "stopped")
                    raise
                summary = await self._close(survey)
            if not (nothing_new and info.get("state") == summary.state):  # or the last session's figures would go
                self._write_info(source, survey, summary.state, summary)
            elif info.get("job") != (asked := self._asked_for()):  # other gates, for one
                folder.write_info(info | {"job": asked})
            return summary
        finally:
            # Each, whatever becomes of the others: the lock must not be given back while a thread still writes.
            try:
                await asyncio.to_thread(publisher.close)
            finally:
                try:
                    await asyncio.to_thread(writer.stop)
                finally:
                    journal.close()

    # -- what a batch is, and `load.py` does otherwise --------------------------------------

    async def _take_stock(self, source: Source, survey: Survey, endpoint_said: str | None) -> None:
        """Find out what the folder already holds of this job. Raises JobError if it is another's."""
        job = self.job
        if self._journal.get("load") is not None:
            raise JobError(
                f"{self.folder.path}: holds a load run, and this job is a batch",
                hint="--output DIR starts beside it; --fresh deletes it and starts over",
            )
        self.progress.left_by_model = {model: rows * job.samples for model, rows in survey.models.items()}
        self.progress.total = sum(self.progress.left_by_model.values())
        self._resume = Resume(job, self._journal, self._renderers, self._options)
        await asyncio.to_thread(self._resume.compare, source, survey, self._endpoint, endpoint_said)
        if not self._resume.known_before:
            self._resume.settle(self._writer, survey, self._endpoint)

    async def _has_work(self, source: Source, survey: Survey) -> bool:
        """Whether anything is left to be sent."""
        # One iterator a model: a slow model's quota must not hold up another's.
        self._pending = [
            Pending(self._resume.unanswered(source, survey, model, self.progress)) for model in self._models
        ]
        return not all([await pending.is_empty() for pending in self._pending])

    async def _work(self, fleet: Fleet, ledger: Ledger) -> None:
        """Send all that is left."""
        self._crew = Crew(self._worker, throttle=self._throttle, places=self._places, ledger=ledger, on_error=self.stop)
        await self._crew.run(self.progress.total)

    async def _settle(self, survey: Survey) -> None:
        """At the end: count what was not looked at, remember what the folder now holds."""
        with suppress(SourceError):  # for the counts only: a file that has gone must not keep answers from disk
            for pending in self._pending:  # known rows that were not looked at yet are done all the same
                if self._resume.known_seen < self._resume.known_before:  # else the rest of the input tells nothing
                    await asyncio.to_thread(pending.exhaust)

    @property
    def _more_to_do(self) -> bool:
        """Whether more is to be sent than was begun."""
        return False

    def _judged(self) -> tuple[int, int]:
        """How many of how many requests failed, for `fail_if`."""
        return self.progress.failed, self.progress.total

    def _more_info(self) -> dict[str, Any]:
        """What run.json says beside what it says of every run."""
        return {}

    # -- the session, on ----------------------------------------------------------------------

    def _report_crash(self) -> None:
        """Say what earlier sessions sent without learning the outcome, so that it may be paid twice."""
        earlier = unknown(self._journal)
        # A row that is replaced is sent though it is known, one that left the input is known and not of the total.
        kept = 0 if self._resume.may_replace else self._resume.known_before - self._resume.orphaned
        rows = min(earlier.rows, max(0, self.progress.total - kept))
        usd = earlier.usd * rows / earlier.rows if earlier.usd is not None and rows else None
        self._earlier = Unknown(rows, usd)
        if rows:
            dollars = "" if usd is None else f", at most ${usd:,.4f} in all"
            self._warn(
                f"the last session was cut off: at most {rows:,} prompts were sent and not saved; "
                f"they are sent again and may be paid twice{dollars}"
            )

    def _check_carry_types(self) -> None:
        """Raise JobError if earlier rows carry other columns: every part of a dataset has the same."""
        earlier = self._journal.get("carry")
        if earlier is None:
            earlier = carried_types(self.folder.path)
        if earlier is None or not sum(self._journal.counts()):
            self._writer.set("carry", self._carry).result()
        elif earlier != self._carry:
            raise JobError(
                f"{self.folder.path}: its rows carry {_named(earlier)}, and this job carries {_named(self._carry)}",
                hint="every part of a dataset has the same columns: use another --output, or --fresh",
            )

    async def _send_all(self) -> None:
        job, writer, progress = self.job, self._writer, self.progress
        budget = job.budget
        purse = Purse(
            budget.usd,
            budget.tokens,
            # What was sent with unknown outcome may have been paid, at its worst.
            spent_usd=writer.paid.cost_usd + (self._earlier.usd or 0.0),
            spent_tokens=writer.paid.prompt_tokens + writer.paid.completion_tokens,
        )
        async with self._connect() as api:
            self._places = Places(0)
            fleet = self._fleet = Fleet(
                job,
                api,
                purse=purse,
                ledger=self._ledger,
                activity=progress.activity,
                throttle=self._throttle,
                models=self._models,
                left=progress.left_by_model,
                caps=self._journal.get("caps") or {},
                accounts=self._accounts,
                clock=self.clock,
                now=self._now,
                rng=self._rng,
                draining=lambda: self.progress.draining,
                notify=self._warn,
            )
            self._opening = (
                AsyncLimiter(HANDSHAKES_PER_S / 10, 0.1) if api.endpoint.base_url.startswith("https:") else None
            )
            progress.waiting_for = fleet.waiting_for
            self._meter = Meter(
                self.clock,
                in_flight=lambda: len(progress.activity.on_the_wire),
                waiting=lambda: fleet.waiting + progress.activity.backing_off,
                counts=self._counts,
                zero=self._anchor[1],
            )
            deadline = self._loop.call_later(budget.wall, self._wall) if budget.wall else None
            try:
                async with asyncio.TaskGroup() as group:
                    heartbeat = group.create_task(self._heartbeat(fleet))
                    try:
                        await self._work(fleet, self._ledger)
                    finally:
                        heartbeat.cancel()
            finally:
                self._meter.stop()
                self._save_caps(fleet)
                self._learned = fleet.learned()
                if deadline is not None:
                    deadline.cancel()
                progress.waiting_for = lambda: None
                fleet.close()

    def _wall(self) -> None:
        wall_s = self.job.budget.wall
        self.stop(BudgetReached(f"budget.wall of {wall_s:,.0f} s has passed", hint="the same line goes on from here"))

    async def _heartbeat(self, fleet: Fleet) -> None:
        """Leave figures in the journal now and then: for `cbatch status`, and for after a kill."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            self._writer.set("live", self._figures())
            self._save_caps(fleet)
            fleet.touch()

    def _save_caps(self, fleet: Fleet) -> None:
        """What was learned about the length of answers: the next session goes on with it."""
        if caps := fleet.caps():
            self._writer.set("caps", caps)

    def _counts(self) -> tuple[int, ...]:
        """Of the time series: sent, answered, failed, answered with 429, completion tokens."""
        progress, activity = self.progress, self.progress.activity
        failed = sum(progress.errors.values())
        return activity.sent, progress.answered, failed, activity.rate_limited, progress.completion_tokens

    def _figures(self) -> dict[str, Any]:
        """What this session has done so far; seconds of waiting are summed over workers."""
        activity = self.progress.activity
        return {
            "elapsed_s": self._loop.time() - self.progress.started_s,
            "sent": activity.sent,
            "answered": self.progress.answered,
            "retries": activity.retries,
            "rate_limited": activity.rate_limited,
            "pace_wait_s": activity.pace_wait_s,
            "backoff_s": activity.backoff_s,
            "time_lost_s": self._fleet.time_lost() if self._fleet else {},
            "cpu_s": time.process_time() - self._cpu_s,
            "server_queue_s": activity.server_queue_s,
            "in_flight_limit": self._throttle.limit,
            "hedged": activity.hedged,
        }

    # -- one worker -------------------------------------------------------------------------

    async def _worker(self, number: int) -> None:
        task = asyncio.current_task()
        assert task is not None
        assert self._crew is not None
        assert self._fleet is not None
        if self._opening is not None:
            await self._opening.acquire()
        # Spread over the models; who has finished its own helps with the next.
        models = list(zip(self._fleet.senders, self._pending, strict=True))
        turn = number % len(models)
        try:
            for sender, pending in models[turn:] + models[:turn]:
                while not self.progress.draining:
                    if not self._crew.may_stay():
                        return
                    if not self._places.take():
                        await self._places.wait()
                    work = pending.pull()
                    if work is None:
                        self._places.give_back(1)
                        if await pending.is_empty():
                            break
                        continue
                    self._writer.put(await self._answer(work, sender, task), work.replaces)
        except CbatchError as exc:
            self.stop(exc)

    async def _answer(
        self, work: Work, sender: Sender, task: asyncio.Task[Any], timeline: Timeline | None = None
    ) -> Record:
        prompt, request = work.prompt, None
        timeline = timeline or Timeline(ready=self.clock())
        outcome: Completion | Failure
        paid: list[Completion] = []
        if prompt.problem is not None:
            outcome = Failure(kind="source", message=f"{prompt.origin}: {prompt.problem}")
        else:
            try:
                request = self._renderers[prompt.model](prompt)
            except RenderError as exc:
                outcome = Failure(kind="render", message=f"{prompt.origin}: {exc}")
            else:
                if timeline.scheduled is not None:
                    await self._wait_until(timeline.scheduled)
                try:
                    outcome, paid = await send(request, sender, timeline, task)
                except UnservedModel as exc:
                    outcome = self._without(sender, prompt, exc, timeline)
        costs = []
        for one in paid:
            costs.append(cost_usd(one, sender.price))
            one.headers = {}  # a million answers wait for their part without them
        answer = outcome.completion if isinstance(outcome, Failure) else outcome
        if timeline.first_sent is not None:  # one wall clock reading a run: it may be set in between
            timeline.started_at = self._anchor[0] + timedelta(seconds=timeline.first_sent - self._anchor[1])
        if answer is not None and timeline.done is not None and self._meter is not None:
            timeline.loop_lag_s = self._meter.around(answer.stream.first if answer.stream else timeline.done)
        return record(
            key=work.key,
            prompt=prompt,
            request=request,
            outcome=outcome,
            timeline=timeline,
            cost=None if not costs or None in costs else sum(c for c in costs if c is not None),
            paid=paid,
            tool_calls=_json(answer.tool_calls) if answer and answer.tool_calls else None,
            parsed=_json(answer.parsed) if answer and answer.parsed is not None else None,
            input_json=prompt.raw.decode("utf-8", "replace") if self.job.results.input else None,
            carried=carried(prompt.fields, self._carry),
        )

    def _without(self, sender: Sender, prompt: Prompt, error: UnservedModel, timeline: Timeline) -> Failure:
        """The failure of a line whose model the server does not have; the run goes on with the lines of other models.

        Raises JobError where there are none, or where job.yaml names the model: then nothing is left that can be done.
        """
        if self.job.model:
            raise error
        others = [model for model in self._models if model != sender.model]
        choice = [*others, *([error.near] if error.near else []), *catalog.load()[0]]
        fix = next((model for model in choice if model in error.served), error.served[0])
        fix = f"write `model: {fix}` in job.yaml to send all lines to one model"
        if not others:
            raise JobError(f"{prompt.origin}: body.{error}", hint=f"{fix}; {error.hint}") from error
        if sender.unserved is None:
            sender.unserved = error
            self._warn(f"{error}: its {self.progress.left_by_model[sender.model]:,} prompts fail; {fix}")
        return Failure(
            kind="not_found",
            code="model_not_found",
            message=f"{prompt.origin}: body.{error}; {fix}",
            http_status=404 if timeline.attempts else None,
        )

    async def _wait_until(self, due: float) -> None:
        """Sleep until a time of our clock; up to 1 ms late, as uvloop's timers are, and never early."""
        # Again where it was early: uvloop counts from when its turn began.
        while (seconds := due - self.clock()) > 0:  # noqa: ASYNC110 - a time comes without an event
            await asyncio.sleep(seconds + TIMER_ROUNDING_S)

    # -- durable, counted, cut --------------------------------------------------------------

    def _on_durable(self, records: list[Record]) -> None:  # called in the writer thread
        self._loop.call_soon_threadsafe(self._count, records)

    def _on_writer_error(self, error: JournalError) -> None:  # called in the writer thread
        self._loop.call_soon_threadsafe(self.stop, error)

    def _count(self, records: list[Record]) -> None:
        progress = self.progress
        tokens_at = COLUMN_INDEX["completion_tokens"]
        message_at = COLUMN_INDEX["error_message"]
        self._places.give_back(len(records))
        for durable in records:
            progress.answered += 1
            row = durable.row
            if self.observe is not None:
                self.observe(row)
            progress.left_by_model[row[_MODEL]] -= 1
            if durable.ok:
                progress.done += 1
            else:
                progress.failed += 1
                kind = row[_ERROR_KIND]
                progress.errors[kind] = progress.errors.get(kind, 0) + 1
                progress.samples.setdefault(kind, row[message_at])
            progress.completion_tokens += row[tokens_at] or 0
            self._uncut_bytes += text_length(row)
        progress.cost_usd, progress.unpriced = self._writer.paid.cost_usd, self._writer.paid.unpriced
        self._cut_full_parts()

    def _cut_full_parts(self) -> None:
        durable = self._writer.durable_seq
        try:
            while durable - self._uncut_seq + 1 >= self.job.results.part_rows:
                self._cut(self._uncut_seq + self.job.results.part_rows - 1)
            late = self._loop.time() - self._last_cut > PART_S
            if durable >= self._uncut_seq and (self._uncut_bytes > PART_BYTES or late):
                self._cut(durable)
        except JournalError as exc:
            self.stop(exc)

    def _cut(self, last_seq: int) -> None:
        self._publisher.cut(self._uncut_seq, last_seq)
        self._uncut_seq = last_seq + 1
        self._uncut_bytes = 0
        self._last_cut = self._loop.time()

    # -- stopping ---------------------------------------------------------------------------

    def interrupt(self, signum: int) -> None:
        """First signal: no new prompts, answers in flight are waited for. Second: cancel them too.

        Before anything was sent there is nothing to wait for: `is_sending` tells.
        """
        if self._signal is None:
            self._signal = signum
            self.drain()
        else:
            self._cancel_all()

    def stop(self, error: BaseException) -> None:
        """The run cannot go on: drain, and let `error` be its end."""
        if self._error is None:
            self._error = error
        # An answer that cannot be stored must not be waited for, let alone asked for.
        if isinstance(error, JournalError):
            self.progress.draining = True
            self._cancel_all()
        else:
            self.drain()

    def drain(self) -> None:
        """Stop pulling; cancel who only waits; give answers in flight DRAIN_S."""
        if self.progress.draining:
            return
        self.progress.draining = True
        on_the_wire = self.progress.activity.on_the_wire
        for task in self._workers():
            if task not in on_the_wire:
                task.cancel()
        self._loop.call_later(DRAIN_S, self._cancel_all)

    def _cancel_all(self) -> None:
        self._cut_off |= set(self.progress.activity.on_the_wire)
        for task in self._workers():
            task.cancel()

    def _workers(self) -> set[asyncio.Task[None]]:
        return set(self._crew.tasks) if self._crew else set()

    # -- the end ----------------------------------------------------------------------------

    async def _close(self, survey: Survey) -> Summary:
        """Make everything that was answered durable and visible, then take stock."""
        await self._settle(survey)
        if self._writer.failed is None:
            try:
                await asyncio.wrap_future(self._writer.do(lambda db: None))
                await asyncio.sleep(0)  # the counts of the last commit were called soon, before this
                await asyncio.to_thread(self._publisher.finish)
                if self.progress.failed > sum(self.progress.errors.values()):
                    await asyncio.to_thread(self._count_earlier_errors)
                complete = self.progress.done + self.progress.failed == self.progress.total
                if complete and self._options.limit is None:
                    self._resume.settle(self._writer, survey, self._endpoint)
                await self._ledger.settle(len(self._cut_off), complete=complete)
            except JournalError as exc:
                self._error = self._error or exc
        return self._summary()

    def _count_earlier_errors(self) -> None:
        """Fill in the kinds of the failures of earlier sessions, from the parts."""
        with suppress(OSError):
            found = failures(table(self.folder.parts, [], ["error_kind", "error_message"]))
            self.progress.errors = {kind: count for kind, (count, _) in found.items()}
            self.progress.samples = {kind: text for kind, (_, text) in found.items()} | self.progress.samples

    def _summary(self) -> Summary:
        progress, activity, fleet = self.progress, self.progress.activity, self._fleet
        outages = fleet.outages() if fleet else (0, 0.0)
        left = progress.total - progress.done - progress.failed
        error = self._error if isinstance(self._error, CbatchError) else None
        if not left and not self._more_to_do and isinstance(error, BudgetReached):  # it came with the last answers
            error = None
        if left > 0 and error is None and not progress.draining:
            error = RunStopped(
                f"{left:,} prompts could not be read any more: the input changed while it was read",
                hint="run the same line again: what was answered is known",
            )
        state: Literal["finished", "interrupted", "stopped"] = "finished"
        exit_code = 3 if self.job.fail_if.says_no(*self._judged()) else 0
        if error is not None:
            state, exit_code = "stopped", error.exit_code
        elif (left or self._more_to_do) and self._signal is not None:
            state, exit_code = "interrupted", 128 + self._signal
        paid = self._writer.paid
        elapsed_s = round(self._loop.time() - progress.started_s, 3)
        return Summary(
            name=self.job.name,
            folder=str(self.folder.path),
            state=state,
            total=progress.total,
            done=progress.done,
            failed=progress.failed,
            left=left,
            orphaned=0 if left or self._options.limit is not None else self._resume.not_seen,
            sent=activity.sent,
            answered=progress.answered,
            retries=activity.retries,
            rate_limited=activity.rate_limited,
            elapsed_s=elapsed_s,
            tokens_per_s=progress.completion_tokens / elapsed_s if elapsed_s > 0 else 0.0,
            prompt_tokens=paid.prompt_tokens,
            completion_tokens=paid.completion_tokens,
            cost_usd=paid.known_usd,
            unpriced=paid.unpriced,
            paid_twice_at_most=self._earlier.rows,
            paid_twice_usd=self._earlier.usd,
            abandoned=len(self._cut_off),
            simulated=self.simulated,
            workers=self._crew.most if self._crew else 0,
            pace_wait_s=activity.pace_wait_s,
            backoff_s=activity.backoff_s,
            time_lost_s=fleet.time_lost() if fleet else {},
            cpu_s=round(time.process_time() - self._cpu_s, 3),
            server_queue_s=round(activity.server_queue_s, 3),
            cuts=asdict(self._throttle.cuts),
            learned=self._learned,
            sizing=fleet.sizing() if fleet else {},
            outages=outages[0],
            outage_s=outages[1],
            hedged=activity.hedged,
            errors=progress.errors,
            samples=progress.samples,
            exit_code=exit_code,
            error=str(error) if error else None,
            hint=error.hint if error else None,
        )

    def _asked_for(self) -> dict[str, Any]:
        """The job as run.json keeps it."""
        return self.job.model_dump(mode="json", exclude_none=True)

    def _write_info(
        self,
        source: Source,
        survey: Survey,
        state: str,
        summary: Summary | None = None,
    ) -> None:
        if self._writer.failed is not None:
            return
        # A time series is some 40 KB: only the last sessions keep theirs.
        sessions = [{k: v for k, v in one.items() if k != "series"} for one in self._sessions[:-KEPT_SERIES]]
        sessions += self._sessions[-KEPT_SERIES:]
        info: dict[str, Any] = {
            "cbatch": __version__,
            "metrics_version": METRICS_VERSION,
            "recipe": recipe(self.job),
            "name": self.job.name,
            "state": state,
            "endpoint": self._endpoint,
            "simulated": self.simulated,
            "job": self._asked_for(),
            "source": {
                "files": [str(f) for f in source.files],
                "rows": survey.rows,
                "sha256": survey.fingerprint,
            },
            "limit": self._options.limit,
            "total": self.progress.total,
        }
        if summary is not None:
            figures = {name: getattr(summary, name) for name in Summary.__slots__}
            began = self._anchor[0].astimezone(UTC).isoformat(timespec="milliseconds")  # as its rows and series count
            session = {"started_at": began} | self._figures()
            if self._meter is not None:
                session |= {"loop_lag_s": self._meter.lags.found(), "series": self._meter.series()}
            sessions.append(session)
            info["summary"] = figures
        info["sessions"] = sessions
        info |= self._more_info()
        try:
            self.folder.write_info(info)
        except JournalError:
            if summary is None:
                raise  # before anything was sent: better no run than one without its run.json
            self._warn(f"{self.folder.info_file}: could not be written; the results are complete without it")


def _json(value: object) -> str:
    return orjson.dumps(value).decode()


def _named(types: dict[str, str]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in types.items()) or "nothing"
