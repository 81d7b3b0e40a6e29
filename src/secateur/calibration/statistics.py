"""Streaming statistics of the inputs of a linear layer: nothing grows with the number of tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor


class InputStatistics:
    """Sums over the tokens that reach a layer, in fp32."""

    def __init__(
        self, num_columns: int, *, with_hessian: bool, sample_rows: int, device: torch.device
    ) -> None:
        """Start empty.

        Args:
            num_columns: K, the layer's input features.
            with_hessian: also sum X.T @ X.
            sample_rows: tokens of each batch that are kept to measure output errors on.
            device: where batches are and sums are kept.
        """
        self.num_tokens = 0
        self._sum_squares = torch.zeros(num_columns, device=device)
        self._gram = torch.zeros(num_columns, num_columns, device=device) if with_hessian else None
        self._sample_rows = sample_rows
        self._samples: list[Tensor] = []

    def add(self, inputs: Tensor) -> None:
        """Take in one batch [..., K] of any floating dtype."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        self.num_tokens += len(rows)
        wide = rows.float()
        if self._gram is None:
            self._sum_squares += wide.square().sum(dim=0)
        else:
            self._gram.addmm_(wide.T, wide)
        if self._sample_rows:
            step = max(1, len(rows) // self._sample_rows)
            self._samples.append(rows[::step][: self._sample_rows].clone())

    def input_norm(self, num_samples: int) -> Tensor:
        """Wanda's activation norm, averaged over samples.

        Returns:
            fp32 [K]: sqrt(sum over tokens of x_j^2 / num_samples).
        """
        squares = self._sum_squares if self._gram is None else self._gram.diagonal()
        return (squares / num_samples).sqrt()

    def hessian(self, num_samples: int) -> Tensor:
        """SparseGPT's Hessian: fp32 [K, K], 2 / num_samples * X.T @ X."""
        assert self._gram is not None
        return self._gram * (2.0 / num_samples)

    def sample(self) -> Tensor:
        """Tokens kept as they came, [n, K] with n bounded however many tokens there were."""
        return torch.cat(self._samples)


@dataclass
class RelativeError:
    """||pruned - dense|| / ||dense||, summed over batches in float64."""

    difference: float = 0.0
    reference: float = 0.0

    def add(self, pruned: Tensor, dense: Tensor) -> None:
        """Take in one batch of outputs of any equal shape."""
        wide = dense.float()
        self.difference += float((pruned.float() - wide).square().sum(dtype=torch.float64))
        self.reference += float(wide.square().sum(dtype=torch.float64))

    @property
    def value(self) -> float:
        """The error so far; 0 where the dense output is all zero."""
        return (self.difference / self.reference) ** 0.5 if self.reference else 0.0
