"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def count(value: float | None) -> str:
    """1319 -> "1,319"; 2410000 -> "2.41M"; None -> "?"."""
    if value is None:
        return "?"
    if abs(value) >= 1_000_000:
        return f"{value / 1e6:,.2f}M"
    return f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """0.0421 -> "42 ms"; 19.31 -> "19.3 s"; 3725 -> "1h 02m"; None -> "?"."""
    if seconds is None:
        return "?"
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms" if seconds else "0 s"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m" if hours < 48 else f"{hours / 24:.1f} days"


def money(usd: float | None) -> str:
    """0.2713 -> "$0.27"; 0.00041 -> "$0.0004"; None -> "unknown"."""
    if usd is None:
        return "unknown"
    if usd == 0 or usd >= 0.1:
        return f"${usd:,.2f}"
    return f"${usd:.4f}" if usd >= 0.001 else f"${usd:.6f}".rstrip("0").rstrip(".")


def rate(value: float) -> str:
    """12.34 -> "12.3"; 1234.5 -> "1,234"."""
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def plural(number: int, word: str) -> str:
    """(1, "row") -> "1 row"; (1319, "row") -> "1,319 rows"."""
    return f"{number:,} {word}" + ("" if number == 1 else "s")


def printable(text: str) -> str:
    """What a server or a row says, without what moves the cursor or rings the bell."""
    return "".join([c if c.isprintable() else c.encode("unicode_escape").decode() for c in text])


def where_time_went(figures: Mapping[str, Any]) -> str:
    """What a session or a run waited for, as shares of its wall time, the longest first; empty if nothing to speak of.

    `figures` are those of a Summary or of `cbatch status`.
    """
    elapsed_s = figures["elapsed_s"] or 0.0
    if not elapsed_s:
        return ""
    shares = {f"for {cause}": seconds / elapsed_s for cause, seconds in (figures.get("time_lost_s") or {}).items()}
    requests = figures.get("answered") or 0
    parts = [
        f"{100 * share:.0f} % {why}" for why, share in sorted(shares.items(), key=lambda i: -i[1]) if share >= 0.005
    ]
    cpu = (figures.get("cpu_s") or 0.0) / elapsed_s
    if cpu >= 0.5:
        parts.append(f"own CPU busy {100 * cpu:.0f} %")
    queue_s = (figures.get("server_queue_s") or 0.0) / requests if requests else 0.0
    if queue_s >= 0.05:
        parts.append(f"server queue {duration(queue_s)} a request")
    retries_s = figures.get("backoff_s") or 0.0
    if retries_s >= 0.01 * elapsed_s:
        parts.append(f"{duration(retries_s)} between retries, summed")
    return ", ".join(parts)
