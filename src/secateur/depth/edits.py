"""The rules of `rules.py` carried out: from the fields of a configuration to the ones to change."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from secateur.depth import rules
from secateur.depth.draft import Draft, is_int, is_list
from secateur.depth.phases import check_first_entries, check_phases, warn_of_broken_periods
from secateur.errors import SecateurError


def edit(draft: Draft) -> None:
    """Fill in the changes and warnings of a draft.

    Raises:
        SecateurError: a field cannot say what the kept blocks are.
    """
    for rule in _EDITS:
        rule(draft)


def _refuse(draft: Draft) -> None:
    for name, reason in rules.REFUSED.items():
        value = draft.fields.get(name)
        if value:
            raise SecateurError(f"no block can be dropped while {name} is {value}: {reason}")


def _counts(draft: Draft) -> None:
    for name in rules.COUNTS:
        if is_int(draft.fields.get(name)) and draft.fields[name] == draft.num_blocks:
            draft.changes[name] = len(draft.kept)


def _lists(draft: Draft) -> None:
    for name in rules.PER_BLOCK_LISTS:
        value = draft.fields.get(name)
        is_pattern = name == rules.PATTERN_STRING and isinstance(value, str)
        if (is_list(value) or is_pattern) and value:
            draft.changes[name] = _filtered(draft, name, value)


def _filtered(draft: Draft, name: str, value: Any) -> Any:
    """The entries of kept blocks; entries past the last block belong to extra layers and stay."""
    if len(value) < draft.num_blocks:
        raise SecateurError(
            f"expected {name} to have an entry for each of {draft.num_blocks} blocks, it has "
            f"{len(value)}"
        )
    rest = value[draft.num_blocks :]
    if rest:
        draft.warnings.append(
            f"{name} has {len(rest)} more entries than there are blocks: they were kept at its end"
        )
    if isinstance(value, str):
        return "".join(value[index] for index in draft.kept) + rest
    return type(value)([value[index] for index in draft.kept]) + rest


def _unknown_lists(draft: Draft) -> None:
    for name, value in draft.fields.items():
        is_named_so = ("layer" in name or "block" in name) and not name.startswith("mtp_")
        has_length = is_list(value) and len(value) == draft.num_blocks
        if is_named_so and has_length and name not in _KNOWN_LISTS:
            draft.changes[name] = _filtered(draft, name, value)
            draft.warnings.append(
                f"{name} is no field that is known here; it has an entry for each block, and the "
                "entries of dropped blocks were taken out"
            )


def _index_lists(draft: Draft) -> None:
    for name in rules.INDEX_LISTS:
        value = draft.fields.get(name)
        if is_list(value):
            draft.changes[name] = type(value)(_renumbered(draft, value))
        elif isinstance(value, str) and value:
            indices = _renumbered(draft, [int(index) for index in value.split(",")])
            draft.changes[name] = ",".join(map(str, indices))


def _renumbered(draft: Draft, indices: Sequence[int]) -> list[int]:
    num_dropped = draft.num_blocks - len(draft.kept)
    places = draft.new_index
    indices = [index + draft.num_blocks if index < 0 else index for index in indices]
    # Extra layers after the last block move up by as many as were dropped.
    return [
        places[index] if index < draft.num_blocks else index - num_dropped
        for index in indices
        if index in places or index >= draft.num_blocks
    ]


def _references(draft: Draft) -> None:
    places = draft.new_index
    for name in rules.REFERENCE_LISTS:
        value = draft.fields.get(name)
        if not is_list(value):
            continue
        sources = _filtered(draft, name, value)
        missing = [
            f"{old} needs {source}"
            for old, source in zip(draft.kept, sources, strict=False)
            if source not in places
        ]
        if missing:
            raise SecateurError(
                f"{name} says that kept blocks use results of dropped ones: {', '.join(missing)}"
            )
        draft.changes[name] = type(value)([places[source] for source in sources])


def _overrides(draft: Draft) -> None:
    places = draft.new_index
    for name in rules.OVERRIDES:
        value = draft.fields.get(name)
        if isinstance(value, dict):
            draft.changes[name] = {
                type(key)(places[int(key)]): entry
                for key, entry in value.items()
                if int(key) in places
            }


def _prefix_counts(draft: Draft) -> None:
    for name in rules.PREFIX_COUNTS:
        value = draft.fields.get(name)
        if is_int(value):
            draft.changes[name] = draft.kept_below(value)
        elif is_list(value):
            draft.changes[name] = type(value)([draft.kept_below(bound) for bound in value])


def _last_indices(draft: Draft) -> None:
    for name in rules.LAST_INDICES:
        value = draft.fields.get(name)
        for bound in value if is_list(value) else (value,):
            if is_int(bound) and bound >= 0 and draft.kept_below(bound + 1) == 0:
                raise SecateurError(
                    f"{name} is {bound}, and every block up to there would be dropped; keep one"
                )
        if is_list(value):
            draft.changes[name] = type(value)([_last_index(draft, bound) for bound in value])
        elif is_int(value):
            draft.changes[name] = _last_index(draft, value)


def _last_index(draft: Draft, bound: int) -> int:
    # -1 stands for the last block, whichever that is.
    return bound if bound < 0 else draft.kept_below(bound + 1) - 1


def _depth_scaled(draft: Draft) -> None:
    for name in rules.DEPTH_SCALED:
        if draft.fields.get(name):
            ratio = len(draft.kept) / draft.num_blocks
            draft.changes[name] = draft.fields[name] * math.sqrt(ratio)


def _attention_types(draft: Draft) -> None:
    value = draft.fields.get(rules.ATTENTION_TYPES)
    if value:
        kinds = [kind for pattern, repeats in value for _ in range(repeats) for kind in pattern]
        kept = _filtered(draft, rules.ATTENTION_TYPES, kinds)
        draft.changes[rules.ATTENTION_TYPES] = [[kept, 1]]


def _sparse_step(draft: Draft) -> None:
    """Write dense blocks down explicitly where their step no longer fits."""
    step = draft.fields.get(rules.SPARSE_STEP)
    if not is_int(step) or step < 1 or rules.DENSE_LAYERS not in draft.fields:
        return
    listed = draft.fields[rules.DENSE_LAYERS] or []
    draft.changes[rules.SPARSE_STEP] = step
    is_dense = [(old + 1) % step != 0 or old in listed for old in draft.kept]
    places = _renumbered(draft, listed)
    fits = all(
        dense == ((new + 1) % step != 0 or new in places) for new, dense in enumerate(is_dense)
    )
    if not fits:
        draft.changes[rules.SPARSE_STEP] = 1
        draft.changes[rules.DENSE_LAYERS] = [new for new, dense in enumerate(is_dense) if dense]


def _next_token_layers(draft: Draft) -> None:
    for name in rules.NEXT_TOKEN_LAYERS:
        if draft.fields.get(name):
            draft.warnings.append(
                f"{name} is {draft.fields[name]}: these extra layers stay as they are, though "
                "they were trained on the output of the whole stack"
            )


_KNOWN_LISTS = frozenset(
    rules.PER_BLOCK_LISTS
    + rules.INDEX_LISTS
    + rules.REFERENCE_LISTS
    + rules.PREFIX_COUNTS
    + rules.LAST_INDICES
    + rules.CYCLES
    + (rules.ATTENTION_TYPES,)
)

# The number of blocks first: setters of later fields may look at it.
_EDITS: tuple[Callable[[Draft], None], ...] = (
    _refuse,
    _counts,
    _lists,
    _unknown_lists,
    _index_lists,
    _references,
    _overrides,
    _prefix_counts,
    _last_indices,
    _depth_scaled,
    _attention_types,
    _sparse_step,
    check_first_entries,
    check_phases,
    warn_of_broken_periods,
    _next_token_layers,
)
