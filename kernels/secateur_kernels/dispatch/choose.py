"""The choice itself: pure, so that it can be printed, tested and repeated."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from math import inf, log2
from typing import Any

from secateur_kernels.dispatch.candidates import (
    candidates,
    config_from,
    configs_to_tune,
    variants_to_tune,
)
from secateur_kernels.dispatch.choice import Choice, Policy
from secateur_kernels.dispatch.problem import Problem
from secateur_kernels.dispatch.table import Entry, Measurement, Table
from secateur_kernels.precision import dtype_name

# A shape that was not measured borrows the times of one whose N and K differ by less than this
# factor each.
_SIMILAR = 2.0
# A dense copy is worth its memory from here on.
_DENSE_GAIN = 1.03


def choose(problem: Problem, table: Table | None) -> Choice:
    """Backend and config for a problem.

    Where the table holds the shape, or one alike, the fastest candidate that is there wins;
    elsewhere rules of thumb decide, and the reason says so.

    Args:
        problem: the facts.
        table: measured times of the problem's device, or None.

    Returns:
        the choice with its reason.
    """
    possible = {choice.backend: choice for choice in reversed(candidates(problem))}
    entry, how = _entry_for(problem, table)
    if entry is not None:
        timed = [m for m in entry.measurements if m.backend in possible]
        if timed:
            best = min(timed, key=lambda measurement: measurement.microseconds)
            config = _config_for(problem, entry, best)
            return Choice(best.backend, config, f"fastest of {_listed(entry)}, {how}")
    first = candidates(problem)[0]
    return Choice(first.backend, first.config, f"{first.reason} (a rule of thumb: {how})")


def wants_dense_copy(
    problem: Problem, table: Table | None, policy: Policy, tokens: Sequence[int]
) -> tuple[bool, str]:
    """Whether a dense copy should be kept beside the packed weight, and why.

    Args:
        problem: any number of tokens.
        table: measured times of the device.
        policy: `memory` never keeps one.
        tokens: the numbers of tokens that matter.

    Returns:
        the decision and its reason, in words.
    """
    if policy == "memory":
        return False, "policy memory: one packed copy"
    for m in tokens:
        entry, how = _entry_for(replace(problem, m=m), table)
        if entry is None:
            continue
        dense = [x.microseconds for x in entry.measurements if x.backend == "dense"]
        packed = [x.microseconds for x in entry.measurements if x.backend != "dense"]
        if dense and packed and min(packed) > _DENSE_GAIN * min(dense):
            return True, f"dense is faster at {m} tokens ({_listed(entry)}, {how})"
    return False, "dense is nowhere faster by 3% in what was measured"


def gain_over_dense(problem: Problem, table: Table | None) -> tuple[float | None, str]:
    """How many times faster than torch's dense product a problem is, as measured.

    Args:
        problem: the facts; backends that are not there do not count.
        table: measured times of the problem's device, or None.

    Returns:
        dense time over that of the fastest candidate, and the times in words; None and why where
        both were not timed for this shape or one alike.
    """
    entry, how = _entry_for(problem, table)
    if entry is None:
        return None, how
    possible = {choice.backend for choice in candidates(replace(problem, dense_copy=False))}
    dense = [x.microseconds for x in entry.measurements if x.backend == "dense"]
    packed = [x.microseconds for x in entry.measurements if x.backend in possible - {"dense"}]
    if not (dense and packed):
        return None, f"not timed beside dense, {how}"
    return min(dense) / min(packed), f"{_listed(entry)}, {how}"


def _entry_for(problem: Problem, table: Table | None) -> tuple[Entry | None, str]:
    """The entry whose times stand for the problem, and in what relation it is to it."""
    if table is None or table.device != problem.device.name:
        return None, f"nothing measured on {problem.device.name}; secateur tune does"
    dtype = dtype_name(problem.dtype)
    alike = [
        entry
        for entry in table.entries
        if (entry.op, entry.dtype, entry.groups) == (problem.op, dtype, problem.groups)
        and _distance(problem, entry) < inf
    ]
    if not alike:
        return None, f"no shape like it was measured on {table.device}"
    nearest = min(_distance(problem, entry) for entry in alike)
    same_shape = [entry for entry in alike if _distance(problem, entry) == nearest]
    # A kernel's time hardly depends on M within a tile: the next larger measured M stands for it.
    larger = [entry for entry in same_shape if entry.m >= problem.m]
    if larger:
        entry = min(larger, key=lambda e: e.m)
    else:
        entry = max(same_shape, key=lambda e: e.m)
    how = f"measured at {entry.m} tokens"
    if nearest:
        how += f" for [{entry.n}, {entry.k}]" + (f" rank {entry.rank}" if entry.rank else "")
    return entry, how


def _config_for(problem: Problem, entry: Entry, best: Measurement) -> Any:
    """The config that was measured, or for another size the likeliest of those that can run.

    How the work is divided depends on the size: whole clusters of thread blocks, say, are as many
    as there are blocks of rows. When weights are asked for stays as it was where that is possible.
    """
    measured = best.config
    same = (entry.m, entry.n, entry.k, entry.rank) == (
        problem.m,
        problem.n,
        problem.k,
        problem.rank,
    )
    if same or measured is None:
        return config_from(problem.op, best.backend, measured)

    def likeness(config: Any) -> tuple[bool, int]:
        fields = asdict(config)
        equal = sum(fields.get(name) == value for name, value in measured.items())
        return fields.get("kernel") == measured.get("kernel"), equal

    # The first of those that are equally alike: the most promising comes first.
    division = max(configs_to_tune(problem, best.backend), key=likeness)
    variants = variants_to_tune(problem, Choice(best.backend, division))
    return max((division, *(variant.config for variant in variants)), key=likeness)


def _distance(problem: Problem, entry: Entry) -> float:
    """Sum of the factors between the sizes, in octaves; infinite where one is beyond reach."""
    pairs = [(problem.n, entry.n), (problem.k, entry.k)]
    if problem.rank or entry.rank:
        pairs.append((problem.rank, entry.rank))
    if any(min(pair) == 0 for pair in pairs):
        return inf
    octaves = [abs(log2(ours / theirs)) for ours, theirs in pairs]
    return sum(octaves) if max(octaves) < log2(_SIMILAR) else inf


def _listed(entry: Entry) -> str:
    best: dict[str, Measurement] = {}
    for measurement in sorted(entry.measurements, key=lambda m: m.microseconds):
        best.setdefault(measurement.backend, measurement)
    return ", ".join(f"{name} {m.microseconds:.1f} us" for name, m in best.items())
