"""Ready a model in memory to be written as a compact checkpoint."""

from typing import Any

from torch import nn

from secateur.errors import SecateurError
from secateur.integrations.transformers_quantizer import guard_saving, mark_compressed
from secateur.models.sublayers import removed_sublayers
from secateur.models.swap import compressed_modules, convert_sparse24, pack_layers


def needs_own_format(model: nn.Module) -> bool:
    """Whether a model holds compressed layers, or lacks parts that a plain model has."""
    return bool(compressed_modules(model) or removed_sublayers(model))


def make_compact(model: Any) -> list[str]:
    """Make compressed layers of all that can be, and have the configuration list them.

    Dense linear layers that are exactly 2:4 become 2:4 layers, packed where their dtype is bf16 or
    fp16: the very layers that will be loaded, so that logits recorded now are those of the
    checkpoint. Layers of factors and removed parts of blocks are listed as they are. Then
    `save_pretrained` writes a compact checkpoint.

    Args:
        model: a transformers model with zeros or factors, changed in place.

    Returns:
        names of the compressed layers and removed parts, all of them.

    Raises:
        SecateurError: nothing can be stored compactly, or a layer cannot be saved so.
    """
    convert_sparse24(model)
    pack_layers(model)
    names = mark_compressed(model)
    if not names:
        raise SecateurError(
            "expected a model with 2:4 or low-rank layers, or without the attention or MLP of "
            f"some blocks, to write compactly, but {type(model).__name__} is none"
        )
    return names


def describe_when_saved(model: Any) -> None:
    """Have a model's own `save_pretrained` list its compressed layers and removed parts.

    Without it transformers would write tensors that it cannot place when it reads them again. The
    model and its configuration stay as they are until then.

    Args:
        model: in memory, with layers as `needs_own_format` finds them.

    Raises:
        SecateurError: the model is quantised by something else.
    """
    guard_saving(model)
