"""LoRA adapters by peft: beside the matrices while training, merged into them afterwards."""

import warnings
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateur.errors import SecateurError


@dataclass(frozen=True)
class Adapters:
    """Adapters of one rank (LoRA, arXiv 2106.09685): weight + alpha / rank * B @ A."""

    modules: tuple[str, ...]
    """Names of the linear layers."""
    rank: int = 8
    alpha: float = 16.0


def require_peft() -> Any:
    """The library, or a SecateurError that says how to get it."""
    try:
        import peft
    except ImportError:
        raise SecateurError(
            "method lora needs peft, which is not installed: pip install 'secateur[lora]'"
        ) from None
    return peft


def check_adapters(adapters: Adapters, pruned: Collection[str]) -> None:
    """Raise SecateurError where merging would fill the zeros of a pruned matrix.

    Args:
        adapters: to be added.
        pruned: names of pruned parameters.
    """
    sparse = [name for name in adapters.modules if f"{name}.weight" in pruned]
    if sparse:
        raise SecateurError(
            f"method lora adds a dense product to each matrix, and {len(sparse)} of them are "
            f"pruned, such as {sparse[0]}: merging would fill their zeros. Train the kept weights "
            "instead, by gates, linears or all"
        )


def add_adapters(model: nn.Module, adapters: Adapters, seed: int = 0) -> nn.Module:
    """A model around `model`, with adapters that take gradients and nothing else that does.

    `seed`: of the random A; B is zero. The same seed gives the same adapters.

    Raises:
        SecateurError: peft refuses a layer, as in blocks of Mamba, whose kernels read weights past
            the adapters, or takes others for it; the model is as it was.
    """
    peft = require_peft()
    config = peft.LoraConfig(
        r=adapters.rank,
        lora_alpha=adapters.alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules=list(adapters.modules),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft asks transformers by a name that is about to be replaced.
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(seed)
        try:
            adapted: nn.Module = peft.get_peft_model(model, config)
        except ValueError as error:
            _take_out(model, peft.tuners.tuners_utils.BaseTunerLayer)
            raise SecateurError(
                f"method lora: {error} Train the matrices themselves, by gates, linears or all"
            ) from None
    _require_places(adapted, adapters.modules)
    return adapted


def _require_places(adapted: Any, modules: Collection[str]) -> None:
    # Names of an MLP beside experts are, to peft, those that the experts had before transformers 5.
    inner = adapted.base_model
    found = {*inner.targeted_module_names, *getattr(inner, "targeted_parameter_names", ())}
    others, missing = sorted(found - set(modules)), sorted(set(modules) - found)
    if others or missing:
        adapted.unload()
        raise SecateurError(
            f"method lora: peft leaves out {', '.join(missing[:1]) or 'nothing'} and puts adapters "
            f"beside {', '.join(others[:1]) or 'nothing'} that was not to have any. Train the "
            "matrices themselves, by gates, linears or all"
        )


def _take_out(model: nn.Module, kind: type[Any]) -> None:
    """Undo what peft did to a model before it refused the rest."""
    for name, module in list(model.named_modules()):
        if isinstance(module, kind):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())


def merge_adapters(adapted: Any) -> None:
    """Add the products to the matrices, and take the adapters out of the model."""
    adapted.merge_and_unload()
