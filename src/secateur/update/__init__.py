"""Update: change the kept weights so that a pruned layer's output moves less."""

from secateur.update.sparsegpt import HessianFactor, factor_hessian, sparsegpt

__all__ = ["HessianFactor", "factor_hessian", "sparsegpt"]
