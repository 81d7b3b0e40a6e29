"""The filter: which matrices are worth trials, by one backward pass over the validation items."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from secateur.evaluate.forward import evaluating
from secateur.lowrank import Candidate, SpectrumGradient, rank_matrices, singular_value_gradients
from secateur.models.sites import WeightSite
from secateur.progress import Progress
from secateur.search.cuts import CutMatrix
from secateur.search.likelihood import Likelihood
from secateur.search.space import Place, SearchSpace


def place_name(place: Place) -> str:
    """A matrix in a word: `mlp_in:3`."""
    return f"{place[0]}:{place[1]}"


def rank_places(
    model: nn.Module,
    space: SearchSpace,
    likelihood: Likelihood,
    num_items: int,
    fractions: Sequence[float],
    progress: Progress,
) -> list[tuple[Place, Candidate]]:
    """The places, most promising first, by what a cut should do to the mean loss.

    Args:
        likelihood: of the validation items, `num_items` of them.

    Raises:
        SecateurError: a weight or a gradient that is not finite.
    """
    gradients = _loss_gradients(model, list(space.sites.values()), likelihood, num_items)
    spectra: dict[str, SpectrumGradient] = {}
    names = {place_name(place): place for place in space.sites}
    progress.begin("rank matrices", len(names))
    for name, gradient in zip(names, gradients, strict=True):
        svd = CutMatrix(space.sites[names[name]]).svd()
        spectra[name] = singular_value_gradients(svd, gradient)
        progress.advance(name)
    ranked = rank_matrices(spectra, fractions)
    return [(names[candidate.name], candidate) for candidate in ranked]


def _loss_gradients(
    model: nn.Module, sites: Sequence[WeightSite], likelihood: Likelihood, num_items: int
) -> list[Tensor]:
    """fp32 [N, K] by site: of the mean loss over the items."""
    parameters = [site.parameter for site in sites]
    totals = [torch.zeros(p.shape, dtype=torch.float32, device=p.device) for p in parameters]
    with evaluating(model), _gradients_of(model, parameters), torch.enable_grad():
        for loss in likelihood.losses():
            parts = torch.autograd.grad(loss / num_items, parameters)
            for total, part in zip(totals, parts, strict=True):
                total += part.float()
    return [
        total.T if site.stored_transposed else total
        for site, total in zip(sites, totals, strict=True)
    ]


@contextmanager
def _gradients_of(model: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Only these parameters want gradients while this is open."""
    saved: Mapping[nn.Parameter, bool] = {p: p.requires_grad for p in model.parameters()}
    try:
        for parameter in saved:
            parameter.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, wanted in saved.items():
            parameter.requires_grad_(wanted)
