"""Job -> Summary: the only file that sees every stage.

    source -> render -> [known? skip] -> gate -> send -> measure -> journal (durable) -> counted -> part

Workers pull prompts from one shared iterator, so memory does not depend on the number of rows.
One rule bounds what a crash can cost: at most `job.bound()` rows are sent and not yet durable.
A worker is free as soon as its answer is in; its place under the bound is free when the answer
is on disk.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import orjson
from aiolimiter import AsyncLimiter

from cbatch import __version__, catalog
from cbatch.answers import AnswerCheck
from cbatch.client import Client
from cbatch.errors import CbatchError, JobError, JournalError
from cbatch.gate import Gate
from cbatch.job import Job
from cbatch.journal import Journal, Known, RunLock, Writer
from cbatch.measure import cost_usd, record
from cbatch.pace import Pacer
from cbatch.publish import Publisher, carried_types, rebuild
from cbatch.render import Renderer, RenderError
from cbatch.rundir import RunDir
from cbatch.schema import COLUMN_INDEX, Completion, Failure, Prompt, Record, Request, Timeline
from cbatch.send import Activity, Sender, send
from cbatch.source import Source, Survey, carried, check_carry

DRAIN_S = 30.0  # after the first Ctrl-C, answers in flight get this long
PART_BYTES = 256 << 20  # a part is cut at this much text, however few its rows
PART_S = 300.0  # and at least this often, so that long runs can be looked into
BREATHE_ROWS = 256  # known rows skipped in one go before the loop may serve others
TRIAL_ROWS = 20  # rows rendered before anything is sent: if none can be, the template is wrong
HANDSHAKES_PER_S = 500  # TLS handshakes cost 1-2 ms each: connections open gradually

_ERROR_KIND = COLUMN_INDEX["error_kind"]

Changed = Literal["rerun", "keep"]
Connect = Callable[[], AbstractAsyncContextManager[Client]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How this invocation differs from the job file."""

    limit: int | None = None
    retry_failed: bool = False
    fresh: bool = False
    changed: Changed | None = None


@dataclass(slots=True, kw_only=True)
class Progress:
    """What is durable and what is going on; read by whoever watches, written only here."""

    total: int = 0  # prompts x models x samples
    done: int = 0
    failed: int = 0
    earlier: int = 0  # of these, known before this session
    answered: int = 0  # this session: durable rows
    completion_tokens: int = 0  # this session
    cost_usd: float = 0.0  # all sessions
    unpriced: int = 0
    errors: dict[str, int] = field(default_factory=dict)  # this session, by kind
    samples: dict[str, str] = field(default_factory=dict)  # one message per kind
    activity: Activity = field(default_factory=Activity)
    started_s: float = 0.0
    draining: bool = False
    waiting_for: Callable[[], str | None] = lambda: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """How a session of a run ended. `exit_code` is that of the contract."""

    name: str
    folder: str
    state: Literal["finished", "interrupted", "stopped"]
    total: int
    done: int
    failed: int
    left: int
    orphaned: int
    sent: int
    answered: int
    retries: int
    rate_limited: int
    elapsed_s: float
    completion_tokens: int
    cost_usd: float | None
    unpriced: int
    paid_twice_at_most: int
    pace_wait_s: float
    backoff_s: float
    errors: dict[str, int]
    samples: dict[str, str]
    exit_code: int
    error: str | None = None
    hint: str | None = None


class Work(NamedTuple):
    """One prompt to be sent; `replaces` is the seq of the row whose place its outcome takes."""

    prompt: Prompt
    key: bytes
    replaces: int | None
    request: Request | None


