"""Where modules are: one block at a time goes to the device that computes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError


def input_embedding(model: nn.Module) -> Tensor:
    """The input embedding [vocabulary, width].

    Raises:
        SecateurError: the model has none, so that it is no transformers language model.
    """
    getter = getattr(model, "get_input_embeddings", None)
    weight = getattr(getter(), "weight", None) if callable(getter) else None
    if not isinstance(weight, Tensor):
        raise SecateurError(
            f"expected a language model with input embeddings, but got {type(model).__name__}"
        )
    return weight


@contextmanager
def on_device(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Move a module to a device, and back to where it was, whatever happens."""
    parameter = next(module.parameters(), None)
    home = device if parameter is None else parameter.device
    module.to(device)
    try:
        yield
    finally:
        module.to(home)


@contextmanager
def full_precision_products() -> Iterator[None]:
    """Products of fp32 matrices in fp32: TF32 would spoil Hessians (SparseGPT turns it off)."""
    saved = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(saved)
