"""Numbers and names as text, for terminals, pages and pictures alike."""

import math
from collections.abc import Sequence

from secateur.report.lists import MISSING


def printable(text: str) -> str:
    """One line without control characters: names come from outside, terminals obey escapes."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def format_number(value: float, digits: int = 2) -> str:
    """Fixed digits below a thousand, then none, then powers of ten; `NaN` and `inf` as such."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if abs(value) < 1000:
        return f"{value:.{digits}f}"
    return f"{value:,.0f}" if abs(value) < 1e6 else f"{value:.2e}"


def format_perplexity(perplexity: float, standard_error: float) -> str:
    """`24.12 ± 0.41`."""
    return f"{format_number(perplexity)} ± {format_number(standard_error)}"


def format_change(value: float, base: float) -> str:
    """Relative change with its sign, `+18.7%`."""
    if base == 0 or not math.isfinite(base) or math.isnan(value):
        return "NaN"
    change = value / base - 1
    return f"{change:+,.1%}" if math.isfinite(change) else f"{change:+}"


def format_fraction(value: float) -> str:
    """`50.0%`."""
    return f"{value:.1%}"


def format_optional(value: float | None, digits: int = 3) -> str:
    """A number, or a dash where it is not known."""
    return MISSING if value is None else format_number(value, digits)


def format_count(value: int) -> str:
    """`8.39M`: three figures with k, M, B (10^9) or T."""
    return str(value) if abs(value) < 1000 else _scaled(value, ("", "k", "M", "B", "T"))


def format_bytes(value: int) -> str:
    """`16.8 MB`: three figures, decimal units."""
    return f"{value} B" if value < 1000 else _scaled(value, (" B", " kB", " MB", " GB", " TB"))


def _scaled(value: float, units: Sequence[str]) -> str:
    step = 0
    while abs(value) >= 999.5 and step < len(units) - 1:
        value, step = value / 1000, step + 1
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f}{units[step]}"


def format_seconds(value: float) -> str:
    """`840 ms`, `12.3 s`, `3 min 20 s`, `1 h 05 min`."""
    if not math.isfinite(value):
        return format_number(value)
    if value < 0.9995:
        return f"{1000 * value:.0f} ms"
    if value < 59.95:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    hours, minutes = divmod(round(value / 60), 60)
    return f"{hours} h {minutes:02d} min"


def format_ratio(ratio: float | None) -> str:
    """`1.29×`, or a dash where it is not known."""
    return MISSING if ratio is None else f"{ratio:.2f}×"
