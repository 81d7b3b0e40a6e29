"""What the result of a streaming job depends on; a job is resumed only where all of it is equal."""

from pathlib import Path
from typing import Any

import torch

from secateur.calibration.tokens import CalibrationTokens
from secateur.checkpoint.manifest import file_digests
from secateur.recipe import Recipe
from secateur.report.facts import machine_facts, package_versions
from secateur.streaming.job import Facts


def job_facts(
    folder: Path,
    recipe: Recipe,
    tokens: CalibrationTokens | None,
    device: torch.device,
    dtype: str,
    compact: bool,
) -> Facts:
    """Digests and names, by kind.

    The number of threads and the processor are among them: sums in another order round otherwise,
    and a resumed job is to end bit for bit as one that was never interrupted.

    Args:
        folder: of the model; every byte of its configuration and weights is read.
        recipe: what is done.
        tokens: to calibrate on.
        device: where blocks run.
        dtype: that the weights are read in.
        compact: whether layers are written compressed.
    """
    files = sorted([folder / "config.json", *folder.glob("*.safetensors")])
    machine = machine_facts(device)
    calibration: dict[str, Any] = {"sha256 of the tokens": tokens.sha256() if tokens else None}
    return {
        "model": {path.name: digest for path, digest in file_digests(files).items()},
        "loading": {"dtype": dtype},
        "calibration": calibration,
        "recipe": recipe.to_dict(),
        "writing": {"format": "compact" if compact else "dense"},
        "version": package_versions(),
        "machine": {name: machine[name] for name in ("device", "processor", "threads")},
    }
