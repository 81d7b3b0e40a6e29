"""The recipe: one frozen, typed object that says what is done to a model, stage after stage."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from secateur.errors import SecateurError
from secateur.plain import from_plain, to_plain
from secateur.recipe.drop_stage import DropBlocksStage
from secateur.recipe.factor_stage import FactorStage
from secateur.recipe.inherit_stage import InheritStage
from secateur.recipe.prune_stage import PruneStage
from secateur.recipe.recover_stage import RecoverStage
from secateur.recipe.require import require
from secateur.yaml_text import read_yaml, write_yaml

TrainingStage = RecoverStage | InheritStage
Stage = PruneStage | FactorStage | DropBlocksStage | TrainingStage


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Stages in the order in which they run."""

    version: Literal[1, 2] = 2
    """What a recipe leaves out is meant as this version means it."""
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        require(len(self.stages) > 0, "a recipe needs at least one stage")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, defaults included."""
        values: dict[str, Any] = to_plain(self)
        return values

    def to_json(self) -> str:
        """JSON text that `recipe_from_text` reads back."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def to_yaml(self) -> str:
        """YAML text that `recipe_from_text` reads back."""
        return write_yaml(self.to_dict())

    @property
    def needs_calibration(self) -> bool:
        """Whether any stage looks at calibration tokens."""
        return any(stage.needs_calibration for stage in self.stages)


RecipeLike = Recipe | Stage | Mapping[str, Any] | Sequence[Stage | Mapping[str, Any]] | str | Path
"""A recipe, its stages or one of them, their plain values, or the path of a file."""


def as_recipe(recipe: RecipeLike) -> Recipe:
    """A recipe from any of the forms that people hold one in.

    Raises:
        SecateurError: it is not valid.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, str | Path):
        return load_recipe(recipe)
    if isinstance(recipe, Mapping | list | tuple | Stage):
        return recipe_from_dict(to_plain(recipe))
    raise SecateurError(
        "expected a recipe (a Recipe, its stages, their values or a path), "
        f"got {type(recipe).__name__}"
    )


def recipe_from_dict(values: object, source: str = "recipe") -> Recipe:
    """Validate plain values: those of a recipe, a list of stages, or a single stage.

    Raises:
        SecateurError: what is wrong and where; `source` names the origin.
    """
    try:
        return from_plain(Recipe, _with_old_defaults(_with_stages(values)))
    except SecateurError as error:
        raise SecateurError(f"{source} is not a valid recipe: {error}") from None


def _with_stages(values: object) -> object:
    if isinstance(values, list):
        return {"stages": values}
    if isinstance(values, dict) and "stage" in values:
        return {"stages": [values]}
    return values


def _with_old_defaults(values: object) -> object:
    """What a recipe of version 1 leaves out of its factor stages, as it was meant then."""
    if not isinstance(values, dict) or values.get("version") != 1:
        return values
    stages = values.get("stages")
    if not isinstance(stages, list):
        return values
    return values | {"stages": [_first_version(stage) for stage in stages]}


def _first_version(stage: object) -> object:
    if isinstance(stage, dict) and stage.get("stage") == "factor":
        return {"in_turn": False, "importance": "loss"} | stage
    return stage


def recipe_from_text(text: str, source: str = "recipe") -> Recipe:
    """Parse JSON or YAML."""
    try:
        values = json.loads(text, object_pairs_hook=_keys_once)
    except RecursionError:
        raise SecateurError(f"{source} is not a valid recipe: too deep") from None
    except SecateurError as error:
        raise SecateurError(f"{source} is not a valid recipe: {error}") from None
    except ValueError as error:
        if source.endswith(".json"):
            raise SecateurError(f"{source} is not JSON: {error}") from None
        values = read_yaml(text, source)
    return recipe_from_dict(values, source)


def _keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """As in YAML: Python's JSON alone would take the last of them."""
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise SecateurError(f"the key {twice} stands twice")
    return values


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe file."""
    path = Path(path)
    try:
        is_file = path.is_file()
    except OSError:  # a name too long for a file, such as the recipe itself
        is_file = False
    if not is_file:
        raise SecateurError(f"expected a recipe file, but {str(path)[:200]} is not a file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SecateurError(f"{path} is not UTF-8 text: {error}") from None
    except OSError as error:
        raise SecateurError(f"{path} cannot be read: {error.strerror}") from None
    return recipe_from_text(text, str(path))
