"""Matrices and calibration inputs to test with, in float64."""

import torch
from torch import Tensor

SHAPES = [(7, 7), (5, 12), (12, 5), (1, 6), (6, 1), (1, 1), (33, 20)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def with_spectrum(rows: int, columns: int, values: Tensor, seed: int = 0) -> Tensor:
    """A matrix with these singular values."""
    left = torch.linalg.qr(normal(rows, len(values), seed=seed)).Q
    right = torch.linalg.qr(normal(columns, len(values), seed=seed + 1)).Q
    matrix: Tensor = left * values @ right.T
    return matrix


def inputs(num_tokens: int, columns: int, seed: int = 0) -> Tensor:
    """Correlated tokens [num_tokens, columns] of very different feature scales."""
    mixing = normal(columns, columns, seed=seed + 1)
    scales = torch.logspace(-1, 1, columns, dtype=torch.float64)
    mixing = torch.eye(columns, dtype=torch.float64) + mixing / columns**0.5
    tokens = normal(num_tokens, columns, seed=seed) + normal(num_tokens, 1, seed=seed + 2)
    result: Tensor = tokens @ (mixing * scales)
    return result


def problem(rows: int, columns: int, seed: int = 0, num_tokens: int = 200) -> tuple[Tensor, ...]:
    """(weight [rows, columns], tokens X, X.T @ X)."""
    tokens = inputs(num_tokens, columns, seed + 10)
    return normal(rows, columns, seed=seed), tokens, tokens.T @ tokens
