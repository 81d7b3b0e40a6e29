"""How much the dearest tests try: a part by default, all of it by `make test-thorough`."""

from collections.abc import Sequence
from typing import TypeVar

from hypothesis import settings

Case = TypeVar("Case")

_USUAL = settings.default.max_examples
_TIMES = 3


def register_profile() -> None:
    """Let pytest take `--hypothesis-profile thorough`."""
    settings.register_profile("thorough", max_examples=_TIMES * _USUAL)


def is_thorough() -> bool:
    """Whether pytest was told `--hypothesis-profile thorough`."""
    return settings.default.max_examples > _USUAL


def examples(all_of_them: int) -> int:
    """How many of hypothesis's: a third of what is tried thoroughly."""
    return all_of_them if is_thorough() else -(-all_of_them // _TIMES)


def most_telling(all_of_them: Sequence[Case], most_different: Sequence[Case]) -> Sequence[Case]:
    """All cases, or those that differ most."""
    return all_of_them if is_thorough() else most_different
