"""Frozen dataclasses from and to plain values (what JSON and YAML hold), strictly.

Types are checked, unknown keys are errors, and a fault is named by its path: enough for recipes
and reports, with nothing to install.
"""

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from secateur.errors import SecateurError

T = TypeVar("T")

# JSON has no numbers for these.
_NAMED_FLOATS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def to_plain(value: Any) -> Any:
    """Dataclasses become dicts, tuples lists, and floats that JSON cannot hold their names."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def from_plain(kind: type[T], value: object, path: str = "") -> T:
    """Build a dataclass, checking every value against its field's type.

    Args:
        kind: a dataclass whose fields are str, int, float, bool, None, Literal, Any, tuples,
            dicts with string keys, other dataclasses, and unions of these. In a union of
            dataclasses a Literal field tells which is meant.
        value: plain values, as `to_plain` makes them.
        path: where `value` stands, for messages.

    Raises:
        SecateurError: a value of another type, a missing or an unknown key; names its path.
    """
    built: T = _build(kind, value, path)
    return built


def _build(kind: Any, value: object, path: str) -> Any:
    origin = get_origin(kind)
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _build_dataclass(kind, value, path)
    if origin is Literal:
        return _one_of(get_args(kind), value, path)
    if origin in (Union, UnionType):
        return _build_union(get_args(kind), value, path)
    if origin is tuple:
        return _build_tuple(get_args(kind), value, path)
    if origin is dict:
        return _build_dict(get_args(kind)[1], value, path)
    return _build_scalar(kind, value, path)


def _build_dataclass(kind: Any, value: object, path: str) -> Any:
    if not isinstance(value, Mapping):
        raise _fault(path, "keys and values", value)
    hints = get_type_hints(kind)
    known = [field.name for field in fields(kind)]
    unknown = sorted(str(key) for key in value if key not in known)
    if unknown:
        raise SecateurError(f"{_join(path, unknown[0])}: unknown key; known are {', '.join(known)}")
    missing = [
        field.name
        for field in fields(kind)
        if field.name not in value and field.default is MISSING and field.default_factory is MISSING
    ]
    if missing:
        raise SecateurError(f"{_join(path, missing[0])}: is missing")
    arguments = {name: _build(hints[name], item, _join(path, name)) for name, item in value.items()}
    try:
        return kind(**arguments)
    except SecateurError as error:
        raise type(error)(f"{path}: {error}" if path else str(error)) from None


def _build_union(kinds: tuple[Any, ...], value: object, path: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    if len(kinds) == 1:
        return _build(kinds[0], value, path)
    if all(is_dataclass(kind) for kind in kinds):
        return _build_tagged(kinds, value, path)
    for kind in kinds:
        try:
            return _build(kind, value, path)
        except SecateurError:
            continue
    raise _fault(path, " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds), value)


def _build_tagged(kinds: tuple[Any, ...], value: object, path: str) -> Any:
    """The dataclass whose Literal field has the value that stands there, or its default."""
    tag, by_value = _tags(kinds)
    if not isinstance(value, Mapping):
        raise _fault(path, "keys and values", value)
    if tag not in value:
        raise SecateurError(f"{_join(path, tag)}: is missing; one of {', '.join(by_value)}")
    chosen = _one_of(tuple(by_value), value[tag], _join(path, tag))
    return _build_dataclass(by_value[chosen], value, path)


def _tags(kinds: tuple[Any, ...]) -> tuple[str, dict[str, Any]]:
    first_hints = get_type_hints(kinds[0])
    tag = next(name for name, hint in first_hints.items() if get_origin(hint) is Literal)
    return tag, {literal: kind for kind in kinds for literal in get_args(get_type_hints(kind)[tag])}


def _build_tuple(items: tuple[Any, ...], value: object, path: str) -> Any:
    if not isinstance(value, list | tuple):
        raise _fault(path, "a list", value)
    kinds = [items[0]] * len(value) if items[-1] is Ellipsis else list(items)
    if len(kinds) != len(value):
        raise _fault(path, f"a list of {len(kinds)}", value)
    return tuple(
        _build(kind, item, _join(path, str(index)))
        for index, (kind, item) in enumerate(zip(kinds, value, strict=True))
    )


def _build_dict(kind: Any, value: object, path: str) -> Any:
    if not isinstance(value, Mapping):
        raise _fault(path, "keys and values", value)
    return {str(key): _build(kind, item, _join(path, str(key))) for key, item in value.items()}


def _build_scalar(kind: Any, value: object, path: str) -> Any:
    if kind is float:
        if isinstance(value, str) and value in _NAMED_FLOATS:
            return _NAMED_FLOATS[value]
        if isinstance(value, int | float) and not isinstance(value, bool):
            return _as_float(value, path)
    elif isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool):
        return value
    raise _fault(
        path, {"str": "text", "int": "a whole number"}.get(kind.__name__, kind.__name__), value
    )


def _as_float(value: float, path: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise _fault(path, "a number that a float can hold", value) from None


def _one_of(allowed: tuple[Any, ...], value: object, path: str) -> Any:
    for item in allowed:
        if type(item) is type(value) and item == value:
            return item
    raise _fault(path, "one of " + ", ".join(str(item) for item in allowed), value)


def _fault(path: str, expected: str, value: object) -> SecateurError:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return SecateurError(f"{path or 'value'}: expected {expected}, got {shown}")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
