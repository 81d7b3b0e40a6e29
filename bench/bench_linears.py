"""pytest-benchmark suite of linear layers, every shape at every number of tokens.

    pytest bench/bench_linears.py --benchmark-only -k "14336x4096 and 16_tokens"

The records come from `bench.linears`, which times in turns and stops in time. One round is one
replay of a captured graph that calls the layer once a copy of its weight.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch

from bench.linear_candidates import candidates_for
from bench.linear_operands import LOW_RANK, SPARSE, Operands, make_operands
from bench.shapes import SHAPES, TOKENS, WeightShape
from secateur_kernels.timing import copies_to_rotate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

NAMES = {
    SPARSE: ("dense cublas", "ours auto", "cusparselt searched [M, N]"),
    LOW_RANK: ("dense cublas", "two products cublas", "ours auto"),
}


@lru_cache(maxsize=1)
def operands_for(op: str, shape: WeightShape) -> Operands:
    return make_operands(op, shape, torch.bfloat16, torch.device("cuda"))


@pytest.mark.parametrize("tokens", TOKENS, ids=lambda tokens: f"{tokens}_tokens")
@pytest.mark.parametrize(
    ("op", "name"), [(op, name) for op, names in NAMES.items() for name in names]
)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.n}x{shape.k}")
def test_linear(benchmark: Any, shape: WeightShape, tokens: int, op: str, name: str) -> None:
    operands = operands_for(op, shape)
    x = torch.randn(tokens, shape.k, device="cuda").to(torch.bfloat16)
    found = candidates_for(operands, x)
    if name not in found.steps and name not in found.isolated:
        pytest.skip(found.notes.get(name, "not there"))
    call: Callable[[int], object] = found.isolated.get(name) or (
        lambda index: found.steps[name](x, index)
    )
    copies = copies_to_rotate(operands.num_bytes, x.device)
    benchmark.group = f"{op} {shape}, {tokens} tokens"
    benchmark.extra_info["calls"] = copies
    graph = captured(call, copies)

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    benchmark(replay)


def captured(call: Callable[[int], object], copies: int) -> torch.cuda.CUDAGraph:
    call(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for index in range(copies):
            call(index)
    return graph
