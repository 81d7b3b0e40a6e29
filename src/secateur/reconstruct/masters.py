"""Full-precision masters of a block's parameters while it is tuned, and the way back.

A step of 3e-7 is lost in a bfloat16 weight of 0.02, whose neighbours are 1.2e-4 away: steps add up
in fp32, and the sum is rounded once, when the block is done.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

Rounding = Literal["nearest", "stochastic"]


@contextmanager
def master_weights(
    block: nn.Module,
    masks: Mapping[str, Tensor],
    rounding: Rounding = "nearest",
    seed: int = 0,
) -> Iterator[None]:
    """While this is open the block's 16-bit floating parameters are fp32; then they are narrowed.

    Args:
        block: every floating parameter narrower than fp32 is replaced (its `data`) and comes back
            in its own dtype, whatever happens; wider ones stay as they are.
        masks: by parameter name, True = keep, read at the end: so the caller may replace entries
            while the block is tuned. Masked weights come back as exact zeros.
        rounding: see `narrow`.
        seed: of stochastic rounding.
    """
    narrowed = {
        name: parameter.dtype
        for name, parameter in block.named_parameters()
        if parameter.is_floating_point() and parameter.element_size() < 4
    }
    parameters = dict(block.named_parameters())
    for name in narrowed:
        parameters[name].data = parameters[name].data.float()
    try:
        yield
    finally:
        for number, (name, parameter) in enumerate(parameters.items()):
            parameter.grad = None
            value, keep = parameter.data, masks.get(name)
            if name in narrowed:
                parameter.data = narrow(value, narrowed[name], keep, rounding, seed + number)
            elif keep is not None:
                value.masked_fill_(~keep.to(value.device), 0.0)


def narrow(
    value: Tensor,
    dtype: torch.dtype,
    keep_mask: Tensor | None = None,
    rounding: Rounding = "nearest",
    seed: int = 0,
) -> Tensor:
    """Round to a narrower dtype, and leave the pattern as it is.

    Args:
        value: fp32, any shape.
        dtype: of the result: bfloat16 or float16.
        keep_mask: bool, same shape; a kept weight that is not zero never becomes zero, but the
            smallest number of its sign that the dtype has in full precision, and all others are
            zero.
        rounding: `nearest` even; or `stochastic`, up or down with probabilities that keep the
            mean, so that changes smaller than the spacing survive on average.
        seed: of stochastic rounding.
    """
    result = value.to(dtype)
    if rounding == "stochastic":
        result = _stochastic(value, result, seed)
    if keep_mask is None:
        return result
    keep = keep_mask.to(value.device)
    lost = keep & (result == 0) & (value != 0)
    smallest = torch.full_like(value, torch.finfo(dtype).tiny).copysign(value).to(dtype)
    return torch.where(lost, smallest, result).masked_fill(~keep, 0.0)


def _stochastic(value: Tensor, nearest: Tensor, seed: int) -> Tensor:
    error = value - nearest.float()
    beyond = torch.where(error > 0, torch.inf, -torch.inf).to(nearest.dtype)
    other = torch.nextafter(nearest, beyond)
    spacing = (other.float() - nearest.float()).abs()
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(value.shape, generator=generator).to(value.device)
    takes_other = (error != 0) & other.isfinite() & (draw * spacing < error.abs())
    return torch.where(takes_other, other, nearest)
