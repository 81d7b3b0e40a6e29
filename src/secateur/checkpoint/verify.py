"""Proof that a checkpoint is what it claims to be."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from secateur.checkpoint.fingerprint import logits_sha256, probe_logits
from secateur.checkpoint.load import load_model
from secateur.checkpoint.manifest import manifest_faults
from secateur.checkpoint.pattern import pattern_faults
from secateur.errors import SecateurError, VerificationError
from secateur.models.inventory import take_inventory
from secateur.models.swap import compressed_modules
from secateur.report.record import VerificationRecord, load_report

# Another machine or thread count adds in another order; another model differs by far more.
_LOGIT_TOLERANCE = 0.02
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
    written = loaded.state_dict()
    for name, tensor in model.state_dict().items():
        if name not in written or not _equal_bits(tensor.cpu(), written[name]):
            raise VerificationError(
                f"{name} is not the same after it was written and reloaded: "
                f"{_difference(tensor, written.get(name))}"
            )
    if _num_distinct(loaded) != _num_distinct(model):
        raise VerificationError("weights that were tied are not tied after reloading")
    if recorded is not None and not (check := _check_logits(loaded, recorded)).passed:
        raise VerificationError(
            f"the written configuration does not describe the model: logits {check.detail}"
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


def _equal_bits(left: Tensor, right: Tensor) -> bool:
    return left.dtype == right.dtype and torch.equal(left, right)


def _num_distinct(model: nn.Module) -> int:
    """Tensors of the state dict, where packed weights count as the canonical ones do."""
    tensors = list(model.state_dict(keep_vars=True).values())
    return len({id(tensor) for tensor in tensors})


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
    close = distance <= _LOGIT_TOLERANCE * max(scale, 1.0)
    return Check(
        "logits",
        close,
        f"differ by {distance:.3g} at most, of {scale:.3g}: "
        + (_CLOSE if close else "this is not the model that was written"),
    )
