"""Where modules are: one block at a time goes to the device that computes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur_kernels.precision import dtype_name


def input_embedding(model: nn.Module) -> Tensor:
    """The input embedding [vocabulary, width].

    Raises:
        SecateurError: the model has none, so that it is no transformers language model.
    """
    getter = getattr(model, "get_input_embeddings", None)
    weight = getattr(getter(), "weight", None) if callable(getter) else None
    if not isinstance(weight, Tensor):
        raise SecateurError(
            f"expected a language model with input embeddings, but got {type(model).__name__}"
        )
    return weight


def vocabulary_size(model: nn.Module) -> int:
    """Rows of the input embedding."""
    return input_embedding(model).shape[0]


def require_one_device(model: nn.Module) -> None:
    """Raise SecateurError if a model's weights are on several devices, as `device_map` puts them.

    Blocks would be moved away from where its hooks send their inputs. Meta does not count.
    """
    devices = dict.fromkeys(str(p.device) for p in model.parameters() if not p.is_meta)
    if len(devices) > 1:
        raise SecateurError(
            f"expected a model on one device, got its weights on {', '.join(devices)}: load it "
            "without device_map; with `device` its blocks go there one at a time"
        )


def has_slow_products(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether matrices of 16 bits are multiplied many times slower there than fp32 ones.

    So they are on CPUs without instructions for them: torch then takes loops of its own.
    """
    bits16 = {torch.bfloat16: "bf16", torch.float16: "fp16"}
    if device.type != "cpu" or dtype not in bits16 or not torch.backends.mkldnn.is_available():
        return False
    # What torch itself goes by; it is not public.
    supported = getattr(torch.ops.mkldnn, f"_is_mkldnn_{bits16[dtype]}_supported", None)
    return supported is not None and not supported()


def slow_products_note(model: nn.Module, device: torch.device) -> str:
    """What to tell before a model is run in a dtype with slow products; else nothing."""
    dtype = input_embedding(model).dtype
    if not has_slow_products(dtype, device):
        return ""
    name = dtype_name(dtype)
    return f"this CPU is slow in {name}: --dtype float32, twice as large"


@contextmanager
def on_device(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Move a module to a device, and back to where it was, whatever happens."""
    home = next((parameter.device for parameter in module.parameters()), device)
    module.to(device)
    try:
        yield
    finally:
        module.to(home)


@contextmanager
def full_precision_products() -> Iterator[None]:
    """Products of fp32 matrices in fp32: TF32 would spoil Hessians (SparseGPT turns it off)."""
    saved = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(saved)
