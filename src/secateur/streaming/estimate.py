"""What a streaming job will need, reckoned from shapes before anything is read."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import perf_counter

import torch
from torch import nn

from secateur.calibration.tokens import CalibrationTokens
from secateur.checkpoint.write import check_space
from secateur.errors import SecateurError
from secateur.models.blocks import text_config
from secateur.models.host_memory import available_host_bytes
from secateur.models.inventory import Inventory
from secateur.models.measure import num_bytes
from secateur.recipe import FactorStage, PruneStage
from secateur.streaming.activations import (
    Home,
    buffers_on_host,
    bytes_on_host,
    choose_home,
)
from secateur.streaming.finished import WRITERS
from secateur.streaming.skeleton import Skeleton, outside_blocks
from secateur.streaming.source import parameter_bytes
from secateur.streaming.work_bytes import compressing_bytes, tunes_halves, work_bytes
from secateur.streaming.work_flops import work_flops

# Rows and width of a product that is timed: enough to keep a GPU busy, and milliseconds on a CPU.
_PROBE_ON_GPU = (256, 2048)
_PROBE_ON_CPU = (64, 1024)
_EXPECTED_SHARE_OF_PEAK = 0.5
# Where the configuration does not say under the usual name how many experts a token is sent to.
_MANY_EXPERTS = 8


@dataclass(frozen=True)
class Estimate:
    """Bytes, rather too many than too few, and a rough time in seconds."""

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
    stage: PruneStage | FactorStage,
    tokens: CalibrationTokens | None,
    device: torch.device,
    activations: Home,
    compact: bool = False,
    more_values: int = 0,
) -> Estimate:
    """Reckon the needs of one stage.

    Args:
        skeleton: of the model.
        inventory: of its matrices.
        stage: what is done.
        tokens: to calibrate on; None without calibration.
        device: where blocks run.
        activations: where the caller wants hidden states.
        compact: whether layers are written compressed.
        more_values: that are written beyond those of the model.
    """
    blocks = skeleton.blocks
    block_bytes = max(parameter_bytes(block.parameters()) for block in blocks.modules)
    rest_bytes = parameter_bytes(outside_blocks(skeleton.model, blocks).values())
    model_bytes = num_bytes(skeleton.model)
    dtype = next(skeleton.model.parameters()).dtype
    hidden = _activation_bytes(skeleton, tokens)
    # By tuning halves, what the first gave while dense, and what it gives once it is tuned.
    halves = isinstance(stage, PruneStage) and tunes_halves(stage)
    between = hidden // 2 + hidden // 2 * 4 // _hidden_bytes(skeleton) if halves else 0
    home = choose_home(activations, hidden + between, device)
    work = block_bytes
    if tokens or isinstance(stage, FactorStage):
        work = work_bytes(
            inventory,
            stage,
            tokens,
            _width(skeleton),
            _experts_per_token(skeleton),
            _dtype_bytes(skeleton),
            device,
        )
    if compact:
        # It is done last, but statistics may still be there.
        work += compressing_bytes(inventory, block_bytes)
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
        disk_bytes=model_bytes
        + more_values * _dtype_bytes(skeleton)
        + (hidden if home == "file" else 0),
        seconds=_seconds(work_flops(inventory, stage, tokens), device, dtype),
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


def _dtype_bytes(skeleton: Skeleton) -> int:
    size: int = next(skeleton.model.parameters()).element_size()
    return size


def _hidden_bytes(skeleton: Skeleton) -> int:
    """Of an element of hidden states: Mamba keeps them in fp32 beside weights in 16 bits."""
    in_fp32 = getattr(text_config(skeleton.model), "residual_in_fp32", False)
    return max(4, _dtype_bytes(skeleton)) if in_fp32 else _dtype_bytes(skeleton)


def _activation_bytes(skeleton: Skeleton, tokens: CalibrationTokens | None) -> int:
    if tokens is None:
        return 0
    return 2 * tokens.num_tokens * _width(skeleton) * _hidden_bytes(skeleton)


def _width(skeleton: Skeleton) -> int:
    return int(skeleton.model.get_input_embeddings().weight.shape[1])


def _experts_per_token(skeleton: Skeleton) -> int:
    found = getattr(text_config(skeleton.model), "num_experts_per_tok", None)
    return found if isinstance(found, int) else _MANY_EXPERTS


def _seconds(flops: float, device: torch.device, dtype: torch.dtype) -> float:
    if not flops:
        return 0.0
    return flops / (_flops_per_second(device, dtype) * _EXPECTED_SHARE_OF_PEAK)


@cache
def _flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Of one product, the second time."""
    rows, width = _PROBE_ON_CPU if device.type == "cpu" else _PROBE_ON_GPU
    left = torch.ones(rows, width, device=device, dtype=dtype)
    right = torch.ones(width, width, device=device, dtype=dtype)
    seconds = 0.0
    for _ in range(2):
        started = perf_counter()
        float((left @ right.T)[0, 0])
        seconds = perf_counter() - started
    return 2.0 * rows * width**2 / seconds
