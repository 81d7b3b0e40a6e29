"""Wanda++'s regional gradient score (Yang et al., arXiv 2503.04992): how much the output of the
block that a weight lives in would move with it. No labels, no loss of the whole model.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

from secateur_kernels.errors import SecateurError
from secateur_kernels.precision import wide_dtype

InputNormalisation = Literal["summed", "averaged"]

DEFAULT_ALPHA = 100.0


def score_regional_gradient(
    weight: Tensor, gradient: Tensor, input_norm: Tensor, alpha: float = DEFAULT_ALPHA
) -> Tensor:
    """(alpha * gradient_ij + input_norm_j) * |W_ij|.

    Args:
        weight: [N, K], any floating dtype.
        gradient: [N, K], not negative, from `regional_gradients`.
        input_norm: [K]. The paper's is the norm over all calibration tokens, not averaged
            (see `norm_divisor`); alpha only means something with one of the two.
        alpha: weight of the gradient; 0 gives Wanda's score.

    Returns:
        fp32 [N, K], contiguous (float64 if any argument is).

    Raises:
        SecateurError: the shapes do not fit.
    """
    if gradient.shape != weight.shape or input_norm.shape != weight.shape[1:]:
        raise SecateurError(
            f"expected gradient {list(weight.shape)} and input_norm [{weight.shape[1]}] for "
            f"weight {list(weight.shape)}, got {list(gradient.shape)} and {list(input_norm.shape)}"
        )
    wide, slope = weight.to(wide_dtype(weight.dtype)), gradient.to(wide_dtype(gradient.dtype))
    return ((alpha * slope + input_norm) * wide.abs()).contiguous()


def norm_divisor(normalisation: InputNormalisation, num_samples: int) -> int:
    """What sums of squares over all tokens are divided by before the root of `input_norm`.

    Args:
        normalisation: `summed` as the paper writes it, ||X_j|| over all tokens; `averaged` over
            samples, as Wanda's code does, which makes the gradient count sqrt(num_samples) times
            as much.
        num_samples: calibration samples.
    """
    return 1 if normalisation == "summed" else num_samples


def regional_gradients(
    run: Callable[[int], Tensor],
    num_samples: int,
    parameters: Mapping[str, Tensor],
    sum_over: Callable[[Tensor], object] | None = None,
) -> dict[str, Tensor]:
    """Root mean square over samples of the gradient of ||block output||_2.

    One sample is run and differentiated at a time, so that memory holds one sample's activations,
    one gradient and one sum per parameter, whatever the number of samples.

    Args:
        run: from a sample's number to the block's output on it, of any shape, made from
            `parameters`. The norm is taken over the whole output of the sample.
        num_samples: samples 0 to num_samples - 1 are run, in this order.
        parameters: leaves that the output depends on, by name; `requires_grad` and `grad` are as
            before afterwards.
        sum_over: where several processes have samples of their own, puts the sum over all of them
            into a tensor. Squares are summed in float64, so that their order does not show.

    Returns:
        By name, in each parameter's shape, fp32 (float64 stays): sqrt(mean of squared gradients).
        Zero where no sample reaches a parameter, such as an expert no token was routed to.

    Raises:
        SecateurError: there is no sample, or a gradient is not finite.
    """
    if num_samples < 1:
        raise SecateurError(f"expected at least one calibration sample, got {num_samples}")
    squares = {
        name: torch.zeros_like(value, dtype=torch.float64) for name, value in parameters.items()
    }
    saved = [value.requires_grad for value in parameters.values()]
    try:
        for value in parameters.values():
            value.requires_grad_(True)
        for sample in range(num_samples):
            with torch.enable_grad():
                output = run(sample)
                norm = torch.linalg.vector_norm(output, dtype=wide_dtype(output.dtype))
            # The norm has no gradient at zero; an output of zero says nothing about any weight.
            if float(norm.detach()) > 0.0:
                _add_squares(squares, norm, parameters)
    finally:
        for value, required in zip(parameters.values(), saved, strict=True):
            value.requires_grad_(required)
    counted = torch.tensor([num_samples], device=next(iter(squares.values())).device)
    if sum_over is not None:
        for value in (*squares.values(), counted):
            sum_over(value)
    _require_finite(squares)
    count = int(counted)
    return {
        name: (squares.pop(name) / count).to(wide_dtype(value.dtype)).sqrt_()
        for name, value in parameters.items()
    }


def _add_squares(
    squares: Mapping[str, Tensor], norm: Tensor, parameters: Mapping[str, Tensor]
) -> None:
    gradients: Iterable[Tensor | None] = torch.autograd.grad(
        norm, list(parameters.values()), allow_unused=True
    )
    for total, gradient in zip(squares.values(), gradients, strict=True):
        if gradient is not None:
            total.add_(gradient.to(wide_dtype(gradient.dtype)).square())


def _require_finite(squares: Mapping[str, Tensor]) -> None:
    for name, total in squares.items():
        if not bool(torch.isfinite(total).all()):
            raise SecateurError(
                f"expected finite gradients of the block's output, but those of {name} hold NaN "
                "or Inf; load the model with dtype float32 or bfloat16"
            )
