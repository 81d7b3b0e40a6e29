"""Unpacking, and exact unstructured masks: bit for bit what plain torch gives."""

import pytest
import torch
from gpu.backends_here import skip_unless_there
from gpu.packing_checks import awkward_weight, check_keep_largest, check_unpack

from secateur_kernels.threshold.op import BACKENDS as THRESHOLD_BACKENDS
from secateur_kernels.unpack24.op import BACKENDS as UNPACK_BACKENDS

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.mark.parametrize("backend", UNPACK_BACKENDS)
@pytest.mark.parametrize(
    "size",
    [(1, 4), (130, 68), (72, 136), (1000, 384), (64, 2816), (4096, 4096), (1024, 18944)],
    ids=str,
)
def test_unpack(size: tuple[int, int], backend: str, device: torch.device) -> None:
    skip_unless_there(backend, device)
    for dtype in (BF16, FP16):
        check_unpack(awkward_weight(*size, dtype, device), "natural", backend)


@pytest.mark.parametrize("backend", UNPACK_BACKENDS)
@pytest.mark.parametrize("size", [(16, 64), (208, 200), (5632, 1024)], ids=str)
def test_unpack_gate_and_up_rows(size: tuple[int, int], backend: str, device: torch.device) -> None:
    skip_unless_there(backend, device)
    for dtype in (BF16, FP16):
        check_unpack(awkward_weight(*size, dtype, device), "gate_up", backend)


@pytest.mark.parametrize("backend", THRESHOLD_BACKENDS)
@pytest.mark.parametrize(
    "size",
    [
        *((1, 1), (3, 5), (130, 68), (1000, 384), (64, 18944), (5, 28672), (4096, 4096)),
        # Not aligned, and too long to stay in registers.
        *((64, 20001), (64, 65536)),
    ],
    ids=str,
)
def test_largest_of_every_row(size: tuple[int, int], backend: str, device: torch.device) -> None:
    skip_unless_there(backend, device)
    score = awkward_weight(*size, FP32, device)
    columns = size[1]
    for keep in sorted({0, 1, columns // 3, columns // 2, columns - 1, columns}):
        check_keep_largest(score, keep, backend)


@pytest.mark.parametrize("backend", THRESHOLD_BACKENDS)
def test_largest_of_rows_in_any_memory_order(backend: str, device: torch.device) -> None:
    skip_unless_there(backend, device)
    score = awkward_weight(96, 130, FP32, device)
    for form in (score.T, score[:, 1:], score[::2], score[:, ::2]):
        check_keep_largest(form, form.shape[1] // 2, backend)
