"""Proof that a checkpoint is what it claims to be."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import torch
from torch import Tensor, nn

from secateur.checkpoint.fingerprint import logits_sha256, probe_logits
from secateur.checkpoint.load import load_model
from secateur.checkpoint.manifest import manifest_faults
from secateur.checkpoint.pattern import pattern_faults
from secateur.checkpoint.same_bits import same_bits
from secateur.errors import SecateurError, VerificationError
from secateur.models.blocks import find_blocks
from secateur.models.device import input_embedding
from secateur.models.inventory import take_inventory
from secateur.models.measure import own_tensors, saved_tensors
from secateur.models.swap import compressed_modules
from secateur.report.record import VerificationRecord, load_report

# Another machine, device or thread count adds in another order; another model differs by far more.
_LEAST_TOLERANCE = 0.02
# Of the dtype's spacing times the root of the number of blocks, each of which rounds hidden states:
# two implementations of attention were seen to differ by half of that in logits, 80 blocks deep.
_ROUNDINGS_A_BLOCK = 2.0
_CLOSE = "rounding, of another machine or of buffers that are not saved"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    passed: bool
    detail: str


def require_same_model(
    model: nn.Module,
    folder: Path,
    recorded: VerificationRecord | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Raise VerificationError unless `folder` loads as `model`.

    Every tensor of the state dict is compared bit for bit, that tied weights are still tied, and
    that the configuration makes the same logits of them as were recorded.
    """
    try:
        loaded = load_model(folder, trust_remote_code=trust_remote_code).model
    except SecateurError as error:
        raise VerificationError(f"the written model does not load: {error}") from error
    others = dict(loaded.named_modules())
    for name, module in model.named_modules():
        _require_same_tensors(name, own_tensors(module), others.get(name))
    if sum(1 for _ in saved_tensors(loaded)) != sum(1 for _ in saved_tensors(model)):
        raise VerificationError("weights that were tied are not tied after reloading")
    if recorded is not None and not (check := _check_logits(loaded, recorded)).passed:
        raise VerificationError(
            f"the written configuration does not describe the model: logits {check.detail}"
        )


def _require_same_tensors(
    place: str, tensors: Mapping[str, Tensor], loaded: nn.Module | None
) -> None:
    written = own_tensors(loaded) if loaded is not None else {}
    for name, tensor in tensors.items():
        found = written.get(name)
        if found is None or not same_bits(tensor.cpu(), found):
            raise VerificationError(
                f"{place}.{name} is not the same after it was written and reloaded: "
                f"{_difference(tensor, found)}"
            )


def _difference(tensor: Tensor, loaded: Tensor | None) -> str:
    if loaded is None:
        return "it is missing"
    if loaded.dtype != tensor.dtype:
        return (
            f"{tensor.dtype} became {loaded.dtype}; the model mixes dtypes that its config does "
            "not tell of: cast it to one"
        )
    return "values differ"


def verify_checkpoint(folder: str | Path, trust_remote_code: bool = False) -> list[Check]:
    """Check a folder that Secateur wrote: manifest, strict reload, pattern, logits.

    Raises:
        SecateurError: the folder has no report or no manifest.
    """
    folder = Path(folder)
    report = load_report(folder)
    faults = manifest_faults(folder)
    checks = [_check("manifest", faults, "every file is as it was written")]
    try:
        model = load_model(folder, trust_remote_code=trust_remote_code).model
    except SecateurError as error:
        return [*checks, Check("reload", False, str(error))]
    checks.append(Check("reload", True, "loads with strict keys"))
    checks.append(
        _check(
            "pattern",
            pattern_faults(report, take_inventory(model), compressed_modules(model)),
            "every matrix has the zeros, the pattern and the rank that the report says",
        )
    )
    if report.verification is not None:
        checks.append(_check_logits(model, report.verification))
    return checks


def _check(name: str, faults: list[str], fine: str) -> Check:
    shown = "; ".join(faults[:3]) + (f"; and {len(faults) - 3} more" if faults[3:] else "")
    return Check(name, not faults, shown or fine)


def _check_logits(model: nn.Module, recorded: VerificationRecord) -> Check:
    try:
        logits = probe_logits(model, torch.tensor([recorded.input_ids]))
        now = logits[-1][list(recorded.last_tokens)]
        distance = float((now - torch.tensor(recorded.last_logits)).abs().max())
    except (IndexError, RuntimeError) as error:
        return Check("logits", False, f"the recorded tokens do not fit the model: {error}")
    if logits_sha256(logits) == recorded.logits_sha256:
        return Check("logits", True, "identical, bit for bit, to those recorded")
    scale = max(abs(logit) for logit in recorded.last_logits)
    close = distance <= _tolerance(model) * max(scale, 1.0)
    return Check(
        "logits",
        close,
        f"differ by {distance:.3g} at most, of {scale:.3g}: "
        + (_CLOSE if close else "this is not the model that was written"),
    )


def _tolerance(model: nn.Module) -> float:
    """How far logits of one model may be apart, as a fraction of the largest."""
    spacing = torch.finfo(input_embedding(model).dtype).eps
    return max(_LEAST_TOLERANCE, _ROUNDINGS_A_BLOCK * spacing * sqrt(len(find_blocks(model))))
