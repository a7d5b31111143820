"""Job, Client -> the senders of a run, one per model, and what they learned about the account."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cbatch import catalog
from cbatch.account import Account, name_of
from cbatch.answers import AnswerCheck
from cbatch.client import Client
from cbatch.gate import Gate
from cbatch.health import Health
from cbatch.hedge import Hedge
from cbatch.job import Job
from cbatch.ledger import Ledger
from cbatch.pace import Pacer
from cbatch.purse import Purse
from cbatch.render import DEFAULT_RESERVE_TOKENS
from cbatch.send import Sender
from cbatch.session import Activity
from cbatch.sizes import Gain, Sizes
from cbatch.throttle import Throttle

MAX_SHARED = 200  # budgets of a process: a file and two descriptors each, and a gateway's clients may name any model
UNKNOWN_CEILING_TOKENS = 32_768  # of an answer, for models that the catalog does not have


class Fleet:
    """The senders of one run over one client; `close` gives the shared budgets back."""

    def __init__(
        self,
        job: Job,
        api: Client,
        *,
        purse: Purse,
        ledger: Ledger,
        activity: Activity,
        throttle: Throttle,
        models: Sequence[str] | None = None,
        left: Mapping[str, int] | None,
        caps: Mapping[str, int],
        accounts: Path | None,
        clock: Callable[[], float],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        rng: random.Random,
        draining: Callable[[], bool] = lambda: False,
        notify: Callable[[str], None] = lambda message: None,
        patience_s: float | None = None,
    ) -> None:
        """`models` are those to begin with, if not the job's; `caps` is what was learned.

        `left` is how many prompts of a model are not answered yet (None: nobody knows).

        `patience_s` is how long an outage is waited for, instead of the job's `retry.max_outage_s`.
        `accounts` is the folder of the budgets that all processes of a key share; None shares nothing.
        """
        self.job = job
        self.api = api
        self._loop = asyncio.get_running_loop()
        self._stack = ExitStack()
        self._shared: list[Account] = []
        self._accounts = accounts
        self._notify = notify
        self._patience_s = job.retry.max_outage_s if patience_s is None else patience_s
        schema = job.params.answer_schema
        self._left, self._caps = left, caps
        self._common: dict[str, Any] = {
            "api": api,
            "throttle": throttle,
            "purse": purse,
            "ledger": ledger,
            "policy": job.retry,
            "now": now,
            "rng": rng,
            "activity": activity,
            "clock": clock,
            "loop_time": self._loop.time,
            "total_s": job.timeouts.total_s,
            "check": AnswerCheck(schema) if schema is not None else None,
            "draining": draining,
            "notify": notify,
        }
        self._by_model: dict[str, Sender] = {}
        for model in job.model if models is None else models:
            self.sender(model)

    @property
    def senders(self) -> list[Sender]:
        """All of them, in the order of the models."""
        return list(self._by_model.values())

    def sender(self, model: str) -> Sender:
        """The sender of a model; made when it is asked for first."""
        if (known := self._by_model.get(model)) is not None:
            return known
        card = catalog.card(model)
        sizes = Sizes(
            auto=self.job.params.right_sized,
            ceiling=card.max_output_tokens if card else UNKNOWN_CEILING_TOKENS,
            default=DEFAULT_RESERVE_TOKENS,
            cap=self._caps.get(model),
        )
        gate = self._gate(model, sizes)
        hedge = self.job.retry.hedge
        made = self._by_model[model] = Sender(
            model=model,
            gate=gate,
            sizes=sizes,
            health=Health(self._patience_s),
            price=catalog.price(model),
            hedge=Hedge(self.api, gate, sizes, self._common["activity"], hedge) if hedge else None,
            **self._common,
        )
        return made

    def close(self) -> None:
        """Give the shared budgets back."""
        self._stack.close()

    def touch(self) -> None:
        """Say that this process is alive, for the others of the key."""
        for account in self._shared:
            account.touch()

    @property
    def waiting(self) -> int:
        """How many requests wait for a permit."""
        return sum(len(sender.gate) for sender in self.senders)

    def waiting_for(self) -> tuple[str, float] | None:
        """What the first that waits waits for, and how long still (s)."""
        return next((waits for sender in self.senders if (waits := sender.gate.waiting_for)), None)

    def caps(self) -> dict[str, int]:
        """What right-sizing learned about the length of answers; {} where nothing is right-sized."""
        return {sender.model: sender.sizes.cap() for sender in self.senders} if self.job.params.right_sized else {}

    def time_lost(self) -> dict[str, float]:
        """Seconds in which prompts waited, by cause; the longest of the models where there are several."""
        lost: dict[str, float] = {}
        for sender in self.senders:
            for cause, seconds in sender.gate.time_lost().items():
                lost[cause] = max(lost.get(cause, 0.0), seconds)
        return {cause: round(seconds, 3) for cause, seconds in lost.items()}

    def learned(self) -> dict[str, float]:
        """The limits that refusals taught; the least where models differ."""
        least: dict[str, float] = {}
        for sender in self.senders:
            for name, limit in sender.gate.pacer.learned().items():
                least[name] = min(limit, least.get(name, limit))
        return least

    def sizing(self) -> dict[str, int]:
        """What right-sizing did, over all models; {} where nothing was right-sized."""
        gains = [sender.sizes.gain for sender in self.senders]
        total = {field.name: sum(getattr(gain, field.name) for gain in gains) for field in fields(Gain)}
        return total if total["requests"] else {}

    def outages(self) -> tuple[int, float]:
        """How often an endpoint was gone, and for how long in all (s)."""
        now = self._loop.time()
        health = [sender.health for sender in self.senders]
        return sum(one.outages for one in health), round(sum(one.away_s(now) for one in health), 1)

    def _gate(self, model: str, sizes: Sizes) -> Gate:
        account = self._account(model)
        limits = self.job.limits
        with account or nullcontext():
            floats: Any = account.floats if account else None
            pacer = Pacer(limits.quota(model), now=self._loop.time(), share=limits.share, floats=floats)
        left = self._left
        if left is None:
            return Gate(pacer, account=account)
        return Gate(pacer, account=account, rest=lambda: (left[model], left[model] * sizes.mean_reserve))

    def _account(self, model: str) -> Account | None:
        """The budget that this process shares with all others of the key; None where it has none."""
        if self._accounts is None or len(self._shared) >= MAX_SHARED:
            return None
        endpoint = self.api.endpoint
        try:
            account = Account(self._accounts / name_of(endpoint.base_url, endpoint.key, model))
        except OSError as exc:
            self._notify(f"{self._accounts}: {exc.strerror}; limits are not shared with other processes of this key")
            return None
        self._stack.callback(account.close)
        self._shared.append(account)
        return account
