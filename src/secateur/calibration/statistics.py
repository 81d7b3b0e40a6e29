"""Streaming statistics of the inputs of a linear layer: nothing grows with the number of tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor

_SAMPLE_TOKENS = 256
_ROWS_AT_ONCE = 512


class InputStatistics:
    """Sums over the tokens that reach a layer, in fp32."""

    def __init__(
        self, num_columns: int, *, with_hessian: bool, num_batches: int, device: torch.device
    ) -> None:
        """Start empty.

        Args:
            num_columns: K, the layer's input features.
            with_hessian: also sum X.T @ X.
            num_batches: that will be taken in; a few tokens of each are kept as a sample, to
                measure output errors on.
            device: where batches are and sums are kept.
        """
        self.num_tokens = 0
        self._sum_squares = torch.zeros(num_columns, device=device)
        self._gram = torch.zeros(num_columns, num_columns, device=device) if with_hessian else None
        self._num_batches = num_batches
        self._batches_seen = 0
        self._sample: Tensor | None = None
        self._sampled = 0

    def add(self, inputs: Tensor) -> None:
        """Take in one batch [..., K] of any floating dtype."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        self.num_tokens += len(rows)
        if self._gram is None:
            # In pieces, so that the widened copy stays in the cache and costs no memory.
            for piece in torch.split(rows, _ROWS_AT_ONCE):
                self._sum_squares += piece.float().square().sum(dim=0)
        else:
            wide = rows.float()
            self._gram.addmm_(wide.T, wide)
        self._keep_sample(rows)

    def _keep_sample(self, rows: Tensor) -> None:
        if self._sample is None:
            # Allocated once: small pieces kept between the large temporary tensors of a forward
            # pass would split the memory that those leave free, and the process would grow.
            self._sample = rows.new_empty(_SAMPLE_TOKENS, rows.shape[1])
        self._batches_seen += 1
        # The share of the batches seen so far, rounded up: the first batch gives some in any case.
        due = -(-_SAMPLE_TOKENS * self._batches_seen // self._num_batches)
        wanted = min(due, _SAMPLE_TOKENS) - self._sampled
        if wanted == 0:
            return
        step = max(1, len(rows) // wanted)
        chosen = rows[::step][:wanted]
        self._sample[self._sampled : self._sampled + len(chosen)] = chosen
        self._sampled += len(chosen)

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
        """Tokens as they came, spread over the batches: [n, K] with n at most 256."""
        assert self._sample is not None
        return self._sample[: self._sampled]


@dataclass
class RelativeError:
    """||pruned - dense|| / ||dense||, summed over batches in float64."""

    difference: float = 0.0
    reference: float = 0.0

    def add(self, pruned: Tensor, dense: Tensor) -> None:
        """Take in one batch of outputs of any equal shape, on whatever devices."""
        wide = dense.to(pruned.device).float()
        difference = pruned.float() - wide
        self.difference += float(difference.square_().sum(dtype=torch.float64))
        self.reference += float(wide.square().sum(dtype=torch.float64))

    @property
    def value(self) -> float:
        """The error so far; 0 where the dense output is all zero."""
        return (self.difference / self.reference) ** 0.5 if self.reference else 0.0
