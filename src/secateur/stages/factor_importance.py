"""What the loss would pay for each matrix's output: one backward pass over a few samples."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.calibration.tokens import CalibrationTokens
from secateur.errors import SecateurError
from secateur.lowrank import loss_importance
from secateur.models.device import input_embedding
from secateur.models.sites import WeightSite

# Enough for a ranking of layers; each is a whole backward pass.
MAX_SAMPLES = 16


@dataclass
class _Energies:
    gradient: float = 0.0
    output: float = 0.0
    num_tokens: int = 0


def measure_importance(
    model: nn.Module, sites: Sequence[WeightSite], tokens: CalibrationTokens
) -> dict[str, float] | None:
    """First-order importance of every matrix's output (see `lowrank.loss_importance`).

    The model runs whole, where it is, forward and backward, one sample at a time and without
    gradients of weights: what that takes beside the weights are one sample's activations.

    Args:
        model: in evaluation mode; not changed.
        sites: whose outputs are weighed.
        tokens: of which the first 16 samples are used.

    Returns:
        by site name; None where it cannot be measured for all of them (slices of fused experts,
        or a matrix that no gradient reaches), so that they could not be compared.
    """
    if any(site.expert is not None for site in sites):
        return None
    energies = {site.name: _Energies() for site in sites}
    with ExitStack() as stack:
        stack.enter_context(_frozen(model))
        for site in sites:
            hook = site.module.register_forward_hook(_watch(site, energies[site.name]))
            stack.callback(hook.remove)
        for sample in tokens.samples[:MAX_SAMPLES]:
            _backward(model, sample)
    try:
        return {
            site.name: loss_importance(
                found.gradient, found.output, found.num_tokens, site.shape[0]
            )
            for site, found in ((site, energies[site.name]) for site in sites)
        }
    # A matrix that no token or no gradient reached.
    except SecateurError:
        return None


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Gradients flow through activations from the input embedding on, and into no parameter."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    getter: Any = model.get_input_embeddings
    for parameter in wanted:
        parameter.requires_grad_(False)
    hook = getter().register_forward_hook(lambda _, __, output: output.requires_grad_())
    try:
        with torch.enable_grad():
            yield
    finally:
        hook.remove()
        for parameter in wanted:
            parameter.requires_grad_(True)


def _watch(site: WeightSite, energies: _Energies) -> Any:
    def of_gradient(gradient: Tensor) -> None:
        energies.gradient += float(gradient.float().square().sum(dtype=torch.float64))

    def of_output(module: nn.Module, _: Any, output: Tensor) -> None:
        bias = getattr(module, "bias", None)
        plain = output.detach() if bias is None else output.detach() - bias.detach()
        energies.output += float(plain.float().square().sum(dtype=torch.float64))
        energies.num_tokens += output.numel() // output.shape[-1]
        if output.requires_grad:
            output.register_hook(of_gradient)

    return of_output


def _backward(model: nn.Module, sample: Tensor) -> None:
    input_ids = sample.unsqueeze(0).to(input_embedding(model).device)
    logits = model(input_ids=input_ids, use_cache=False).logits[0].float()
    loss = F.cross_entropy(logits[:-1], input_ids[0, 1:].to(logits.device), reduction="sum")
    loss.backward()
