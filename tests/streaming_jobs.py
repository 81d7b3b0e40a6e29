"""Small models on disk, and one job on them, as the tests of streaming share them."""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from families import VOCAB_SIZE
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from secateur.compress_streaming import compress_streaming
from secateur.progress import SilentProgress
from secateur.report.record import Report

WANDA: dict[str, Any] = {"method": "wanda"}
NUM_BLOCKS = 6
"""Of the model that is killed again and again."""
CHAIN = import_module("secateur.compress_streaming")
"""The module: as an attribute of the package, its name is that of the function."""
STAGE = import_module("secateur.run_streamed")


def recipe_of(**options: Any) -> dict[str, Any]:
    """One prune stage, 2:4 unless said otherwise."""
    return {"stages": [{"stage": "prune", "pattern": "2:4", **options}]}


def factors(**options: Any) -> dict[str, Any]:
    """One factor stage."""
    return {"stages": [{"stage": "factor", **options}]}


def samples(count: int = 5, length: int = 13, seed: int = 3) -> Tensor:
    """int64 [count, length], random with a fixed seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB_SIZE, (count, length), generator=generator)


def save(model: PreTrainedModel, folder: Path, shard: str = "5GB") -> Path:
    """Write a model as transformers does; the folder."""
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


def stream(folder: Path, output: Path, **options: Any) -> Report:
    """`compress_streaming` by wanda on `samples()`, silently."""
    return compress_streaming(
        folder,
        options.pop("recipe", recipe_of(**WANDA)),
        calibration=options.pop("calibration", samples()),
        output=output,
        progress=options.pop("progress", SilentProgress()),
        **options,
    )


def edit_weights(folder: Path, **changes: Any) -> None:
    """Change a single weight file: new tensors by name (dots as `__`); None removes one."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in changes.items():
        tensors.pop(name.replace("__", "."), None)
        if tensor is not None:
            tensors[name.replace("__", ".")] = tensor
    save_file(tensors, path, metadata={"format": "pt"})


def weight_bytes(folder: Path) -> dict[str, bytes]:
    """Everything but what tells of times: weights, index, configuration, recipe."""
    timed = {"secateur_report.json", "README.md", "secateur_manifest.json"}
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in timed}
