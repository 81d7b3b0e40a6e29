"""What rank allocation knows of a layer: what each rank costs, and what it loses."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secateur.lowrank.factors import parameters_of
from secateur_kernels.errors import SecateurError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A layer, or a stack of layers with one input, that is to be given a rank."""

    name: str
    shape: tuple[int, int]
    """(N, K)."""
    singular_values: Tensor
    """[min(N, K)], descending: of weight @ S for output errors (`whitened`), of the weight else."""
    importance: float = 1.0
    """What losing all of the layer's output would cost, in the unit that layers are compared in.

    1 for all compares relative squared output errors, which says nothing of what the model makes
    of each output; `loss_importance` does, from one backward pass."""

    def __post_init__(self) -> None:
        values = self.singular_values
        if list(values.shape) != [min(self.shape)]:
            raise SecateurError(
                f"expected {min(self.shape)} singular values of {self.name} {list(self.shape)}, "
                f"got {list(values.shape)}"
            )
        in_order = bool((values[1:] <= values[:-1]).all()) and float(values[-1]) >= 0.0
        if not (in_order and bool(torch.isfinite(values).all())):
            raise SecateurError(
                f"expected finite singular values of {self.name}, descending to at least 0"
            )
        if float(values[0]) == 0.0:
            raise SecateurError(
                f"{self.name} has no output on the calibration tokens, so that no rank can be "
                "chosen for it: leave it dense, or use more tokens"
            )
        if not 0.0 < self.importance < float("inf"):
            raise SecateurError(
                f"expected a positive finite importance of {self.name}, got {self.importance}"
            )

    def losses(self) -> Floats:
        """By rank r, [min(N, K) + 1]: importance * sum of s_i^2 over i > r / sum of all s_i^2."""
        energy = self.singular_values.double().cpu().numpy() ** 2
        tails: Floats = np.append(energy[::-1].cumsum()[::-1], 0.0)
        losses: Floats = tails * (self.importance / tails[0])
        return losses


def loss_importance(
    gradient_energy: float, output_energy: float, num_tokens: int, rows: int
) -> float:
    """What losing all of a layer's output costs the model, by a diagonal Fisher estimate.

    An error e of a token's output y moves the loss by g . e with g = dL/dy. For errors without
    preferred direction its mean square is ||g||^2 ||e||^2 / N; at e = y that is the scale of
    relative squared errors. The importance of a stack is the sum of its matrices', stacked with
    each matrix's importance over its squared output norm in the whitened metric (`stack_rows`).

    Args:
        gradient_energy: sum over tokens of ||dL/dy||^2, L the summed loss of all tokens.
        output_energy: sum over the same tokens of ||y||^2, bias left out.
        num_tokens: that were summed over.
        rows: N, features of y.

    Raises:
        SecateurError: no tokens or rows, or energies that are not positive and finite.
    """
    if num_tokens < 1 or rows < 1:
        raise SecateurError(f"expected tokens and rows, got {num_tokens} and {rows}")
    if not (0.0 < gradient_energy < float("inf") and 0.0 < output_energy < float("inf")):
        raise SecateurError(
            "expected positive finite energies of gradient and output, "
            f"got {gradient_energy} and {output_energy}"
        )
    return gradient_energy / num_tokens * (output_energy / num_tokens) / rows


@dataclass(frozen=True, eq=False)
class Options:
    """The ranks that a layer may get, from small to large; the last option is to stay dense."""

    ranks: Sequence[int | None]
    """None: dense."""
    costs: Integers
    """Parameters, rising."""
    losses: Floats
    """Falling to the dense layer's 0."""


def options_of(spectrum: Spectrum, granularity: int) -> Options:
    """Multiples of `granularity` as long as the factors store less than the dense layer."""
    rows, columns = spectrum.shape
    dense = rows * columns
    most = min((dense - 1) // (rows + columns), min(rows, columns))
    ranks = range(granularity, most + 1, granularity)
    losses = spectrum.losses()
    return Options(
        ranks=[*ranks, None],
        costs=np.array([parameters_of(rank, rows, columns) for rank in ranks] + [dense]),
        losses=np.array([losses[rank] for rank in ranks] + [0.0]),
    )


def lower_hull(options: Options) -> list[int]:
    """The options on the lower convex hull of loss over cost: each step gains less than the last.

    Returns:
        Indices into the options, from the first to the cheapest without loss.
    """
    hull: list[int] = []
    for option in range(len(options.costs)):
        if hull and options.losses[option] >= options.losses[hull[-1]]:
            continue
        while len(hull) >= 2 and gain(options, hull[-2], hull[-1]) <= gain(
            options, hull[-1], option
        ):
            hull.pop()
        hull.append(option)
    return hull


def gain(options: Options, start: int, stop: int) -> float:
    """Loss saved for each parameter spent by going from one option to a larger one."""
    saved = options.losses[start] - options.losses[stop]
    return float(saved / (options.costs[stop] - options.costs[start]))
