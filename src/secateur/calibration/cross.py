"""What the inputs of a layer were in the dense model, against what they are behind compression."""

import torch
from torch import Tensor


class CrossMoment:
    """Sum over tokens of X_dense.T @ X, in fp32, for the same tokens in both models."""

    def __init__(self, num_columns: int, device: torch.device) -> None:
        """Start empty: K input features, sums on `device`."""
        self._sum = torch.zeros(num_columns, num_columns, device=device)

    def add(self, dense_inputs: Tensor, inputs: Tensor) -> None:
        """Take in one batch: [..., K] of the dense model and of the compressed one."""
        dense = dense_inputs.reshape(-1, dense_inputs.shape[-1]).float()
        self._sum.addmm_(dense.T, inputs.reshape(-1, inputs.shape[-1]).float())

    def value(self, num_samples: int) -> Tensor:
        """fp32 [K, K], 2 / num_samples * X_dense.T @ X: scaled as the Hessian is."""
        return self._sum * (2.0 / num_samples)
