"""Kinds that follow from a block's index: what taking blocks out does to them."""

import math
from typing import Any

from secateur.depth.draft import Draft, is_list
from secateur.depth.rules import FIRST_ENTRIES, PER_BLOCK_LISTS, PHASE_RULES, PhaseRule
from secateur.errors import SecateurError


def check_phases(draft: Draft) -> None:
    """Warn where a list outdoes the rule; raise SecateurError where the rule alone decides."""
    for rule in PHASE_RULES:
        period = rule.period(draft.fields)
        if period < 2 or rule.field in draft.changes:
            continue
        after = draft.new_fields
        changed = [
            old
            for new, old in enumerate(draft.kept)
            if rule.kind(draft.fields, old) != rule.kind(after, new)
        ]
        if changed and any(is_list(draft.fields.get(name)) for name in rule.lists):
            draft.warnings.append(_disagreement(draft, rule, changed))
        elif changed:
            raise SecateurError(_phase_error(draft, rule, changed))


def _disagreement(draft: Draft, rule: PhaseRule, changed: list[int]) -> str:
    name = next(name for name in rule.lists if is_list(draft.fields.get(name)))
    return (
        f"{name} says what each block is, and {rule.field} = {draft.fields[rule.field]} now says "
        f"otherwise for {len(changed)} of {len(draft.kept)} blocks: an engine that goes by "
        f"{rule.field} computes something else"
    )


def _phase_error(draft: Draft, rule: PhaseRule, changed: list[int]) -> str:
    # Every rule that no list outdoes has to fit at the end of what is taken out.
    binding = [
        other.period(draft.fields)
        for other in PHASE_RULES
        if other.field not in draft.changes
        and not any(is_list(draft.fields.get(name)) for name in other.lists)
    ]
    period = math.lcm(*(length for length in binding if length > 0))
    return (
        f"the kind of a block follows from its index by {rule.field} = "
        f"{draft.fields[rule.field]}, and no list says it: with these blocks dropped, blocks "
        f"{changed} would become another kind. What can be dropped: the last blocks, or {period} "
        "neighbouring blocks together"
    )


def check_first_entries(draft: Draft) -> None:
    """Raise SecateurError where the first kept block would use what no block before it made."""
    for name, needed in FIRST_ENTRIES.items():
        entries = draft.changes.get(name)
        if is_list(entries) and needed in draft.fields[name] and entries[0] != needed:
            raise SecateurError(
                f"expected {name} to begin with {needed}; the first block to stay, "
                f"{draft.kept[0]}, is {entries[0]} and uses the result of a dropped one"
            )


def warn_of_broken_periods(draft: Draft) -> None:
    """Engines know the period of some families by heart (Gemma 2, gpt-oss) and ignore the list."""
    for name in PER_BLOCK_LISTS:
        before, after = draft.fields.get(name), draft.changes.get(name)
        if not is_list(before) or not is_list(after) or _is_named(draft, name):
            continue
        if _is_periodic(list(before)) and list(after) != list(before[: len(after)]):
            draft.warnings.append(
                f"{name} repeated itself and no longer does as before: an engine that derives it "
                "from a block's index, instead of reading it, computes something else"
            )


def _is_named(draft: Draft, name: str) -> bool:
    return any(warning.startswith(f"{name} says") for warning in draft.warnings)


def _is_periodic(entries: list[Any]) -> bool:
    """Whether entries repeat with a period of at most half their number."""
    return any(entries[period:] == entries[:-period] for period in range(1, len(entries) // 2 + 1))
