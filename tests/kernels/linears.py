"""Weights, truths and bounds that the tests of the linear ops share."""

import torch
from torch import Tensor

from secateur_kernels.epilogue import apply_epilogue

# Unit round-off: half the distance from 1 to the next number.
ROUND_OFF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}


def random_mask(rows: int, columns: int, seed: int = 0) -> Tensor:
    """bool [N, K] with two of every four kept, all six patterns."""
    generator = torch.Generator().manual_seed(seed)
    score = torch.rand(rows, columns // 4, 4, generator=generator)
    kept = torch.zeros_like(score, dtype=torch.bool)
    return kept.scatter_(2, score.topk(2, dim=2).indices, True).view(rows, columns)


def randn(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype)


def truth(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str
) -> Tensor:
    """float64, from the very numbers that the op is given."""
    product = x.double().flatten(0, -2) @ weight.double().T
    flat = None if residual is None else residual.flatten(0, -2)
    y = apply_epilogue(product, bias, flat, activation)
    return y.view(*x.shape[:-1], y.shape[-1])


def bound(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str
) -> Tensor:
    """How far a result may be from the truth, element by element.

    A sum of K products in fp32 errs by at most K u32 times the sum of magnitudes, whatever the
    order. The epilogue adds a few roundings of fp32 and the last one to the dtype of x. For
    silu_and_mul the error of each factor is carried by the other: |silu'| < 1.1.
    """
    magnitudes = x.double().abs().flatten(0, -2) @ weight.double().abs().T
    if bias is not None:
        magnitudes = magnitudes + bias.double().abs()
    error = (x.shape[-1] + 4) * ROUND_OFF[torch.float32] * magnitudes
    y = truth(x, weight, bias, residual, activation).flatten(0, -2)
    if activation == "silu_and_mul":
        gate, up = error.chunk(2, dim=1)
        gate_size, up_size = magnitudes.chunk(2, dim=1)
        error = 1.1 * gate * (up_size + up) + gate_size * up
        error = error + 8 * ROUND_OFF[torch.float32] * gate_size * up_size
    if residual is not None:
        error = error + ROUND_OFF[torch.float32] * (
            y.abs() + residual.double().flatten(0, -2).abs()
        )
    last = ROUND_OFF[x.dtype] * (y.abs() + error) + 1e-7
    return (error + last).view(*x.shape[:-1], y.shape[-1])


def assert_close(y: Tensor, expected: Tensor, allowed: Tensor) -> None:
    over = (y.double() - expected).abs() - allowed
    assert bool((over <= 0).all()), f"{float(over.max()):.3g} beyond the bound"
