"""The dense model made to compute what a compressed one does, and back.

A compressed model has other layers and fewer blocks. What a choice costs beside others is measured
on the dense model's own layers and numbers of blocks.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from secateur.models.blocks import BlockList
from secateur.models.entering import OutputForms
from secateur.models.sites import WeightSite
from secateur.models.sublayers import Sublayers, silenced
from secateur.plan.recipe import later_names
from secateur.plan.skip import skipped
from secateur.plan.table import DENSE, Removal, Selection


@contextmanager
def imitated(
    selection: Selection,
    built: nn.Module,
    sites: Sequence[WeightSite],
    blocks: BlockList,
    forms: OutputForms,
    sublayers: Sequence[Sublayers],
) -> Iterator[dict[str, Tensor]]:
    """While this is open, the dense model computes what `built` does, up to rounding.

    Args:
        selection: that `built` was built of.
        built: the compressed model.
        sites: the units, in the dense model; their weights are written, and written back.
        blocks: of the dense model.
        forms: what each block returns.
        sublayers: by block; may be empty where no part of a block is removed.

    Yields:
        by site that holds another weight now, its dense one [N, K].
    """
    names = later_names(selection, blocks)
    by_name = {site.name: site for site in sites}
    changed = [name for name, choice in selection.forms.items() if choice.form != DENSE]
    dense = {name: by_name[name].weight.clone() for name in changed}
    with ExitStack() as stack:
        for removal in selection.removals:
            stack.enter_context(_without(removal, blocks, forms, sublayers))
        try:
            for name in changed:
                by_name[name].weight.copy_(_weight(built, names[name]))
            yield dense
        finally:
            for name, weight in dense.items():
                by_name[name].weight.copy_(weight)


@torch.no_grad()
def _weight(built: nn.Module, name: str) -> Tensor:
    """[N, K] of a compressed layer."""
    linear: nn.Linear = built.get_submodule(name).to_linear()  # type: ignore[operator]
    return linear.weight.detach()


@contextmanager
def _without(
    removal: Removal, blocks: BlockList, forms: OutputForms, sublayers: Sequence[Sublayers]
) -> Iterator[None]:
    block = blocks.modules[removal.block]
    if removal.part == "block":
        with skipped(block, forms[removal.block]):
            yield
    else:
        with silenced(block, sublayers[removal.block].part(removal.part)):
            yield
