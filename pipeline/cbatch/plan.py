"""Job -> Plan: what a run would send, cost and take, and which limit binds. Sends nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cbatch import catalog
from cbatch.job import Job
from cbatch.journal import Journal, key_of
from cbatch.pace import MARGIN, SECONDS, Pacer
from cbatch.render import RenderError, Renderers
from cbatch.resume import try_template
from cbatch.source import Source

TYPICAL_TOKENS = 300  # an answer's length where nothing is known about it
UNKNOWN_TOKENS_PER_S = 1_000.0  # for models whose speed the catalog does not have
WINDOW_S = {"min" if period == "minute" else period: seconds for period, seconds in SECONDS.items()}
OVERHEAD_S = 0.05  # network and queue, per request


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """One model's share. Times in seconds; `cost` is (no answer, typical, longest answers), None without a price."""

    model: str
    requests: int
    prompt_tokens: int
    never_fit: int  # requests that reserve more than a minute's tokens
    limit_tokens: int  # max_completion_tokens of one request, given or assumed
    cost_usd: tuple[float, float, float] | None
    seconds: dict[str, float]  # how long each limit alone would take, with typical answers
    longest_s: float  # with the longest answers, all limits together
    limits: dict[str, float]  # those in force: told, of the tier, or learned by earlier runs
    learned: bool  # whether any of them is only learned
    reserve_s: float  # how long the reservations alone would take if they were what is charged

    @property
    def binding(self) -> str:
        """The limit that takes the most time."""
        return max(self.seconds, key=lambda name: self.seconds[name])


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A job, looked at from before."""

    files: list[str]
    rows: int
    broken_rows: int
    known: int  # answered already, unchanged
    edited: int  # answered already, and edited since: a run asks what to do
    unrenderable_rows: int
    requests: int
    first_body: bytes | None
    first_origin: str | None
    first_problem: str | None
    unknown_models: list[str]  # that lines of a batch file name and the catalog does not have
    models: list[ModelPlan]


def plan(
    job: Job,
    limit: int | None = None,
    journal: Journal | None = None,
    learned: Mapping[str, Mapping[str, float]] | None = None,
) -> Plan:
    """Read and render everything; `journal` is an earlier run's, `learned` what runs found out about each model.

    Raises JobError and SourceError as a run would.
    """
    source = Source(job, limit=limit)
    survey = source.survey()
    models = list(survey.models)
    renderers = Renderers(job)
    try_template(source, survey, renderers, job.at("input" if job.input.is_batch else "prompt"))
    if journal is not None:
        journal.index()
    known = edited = 0
    prompt_tokens = dict.fromkeys(models, 0)
    reserved = dict.fromkeys(models, 0)
    requests = dict.fromkeys(models, 0)
    never_fit = dict.fromkeys(models, 0)
    known_limits = {model: _limits(job, model, (learned or {}).get(model, {})) for model in models}
    largest = {
        model: min((limit for name, limit in limits.items() if "tokens" in name), default=float("inf"))
        for model, limits in known_limits.items()
    }
    first_body: bytes | None = None
    first_origin = first_problem = None
    unrenderable = 0
    for prompt in source.prompts(survey, models):
        if prompt.problem is not None:
            continue
        try:
            request = renderers[prompt.model](prompt)
        except RenderError as exc:
            unrenderable += not prompt.sample and (not job.model or prompt.model == models[0])
            first_problem = first_problem or f"{prompt.origin}: {exc}"
            continue
        if first_body is None:
            first_body, first_origin = request.body, prompt.origin
        found = journal.lookup(key_of(prompt.id, prompt.model), prompt.sample) if journal is not None else None
        if found is not None and (found.digest == request.digest or found.ok):
            known += found.digest == request.digest
            edited += found.digest != request.digest
            continue
        requests[prompt.model] += 1
        never_fit[prompt.model] += request.reserve_tokens > largest[prompt.model]
        prompt_tokens[prompt.model] += request.prompt_tokens_estimate
        reserved[prompt.model] += request.reserve_tokens
    return Plan(
        files=[str(path) for path in source.files],
        rows=survey.rows,
        broken_rows=survey.problems,
        known=known,
        edited=edited,
        unrenderable_rows=unrenderable,
        requests=sum(requests.values()),
        first_body=first_body,
        first_origin=first_origin,
        first_problem=first_problem,
        unknown_models=[] if job.model else [model for model in models if catalog.card(model) is None],
        models=[
            _model(
                job,
                m,
                requests[m],
                never_fit[m],
                prompt_tokens[m],
                reserved[m] - prompt_tokens[m],
                known_limits[m],
                learned=bool((learned or {}).get(m)),
            )
            for m in models
        ],
    )


def _limits(job: Job, model: str, learned: Mapping[str, float]) -> dict[str, float]:
    """The limits that hold for `model`, as a pacer names them; the lower of what is told and what was learned."""
    limits = Pacer(job.limits.quota(model), now=0.0).limits()
    for name, limit in learned.items():
        limits[name] = min(limit, limits.get(name, limit))
    return {name: limit * job.limits.share for name, limit in limits.items()}


def _model(
    job: Job,
    model: str,
    requests: int,
    never_fit: int,
    prompt_tokens: int,
    completion_tokens: int,
    limits: dict[str, float],
    *,
    learned: bool,
) -> ModelPlan:
    """`completion_tokens` is the most that all answers together may have."""
    limit = completion_tokens // requests if requests else 0
    typical = min(TYPICAL_TOKENS, limit)
    price = catalog.price(model)
    cost = None
    if price is not None:
        cost = (
            price.cost_usd(prompt_tokens, 0),
            price.cost_usd(prompt_tokens, typical * requests),
            price.cost_usd(prompt_tokens, completion_tokens),
        )
    per_minute = limits.get("tokens/min")
    return ModelPlan(
        model=model,
        requests=requests,
        prompt_tokens=prompt_tokens,
        never_fit=never_fit,
        limit_tokens=limit,
        cost_usd=cost,
        seconds=_seconds(job, model, requests, prompt_tokens, typical, limits),
        longest_s=max(_seconds(job, model, requests, prompt_tokens, limit, limits).values()),
        limits=limits,
        learned=learned,
        reserve_s=(prompt_tokens + completion_tokens) * 60 / (per_minute * MARGIN) if per_minute else 0.0,
    )


def _seconds(
    job: Job, model: str, requests: int, prompt_tokens: int, answer_tokens: int, limits: Mapping[str, float]
) -> dict[str, float]:
    """How long each limit alone would take. Minutes flow; a bucket of an hour or a day is full at the start."""
    card = catalog.card(model)
    speed = (card.tokens_per_s if card else None) or UNKNOWN_TOKENS_PER_S
    workers = max(1, job.limits.in_flight[1] // (len(job.model) or 1))
    rounds = -(-requests // workers)  # no run is shorter than one answer
    seconds = {"concurrency": rounds * (OVERHEAD_S + answer_tokens / speed)}
    for name, limit in limits.items():
        window_s = WINDOW_S[name.rpartition("/")[2]]
        amount = requests if name.startswith("requests") else prompt_tokens + requests * answer_tokens
        at_once = 0.0 if window_s <= 60 else limit
        seconds[name] = max(amount - at_once, 0.0) * window_s / (limit * MARGIN)
    return seconds
