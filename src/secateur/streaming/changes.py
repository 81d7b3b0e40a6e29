"""What differs between two sets of plain values, told shortly."""

from collections.abc import Iterator, Mapping
from typing import Any

_ABSENT = "absent"
_LONGEST = 80


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One entry a value that changed, such as `stages.0.method was wanda, is ria`."""
    return [
        f"{path} was {_shown(old)}, is {_shown(new)}" for path, old, new in _differing(before, now)
    ]


def _differing(before: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(path, old, new) of the innermost values that differ."""
    if before == now:
        return
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in dict.fromkeys([*before, *now]):
            old, new = before.get(name, _ABSENT), now.get(name, _ABSENT)
            yield from _differing(old, new, f"{path}.{name}" if path else name)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from _differing(old, new, f"{path}.{index}")
    else:
        yield path, before, now


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
