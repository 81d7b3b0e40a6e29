"""Secateur: prune transformer language models block by block, and say what it cost and bought."""

from secateur.compress import compress, compress_with_report
from secateur.compress_streaming import compress_streaming
from secateur.engine import Engine, GenerationOptions
from secateur.errors import OutOfSpaceError, QualityDropError, SecateurError, VerificationError
from secateur.recipe import (
    DropBlocksStage,
    FactorStage,
    Intervention,
    LayerOverride,
    PruneStage,
    Recipe,
    Reconstruction,
    load_recipe,
)
from secateur.runtime.accelerate import accelerate
from secateur_kernels.version import __version__

__all__ = [
    "DropBlocksStage",
    "Engine",
    "FactorStage",
    "GenerationOptions",
    "Intervention",
    "LayerOverride",
    "OutOfSpaceError",
    "PruneStage",
    "QualityDropError",
    "Recipe",
    "Reconstruction",
    "SecateurError",
    "VerificationError",
    "__version__",
    "accelerate",
    "compress",
    "compress_streaming",
    "compress_with_report",
    "load_recipe",
]
