"""Products that a stage's work takes, to tell how long it will be."""

from secateur.calibration.tokens import CalibrationTokens
from secateur.models.inventory import Inventory
from secateur.recipe import FactorStage, PruneStage
from secateur.recipe.reconstruction import Reconstruction

# A backward pass costs two forward passes.
_PASSES_TO_TRAIN = 3
# A singular value decomposition: so many times N K min(N, K), and float64 at half the speed.
_FLOPS_TO_DECOMPOSE = 2 * 22


def work_flops(
    inventory: Inventory, stage: PruneStage | FactorStage, tokens: CalibrationTokens | None
) -> float:
    """Multiplications and additions, without what grows with weights alone but decompositions."""
    elements = sum(site.weight.numel() for site in inventory.all_sites)
    decomposing = 0.0
    if isinstance(stage, FactorStage):
        passes = 4.0 if stage.fits_in_turn else 2.0
        rounds = 1
        if stage.budget is not None and stage.method != "sparse-plus-low-rank":
            passes, rounds = passes + 1, 2
        shapes = [site.shape for site in inventory.all_sites]
        decomposing = float(sum(n * k * min(n, k) for n, k in shapes) * rounds)
    else:
        passes = 2.0 + (_PASSES_TO_TRAIN if stage.score == "rgs" else 0.0)
        tuning = stage.resolved_reconstruct()
        if tuning is not None and tokens is not None:
            passes += _PASSES_TO_TRAIN * _rounds_over_all(tuning, len(tokens.samples))
    running = 2.0 * elements * tokens.num_tokens * passes if tokens else 0.0
    return running + _FLOPS_TO_DECOMPOSE * decomposing


def _rounds_over_all(tuning: Reconstruction, num_samples: int) -> float:
    """How often tuning goes through as many samples as there are."""
    rounds, per_round = tuning.rounds or 0, tuning.samples_per_round
    if not isinstance(per_round, int):
        return float(rounds)
    return rounds * min(per_round, num_samples) / num_samples
