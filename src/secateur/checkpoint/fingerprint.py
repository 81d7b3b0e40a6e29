"""A short run of a model whose logits tell whether a reloaded checkpoint is the same model."""

import hashlib

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.models.blocks import context_length
from secateur.models.device import input_embedding
from secateur.report.record import VerificationRecord

_LENGTH = 16
_KEPT_LOGITS = 16


def probe_tokens(model: nn.Module) -> Tensor:
    """int64 [1, 16], or fewer in a shorter context: fixed ids spread over the vocabulary."""
    embedding = input_embedding(model)
    length = min(_LENGTH, context_length(model) or _LENGTH)
    ids = torch.arange(1, length + 1) * 7919 % embedding.shape[0]
    return ids.unsqueeze(0).to(embedding.device)


def fingerprint(model: nn.Module) -> VerificationRecord:
    """Run the model on the probe tokens and record what comes out.

    Raises:
        SecateurError: it cannot be run, now that layers were replaced.
    """
    input_ids = probe_tokens(model)
    try:
        logits = probe_logits(model, input_ids)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except (TypeError, AttributeError, RuntimeError) as error:
        raise SecateurError(
            f"could not run {type(model).__name__} on a few tokens ({error}); where a compressed "
            "layer is needed for its weight and not called, leave it out by `ignore`, or write the "
            "dense format"
        ) from error
    values, tokens = logits[-1].topk(min(_KEPT_LOGITS, logits.shape[-1]))
    return VerificationRecord(
        input_ids=tuple(input_ids[0].tolist()),
        logits_sha256=logits_sha256(logits),
        last_logits=tuple(values.tolist()),
        last_tokens=tuple(tokens.tolist()),
    )


def logits_sha256(logits: Tensor) -> str:
    """Hex digest of fp32 logits, C order."""
    return hashlib.sha256(logits.contiguous().numpy().tobytes()).hexdigest()


def probe_logits(model: nn.Module, input_ids: Tensor) -> Tensor:
    """fp32 [length, vocabulary] on the CPU, contiguous."""
    device = next(model.parameters()).device
    with torch.no_grad():
        logits: Tensor = model(input_ids=input_ids.to(device), use_cache=False).logits
    return logits[0].float().cpu().contiguous()
