"""Attention probabilities of any model, one block and one sample at a time.

Families compute them in their own modules, and kernels that are fast never form them. So the model
is set to its eager implementation for the while, whose modules return probabilities beside their
outputs, and a hook takes them from there: no family needs code of its own.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.models.blocks import BlockList, find_blocks
from secateur.models.replay import BlockCall, capture_batch
from secateur.models.trace import trace_blocks

Visit = Callable[[int, Tensor], None]
"""Given a block's index and its probabilities [heads, T, T] for one sample, in the model's dtype.
They are gone when the next ones come, unless the visitor keeps them."""


def visit_attention(
    model: nn.Module,
    samples: Sequence[Tensor],
    visit: Visit,
    block_done: Callable[[int], None] | None = None,
) -> None:
    """Show a visitor the attention probabilities of every block and head.

    All samples go through block 0, then all through block 1: kept are the hidden states of the
    samples, and one block's probabilities for one sample.

    Args:
        model: a causal language model of transformers in evaluation mode.
        samples: int64 [T] each, token ids without padding; T may differ.
        visit: called for every block, and in it for every sample in order.
        block_done: called with each block's index after its last sample.

    The model's attention implementation is as it was afterwards, whatever happens.

    Raises:
        SecateurError: the model cannot give probabilities, is in training mode, or what it gives
            is no causal softmax: a row does not sum to 1, or a token attends to a later one.
    """
    _check(model, samples)
    blocks = find_blocks(model)
    with eager_attention(model), torch.no_grad():
        forms = trace_blocks(model, blocks, {}, samples[0][None]).output_forms
        hidden, calls = _enter(model, blocks, forms, samples)
        for index, block in enumerate(blocks.modules):
            name = blocks.block_name(index)
            for number, (states, own) in enumerate(zip(hidden, calls, strict=True)):
                output, probabilities = _run_block(block, name, own[index], states)
                _check_softmax(probabilities, name)
                visit(index, probabilities)
                hidden[number] = output
            if block_done is not None:
                block_done(index)


@contextmanager
def eager_attention(model: nn.Module) -> Iterator[None]:
    """While this is open, attention is computed step by step and its probabilities are formed.

    The configurations are set, which modules read when they run: `set_attn_implementation` leaves
    out families (Falcon) that follow their configuration all the same.

    Raises:
        SecateurError: no configuration of the model names an attention implementation.
    """
    configs = _configs(model)
    if not configs:
        raise SecateurError(
            f"{type(model).__name__} cannot give attention probabilities: it has no configuration "
            "that names an attention implementation, as models of transformers have"
        )
    saved = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            config._attn_implementation = "eager"
        yield
    finally:
        # Setting one configuration sets those inside it: outer ones come first.
        for config, implementation in zip(configs, saved, strict=True):
            config._attn_implementation = implementation


def _configs(model: nn.Module) -> list[Any]:
    """Every configuration in the model that names an implementation, outer before inner."""
    found: dict[int, Any] = {}
    waiting = [getattr(module, "config", None) for module in model.modules()]
    while waiting:
        config = waiting.pop(0)
        if id(config) in found or not hasattr(config, "_attn_implementation"):
            continue
        found[id(config)] = config
        inner = (getattr(config, key, None) for key in getattr(config, "sub_configs", ()))
        waiting = [*inner, *waiting]
    return list(found.values())


def _enter(
    model: nn.Module,
    blocks: BlockList,
    forms: Sequence[int | None],
    samples: Sequence[Tensor],
) -> tuple[list[Tensor], list[tuple[BlockCall, ...]]]:
    """By sample, what enters block 0 and how every block is called."""
    hidden, calls, previous = [], [], None
    for sample in samples:
        previous = capture_batch(model, blocks, forms, sample[None], previous)
        hidden.append(previous.hidden)
        calls.append(tuple(map(_asking_for_attention, previous.calls)))
    return hidden, calls


def _asking_for_attention(call: BlockCall) -> BlockCall:
    """Some attention modules return probabilities only to who asks."""
    if "output_attentions" not in call.kwargs:
        return call
    return replace(call, kwargs={**call.kwargs, "output_attentions": True})


def _run_block(
    block: nn.Module, name: str, call: BlockCall, hidden: Tensor
) -> tuple[Tensor, Tensor]:
    """The block's output, and its probabilities [heads, T, T]."""
    length = hidden.shape[1]
    found: list[Tensor] = []

    def take(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        for item in output if isinstance(output, tuple) else ():
            # A module around another one hands on the same tensor.
            if _are_probabilities(item, length) and not any(item is other for other in found):
                found.append(item)

    inner = [module for module in block.modules() if module is not block]
    hooks = [module.register_forward_hook(take) for module in inner]
    try:
        output = call(block, hidden)
    finally:
        for hook in hooks:
            hook.remove()
    if len(found) != 1:
        raise SecateurError(
            f"expected one module of {name} to return attention probabilities [1, heads, "
            f"{length}, {length}] beside its output, but {len(found) or 'none'} did; blocks whose "
            "attention was removed, or is of a kind without probabilities, cannot be analysed"
        )
    return output, found[0][0]


def _are_probabilities(item: Any, length: int) -> bool:
    return (
        isinstance(item, Tensor)
        and item.ndim == 4
        and item.shape[0] == 1
        and item.shape[2:] == (length, length)
    )


def _check(model: nn.Module, samples: Sequence[Tensor]) -> None:
    if not samples:
        raise SecateurError("expected at least one sample of token ids, got none")
    for sample in samples:
        if sample.ndim != 1 or sample.dtype != torch.int64 or len(sample) == 0:
            raise SecateurError(
                "expected samples of token ids int64 [T] with T of at least 1, got "
                f"{sample.dtype} {list(sample.shape)}"
            )
    if any(module.training for module in model.modules()):
        raise SecateurError(
            "expected a model in evaluation mode (model.eval()), because dropout changes attention"
        )


def _check_softmax(probabilities: Tensor, name: str) -> None:
    """Refuse what is no causal softmax, such as scores, or rows that share with a sink."""
    length = probabilities.shape[-1]
    sums = probabilities.double().sum(-1)
    # Rounding to the model's dtype, and the sum that the softmax divided by, in fp32 or better.
    allowed = torch.finfo(probabilities.dtype).eps + length * torch.finfo(torch.float32).eps
    worst = float(sums.flatten()[(sums - 1).abs().flatten().argmax()])
    if not abs(worst - 1) <= allowed:
        raise SecateurError(
            f"expected the attention of {name} to sum to 1 for every token, but it sums to "
            f"{worst:.6g} for one; attention with a sink beside its tokens cannot be analysed"
        )
    if bool(probabilities.triu(1).any()):
        raise SecateurError(f"expected causal attention, but tokens of {name} attend to later ones")
