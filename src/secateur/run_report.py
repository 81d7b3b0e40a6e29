"""What a run tells of itself: what came in, its tokens, what is left, and all as a report."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from secateur.calibration.tokens import CalibrationTokens
from secateur.checkpoint.load import LoadedModel
from secateur.clock import StepClock
from secateur.errors import SecateurError
from secateur.evaluate.perplexity import encode_text, perplexity
from secateur.evaluate.suite import read_text, window_length
from secateur.models.blocks import find_blocks
from secateur.models.device import on_device
from secateur.models.inventory import Inventory
from secateur.models.measure import num_bytes, num_logical_parameters, num_logical_zeros
from secateur.recipe import Recipe
from secateur.report.facts import machine_facts, package_versions, peak_memory_bytes
from secateur.report.record import (
    AnyStage,
    CalibrationRecord,
    ModelRecord,
    QualityRecord,
    Report,
    SizeRecord,
    VerificationRecord,
)
from secateur_kernels.precision import dtype_name


@dataclass(frozen=True)
class EvaluationText:
    """What perplexity is measured on, before and after; nothing if there is no path."""

    path: str | Path | None
    max_seq_length: int | None


def model_record(loaded: LoadedModel, inventory: Inventory) -> ModelRecord:
    """The model as it came in, for the report."""
    model, is_folder = loaded.model, Path(loaded.source).is_dir()
    from_folder = loaded.folder is not None and is_folder
    return ModelRecord(
        source=loaded.source,
        folder=str(Path(loaded.source).absolute()) if from_folder else "",
        from_hub=loaded.folder is not None and not is_folder,
        revision=loaded.revision,
        architecture=type(model).__name__,
        num_blocks=len(inventory.blocks),
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_bytes=num_bytes(model),
        dtype=dtype_name(next(model.parameters()).dtype),
        unmatched=tuple(f"{entry.name}: {entry.reason}" for entry in inventory.unmatched),
    )


def measure_quality(
    loaded: LoadedModel,
    text: EvaluationText,
    when: Literal["before", "after"],
    device: torch.device,
    clock: StepClock,
) -> tuple[QualityRecord, ...]:
    """Perplexity of the model as it is now, for the report; nothing if there is no text.

    The whole model goes to `device` for it.

    Raises:
        SecateurError: the text cannot be read or there is no tokenizer for it.
    """
    if text.path is None:
        return ()
    if loaded.tokenizer is None:
        raise SecateurError("an evaluation text needs the model's tokenizer; give `tokenizer`")
    token_ids = encode_text(loaded.tokenizer, read_text(Path(text.path)))
    length = window_length(loaded.model, text.max_seq_length)
    with clock.measured(f"perplexity {when}"), on_device(loaded.model, device):
        result = perplexity(loaded.model, token_ids, length, progress=clock.progress)
    return (replace(result.to_record(Path(text.path).name), when=when),)


def size_record(model: nn.Module) -> SizeRecord:
    """The model as it is now: parameters, bytes, zeros and blocks.

    A 2:4 layer counts as its logical weight [N, K], removed weights as zeros, whatever its form.
    """
    return SizeRecord(
        num_parameters=num_logical_parameters(model),
        num_bytes=num_bytes(model),
        num_zeros=num_logical_zeros(model),
        num_blocks=len(find_blocks(model)),
    )


def calibration_record(tokens: CalibrationTokens, seed: int) -> CalibrationRecord:
    """The tokens, for the report."""
    return CalibrationRecord(
        source=tokens.source,
        num_samples=len(tokens.samples),
        max_seq_length=tokens.max_seq_length,
        num_tokens=tokens.num_tokens,
        seed=seed,
        tokens_sha256=tokens.sha256(),
    )


def report_of(
    *,
    model: ModelRecord,
    recipe: Recipe,
    calibration: CalibrationRecord | None,
    stages: Sequence[AnyStage],
    size: SizeRecord,
    verification: VerificationRecord,
    device: torch.device,
    clock: StepClock,
    quality: Sequence[QualityRecord] = (),
) -> Report:
    """All that a run tells, with when and where it was: the time is up to now.

    Args:
        model: as it came in.
        recipe: that was run.
        calibration: its tokens, if there were any.
        stages: what each did.
        size: of what is left.
        verification: the probe run of it.
        device: that blocks ran on.
        clock: of the run.
        quality: measured before and after.
    """
    return Report(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions=package_versions(),
        machine=machine_facts(device),
        model=model,
        recipe=recipe.to_dict(),
        calibration=calibration,
        stages=tuple(stages),
        size=size,
        seconds=clock.seconds(),
        peak_memory_bytes=peak_memory_bytes(),
        verification=verification,
        quality=tuple(quality),
    )
