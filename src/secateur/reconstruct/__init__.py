"""Reconstruct: tune a changed block until its outputs are the original block's again."""

from secateur.models.sublayers import Half, silenced
from secateur.reconstruct.halves import find_halves
from secateur.reconstruct.held_out import split_samples
from secateur.reconstruct.history import History, RoundRecord
from secateur.reconstruct.masters import master_weights
from secateur.reconstruct.optimize import (
    optimize,
    stored_targets,
    teacher_targets,
    too_long_to_tune,
)
from secateur.reconstruct.samples import BlockSamples
from secateur.reconstruct.settings import PUBLISHED, ReconstructionSettings

__all__ = [
    "PUBLISHED",
    "BlockSamples",
    "Half",
    "History",
    "ReconstructionSettings",
    "RoundRecord",
    "find_halves",
    "master_weights",
    "optimize",
    "silenced",
    "split_samples",
    "stored_targets",
    "teacher_targets",
    "too_long_to_tune",
]
