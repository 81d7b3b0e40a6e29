"""What a streaming job will need, reckoned from shapes before anything is read."""

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
from torch import nn

from secateur.calibration.inputs import tokens_per_batch
from secateur.calibration.tokens import CalibrationTokens
from secateur.checkpoint.write import check_space
from secateur.errors import SecateurError
from secateur.models.host_memory import available_host_bytes
from secateur.models.inventory import Inventory
from secateur.models.measure import num_bytes
from secateur.recipe import PruneStage
from secateur.recipe.reconstruction import Reconstruction
from secateur.streaming.activations import (
    Home,
    buffers_on_host,
    bytes_on_host,
    choose_home,
)
from secateur.streaming.finished import WRITERS
from secateur.streaming.skeleton import Skeleton, outside_blocks
from secateur.streaming.source import parameter_bytes

# Tensors as wide as the block's input, or its widest matrix, that live at once in a forward pass.
_LIVE_TENSORS = 8
# Of a Hessian: itself, damped, factored, inverted.
_HESSIAN_COPIES = 4
# fp32 weights, their gradient, two moments, and the best weights so far.
_MASTER_COPIES = 5
# A backward pass costs two forward passes.
_PASSES_TO_TRAIN = 3
_PROBE_WIDTH = 2048
_EXPECTED_SHARE_OF_PEAK = 0.5


@dataclass(frozen=True)
class Estimate:
    """Upper bounds in bytes, and a rough time in seconds."""

    activations: Home
    """Where hidden states will be kept."""
    activation_bytes: int
    """Both buffers of hidden states together."""
    model_bytes: int
    largest_block_bytes: int
    device_bytes: int
    """On the GPU; 0 where blocks run on the CPU."""
    host_bytes: int
    """Beyond what the process takes before it starts."""
    disk_bytes: int
    seconds: float
    """From the products that have to be computed and the speed of one product, measured now. Time
    to read and write is not in it."""


def estimate_job(
    skeleton: Skeleton,
    inventory: Inventory,
    stage: PruneStage,
    tokens: CalibrationTokens | None,
    device: torch.device,
    activations: Home,
) -> Estimate:
    """Reckon the needs of one prune stage.

    Args:
        skeleton: of the model.
        inventory: of its matrices.
        stage: what is done.
        tokens: to calibrate on; None without calibration.
        device: where blocks run.
        activations: where the caller wants hidden states.
    """
    blocks = skeleton.blocks
    block_bytes = max(parameter_bytes(block.parameters()) for block in blocks.modules)
    rest_bytes = parameter_bytes(outside_blocks(skeleton.model, blocks).values())
    model_bytes = num_bytes(skeleton.model)
    hidden = _activation_bytes(skeleton, tokens)
    # By tuning halves, what the first gave while dense, and what it gives once it is tuned.
    between = hidden // 2 + hidden // 2 * 4 // _dtype_bytes(skeleton) if _halves(stage) else 0
    home = choose_home(activations, hidden + between, device)
    work = _work_bytes(inventory, stage, _dtype_bytes(skeleton), device) if tokens else block_bytes
    on_gpu = device.type == "cuda"
    # Pages of a mapped file count while there is room for them.
    in_host = hidden + between if home != "device" or not on_gpu else 0
    pinned = buffers_on_host(in_host, device) if home == "host" else in_host
    copies = max(_bytes_of_copy(block, device) for block in blocks.modules)
    reading = (2 + (WRITERS if on_gpu else 0)) * copies
    return Estimate(
        activations=home,
        activation_bytes=hidden,
        model_bytes=model_bytes,
        largest_block_bytes=block_bytes,
        device_bytes=block_bytes + work + hidden + between - in_host if on_gpu else 0,
        # While the rest is written, two blocks that were read may still lie beside it.
        host_bytes=max(reading, rest_bytes + 2 * copies) + pinned + (0 if on_gpu else work),
        disk_bytes=model_bytes + (hidden if home == "file" else 0),
        seconds=_seconds(inventory, stage, tokens, device, skeleton) if tokens else 0.0,
    )


def _bytes_of_copy(block: nn.Module, device: torch.device) -> int:
    return sum(bytes_on_host(parameter_bytes([weight]), device) for weight in block.parameters())


