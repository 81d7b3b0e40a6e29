"""The dense layer that a compressed one stands for, and the bias of either."""

from torch import Tensor, nn

from secateur.errors import SecateurError


def dense_linear(weight: Tensor, bias: nn.Parameter | None, activation: str) -> nn.Linear:
    """A linear layer around a weight [N, K], nothing copied.

    Raises:
        SecateurError: the layer multiplies gate and up, which a linear layer cannot.
    """
    if activation != "none":
        raise SecateurError(
            f"expected a layer without activation to make a linear layer of, got {activation}"
        )
    rows, columns = weight.shape
    linear = nn.Linear(columns, rows, bias is not None, device="meta")
    linear.weight = nn.Parameter(weight)
    if bias is not None:
        linear.bias = bias
    return linear


def copied_bias(bias: Tensor | None) -> nn.Parameter | None:
    """A bias in memory of its own; a frozen parameter stays frozen."""
    if bias is None:
        return None
    trainable = bias.requires_grad if isinstance(bias, nn.Parameter) else True
    return nn.Parameter(bias.detach().clone(), requires_grad=trainable)
