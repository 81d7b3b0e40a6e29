"""A model that was sharded for training (FSDP2), made whole again on every process."""

import copy
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def meta_copy(model: nn.Module) -> nn.Module:
    """The model's modules without its values: sharding changes modules in place."""
    memo: dict[int, Any] = {
        id(tensor): _as_meta(tensor) for tensor in [*model.parameters(), *model.buffers()]
    }
    return copy.deepcopy(model, memo)


def _as_meta(tensor: Tensor) -> Tensor:
    if not isinstance(tensor, nn.Parameter):
        return tensor  # buffers are small and not sharded
    return nn.Parameter(tensor.detach().to("meta"), requires_grad=tensor.requires_grad)


def is_sharded(model: nn.Module) -> bool:
    """Whether a parameter is spread over processes."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def make_whole(model: nn.Module, original: nn.Module) -> None:
    """Gather a sharded model and give it back its plain modules, in place.

    Args:
        model: sharded; every process must call.
        original: its `meta_copy` from before it was sharded; used up.
    """
    values = {
        name: tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor
        for name, tensor in model.state_dict().items()
    }
    original.load_state_dict(values, assign=True)
    tie = getattr(original, "tie_weights", None)
    if callable(tie):
        tie()
    model.__class__ = original.__class__
    model.__dict__ = original.__dict__
