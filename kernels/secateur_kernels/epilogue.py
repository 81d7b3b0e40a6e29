"""What happens to a product before it is rounded: bias, SiLU-and-multiply, residual."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur_kernels.errors import SecateurError

Activation = Literal["none", "silu_and_mul"]

ACTIVATIONS: tuple[str, ...] = get_args(Activation)


def output_columns(rows: int, activation: str) -> int:
    """Columns of y for a weight of `rows` rows: half of them where gate and up are multiplied.

    Raises:
        SecateurError: the activation is unknown, or the rows cannot be halved.
    """
    if activation not in ACTIVATIONS:
        raise SecateurError(f"expected activation {' or '.join(ACTIVATIONS)}, got {activation!r}")
    if activation == "none":
        return rows
    if rows % 2:
        raise SecateurError(
            f"expected as many up rows as gate rows for silu_and_mul, got {rows} rows in all"
        )
    return rows // 2


def apply_epilogue(
    product: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str
) -> Tensor:
    """The epilogue in the precision of the product.

    Args:
        product: [..., N], x @ weight.T; for silu_and_mul the columns are [gate, up].
        bias: [N] or None, added first.
        residual: [..., output columns] or None, added last.
        activation: `none`, or `silu_and_mul`: silu(gate) * up.

    Returns:
        [..., N] or [..., N / 2], dtype of the product.
    """
    if bias is not None:
        product = product + bias.to(product.dtype)
    if activation == "silu_and_mul":
        gate, up = product.chunk(2, dim=-1)
        product = F.silu(gate) * up
    if residual is not None:
        product = product + residual.to(product.dtype)
    return product


def epilogue_backward(gradient: Tensor, product: Tensor, activation: str) -> Tensor:
    """Gradient with respect to the product plus bias.

    Args:
        gradient: [..., output columns], of the loss with respect to y.
        product: [..., N], the product with its bias; for `none` it is not read.
        activation: as in the forward pass.

    Returns:
        [..., N], dtype of `gradient`.
    """
    if activation == "none":
        return gradient
    wide = torch.promote_types(gradient.dtype, torch.float32)
    gate, up = product.to(wide).chunk(2, dim=-1)
    sigmoid = gate.sigmoid()
    into_gate = gradient * up * sigmoid * (1 + gate * (1 - sigmoid))
    return torch.cat([into_gate, gradient * gate * sigmoid], dim=-1).to(gradient.dtype)
