"""Checks of a model folder before anything of it is loaded: safe, whole, not quantised.

Secateur's own compact checkpoints pass, unless the model is to be compressed (again).
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from secateur.errors import SecateurError
from secateur.integrations.layer_specs import QUANT_METHOD

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        SecateurError: the file is missing or holds something else.
    """
    if not path.is_file():
        raise SecateurError(f"expected {path.name} in {path.parent}, but it is missing")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SecateurError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise SecateurError(f"expected a JSON object in {path}, got {type(value).__name__}")
    return value


def check_model_folder(
    folder: Path, trust_remote_code: bool = False, accept_compact: bool = True
) -> None:
    """Accept a folder that can be loaded.

    Args:
        folder: of a model.
        trust_remote_code: code that comes with it may be run.
        accept_compact: whether a compact checkpoint of Secateur's is welcome; False where the model
            is to be compressed.

    Raises:
        SecateurError: no or quantised model, code that is not trusted, pickled weights, or a
            missing or corrupt shard.
    """
    check_config(folder, trust_remote_code, accept_compact)
    check_shards(folder)


def check_config(
    folder: Path, trust_remote_code: bool = False, accept_compact: bool = True
) -> None:
    """Accept a configuration, without a look at the weights; arguments as `check_model_folder`.

    Raises:
        SecateurError: there is none, the model is quantised, or its code is not trusted.
    """
    config = read_json(folder / "config.json")
    method = _quantisation(config)
    if method == QUANT_METHOD and not accept_compact:
        raise SecateurError(
            f"{folder} is compressed already (a compact Secateur checkpoint); compress the model "
            "that it was made of, all stages in one recipe, or (unless it is without the attention "
            "or MLP of some blocks) make it dense first: secateur convert --format dense"
        )
    if method and method != QUANT_METHOD:
        raise SecateurError(
            f"{folder} is already quantised ({method}); compress the original 16-bit or 32-bit "
            "model first, and quantise the result"
        )
    if config.get("auto_map") and not trust_remote_code:
        raise SecateurError(
            f"{folder} brings its own Python code (auto_map in config.json), which is not run "
            "unless asked: read that code, then pass trust_remote_code (--trust-remote-code)"
        )


def _quantisation(config: dict[str, Any]) -> str | None:
    """The method that a model is quantised by, also where it stands in a nested configuration."""
    for holder in (config, config.get("text_config")):
        for key in ("quantization_config", "compression_config"):
            found = holder.get(key) if isinstance(holder, dict) else None
            if found:
                return str(found.get("quant_method", key)) if isinstance(found, dict) else key
    return None


def check_shards(folder: Path) -> None:
    """Every tensor that the folder promises can be read.

    Raises:
        SecateurError: weights are pickled, missing or corrupt; names the files.
    """
    expected = _expected_tensors(folder)
    for file_name, names in expected.items():
        present = _tensors_in(folder / file_name)
        lost = sorted(names - present) if names is not None else []
        if lost:
            raise SecateurError(
                f"{folder / file_name} lacks {len(lost)} tensors that {INDEX_FILE} promises, "
                f"the first is {lost[0]}"
            )


def tensor_files(folder: Path) -> dict[str, Path]:
    """The weight file of every tensor by the tensor's name, in the order of the file or the index.

    The folder was accepted by `check_shards`.
    """
    # transformers loads the single file where there is one, whatever an index says.
    if (folder / SINGLE_FILE).is_file():
        with safe_open(folder / SINGLE_FILE, framework="pt") as file:
            return dict.fromkeys(file.keys(), folder / SINGLE_FILE)
    weight_map = read_json(folder / INDEX_FILE)["weight_map"]
    return {name: folder / file_name for name, file_name in weight_map.items()}


def _expected_tensors(folder: Path) -> dict[str, set[str] | None]:
    """Weight files and the tensors that must be in each; None where no index says."""
    # transformers loads the single file where there is one, whatever an index says.
    if (folder / SINGLE_FILE).is_file():
        return {SINGLE_FILE: None}
    if (folder / INDEX_FILE).is_file():
        weight_map = read_json(folder / INDEX_FILE).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise SecateurError(f"{folder / INDEX_FILE} has no weight_map")
        files: dict[str, set[str] | None] = {}
        for tensor, file_name in weight_map.items():
            names = files.setdefault(_plain_name(str(file_name), folder), set())
            assert names is not None
            names.add(tensor)
        missing = sorted(name for name in files if not (folder / name).is_file())
        if missing:
            raise SecateurError(f"{folder} lacks the shards {', '.join(missing)}")
        return files
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise SecateurError(
            f"{folder} holds pickled weights ({pickles[0]}), which can run code when loaded and "
            "are refused; convert them to safetensors with a tool that you trust, such as "
            "transformers: load the model there and call save_pretrained"
        )
    raise SecateurError(
        f"expected {SINGLE_FILE} or {INDEX_FILE} in {folder}, found neither "
        "(weights in other formats, such as .bin, are not read)"
    )


def _plain_name(name: str, folder: Path) -> str:
    if Path(name).name != name:
        raise SecateurError(
            f"{folder / INDEX_FILE} names the shard {name!r}, which is not in the folder itself"
        )
    return name


def _tensors_in(path: Path) -> set[str]:
    try:
        # Opening checks the header and that it accounts for every byte of the file.
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except (SafetensorError, OSError) as error:
        raise SecateurError(f"{path} is corrupt or cut short: {error}") from None
