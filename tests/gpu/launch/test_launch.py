"""Streams, CUDA graphs, repetition and devices, for every op and backend."""

import pytest
import torch
from gpu.backends_here import every_backend, skip_unless_there
from gpu.launch_checks import (
    check_chain_graph,
    check_graph,
    check_many_graphs,
    check_other_device,
    check_repetition,
    check_side_stream,
    check_two_streams,
    inputs_for,
)
from gpu.layers import BOTH, LOW_RANK, SPARSE, Layer, Size, random_layer

from secateur_kernels import SecateurError, sparse24_linear

BF16, FP16 = torch.bfloat16, torch.float16
CASES = pytest.mark.parametrize(("op", "backend"), every_backend(SPARSE, LOW_RANK, BOTH))
# Split along K on a large GPU, tails, one block.
SIZES = ((4096, 4096), (1000, 384))
TOKENS = (1, 8, 17, 64, 129)


def tokens_of(layer: Layer, backend: str) -> list[int]:
    return [m for m in TOKENS if layer.takes(backend, m)]


def size_of(op: str, n: int, k: int) -> Size:
    return Size(op, n, k) if op == SPARSE else Size(op, n, k, 96)


@CASES
@pytest.mark.parametrize(("n", "k"), SIZES)
def test_bits_repeat(n: int, k: int, op: str, backend: str, device: torch.device) -> None:
    skip_unless_there(backend, device)
    for dtype in (BF16, FP16):
        layer = random_layer(size_of(op, n, k), dtype, device)
        for m in tokens_of(layer, backend):
            check_repetition(layer, inputs_for(layer, m, 2, dtype, device), backend)


@CASES
def test_the_current_stream_is_used(op: str, backend: str, device: torch.device) -> None:
    skip_unless_there(backend, device)
    layer = random_layer(size_of(op, 4096, 4096), BF16, device)
    for m in tokens_of(layer, backend):
        check_side_stream(layer, inputs_for(layer, m, 1, BF16, device), backend)


@CASES
def test_two_streams_at_once(op: str, backend: str, device: torch.device) -> None:
    skip_unless_there(backend, device)
    layer = random_layer(size_of(op, 4096, 4096), BF16, device)
    for m in tokens_of(layer, backend):
        check_two_streams(layer, inputs_for(layer, m, 2, BF16, device), backend)


@CASES
@pytest.mark.parametrize(("n", "k"), SIZES)
def test_a_thousand_replays(n: int, k: int, op: str, backend: str, device: torch.device) -> None:
    skip_unless_there(backend, device)
    layer = random_layer(size_of(op, n, k), BF16, device)
    for m in tokens_of(layer, backend):
        xs = inputs_for(layer, m, 4, BF16, device)
        check_graph(layer, xs, backend)
        # With poison torch's own scatter, in the reference, takes another way.
        if backend != "reference":
            check_graph(layer, xs, backend, replays=100, poison=True)


@CASES
def test_many_graphs(op: str, backend: str, device: torch.device) -> None:
    skip_unless_there(backend, device)
    layer = random_layer(size_of(op, 1000, 384), BF16, device)
    check_many_graphs(layer, inputs_for(layer, 8, 70, BF16, device), backend)


@CASES
def test_a_chain_of_layers_in_one_graph(op: str, backend: str, device: torch.device) -> None:
    skip_unless_there(backend, device)
    size = size_of(op, 1024, 1024)
    layers = [random_layer(size, BF16, device, seed=seed) for seed in range(12)]
    for m in (1, 8, 64):
        x = inputs_for(layers[0], m, 1, BF16, device)[0]
        check_chain_graph(layers, x, backend)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")
@CASES
def test_tensors_on_the_other_device(op: str, backend: str, device: torch.device) -> None:
    other = torch.device("cuda", 1 - device.index if device.index < 2 else 0)
    skip_unless_there(backend, other)
    layer = random_layer(size_of(op, 1000, 384), BF16, device)
    for m in (m for m in (1, 33, 256) if layer.takes(backend, m)):
        check_other_device(layer, inputs_for(layer, m, 1, BF16, device)[0], backend, other)


@pytest.mark.parametrize("backend", ["auto", "reference", "triton"])
def test_x_elsewhere_than_the_weight_is_refused(backend: str, device: torch.device) -> None:
    layer = random_layer(Size(SPARSE, 64, 64), BF16, device)
    assert layer.sparse is not None
    x = torch.zeros(2, 64, dtype=BF16)
    with pytest.raises(SecateurError, match="expected weight on cpu as x"):
        sparse24_linear(x, layer.sparse, backend=backend)  # type: ignore[arg-type]
