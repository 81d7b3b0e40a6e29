"""Keep pruned weights at zero while a model is trained."""

from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from secateur.errors import SecateurError
from secateur.models.inventory import take_inventory

# Where no report tells what was pruned, fewer zeros than this are chance: rounding made them.
_LEAST_ZEROS = 0.01

# What wrappers of distributed training, compilation and checkpointing put into names.
_WRAPPERS = {"module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}


def pruned_parameters(model: nn.Module, known: Collection[str] = ()) -> tuple[str, ...]:
    """Names of the parameters in blocks that hold pruned matrices.

    Only matrices that multiply tokens are looked at (see `take_inventory`).

    Args:
        model: whose matrices are looked at.
        known: names of matrices that were pruned, which count with any zeros; others do with at
            least 1%, but not where all are zero.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, None] = {}
    for site in take_inventory(model).all_sites:
        zeros = int((site.weight == 0).sum())
        is_pruned = _LEAST_ZEROS * site.weight.numel() <= zeros < site.weight.numel()
        if is_pruned or (zeros and site.name in known):
            found[names[id(site.parameter)]] = None
    return tuple(found)


class PrunedWeights:
    """The zeros of a model's pruned parameters, as masks of what this process holds.

    With sharded parameters (FSDP2's DTensor) masks are those of the local shard, so that nothing
    has to be gathered.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._masks: list[tuple[str, nn.Parameter, Tensor]] = []

    def begin(self, model: nn.Module) -> None:
        """Note which weights are zero now.

        Args:
            model: as it will be trained, wrapped or not.

        Raises:
            SecateurError: a pruned parameter is not in the model.
        """
        parameters = {_plain_name(name): item for name, item in model.named_parameters()}
        missing = sorted(self._names - parameters.keys())
        if missing:
            raise SecateurError(f"expected the pruned parameter {missing[0]} in the model trained")
        self._masks = [
            (name, parameters[name], local_values(parameters[name]) == 0)
            for name in sorted(self._names)
        ]

    def apply(self) -> None:
        """Set to zero what was zero at the beginning."""
        with torch.no_grad():
            for _, parameter, zeros in self._masks:
                local_values(parameter).masked_fill_(zeros, 0.0)

    def check(self) -> None:
        """Raise SecateurError, with the name, if a weight that was zero is not."""
        for name, parameter, zeros in self._masks:
            num_filled = int((local_values(parameter)[zeros] != 0).sum())
            if num_filled:
                raise SecateurError(
                    f"{name}: expected {int(zeros.sum())} pruned weights to stay zero in training, "
                    f"but {num_filled} are not"
                )


def local_values(parameter: Tensor) -> Tensor:
    """The values that this process holds of a parameter, as a view without gradients."""
    data = parameter.detach()
    return data.to_local() if isinstance(data, DTensor) else data


def _plain_name(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)
