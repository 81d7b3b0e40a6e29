"""What evaluation asks of a causal language model: limits, logits, log-probabilities."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.models.device import input_embedding, vocabulary_size

# fp32 logits held at once while log-probabilities are computed: 64 MiB.
_MAX_FP32_LOGITS = 2**24


def input_device(model: nn.Module) -> torch.device:
    """Where token ids have to be; offloaded models take them on the CPU."""
    device = input_embedding(model).device
    return torch.device("cpu") if device.type == "meta" else device


def check_token_ids(model: nn.Module, token_ids: Tensor) -> None:
    """Refuse token ids that the model has no embedding for: the tokenizer is of another model."""
    vocabulary = vocabulary_size(model)
    outside = token_ids[(token_ids < 0) | (token_ids >= vocabulary)]
    if outside.numel() > 0:
        raise SecateurError(
            f"expected token ids from 0 to {vocabulary - 1}, the rows of the input embedding, "
            f"but got {int(outside[0])}: is the tokenizer of another model?"
        )


def check_batch_size(batch_size: int) -> None:
    """Refuse a batch of nothing."""
    if batch_size < 1:
        raise SecateurError(f"expected a batch size of at least 1, but got {batch_size}")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients; afterwards every module has its own mode again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def model_logits(model: nn.Module, token_ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Logits [B, L, vocabulary], in the model's dtype, for token ids [B, L] and their mask."""
    logits = model(input_ids=token_ids, attention_mask=mask, use_cache=False).logits
    assert isinstance(logits, Tensor)
    return logits


def token_log_probs(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probability [R] in fp32 of each target [R] under its row of logits [R, vocabulary].

    Logits are converted to fp32 a few rows at a time. What is not a number comes back as -inf.
    """
    rows = max(1, _MAX_FP32_LOGITS // logits.shape[-1])
    pairs = zip(torch.split(logits, rows), torch.split(targets, rows), strict=True)
    log_probs = torch.cat([_log_probs_of_rows(part.float(), target) for part, target in pairs])
    return log_probs.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)


def _log_probs_of_rows(logits: Tensor, targets: Tensor) -> Tensor:
    chosen = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return chosen - logits.logsumexp(-1)
