"""Measure every candidate of given shapes on this machine: what fills dispatch's table."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur_kernels.backends import HAS_TRITON
from secateur_kernels.dispatch.candidates import candidates_to_tune, variants_to_tune
from secateur_kernels.dispatch.choice import Choice
from secateur_kernels.dispatch.problem import DeviceFacts, Op, Problem, device_facts
from secateur_kernels.dispatch.table import Entry, Measurement, Table
from secateur_kernels.errors import SecateurError
from secateur_kernels.layouts import Fragment24, LowRank
from secateur_kernels.library import library_status
from secateur_kernels.low_rank_linear.launch import launch as launch_low_rank
from secateur_kernels.sparse24_linear.launch import launch as launch_sparse24
from secateur_kernels.sparse24_linear.packed import Packed24
from secateur_kernels.timing import copies_to_rotate, time_in_turns
from secateur_kernels.version import __version__

DEFAULT_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)

_VARIED = 2
"""Of the fastest candidates that have variants."""
_Times = list[tuple[Choice, float]]
"""With microseconds."""


@dataclass(frozen=True)
class TuneShape:
    """A weight to be measured."""

    op: Op
    n: int
    k: int
    rank: int = 0

    def __str__(self) -> str:
        rank = f" rank {self.rank}" if self.rank else ""
        return f"{self.op} [{self.n}, {self.k}]{rank}"


@dataclass(frozen=True)
class _Operands:
    """Copies of everything that a call reads, so that each call can find them out of the cache."""

    packed: tuple[Packed24, ...]
    factors: tuple[LowRank, ...]
    dense: tuple[Tensor, ...]


def tune_shape(
    shape: TuneShape,
    tokens: Sequence[int] = DEFAULT_TOKENS,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cuda",
    rounds: int = 15,
    backends: Collection[str] | None = None,
) -> Iterator[tuple[Entry, list[str]]]:
    """Time all candidates of a weight at several numbers of tokens, then variants of the fastest.

    Args:
        shape: op and sizes of the weight; random values.
        tokens: numbers of tokens.
        dtype: of everything; bf16 or fp16 for 2:4.
        device: where.
        rounds: of each candidate, in turns with the others.
        backends: whose candidates are timed, beside dense; None is all. An entry says what was
            left out.

    Yields:
        for each number of tokens the entry for the table, and candidates that failed, with why.

    Raises:
        SecateurError: a size does not fit the op.
    """
    device = torch.device(device)
    _check_shape(shape)
    operands = _make_operands(shape, dtype, device)
    for m in tokens:
        facts = device_facts(device)
        problem = Problem(
            shape.op, m, shape.n, shape.k, dtype, facts, rank=shape.rank, dense_copy=True
        )
        x = torch.randn(m, shape.k, device=device).to(dtype)
        possible = candidates_to_tune(problem)
        ours = [c for c in possible if c.backend != "dense"]
        asked = [c for c in ours if backends is None or c.backend in backends]
        chosen = [Choice("dense"), *asked]
        left_out = sorted({c.backend for c in ours} - {c.backend for c in asked})
        times, failed = _time_candidates(problem, chosen, x, operands, device, rounds)
        more, failed_too = _time_variants(problem, times, x, operands, device, rounds)
        measured = [_measurement(choice, time) for choice, time in [*times, *more]]
        yield Entry.of(problem, measured, left_out), [*failed, *failed_too]


def kernels_not_there(device: DeviceFacts) -> dict[str, str]:
    """The backends of our own kernels that `tune_shape` finds no candidates of, each with why."""
    if not device.is_gpu:
        return dict.fromkeys(("cuda", "triton"), "it needs an NVIDIA GPU")
    capability = ".".join(map(str, device.capability))
    found = {}
    if not device.has_library:
        library = library_status()
        built = f"it is built for {', '.join(library.architectures)}, not for {capability}"
        found["cuda"] = built if library.loaded else library.reason
    if not device.has_triton:
        old = f"it needs compute capability 8.0, this device has {capability}"
        found["triton"] = old if HAS_TRITON else "the package triton is not installed"
    return found


def _check_shape(shape: TuneShape) -> None:
    sparse, factored = shape.op != "low_rank_linear", shape.op != "sparse24_linear"
    if min(shape.n, shape.k) < 1 or (sparse and shape.k % 4):
        raise SecateurError(f"expected N and K of at least 1, K divisible by 4, got {shape}")
    if factored and not 1 <= shape.rank <= min(shape.n, shape.k):
        raise SecateurError(f"expected a rank of 1 to min(N, K), got {shape}")


def _make_operands(shape: TuneShape, dtype: torch.dtype, device: torch.device) -> _Operands:
    weight = torch.randn(shape.n, shape.k, device=device).to(dtype) / shape.k**0.5
    packed: tuple[Packed24, ...] = ()
    factors: tuple[LowRank, ...] = ()
    if shape.op != "low_rank_linear":
        pruned = Fragment24.from_dense(weight, _keep_even_columns(weight))
        copies = copies_to_rotate(pruned.num_bytes, device)
        packed = tuple(
            Packed24.of(pruned)._replace(data=pruned.data.clone()) for _ in range(copies)
        )
    if shape.op != "sparse24_linear":
        up = torch.randn(shape.n, shape.rank, device=device).to(dtype)
        down = torch.randn(shape.rank, shape.k, device=device).to(dtype)
        low_rank = LowRank.from_factors(up, down)
        copies = len(packed) or copies_to_rotate(low_rank.num_bytes, device)
        factors = tuple(
            replace(low_rank, down=low_rank.down.clone(), up=low_rank.up.clone())
            for _ in range(copies)
        )
    dense = tuple(weight.clone() for _ in range(copies_to_rotate(weight.nbytes, device)))
    return _Operands(packed, factors, dense)


def _keep_even_columns(weight: Tensor) -> Tensor:
    mask = torch.zeros_like(weight, dtype=torch.bool)
    mask[:, ::2] = True
    return mask


def _time_candidates(
    problem: Problem,
    candidates: Sequence[Choice],
    x: Tensor,
    operands: _Operands,
    device: torch.device,
    rounds: int,
) -> tuple[_Times, list[str]]:
    """Those that run, in turns; and those that failed, with why. Dense must run."""
    choices = {str(index): choice for index, choice in enumerate(candidates)}
    calls: dict[str, Callable[[int], object]] = {}
    failed: list[str] = []
    for name, choice in choices.items():
        call = _call(problem, choice, x, operands)
        try:
            call(0)
        # A config may ask for more than a device has; the others still compete.
        except Exception as error:  # those of Triton are no RuntimeError
            if choice.backend == "dense":
                raise
            failed.append(f"{choice.backend} with {choice.config}: {error}")
        else:
            calls[name] = call
    copies = max(len(operands.packed), len(operands.factors), len(operands.dense))
    timings = time_in_turns(calls, device, copies, rounds)
    return [(choices[name], timing.median) for name, timing in timings.items()], failed


def _time_variants(
    problem: Problem,
    times: _Times,
    x: Tensor,
    operands: _Operands,
    device: torch.device,
    rounds: int,
) -> tuple[_Times, list[str]]:
    """Variants of the fastest candidates, in turns with these; to the first times of these."""
    found: _Times = []
    failed: list[str] = []
    varied = 0
    for choice, time in sorted(times, key=lambda timed: timed[1]):
        variants = variants_to_tune(problem, choice)
        if not variants or varied == _VARIED:
            continue
        varied += 1
        both = [choice, *variants]
        again, failures = _time_candidates(problem, both, x, operands, device, rounds)
        now = next((us for other, us in again if other == choice), time)
        found += [(other, us * time / now) for other, us in again if other in variants]
        failed += failures
    return found, failed


def _call(
    problem: Problem, choice: Choice, x: Tensor, operands: _Operands
) -> Callable[[int], object]:
    packed, factors, dense = operands.packed, operands.factors, operands.dense
    if choice.backend == "dense":
        return lambda i: F.linear(x, dense[i % len(dense)])
    if problem.op == "sparse24_linear":
        return lambda i: launch_sparse24(
            choice, x, packed[i % len(packed)], None, None, "none", None
        )
    return lambda i: launch_low_rank(
        choice,
        x,
        packed[i % len(packed)] if packed else None,
        *_plain(factors, i),
        None,
        None,
        "none",
    )


def _plain(copies: tuple[LowRank, ...], index: int) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    factors = copies[index % len(copies)]
    return factors.down, factors.up, factors.group_rows


def _measurement(choice: Choice, microseconds: float) -> Measurement:
    config: dict[str, Any] | None = None if choice.config is None else asdict(choice.config)
    return Measurement(choice.backend, config, microseconds)


def empty_table(device: torch.device | str) -> Table:
    """A table for a device, to which entries are added."""
    device = torch.device(device)
    facts = device_facts(device)
    versions = {"torch": torch.__version__, "secateur": __version__}
    if HAS_TRITON:
        import triton

        versions["triton"] = triton.__version__
    if torch.version.cuda:
        versions["cuda"] = torch.version.cuda
    return Table(facts.name, facts.capability, versions)
