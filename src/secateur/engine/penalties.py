"""Logits of tokens that a text holds already, lowered as its request asks."""

from torch import Tensor

# What makes up a token's entry in `seen`: that the prompt holds it, and each time it is generated.
_IN_PROMPT = 1
_EACH_TIME = 2


def note_prompt(seen: Tensor, tokens: Tensor) -> None:
    """Begin a text in `seen` int32 [vocabulary]: its prompt holds tokens int64 [n], once each."""
    seen.zero_().index_fill_(0, tokens, _IN_PROMPT)


def count_tokens(seen: Tensor, tokens: Tensor, times: Tensor) -> None:
    """Note in `seen` int32 [B, vocabulary] that tokens int64 [B] were generated so often each."""
    places = tokens.unsqueeze(1)
    more = _EACH_TIME * times.to(seen.dtype).unsqueeze(1)
    seen.scatter_(1, places, seen.gather(1, places) + more)


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
        seen: int32 [B, vocabulary], as `note_prompt` and `count_tokens` leave it.
        repetition: fp32 [B], above 0; 1 asks for nothing.
        presence: fp32 [B]; 0 asks for nothing.
        frequency: the same.
    """
    count = seen // _EACH_TIME
    repetition = repetition.unsqueeze(-1)
    repeated = (logits / repetition).where(logits > 0, logits * repetition)
    logits = repeated.where(seen > 0, logits)
    taken_off = count * frequency.unsqueeze(-1) + (count > 0) * presence.unsqueeze(-1)
    return logits - taken_off
