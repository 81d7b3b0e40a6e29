"""`sparse-24-bitmask` checkpoints: decoded by another rule, and made compact from end to end."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import tiny_model
from integrations.compact_models import dense_sites, pruned
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from typer.testing import CliRunner

from secateur.checkpoint.bitmask import check_bitmask_config, decode_bitmask, write_dense
from secateur.checkpoint.verify import verify_checkpoint
from secateur.cli.app import app
from secateur.convert import convert
from secateur.errors import SecateurError
from secateur.models.swap import compressed_modules

SPARSITY = {"format": "sparse-24-bitmask", "sparsity_structure": "2:4"}
CONFIG = {"quant_method": "compressed-tensors", "format": "dense", "sparsity_config": SPARSITY}


def encoded(weight: Tensor) -> dict[str, Tensor]:
    """The three tensors of a weight, written with numpy from the format's description."""
    rows, columns = weight.shape
    kept = np.zeros((rows, columns), dtype=bool)
    for row in range(rows):
        for start in range(0, columns, 4):
            group = weight[row, start : start + 4].float().abs().numpy()
            kept[row, start + np.argsort(-group, kind="stable")[:2]] = True
    return {
        "compressed": weight[torch.from_numpy(kept)].view(rows, columns // 2),
        "bitmask": torch.from_numpy(np.packbits(kept, axis=1, bitorder="little")),
        "shape": torch.tensor([[rows], [columns]]),
    }


def folder_of(
    path: Path, edit: Callable[[dict[str, Tensor]], None] | None = None, shards: int = 1
) -> tuple[Path, Any]:
    """A tiny model as a bitmask checkpoint, and that model."""
    model = pruned("llama")
    model.save_pretrained(path)
    tensors = load_file(path / "model.safetensors")
    for site in dense_sites(model):
        weight = tensors.pop(f"{site.name}.weight")
        tensors |= {f"{site.name}.{leaf}": part for leaf, part in encoded(weight).items()}
    if edit is not None:
        edit(tensors)
    (path / "model.safetensors").unlink()
    names = sorted(tensors)
    files = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    if shards == 1:
        files = ["model.safetensors"]
    places = {name: files[index % shards] for index, name in enumerate(names)}
    for file in files:
        save_file({n: tensors[n] for n in names if places[n] == file}, path / file)
    if shards > 1:
        index = {"metadata": {}, "weight_map": places}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    edit_json(path / "config.json", quantization_config=CONFIG)
    return path, model


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("columns", [4, 8, 12, 36])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_weights_are_decoded_bit_for_bit(columns: int, dtype: torch.dtype) -> None:
    weight = torch.randn(7, columns, generator=torch.Generator().manual_seed(columns)).to(dtype)
    order = torch.rand(7, columns // 4, 4, generator=torch.Generator().manual_seed(1)).argsort(2)
    weight = weight.masked_fill((order < 2).view(7, columns), 0.0)
    weight[0] = 0.0
    parts = encoded(weight)
    assert torch.equal(decode_bitmask("x", *parts.values()), weight)


def test_the_formats_own_writer_is_understood() -> None:
    compressors = pytest.importorskip(
        "compressed_tensors.compressors.sparse_compressors.sparse_24_bitmask",
        reason="compressed-tensors up to 0.14 is not installed",
    )
    weight = pruned("llama").model.layers[0].mlp.up_proj.weight.detach()
    values, bitmask = compressors.sparse24_bitmask_compress(weight)
    shape = torch.tensor(weight.shape).reshape(-1, 1)
    assert torch.equal(decode_bitmask("x", values, bitmask, shape), weight)


@pytest.mark.parametrize(
    ("leaf", "value", "message"),
    [
        ("shape", torch.tensor([2, 6]), r"x: expected a shape \(N, K\) with K divisible by 4"),
        ("shape", torch.tensor([2]), r"got \[2\]"),
        ("compressed", torch.zeros(2, 5), r"x: expected values .* \[2, 4\], got .* \[2, 5\]"),
        ("compressed", torch.zeros(2, 4, dtype=torch.int8), "got torch.int8"),
        ("bitmask", torch.zeros(2, 2, dtype=torch.uint8), r"x: expected a bitmask uint8 \[2, 1\]"),
        ("bitmask", torch.zeros(2, 1), "got torch.float32"),
        (
            "bitmask",
            torch.tensor([[0b00110011], [0b01110001]], dtype=torch.uint8),
            "x is not 2:4: .* got 1 in row 1 from column 0",
        ),
    ],
)
def test_what_is_not_such_a_weight_is_refused(leaf: str, value: Tensor, message: str) -> None:
    weight = torch.tensor([[1.0, 2, 0, 0, 0, 0, 3, 4], [0, 1, 2, 0, 5, 0, 0, 6]])
    parts = {**encoded(weight), leaf: value}
    with pytest.raises(SecateurError, match=message):
        decode_bitmask("x", *parts.values())


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": CONFIG},
        {"compression_config": {"sparsity_config": SPARSITY, "config_groups": {}}},
        {"sparsity_config": SPARSITY},
    ],
)
def test_every_place_of_the_configuration_is_known(config: dict[str, Any]) -> None:
    check_bitmask_config(config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "got none"),
        ({"quantization_config": {"quant_method": "gptq"}}, "got quant_method gptq"),
        ({"sparsity_config": {**SPARSITY, "format": "sparse-bitmask"}}, "format sparse-bitmask"),
        (
            {"sparsity_config": {**SPARSITY, "sparsity_structure": "0:0"}},
            "sparsity_structure 2:4, got 0:0",
        ),
        (
            {"quantization_config": {**CONFIG, "config_groups": {"group_0": {}}}},
            "quantised as well",
        ),
        ({"quantization_config": {**CONFIG, "format": "marlin-24"}}, "format marlin-24"),
    ],
)
def test_other_configurations_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(SecateurError, match=message):
        check_bitmask_config(config)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_model_becomes_compact_bit_for_bit(tmp_path: Path, shards: int) -> None:
    source, model = folder_of(tmp_path / "source", shards=shards)
    (source / "notes.txt").write_text("kept out")
    report = convert(source, tmp_path / "made")
    assert all(check.passed for check in verify_checkpoint(tmp_path / "made"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "made")
    names = {site.name for site in dense_sites(model)}
    assert set(compressed_modules(loaded)) == names
    loaded.dequantize()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert report.model.source == str(source)
    assert report.size.num_zeros >= sum(site.weight.numel() // 2 for site in dense_sites(model))
    assert not list(tmp_path.glob(".*"))


def test_a_dense_checkpoint_becomes_compact_where_it_is_24(tmp_path: Path) -> None:
    model = pruned("llama")
    layers = {site.name for site in dense_sites(model)}
    left = model.model.layers[0].self_attn.q_proj
    left.weight.data.fill_(1.0)
    model.save_pretrained(tmp_path / "source")
    report = convert(tmp_path / "source", tmp_path / "made")
    assert all(check.passed for check in verify_checkpoint(tmp_path / "made"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "made")
    assert set(compressed_modules(loaded)) == layers - {"model.layers.0.self_attn.q_proj"}
    loaded.dequantize()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert report.model.source == str(tmp_path / "source")
    # Nothing is compressed twice.
    with pytest.raises(SecateurError, match="compact already; --format dense makes it dense"):
        convert(tmp_path / "made", tmp_path / "again")


def test_a_dense_checkpoint_without_a_24_layer_is_refused(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "source")
    with pytest.raises(SecateurError, match="no linear layer of the blocks is exactly 2:4: prune"):
        convert(tmp_path / "source", tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def first_layer(tensors: dict[str, Tensor], leaf: str) -> str:
    return min(name for name in tensors if name.endswith(f".{leaf}"))


def drop_shape(tensors: dict[str, Tensor]) -> None:
    del tensors[first_layer(tensors, "shape")]


def add_weight(tensors: dict[str, Tensor]) -> None:
    name = first_layer(tensors, "bitmask").removesuffix("bitmask")
    tensors[f"{name}weight"] = torch.zeros(4, 4)


def only_dense(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if name.endswith((".bitmask", ".compressed", ".shape"))]:
        del tensors[name]


def spoil_mask(tensors: dict[str, Tensor]) -> None:
    tensors[first_layer(tensors, "bitmask")][0, 0] = 7


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop_shape, "expected .*shape beside"),
        (add_weight, "is there twice"),
        (only_dense, "expected layers with bitmasks"),
        (spoil_mask, "is not 2:4"),
    ],
)
def test_faulty_checkpoints_leave_nothing(
    tmp_path: Path, edit: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    source, _ = folder_of(tmp_path / "source", edit)
    with pytest.raises(SecateurError, match=message):
        convert(source, tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_source_must_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(SecateurError, match="expected the folder of a checkpoint"):
        convert(tmp_path / "nothing", tmp_path / "made")


def test_other_files_are_copied(tmp_path: Path) -> None:
    source, model = folder_of(tmp_path / "source")
    (source / "tokenizer.model").write_bytes(b"tokens")
    (tmp_path / "dense").mkdir()
    layers = write_dense(source, tmp_path / "dense")
    assert (tmp_path / "dense" / "tokenizer.model").read_bytes() == b"tokens"
    assert set(layers) == {site.name for site in dense_sites(model)}
    assert "quantization_config" not in json.loads((tmp_path / "dense/config.json").read_text())


def test_the_command_keeps_the_tokenizer(tmp_path: Path) -> None:
    source, _ = folder_of(tmp_path / "source")
    inner = Tokenizer(models.WordLevel({"prune": 0, "roses": 1, "?": 2}, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="?").save_pretrained(source)
    result = CliRunner().invoke(app, ["convert", str(source), str(tmp_path / "made")])
    assert result.exit_code == 0, result.output
    assert AutoTokenizer.from_pretrained(tmp_path / "made")("roses prune").input_ids == [1, 0]
    again = CliRunner().invoke(app, ["convert", str(source), str(tmp_path / "made")])
    assert isinstance(again.exception, SecateurError)
    assert "is not empty" in str(again.exception)


def test_layers_outside_the_blocks_only_are_refused(tmp_path: Path) -> None:
    def head_only(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith(".compressed")]:
            layer = name.removesuffix(".compressed")
            parts = [tensors.pop(f"{layer}.{leaf}") for leaf in ("compressed", "bitmask", "shape")]
            tensors[f"{layer}.weight"] = decode_bitmask(layer, *parts)
        head = tensors.pop("lm_head.weight").masked_fill(torch.arange(32) % 4 < 2, 0.0)
        tensors |= {f"lm_head.{leaf}": part for leaf, part in encoded(head).items()}

    source, _ = folder_of(tmp_path / "source", head_only)
    with pytest.raises(SecateurError, match="in the blocks of the model, got 1 elsewhere, such as"):
        convert(source, tmp_path / "made")
