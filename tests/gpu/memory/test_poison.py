"""Nothing outside the arguments is read or written, nothing of the output is left unwritten."""

import pytest
import torch
from gpu.accuracy_checks import case_of
from gpu.backends_here import every_backend, skip_unless_there
from gpu.layers import BACKENDS, BOTH, LOW_RANK, SPARSE, Size
from gpu.memory_checks import (
    check_canaries,
    check_poison_at_one_column,
    check_rows_are_apart,
    check_unwritten_memory,
)

BF16, FP16 = torch.bfloat16, torch.float16
TOKENS = (1, 2, 7, 8, 9, 16, 17, 31, 33, 64, 65, 100, 128, 129, 256)

# Tails along N and K, none, several panels; enough rows to split K over blocks.
SIZES = ((4096, 4096), (1000, 384), (1024, 2816), (130, 68), (72, 200))
RANK = 90


def size_of(op: str, n: int, k: int) -> Size:
    return Size(op, n, k) if op == SPARSE else Size(op, n, k, min(RANK, n, k))


CASES = pytest.mark.parametrize(("op", "backend"), every_backend(SPARSE, LOW_RANK, BOTH))
DTYPES = (BF16, FP16)
SIZES_OF_ALL = pytest.mark.parametrize(("n", "k"), SIZES)


@CASES
@SIZES_OF_ALL
def test_surroundings_stay_as_they_are(
    n: int, k: int, op: str, backend: str, device: torch.device
) -> None:
    skip_unless_there(backend, device)
    for dtype in DTYPES:
        case = case_of(size_of(op, n, k), dtype, device, max(TOKENS))
        check_canaries(case, backend, TOKENS)


@CASES
@SIZES_OF_ALL
def test_poisoned_outputs_and_workspaces(
    n: int, k: int, op: str, backend: str, device: torch.device
) -> None:
    skip_unless_there(backend, device)
    for dtype in DTYPES:
        case = case_of(size_of(op, n, k), dtype, device, max(TOKENS))
        check_unwritten_memory(case, backend, TOKENS)


@CASES
@SIZES_OF_ALL
def test_tokens_that_are_not_finite_stay_alone(
    n: int, k: int, op: str, backend: str, device: torch.device
) -> None:
    skip_unless_there(backend, device)
    for dtype in DTYPES:
        case = case_of(size_of(op, n, k), dtype, device, max(TOKENS))
        check_rows_are_apart(case, backend, TOKENS)


@pytest.mark.parametrize("backend", BACKENDS[SPARSE])
def test_a_column_that_is_not_finite(backend: str, device: torch.device) -> None:
    skip_unless_there(backend, device)
    for dtype in DTYPES:
        case = case_of(Size(SPARSE, 1000, 384), dtype, device, 100)
        for m in case.tokens(backend, (1, 8, 33, 100)):
            check_poison_at_one_column(case, backend, m)
