"""Items in a sentence."""

from collections.abc import Sequence

MISSING = "–"
"""Stands where there is nothing to show."""


def listed(items: Sequence[object]) -> str:
    """`3, 4 and 7`."""
    *most, last = map(str, items) if items else [MISSING]
    return f"{', '.join(most)} and {last}" if most else last
