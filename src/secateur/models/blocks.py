"""Find the decoder blocks of a model: the stack that every stage works through."""

from dataclasses import dataclass

from torch import nn

from secateur.errors import SecateurError

INDEX_NAMES = frozenset(
    {"layer_idx", "layer_id", "layer_number", "layer_index", "layer_num", "block_idx"}
)
"""Attributes that hold the place of a module's block."""


@dataclass(frozen=True)
class BlockList:
    """The decoder blocks, in the order in which hidden states pass through them."""

    name: str
    """Dotted name of the list in the model, such as `model.layers`."""
    modules: nn.ModuleList

    def __len__(self) -> int:
        return len(self.modules)

    def block_name(self, index: int) -> str:
        """Dotted name of one block."""
        return f"{self.name}.{index}"


def text_config(model: nn.Module) -> object:
    """The configuration of the language model, also where it is nested in a larger one."""
    config = getattr(model, "config", None)
    getter = getattr(config, "get_text_config", None)
    return getter() if callable(getter) else config


def context_length(model: nn.Module) -> int | None:
    """Tokens that the model has positions for; None where its config names no limit."""
    limit = getattr(text_config(model), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def require_context(model: nn.Module, max_seq_length: int) -> None:
    """Raise SecateurError if a model has no positions for windows of so many tokens."""
    limit = context_length(model)
    if limit is not None and max_seq_length > limit:
        raise SecateurError(
            f"windows of {max_seq_length} tokens do not fit the model's context of {limit}; give "
            "a smaller max_seq_length"
        )


def find_blocks(model: nn.Module) -> BlockList:
    """The outermost `ModuleList` of as many blocks as the configuration says, largest first.

    Lists inside another candidate (experts of a block, say) do not count. Where blocks hold two
    layers of keys and values each (LongCat-Flash), `num_hidden_layers` counts these, and
    `num_layers` the blocks.

    Raises:
        SecateurError: no list of blocks is found.
    """
    candidates = _outermost_lists(model)
    config = text_config(model)
    expected = getattr(config, "num_hidden_layers", None)
    fitting = [entry for entry in candidates if expected is None or len(entry[1]) == expected]
    if not fitting:
        halved = getattr(config, "num_layers", None)
        fitting = [entry for entry in candidates if len(entry[1]) == halved]
    if not fitting:
        found = ", ".join(f"{name} ({len(modules)})" for name, modules in candidates) or "none"
        raise SecateurError(
            f"expected a list of {expected or 'some'} decoder blocks in {type(model).__name__}, "
            f"found module lists: {found}"
        )
    name, modules = max(fitting, key=lambda entry: _num_parameters(entry[1]))
    return BlockList(name, modules)


def _outermost_lists(model: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    found: list[tuple[str, nn.ModuleList]] = []
    for name, module in model.named_modules():
        nested = any(name.startswith(f"{outer}.") for outer, _ in found)
        if isinstance(module, nn.ModuleList) and len(module) > 0 and not nested:
            found.append((name, module))
    return found


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
