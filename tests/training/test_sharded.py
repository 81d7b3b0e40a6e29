"""A sharded model made whole, with real DTensors on a mesh of one process."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from families import tiny_model
from small_trainings import same_values, values_of
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from secateur.models.blocks import find_blocks
from secateur.models.swap import compressed_modules
from secateur.modules import LowRankLinear
from secateur.training.pruned_weights import PrunedWeights, local_values
from secateur.training.sharded import is_sharded, make_whole, meta_copy

IDS = torch.arange(3, 19)[None]


@pytest.fixture(scope="module", autouse=True)
def _group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A group of this process alone."""
    store = dist.FileStore(str(tmp_path_factory.mktemp("store") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def shard(model: PreTrainedModel) -> None:
    """As FSDP2 does: classes of modules and parameters change in place."""
    mesh = init_device_mesh("cpu", (1,))
    for block in find_blocks(model).modules:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_a_sharded_model_made_whole(family: str) -> None:
    model = tiny_model(family)
    with torch.no_grad():
        logits = model(input_ids=IDS).logits
    before = values_of(model)
    classes = {name: type(module) for name, module in model.named_modules()}
    plain = meta_copy(model)
    assert not is_sharded(model)
    shard(model)
    assert is_sharded(model)
    assert type(model) is not classes[""]
    with torch.no_grad():
        for item in model.parameters():
            local_values(item).add_(1.0)
    make_whole(model, plain)
    assert not is_sharded(model)
    assert {name: type(module) for name, module in model.named_modules()} == classes
    after = values_of(model)
    assert same_values(after, {name: value + 1.0 for name, value in before.items()})
    with torch.no_grad():
        for name, item in model.named_parameters():
            item.copy_(before[name])
        assert torch.equal(model(input_ids=IDS).logits, logits)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == (family == "gpt2")


def test_a_copy_has_shapes_but_no_values() -> None:
    model = tiny_model("gpt2")
    copied = meta_copy(model)
    assert all(item.device.type == "meta" for item in copied.parameters())
    mine, theirs = dict(model.named_parameters()), dict(copied.named_parameters())
    assert {n: p.shape for n, p in mine.items()} == {n: p.shape for n, p in theirs.items()}
    assert copied.lm_head.weight is copied.transformer.wte.weight  # type: ignore[union-attr]
    buffers = dict(copied.named_buffers())
    assert all(buffers[name] is buffer for name, buffer in model.named_buffers())


def test_factors_that_are_shared_stay_shared() -> None:
    model = tiny_model("llama")
    mlp = model.model.layers[0].mlp
    gate = LowRankLinear.from_linear(mlp.gate_proj, 4)
    up = LowRankLinear(32, 64, gate.rank, False, shares_down_with=gate)
    mlp.gate_proj, mlp.up_proj = gate, up
    before = values_of(model)
    plain = meta_copy(model)
    shard(model)
    make_whole(model, plain)
    assert same_values(values_of(model), before)
    layers = compressed_modules(model)
    assert len(layers) == 2
    first, second = layers.values()
    assert isinstance(second, LowRankLinear)
    assert isinstance(first, LowRankLinear)
    assert second.held_down() is first.down


def test_zeros_of_a_shard() -> None:
    model = tiny_model("llama")
    name = "model.layers.0.mlp.up_proj.weight"
    with torch.no_grad():
        model.get_parameter(name)[:, ::2] = 0.0
    plain = meta_copy(model)
    shard(model)
    parameter = dict(model.named_parameters())[name]
    assert isinstance(parameter, DTensor)
    pruned = PrunedWeights([name])
    pruned.begin(model)
    with torch.no_grad():
        local_values(parameter).add_(1.0)
    pruned.apply()
    pruned.check()
    make_whole(model, plain)
    weight = model.get_parameter(name)
    assert isinstance(weight, nn.Parameter)
    assert not weight[:, ::2].any()
    assert weight[:, 1::2].all()
