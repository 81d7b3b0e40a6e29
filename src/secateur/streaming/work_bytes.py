"""Memory that a stage's work on a block takes beside its weights and the hidden states.

Phases of the work follow each other and give back what they took, so that the dearest one counts.
Held against a count of every tensor: `bench.device_memory`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from secateur.calibration.inputs import tokens_per_batch
from secateur.calibration.tokens import CalibrationTokens
from secateur.models.inventory import Inventory
from secateur.models.matrix_types import is_fed
from secateur.models.sites import WeightSite
from secateur.recipe import FactorStage, PruneStage
from secateur.recipe.prune_stage import Update
from secateur.recipe.reconstruction import Reconstruction

# What libraries' kernels take beside their results, and what lies idle between tensors.
_GAPS = 1.1
# As wide as the widest matrix, that live at once in a forward pass: an MLP's gate and up, the
# activated gate, and their product.
_LIVE_TENSORS = 4
# As wide as the block's inputs and in fp32, for a norm or for errors of outputs.
_LIVE_IN_FP32 = 4
# For a backward pass: what enters and leaves every matrix, as it is and its gradient.
_KEPT_TO_TRAIN = 2
_KEPT_IN_FP32 = 6
# In one pass of the optimizer, unless a sample alone has more.
_TOKENS_TO_TUNE = 4096
# Sums of products are taken in pieces of so many rows.
_ROWS_OF_PRODUCTS = 2048

# fp32 copies of a matrix: itself, its score or new weights, what is sorted or rounded, the mask.
_COPIES_TO_SCORE = 4
_COPIES_TO_SWAP = 20
_COPIES_TO_UPDATE: dict[Update, int] = {
    "none": 0,
    "least_squares": 6,
    "conjugate_gradient": 9,
    "admm": 9,
    "sparsegpt": 4,
}
# Rows are solved together as far as they fit, see `update.least_squares`.
_SYSTEM_BYTES = 256 << 20
# Of a Hessian [K, K] while it is factored: itself, damped, its root, inverse, that one's root.
_COPIES_TO_FACTOR_HESSIAN = 6
_COPIES_OF_HESSIAN = 2
# To make one matrix 2:4, a weight: masks, positions and numbers of what is kept.
_BYTES_TO_COMPRESS = 24

# In float64, to find the root of a Hessian, and while it lies beside a regression's operands.
_HESSIANS_TO_ROOT = 3.5
_HESSIANS_TO_FIT = 2.5
# In float64: the matrix, what it is fitted to, the product that is decomposed, both sides of that.
_MATRICES_TO_FIT = 6
_MATRICES_TO_SPLIT = 17
_COPIES_TO_DECOMPOSE = 4


@dataclass(frozen=True)
class BlockWork:
    """One block's part of the work."""

    sites: Sequence[WeightSite]
    tokens: CalibrationTokens | None
    """None without calibration."""
    width: int
    """Of what enters the block."""
    experts_per_token: int
    dtype_bytes: int
    """Of a weight."""
    device: torch.device

    def bytes(self, stage: PruneStage | FactorStage) -> int:
        """What the dearest phase takes."""
        if isinstance(stage, FactorStage):
            return int(max(self._factoring(stage)))
        return int(max(self._pruning(stage)))

    def _pruning(self, stage: PruneStage) -> list[float]:
        """Of each phase."""
        running = self._running(stage.needs_hessian)
        facts = self._hessians(self.sites) if stage.needs_hessian else 0
        phases: list[float] = [facts + running]
        if stage.score == "rgs":
            facts += self._elements * self._wide
            gradients = self._elements * self.dtype_bytes + 2 * self._wide * self._largest
            longest = self.tokens.max_seq_length if self.tokens else 0
            phases.append(facts + gradients + self._training(longest, self.dtype_bytes))
        masks = self._elements
        scoring = max(self._settling(site, stage) for site in self.sites)
        phases.append(facts + masks + scoring)
        tuning = stage.resolved_reconstruct()
        if tuning is not None and self.tokens is not None:
            again = 0 if tuning.frozen_mask else facts + masks + scoring
            phases.append(again + self._tuning(tuning, self.tokens.max_seq_length))
        return [*phases, masks + running]

    def _factoring(self, stage: FactorStage) -> list[float]:
        """Of each phase."""
        if self.tokens is None:
            return [_COPIES_TO_DECOMPOSE * self._largest * self._wide]
        splits = stage.method == "sparse-plus-low-rank"
        hessians, running = self._hessians(self.sites), self._running(True)
        phases = [hessians + running]
        fed = [site for site in self.sites if stage.fits_in_turn and is_fed(site.name)]
        # Of these sums are taken once more, crossed, beside a copy of the block.
        crossed = self._hessians(fed) + self._elements * self.dtype_bytes if fed else 0
        if fed:
            phases.append(hessians + crossed + 2 * running)
        fitting = max(_fitting(site, splits) for site in self.sites)
        return [*phases, hessians + crossed + fitting]

    def _running(self, with_hessian: bool) -> float:
        """A batch in a forward pass, without gradients."""
        if self.tokens is None:
            return 0
        at_once = max(tokens_per_batch(self.device), self.tokens.max_seq_length)
        batch = min(at_once, self.tokens.num_tokens)
        widest = max(max(site.shape) * self._tokens_of(site) for site in self.sites)
        live = _LIVE_TENSORS * widest * self.dtype_bytes
        in_fp32 = _LIVE_IN_FP32 * self.width * self._wide
        columns = max(site.shape[1] for site in self.sites)
        products = min(columns, _ROWS_OF_PRODUCTS) * columns * 4 if with_hessian else 0
        return batch * max(live, in_fp32) + products

    def _training(self, num_tokens: int, value_bytes: int) -> float:
        """A forward and a backward pass."""
        values = sum(sum(site.shape) * self._share_of(site) for site in self.sites)
        in_fp32 = _KEPT_IN_FP32 * self.width * self._wide
        return num_tokens * (_KEPT_TO_TRAIN * values * value_bytes + in_fp32)

    def _settling(self, site: WeightSite, stage: PruneStage) -> float:
        """To find a matrix's mask and its new weights."""
        matrix, hessian = _elements([site]) * self._wide, site.shape[1] ** 2 * self._wide
        updates = {stage.own_update(), stage.resolved_update()}
        copies = max(_COPIES_TO_SCORE, *(_COPIES_TO_UPDATE[update] for update in updates))
        if stage.swaps:
            copies = max(copies, _COPIES_TO_SWAP)
        needed: float = copies * matrix
        if "least_squares" in updates:
            needed += min(_SYSTEM_BYTES, matrix * site.shape[1])
        if not stage.needs_hessian:
            return needed
        factored = matrix + _COPIES_TO_FACTOR_HESSIAN * hessian
        needs_factor = not updates.isdisjoint({"sparsegpt", "admm"})
        return max(needed + _COPIES_OF_HESSIAN * hessian, factored if needs_factor else 0)

    def _tuning(self, tuning: Reconstruction, longest: int) -> float:
        """Beside what calibration says: masters, their gradients and moments, the best weights."""
        narrow = self.dtype_bytes < 4
        autocast = narrow and self.device.type == "cuda"
        masters = self._wide - self.dtype_bytes
        before = 0 if tuning.held_out else self.dtype_bytes
        # The masks of matrices, those of parameters, and what is removed.
        masks = 3
        kept = self._wide
        moments = (2 if tuning.optimizer == "adam" else 1) * self._wide
        always: float = masters + before + masks + kept + moments + (2 if autocast else 0)
        asked = (tuning.samples_per_step or 1) * longest
        tokens = max(longest, min(_TOKENS_TO_TUNE, asked))
        training = self._training(tokens, 2 if autocast else self._wide)
        if autocast:
            # A gradient in 16 bits, before it is added up in fp32.
            always += 2 * self._largest / self._elements
        return self._elements * always + max(self._elements * self._wide, training)

    @cached_property
    def _elements(self) -> int:
        return _elements(self.sites)

    @cached_property
    def _largest(self) -> int:
        return max(_elements([site]) for site in self.sites)

    @property
    def _wide(self) -> int:
        """Bytes of a value that is computed with: fp32, or float64."""
        return max(4, self.dtype_bytes)

    def _hessians(self, sites: Sequence[WeightSite]) -> int:
        # Summed in float64. Which matrices share an input is known later, and no two experts do.
        return sum(site.shape[1] ** 2 for site in sites) * 8

    def _tokens_of(self, site: WeightSite) -> int:
        """Rows of all experts of a kind together, for each token."""
        return min(self.experts_per_token, self._num_experts) if site.is_expert else 1

    def _share_of(self, site: WeightSite) -> float:
        """Rows that reach a matrix, for each token."""
        return self._tokens_of(site) / self._num_experts if site.is_expert else 1.0

    @cached_property
    def _num_experts(self) -> int:
        return max(1, len({site.expert_name for site in self.sites if site.is_expert}))


