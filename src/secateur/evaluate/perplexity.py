"""Perplexity as the pruning literature measures it: non-overlapping windows of one length.

Protocol of the reference code of Wanda and SparseGPT. The window length decides the number:
perplexities at different lengths, or of different tokenizers, must not be compared.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.evaluate.forward import (
    check_batch_size,
    check_token_ids,
    evaluating,
    input_device,
    model_logits,
    token_log_probs,
)
from secateur.evaluate.result import exp_estimate
from secateur.evaluate.tokenizer import Tokenizer
from secateur.models.blocks import context_length
from secateur.progress import Progress, SilentProgress
from secateur.report.record import QualityRecord
from secateur.texts.documents import split_documents


@dataclass(frozen=True)
class PerplexityResult:
    """Perplexity of one model on one text."""

    perplexity: float
    """exp of the mean of `window_losses`; infinite where a loss is not a finite number."""
    standard_error: float
    """Of the perplexity, over windows, by the delta method; NaN for a single window."""
    num_tokens: int
    """Predictions that were counted: one less than the window's tokens in each window."""
    max_seq_length: int
    """Tokens in a window; less than what was asked for if the whole text is shorter."""
    window_losses: tuple[float, ...]
    """Mean negative log-likelihood in nats of each window's predictions, in text order."""
    tokens_sha256: str = ""
    """Digest of the windows' token ids: only results on the same can be compared."""

    def to_record(self, text: str) -> QualityRecord:
        """What the report keeps; `text` names the text that was measured on."""
        return QualityRecord(
            text=text,
            perplexity=self.perplexity,
            standard_error=self.standard_error,
            num_tokens=self.num_tokens,
            max_seq_length=self.max_seq_length,
        )


def perplexity(
    model: nn.Module,
    token_ids: Tensor,
    max_seq_length: int,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> PerplexityResult:
    """Perplexity over windows of `max_seq_length` tokens.

    Args:
        model: causal language model; put into evaluation mode meanwhile.
        token_ids: integers [T], on any device. The remainder after the last whole window is
            dropped; a text shorter than one window is one shorter window.
        max_seq_length: tokens in a window, each of which gives one prediction less.
        batch_size: windows in a forward pass. It changes the result by rounding only.
        progress: is told of every batch; its owner closes it.

    Returns:
        exp of the mean over windows of the mean loss: fp32 log-probabilities, fp64 means.

    Raises:
        SecateurError: fewer than two tokens, ids that are not integers [T] or are outside the
            vocabulary, or windows longer than the model's context.
    """
    check_batch_size(batch_size)
    windows = windows_of(model, token_ids, max_seq_length)
    losses = _window_losses(model, windows, batch_size, progress or SilentProgress())
    value, error = exp_estimate(losses)
    num_windows, length = windows.shape
    digest = hashlib.sha256(windows.cpu().numpy().tobytes()).hexdigest()
    return PerplexityResult(value, error, num_windows * (length - 1), length, tuple(losses), digest)


def windows_of(model: nn.Module, token_ids: Tensor, max_seq_length: int) -> Tensor:
    """The windows int64 [number, length] that `perplexity` measures on; raises as it does."""
    check_window_length(max_seq_length)
    _check_fit(model, max_seq_length)
    windows = _cut_windows(token_ids, max_seq_length)
    check_token_ids(model, windows)
    return windows


def encode_text(tokenizer: Tokenizer, text: str) -> Tensor:
    """Token ids int64 [T] of a whole text, tokenised once.

    Special tokens are added as the tokenizer does by default: usually one at the very beginning
    or none, and none between windows. Where lines of `<|endoftext|>` stand between documents and
    the tokenizer has no such token, each document begins anew and the lines are left out: spelled
    out they would count as text that no model has seen.

    Raises:
        SecateurError: the text has no tokens.
    """
    documents = split_documents(
        text, lambda part: len(tokenizer.encode(part, add_special_tokens=False))
    )
    # A text is meant to be longer than the context here: no warning about that.
    token_ids = [token for part in documents for token in tokenizer.encode(part, verbose=False)]
    if not token_ids:
        raise SecateurError("expected a text with at least one token, but it is empty")
    return torch.tensor(token_ids, dtype=torch.int64)


def check_window_length(max_seq_length: int) -> None:
    """Refuse windows in which nothing is predicted."""
    if max_seq_length < 2:
        raise SecateurError(
            f"expected windows of at least 2 tokens, but max_seq_length is {max_seq_length}"
        )


def _check_fit(model: nn.Module, max_seq_length: int) -> None:
    limit = context_length(model)
    if limit is not None and max_seq_length > limit:
        raise SecateurError(
            f"expected windows of at most {limit} tokens, the model's max_position_embeddings, "
            f"but max_seq_length is {max_seq_length}"
        )


def _cut_windows(token_ids: Tensor, max_seq_length: int) -> Tensor:
    """Windows int64 [num_windows, length]."""
    if token_ids.dim() != 1 or token_ids.is_floating_point() or token_ids.is_complex():
        raise SecateurError(
            "expected token ids as a tensor of integers [T], but got "
            f"{token_ids.dtype} {list(token_ids.shape)}"
        )
    num_tokens = token_ids.numel()
    if num_tokens < 2:
        raise SecateurError(f"expected a text of at least 2 tokens, but it has {num_tokens}")
    length = min(max_seq_length, num_tokens)
    return token_ids[: num_tokens // length * length].long().reshape(-1, length)


def _window_losses(
    model: nn.Module, windows: Tensor, batch_size: int, progress: Progress
) -> list[float]:
    losses: list[float] = []
    batches = torch.split(windows, batch_size)
    progress.begin("perplexity", len(batches))
    with evaluating(model):
        for batch in batches:
            losses.extend(_batch_losses(model, batch.to(input_device(model))))
            progress.advance(f"perplexity {exp_estimate(losses).value:.2f}")
    return losses


def _batch_losses(model: nn.Module, batch: Tensor) -> list[float]:
    logits = model_logits(model, batch)
    # Window by window: a slice of one window is a view, a slice over all of them a copy.
    means = [
        token_log_probs(rows[:-1], window[1:]).double().mean()
        for rows, window in zip(logits, batch.to(logits.device), strict=True)
    ]
    return [-mean for mean in torch.stack(means).tolist()]
