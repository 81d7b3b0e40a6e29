"""Fields of a request's body: read, or refused in words that name the field."""

from collections.abc import Mapping
from typing import Any

from secateur.serve.faults import RequestFault

# Each raises RequestFault where the field holds something else.


def flag(body: Mapping[str, Any], name: str) -> bool:
    """True, or false where nothing is said."""
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise wrong(name, "true or false", value)
    return bool(value)


def whole(body: Mapping[str, Any], name: str, lowest: int, highest: int) -> int | None:
    """A whole number within two others, or None where nothing is said."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        raise wrong(name, f"a whole number from {lowest} to {highest}", value)
    return value


def number(
    body: Mapping[str, Any], name: str, default: float, lowest: float, highest: float
) -> float:
    """A number within two others, or the default where nothing is said."""
    value = body.get(name)
    if value is None:
        return default
    # Also NaN, which Python reads from JSON, is in no range.
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not lowest <= value <= highest
    ):
        raise wrong(name, f"a number from {lowest:g} to {highest:g}", value)
    return float(value)


def above_zero(body: Mapping[str, Any], name: str, default: float, highest: float) -> float:
    """A number above 0 and at most another, or the default where nothing is said."""
    value = number(body, name, default, 0.0, highest)
    if value == 0:
        raise wrong(name, f"a number above 0 and at most {highest:g}", value)
    return value


def wrong(name: str, expected: str, value: object) -> RequestFault:
    """The fault of a field that holds something else."""
    return RequestFault(f"{name}: expected {expected}, got {shown(value)}", param=name)


def shown(value: object) -> str:
    """A value of a client as short text that can be sent back."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def encodable(value: str, param: str) -> str:
    """The text itself, if it can be encoded: JSON may hold half of a surrogate pair."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestFault(f"expected valid unicode, got {error.reason}", param=param) from None
    return value
