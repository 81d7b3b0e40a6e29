"""Whether a compact checkpoint holds what its configuration says, and all of it was loaded.

transformers only warns of tensors that are missing or left over, and in version 5.17 does not look
at shapes where a model is quantised.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.integrations.layer_specs import CompactLayers
from secateur.models.swap import compressed_modules

# Marks what transformers has read from a file, or will tie.
LOADED = "_is_hf_initialized"
_LEAVES = ("indices", "down", "up")
# As safetensors calls them.
_FLOATS = ("BF16", "F16", "F32", "F64")
_SHOWN = 3


def check_stored(
    files: Iterable[str | Path],
    layers: CompactLayers,
    modules: Mapping[str, nn.Module],
    renaming: Callable[[str], str],
) -> None:
    """Compare the headers of weight files with the layers that the configuration lists.

    Layers of which no tensor is stored under their own name are left to `require_loaded`: other
    software may save them with a prefix.

    Args:
        files: all weight files of a checkpoint; others than safetensors are not looked at.
        layers: as in the configuration, by the names that they had in the model.
        modules: the empty layers, by the same names.
        renaming: from names in the files to those.

    Raises:
        SecateurError: tensors are missing, too many, or of another shape or type; names them.
    """
    stored = {renaming(name): header for name, header in _headers(files).items()}
    by_layer: dict[str, dict[str, tuple[tuple[int, ...], str]]] = {}
    for tensor, header in stored.items():
        layer, _, leaf = tensor.rpartition(".")
        by_layer.setdefault(layer, {})[leaf] = header
    faults: list[str] = []
    for name in layers.specs:
        if name in by_layer:
            faults += _layer_faults(name, by_layer[name], modules[name].state_dict())
    faults += [
        f"{tensor} is there, but the configuration lists its part as removed"
        for tensor in stored
        if layers.removed.holds(tensor)
    ]
    dense = [name for name in by_layer if name not in layers.specs and "weight" in by_layer[name]]
    faults += [
        f"{name}.{leaf} is there, but the configuration lists no compressed layer {name}"
        for name in dense
        for leaf in _LEAVES
        if leaf in by_layer[name]
    ]
    _raise(faults, "the weights do not fit the configuration")


def _headers(files: Iterable[str | Path]) -> dict[str, tuple[tuple[int, ...], str]]:
    found = {}
    for path in files:
        if not str(path).endswith(".safetensors"):
            continue
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                part = file.get_slice(name)
                found[name] = (tuple(part.get_shape()), part.get_dtype())
    return found


def _layer_faults(
    name: str, stored: Mapping[str, tuple[tuple[int, ...], str]], expected: Mapping[str, Tensor]
) -> list[str]:
    faults = [f"{name}.{leaf} is missing" for leaf in expected if leaf not in stored]
    faults += [f"{name}.{leaf} is not expected" for leaf in stored if leaf not in expected]
    for leaf, tensor in expected.items():
        if leaf not in stored:
            continue
        shape, dtype = stored[leaf]
        if shape != tuple(tensor.shape):
            faults.append(f"{name}.{leaf} is {list(shape)}, expected {list(tensor.shape)}")
        elif dtype not in (allowed := ("U8",) if tensor.dtype == torch.uint8 else _FLOATS):
            faults.append(f"{name}.{leaf} is {dtype}, expected {' or '.join(allowed)}")
    return faults


def shapes_of(model: nn.Module) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of every tensor that a model expects, to be given to `require_loaded`."""
    return {name: (tuple(t.shape), t.dtype) for name, t in model.state_dict().items()}


def require_loaded(
    model: nn.Module,
    expected: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    same_class: bool,
) -> None:
    """Raise SecateurError unless every tensor was read, in the shape that the model expects.

    Args:
        model: after transformers has loaded its weights, before layers are packed.
        expected: what `shapes_of` gave before.
        same_class: whether the checkpoint was saved from this class; if not, layers that only this
            class has may be new, and compressed layers alone are checked.
    """
    tensors = model.state_dict(keep_vars=True)
    if not same_class:
        inside = tuple(f"{name}." for name in compressed_modules(model))
        tensors = {name: t for name, t in tensors.items() if name.startswith(inside)}
    away = [name for name, tensor in tensors.items() if tensor.is_meta]
    _raise(
        [f"{name} is on no device" for name in away],
        "compressed models cannot be offloaded to the CPU or the disk; give a device_map without",
    )
    optional = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    tensors = {n: t for n, t in tensors.items() if not any(re.search(p, n) for p in optional)}
    marked = {name for name, tensor in tensors.items() if getattr(tensor, LOADED, False)}
    # No mark at all: this transformers does not mark what it loads.
    faults = [f"{name} is missing" for name in tensors if marked and name not in marked]
    for name, tensor in tensors.items():
        shape = tuple(tensor.shape)
        if name in expected and shape != expected[name][0]:
            faults.append(f"{name} is {list(shape)}, expected {list(expected[name][0])}")
    _raise(faults, "the weights do not fit the configuration")


def _raise(faults: Sequence[str], what: str) -> None:
    if faults:
        shown = "; ".join(faults[:_SHOWN])
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise SecateurError(f"{what}: {shown}{more}")
