"""Take blocks out of a configuration, so that every engine that reads it sees the kept ones."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from secateur.depth.draft import Draft
from secateur.depth.edits import edit
from secateur.depth.rules import COUNTS, OVERRIDES
from secateur.errors import SecateurError


def drop_from_config(config: object, dropped: Sequence[int], num_blocks: int) -> tuple[str, ...]:
    """Edit a language model's configuration in place as if `dropped` had never been there.

    Covers the number of blocks under any of its names, lists with an entry a block, lists of block
    indices, bounds such as `first_k_dense_replace`, overrides by block, and kinds that follow from
    a block's index; the tables are in `rules.py`. A configuration that can be rebuilt (`to_dict`,
    `from_dict`) is rebuilt once to see that it keeps what was written.

    Args:
        config: a text configuration of transformers, or any object with the same attributes.
        dropped: indices of the blocks to drop, in any order.
        num_blocks: how many blocks there are now.

    Returns:
        What a user should know, a sentence each.

    Raises:
        SecateurError: indices are wrong, or the configuration cannot say what the kept blocks are.
            It is unchanged then.
    """
    kept = kept_blocks(dropped, num_blocks)
    if len(kept) == num_blocks:
        return ()
    draft = Draft(_fields(config), kept, num_blocks)
    edit(draft)
    _check_count(config, draft)
    _check_rebuilt(config, draft)
    _apply(config, draft.changes)
    return tuple(draft.warnings)


def kept_blocks(dropped: Sequence[int], num_blocks: int) -> tuple[int, ...]:
    """The blocks that stay, ascending.

    Raises:
        SecateurError: an index is out of range or given twice, or no block would stay.
    """
    outside = [index for index in dropped if not 0 <= index < num_blocks]
    if outside:
        raise SecateurError(f"expected blocks to drop from 0 to {num_blocks - 1}, got {outside}")
    if len(set(dropped)) < len(dropped):
        raise SecateurError(f"expected each block to drop once, got {list(dropped)}")
    if len(dropped) == num_blocks:
        raise SecateurError(f"expected to keep a block, all {num_blocks} would be dropped")
    return tuple(index for index in range(num_blocks) if index not in set(dropped))


def _fields(config: object) -> dict[str, Any]:
    fields = dict(vars(config))
    # transformers keeps overrides by block in a private object; its property reads and writes them.
    private = fields.get("_heterogeneity_spec")
    if private is not None:
        fields[OVERRIDES[0]] = dict(private.per_layer_overrides)
    return fields


def _apply(config: object, changes: Mapping[str, Any]) -> None:
    for name, value in changes.items():
        if isinstance(getattr(type(config), name, None), property):
            setattr(config, name, value)
        else:
            # Past `__setattr__`: a check of one field would see the others half changed.
            vars(config)[name] = value


def _check_count(config: object, draft: Draft) -> None:
    """A count that is computed from a list (Nemotron-H) needs no field of its own."""
    is_computed = isinstance(getattr(type(config), COUNTS[0], None), property)
    if not is_computed and not any(name in draft.changes for name in COUNTS):
        raise SecateurError(
            f"expected a configuration whose {' or '.join(COUNTS)} is {draft.num_blocks}; "
            f"{type(config).__name__} has none"
        )


def _check_rebuilt(config: object, draft: Draft) -> None:
    to_dict, from_dict = getattr(config, "to_dict", None), getattr(config, "from_dict", None)
    if not callable(to_dict) or not callable(from_dict):
        return
    name = type(config).__name__
    trial = copy.deepcopy(config)
    try:
        _apply(trial, draft.changes)
        rebuilt = _fields(type(trial).from_dict(trial.to_dict()))  # type: ignore[attr-defined]
    except Exception as error:  # whatever a configuration class raises, it refuses these fields
        raise SecateurError(f"{name} cannot describe blocks {list(draft.kept)}: {error}") from error
    for field, value in draft.changes.items():
        if _plain(rebuilt.get(field)) != _plain(value):
            raise SecateurError(
                f"{name} cannot describe blocks {list(draft.kept)}: {field} was written as {value} "
                f"and reads back as {rebuilt.get(field)}"
            )


def _plain(value: Any) -> Any:
    """Tuples as lists: a configuration read from JSON has no tuples."""
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value
