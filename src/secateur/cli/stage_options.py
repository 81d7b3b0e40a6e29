"""From a command's options to a recipe, with faults in the words of the command line."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from secateur.errors import SecateurError
from secateur.plain import from_plain
from secateur.recipe import Recipe

# A place in a recipe, up to the name of the option that was given wrongly, if it ends in one.
_PLACE = re.compile(r"^stages\.\d+(?:\.training)?(?:\.(?P<name>[a-z_]+)(?:\.[\w.]+)?)?: ")

# Where an option is not called as what it sets.
_FLAGS = {"count": "--drop-blocks", "format": "--data-format", "interventions": "--cut"}


def recipe_of_stages(stages: Sequence[Mapping[str, Any]]) -> Recipe:
    """A recipe of stages whose values are those of options.

    Raises:
        SecateurError: a value is wrong; names the option, as nobody wrote a recipe here.
    """
    try:
        return from_plain(Recipe, {"stages": list(stages)})
    except SecateurError as error:
        raise SecateurError(_by_flag(str(error), _names(stages))) from None


def _by_flag(fault: str, names: Iterable[str]) -> str:
    place = _PLACE.match(fault)
    rest = fault[place.end() :] if place else fault
    if place and place["name"]:
        return f"{_flag(place['name'])}: {rest}"
    for name in names:
        # A word such as `count` may mean itself; where it is quoted or expected it is the option.
        rest = re.sub(rf"`{name}`|(?<=expected ){name}\b", _flag(name), rest)
        if "_" in name:
            rest = re.sub(rf"(?<![-\w]){name}\b", _flag(name), rest)
    return rest


def _flag(name: str) -> str:
    return _FLAGS.get(name, "--" + name.replace("_", "-"))


def _names(stages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of values, also of those of a training."""
    names = [name for stage in stages for name in stage]
    nested = [value for stage in stages for value in stage.values() if isinstance(value, Mapping)]
    return names + [name for values in nested for name in values]
