"""Streaming statistics of the inputs of a linear layer: nothing grows with the number of tokens."""

from math import sqrt

import torch
from torch import Tensor

from secateur.parallel import Parallel
from secateur_kernels.precision import wide_dtype

_SAMPLE_TOKENS = 256
_ROWS_AT_ONCE = 512
_COLUMNS_AT_ONCE = 2048


class InputStatistics:
    """Sums over the tokens that reach a layer.

    Products are summed in fp32 over a batch and in float64 over batches, so that the order of
    batches, or their division among processes, does not show in the fp32 results.
    """

    def __init__(
        self,
        num_columns: int,
        *,
        with_hessian: bool,
        num_batches: int,
        device: torch.device,
        first_batch: int = 0,
    ) -> None:
        """Start empty.

        Args:
            num_columns: K, the layer's input features.
            with_hessian: also sum X.T @ X.
            num_batches: that will be taken in, by all processes together; a few tokens of each
                are kept as a sample, to measure output errors on.
            device: where batches are and sums are kept.
            first_batch: number of the first batch of this process.
        """
        self.num_tokens = 0
        self._num_columns, wide = num_columns, torch.float64
        sums = 0 if with_hessian else num_columns
        self._sum_squares = torch.zeros(sums, dtype=wide, device=device)
        self._gram: Tensor | None = None
        """[K, K], filled on and above the diagonal: the rest follows."""
        if with_hessian:
            self._gram = torch.zeros(num_columns, num_columns, dtype=wide, device=device)
        self._num_batches = num_batches
        self._batches_seen = first_batch
        self._sampled_before = self._due()
        self._sample: Tensor | None = None
        self._sampled = 0

    def add(self, inputs: Tensor) -> None:
        """Take in one batch [..., K] of any floating dtype."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        self.num_tokens += len(rows)
        if self._gram is None:
            self._add_squares(rows)
        else:
            wide = rows.float()
            for columns, following in self._pieces():
                self._gram[columns, following] += wide[:, columns].T @ wide[:, following]
        self._keep_sample(rows)

    def _add_squares(self, rows: Tensor) -> None:
        if rows.is_cuda:
            # One kernel that reads the rows once; on a CPU it takes eight times as long as below.
            norm = torch.linalg.vector_norm(rows, dim=0, dtype=wide_dtype(rows.dtype))
            self._sum_squares += norm.double().square_()
            return
        # In pieces, so that the widened copy stays in the cache and costs no memory.
        for piece in torch.split(rows, _ROWS_AT_ONCE):
            self._sum_squares += piece.float().square().sum(dim=0)

    def _pieces(self) -> list[tuple[slice, slice]]:
        """What covers the upper half of the matrix, in pieces that need little memory at once."""
        assert self._gram is not None
        starts = range(0, len(self._gram), _COLUMNS_AT_ONCE)
        return [(slice(start, start + _COLUMNS_AT_ONCE), slice(start, None)) for start in starts]

    def _due(self) -> int:
        """Rows of the sample by the number of batches seen, rounded up: the first gives some."""
        due = -(-_SAMPLE_TOKENS * self._batches_seen // self._num_batches)
        return min(due, _SAMPLE_TOKENS)

    def _keep_sample(self, rows: Tensor) -> None:
        if self._sample is None:
            # Allocated once: small pieces kept between the large temporary tensors of a forward
            # pass would split the memory that those leave free, and the process would grow.
            self._sample = rows.new_empty(_SAMPLE_TOKENS, rows.shape[1])
        self._batches_seen += 1
        wanted = self._due() - self._sampled_before - self._sampled
        if wanted == 0:
            return
        step = max(1, len(rows) // wanted)
        chosen = rows[::step][:wanted]
        self._sample[self._sampled : self._sampled + len(chosen)] = chosen
        self._sampled += len(chosen)

    def sum_over(self, parallel: Parallel) -> None:
        """Make this what it would be if this process had seen the batches of all processes."""
        if parallel.size == 1:
            return
        parallel.sum_(self._sum_squares if self._gram is None else self._gram)
        self.num_tokens = sum(parallel.gather(self.num_tokens))
        counts = parallel.gather(self._sampled)
        first = sum(counts[: parallel.rank])
        device, columns = self._sum_squares.device, self._num_columns
        # Zeros where the others have their rows: the sum puts all side by side, bit for bit.
        rows = torch.zeros(sum(counts), columns, dtype=torch.float64, device=device)
        if self._sample is not None:
            rows[first : first + self._sampled] = self.sample()
        parallel.sum_(rows)
        self._sample = rows if self._sample is None else rows.to(self._sample.dtype)
        self._sampled = len(rows)

    def input_norm(self, num_samples: int) -> Tensor:
        """Wanda's activation norm, averaged over samples.

        Returns:
            fp32 [K]: sqrt(sum over tokens of x_j^2 / num_samples).
        """
        squares = self._sum_squares if self._gram is None else self._gram.diagonal()
        return (squares / num_samples).float().sqrt()

    def hessian(self, num_samples: int) -> Tensor:
        """SparseGPT's Hessian: fp32 [K, K], 2 / num_samples * X.T @ X."""
        assert self._gram is not None
        result = torch.empty_like(self._gram, dtype=torch.float32)
        for columns, following in self._pieces():
            result[columns, following] = self._gram[columns, following] * (2.0 / num_samples)
            result[columns.stop :, columns] = result[columns, columns.stop :].T
        return result

    def sample(self) -> Tensor:
        """Tokens as they came, spread over the batches: [n, K] with n at most 256."""
        assert self._sample is not None
        return self._sample[: self._sampled]

    def output_error(
        self, dense: Tensor, new: Tensor, of_dense: "InputStatistics | None" = None
    ) -> float | None:
        """How far a matrix's outputs on the sampled tokens move; None where no token came.

        Args:
            dense: [N, K].
            new: [N, K], what it became.
            of_dense: of the same tokens, taken in by the same batches, as they enter `dense`; None
                where both matrices have the same inputs.
        """
        if self.num_tokens == 0:
            return None
        inputs, error = self.sample().float(), RelativeError()
        dense_inputs = inputs if of_dense is None else of_dense.sample().float()
        error.add(inputs @ new.float().T, dense_inputs @ dense.float().T)
        return error.value


