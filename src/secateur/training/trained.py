"""Which parameters a training moves."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from secateur.errors import SecateurError
from secateur.models.inventory import Inventory, take_inventory
from secateur.models.matrix_types import in_attention
from secateur.models.swap import compressed_modules, may_be_replaced


def mlp_parameters(model: nn.Module, blocks: Sequence[int]) -> tuple[str, ...]:
    """The matrices of the MLPs, gates, experts and factors included, with their biases.

    Args:
        model: a causal language model.
        blocks: of these blocks.

    Raises:
        SecateurError: there are none.
    """
    names = tuple(name for name in _matrices(model, blocks) if not in_attention(name))
    return _not_empty(names, "a matrix in an MLP", blocks)


def linear_parameters(model: nn.Module, blocks: Sequence[int]) -> tuple[str, ...]:
    """All matrices of the blocks that multiply tokens, factors included, with their biases.

    Raises:
        SecateurError: there are none.
    """
    return _not_empty(tuple(_matrices(model, blocks)), "a matrix", blocks)


def linear_modules(model: nn.Module, blocks: Sequence[int]) -> tuple[str, ...]:
    """Names of the modules that hold one matrix each, which adapters can stand beside.

    Not those that compute something else of their matrix than a linear layer does, as DeepSeek-V4's
    products by groups.

    Raises:
        SecateurError: there are none.
    """
    inventory = take_inventory(model)
    names = tuple(
        site.name for index in blocks for site in inventory.sites[index] if may_be_replaced(site)
    )
    return _not_empty(names, "a linear layer", blocks)


def head_and_last_blocks(model: nn.Module, count: int) -> tuple[str, ...]:
    """The head and everything in the last `count` blocks (arXiv 2411.15558).

    A head that is tied to the embeddings moves them too.

    Raises:
        SecateurError: there are fewer blocks, or no head.
    """
    inventory = take_inventory(model)
    num_blocks = len(inventory.blocks)
    if count > num_blocks:
        raise SecateurError(
            f"expected at least {count} blocks to train, the model has {num_blocks}"
        )
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if callable(getter) else None
    if not isinstance(head, nn.Module):
        raise SecateurError(f"expected a head in {type(model).__name__}, found none")
    modules = [head, *inventory.blocks.modules[num_blocks - count :]]
    wanted = {id(parameter) for module in modules for parameter in module.parameters()}
    return tuple(name for name, item in model.named_parameters() if id(item) in wanted)


def blocks_near_cuts(kept: Sequence[int], num_before: int, distance: int) -> tuple[int, ...]:
    """Blocks at most `distance` from a place where blocks are missing: 1 is right beside it.

    Args:
        kept: old indices of the blocks that there are, ascending.
        num_before: how many blocks there were.
        distance: at least 1.

    Raises:
        SecateurError: no block is missing.
    """
    borders = (-1, *kept, num_before)
    cuts = [place for place in range(len(kept) + 1) if borders[place + 1] != borders[place] + 1]
    if not cuts:
        raise SecateurError(
            "expected a model with dropped blocks for near_cut, but none is missing"
        )
    near = {
        block
        for cut in cuts
        for block in range(cut - distance, cut + distance)
        if 0 <= block < len(kept)
    }
    return tuple(sorted(near))


@contextmanager
def only_trained(model: nn.Module, names: Sequence[str]) -> Iterator[int]:
    """While this is open, the parameters named take gradients and no others do.

    Yields:
        how many values are trained; tied ones count once.
    """
    before = {name: item.requires_grad for name, item in model.named_parameters()}
    wanted = set(names)
    for name, item in model.named_parameters():
        item.requires_grad_(name in wanted)
    try:
        yield sum(item.numel() for name, item in model.named_parameters() if name in wanted)
    finally:
        for name, item in model.named_parameters():
            item.requires_grad_(before.get(name, True))
            item.grad = None


def _matrices(model: nn.Module, blocks: Sequence[int]) -> Iterator[str]:
    """Names of parameters, in the order of the model, each once."""
    inventory = take_inventory(model)
    wanted = _site_parameters(inventory, blocks)
    prefixes = tuple(f"{inventory.blocks.block_name(index)}." for index in blocks)
    for name, module in compressed_modules(model).items():
        if name.startswith(prefixes):
            wanted |= {id(item) for item in module.parameters() if item.is_floating_point()}
    for name, item in model.named_parameters():
        if id(item) in wanted:
            yield name


def _site_parameters(inventory: Inventory, blocks: Sequence[int]) -> set[int]:
    wanted = set()
    for index in blocks:
        for site in inventory.sites[index]:
            wanted.add(id(site.parameter))
            bias = getattr(site.module, "bias", None)
            if site.expert is None and isinstance(bias, nn.Parameter):
                wanted.add(id(bias))
    return wanted


def _not_empty(names: tuple[str, ...], what: str, blocks: Sequence[int]) -> tuple[str, ...]:
    if not names:
        raise SecateurError(f"expected {what} to train in blocks {list(blocks)}, found none")
    return names
