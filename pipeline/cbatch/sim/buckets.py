"""All limits of one organization and one model: admission, settlement, and the headers that tell of them.

Pure arithmetic: time is an argument (seconds, any origin, never going back). `windows.py` says how one limit
is counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .models import UNLIMITED, Limits
from .windows import DAY_S, SLACK, WINDOWS, Window

__all__ = ["HEADER_SETS", "Allowance", "Refusal", "Reservation", "rate_headers"]

_WINDOWS_S = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": DAY_S}

HEADER_SETS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "none": (),
    "classic": (("requests", "day"), ("tokens", "minute")),
    "extended": (
        ("requests", "day"),
        ("tokens", "minute"),
        ("requests", "minute"),
        ("requests", "hour"),
        ("tokens", "hour"),
        ("tokens", "day"),
    ),
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """The bucket that said no: `kind` requests, tokens or total tokens; `wait_s` inf: it never will."""

    kind: str
    period: str
    wait_s: float


class Allowance:
    """Every bucket of one (organization, model); `window` is how each is counted, a name in WINDOWS.

    `offset_s` added to `now` is wall time, for windows that begin at a boundary of it.
    """

    __slots__ = ("_requests", "_tokens", "shown")

    def __init__(self, limits: Limits, now: float, window: str = "bucket", offset_s: float = 0.0) -> None:
        # Every window divides a day; a small number keeps the fractions of a second.
        offset_s %= DAY_S

        def build(*spec: tuple[str, str, int | None]) -> list[tuple[str, str, Window]]:
            return [
                (kind, period, WINDOWS[window](limit, _WINDOWS_S[period], now, offset_s))
                for kind, period, limit in spec
                if limit is not None
            ]

        self._requests = build(
            ("requests", "second", limits.rps),
            ("requests", "minute", limits.rpm),
            ("requests", "hour", limits.rph),
            ("requests", "day", limits.rpd),
        )
        self._tokens = build(
            ("tokens", "minute", limits.tpm),
            ("total tokens", "minute", limits.total_tpm),
            ("tokens", "hour", limits.tph),
            ("tokens", "day", limits.tpd),
        )
        self.shown = {(kind, period): bucket for kind, period, bucket in self._requests + self._tokens}

    def admit(self, now: float, tokens: int) -> Refusal | None:
        """Take one request and `tokens` from every bucket, or nothing at all and say which one refused.

        Requests are looked at before tokens. A refused request costs nothing.
        """
        for kind, period, bucket in self._requests:
            if bucket.available(now) < 1 - SLACK:
                return Refusal(kind, period, bucket.wait(now, 1))
        for kind, period, bucket in self._tokens:
            if bucket.available(now) < tokens - SLACK:
                return Refusal(kind, period, bucket.wait(now, tokens))
        for _, _, bucket in self._requests:
            bucket.take(now, 1)
        for _, _, bucket in self._tokens:
            bucket.take(now, tokens)
        return None

    def settle(self, now: float, at: float, reserved: int, uncached: int, total: int) -> None:
        """Replace a reservation made at `at` by what was used; cached tokens cost the uncached bucket nothing."""
        for kind, period, bucket in self._tokens:
            used = uncached if kind == "tokens" and period == "minute" else total
            bucket.give(now, at, reserved - used)


class Reservation:
    """Tokens taken at admission, to be replaced once by those that were used."""

    __slots__ = ("_at", "_is_open", "_reserved", "_total", "_uncached", "allowance")

    def __init__(self, allowance: Allowance, reserved: int, uncached: int, total: int, *, at: float) -> None:
        self.allowance = allowance
        self._reserved = reserved
        self._uncached = uncached
        self._total = total
        self._at = at
        self._is_open = True

    def settle(self, now: float) -> None:
        """Give back what was not used; calling again changes nothing."""
        if self._is_open:
            self._is_open = False
            self.allowance.settle(now, self._at, self._reserved, self._uncached, self._total)


def rate_headers(
    allowance: Allowance, now: float, *, shown: tuple[tuple[str, str], ...], wall_s: float | None, rate: float = 1.0
) -> dict[str, str]:
    """The `x-ratelimit-*` headers of one answer.

    `reset` is plain float seconds: with `wall_s` (Unix seconds) to the next wall-clock boundary, as in the
    recorded answers, else to the moment the bucket is full. The clock of `now` and `wall_s` runs `rate` times as
    fast as the one of whoever reads the headers.
    """
    headers: dict[str, str] = {}
    for kind, period in shown:
        bucket = allowance.shown.get((kind, period))
        name = f"{kind}-{period}"
        window_s = _WINDOWS_S[period]
        if bucket is None:
            limit = remaining = UNLIMITED
            full_s = 0.0
        else:
            level = bucket.available(now)
            limit = int(bucket.limit)
            remaining = max(0, int(level + SLACK))
            full_s = bucket.full_s(now)
        reset_s = full_s if wall_s is None else window_s - wall_s % window_s
        headers[f"x-ratelimit-limit-{name}"] = str(limit)
        headers[f"x-ratelimit-remaining-{name}"] = str(remaining)
        headers[f"x-ratelimit-reset-{name}"] = str(reset_s / rate)
    return headers
