"""Log-likelihood of a continuation given its context, for many of them at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from secateur.errors import SecateurError
from secateur.evaluate.forward import (
    check_batch_size,
    check_token_ids,
    evaluating,
    input_device,
    model_logits,
    token_log_probs,
)
from secateur.evaluate.tokenizer import Tokenizer
from secateur.progress import Progress


@dataclass(frozen=True)
class Request:
    """Tokens of which the last `num_scored` (at least one) are to be predicted."""

    token_ids: tuple[int, ...]
    """At least one more than `num_scored`."""
    num_scored: int
    is_truncated: bool = False


@dataclass(frozen=True)
class Score:
    """How likely a continuation is."""

    log_prob: float
    """Sum over its tokens, in nats; -inf where the model's output is not a number."""
    is_greedy: bool
    """Every token is the one with the largest logit."""


def encode_request(tokenizer: Tokenizer, context: str, continuation: str) -> Request:
    """Tokens of context and continuation, tokenised together.

    The continuation starts at the first token that the context alone does not have there, so
    that a token across the boundary is scored. Whitespace at the end of the context goes to the
    continuation, because tokenizers join it with the word that follows. An empty context is the
    tokenizer's first token, or its last where it has no first. These are the rules of lm-eval,
    which splits by length and so agrees where the boundary is between two tokens.

    Raises:
        SecateurError: no tokens to predict, or no token to predict them from.
    """
    stripped = context.rstrip()
    continuation = context[len(stripped) :] + continuation
    if not stripped:
        return _request_without_context(tokenizer, continuation)
    token_ids = tokenizer.encode(stripped + continuation, verbose=False)
    start = _common_length(token_ids, tokenizer.encode(stripped, verbose=False))
    if start == 0:
        return _request_without_context(tokenizer, stripped + continuation)
    return _request(token_ids, start, continuation)


def truncate(request: Request, max_length: int | None) -> Request:
    """Drop what does not fit on the left: the model sees at most `max_length` tokens."""
    # The last token is predicted and never an input.
    if max_length is None or len(request.token_ids) <= max_length + 1:
        return request
    num_scored = min(request.num_scored, max_length)
    return Request(request.token_ids[-(max_length + 1) :], num_scored, is_truncated=True)


def score_requests(
    model: nn.Module, requests: Sequence[Request], batch_size: int, progress: Progress
) -> tuple[Score, ...]:
    """A score for each request, in their order; `batch_size` changes them by rounding only.

    Raises:
        SecateurError: a token id outside the model's vocabulary.
    """
    check_batch_size(batch_size)
    # Longest first: little padding in a batch, and too large a batch fails at once.
    order = sorted(range(len(requests)), key=lambda index: -len(requests[index].token_ids))
    scores: dict[int, Score] = {}
    progress.begin("score", -(-len(order) // batch_size))
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            batch = _score_batch(model, [requests[index] for index in indices])
            scores.update(zip(indices, batch, strict=True))
            progress.advance(f"{len(scores)} of {len(order)}")
    return tuple(scores[index] for index in range(len(requests)))


def _request_without_context(tokenizer: Tokenizer, text: str) -> Request:
    first = tokenizer.bos_token_id
    first = tokenizer.eos_token_id if first is None else first
    if first is None:
        raise SecateurError(
            "expected a tokenizer with a token for the beginning or the end of a text, which "
            f"stands for the missing context of {text!r}, but it has neither"
        )
    token_ids = tokenizer.encode(text, add_special_tokens=False, verbose=False)
    return _request(token_ids if token_ids[:1] == [first] else [first, *token_ids], 1, text)


def _request(token_ids: list[int], start: int, continuation: str) -> Request:
    if start >= len(token_ids):
        raise SecateurError(f"expected at least one token to predict in {continuation!r}")
    return Request(tuple(token_ids), len(token_ids) - start)


def _common_length(left: list[int], right: list[int]) -> int:
    pairs = enumerate(zip(left, right, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))


def _score_batch(model: nn.Module, requests: list[Request]) -> list[Score]:
    tokens = [torch.tensor(request.token_ids) for request in requests]
    padded = pad_sequence([part[:-1] for part in tokens], batch_first=True)
    mask = pad_sequence([torch.ones_like(part[:-1]) for part in tokens], batch_first=True)
    check_token_ids(model, torch.cat(tokens))
    device = input_device(model)
    logits = model_logits(model, padded.to(device), mask.to(device))
    rows = zip(logits, tokens, requests, strict=True)
    return [_score_row(row, part, request.num_scored) for row, part, request in rows]


def _score_row(logits: Tensor, token_ids: Tensor, num_scored: int) -> Score:
    """Score of one sequence [T] from its logits [at least T - 1, vocabulary]."""
    end = len(token_ids) - 1
    rows = logits[end - num_scored : end]
    targets = token_ids[-num_scored:].to(logits.device)
    log_prob = token_log_probs(rows, targets).double().sum().item()
    is_greedy = bool((rows.argmax(-1) == targets).all())
    return Score(log_prob, is_greedy and log_prob > -torch.inf)
