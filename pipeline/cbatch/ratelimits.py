"""headers, error -> what the server said about the account: windows, waits, and which limit refused.

Every number of the API comes in several shapes ("11.38", "1m2.5s", "1,000", a date), any subset of
the headers may be there, and none of them is to be believed alone. Source: the provider's
rate-limit page, and answers recorded on the wire.
"""

from __future__ import annotations

import email.utils
import math
import re
from collections.abc import Mapping
from datetime import datetime

from cbatch.pace import WINDOWS, Kind, Period, Said

_DURATION = re.compile(
    r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?"
)
_NAMED = re.compile(r"\b(requests?|(?:total |uncached )?tokens?) per (second|minute|hour|day)\b", re.IGNORECASE)


def windows_in(headers: Mapping[str, str]) -> list[Said]:
    """What the `x-ratelimit-*` headers of one answer say; names without a window mean the minute."""
    found: list[Said] = []
    if not any(name.lower().startswith("x-ratelimit-") for name in headers):
        return found
    for kind, period in WINDOWS:
        if kind == "total tokens":
            continue
        for suffix in (f"{kind}-{period}", kind) if period == "minute" else (f"{kind}-{period}",):
            limit = number(headers.get(f"x-ratelimit-limit-{suffix}"))
            if limit is not None:
                found.append(Said(kind, period, limit, number(headers.get(f"x-ratelimit-remaining-{suffix}"))))
                break
    return found


def refused_window(code: str | None, message: str) -> tuple[Kind, Period | None]:
    """Which limit a 429 is about, from its code and its words: ("tokens", "minute"). None: not said."""
    match = _NAMED.search(message)
    period: Period | None = None
    words = match[1].lower() if match else ""
    if match:
        period = match[2].lower()  # type: ignore[assignment]
    if words.startswith("total"):
        return "total tokens", period
    if "token" in words or (not words and code == "token_quota_exceeded"):
        return "tokens", period
    return "requests", period


def stated_wait_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds the server asks to wait: retry-after-ms, then retry-after as seconds or as a date; None if neither."""
    if (ms := number(headers.get("retry-after-ms"))) is not None:
        return ms / 1000
    text = headers.get("retry-after")
    if (seconds := duration_s(text)) is not None:
        return seconds
    if text:
        try:
            return max(0.0, (email.utils.parsedate_to_datetime(text) - now).total_seconds())
        except (TypeError, ValueError, OverflowError):
            return None
    return None


def reset_s(headers: Mapping[str, str]) -> float | None:
    """The shortest wait after which some exhausted bucket is refilled, from the x-ratelimit headers; None if unsaid."""
    waits: list[float] = []
    for what in ("requests", "tokens"):
        for window in ("-minute", "-hour", "-day", ""):
            remaining = number(headers.get(f"x-ratelimit-remaining-{what}{window}"))
            reset = duration_s(headers.get(f"x-ratelimit-reset-{what}{window}"))
            if reset is not None and (window in ("-minute", "") or (remaining is not None and remaining < 1)):
                waits.append(reset)
    return min(waits) if waits else None


def number(text: str | None) -> float | None:
    """A finite number ≥ 0 in any of the shapes seen: "60000", "6e4", "60,000"; None for anything else."""
    try:
        value = float(text.replace(",", "")) if text else None
    except ValueError:
        return None
    return value if value is not None and math.isfinite(value) and value >= 0 else None


def duration_s(text: str | None) -> float | None:
    """Seconds in "11.38", in "1m2.5s" or in "250ms"."""
    if (plain := number(text)) is not None:
        return plain
    if text and (match := _DURATION.fullmatch(text.strip())) and any(match.groups()):
        days, hours, minutes, seconds, ms = (float(g) if g else 0.0 for g in match.groups())
        return days * 86400 + hours * 3600 + minutes * 60 + seconds + ms / 1000
    return None
