"""Numbers of a report as people read them."""

from __future__ import annotations


def number(value: float) -> str:
    """2003.4 -> "2,003"; 53.27 -> "53.3"; 0.812 -> "0.81"."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def count(value: float | None) -> str:
    """31.62 -> "31.6"; 60320.4 -> "60,320"; None -> "?"."""
    if value is None:
        return "?"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def ms(duration_s: float) -> str:
    """In milliseconds: 0.1424 -> "142"; 0.0031 -> "3.1"."""
    value = 1_000 * duration_s
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2g}"


def time(duration_s: float) -> str:
    """With the unit that fits: 0.00094 -> "0.94 ms"; 0.1424 -> "142 ms"; 8.66 -> "8.7 s"; 5140 -> "5,140 s"."""
    if duration_s < 0.9995:
        return f"{1_000 * duration_s:.3g} ms"
    return f"{duration_s:,.0f} s" if duration_s >= 100 else f"{duration_s:.1f} s"


def elapsed(duration_s: float) -> str:
    """61.23 -> "61.2 s"; 3725 -> "62 min"; 40000 -> "11.1 h"."""
    if duration_s < 600:
        return f"{duration_s:.1f} s"
    return f"{duration_s / 60:.0f} min" if duration_s < 36_000 else f"{duration_s / 3600:.1f} h"


def share(value: float) -> str:
    """0.0123 -> "1.2%"; 0.00041 -> "0.04%"."""
    return f"{100 * value:.1f}%" if value >= 0.001 else f"{100 * value:.2f}%"


def large(value: int) -> str:
    """2410000 -> "2.41M"; 1319 -> "1,319"."""
    return f"{value / 1e6:,.2f}M" if value >= 1_000_000 else f"{value:,}"


def money(usd: float | None) -> str:
    """0.2713 -> "$0.27"; 0.00041 -> "$0.00041"; None -> "unknown"."""
    if usd is None:
        return "unknown"
    return f"${usd:,.2f}" if usd >= 0.1 or not usd else f"${usd:.2g}" if usd >= 0.0001 else f"${usd:.1e}"


def plural(many: int, word: str) -> str:
    """(1, "row") -> "1 row"; (1319, "row") -> "1,319 rows"."""
    return f"{many:,} {word}" + ("" if many == 1 else "s")


def printable(text: str) -> str:
    """What a server says, without what moves the cursor."""
    return "".join([c if c.isprintable() else c.encode("unicode_escape").decode() for c in text])


__all__ = ["count", "elapsed", "large", "money", "ms", "number", "plural", "printable", "share", "time"]
