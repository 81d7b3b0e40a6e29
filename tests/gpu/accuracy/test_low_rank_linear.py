"""The low-rank linear, and 2:4 plus low rank, against float64."""

import pytest
import torch
from gpu.accuracy_checks import (
    TOKENS,
    case_of,
    check_empty,
    check_epilogue_forms,
    check_epilogues,
    check_input_forms,
    check_integers,
    check_token_counts,
)
from gpu.backends_here import every_backend, skip_unless_room, skip_unless_there
from gpu.layers import BOTH, LOW_RANK, ROUND_ONCE, Size

BF16, FP16 = torch.bfloat16, torch.float16
EVERY = every_backend(LOW_RANK, BOTH)
# What `auto` chooses among.
NAMED = [(op, backend) for op, backend in EVERY if backend != "auto"]
EXACT = [(op, backend) for op, backend in EVERY if backend in ROUND_ONCE]

Sizes = tuple[int, int, int, tuple[int, ...]]
# N, K, rank of a group, rows of the groups: a quarter of the smaller side, fused q/k/v and gate/up
# with factors of their own, ranks that are padded.
SIZES: tuple[Sizes, ...] = (
    (4096, 4096, 1024, ()),
    (6144, 4096, 256, (4096, 1024, 1024)),
    (28672, 4096, 512, (14336, 14336)),
    (4096, 14336, 1024, ()),
    (3584, 18944, 128, ()),
    (1000, 384, 90, ()),
    (130, 68, 17, (100, 30)),
    (5, 12, 3, ()),
)
LARGEST: Sizes = (152064, 3584, 64, ())
GATE_UP: tuple[Sizes, ...] = ((5632, 1024, 128, (2816, 2816)), (208, 384, 20, ()))
# Of which 10 GB for the truth of all tokens, and as much for every step of a comparison.
NEEDED = 50e9
SOME_TOKENS = (1, 2, 7, 8, 16, 17, 33, 64, 100, 128, 1000)


def size_of(op: str, n: int, k: int, rank: int, groups: tuple[int, ...]) -> Size:
    gate_up = op == BOTH and (n, k, rank, groups) in GATE_UP
    return Size(op, n, k, rank, groups, "gate_up" if gate_up else "natural")


@pytest.mark.parametrize(("op", "backend"), EVERY)
@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
@pytest.mark.parametrize("size", [*SIZES, LARGEST], ids=str)
def test_every_number_of_tokens(
    size: Sizes, dtype: torch.dtype, op: str, backend: str, device: torch.device
) -> None:
    skip_unless_there(backend, device)
    if size == LARGEST:
        skip_unless_room(NEEDED, device)
    case = case_of(size_of(op, *size), dtype, device, max(TOKENS))
    check_token_counts(case, backend)


@pytest.mark.parametrize(("op", "backend"), EXACT)
@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
@pytest.mark.parametrize("size", [*SIZES, *GATE_UP], ids=str)
def test_integers_are_exact(
    size: Sizes, dtype: torch.dtype, op: str, backend: str, device: torch.device
) -> None:
    skip_unless_there(backend, device)
    case = case_of(size_of(op, *size), dtype, device, 1000, integers=True)
    check_integers(case, backend, TOKENS[:-1])


@pytest.mark.parametrize(("op", "backend"), NAMED)
@pytest.mark.parametrize("size", [*GATE_UP, SIZES[0], SIZES[1]], ids=str)
def test_epilogues(size: Sizes, op: str, backend: str, device: torch.device) -> None:
    skip_unless_there(backend, device)
    for dtype in (BF16, FP16):
        case = case_of(size_of(op, *size), dtype, device, 1000)
        check_epilogues(case, backend, SOME_TOKENS)


@pytest.mark.parametrize(("op", "backend"), NAMED)
@pytest.mark.parametrize("size", [SIZES[0], SIZES[5], SIZES[6]], ids=str)
def test_memory_order_and_dimensions(
    size: Sizes, op: str, backend: str, device: torch.device
) -> None:
    skip_unless_there(backend, device)
    for dtype in (BF16, FP16):
        case = case_of(size_of(op, *size), dtype, device, 128)
        check_empty(case.layer, dtype, device)
        for m in case.tokens(backend, (2, 8, 34, 128)):
            check_input_forms(case, backend, m)
            check_epilogue_forms(case, backend, m)
