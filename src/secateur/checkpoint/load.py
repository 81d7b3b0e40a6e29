"""Load a model and its tokenizer from a folder or from the Hub, safetensors only."""

import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from secateur.checkpoint.files import check_config, check_model_folder, read_json
from secateur.errors import SecateurError
from secateur.integrations.transformers_quantizer import register
from secateur.settings import read_settings

DTYPES = {
    "auto": "auto",
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}

# So that `import secateur` is all that plain `from_pretrained` needs for compact checkpoints.
register()

_HUB_ID = re.compile(r"[A-Za-z0-9]\w*(?:[-.]+\w+)*/\w+(?:[-.]+\w+)*", re.ASCII)
# How transformers begins to say so; it goes on with the names of all configurations.
_NO_CAUSAL_LM = "Unrecognized configuration class"
_HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


def silence_transformers() -> None:
    """Have transformers print errors only: its bars would mix with ours, also in log files."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


@dataclass(frozen=True)
class LoadedModel:
    """A model with what belongs to it."""

    model: nn.Module
    tokenizer: Any | None
    """None where the folder has no tokenizer."""
    folder: Path | None
    """None for a model object."""
    source: str
    revision: str | None


def resolve_folder(
    source: str | Path,
    revision: str | None = None,
    trust_remote_code: bool = False,
    accept_compact: bool = True,
) -> Path:
    """The local folder of a model: itself, or a snapshot of a Hub repository.

    Raises:
        SecateurError: there is no such folder, or the Hub does not give it (offline mode is
            honoured), or what the Hub has is refused as `check_config` does. The Hub is not asked
            for what can only be a path: no `owner/name`, or in a folder that is here, unless there
            is a revision.
    """
    folder = Path(source)
    if folder.is_dir():
        if revision is not None:
            raise SecateurError(f"revision {revision} is for Hub ids, but {source} is a folder")
        return folder
    if folder.exists() or _HUB_ID.fullmatch(str(source)) is None:
        raise SecateurError(
            f"expected a model folder or a Hub id `owner/name`, got {source}{_near(folder)}"
        )
    if revision is None and folder.parent.is_dir():
        raise SecateurError(
            f"{source} is no folder, though there is a folder {folder.parent}{_near(folder)}; for "
            "the Hub's model of that name say which revision, such as main (--revision main)"
        )
    config_only = _download(str(source), revision, ["*.json"])
    # A model that will be refused is refused before its weights travel.
    check_config(config_only, trust_remote_code, accept_compact)
    return _download(str(source), revision, [*_HUB_FILES, *(["*.py"] if trust_remote_code else [])])


def _near(folder: Path) -> str:
    """Folders beside a missing one that may have been meant, in brackets."""
    try:
        beside = [entry.name for entry in folder.parent.iterdir() if entry.is_dir()]
    except OSError:
        return ""
    found = get_close_matches(folder.name, beside)
    return f" (nearest: {', '.join(str(folder.parent / name) for name in found)})" if found else ""


def _download(repository: str, revision: str | None, patterns: list[str]) -> Path:
    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=["original/*", "consolidated*"],
                local_files_only=read_settings().offline,
            )
        )
    except Exception as error:
        if read_settings().offline:
            raise SecateurError(
                f"{repository} is no folder here, and the Hub's cache on this machine does not "
                "hold it; HF_HUB_OFFLINE forbids to fetch it"
            ) from error
        first_line = str(error).strip().partition("\n")[0]
        raise SecateurError(
            f"{repository} is no folder here, and cannot be had from the Hub: {first_line}"
        ) from error


def load_model(
    source: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    accept_compact: bool = True,
) -> LoadedModel:
    """Load a causal language model on the CPU, ready for inference.

    The layers of a compact checkpoint are compressed ones, 2:4 weights packed.

    Args:
        source: a folder or a Hub id.
        revision: of the Hub repository.
        dtype: `auto` keeps the checkpoint's own, else one of `DTYPES`.
        trust_remote_code: run Python code that comes with the model.
        accept_compact: False where the model is to be compressed.

    Raises:
        SecateurError: it cannot be loaded safely and completely; says why.
    """
    if dtype not in DTYPES:
        raise SecateurError(f"expected dtype one of {', '.join(DTYPES)}, got {dtype!r}")
    folder = resolve_folder(source, revision, trust_remote_code, accept_compact)
    check_model_folder(folder, trust_remote_code, accept_compact)
    model, info = _from_pretrained(folder, DTYPES[dtype], trust_remote_code)
    faults = loading_faults(info)
    if faults:
        raise SecateurError(f"{source} does not hold what its config asks for: {'; '.join(faults)}")
    return LoadedModel(
        model.eval(), load_tokenizer(folder, trust_remote_code), folder, str(source), revision
    )


def _from_pretrained(folder: Path, dtype: Any, trust_remote_code: bool) -> tuple[Any, Any]:
    try:
        return AutoModelForCausalLM.from_pretrained(  # type: ignore[no-any-return]
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
        )
    except SecateurError as error:
        raise SecateurError(f"{folder} cannot be loaded: {error}") from None
    except Exception as error:
        if _NO_CAUSAL_LM in str(error):
            kind = read_json(folder / "config.json").get("model_type")
            raise SecateurError(
                f"expected a causal language model in {folder}, got model type {kind}, which "
                "transformers' AutoModelForCausalLM does not take"
            ) from None
        # Advice on installing transformers follows, in paragraphs of its own.
        reason = str(error).partition("\n\n")[0]
        raise SecateurError(f"transformers cannot load {folder}: {reason}") from error


def loading_faults(info: dict[str, Any]) -> list[str]:
    """What was missing, unexpected or misshapen in transformers' loading information."""
    faults = []
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        entries = [str(entry) for entry in info.get(kind) or ()]
        if entries:
            faults.append(f"{len(entries)} {kind.replace('_', ' ')}, such as {sorted(entries)[0]}")
    return faults


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> Any | None:
    """The folder's tokenizer, or None if it has none.

    Raises:
        SecateurError: it has one that cannot be loaded.
    """
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except Exception as error:
        raise SecateurError(f"the tokenizer in {folder} cannot be loaded: {error}") from error


_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
)


@dataclass(frozen=True)
class LanguageModel:
    """A model that can read and write text."""

    model: nn.Module
    tokenizer: Any


def load_with_tokenizer(
    source: str | Path,
    revision: str | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    device: str | None = None,
) -> LanguageModel:
    """`load_model`, for work that needs text: the tokenizer is there, the model on `device`.

    Raises:
        SecateurError: as `load_model`, or there is no tokenizer or no such device.
    """
    chosen = usable_device(device)
    loaded = load_model(source, revision=revision, dtype=dtype, trust_remote_code=trust_remote_code)
    if loaded.tokenizer is None:
        raise SecateurError(
            f"{source} has no tokenizer, and text cannot be turned into tokens: put the files of "
            "the original model's tokenizer beside the weights"
        )
    return LanguageModel(loaded.model.to(chosen), loaded.tokenizer)


def usable_device(device: str | torch.device | None) -> torch.device:
    """A device that tensors can be made on; None is the CPU.

    Raises:
        SecateurError: there is no such device here.
    """
    try:
        chosen = torch.device(device or "cpu")
        if chosen.type == "meta":
            raise RuntimeError("it holds no values")
        torch.zeros(1, device=chosen).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first_line = str(error).partition("\n")[0]
        raise SecateurError(f"device {device} cannot be used here: {first_line}") from None
    return chosen
