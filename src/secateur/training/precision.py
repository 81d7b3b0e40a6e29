"""Weights in fp32 while a model is trained, and back in their own dtype afterwards."""

from collections.abc import Mapping

import torch
from torch import nn

from secateur.models.rounding import narrow


def widen(model: nn.Module) -> dict[str, torch.dtype]:
    """Make all floating parameters narrower than fp32 fp32, in place (their `data`).

    A step of the optimizer is smaller than the distance between two bf16 numbers: in bf16 it would
    be lost. All parameters are widened, also those that are not trained: sharding (FSDP2) and
    products want one dtype.

    Returns:
        by name, the dtype that each widened parameter had.
    """
    dtypes = {
        name: parameter.dtype
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point() and parameter.element_size() < 4
    }
    for name, parameter in model.named_parameters():
        if name in dtypes:
            parameter.data = parameter.data.float()
    return dtypes


def restore(model: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    """Undo `widen`: round to nearest, in place.

    Zeros stay zero, and a weight that is not zero never becomes zero, so that the pattern of a
    pruned matrix is the same before and after.
    """
    for name, parameter in model.named_parameters():
        if name in dtypes:
            keep = parameter.data != 0
            parameter.data = narrow(parameter.data, dtypes[name], keep)
