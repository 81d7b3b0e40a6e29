"""The cuts that a search chose, as a recipe."""

from secateur.recipe import FactorStage, Recipe
from secateur.recipe import Intervention as RecipeIntervention
from secateur.report.search_record import SearchRecord


def search_recipe(record: SearchRecord) -> Recipe | None:
    """One laser stage with the composed cuts; None where nothing was found."""
    cuts = record.state("composed").cuts
    if not cuts:
        return None
    interventions = tuple(
        RecipeIntervention(matrix=cut.matrix, block=cut.block, fraction=cut.fraction)
        for cut in cuts
    )
    return Recipe(stages=(FactorStage(method="laser", interventions=interventions),))
