"""The recipe: one frozen, typed object that says what is done to a model, stage after stage.

A recipe round-trips through YAML and JSON, and is written beside the weights that it made.
Unknown keys are errors, so that a misspelt option never passes for a default.
"""

from secateur.recipe.drop_stage import Criterion, DropBlocksStage, Granularity
from secateur.recipe.factor_stage import (
    FactorMethod,
    FactorStage,
    ImportanceName,
    Intervention,
    RankOverride,
)
from secateur.recipe.inherit_stage import InheritStage
from secateur.recipe.prune_stage import (
    PUBLISHED_COMPARISON_GROUP,
    ComparisonGroup,
    LayerOverride,
    Method,
    PruneStage,
)
from secateur.recipe.recipe import (
    Recipe,
    RecipeLike,
    Stage,
    TrainingStage,
    as_recipe,
    load_recipe,
    recipe_from_dict,
    recipe_from_text,
)
from secateur.recipe.reconstruction import Reconstruction
from secateur.recipe.recover_stage import RecoverMethod, RecoverStage
from secateur.recipe.sparsity import UNSTRUCTURED, Sparsity, parse_sparsity
from secateur.recipe.training import Training

__all__ = [
    "PUBLISHED_COMPARISON_GROUP",
    "UNSTRUCTURED",
    "ComparisonGroup",
    "Criterion",
    "DropBlocksStage",
    "FactorMethod",
    "FactorStage",
    "Granularity",
    "ImportanceName",
    "InheritStage",
    "Intervention",
    "LayerOverride",
    "Method",
    "PruneStage",
    "RankOverride",
    "Recipe",
    "RecipeLike",
    "Reconstruction",
    "RecoverMethod",
    "RecoverStage",
    "Sparsity",
    "Stage",
    "Training",
    "TrainingStage",
    "as_recipe",
    "load_recipe",
    "parse_sparsity",
    "recipe_from_dict",
    "recipe_from_text",
]
