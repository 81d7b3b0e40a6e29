"""Compact checkpoints through Secateur's own doors: write, load, verify, never compress again."""

import json
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import VOCAB_SIZE, tiny_model
from integrations.compact_models import (
    assert_same,
    dense_sites,
    edit_config,
    in_dtype,
    make_low_rank,
    pruned,
    spoil,
    taking_a_weight,
)
from torch import Tensor, nn
from transformers import PreTrainedModel

from secateur.checkpoint.compact import make_compact
from secateur.checkpoint.files import check_config, check_model_folder
from secateur.checkpoint.fingerprint import fingerprint
from secateur.checkpoint.load import load_model
from secateur.checkpoint.manifest import write_manifest
from secateur.checkpoint.verify import require_same_model, verify_checkpoint
from secateur.checkpoint.write import write_checkpoint
from secateur.compress import compress_with_report
from secateur.errors import SecateurError, VerificationError
from secateur.models.measure import num_bytes
from secateur.models.swap import (
    compressed_modules,
    replace_module,
    unpack_layers,
)
from secateur.modules import LowRankLinear
from secateur.modules.weight24 import Weight24Module
from secateur.prepare import open_model
from secateur.recipe import recipe_from_dict
from secateur.report.record import FactoredLayer, FactorRecord, Report

RECIPE: dict[str, Any] = {
    "stages": [
        {"stage": "prune", "method": "wanda", "pattern": "2:4", "ignore": ["re:.*o_proj"]},
        {"stage": "drop_blocks", "blocks": [1]},
    ]
}
MAGNITUDE = {"stages": [{"stage": "prune", "method": "magnitude", "pattern": "2:4"}]}
DOWN = "model.layers.1.mlp.down_proj"


def some_ids() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, VOCAB_SIZE, (8, 16), generator=generator)


def factor_record(names: list[str], rank: int) -> FactorRecord:
    layer = FactoredLayer(
        name="", block=0, shape=(32, 32), rank=rank, num_parameters=0, output_error=None,
        num_tokens=0, seconds=0.0,
    )  # fmt: skip
    return FactorRecord(
        method="svd",
        budget=None,
        layers=tuple(replace(layer, name=name, block=int(name.split(".")[2])) for name in names),
        blocks=(),
        seconds=0.0,
    )


