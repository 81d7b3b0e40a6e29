"""Sizes of a model, and whether its weights are numbers."""

from torch import nn

from secateur.errors import SecateurError


def num_bytes(model: nn.Module) -> int:
    """Bytes of parameters and saved buffers; tied weights count once."""
    tensors = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def require_finite_weights(model: nn.Module) -> None:
    """Raise SecateurError, with the tensor's name, if a parameter is not there or not finite."""
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise SecateurError(f"{name} is on the meta device: it has no values to compress")
        num_bad = parameter.numel() - int(parameter.isfinite().sum())
        if num_bad:
            raise SecateurError(
                f"expected finite weights, but {name} holds NaN or Inf in {num_bad} of "
                f"{parameter.numel()} places"
            )
