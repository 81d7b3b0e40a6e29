"""How likely tokens are, and which are the likeliest in their places."""

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.engine.options import MOST_TOP_LOGPROBS
from secateur.engine.result import ScoredToken


@dataclass(frozen=True)
class Scores:
    """Log-probabilities at temperature 1 in B places; K is 20, or the vocabulary if it is less."""

    chosen: Tensor
    """fp32 [B], of the tokens that are there."""
    top: Tensor
    """fp32 [B, K], of the likeliest ones, falling."""
    top_tokens: Tensor
    """int64 [B, K]."""

    @staticmethod
    def zeros(count: int, logits: Tensor) -> "Scores":
        """Room for `count` places; `logits` [..., vocabulary] tell size and device."""
        chosen = torch.zeros(count, dtype=torch.float32, device=logits.device)
        top = chosen.new_zeros(count, min(MOST_TOP_LOGPROBS, logits.shape[-1]))
        return Scores(chosen, top, torch.zeros_like(top, dtype=torch.int64))

    def first(self, count: int) -> "Scores":
        """Those of the first places, in the same memory."""
        return Scores(self.chosen[:count], self.top[:count], self.top_tokens[:count])

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """All of them."""
        return self.chosen, self.top, self.top_tokens

    def copy_(self, scores: "Scores") -> None:
        """Take the values of as many places."""
        for own, other in zip(self.tensors(), scores.tensors(), strict=True):
            own.copy_(other)

    def of_tokens(self, token_ids: list[int]) -> list[ScoredToken]:
        """The same as values, for the tokens that are there; waits for the device."""
        tops = zip(self.top_tokens.tolist(), self.top.tolist(), strict=True)
        rows = zip(token_ids, self.chosen.tolist(), tops, strict=True)
        return [
            ScoredToken(token, logprob, tuple(zip(*top, strict=True)))
            for token, logprob, top in rows
        ]


def scores_of(logits: Tensor, tokens: Tensor) -> Scores:
    """Score tokens int64 [B] by logits [B, vocabulary] of their places; compared as fp32."""
    logits = logits.float()
    total = logits.logsumexp(-1, keepdim=True)
    top, top_tokens = logits.topk(min(MOST_TOP_LOGPROBS, logits.shape[-1]), -1)
    chosen = logits.gather(-1, tokens.unsqueeze(-1))
    return Scores((chosen - total).squeeze(-1), top - total, top_tokens)
