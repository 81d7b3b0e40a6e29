"""The low-rank linear for few tokens by the compiled library, a 2:4 part beside it or not."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from secateur_kernels.dependent_launch import wants_dependent_launch
from secateur_kernels.epilogue import output_columns
from secateur_kernels.errors import SecateurError
from secateur_kernels.library import require_library
from secateur_kernels.low_rank_linear import cuda_config
from secateur_kernels.low_rank_linear.cuda_boxes import gated_config
from secateur_kernels.low_rank_linear.cuda_choice import candidate_configs, default_config
from secateur_kernels.low_rank_linear.cuda_config import (
    LowRankCudaConfig,
    LowRankShape,
    shared_bytes_of,
    supports,
    workspace_floats,
)
from secateur_kernels.sparse24_linear.packed import Packed24

__all__ = [
    "LowRankCudaConfig",
    "LowRankShape",
    "candidate_configs",
    "default_config",
    "launch",
    "shared_bytes_of",
    "supports",
    "takes_groups",
]

_TILE_ROWS = 16


def takes_groups(group_rows: Sequence[int], sparse_row_order: str | None) -> bool:
    """Whether the kernels can put the rows of these groups together.

    Args:
        group_rows: rows of each group.
        sparse_row_order: that of the 2:4 weight beside the factors; None where there is none.
    """
    if sparse_row_order is None:
        return True
    if sparse_row_order == "gate_up":
        return len(group_rows) == 1 or (len(group_rows) == 2 and len(set(group_rows)) == 1)
    return all(rows % _TILE_ROWS == 0 for rows in group_rows[:-1])


def launch(
    x: Tensor,
    weight: Packed24 | None,
    down: Tensor,
    up: Tensor,
    group_rows: tuple[int, ...],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    config: LowRankCudaConfig,
) -> Tensor:
    """Run both kernels on checked arguments.

    The result is the same, bit for bit, at each call with the same config. The intermediate and all
    sums are in fp32, and there is one rounding at the end. `up` is read before the first kernel has
    ended, and in a captured graph `down` before the kernel in front of that has: see
    `dependent_launch`.

    Args:
        x: bf16 or fp16 [M, K] on a GPU, rows contiguous; rows that start at multiples of 16 bytes
            are read faster, as is `down` where K is divisible by 8.
        weight: a 2:4 weight S [N, K] whose x @ S.T the second kernel adds, or None.
        down: [G * r, K], dtype of x; r divisible by 16; copied unless it is contiguous.
        up: [N, r], dtype of x; copied unless it is contiguous and starts at a multiple of 16 bytes.
        group_rows: rows of each of the G groups; for silu_and_mul one group, or two equal ones.
        bias: [N], contiguous, or None.
        residual: [M, output columns], rows contiguous, or None.
        activation: `none`, or `silu_and_mul`: rows are [gate; up].
        config: how the work is divided.

    Returns:
        [M, N], or [M, N / 2] for silu_and_mul; contiguous, dtype of x.

    Raises:
        SecateurError: the library cannot run on the device; `takes_groups` says no.
    """
    require_library(x.device)
    order = None if weight is None else weight.row_order
    if not takes_groups(group_rows, order):
        raise SecateurError(
            f"expected groups of multiples of {_TILE_ROWS} rows beside a 2:4 weight, in row order "
            f"gate_up one or two equal ones, for backend cuda, got {list(group_rows)}"
        )
    silu, gate_up = activation == "silu_and_mul", order == "gate_up"
    down_as_read, up_as_read = down.contiguous(), _aligned(up.contiguous())
    # A copy is the work of a kernel in front: there is none to overlap with.
    copied = (down_as_read.data_ptr(), up_as_read.data_ptr()) != (down.data_ptr(), up.data_ptr())
    tokens, rows = len(x), up.shape[0]
    boxes_fit = not config.down_boxes or _boxes_of_down_fit(x, down_as_read)
    if not boxes_fit or (config.up_boxes and silu):
        shape = LowRankShape(tokens, rows, x.shape[1], up.shape[1], len(group_rows))
        gated = _gated_config(config, shape) if boxes_fit else None
        config = gated or _without_boxes(shape, x.device)
    config = fitted(config, group_rows, silu or gate_up)
    y = torch.empty(tokens, output_columns(rows, activation), dtype=x.dtype, device=x.device)
    floats = workspace_floats(config, tokens, down.shape[0])
    torch.ops.secateur_cuda.low_rank(
        x,
        None if weight is None else weight.data,
        down_as_read,
        up_as_read,
        group_rows,
        bias,
        residual,
        y,
        torch.empty(floats, dtype=torch.float32, device=x.device),
        gate_up,
        silu,
        not copied and wants_dependent_launch(x.device),
        (
            config.down_warps,
            config.down_row_tiles,
            config.down_stages,
            config.splits,
            config.down_boxes,
            config.down_ahead,
        ),
        (
            config.up_warps,
            config.up_row_tiles,
            config.up_stages,
            config.up_blocks,
            config.up_boxes,
            config.up_ahead,
        ),
    )
    return y


def _boxes_of_down_fit(x: Tensor, down: Tensor) -> bool:
    """What the tensor memory accelerator asks of x and down."""
    apart = len(x) == 1 or (x.stride(0) % 8 == 0 and x.shape[1] <= x.stride(0) < 1 << 39)
    return apart and x.data_ptr() % 16 == 0 and down.data_ptr() % 16 == 0 and x.shape[1] % 8 == 0


def _without_boxes(shape: LowRankShape, device: torch.device) -> LowRankCudaConfig:
    properties = torch.cuda.get_device_properties(device)
    shared = shared_bytes_of((properties.major, properties.minor))
    return _plain_default(shape, properties.multi_processor_count, shared)


# Asked at every such call: the first takes some 90 us otherwise, more than a launch.
_plain_default = lru_cache(maxsize=1024)(cuda_config.default_config)
_gated_config = lru_cache(maxsize=1024)(gated_config)


def _aligned(factor: Tensor) -> Tensor:
    """Copied where it does not begin at a multiple of 16 bytes, which no allocation does."""
    return factor if factor.data_ptr() % 16 == 0 else factor.clone()


def fitted(
    config: LowRankCudaConfig, group_rows: Sequence[int], gate_and_up: bool
) -> LowRankCudaConfig:
    """The config for these groups: pairs of row tiles for gate and up, no idle thread blocks."""
    if gate_and_up and config.up_row_tiles == 1:
        config = replace(config, up_row_tiles=2, up_stages=max(1, config.up_stages // 2))
    if gate_and_up:
        blocks = -(-(sum(group_rows) // 2) // (_TILE_ROWS * (config.up_row_tiles // 2)))
    else:
        step = _TILE_ROWS * config.up_row_tiles
        blocks = sum(-(-rows // step) for rows in group_rows)
    blocks = max(1, blocks) * max(1, config.up_boxes)
    return replace(config, up_blocks=min(config.up_blocks, blocks))
