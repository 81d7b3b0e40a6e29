"""The next token of every row, in torch operations that neither wait for the host nor branch.

A row's token depends on its own logits, options and random number alone. A sampled row takes the
first token at which the cumulated probability, in the order of the vocabulary, passes the number.

Constants go in by `masked_fill`: `where` may copy them from the host, which a CUDA graph forbids.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from secateur.engine.penalties import penalized
from secateur.engine.scoring import Scores, scores_of

# Below it nothing changes but that quotients overflow: the likeliest token is taken anyway.
_COLDEST = 1e-5
_PIECE = 512


@dataclass(frozen=True)
class SamplingKind:
    """What some row of a batch needs; leaving the rest out changes no row's token."""

    sampled: bool = False
    filtered: bool = False
    """By top-k, top-p or min-p, which needs the logits sorted."""
    logprobs: bool = False
    penalized: bool = False
    """By what the text holds already, which is then counted."""

    def __or__(self, other: "SamplingKind") -> "SamplingKind":
        return SamplingKind(
            self.sampled or other.sampled,
            self.filtered or other.filtered,
            self.logprobs or other.logprobs,
            self.penalized or other.penalized,
        )


@dataclass(frozen=True)
class SamplingRows:
    """Options of B rows, on the device."""

    temperature: Tensor
    """fp32 [B]; 0 for greedy rows."""
    top_p: Tensor
    """fp32 [B]."""
    top_k: Tensor
    """int64 [B]; 0 for all tokens."""
    min_p: Tensor
    """fp32 [B]; 0 for all tokens."""
    repetition: Tensor
    """fp32 [B], and so the next two; see `penalized`."""
    presence: Tensor
    frequency: Tensor
    seen: Tensor
    """int32 [B, vocabulary]: what each text holds."""
    uniform: Tensor
    """fp32 [B], at least 0 and below 1: this step's random numbers."""


def next_tokens(
    logits: Tensor, rows: SamplingRows, kind: SamplingKind
) -> tuple[Tensor, Scores | None]:
    """Choose a token for every row of logits [B, vocabulary].

    Returns:
        int64 [B], and with `kind.logprobs` their scores, which are the model's own.
    """
    wanted = logits
    if kind.penalized:
        penalties = (rows.repetition, rows.presence, rows.frequency)
        wanted = penalized(logits.float(), rows.seen, *penalties)
    tokens = wanted.argmax(-1)
    if kind.sampled:
        sampled = _sample(wanted.float(), rows, kind.filtered)
        tokens = torch.where(rows.temperature > 0, sampled, tokens)
    return tokens, scores_of(logits, tokens) if kind.logprobs else None


def _sample(logits: Tensor, rows: SamplingRows, filtered: bool) -> Tensor:
    # Greedy rows are computed too, at any temperature, and thrown away.
    temperature = rows.temperature.clamp_min(_COLDEST)
    probabilities = torch.softmax(logits / temperature.unsqueeze(-1), -1)
    if filtered:
        least = _least_kept(probabilities, rows)
        probabilities = probabilities.masked_fill(probabilities < least, 0.0)
    cumulated = _cumulated(probabilities)
    total = cumulated[..., -1:]
    passed = (cumulated > rows.uniform.double().unsqueeze(-1) * total) & (probabilities > 0)
    return passed.to(torch.int32).argmax(-1)


def _least_kept(probabilities: Tensor, rows: SamplingRows) -> Tensor:
    """The lowest probability that is kept, [B, 1]. Top-p is of what top-k leaves."""
    top_p, top_k = rows.top_p, rows.top_k
    ordered = probabilities.sort(-1, descending=True).values
    places = torch.arange(ordered.shape[-1], device=ordered.device)
    limit = top_k.masked_fill(top_k <= 0, ordered.shape[-1]).unsqueeze(-1)
    ordered = ordered.masked_fill(places >= limit, 0.0)
    cumulated = _cumulated(ordered)
    wanted = top_p.double().unsqueeze(-1) * cumulated[..., -1:]
    # A token is kept while those before it do not have enough together. At 1 all are.
    kept = ((cumulated - ordered) < wanted) | (top_p.unsqueeze(-1) >= 1)
    kept &= places < limit
    last = kept.sum(-1, keepdim=True).clamp_min(1) - 1
    return ordered.gather(-1, last).maximum(rows.min_p.unsqueeze(-1) * ordered[..., :1])


def _cumulated(values: Tensor) -> Tensor:
    """Cumulated sums [B, V] in fp64: a large vocabulary does not run backwards however it is cut.

    In pieces, all at the same time: a GPU goes through a row that is not cut one step at a time.
    """
    size = values.shape[-1]
    pieces = pad(values.double(), (0, -size % _PIECE)).unflatten(-1, (-1, _PIECE)).cumsum(-1)
    before = pad(pieces[..., :-1, -1].cumsum(-1), (1, 0))
    cumulated: Tensor = (pieces + before.unsqueeze(-1)).flatten(-2)[..., :size]
    return cumulated
