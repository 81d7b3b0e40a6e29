"""Update: change the kept weights so that a pruned layer's output moves less."""

from secateur.update.admm import admm
from secateur.update.least_squares import conjugate_gradient, least_squares
from secateur.update.sparsegpt import HessianFactor, factor_hessian, sparsegpt

__all__ = [
    "HessianFactor",
    "admm",
    "conjugate_gradient",
    "factor_hessian",
    "least_squares",
    "sparsegpt",
]
