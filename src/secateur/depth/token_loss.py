"""The loss of a language model on tokens, summed as batches pass."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from secateur.errors import SecateurError

# fp32 logits held at once: 64 MiB.
_MAX_FP32_LOGITS = 2**24


class TokenLoss:
    """Running mean cross-entropy of each token given those before it, in nats.

    Its exponential is the perplexity. Memory does not grow with the number of tokens added.
    """

    def __init__(self) -> None:
        self._sum = 0.0
        self._num_tokens = 0

    def add(self, logits: Tensor, input_ids: Tensor) -> None:
        """Add samples; their first tokens are not predicted.

        Args:
            logits: floating [batch, length, vocabulary], of the tokens that follow.
            input_ids: int64 [batch, length], no padding, on any device.

        Log-probabilities are fp32 (fp64 for fp64 logits), a few rows at a time, and summed in
        fp64.

        Raises:
            SecateurError: shapes do not fit.
        """
        if logits.ndim != 3 or logits.shape[:2] != input_ids.shape:
            raise SecateurError(
                "expected logits [batch, length, vocabulary] for token ids [batch, length], got "
                f"{list(logits.shape)} for {list(input_ids.shape)}"
            )
        rows = max(1, _MAX_FP32_LOGITS // logits.shape[-1])
        predictions = logits.detach()[:, :-1].flatten(0, 1)
        targets = input_ids[:, 1:].flatten().to(logits.device)
        for part, wanted in zip(predictions.split(rows), targets.split(rows), strict=True):
            precise = part.to(torch.promote_types(part.dtype, torch.float32))
            losses = cross_entropy(precise, wanted, reduction="none")
            self._sum += float(losses.sum(dtype=torch.float64))
        self._num_tokens += targets.numel()

    def value(self) -> float:
        """The mean over all predicted tokens; NaN or infinite where logits are.

        Raises:
            SecateurError: there was none.
        """
        if self._num_tokens == 0:
            raise SecateurError("expected at least two tokens in a sample to measure a loss")
        return self._sum / self._num_tokens
