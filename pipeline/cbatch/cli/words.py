"""Numbers as people read them."""

from __future__ import annotations


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
    return f"${usd:.4f}" if usd >= 0.001 else f"${usd:.6f}".rstrip("0")


def rate(value: float) -> str:
    """12.34 -> "12.3"; 1234.5 -> "1,234"."""
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def plural(number: int, word: str) -> str:
    """(1, "row") -> "1 row"; (1319, "row") -> "1,319 rows"."""
    return f"{number:,} {word}" + ("" if number == 1 else "s")
