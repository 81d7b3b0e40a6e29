"""A short run of a model whose logits tell whether a reloaded checkpoint is the same model."""

import hashlib

import torch
from torch import Tensor, nn

from secateur.report.record import VerificationRecord

_LENGTH = 16
_KEPT_LOGITS = 16


def probe_tokens(vocabulary_size: int) -> Tensor:
    """int64 [1, 16]: fixed token ids spread over the vocabulary."""
    return (torch.arange(1, _LENGTH + 1) * 7919 % vocabulary_size).unsqueeze(0)


def fingerprint(model: nn.Module, vocabulary_size: int) -> VerificationRecord:
    """Run the model on the probe tokens and record what comes out."""
    input_ids = probe_tokens(vocabulary_size)
    logits = probe_logits(model, input_ids)
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
