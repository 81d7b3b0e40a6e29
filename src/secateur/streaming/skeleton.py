"""A model without its weights: every parameter on the meta device, every buffer real."""

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.core_model_loading import build_glob_alternation
from transformers.initialization import no_init_weights

from secateur.checkpoint.files import check_model_folder
from secateur.checkpoint.load import DTYPES, load_tokenizer, resolve_folder
from secateur.errors import SecateurError
from secateur.models.blocks import BlockList, find_blocks


@dataclass(frozen=True)
class Skeleton:
    """A causal language model whose weights are still on disk."""

    model: Any
    """A transformers model for inference; parameters on the meta device have shapes and dtypes."""
    blocks: BlockList
    tokenizer: Any | None
    folder: Path
    source: str
    """As the caller named it."""
    revision: str | None


def build_skeleton(
    source: str | Path, revision: str | None = None, dtype: str = "auto"
) -> Skeleton:
    """Build a model from its configuration alone.

    Args:
        source: a folder or a Hub id, whose files are then fetched.
        revision: of the Hub repository.
        dtype: of the weights once they are read; `auto` is what the configuration says.

    Raises:
        SecateurError: the folder is refused as `load_model` refuses it, or brings its own code.
    """
    if dtype not in DTYPES:
        raise SecateurError(f"expected dtype one of {', '.join(DTYPES)}, got {dtype!r}")
    folder = resolve_folder(source, revision, accept_compact=False)
    check_model_folder(folder, accept_compact=False)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        model = _without_weights(config, _dtype(config, dtype))
    except SecateurError:
        raise
    except Exception as error:
        raise SecateurError(f"transformers cannot build {folder}: {error}") from error
    # Each parameter was made anew on the meta device, also those that are one.
    model.tie_weights()
    _widen_as_on_loading(model)
    model.eval()
    return Skeleton(
        model, find_blocks(model), load_tokenizer(folder), folder, str(source), revision
    )


def _without_weights(config: Any, dtype: torch.dtype) -> Any:
    model = _built(config, dtype)
    if dtype == torch.float32:
        return model
    # On loading, transformers computes buffers in fp32, whatever the dtype of the weights; GPT-J
    # here does not. A configuration takes over the dtype that it is given.
    exact = _built(deepcopy(config), torch.float32)
    values = dict(exact.named_buffers())
    for name, buffer in model.named_buffers():
        buffer.copy_(values[name])
    return model


def _built(config: Any, dtype: torch.dtype) -> Any:
    # Weights need no values, and to draw them takes most of the time. Buffers such as rotary
    # frequencies are computed, not loaded: they are made for real.
    with init_empty_weights(include_buffers=False), no_init_weights():
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def _widen_as_on_loading(model: Any) -> None:
    """Have in fp32 what a model's class keeps so, whatever the dtype of the other weights."""
    # All that such a plan ever names is fp32.
    kept = model._get_dtype_plan(model.dtype)
    if not kept:
        return
    pattern, *_ = build_glob_alternation(list(kept))
    for name, tensor in model.state_dict(keep_vars=True).items():
        if pattern.search(name):
            tensor.data = tensor.data.float()


def _dtype(config: Any, dtype: str) -> torch.dtype:
    if dtype != "auto":
        chosen = DTYPES[dtype]
        assert isinstance(chosen, torch.dtype)
        return chosen
    own = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    if not isinstance(own, torch.dtype):
        raise SecateurError(
            "the model's configuration names no dtype for its weights; name one (--dtype)"
        )
    return own


def release(parts: Iterable[nn.Module]) -> None:
    """Forget weights: parameters are on the meta device again, buffers on the CPU.

    Args:
        parts: modules whose own parameters go, without those of their children. What is tied among
            them stays tied.
    """
    empty: dict[int, nn.Parameter] = {}
    for part in parts:
        for name, parameter in list(part.named_parameters(recurse=False)):
            # A module that comes twice: by now it could have the id of one that is gone.
            if parameter.is_meta:
                continue
            if id(parameter) not in empty:
                values = torch.empty_like(parameter, device="meta")
                empty[id(parameter)] = nn.Parameter(values, parameter.requires_grad)
            setattr(part, name, empty[id(parameter)])
        for name, buffer in list(part.named_buffers(recurse=False)):
            if not buffer.is_meta:
                setattr(part, name, buffer.cpu())


def release_parameters(model: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
    """Forget some of a model's weights, wherever they are used; they stay tied."""
    empty = {
        id(parameter): nn.Parameter(
            torch.empty_like(parameter, device="meta"), parameter.requires_grad
        )
        for parameter in parameters
    }
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) in empty:
                setattr(module, name, empty[id(parameter)])


def modules_outside(model: nn.Module, blocks: BlockList) -> list[nn.Module]:
    """The modules that belong to no block."""
    inside = {id(module) for block in blocks.modules for module in block.modules()}
    return [module for module in model.modules() if id(module) not in inside]


def outside_blocks(model: nn.Module, blocks: BlockList) -> dict[str, nn.Parameter]:
    """Parameters by name, in order, that belong to no block; tied ones once, by the first name."""
    inside = {id(parameter) for parameter in blocks.modules.parameters()}
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if id(parameter) not in inside
    }
