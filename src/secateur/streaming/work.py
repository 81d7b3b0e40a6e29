"""What a stage's work on a block takes beside its weights: memory, and products to compute."""

from collections.abc import Sequence

import torch

from secateur.calibration.inputs import tokens_per_batch
from secateur.calibration.tokens import CalibrationTokens
from secateur.models.inventory import Inventory
from secateur.models.matrix_types import is_fed
from secateur.models.sites import WeightSite
from secateur.recipe import FactorStage, PruneStage
from secateur.recipe.reconstruction import Reconstruction

# Tensors as wide as the block's input, or its widest matrix, that live at once in a forward pass.
_LIVE_TENSORS = 8
# Of a Hessian: itself, damped, factored, inverted.
_HESSIAN_COPIES = 4
# fp32 weights, their gradient, two moments, and the best weights so far.
_MASTER_COPIES = 5
# A backward pass costs two forward passes.
_PASSES_TO_TRAIN = 3
# To make one matrix 2:4, a weight: masks, positions and numbers of what is kept.
_BYTES_TO_COMPRESS = 24
# In float64: the matrix, what is decomposed, both sides of that and the room to find them, factors.
_DECOMPOSED_COPIES = 8
# A singular value decomposition: so many times N K min(N, K), and float64 at half the speed.
_FLOPS_TO_DECOMPOSE = 2 * 22


def work_bytes(
    inventory: Inventory,
    stage: PruneStage | FactorStage,
    tokens: CalibrationTokens | None,
    dtype_bytes: int,
    device: torch.device,
) -> int:
    """What statistics, scores, masters, factors and temporary tensors take, in the worst block.

    Args:
        inventory: of the model's matrices.
        stage: what is done.
        tokens: to calibrate on; None without calibration.
        dtype_bytes: of a weight.
        device: where blocks run.
    """
    most = 0
    for sites in inventory.sites:
        if not sites:
            continue
        if isinstance(stage, FactorStage):
            work = _factor_bytes(sites, stage, tokens is not None, dtype_bytes)
        else:
            work = _prune_bytes(sites, stage, dtype_bytes)
        widest = max(max(site.shape) for site in sites)
        forward = tokens_per_batch(device) * widest * _LIVE_TENSORS * max(4, dtype_bytes)
        most = max(most, work + (forward if tokens else 0))
    return most


def _prune_bytes(sites: Sequence[WeightSite], stage: PruneStage, dtype_bytes: int) -> int:
    elements = _elements(sites)
    largest = max(site.shape[0] * site.shape[1] for site in sites)
    hessians = 0
    if stage.needs_hessian:
        hessians = _hessian_bytes(sites)
        hessians += _HESSIAN_COPIES * max(site.shape[1] for site in sites) ** 2 * 4
    gradients = elements * (8 + 4) if stage.score == "rgs" else 0
    # With the masks, and the weights as they were before.
    tuned = stage.resolved_reconstruct() is not None
    masters = elements * (4 * _MASTER_COPIES + 1 + dtype_bytes) if tuned else 0
    # In fp32: the weight, its score, what is sorted of it, and the mask.
    scoring = largest * 16
    return hessians + gradients + masters + scoring


def _factor_bytes(
    sites: Sequence[WeightSite], stage: FactorStage, calibrated: bool, dtype_bytes: int
) -> int:
    rows, columns = (max(site.shape[axis] for site in sites) for axis in (0, 1))
    decomposed = _DECOMPOSED_COPIES * max(rows, columns) * columns * 8
    if not calibrated:
        return decomposed
    hessians = _hessian_bytes(sites)
    fed = [site for site in sites if stage.fits_in_turn and is_fed(site.name)]
    # Those that are fitted in turn are summed up once more, crossed, beside a copy of the block.
    crossed = _hessian_bytes(fed) + _elements(sites) * dtype_bytes if fed else 0
    return hessians + crossed + decomposed + _HESSIAN_COPIES * columns**2 * 8


def compressing_bytes(inventory: Inventory, block_bytes: int) -> int:
    """What it takes beside a block to make its layers 2:4, one after another."""
    sizes = (site.shape[0] * site.shape[1] for site in inventory.all_sites)
    return _BYTES_TO_COMPRESS * max(sizes, default=0) + block_bytes * 9 // 16


def _hessian_bytes(sites: Sequence[WeightSite]) -> int:
    # Summed in float64. Which matrices share an input is known later, and no two experts do.
    return sum(site.shape[1] ** 2 for site in sites) * 8


def _elements(sites: Sequence[WeightSite]) -> int:
    return sum(site.shape[0] * site.shape[1] for site in sites)


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


def tunes_halves(stage: PruneStage) -> bool:
    """Whether hidden states between attention and MLP are kept, to tune them one by one."""
    tuning = stage.resolved_reconstruct()
    return tuning is not None and tuning.granularity == "halves"


def _rounds_over_all(tuning: Reconstruction, num_samples: int) -> float:
    """How often tuning goes through as many samples as there are."""
    rounds, per_round = tuning.rounds or 0, tuning.samples_per_round
    if not isinstance(per_round, int):
        return float(rounds)
    return rounds * min(per_round, num_samples) / num_samples