class CrossMoment:
    """What a layer's inputs were in the dense model, against what they are behind compression.

    Sum of X_dense.T @ X over the same tokens in both: as Hessians, in fp32 over a batch and in
    float64 over batches. What is made of it is its difference from the Hessian.
    """

    def __init__(self, num_columns: int, device: torch.device) -> None:
        """Start empty: K input features, sums on `device`."""
        self._sum = torch.zeros(num_columns, num_columns, dtype=torch.float64, device=device)

    def add(self, dense_inputs: Tensor, inputs: Tensor) -> None:
        """Take in one batch: [..., K] of the dense model and of the compressed one."""
        dense = dense_inputs.reshape(-1, dense_inputs.shape[-1]).float()
        self._sum += dense.T @ inputs.reshape(-1, inputs.shape[-1]).float()

    def value(self, num_samples: int) -> Tensor:
        """fp32 [K, K], 2 / num_samples * X_dense.T @ X: scaled as the Hessian is."""
        return (self._sum * (2.0 / num_samples)).float()


class RelativeError:
    """||pruned - dense|| / ||dense||, summed over batches in float64.

    Sums stay where the outputs are until they are asked for, so that no batch waits for the last.
    """

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        """float64 [2]: of squared differences, of squares of dense outputs."""

    def add(self, pruned: Tensor, dense: Tensor) -> None:
        """Take in one batch of outputs of any equal shape, on whatever devices."""
        wide = dense.to(pruned.device).float()
        difference = pruned.float() - wide
        squares = (difference.square_(), wide.square())
        sums = torch.stack([item.sum(dtype=torch.float64) for item in squares])
        self._sums = sums if self._sums is None else self._sums + sums.to(self._sums.device)

    @property
    def sums(self) -> tuple[float, float]:
        """Of squared differences, and of squares of dense outputs."""
        if self._sums is None:
            return 0.0, 0.0
        difference, reference = self._sums.tolist()
        return difference, reference

    def over_all(self, parallel: Parallel) -> float:
        """The error over the batches of all processes; see `value`."""
        pairs = parallel.gather(self.sums)
        return _relative(*(sum(column) for column in zip(*pairs, strict=True)))

    @property
    def value(self) -> float:
        """The error so far; 0 where the dense output is all zero."""
        return _relative(*self.sums)


def _relative(difference: float, reference: float) -> float:
    return sqrt(difference / reference) if reference else 0.0
