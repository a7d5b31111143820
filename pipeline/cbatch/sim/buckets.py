"""Token buckets: how much one organization may still send to one model.

Pure arithmetic: time is an argument (seconds, any origin, never going back). A bucket holds its whole limit
and refills continuously at limit / window; there is no fixed window and no reset.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .models import UNLIMITED, Limits

__all__ = ["HEADER_SETS", "Allowance", "Bucket", "Refusal", "Reservation", "rate_headers"]

_WINDOWS_S = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86400.0}
_SLACK = 1e-6  # float dust must not refuse a caller that waited exactly as long as it was told

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


class Bucket:
    """`limit` units, refilled at limit / window_s per second."""

    __slots__ = ("at", "level", "limit", "per_s")

    def __init__(self, limit: float, window_s: float, now: float) -> None:
        self.limit = limit
        self.per_s = limit / window_s
        self.level = limit
        self.at = now

    def available(self, now: float) -> float:
        """What may be taken at `now`; below zero after a request cost more than was reserved."""
        level = self.level + (now - self.at) * self.per_s
        self.level = level if level < self.limit else self.limit
        self.at = now
        return self.level

    def wait(self, now: float, amount: float) -> float:
        """Seconds until `amount` is there; inf when it is more than the bucket can ever hold."""
        if amount > self.limit + _SLACK:
            return float("inf")
        return max(0.0, (amount - self.available(now)) / self.per_s)


@dataclass(frozen=True, slots=True)
class Refusal:
    """The bucket that said no: `kind` requests, tokens or total tokens; `wait_s` inf: it never will."""

    kind: str
    period: str
    wait_s: float


class Allowance:
    """Every bucket of one (organization, model)."""

    __slots__ = ("_requests", "_tokens", "shown")

    def __init__(self, limits: Limits, now: float) -> None:
        def build(*spec: tuple[str, str, int | None]) -> list[tuple[str, str, Bucket]]:
            return [
                (kind, period, Bucket(limit, _WINDOWS_S[period], now))
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
            if bucket.available(now) < 1 - _SLACK:
                return Refusal(kind, period, bucket.wait(now, 1))
        for kind, period, bucket in self._tokens:
            if bucket.available(now) < tokens - _SLACK:
                return Refusal(kind, period, bucket.wait(now, tokens))
        for _, _, bucket in self._requests:
            bucket.level -= 1
        for _, _, bucket in self._tokens:
            bucket.level -= tokens
        return None

    def settle(self, now: float, reserved: int, uncached: int, total: int) -> None:
        """Replace a reservation by what was used; cached tokens cost nothing in the uncached bucket."""
        for kind, period, bucket in self._tokens:
            used = uncached if kind == "tokens" and period == "minute" else total
            bucket.level = min(bucket.limit, bucket.available(now) + reserved - used)


class Reservation:
    """Tokens taken at admission, to be replaced once by those that were used."""

    __slots__ = ("_is_open", "_reserved", "_total", "_uncached", "allowance")

    def __init__(self, allowance: Allowance, reserved: int, uncached: int, total: int) -> None:
        self.allowance = allowance
        self._reserved = reserved
        self._uncached = uncached
        self._total = total
        self._is_open = True

    def settle(self, now: float) -> None:
        """Give back what was not used; calling again changes nothing."""
        if self._is_open:
            self._is_open = False
            self.allowance.settle(now, self._reserved, self._uncached, self._total)


def rate_headers(
    allowance: Allowance, now: float, *, shown: tuple[tuple[str, str], ...], wall_s: float | None
) -> dict[str, str]:
    """The `x-ratelimit-*` headers of one answer.

    `reset` is plain float seconds: with `wall_s` (Unix seconds) to the next wall-clock boundary, as in the
    recorded answers, else to the moment the bucket is full.
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
            remaining = max(0, int(level + _SLACK))
            full_s = (bucket.limit - level) / bucket.per_s
        reset_s = full_s if wall_s is None else window_s - wall_s % window_s
        headers[f"x-ratelimit-limit-{name}"] = str(limit)
        headers[f"x-ratelimit-remaining-{name}"] = str(remaining)
        headers[f"x-ratelimit-reset-{name}"] = str(reset_s)
    return headers
