"""Logits of tokens that a text holds already, lowered as its request asks."""

from torch import Tensor

IN_PROMPT = 1
"""Of a token's entry in `seen`: the prompt holds it."""
EACH_TIME = 2
"""Added to a token's entry in `seen` whenever it is generated."""


def penalized(
    logits: Tensor, seen: Tensor, repetition: Tensor, presence: Tensor, frequency: Tensor
) -> Tensor:
    """Lower logits of what was seen; those of rows that ask for nothing stay as they are.

    First the repetition penalty (Keskar et al. 2019, CTRL, section 4.1; the sign as transformers
    has it): of a token of the prompt or of what was generated, a positive logit is divided by it, a
    negative one multiplied. Then from that of a token which was generated c times, c * frequency +
    presence is taken off, as in OpenAI's API; there the prompt does not count.

    Args:
        logits: fp32 [B, vocabulary].
        seen: int32 [B, vocabulary], sums of `IN_PROMPT` and `EACH_TIME`.
        repetition: fp32 [B], above 0; 1 asks for nothing.
        presence: fp32 [B]; 0 asks for nothing.
        frequency: the same.
    """
    count = seen // EACH_TIME
    repetition = repetition.unsqueeze(-1)
    repeated = (logits / repetition).where(logits > 0, logits * repetition)
    logits = repeated.where(seen > 0, logits)
    taken_off = count * frequency.unsqueeze(-1) + (count > 0) * presence.unsqueeze(-1)
    return logits - taken_off
