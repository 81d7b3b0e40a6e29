"""Reads `sparse-24-bitmask` checkpoints, which compressed-tensors wrote up to version 0.14.

A weight `X.weight` [N, K] stands there as three tensors: `X.compressed` [N, K / 2], the kept values
in row-major order; `X.bitmask` uint8 [N, ceil(K / 8)], bit j of byte b for column 8 b + j; and
`X.shape`, the numbers N and K. The configuration says so under `sparsity_config`.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from secateur.checkpoint.files import INDEX_FILE, SINGLE_FILE, check_shards, read_json, tensor_files
from secateur.errors import SecateurError
from secateur.integrations.layer_specs import QUANT_METHOD

BITMASK_FORMAT = "sparse-24-bitmask"
_LEAVES = ("compressed", "bitmask", "shape")
_DENSE_FORMATS = (None, "dense", BITMASK_FORMAT)
# Where versions of the format's library put what they did to a model.
_HOLDERS = ("quantization_config", "compression_config", "sparsity_config")
_VALUE_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def says_how_stored(config: Mapping[str, Any]) -> bool:
    """Whether a configuration says that weights are stored otherwise than plainly."""
    return any(isinstance(config.get(key), dict) for key in _HOLDERS)


def check_bitmask_config(config: Mapping[str, Any]) -> None:
    """Accept the configuration of a 2:4 checkpoint that is not quantised as well.

    Raises:
        SecateurError: it is of another format, pattern, or quantised; says what was found.
    """
    holder: dict[str, Any] = next(
        (config[key] for key in _HOLDERS if isinstance(config.get(key), dict)), {}
    )
    sparsity = holder.get("sparsity_config") or (holder if "sparsity_structure" in holder else {})
    found = sparsity.get("format") if isinstance(sparsity, dict) else None
    if found != BITMASK_FORMAT:
        method = holder.get("quant_method")
        if method == QUANT_METHOD:
            raise SecateurError("the checkpoint is compact already; --format dense makes it dense")
        raise SecateurError(
            f"expected a checkpoint with sparsity_config of format {BITMASK_FORMAT}, got "
            f"{f'format {found}' if found else f'quant_method {method}' if method else 'none'}"
        )
    structure = str(sparsity.get("sparsity_structure"))
    if structure != "2:4":
        raise SecateurError(f"expected sparsity_structure 2:4, got {structure}")
    if holder.get("config_groups") or holder.get("format") not in _DENSE_FORMATS:
        raise SecateurError(
            "the checkpoint is quantised as well (config_groups or format "
            f"{holder.get('format')}): only 16-bit and 32-bit weights can be converted"
        )


def decode_bitmask(name: str, values: Tensor, bitmask: Tensor, shape: Tensor) -> Tensor:
    """The dense weight [N, K] of one layer, zeros included.

    Args:
        name: of the layer, for messages.
        values: [N, K / 2], bf16, fp16 or fp32.
        bitmask: uint8 [N, ceil(K / 8)].
        shape: the numbers N and K.

    Raises:
        SecateurError: the tensors do not fit each other, or the weight is not 2:4.
    """
    size = shape.flatten().tolist()
    if len(size) != 2 or min(size) < 1 or size[1] % 4:
        raise SecateurError(f"{name}: expected a shape (N, K) with K divisible by 4, got {size}")
    rows, columns = size
    if values.dtype not in _VALUE_DTYPES or list(values.shape) != [rows, columns // 2]:
        raise SecateurError(
            f"{name}: expected values of 16 or 32 bits {[rows, columns // 2]}, got "
            f"{values.dtype} {list(values.shape)}"
        )
    if bitmask.dtype != torch.uint8 or list(bitmask.shape) != [rows, -(-columns // 8)]:
        raise SecateurError(
            f"{name}: expected a bitmask uint8 {[rows, -(-columns // 8)]}, got {bitmask.dtype} "
            f"{list(bitmask.shape)}"
        )
    bits = (bitmask[:, :, None] >> torch.arange(8, dtype=torch.uint8)) & 1
    keep_mask = bits.flatten(1)[:, :columns].bool()
    wrong = keep_mask.view(rows, columns // 4, 4).sum(dim=2) != 2
    if bool(wrong.any()):
        row, group = wrong.nonzero()[0].tolist()
        raise SecateurError(
            f"{name} is not 2:4: expected two kept of every four weights, got "
            f"{int(keep_mask[row, 4 * group : 4 * group + 4].sum())} in row {row} from column "
            f"{4 * group}"
        )
    return values.new_zeros(rows, columns).masked_scatter_(keep_mask, values)


def write_dense(source: Path, target: Path) -> list[str]:
    """Write a bitmask checkpoint as a plain one, with zeros: a file at a time.

    Args:
        source: the folder of the checkpoint.
        target: an empty folder.

    Returns:
        names of the layers that were 2:4, in the order of `tensor_files`.

    Raises:
        SecateurError: the checkpoint is not such a one, or not whole.
    """
    config = read_json(source / "config.json")
    check_bitmask_config(config)
    check_shards(source)
    places = tensor_files(source)
    layers = [name.removesuffix(".bitmask") for name in places if name.endswith(".bitmask")]
    for name in layers:
        _require_all_parts(name, places)
    if not layers:
        raise SecateurError(f"expected layers with bitmasks in {source}, found none")
    weight_map = {}
    for file in dict.fromkeys(places.values()):
        tensors = _dense_tensors(file, places, set(layers))
        save_file(tensors, target / file.name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, file.name))
    if set(weight_map.values()) != {SINGLE_FILE}:
        index = {"metadata": {}, "weight_map": weight_map}
        (target / INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")
    plain = {key: value for key, value in config.items() if key not in _HOLDERS}
    (target / "config.json").write_text(json.dumps(plain), encoding="utf-8")
    for path in source.iterdir():
        is_weights = ".safetensors" in path.name
        if path.is_file() and not is_weights and path.name != "config.json":
            shutil.copyfile(path, target / path.name)
    return layers


def _require_all_parts(name: str, places: Mapping[str, Path]) -> None:
    lost = [leaf for leaf in _LEAVES if f"{name}.{leaf}" not in places]
    if lost:
        raise SecateurError(f"expected {name}.{lost[0]} beside {name}.bitmask, but it is missing")
    if f"{name}.weight" in places:
        raise SecateurError(f"{name} is there twice: as weight, and as bitmask and values")


def _dense_tensors(file: Path, places: Mapping[str, Path], layers: set[str]) -> dict[str, Tensor]:
    """The tensors of one file; a layer is where its values are."""
    tensors = {}
    with safe_open(file, framework="pt") as opened:
        for tensor in opened.keys():
            name, _, leaf = tensor.rpartition(".")
            if name not in layers or leaf not in _LEAVES:
                tensors[tensor] = opened.get_tensor(tensor)
            elif leaf == "compressed":
                parts = [_read(places[f"{name}.{part}"], f"{name}.{part}") for part in _LEAVES]
                tensors[f"{name}.weight"] = decode_bitmask(name, *parts)
    return tensors


def _read(file: Path, tensor: str) -> Tensor:
    with safe_open(file, framework="pt") as opened:
        found: Tensor = opened.get_tensor(tensor)
    return found
