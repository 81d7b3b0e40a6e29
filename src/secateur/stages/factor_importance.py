"""What the loss would pay for each matrix's output: backward passes over a few samples."""

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
from secateur.models.host_memory import available_host_bytes
from secateur.models.sites import WeightSite
from secateur.recipe import FactorStage

# Of sums of gradients on a GPU at a time: those of 4 blocks of Llama-3-8B.
_MOST_BYTES_ON_GPU = 8 << 30


@dataclass(frozen=True, eq=False)
class Importance:
    """What errors of one matrix's output cost the model."""

    whole: float
    """Losing all of the output (see `lowrank.loss_importance`), as a mean over all tokens."""
    gradients: Tensor | None = None
    """fp32 [N, N] in host memory, where directions are weighed: sum of g g^T over tokens that
    reached the matrix, over the number of all tokens (see `lowrank.gradient_root`)."""


@dataclass
class _Sums:
    gradient: float = 0.0
    output: float = 0.0
    num_tokens: int = 0
    gradients: Tensor | None = None


def measure_importance(
    model: nn.Module,
    sites: Sequence[WeightSite],
    tokens: CalibrationTokens,
    with_directions: bool = False,
    most_samples: int = FactorStage.importance_samples,
) -> dict[str, Importance] | None:
    """First-order importance of every matrix's output, by one backward pass.

    The model runs whole, where it is, forward and backward, one sample at a time and without
    gradients of weights: what that takes beside the weights are one sample's activations, and with
    directions an fp32 [N, N] of every matrix in host memory. On a GPU these are summed up 8 GiB at
    a time, each time by all samples anew.

    Args:
        model: in evaluation mode; not changed.
        sites: whose outputs are weighed.
        tokens: to measure it on.
        with_directions: also sum up the gradients' mean squares.
        most_samples: of the tokens; those after them are not used.

    Returns:
        by site name; None where it cannot be measured for all of them (slices of fused experts,
        or a matrix that no gradient reaches), so that they could not be compared.

    Raises:
        torch.OutOfMemoryError: it does not fit on the GPU, or its directions in host memory.
    """
    if any(site.expert is not None for site in sites):
        return None
    if with_directions:
        _require_room(sites)
    samples = tokens.samples[:most_samples]
    found: dict[str, Importance] = {}
    try:
        for part in _parts(sites) if with_directions else [sites]:
            found |= _measure(model, part, samples, with_directions)
    # A matrix that no token or no gradient reached.
    except SecateurError:
        return None
    return found


def _require_room(sites: Sequence[WeightSite]) -> None:
    """A GPU says itself that it is full; a machine that is would end the process."""
    needed = sum(map(_gradient_bytes, sites))
    if needed > (free := available_host_bytes()):
        raise torch.OutOfMemoryError(
            f"expected {needed / 1e9:.1f} GB for the gradients of {len(sites)} matrices, "
            f"got {free / 1e9:.1f} GB of free memory"
        )


def _gradient_bytes(site: WeightSite) -> int:
    return 4 * site.shape[0] ** 2


def _parts(sites: Sequence[WeightSite]) -> list[list[WeightSite]]:
    """Matrices whose gradients are summed up together, where the model is."""
    parts: list[list[WeightSite]] = [[]]
    for site in sites:
        together = sum(map(_gradient_bytes, [*parts[-1], site]))
        if parts[-1] and not _is_on_host(site) and together > _MOST_BYTES_ON_GPU:
            parts.append([])
        parts[-1].append(site)
    return parts


def _is_on_host(site: WeightSite) -> bool:
    return site.parameter.device.type == "cpu"


def _measure(
    model: nn.Module,
    sites: Sequence[WeightSite],
    samples: Sequence[Tensor],
    with_directions: bool,
) -> dict[str, Importance]:
    """As `measure_importance`, of sites whose sums fit where the model is."""
    sums = {site.name: _Sums() for site in sites}
    with ExitStack() as stack:
        stack.enter_context(_frozen(model))
        for site in sites:
            hook = site.module.register_forward_hook(_watch(sums[site.name], with_directions))
            stack.callback(hook.remove)
        for sample in samples:
            _backward(model, sample)
    num_tokens = sum(sample.numel() for sample in samples)
    return {site.name: _importance(sums.pop(site.name), site, num_tokens) for site in sites}


def _importance(found: _Sums, site: WeightSite, num_tokens: int) -> Importance:
    whole = loss_importance(found.gradient, found.output, found.num_tokens, site.shape[0])
    # A token that does not reach an expert pays nothing for it.
    whole *= found.num_tokens / num_tokens
    if found.gradients is not None:
        # In place: those of all matrices together are large.
        return Importance(whole, found.gradients.div_(num_tokens).cpu())
    return Importance(whole)


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


def _watch(sums: _Sums, with_directions: bool) -> Any:
    def of_gradient(gradient: Tensor) -> None:
        flat = gradient.flatten(0, -2).float()
        sums.gradient += float(flat.square().sum(dtype=torch.float64))
        if with_directions and sums.gradients is None:
            sums.gradients = flat.T @ flat
        elif sums.gradients is not None:
            sums.gradients.addmm_(flat.T, flat)

    def of_output(module: nn.Module, _: Any, output: Tensor) -> None:
        bias = getattr(module, "bias", None)
        plain = output.detach() if bias is None else output.detach() - bias.detach()
        sums.output += float(plain.float().square().sum(dtype=torch.float64))
        sums.num_tokens += output.numel() // output.shape[-1]
        if output.requires_grad:
            output.register_hook(of_gradient)

    return of_output


def _backward(model: nn.Module, sample: Tensor) -> None:
    input_ids = sample.unsqueeze(0).to(input_embedding(model).device)
    logits = model(input_ids=input_ids, use_cache=False).logits[0].float()
    loss = F.cross_entropy(logits[:-1], input_ids[0, 1:].to(logits.device), reduction="sum")
    loss.backward()
