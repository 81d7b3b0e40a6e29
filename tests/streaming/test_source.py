"""Checkpoints that cannot be read block by block, and weight files that are not what they were."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny_model
from safetensors.torch import load_file, save_file
from streaming_jobs import edit_weights, save, stream
from torch import Tensor, nn

from secateur.errors import SecateurError, VerificationError
from secateur.models.measure import num_zeros, require_finite
from secateur.streaming import shards
from secateur.streaming.skeleton import (
    build_skeleton,
    modules_outside,
    outside_blocks,
    release,
    release_parameters,
)
from secateur.streaming.source import BlockSource, Held

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tiny_model("llama", 2), tmp_path / "in")


def remove_block(folder: Path) -> None:
    names = load_file(folder / "model.safetensors")
    edit_weights(folder, **{name: None for name in names if ".layers.1." in name})


FAULTS: dict[str, tuple[Any, str]] = {
    "no tensors": (
        remove_block,
        r"expected tensors named \.\.\.layers\.1\.\.\. for model\.layers\.1, but the checkpoint "
        "has none; it cannot be read block by block",
    ),
    "one missing": (
        lambda folder: edit_weights(folder, **{UP: None}),
        r"model\.layers\.1\.mlp\.up_proj\.weight cannot be read from the checkpoint block by block",
    ),
    "head missing": (
        lambda folder: edit_weights(folder, lm_head__weight=None),
        r"lm_head\.weight cannot be read from the checkpoint block by block",
    ),
    "one too many": (
        lambda folder: edit_weights(folder, model__layers__1__more__weight=torch.ones(2)),
        r"holds what its config does not ask for: 1 tensors, such as model\.layers\.1\.more\.w",
    ),
    "misshapen": (
        lambda folder: edit_weights(folder, **{UP: torch.ones(3, 5)}),
        r"holds what its config does not ask for: 1 tensors, such as .*up_proj",
    ),
    "not finite in a block": (
        lambda folder: edit_weights(folder, **{UP: torch.full((64, 32), torch.inf)}),
        r"weights, but model\.layers\.1\.mlp\.up_proj\.weight holds NaN or Inf in 2048 of 2048",
    ),
    "not finite in the head": (
        lambda folder: edit_weights(
            folder, lm_head__weight=torch.ones(128, 32).index_fill_(0, torch.tensor(5), torch.nan)
        ),
        r"finite weights, but lm_head\.weight holds NaN or Inf in 32 of 4096",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_checkpoint(folder: Path, tmp_path: Path, name: str) -> None:
    change, message = FAULTS[name]
    change(folder)
    with pytest.raises(SecateurError, match=message):
        stream(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_config_without_a_dtype(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": None}))
    with pytest.raises(SecateurError, match="configuration names no dtype"):
        stream(folder, tmp_path / "out")
    stream(folder, tmp_path / "out", dtype="float32")


def test_a_config_that_transformers_cannot_build(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "no such thing"}))
    with pytest.raises(SecateurError, match=f"transformers cannot build {folder}: "):
        stream(folder, tmp_path / "out")


def test_a_file_that_is_not_what_was_to_be_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_another(tensors: dict[str, Tensor], *rest: Any, **options: Any) -> None:
        save_file({name: tensor + 1e-3 for name, tensor in tensors.items()}, *rest, **options)

    monkeypatch.setattr(shards, "save_file", save_another)
    with pytest.raises(VerificationError, match="is not the same after it was written"):
        stream(folder, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_slices_at_odd_places_are_written_and_compared(tmp_path: Path) -> None:
    """Four numbers of 16 bits from byte 4 on: no tensor of wider numbers could begin there."""
    fused = torch.randn(10).to(torch.bfloat16)
    shards.write_shard(tmp_path, "part", {"a": fused[:2], "b": fused[2:6]})
    read = shards.read_shard(tmp_path / "part")
    assert torch.equal(read["a"], fused[:2])
    assert torch.equal(read["b"], fused[2:6])


def is_there(part: nn.Module) -> set[bool]:
    return {not parameter.is_meta for parameter in part.parameters()}


def reading_ahead() -> bool:
    """Threads of transformers, too, may be about to end."""
    return any(thread.name.startswith("read_") for thread in threading.enumerate())


@pytest.mark.parametrize("held", ["copied", "reused", "mapped"])
def test_only_what_was_asked_for_is_in_memory(folder: Path, held: Held) -> None:
    skeleton = build_skeleton(folder)
    model, blocks = skeleton.model, skeleton.blocks
    source = BlockSource(folder, model, blocks, held)
    expected = tiny_model("llama", 2).state_dict()
    assert is_there(model) == {False}
    source.load_block(1, then=0)
    assert (is_there(blocks.modules[1]), is_there(blocks.modules[0])) == ({True}, {False})
    for name, value in blocks.modules[1].state_dict().items():
        assert torch.equal(value, expected[f"model.layers.1.{name}"]), name
    release(blocks.modules[1].modules())
    assert is_there(model) == {False}
    source.load_rest()
    outside = outside_blocks(model, blocks)
    assert list(outside) == ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    assert is_there(blocks.modules) == {False}
    release_parameters(model, [outside["lm_head.weight"]])
    assert model.lm_head.weight.is_meta
    assert not model.model.norm.weight.is_meta
    release(modules_outside(model, blocks))
    assert is_there(model) == {False}
    assert reading_ahead()
    source.close()
    assert not reading_ahead()


def test_memory_is_not_overwritten_while_its_block_is_in_use(folder: Path) -> None:
    """Whatever is asked for, and asked for again."""
    skeleton = build_skeleton(folder)
    blocks = skeleton.blocks
    source = BlockSource(folder, skeleton.model, blocks, "reused")
    expected = tiny_model("llama", 2).state_dict()
    seen: set[int] = set()
    for index, then in ((0, 0), (0, 1), (0, 1), (1, 0), (0, None), (1, 0), (1, None), (0, 1)):
        source.load_block(index, then)
        # As long as this takes, the next one has been read.
        for ahead, _ in source._ahead.values():
            ahead.result()
        for name, value in blocks.modules[index].state_dict().items():
            assert torch.equal(value, expected[f"model.layers.{index}.{name}"]), name
        seen.add(next(blocks.modules[index].parameters()).data_ptr())
        release(blocks.modules[index].modules())
    source.close()
    assert len(seen) <= 3


def test_tied_weights_stay_tied_on_the_way(tmp_path: Path) -> None:
    folder = save(tiny_model("gpt2"), tmp_path / "in")
    skeleton = build_skeleton(folder)
    model = skeleton.model
    source = BlockSource(folder, model, skeleton.blocks)
    for forget in (
        lambda: release(modules_outside(model, skeleton.blocks)),
        lambda: release_parameters(model, [model.lm_head.weight]),
    ):
        source.load_rest()
        assert not model.lm_head.weight.is_meta
        assert model.lm_head.weight is model.transformer.wte.weight
        forget()
        assert model.lm_head.weight.is_meta
        assert model.lm_head.weight is model.transformer.wte.weight
    source.close()


def test_the_rest_in_files_of_at_most_a_block(folder: Path) -> None:
    skeleton = build_skeleton(folder)
    plan = shards.ShardPlan(skeleton.model, skeleton.blocks)
    block = sum(p.numel() for p in skeleton.blocks.modules[0].parameters()) * 4
    everything = 0
    for names in plan.rest:
        size = sum(skeleton.model.get_parameter(name).numel() * 4 for name in names)
        assert size <= block or len(names) == 1
        everything += size
    assert everything == (2 * 128 * 32 + 32) * 4
    total = len(plan.rest) + 2
    assert plan.rest_file(0) == f"model-00001-of-{total:05d}.safetensors"
    assert plan.block_file(1) == f"model-{total:05d}-of-{total:05d}.safetensors"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zeros_and_faults_are_counted_in_parts(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr("secateur.models.measure._ELEMENTS_AT_ONCE", 4)
    values = torch.tensor([[0.0, -0.0, 1.0], [torch.nan, 0.0, 2.0], [3.0, torch.inf, -torch.inf]])
    values = values.to(dtype)
    assert num_zeros([values, torch.zeros(2, 2), torch.ones(3)]) == 7
    with pytest.raises(SecateurError, match="but w holds NaN or Inf in 3 of 9 places"):
        require_finite("w", values.T)
    require_finite("w", values[:1])