def key_of(prompt_id: str, model: str) -> bytes:
    """The journal's key of a prompt: (id, model) in 16 bytes."""
    return hashlib.blake2b(f"{prompt_id}\0{model}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


class Run:
    """One session of a run: `await Run(...).execute()`, and `interrupt()` from a signal handler."""

    def __init__(
        self,
        job: Job,
        folder: RunDir,
        *,
        connect: Connect,
        endpoint: str,
        options: Options | None = None,
        warn: Callable[[str], None] = lambda message: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        rng: random.Random | None = None,
    ) -> None:
        self.job = job
        self.folder = folder
        self.progress = Progress()
        self._connect = connect
        self._endpoint = endpoint
        self._options = options or Options()
        self._warn = warn
        self._now = now
        self._rng = rng or random.Random()
        self._renderers = {model: Renderer(job, model) for model in job.model}
        self._tasks: set[asyncio.Task[None]] = set()
        self._error: BaseException | None = None
        self._signal: int | None = None
        self._known_before = 0
        self._known_seen = 0
        self._check_digests = False
        self._paid_twice = 0
        self._uncut_bytes = 0
        check_carry(job)

    # -- the whole session ------------------------------------------------------------------

    async def execute(self) -> Summary:
        """Run what has no row yet. Raises CbatchError where nothing could be started."""
        loop = asyncio.get_running_loop()
        self._loop = loop
        self.progress.started_s = self._last_cut = loop.time()
        # Reading the job and the input comes before the folder is touched: a typo must leave no trace.
        source = Source(self.job, limit=self._options.limit)
        survey = await asyncio.to_thread(source.survey)
        if survey.problems < survey.rows:
            self._try_template(source, survey)
        lock = RunLock(self.folder.lock)
        try:
            if self._options.fresh:
                self.folder.clear()
            return await self._execute(source, survey)
        finally:
            lock.close()

    async def _execute(self, source: Source, survey: Survey) -> Summary:
        job, folder = self.job, self.folder
        carry = self._carry_types(survey)
        lost = not folder.journal.exists() and bool(folder.parts)
        journal = Journal(folder.journal, create=True)
        writer = Writer(journal, on_durable=self._on_durable, on_error=self._on_writer_error)
        self._journal, self._writer = journal, writer
        publisher = self._publisher = Publisher(folder.path, journal, writer, carry)
        try:
            if lost:
                rows = await asyncio.to_thread(rebuild, folder.path, writer, key_of)
                self._warn(f"{folder.journal.name} was missing: {rows:,} known rows were read from results/")
            await asyncio.to_thread(publisher.recover)
            self._known_before = sum(journal.counts())
            self.progress.total = survey.rows * len(job.model) * job.samples
            self.progress.cost_usd, self.progress.unpriced = writer.paid.cost_usd, writer.paid.unpriced
            info = folder.read_info()
            self._compare_with_earlier(source, survey, info)
            self._report_crash()
            if self._check_digests or self._options.retry_failed:
                # Rows that may be replaced must be in a part, and no part may be in the making.
                await asyncio.to_thread(self._cut_unplaced)
            self._uncut_seq = journal.unplaced()[0]
            # One iterator a model: a slow model's quota must not hold up another's.
            self._pending = [_Peekable(self._unanswered(source, survey, model)) for model in job.model]
            self._write_info(info, source, survey, "running")
            if not all([await pending.is_empty() for pending in self._pending]):
                writer.set("session", {"open": True, "bound": job.bound()}).result()
                await self._send_all()
            summary = await self._close(survey)
            self._write_info(info, source, survey, summary.state, summary)
            return summary
        finally:
            await asyncio.to_thread(publisher.close)
            await asyncio.to_thread(writer.stop)
            journal.close()

    async def _send_all(self) -> None:
        job = self.job
        self._places = asyncio.Semaphore(job.bound())
        async with self._connect() as api:
            senders = [self._sender(model, api) for model in job.model]
            self.progress.waiting_for = lambda: next((w for s in senders if (w := s.gate.waiting_for)), None)
            opening = AsyncLimiter(HANDSHAKES_PER_S / 10, 0.1) if api.endpoint.base_url.startswith("https:") else None
            try:
                async with asyncio.TaskGroup() as workers:
                    for number in range(min(job.limits.concurrency, self.progress.total)):
                        # Spread over the models; who has finished its own helps with the next.
                        turn = number % len(senders)
                        order = list(zip(senders, self._pending, strict=True))
                        task = workers.create_task(self._worker(order[turn:] + order[:turn], opening))
                        self._tasks.add(task)
            finally:
                self._tasks.clear()
                self.progress.waiting_for = lambda: None

    def _sender(self, model: str, api: Client) -> Sender:
        schema = self.job.params.answer_schema
        rpm, tpm = self.job.limits.per_minute(model)
        return Sender(
            model=model,
            api=api,
            gate=Gate(Pacer(rpm, tpm, now=self._loop.time())),
            policy=self.job.retry,
            now=self._now,
            rng=self._rng,
            activity=self.progress.activity,
            check=AnswerCheck(schema) if schema is not None else None,
            draining=lambda: self.progress.draining,
        )

    # -- one worker -------------------------------------------------------------------------

    async def _worker(self, models: list[tuple[Sender, _Peekable]], opening: AsyncLimiter | None) -> None:
        if opening is not None:
            await opening.acquire()
        try:
            for sender, pending in models:
                while not self.progress.draining:
                    await self._places.acquire()
                    work = pending.pull()
                    if work is None:
                        self._places.release()
                        if await pending.is_empty():
                            break
                        continue
                    self._writer.put(await self._answer(work, sender), work.replaces)
        except CbatchError as exc:
            self.stop(exc)

    async def _answer(self, work: Work, sender: Sender) -> Record:
        prompt, request = work.prompt, work.request
        timeline = Timeline(ready=self._loop.time())
        outcome: Completion | Failure
        paid: list[Completion] = []
        if prompt.problem is not None:
            outcome = Failure(kind="source", message=f"{prompt.origin}: {prompt.problem}")
        else:
            try:
                request = request or self._renderers[prompt.model](prompt)
            except RenderError as exc:
                outcome = Failure(kind="render", message=f"{prompt.origin}: {exc}")
            else:
                outcome, paid = await send(request, sender, timeline)
        price = catalog.price(prompt.model)
        costs = [cost_usd(answer, price) for answer in paid]
        answer = outcome.completion if isinstance(outcome, Failure) else outcome
        return record(
            key=work.key,
            prompt=prompt,
            request=request,
            outcome=outcome,
            timeline=timeline,
            cost=None if not costs or None in costs else sum(c for c in costs if c is not None),
            tool_calls=_json(answer.tool_calls) if answer and answer.tool_calls else None,
            parsed=_json(answer.parsed) if answer and answer.parsed is not None else None,
            input_json=prompt.raw.decode("utf-8", "replace") if self.job.results.input else None,
            carried=carried(prompt.fields, self._carry),
        )

    # -- which prompts have no row yet ------------------------------------------------------

    def _unanswered(self, source: Source, survey: Survey, model: str) -> Iterator[Work | None]:
        """What is to be sent; None now and then, so that skipping known rows lets the loop breathe."""
        progress, options = self.progress, self._options
        resuming = self._known_before > 0
        skipped = 0
        for prompt in source.prompts(survey, (model,)):
            key = key_of(prompt.id, prompt.model)
            known = self._journal.lookup(key, prompt.sample) if resuming else None
            if known is None:
                yield Work(prompt, key, None, None)
                continue
            self._known_seen += 1
            if (known.ok or not options.retry_failed) and not self._is_stale(known, prompt):
                progress.earlier += 1
                progress.done += known.ok
                progress.failed += not known.ok
                skipped += 1
                if skipped % BREATHE_ROWS == 0:
                    yield None
                continue
            yield Work(prompt, key, known.seq, None)

    def _is_stale(self, known: Known, prompt: Prompt) -> bool:
        """Whether the known row answers another request than this prompt makes now."""
        if not self._check_digests or (known.ok and self._options.changed == "keep"):
            return False
        digest = self._digest(prompt)
        # A failed row with an edited request is simply tried again: nothing was paid for it.
        return digest != known.digest and (digest is not None or not known.ok)

    def _digest(self, prompt: Prompt) -> bytes | None:
        if prompt.problem is not None:
            return None
        try:
            return self._renderers[prompt.model](prompt).digest
        except RenderError:
            return None

    def _try_template(self, source: Source, survey: Survey) -> None:
        """Raise JobError if none of the first rows can be rendered: then the template is wrong, not a row."""
        problem: tuple[str, str] | None = None
        for seen, prompt in enumerate(source.prompts(survey, (self.job.model[0],))):
            if seen == TRIAL_ROWS:
                break
            if prompt.problem is None:
                try:
                    self._renderers[prompt.model](prompt)
                except RenderError as exc:
                    problem = problem or (prompt.origin, str(exc))
                else:
                    return
        if problem is not None:
            raise JobError(f"prompt: no row can be rendered; {problem[0]}: {problem[1]}", hint="see `cbatch plan`")

    # -- what the folder already holds ------------------------------------------------------

    def _recipe(self) -> dict[str, Any]:
        """What makes the requests of this job; rows made by another recipe are compared one by one."""
        job = self.job
        return {"prompt": job.prompt.model_dump(), "params": job.params.body(), "model": sorted(job.model)}

    def _compare_with_earlier(self, source: Source, survey: Survey, info: dict[str, Any]) -> None:
        """Raise JobError where going on would mix two jobs; decide whether digests must be compared."""
        if not self._known_before:
            self._settle(survey)
            return
        folder = self.folder.path
        label = self._journal.get("endpoint") or info.get("endpoint")
        if label is not None and label != self._endpoint:
            raise JobError(
                f"{folder}: holds answers from {label}, and this run would add answers from {self._endpoint}",
                hint="use another folder with --output, or start over with --fresh",
            )
        self._check_digests = (
            self._journal.get("recipe") != _fingerprint(self._recipe())
            or self._journal.get("source") != survey.fingerprint
        )
        if not self._check_digests:
            return
        known = changed = 0
        for prompt in source.prompts(survey, tuple(self.job.model)):
            found = self._journal.lookup(key_of(prompt.id, prompt.model), prompt.sample)
            if found is not None:
                known += 1
                changed += found.ok and self._digest(prompt) not in (found.digest, None)
        if not known:
            raise JobError(
                f"{folder}: belongs to another job: none of its {self._known_before:,} rows comes from this input",
                hint="use another folder with --output, or start over with --fresh",
            )
        if changed and self._options.changed is None:
            raise JobError(
                f"{folder}: {changed:,} of {known:,} answered prompts have changed since (template, params or rows)",
                hint="--changed rerun sends these again, --changed keep keeps their answers, --output DIR starts beside",
            )

    def _settle(self, survey: Survey) -> None:
        """Remember what the rows of this folder were made from."""
        self._writer.set("recipe", _fingerprint(self._recipe())).result()
        self._writer.set("source", survey.fingerprint).result()
        self._writer.set("endpoint", self._endpoint).result()

    def _report_crash(self) -> None:
        """Say what the last session may have paid for without a row, if it was killed."""
        session = self._journal.get("session") or {}
        if session.get("open"):
            left = max(0, self.progress.total - self._known_before)
            self._paid_twice = min(session.get("bound", self.job.bound()), left)
            if self._paid_twice:
                self._warn(
                    f"the last session was killed: at most {self._paid_twice:,} prompts were sent and not saved; "
                    "they are sent again and may be paid twice"
                )

    def _carry_types(self, survey: Survey) -> dict[str, str]:
        self._carry = dict(survey.carry_types)
        earlier = None if self._options.fresh else carried_types(self.folder.path)
        if earlier is not None and earlier != self._carry:
            raise JobError(
                f"{self.folder.path}: its parts carry {_named(earlier)}, and this job carries {_named(self._carry)}",
                hint="every part of a dataset has the same columns: use another --output, or --fresh",
            )
        return self._carry

    # -- durable, counted, cut --------------------------------------------------------------

    def _on_durable(self, records: list[Record]) -> None:  # called in the writer thread
        self._loop.call_soon_threadsafe(self._count, records)

    def _on_writer_error(self, error: JournalError) -> None:  # called in the writer thread
        self._loop.call_soon_threadsafe(self.stop, error)

    def _count(self, records: list[Record]) -> None:
        progress = self.progress
        tokens_at = COLUMN_INDEX["completion_tokens"]
        text_at = COLUMN_INDEX["text"]
        message_at = COLUMN_INDEX["error_message"]
        for durable in records:
            self._places.release()
            progress.answered += 1
            row = durable.row
            if durable.ok:
                progress.done += 1
            else:
                progress.failed += 1
                kind = row[_ERROR_KIND]
                progress.errors[kind] = progress.errors.get(kind, 0) + 1
                progress.samples.setdefault(kind, row[message_at])
            progress.completion_tokens += row[tokens_at] or 0
            self._uncut_bytes += len(row[text_at] or "") + len(row[-1] or "" if isinstance(row[-1], str) else "")
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

    def _cut_unplaced(self) -> None:
        first, last = self._journal.unplaced()
        if first <= last:
            self._publisher.cut_now(first, last)

    # -- stopping ---------------------------------------------------------------------------

    def interrupt(self, signum: int) -> None:
        """First signal: no new prompts, answers in flight are waited for. Second: cancel them too."""
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
        for task in self._tasks:
            if task not in on_the_wire:
                task.cancel()
        self._loop.call_later(DRAIN_S, self._cancel_all)

    def _cancel_all(self) -> None:
        for task in self._tasks:
            task.cancel()

    # -- the end ----------------------------------------------------------------------------

    async def _close(self, survey: Survey) -> Summary:
        """Make everything that was answered durable and visible, then take stock."""
        if self._writer.failed is None:
            try:
                await asyncio.wrap_future(self._writer.do(lambda db: None))
                await asyncio.sleep(0)  # the counts of the last commit were called soon, before this
                await asyncio.to_thread(self._publisher.finish)
                complete = self.progress.done + self.progress.failed == self.progress.total
                if complete and self._options.limit is None:
                    self._settle(survey)
                self._writer.set("session", {"open": False}).result()
            except JournalError as exc:
                self._error = self._error or exc
        return self._summary()

    def _summary(self) -> Summary:
        progress, activity = self.progress, self.progress.activity
        left = progress.total - progress.done - progress.failed
        error = self._error if isinstance(self._error, CbatchError) else None
        state: Literal["finished", "interrupted", "stopped"] = "finished"
        exit_code = 3 if self.job.fail_if.says_no(progress.failed, progress.total) else 0
        if error is not None:
            state, exit_code = "stopped", error.exit_code
        elif left and self._signal is not None:
            state, exit_code = "interrupted", 128 + self._signal
        paid = self._writer.paid
        return Summary(
            name=self.job.name,
            folder=str(self.folder.path),
            state=state,
            total=progress.total,
            done=progress.done,
            failed=progress.failed,
            left=left,
            orphaned=0 if left or self._options.limit is not None else self._known_before - self._known_seen,
            sent=activity.sent,
            answered=progress.answered,
            retries=activity.retries,
            rate_limited=activity.rate_limited,
            elapsed_s=self._loop.time() - progress.started_s,
            completion_tokens=progress.completion_tokens,
            cost_usd=None if paid.answers and paid.unpriced == paid.answers else paid.cost_usd,
            unpriced=paid.unpriced,
            paid_twice_at_most=self._paid_twice,
            pace_wait_s=activity.pace_wait_s,
            backoff_s=activity.backoff_s,
            errors=progress.errors,
            samples=progress.samples,
            exit_code=exit_code,
            error=str(error) if error else None,
            hint=error.hint if error else None,
        )

    def _write_info(
        self, earlier: dict[str, Any], source: Source, survey: Survey, state: str, summary: Summary | None = None
    ) -> None:
        if self._writer.failed is not None:
            return
        sessions = list(earlier.get("sessions", []))[-99:]
        info: dict[str, Any] = {
            "cbatch": __version__,
            "name": self.job.name,
            "state": state,
            "endpoint": self._endpoint,
            "job": self.job.model_dump(mode="json", exclude_none=True),
            "source": {"files": [str(f) for f in source.files], "rows": survey.rows, "sha256": survey.fingerprint},
            "limit": self._options.limit,
            "total": self.progress.total,
        }
        if summary is not None:
            figures = {name: getattr(summary, name) for name in Summary.__slots__}
            started = self._now().timestamp() - summary.elapsed_s
            sessions.append(
                {
                    "started_at": datetime.fromtimestamp(started, UTC).isoformat(timespec="milliseconds"),
                    "elapsed_s": summary.elapsed_s,
                    "sent": summary.sent,
                    "answered": summary.answered,
                    "pace_wait_s": summary.pace_wait_s,
                    "backoff_s": summary.backoff_s,
                }
            )
            info["summary"] = figures
        info["sessions"] = sessions
        try:
            self.folder.write_info(info)
        except JournalError:
            if summary is None:
                raise  # before anything was sent: better no run than one without its run.json
            self._warn(f"{self.folder.info_file}: could not be written; the results are complete without it")


class _Peekable:
    """The prompts of one model that have no row yet, shared by its workers."""

    def __init__(self, works: Iterator[Work | None]) -> None:
        self._works = works
        self._next: Work | None = None
        self._ended = False

    def pull(self) -> Work | None:
        """The next one; None at the end, or after a stretch of known rows: `is_empty` says which."""
        if self._next is not None:
            work, self._next = self._next, None
            return work
        try:
            return next(self._works)
        except StopIteration:
            self._ended = True
            return None

    async def is_empty(self) -> bool:
        """Whether nothing is left; lets the loop breathe while it skips known rows."""
        while self._next is None and not self._ended:
            self._next = self.pull()
            if self._next is None:
                await asyncio.sleep(0)
        return self._next is None


def _json(value: object) -> str:
    return orjson.dumps(value).decode()


def _fingerprint(value: object) -> str:
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _named(types: dict[str, str]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in types.items()) or "nothing"
