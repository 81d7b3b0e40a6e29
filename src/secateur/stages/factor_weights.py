"""What errors of a group's outputs count against each other while it is factored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from secateur.lowrank import (
    Cholesky,
    Factors,
    gradient_root,
    split_rows,
    stack_rows,
    unweigh_directions,
    weigh_directions,
)
from secateur.models.sites import WeightSite
from secateur.stages.factor_importance import Importance


@dataclass(frozen=True, eq=False)
class OutputWeights:
    """How the matrices of a group are put into one, and how its factors are taken apart."""

    scales: Sequence[float] | None = None
    """What a unit of squared output error of each matrix counts; None: 1."""
    roots: Sequence[Cholesky] | None = None
    """What each direction of each output counts; then there are no scales."""
    whole: float = 1.0
    """What losing all outputs costs, where roots and tokens do not say it."""

    def stack(self, weights: Sequence[Tensor]) -> Tensor:
        """[sum of N_i, K]: weights [N_i, K] with rows such that all errors count the same."""
        if self.roots is not None:
            pairs = zip(weights, self.roots, strict=True)
            weights = [weigh_directions(weight, root) for weight, root in pairs]
        return stack_rows(weights, self.scales)

    def split(self, factors: Factors, rows: Sequence[int]) -> list[Factors]:
        """Factors of each weight [N_i, K] from those of `stack`; one and the same `down`."""
        parts = split_rows(factors, rows, self.scales)
        if self.roots is None:
            return parts
        return unweigh_directions(parts, self.roots)

    def worth(self, energy: float, tokens_a_sample: float) -> float:
        """What losing all outputs costs, in the unit that groups are compared in.

        Args:
            energy: squared norm of the stack times the root of its input's Hessian.
            tokens_a_sample: that reached the matrices, on average.
        """
        if self.roots is None or not tokens_a_sample:
            return self.whole
        # The Hessian is 2 / samples times the sum over tokens.
        return energy / (2 * tokens_a_sample)


def weights_of(
    sites: Sequence[WeightSite],
    weights: Sequence[Tensor],
    root: Cholesky,
    importance: Mapping[str, Importance] | None,
    damping: float,
) -> OutputWeights:
    """How to weigh the outputs of matrices of one input.

    Args:
        sites: of the group.
        weights: theirs, in fp32 or fp64.
        root: of the input's Hessian.
        importance: by site name; None: every whole output counts the same.
        damping: of the gradients' mean squares.
    """
    found = [importance[site.name] for site in sites] if importance is not None else []
    wanted = [one.whole for one in found] or [1.0] * len(sites)
    whole = sum(wanted)
    device = root.lower.device
    gradients = [one.gradients.to(device) for one in found if one.gradients is not None]
    if gradients:
        roots = [gradient_root(moment, damping) for moment in gradients]
        return OutputWeights(roots=roots, whole=whole)
    if len(sites) == 1:
        return OutputWeights(whole=whole)
    # Over its output's energy: matrices with large outputs would else take the rank away from
    # those with small ones, such as v beside q and k.
    energies = [float((w.double() @ root.lower).square().sum()) for w in weights]
    scales = [i / e if e else 1.0 for i, e in zip(wanted, energies, strict=True)]
    return OutputWeights(scales, whole=whole)
