"""More than 2**31 elements in x, y or the weight, more rows than a grid's second dimension has."""

import gc
from collections.abc import Iterator

import pytest
import torch
from gpu.backends_here import skip_unless_room, skip_unless_there
from gpu.layers import BOTH, LOW_RANK, SPARSE, Size
from gpu.memory_checks import BEYOND, check_large_weight, check_many_elements

# All that is alive at once, with room for what a backend unpacks: of the 139 GiB of an H200.
NEEDED = 60e9
# The reference expands weights through int64 indices, and products to fp32.
OURS = ((SPARSE, "triton"), (SPARSE, "cuda"), (SPARSE, "unpack"), (SPARSE, "auto"))
# The compiled kernel takes few tokens, so that neither x nor y gets that large.
EVERY = (
    *((op, backend) for op, backend in OURS if backend != "cuda"),
    (SPARSE, "cuda-wide"),
    (SPARSE, "cuda-tiles"),
    (LOW_RANK, "triton"),
    (LOW_RANK, "two_gemms"),
    (BOTH, "triton"),
)


@pytest.fixture(autouse=True)
def _room(device: torch.device) -> Iterator[None]:
    skip_unless_room(NEEDED, device)
    yield
    gc.collect()
    torch.cuda.empty_cache()


def size_of(op: str, n: int, k: int) -> Size:
    return Size(op, n, k) if op == SPARSE else Size(op, n, k, 16)


@pytest.mark.parametrize(("op", "backend"), EVERY)
def test_many_outputs(op: str, backend: str, device: torch.device) -> None:
    skip_unless_there(backend, device)
    n = 152064
    m = BEYOND // n + 130
    check_many_elements(size_of(op, n, 128), m, backend, torch.bfloat16, device)


@pytest.mark.parametrize(("op", "backend"), EVERY)
def test_many_inputs(op: str, backend: str, device: torch.device) -> None:
    skip_unless_there(backend, device)
    k = 18944
    m = BEYOND // k + 130
    check_many_elements(size_of(op, 80, k), m, backend, torch.bfloat16, device)


@pytest.mark.parametrize(("op", "backend"), EVERY)
def test_more_tokens_than_a_grid_has_rows(op: str, backend: str, device: torch.device) -> None:
    skip_unless_there(backend, device)
    m = 65535 * 128 + 1
    check_many_elements(size_of(op, 64, 64), m, backend, torch.float16, device)


@pytest.mark.parametrize(
    ("m", "op", "backend"),
    [(m, *which) for m in (1, 16, 64) for which in OURS]
    + [(256, SPARSE, backend) for backend in ("triton", "cuda-wide", "cuda-tiles")],
)
def test_a_large_weight(m: int, op: str, backend: str, device: torch.device) -> None:
    skip_unless_there(backend, device)
    size = Size(op, 148 * 1024, 18944)
    assert size.n * size.k > BEYOND
    check_large_weight(size, m, backend, torch.bfloat16, device)
