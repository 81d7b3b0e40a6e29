"""The 2:4 linear against float64 at sizes of real models and odd ones."""

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
    check_one_hot,
    check_token_counts,
)
from gpu.backends_here import skip_unless_room, skip_unless_there
from gpu.layers import BACKENDS, ROUND_ONCE, SPARSE, Size, random_layer

BF16, FP16 = torch.bfloat16, torch.float16
EVERY = BACKENDS[SPARSE]
# What `auto` chooses among.
NAMED = [backend for backend in EVERY if backend != "auto"]
EXACT = [backend for backend in EVERY if backend in ROUND_ONCE]

# Rows and columns of Llama, Qwen and smaller models, and sizes that nothing divides.
SIZES = [
    Size(SPARSE, *size)
    for size in (
        (4096, 4096),
        (1024, 4096),
        (6144, 4096),
        (28672, 4096),
        (4096, 14336),
        (4096, 11008),
        (5120, 13824),
        (3584, 18944),
        (1024, 2816),
        (1536, 384),
        (1000, 384),
        (130, 68),
        (1, 4),
    )
]
LARGEST = Size(SPARSE, 152064, 3584)
SMALL = [Size(SPARSE, 1000, 384), Size(SPARSE, 1024, 2816), Size(SPARSE, 130, 68)]
GATE_UP = [
    Size(SPARSE, 5632, 1024, row_order="gate_up"),
    Size(SPARSE, 208, 384, row_order="gate_up"),
]
# Of which 10 GB for the truth of all tokens, and as much for every step of a comparison.
NEEDED = 50e9
SOME_TOKENS = (1, 2, 7, 8, 16, 17, 33, 64, 100, 128, 1000)


@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
@pytest.mark.parametrize("size", [*SIZES, LARGEST], ids=str)
def test_every_number_of_tokens(
    size: Size, dtype: torch.dtype, backend: str, device: torch.device
) -> None:
    skip_unless_there(backend, device)
    if size == LARGEST:
        skip_unless_room(NEEDED, device)
    check_token_counts(case_of(size, dtype, device, max(TOKENS)), backend)


@pytest.mark.parametrize("backend", EXACT)
@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
@pytest.mark.parametrize("size", [*SIZES, *GATE_UP], ids=str)
def test_integers_are_exact(
    size: Size, dtype: torch.dtype, backend: str, device: torch.device
) -> None:
    skip_unless_there(backend, device)
    check_integers(case_of(size, dtype, device, 1000, integers=True), backend, TOKENS[:-1])


@pytest.mark.parametrize("backend", NAMED)
@pytest.mark.parametrize("size", [*SMALL, *GATE_UP], ids=str)
def test_one_hot_tokens_recover_the_weight(size: Size, backend: str, device: torch.device) -> None:
    skip_unless_there(backend, device)
    for dtype in (BF16, FP16):
        layer = random_layer(size, dtype, device)
        check_one_hot(layer, backend, (1, 8, 16, 32, 64, 128, 512, 4096))


@pytest.mark.parametrize("backend", NAMED)
@pytest.mark.parametrize("size", [*GATE_UP, Size(SPARSE, 4096, 4096), SMALL[0]], ids=str)
def test_epilogues(size: Size, backend: str, device: torch.device) -> None:
    skip_unless_there(backend, device)
    for dtype in (BF16, FP16):
        check_epilogues(case_of(size, dtype, device, 1000), backend, SOME_TOKENS)


@pytest.mark.parametrize("backend", NAMED)
@pytest.mark.parametrize("size", [Size(SPARSE, 4096, 4096), *SMALL], ids=str)
def test_memory_order_and_dimensions(size: Size, backend: str, device: torch.device) -> None:
    skip_unless_there(backend, device)
    for dtype in (BF16, FP16):
        case = case_of(size, dtype, device, 128)
        check_empty(case.layer, dtype, device)
        for m in case.tokens(backend, (2, 8, 34, 128)):
            check_input_forms(case, backend, m)
            check_epilogue_forms(case, backend, m)