def work_bytes(
    inventory: Inventory,
    stage: PruneStage | FactorStage,
    tokens: CalibrationTokens | None,
    width: int,
    experts_per_token: int,
    dtype_bytes: int,
    device: torch.device,
) -> int:
    """What statistics, scores, masters, factors and temporary tensors take, in the worst block.

    Args:
        inventory: of the model's matrices.
        stage: what is done.
        tokens: to calibrate on; None without calibration.
        width: of what enters a block.
        experts_per_token: that a token is sent to, in a mixture of experts.
        dtype_bytes: of a weight.
        device: where blocks run.
    """
    dearest = max(
        (
            BlockWork(sites, tokens, width, experts_per_token, dtype_bytes, device).bytes(stage)
            for sites in inventory.sites
            if sites
        ),
        default=0,
    )
    return int(_GAPS * dearest)


def _fitting(site: WeightSite, splits: bool) -> float:
    """To find the factors of a matrix whose inputs were watched."""
    hessian, matrix = site.shape[1] ** 2 * 8, _elements([site]) * 8
    matrices = _MATRICES_TO_SPLIT if splits else _MATRICES_TO_FIT
    return max(_HESSIANS_TO_ROOT * hessian, _HESSIANS_TO_FIT * hessian + matrices * matrix)


def compressing_bytes(inventory: Inventory, block_bytes: int) -> int:
    """What it takes beside a block to make its layers 2:4, one after another."""
    sizes = (site.shape[0] * site.shape[1] for site in inventory.all_sites)
    return _BYTES_TO_COMPRESS * max(sizes, default=0) + block_bytes * 9 // 16


def tunes_halves(stage: PruneStage) -> bool:
    """Whether hidden states between attention and MLP are kept, to tune them one by one."""
    tuning = stage.resolved_reconstruct()
    return tuning is not None and tuning.granularity == "halves"


def _elements(sites: Sequence[WeightSite]) -> int:
    return sum(site.shape[0] * site.shape[1] for site in sites)
