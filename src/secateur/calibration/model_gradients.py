"""Gradients of the whole model's loss on calibration samples, as GBLM-Pruner's score wants them
(Das et al., arXiv 2311.04902).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from secateur.calibration.tokens import CalibrationTokens
from secateur.errors import SecateurError
from secateur.models.device import on_device
from secateur.models.sites import WeightSite
from secateur.parallel import Parallel
from secateur_kernels.precision import wide_dtype


def model_gradients(
    model: nn.Module,
    sites: Sequence[WeightSite],
    tokens: CalibrationTokens,
    device: torch.device,
    parallel: Parallel,
    after_sample: Callable[[], object] | None = None,
) -> dict[str, Tensor]:
    """Root of the sum over samples of squared gradients of the model's next-token loss.

    One sample is run and differentiated at a time, and a parameter's gradient is squared, added
    up and freed as soon as it is there: memory holds the model, one sample's activations and one
    fp32 sum per parameter of the sites.

    Args:
        model: a causal language model, whole, in evaluation mode; it is on `device` meanwhile.
        sites: matrices of the model.
        tokens: samples of this process; their lengths may differ.
        device: where the model runs.
        parallel: the processes whose samples count together.
        after_sample: called when one is done.

    Returns:
        By site name [N, K], views, fp32 (float64 for such a model) on the home of the model:
        sqrt(sum over samples of g^2), g the gradient of the mean cross entropy of one sample's
        tokens given those before. Zero where no sample reaches a matrix.

    Raises:
        SecateurError: a gradient is not finite.
    """
    parameters = {id(site.parameter): site.parameter for site in sites}
    homes = {key: parameter.device for key, parameter in parameters.items()}
    with on_device(model, device):
        squares = {key: _zeros_like(parameter) for key, parameter in parameters.items()}
        with _squared(model, parameters, squares), torch.enable_grad():
            for sample in tokens.samples:
                _loss(model, sample[None].to(device)).backward()
                if after_sample is not None:
                    after_sample()
    parallel.sum_(*squares.values())
    roots = {key: total.sqrt_().to(homes[key]) for key, total in squares.items()}
    gradients = {site.name: site.part_of(roots[id(site.parameter)]) for site in sites}
    for name, gradient in gradients.items():
        if not bool(torch.isfinite(gradient).all()):
            raise SecateurError(
                f"expected finite gradients of the model's loss, but those of {name} hold NaN or "
                "Inf; load the model with dtype float32 or bfloat16"
            )
    return gradients


def _loss(model: nn.Module, input_ids: Tensor) -> Tensor:
    logits = model(input_ids=input_ids, use_cache=False).logits
    wide = logits.to(wide_dtype(logits.dtype))
    return cross_entropy(wide[0, :-1], input_ids[0, 1:])


def _zeros_like(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter, dtype=wide_dtype(parameter.dtype), requires_grad=False)


@contextmanager
def _squared(
    model: nn.Module, parameters: dict[int, nn.Parameter], squares: dict[int, Tensor]
) -> Iterator[None]:
    """Only these parameters ask for gradients, which end as squares in the sums.

    Gradients that a training has left take no part, and are there again afterwards.
    """

    def take(parameter: Tensor) -> None:
        assert parameter.grad is not None
        total = squares[id(parameter)]
        wide = parameter.grad.to(total.dtype)
        total.addcmul_(wide, wide)
        parameter.grad = None

    saved = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    hooks = []
    try:
        for parameter, *_ in saved:
            parameter.requires_grad_(id(parameter) in parameters)
            parameter.grad = None
            if id(parameter) in parameters:
                hooks.append(parameter.register_post_accumulate_grad_hook(take))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, required, gradient in saved:
            parameter.requires_grad_(required)
            parameter.grad = gradient