def check_room(estimate: Estimate, output: Path, already: int = 0) -> None:
    """Refuse a job that cannot end well.

    Args:
        estimate: of the whole job.
        output: what it will write.
        already: bytes of it that an interrupted run has on the disk.

    Raises:
        OutOfSpaceError: the disk has no room for it.
        SecateurError: the host's memory has not.
    """
    check_space(output, max(0, estimate.disk_bytes - already))
    # A file's pages go back to the disk where memory is short.
    needed = estimate.host_bytes
    if estimate.activations == "file":
        needed -= estimate.activation_bytes
    free = available_host_bytes()
    if needed > free:
        raise SecateurError(
            f"expected {needed / 2**30:.1f} GiB of free memory for the largest block and what "
            f"belongs to no block, but {free / 2**30:.1f} GiB are free"
        )


def _halves(stage: PruneStage) -> bool:
    tuning = stage.resolved_reconstruct()
    return tuning is not None and tuning.granularity == "halves"


def _dtype_bytes(skeleton: Skeleton) -> int:
    size: int = next(skeleton.model.parameters()).element_size()
    return size


def _activation_bytes(skeleton: Skeleton, tokens: CalibrationTokens | None) -> int:
    if tokens is None:
        return 0
    width = skeleton.model.get_input_embeddings().weight.shape[1]
    return 2 * tokens.num_tokens * int(width) * _dtype_bytes(skeleton)


def _work_bytes(
    inventory: Inventory, stage: PruneStage, dtype_bytes: int, device: torch.device
) -> int:
    """What a block's statistics, scores, masters and temporary tensors take, in the worst block."""
    tuned = stage.resolved_reconstruct() is not None
    most = 0
    for sites in inventory.sites:
        shapes = [site.shape for site in sites]
        if not shapes:
            continue
        elements = sum(rows * columns for rows, columns in shapes)
        widest = max(max(shape) for shape in shapes)
        largest = max(rows * columns for rows, columns in shapes)
        hessians = 0
        if stage.needs_hessian:
            # Summed in float64, used in fp32. Which matrices share an input is known later, and
            # no two experts do.
            hessians = sum(columns**2 for _, columns in shapes) * 8
            hessians += _HESSIAN_COPIES * max(columns for _, columns in shapes) ** 2 * 4
        gradients = elements * (8 + 4) if stage.score == "rgs" else 0
        # With the masks, and the weights as they were before.
        masters = elements * (4 * _MASTER_COPIES + 1 + dtype_bytes) if tuned else 0
        # In fp32: the weight, its score, what is sorted of it, and the mask.
        scoring = largest * 16
        forward = tokens_per_batch(device) * widest * _LIVE_TENSORS * max(4, dtype_bytes)
        most = max(most, hessians + gradients + masters + scoring + forward)
    return most


def _seconds(
    inventory: Inventory,
    stage: PruneStage,
    tokens: CalibrationTokens,
    device: torch.device,
    skeleton: Skeleton,
) -> float:
    elements = sum(site.weight.numel() for site in inventory.all_sites)
    passes = 2.0 + (_PASSES_TO_TRAIN if stage.score == "rgs" else 0.0)
    tuning = stage.resolved_reconstruct()
    if tuning is not None:
        passes += _PASSES_TO_TRAIN * _rounds_over_all(tuning, len(tokens.samples))
    dtype = next(skeleton.model.parameters()).dtype
    flops = 2.0 * elements * tokens.num_tokens * passes
    return flops / (_flops_per_second(device, dtype) * _EXPECTED_SHARE_OF_PEAK)


def _rounds_over_all(tuning: Reconstruction, num_samples: int) -> float:
    """How often tuning goes through as many samples as there are."""
    rounds, per_round = tuning.rounds or 0, tuning.samples_per_round
    if not isinstance(per_round, int):
        return float(rounds)
    return rounds * min(per_round, num_samples) / num_samples


def _flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Of one product, the second time."""
    left = torch.ones(256, _PROBE_WIDTH, device=device, dtype=dtype)
    right = torch.ones(_PROBE_WIDTH, _PROBE_WIDTH, device=device, dtype=dtype)
    seconds = 0.0
    for _ in range(2):
        started = perf_counter()
        float((left @ right.T)[0, 0])
        seconds = perf_counter() - started
    return 2.0 * 256 * _PROBE_WIDTH**2 / seconds
