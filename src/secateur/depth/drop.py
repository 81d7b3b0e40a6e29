"""Take blocks out of a model in memory, so that it computes what it will compute when reloaded."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from secateur.depth.config import drop_from_config, kept_blocks
from secateur.depth.draft import is_int
from secateur.depth.rebuild import Adopted, attributes_to_adopt
from secateur.depth.rules import COUNTS
from secateur.models.blocks import INDEX_NAMES, BlockList, text_config
from secateur.models.sublayers import removed_sublayers


@dataclass(frozen=True)
class DropOutcome:
    """What is left of a model."""

    blocks: BlockList
    """The blocks as they are now; the list given to `drop_blocks` is out of date."""
    kept: tuple[int, ...]
    """Old indices of the blocks that stayed, ascending."""
    warnings: tuple[str, ...]
    """What a user should know, a sentence each."""


def drop_blocks(model: nn.Module, blocks: BlockList, dropped: Sequence[int]) -> DropOutcome:
    """Drop blocks of a model in place, with its configuration.

    The kept blocks are the same modules with the same weights. Whatever in them holds the place of
    the block (the key-value cache goes by it) is renumbered, and scale factors that depend on the
    place get their new value, with a warning: what is saved and loaded again gives the same logits.

    Args:
        model: a causal language model; without a configuration only its blocks are changed.
        blocks: its blocks.
        dropped: indices of the blocks to drop, in any order.

    Raises:
        SecateurError: indices are wrong, or the model without these blocks cannot be described by
            its configuration. The model is unchanged then.
    """
    num_blocks = len(blocks)
    kept = kept_blocks(dropped, num_blocks)
    if len(kept) == num_blocks:
        return DropOutcome(blocks, kept, ())
    adopted = _rehearse(model, blocks, dropped, kept)
    warnings = _end_warnings(kept, num_blocks) + _scale_warnings(adopted or [])
    for config in _configs(model, num_blocks):
        warnings += drop_from_config(config, dropped, num_blocks)
    remaining = _replace_list(model, blocks, kept)
    if adopted is None:
        _renumber(remaining, kept)
    else:
        _adopt(remaining, adopted)
        _renumber_stand_ins(remaining, kept)
    return DropOutcome(remaining, kept, tuple(dict.fromkeys(warnings)))


def rehearse_drop(model: nn.Module, blocks: BlockList, dropped: Sequence[int]) -> None:
    """Raise SecateurError if `drop_blocks` would; nothing is changed."""
    _rehearse(model, blocks, dropped, kept_blocks(dropped, len(blocks)))


def _rehearse(
    model: nn.Module, blocks: BlockList, dropped: Sequence[int], kept: tuple[int, ...]
) -> list[Adopted] | None:
    """Everything that can fail, on a copy of the configuration."""
    shell = _Shell(copy.deepcopy(getattr(model, "config", None)))
    for config in _configs(shell, len(blocks)):
        drop_from_config(config, dropped, len(blocks))
    return attributes_to_adopt(model, shell.config, blocks, kept)


class _Shell(nn.Module):
    """A configuration where `text_config` looks for one."""

    def __init__(self, config: object) -> None:
        super().__init__()
        self.config = config


def _configs(model: nn.Module, num_blocks: int) -> list[object]:
    """The text configuration, and the whole one where it repeats the number of blocks."""
    text, whole = text_config(model), getattr(model, "config", None)
    if text is None:
        return []
    repeats = whole is not text and any(vars(whole).get(name) == num_blocks for name in COUNTS)
    return [text, whole] if repeats else [text]


def _replace_list(model: nn.Module, blocks: BlockList, kept: tuple[int, ...]) -> BlockList:
    remaining = nn.ModuleList([blocks.modules[index] for index in kept])
    remaining.training = blocks.modules.training
    parent_name, _, child = blocks.name.rpartition(".")
    setattr(model.get_submodule(parent_name), child, remaining)
    _update_counts(model, parent_name, len(blocks), len(kept))
    return BlockList(blocks.name, remaining)


def _update_counts(model: nn.Module, parent_name: str, before: int, after: int) -> None:
    """Modules around the list that keep the number of blocks for themselves (CTRL)."""
    path = parent_name.split(".") if parent_name else []
    for length in range(len(path) + 1):
        module = model.get_submodule(".".join(path[:length]))
        for name in COUNTS:
            if is_int(vars(module).get(name)) and vars(module)[name] == before:
                setattr(module, name, after)


def _renumber(blocks: BlockList, kept: tuple[int, ...]) -> None:
    """By name, where no rebuilt model says which attributes hold an index."""
    for place, (block, index) in enumerate(zip(blocks.modules, kept, strict=True)):
        for module in block.modules():
            for name in INDEX_NAMES & vars(module).keys():
                if is_int(vars(module)[name]) and vars(module)[name] == index:
                    setattr(module, name, place)


def _adopt(blocks: BlockList, adopted: list[Adopted]) -> None:
    for item in adopted:
        module = dict(blocks.modules[item.block].named_modules()).get(item.module)
        if module is not None and item.name in vars(module):
            setattr(module, item.name, item.after)


def _renumber_stand_ins(blocks: BlockList, kept: tuple[int, ...]) -> None:
    """What stands for a removed attention may keep the index elsewhere than attention did."""
    for place, (block, index) in enumerate(zip(blocks.modules, kept, strict=True)):
        for module in removed_sublayers(block).values():
            if module.layer_idx == index:
                module.layer_idx = place


def _scale_warnings(adopted: list[Adopted]) -> list[str]:
    names = {
        item.full_name
        for item in adopted
        if isinstance(item.before, float)
        and isinstance(item.after, float)
        and not math.isclose(item.before, item.after, rel_tol=1e-9)
    }
    return [
        f"{name} depends on how many blocks come before a block: blocks after the first dropped "
        "one now compute with another value"
        for name in sorted(names)
    ]


def _end_warnings(kept: tuple[int, ...], num_blocks: int) -> list[str]:
    warnings = []
    if kept[0] != 0:
        warnings.append(
            "block 0 was dropped: it turns embeddings into what later blocks expect, and few "
            "models are of use without it"
        )
    if kept[-1] != num_blocks - 1:
        warnings.append(
            f"the last block, {num_blocks - 1}, was dropped: the head was trained on its output"
        )
    return warnings
