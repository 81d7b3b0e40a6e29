"""Accelerated models on the device: the same numbers, in one graph, and back."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

families = pytest.importorskip("families")
secateur = pytest.importorskip("secateur")
compact_models = pytest.importorskip("integrations.compact_models")

BF16 = torch.bfloat16
# A few roundings of two blocks, relative to the largest logit.
NEAR = 2**-5
KINDS = ["dense", "pruned", "sparse24", "low_rank", "sparse24_low_rank"]


def made(kind: str, device: torch.device) -> nn.Module:
    if kind == "dense":
        model = compact_models.in_dtype(families.tiny_model("llama"), BF16)
    elif kind == "pruned":
        model = compact_models.pruned("llama")
    else:
        model = compact_models.compressed("llama", kind)
    moved: nn.Module = model.to(device)
    return moved


def logits_of(call: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = call(input_ids=ids, use_cache=False).logits
    return logits


@pytest.fixture
def ids(device: torch.device) -> Tensor:
    moved: Tensor = compact_models.IDS.to(device)
    return moved


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_numbers_and_back(kind: str, ids: Tensor, device: torch.device) -> None:
    model = made(kind, device)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = logits_of(model, ids)
    done = secateur.accelerate(model, batch_sizes=(1, 14))
    assert {row.fused for row in done.rows} == {"", "side by side", "silu_and_mul"}
    if kind == "pruned":
        assert {row.form for row in done.rows} == {"2:4"}, "packed for its bytes"
    for row in done.rows:
        for _, kernel in row.kernels:
            assert not kernel.startswith("reference"), row
    found = logits_of(model, ids)
    assert float((found - expected).abs().max()) <= NEAR * float(expected.abs().max())
    done.undo()
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(logits_of(model, ids), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_model_in_one_graph(kind: str, ids: Tensor, device: torch.device) -> None:
    model = made(kind, device)
    secateur.accelerate(model)
    expected = logits_of(model, ids)
    torch._dynamo.reset()
    run = torch.compile(model.forward, fullgraph=True, dynamic=False)
    for _ in range(2):
        found = logits_of(run, ids)
        assert float((found - expected).abs().max()) <= NEAR * float(expected.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_fused_layers_in_a_cuda_graph(kind: str, device: torch.device) -> None:
    model = made(kind, device)
    secateur.accelerate(model)
    block = model.get_submodule("model.layers.0")
    parts = [block.get_submodule(f"self_attn.{name}_proj") for name in "qkv"]
    mlp = block.get_submodule("mlp")
    generator = torch.Generator().manual_seed(0)
    xs = [torch.randn(1, 3, 32, generator=generator).to(device, BF16) for _ in range(3)]

    def run(x: Tensor) -> Tensor:
        return torch.cat([*(part(x) for part in parts), mlp(x)], dim=-1)

    buffer = xs[0].clone()
    with torch.no_grad():
        expected = [run(x) for x in xs]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run(buffer)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = run(buffer)
        for x, right in zip(xs, expected, strict=True):
            buffer.copy_(x)
            graph.replay()
            assert torch.equal(y, right)
