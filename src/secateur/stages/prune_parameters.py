"""Between matrices [N, K] of sites and the parameters that hold them, which may be transposed or
have many experts in one.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from secateur.models.sites import WeightSite
from secateur.parallel import Parallel
from secateur.reconstruct import BlockSamples
from secateur.score import regional_gradients


def parameter_names(block: nn.Module, sites: Iterable[WeightSite]) -> dict[str, nn.Parameter]:
    """The parameters that hold the sites, by their names within the block."""
    wanted = {id(site.parameter) for site in sites}
    return {name: value for name, value in block.named_parameters() if id(value) in wanted}


def parameter_masks(
    block: nn.Module, masks: Sequence[tuple[WeightSite, Tensor]]
) -> dict[str, Tensor]:
    """Keep masks [N, K] of sites as masks in the shape of parameters, by name within the block.

    An expert whose site is not among them is kept whole.
    """
    names = {
        id(value): name
        for name, value in parameter_names(block, [site for site, _ in masks]).items()
    }
    result: dict[str, Tensor] = {}
    for site, mask in masks:
        parameter = site.parameter
        name = names[id(parameter)]
        if name not in result:
            result[name] = torch.ones_like(parameter, dtype=torch.bool)
        site.part_of(result[name]).copy_(mask)
    return result


def site_gradients(
    block: nn.Module, sites: Sequence[WeightSite], samples: BlockSamples, parallel: Parallel
) -> Mapping[str, Tensor]:
    """By site, [N, K]: how much the norm of the dense block's output moves with each weight.

    Args:
        block: dense.
        sites: of the block.
        samples: of this process; the gradients are over those of all.
        parallel: the processes.
    """
    parameters = parameter_names(block, sites)
    gradients = regional_gradients(
        lambda sample: samples.run(block, [sample]),
        samples.num_samples,
        parameters,
        sum_over=parallel.sum_,
    )
    by_id = {id(parameters[name]): gradient for name, gradient in gradients.items()}
    return {site.name: site.part_of(by_id[id(site.parameter)]) for site in sites}
