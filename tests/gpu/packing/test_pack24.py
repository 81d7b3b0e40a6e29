"""Fused score, select and pack: the bits of the reference, whatever the weight looks like."""

import pytest
import torch
from gpu.backends_here import skip_unless_there
from gpu.packing_checks import (
    SOURCES,
    arguments_of,
    assert_same_packing,
    awkward_weight,
    check_pack,
    check_pack_beyond_32_bits,
    check_pack_forms,
)

from secateur_kernels.pack24.op import BACKENDS, Form, pack24

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
ALL: tuple[Form, ...] = ("mask", "canonical", "fragment")
SIZES = ((1, 4), (130, 68), (72, 136), (1000, 384), (64, 2816), (256, 11008), (1024, 4096))

EVERY = pytest.mark.parametrize("backend", BACKENDS)


@EVERY
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_bits_of_the_reference(
    size: tuple[int, int], dtype: torch.dtype, backend: str, device: torch.device
) -> None:
    skip_unless_there(backend, device)
    for source in SOURCES:
        check_pack(awkward_weight(*size, dtype, device), source, "natural", backend)


@EVERY
@pytest.mark.parametrize("size", [(16, 64), (208, 200), (5632, 1024)], ids=str)
def test_gate_and_up_rows(size: tuple[int, int], backend: str, device: torch.device) -> None:
    skip_unless_there(backend, device)
    for dtype in (BF16, FP16):
        for source in SOURCES:
            check_pack(awkward_weight(*size, dtype, device), source, "gate_up", backend)


@EVERY
@pytest.mark.parametrize("size", [(1, 68), (130, 68), (1000, 384)], ids=str)
def test_memory_order(size: tuple[int, int], backend: str, device: torch.device) -> None:
    skip_unless_there(backend, device)
    for dtype in (BF16, FP16):
        check_pack_forms(awkward_weight(*size, dtype, device), backend)


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
def test_a_whole_layer_of_a_model(dtype: torch.dtype, device: torch.device) -> None:
    skip_unless_there("triton", device)
    check_pack(awkward_weight(14336, 4096, dtype, device), "input_norm", "natural", "triton")


def test_it_can_be_captured(device: torch.device) -> None:
    skip_unless_there("triton", device)
    weight = awkward_weight(256, 512, BF16, device)
    norm = arguments_of("input_norm", weight)["input_norm"].to(device)
    pack24(weight, input_norm=norm, want=ALL, backend="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        packed = pack24(weight, input_norm=norm, want=ALL, backend="triton")
    weight.copy_(awkward_weight(256, 512, BF16, device, seed=1))
    graph.replay()
    expected = pack24(weight, input_norm=norm, want=ALL, backend="reference")
    assert_same_packing(packed, expected, "replayed")


def test_more_than_2_31_elements(device: torch.device) -> None:
    skip_unless_there("triton", device)
    check_pack_beyond_32_bits(152064, 18944, BF16, device, "triton")