def written(folder: Path, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    """Two blocks of three: 2:4 but for o_proj, which has factors; as compress would do it."""
    given = in_dtype(tiny_model("llama", 3), dtype)
    model, report = compress_with_report(given, RECIPE, calibration=some_ids())
    names = [site.name for site in dense_sites(model) if site.name.endswith("o_proj")]
    for site in dense_sites(model):
        if site.name in names:
            make_low_rank(model, site)
    assert make_compact(model) == list(compressed_modules(model))
    record = factor_record(names, 9)

    def make_report() -> Report:
        probe = fingerprint(model)
        return replace(report, stages=(*report.stages, record), verification=probe)

    write_checkpoint(model, None, recipe_from_dict(RECIPE), make_report, folder)
    assert isinstance(model, PreTrainedModel)
    return model


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "model"
    written(folder)
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """A checkpoint to be spoilt."""
    return Path(shutil.copytree(good, tmp_path / "model"))


def failed(folder: Path, *names: str) -> str:
    """The details of the checks that failed, and that these are the ones."""
    found = {check.name: check.detail for check in verify_checkpoint(folder) if not check.passed}
    assert list(found) == list(names)
    return "; ".join(found.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_written_checkpoint_loads_and_verifies(dtype: torch.dtype, tmp_path: Path) -> None:
    model = written(tmp_path / "out", dtype)
    loaded = load_model(tmp_path / "out").model
    assert_same(model, loaded)
    layers = compressed_modules(loaded)
    assert len(layers) == 14
    packed = {layer.is_packed for layer in layers.values() if isinstance(layer, Weight24Module)}
    assert packed == {dtype == torch.bfloat16}
    checks = verify_checkpoint(tmp_path / "out")
    assert [check.name for check in checks if check.passed] == [
        "manifest",
        "reload",
        "pattern",
        "logits",
    ]
    assert checks[-1].detail == "identical, bit for bit, to those recorded"


def test_it_is_as_small_as_it_says(good: Path) -> None:
    weights = sum(path.stat().st_size for path in good.glob("*.safetensors"))
    model = load_model(good).model
    # Beside the tensors a header of names.
    assert 0 < weights - num_bytes(model) < 128 * len(model.state_dict())


def test_it_is_refused_where_a_model_is_to_be_compressed(folder: Path) -> None:
    check_model_folder(folder)
    check_config(folder)
    message = f"{folder} is compressed already .* compress the model that it was made of"
    for refuse in (check_model_folder, check_config):
        with pytest.raises(SecateurError, match=message):
            refuse(folder, accept_compact=False)
    with pytest.raises(SecateurError, match=message):
        load_model(folder, accept_compact=False)


def test_a_loaded_model_is_not_compressed_again(folder: Path) -> None:
    model = load_model(folder).model
    with pytest.raises(SecateurError, match="LlamaForCausalLM is of a compact Secateur"):
        open_model(model, None, None, "auto", False)


def test_other_methods_stay_refused(folder: Path) -> None:
    edit_config(folder, lambda config: config.update(quant_method="gptq"))
    with pytest.raises(SecateurError, match=r"is already quantised \(gptq\)"):
        load_model(folder)


def test_faults_name_the_folder(folder: Path) -> None:
    spoil(folder, lambda tensors: tensors.pop(f"{DOWN}.indices"))
    message = f"{folder} cannot be loaded: the weights do not fit .*: {DOWN}.indices is missing"
    with pytest.raises(SecateurError, match=message):
        load_model(folder)
    assert "indices is missing" in failed(folder, "manifest", "reload")


def test_another_dtype_is_loaded(good: Path) -> None:
    model = load_model(good, dtype="float32").model
    assert {p.dtype for p in model.parameters()} == {torch.float32}


# Verification.


def spoil_quietly(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    spoil(folder, change)
    write_manifest(folder)


def test_a_changed_file_is_found(folder: Path) -> None:
    spoil(folder, lambda tensors: tensors[f"{DOWN}.weight"].neg_())
    assert "other content than when it was written" in failed(folder, "manifest", "logits")


def test_other_values_change_the_logits(folder: Path) -> None:
    spoil_quietly(folder, lambda tensors: tensors[f"{DOWN}.weight"].neg_())
    assert "this is not the model that was written" in failed(folder, "logits")


def test_a_corrupt_byte_does_not_reload(folder: Path) -> None:
    spoil_quietly(folder, lambda tensors: tensors[f"{DOWN}.indices"].zero_())
    assert f"{DOWN}: the packed weight is corrupt" in failed(folder, "reload")


def edit_report(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "secateur_report.json"
    report = json.loads(path.read_text())
    change(report)
    path.write_text(json.dumps(report))
    write_manifest(folder)


def test_the_rank_is_that_of_the_report(folder: Path) -> None:
    def raise_rank(report: dict[str, Any]) -> None:
        for layer in report["stages"][-1]["layers"]:
            layer["rank"] = 20

    edit_report(folder, raise_rank)
    name = "model.layers.0.self_attn.o_proj"
    assert f"{name} has factors of rank 16, expected 32" in failed(folder, "pattern")


def test_the_zeros_are_those_of_the_report(folder: Path) -> None:
    def claim(report: dict[str, Any]) -> None:
        for layer in report["stages"][0]["layers"]:
            layer.update(pattern="1:4", sparsity=0.75)

    edit_report(folder, claim)
    detail = failed(folder, "pattern")
    assert "model.layers.0.self_attn.q_proj has 50.0000% zeros, expected 75.0000%" in detail
    assert "model.layers.0.self_attn.q_proj keeps 2 of 4 somewhere, expected 1:4" in detail


def test_shapes_and_kinds_are_those_of_the_report(folder: Path) -> None:
    def claim(report: dict[str, Any]) -> None:
        pruned_layers = report["stages"][0]["layers"]
        pruned_layers[0]["shape"] = [32, 64]
        pruned_layers[1]["name"] = "model.layers.0.self_attn.o_proj"
        pruned_layers[1]["shape"] = [32, 32]
        report["stages"].pop()

    edit_report(folder, claim)
    detail = failed(folder, "pattern")
    assert "model.layers.0.self_attn.q_proj is [32, 32], expected [32, 64]" in detail
    assert "o_proj is a product of factors, expected a matrix with 2:4 zeros" in detail


def test_packed_and_canonical_models_compare_equal(good: Path) -> None:
    model = load_model(good).model
    require_same_model(model, good)
    unpack_layers(model)
    require_same_model(model, good)


def test_another_model_in_memory_is_found(good: Path) -> None:
    model = load_model(good).model
    layer = compressed_modules(model)[DOWN]
    assert isinstance(layer, Weight24Module)
    layer.unpack()
    assert layer.weight is not None
    with torch.no_grad():
        layer.weight[0, 0] += 1
    layer.pack()
    with pytest.raises(VerificationError, match=f"{DOWN}.weight is not the same after"):
        require_same_model(model, good)


# Making a model compact.


def test_only_what_is_24_or_factored_can_be_stored_so() -> None:
    with pytest.raises(
        SecateurError, match=r"without the attention or MLP .* LlamaForCausalLM is none"
    ):
        make_compact(tiny_model("llama"))


def test_layers_of_every_kind_are_listed() -> None:
    model = pruned("llama")
    sites = dense_sites(model)
    make_low_rank(model, sites[0])
    with torch.no_grad():
        sites[1].weight.fill_(1.0)
    names = make_compact(model)
    assert names == [site.name for site in sites if site.name != sites[1].name]
    assert isinstance(model.get_submodule(sites[1].name), nn.Linear)
    layers = compressed_modules(model)
    assert all(layer.is_packed for layer in layers.values() if isinstance(layer, Weight24Module))
    assert make_compact(model) == names, "and again"


def test_a_model_whose_factors_were_never_marked_is_found_when_written(tmp_path: Path) -> None:
    """A folder without the list of layers cannot be loaded, and is not left behind."""
    model = in_dtype(tiny_model("llama"), torch.bfloat16)
    _, report = compress_with_report(model, MAGNITUDE, calibration=some_ids())
    name = dense_sites(model)[0].name
    replace_module(model, name, LowRankLinear(32, 32, 16, bias=False, dtype=torch.bfloat16))
    with pytest.raises(VerificationError, match="the written model does not load"):
        write_checkpoint(model, None, recipe_from_dict(MAGNITUDE), lambda: report, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_packed_weights_are_unpacked_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama").to(torch.bfloat16)
    compress_with_report(model, MAGNITUDE, checkpoint_format="compact")
    model.save_pretrained(tmp_path)
    canonical, copies, most = Weight24Module.canonical, list[weakref.ref[Tensor]](), [0]

    def counted(module: Weight24Module) -> Any:
        weight = canonical(module)
        copies.append(weakref.ref(weight.values))
        most.append(sum(copy() is not None for copy in copies))
        return weight

    monkeypatch.setattr(Weight24Module, "canonical", counted)
    num_bytes(model)
    assert max(most) == 1
    monkeypatch.setattr("secateur.checkpoint.verify.load_model", lambda *_, **__: reloaded)
    reloaded = load_model(tmp_path)
    copies.clear()
    most.clear()
    require_same_model(model, tmp_path)
    # That of the model, that of the checkpoint, and the last ones where they are replaced.
    assert max(most) <= 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_model_that_needs_a_layers_weight_itself_is_told_so(dtype: torch.dtype) -> None:
    model = taking_a_weight(dtype)
    make_compact(model)
    with pytest.raises(SecateurError, match=r"could not run LlamaForCausalLM .*and not called"):
        fingerprint(model)
