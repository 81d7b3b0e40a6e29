"""How the weights of a model begin: inherited, or initialised anew."""

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from secateur.errors import SecateurError
from secateur.models.blocks import find_blocks
from secateur.models.matrix_types import in_attention

InheritedPart = Literal["both", "attention", "mlp"]


def initialise(model: Any, seed: int) -> None:
    """Give a model new random weights in place, all of them, as its family initialises them.

    Args:
        model: a transformers model.
        seed: the same seed gives the same weights.

    Raises:
        SecateurError: its class cannot be built from its configuration, or layers are compressed.
    """
    _copy(_fresh(model, seed), model)


def initialise_part(model: Any, inherited: InheritedPart, seed: int) -> None:
    """Give the matrices that are not inherited new random weights, in every block.

    Args:
        model: a transformers model.
        inherited: `attention` leaves attention alone and initialises the MLPs; `mlp` the other way
            round; `both` changes nothing. Vectors (norms) are inherited in any case.
        seed: the same seed gives the same weights.

    Raises:
        SecateurError: as `initialise`.
    """
    if inherited == "both":
        return
    fresh = _fresh(model, seed)
    _require_same_names(fresh, model)
    for new, old in zip(find_blocks(fresh).modules, find_blocks(model).modules, strict=True):
        values = dict(new.named_parameters())
        for name, parameter in old.named_parameters():
            if parameter.ndim > 1 and in_attention(name) == (inherited == "mlp"):
                with torch.no_grad():
                    parameter.copy_(values[name])


def stack_top(blocks: Sequence[nn.Module], count: int, grow_by: int) -> None:
    """Give each block that is about to be added the weights of a block `grow_by` below it.

    Args:
        blocks: all blocks, in order.
        count: how many are in the model.
        grow_by: how many will be added.

    Raises:
        SecateurError: blocks differ in shape, so that copies do not fit.
    """
    for index in range(count, min(count + grow_by, len(blocks))):
        source = blocks[max(0, index - grow_by)]
        try:
            blocks[index].load_state_dict(source.state_dict())
        except RuntimeError as error:
            raise SecateurError(f"block {index} cannot be a copy of a lower one: {error}") from None


def _fresh(model: Any, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            fresh: nn.Module = type(model)(copy.deepcopy(model.config))
        except Exception as error:  # whatever a model's constructor raises
            raise SecateurError(
                f"{type(model).__name__} cannot be built anew from its configuration: {error}"
            ) from error
    return fresh


def _require_same_names(fresh: nn.Module, model: nn.Module) -> None:
    names = {name for name, _ in fresh.named_parameters()}
    other = [name for name, _ in model.named_parameters() if name not in names]
    if other:
        raise SecateurError(
            f"expected a model with plain layers to initialise, but {other[0]} is none of a new "
            f"{type(model).__name__}"
        )


def _copy(source: nn.Module, target: nn.Module) -> None:
    _require_same_names(source, target)
    values = dict(source.named_parameters())
    with torch.no_grad():
        for name, parameter in target.named_parameters():
            parameter.copy_(values[name])
