"""The compiled kernels of the 2:4 linear, and which of them takes a problem.

All read the same packed weight. `skinny` streams it once for a few tokens; `wide` (compute
capability 9.0) feeds warpgroups' sparse products, from a few dozen tokens on; `tiles` is for many
tokens on every GPU from 8.0 on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from operator import attrgetter
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from secateur_kernels.errors import SecateurError
from secateur_kernels.linear_arguments import with_aligned_rows
from secateur_kernels.sparse24_linear import (
    cuda_skinny_choice,
    cuda_skinny_config,
    cuda_tiles_choice,
    cuda_tiles_config,
    cuda_wide_choice,
    cuda_wide_config,
)
from secateur_kernels.sparse24_linear.cuda_call import (
    call_kernel,
    check_call,
    with_contiguous_rows,
)
from secateur_kernels.sparse24_linear.cuda_needs import Needs
from secateur_kernels.sparse24_linear.cuda_skinny_config import SkinnyConfig
from secateur_kernels.sparse24_linear.cuda_tiles_config import TilesConfig
from secateur_kernels.sparse24_linear.cuda_wide_config import WideConfig

CudaConfig = SkinnyConfig | WideConfig | TilesConfig
"""The config of one of them; its field `kernel` says of which."""

_HOPPER = (9, 0)
# From here on warpgroups' products are worth their larger tiles: 17 tokens cost as much as 32, and
# x is read through shared memory for every 32 rows otherwise. On an H200 skinny takes 3 to 19%
# longer at 32 tokens for six of seven shapes; at 16, with clusters and a late lead, wide does by 4
# to 19% for four, and both take as long for the others. To compare the estimates of both decided no
# better. Elsewhere the next kernel is the one for many.
_MOST_FOR_SKINNY_ON_HOPPER = 16


@dataclass(frozen=True)
class CudaKernel:
    """One kernel; `m`, `n`, `k` are those of x [m, k] and a weight [n, k]."""

    config: type[Any]
    tiling: Callable[[Any], tuple[int, ...]]
    """The fields of a config but for `kernel`: what the op takes last, in this order."""
    most_tokens: int
    as_read: Callable[[Tensor], Tensor]
    """x, copied where the kernel cannot read its rows."""
    supports: Callable[[int, int, int, tuple[int, int]], bool]
    """m, n, k and the compute capability of the device."""
    needs: Callable[[Any, int, int, int], Needs]
    """For a config, m, n and k."""
    default_config: Callable[[int, int, int, int, tuple[int, int]], Any]
    """m, n, k, multiprocessors and compute capability."""
    candidate_configs: Callable[[int, int, int, int, tuple[int, int]], list[Any]]
    """The same; 0 multiprocessors stand for any number."""


def _kernel(
    config: type[Any],
    most_tokens: int,
    as_read: Callable[[Tensor], Tensor],
    needs: ModuleType,
    choice: ModuleType,
) -> CudaKernel:
    _, *names = (field.name for field in fields(config))
    return CudaKernel(
        config,
        attrgetter(*names),
        most_tokens,
        as_read,
        needs.supports,
        needs.needs,
        choice.default_config,
        choice.candidate_configs,
    )


KERNELS: Mapping[str, CudaKernel] = {
    "skinny": _kernel(
        SkinnyConfig,
        cuda_skinny_config.MAX_TOKENS,
        with_contiguous_rows,
        cuda_skinny_config,
        cuda_skinny_choice,
    ),
    "wide": _kernel(
        WideConfig,
        cuda_wide_config.MAX_SIZE,
        with_aligned_rows,
        cuda_wide_config,
        cuda_wide_choice,
    ),
    "tiles": _kernel(
        TilesConfig,
        cuda_tiles_config.MAX_SIZE,
        with_aligned_rows,
        cuda_tiles_config,
        cuda_tiles_choice,
    ),
}


def kernels_for(m: int, n: int, k: int, capability: tuple[int, int]) -> list[str]:
    """Names of the kernels that take a problem, the most promising first."""
    order = ["skinny", "wide", "tiles"]
    if capability == _HOPPER and m > _MOST_FOR_SKINNY_ON_HOPPER:
        order = ["wide", "skinny", "tiles"]
    return [name for name in order if KERNELS[name].supports(m, n, k, capability)]


def supports(m: int, n: int, k: int, capability: tuple[int, int]) -> bool:
    """Whether any kernel takes x [m, k] and a weight [n, k] on a device."""
    return bool(kernels_for(m, n, k, capability))


@lru_cache(maxsize=4096)
def default_config(m: int, n: int, k: int, num_sms: int, capability: tuple[int, int]) -> CudaConfig:
    """A good guess where nothing was measured: of the first kernel that takes the problem.

    Remembered: to rank the configs of the wide kernel takes milliseconds, and a call that names
    backend `cuda` asks every time.

    Raises:
        SecateurError: no kernel takes it.
    """
    names = kernels_for(m, n, k, capability)
    if not names:
        raise SecateurError(
            f"expected 1 to 2**30 tokens, rows and columns for the compiled kernels, got {m}, "
            f"{n} and {k}"
        )
    config: CudaConfig = KERNELS[names[0]].default_config(m, n, k, num_sms, capability)
    return config


def candidate_configs(
    m: int, n: int, k: int, num_sms: int, capability: tuple[int, int]
) -> list[CudaConfig]:
    """What is worth timing, the default first.

    `tiles` is left out where `wide` takes the problem: it is the same work by slower instructions.
    """
    names = kernels_for(m, n, k, capability)
    timed = [name for name in names if name != "tiles" or "wide" not in names]
    return [
        config
        for name in timed
        for config in KERNELS[name].candidate_configs(m, n, k, num_sms, capability)
    ]


def variants(
    config: CudaConfig, m: int, n: int, k: int, num_sms: int, capability: tuple[int, int]
) -> list[CudaConfig]:
    """The same division of the work with other moments: worth timing where the config is fast.

    Args:
        config: of one of the kernels.
        m: tokens.
        n: rows of the weight.
        k: columns of the weight.
        num_sms: multiprocessors of the device.
        capability: of the device.

    Returns:
        others than the config: when the next kernel may start, and how many steps ahead of the
        ring weights are asked for. None where kernels do not overlap.
    """
    if isinstance(config, SkinnyConfig):
        return [*cuda_skinny_choice.variants(config, n, k, num_sms, capability)]
    if isinstance(config, WideConfig):
        return [*cuda_wide_choice.variants(config, m, n, k, num_sms)]
    return []


def config_of(*, kernel: str, **fields: Any) -> CudaConfig:
    """A config from its fields, as a table keeps it.

    Raises:
        SecateurError: there is no such kernel.
    """
    if kernel not in KERNELS:
        raise SecateurError(f"expected kernel {', '.join(KERNELS)}, got {kernel!r}")
    config: CudaConfig = KERNELS[kernel].config(**fields)
    return config


def launch(
    x: Tensor,
    data: Tensor,
    rows: int,
    columns: int,
    gate_up: bool,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str,
    config: CudaConfig,
) -> Tensor:
    """By the kernel whose config is given; sums and epilogue in fp32, one rounding at the end.

    The result is the same, bit for bit, at each call with the same config. In a captured graph the
    weight is read before the kernel in front has ended: see `dependent_launch`. A weight that was
    dropped is not multiplied: NaN in x at a dropped column of a row does not reach it.

    Args:
        x: [M, K] bf16 or fp16 on a GPU, M from 1 to what the kernel takes; copied unless its rows
            are contiguous and, but for `skinny`, start at multiples of 16 bytes and do not overlap.
        data: uint8 [padded N / 64, padded K / 64, 4608], as `Fragment24.data`.
        rows: N.
        columns: K.
        gate_up: whether the row order is gate_up rather than natural.
        bias: [N] or None.
        residual: [M, output columns] or None.
        activation: `none`, or `silu_and_mul` (needs gate_up).
        config: how the work is divided.

    Returns:
        [M, N], or [M, N / 2] for `silu_and_mul`.

    Raises:
        SecateurError: the library cannot run on the device, or M is out of the kernel's range.
    """
    kernel = KERNELS[config.kernel]
    check_call(x, kernel.most_tokens)
    return call_kernel(
        getattr(torch.ops.secateur_cuda, f"sparse24_{config.kernel}"),
        kernel.as_read(x),
        data,
        rows,
        gate_up,
        bias,
        residual,
        activation,
        kernel.needs(config, len(x), rows, columns),
        kernel.tiling(config),
    )
