"""However a written checkpoint comes to differ, it is found, by the check that it belongs to."""

import copy
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import VOCAB_SIZE, model_from, tiny_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig

from secateur.checkpoint.fingerprint import fingerprint
from secateur.checkpoint.manifest import MANIFEST_FILE, write_manifest
from secateur.checkpoint.verify import require_same_model, verify_checkpoint
from secateur.compress import compress
from secateur.errors import SecateurError, VerificationError

WANDA = {"stage": "prune", "method": "wanda", "pattern": "2:4"}
ALL = ["manifest", "reload", "pattern", "logits"]
PRUNED = "model.layers.1.mlp.down_proj.weight"


def some_ids() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, VOCAB_SIZE, (8, 16), generator=generator)


def written(folder: Path, *stages: dict[str, Any], num_blocks: int = 2) -> Path:
    compress(
        tiny_model("llama", num_blocks),
        {"stages": list(stages) or [WANDA]},
        calibration=some_ids(),
        output=folder,
    )
    return folder


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("good") / "out")


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """A checkpoint to be spoilt."""
    return Path(shutil.copytree(good, tmp_path / "out"))


def test_a_model_with_code_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "run"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    source, output = tmp_path / "source", tmp_path / "out"
    tiny_model("llama", 2).save_pretrained(source)
    (source / "own_code.py").write_text(
        "from transformers import LlamaForCausalLM\nclass Own(LlamaForCausalLM):\n    pass\n"
    )
    config = json.loads((source / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "own_code.Own"}
    (source / "config.json").write_text(json.dumps(config))
    recipe = {"stages": [{"stage": "prune", "method": "magnitude", "pattern": "2:4"}]}
    model = compress(source, recipe, output=output, trust_remote_code=True)
    assert type(model).__name__ == "Own"
    assert (output / "own_code.py").read_bytes() == (source / "own_code.py").read_bytes()
    assert all(check.passed for check in verify_checkpoint(output, trust_remote_code=True))
    # Without leave it is not run, and all that needs the model to be loaded fails.
    checks = {check.name: check.passed for check in verify_checkpoint(output)}
    assert checks["manifest"]
    assert not checks["reload"]


def spoil(folder: Path, change: Callable[[dict[str, Tensor]], None], *, hide: bool = True) -> None:
    """Change the stored tensors; with `hide`, the manifest as well."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    if hide:
        write_manifest(folder)


def failed(folder: Path, expected: list[str] = ALL) -> dict[str, str]:
    """Details of the checks that failed, by name."""
    checks = verify_checkpoint(folder)
    assert [check.name for check in checks] == expected
    return {check.name: check.detail for check in checks if not check.passed}


def first_zero(tensor: Tensor) -> tuple[int, int]:
    row, column = (tensor == 0).nonzero()[0].tolist()
    return row, column


def test_good_checkpoint_passes(folder: Path) -> None:
    assert failed(folder) == {}
    assert failed(Path(str(folder))) == {}
    details = {check.name: check.detail for check in verify_checkpoint(str(folder))}
    assert details["logits"] == "identical, bit for bit, to those recorded"


def test_verifying_writes_nothing(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    verify_checkpoint(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_moved_checkpoint_passes(folder: Path, tmp_path: Path) -> None:
    folder.rename(tmp_path / "elsewhere")
    assert failed(tmp_path / "elsewhere") == {}


def test_weight_that_came_back_breaks_the_pattern(folder: Path) -> None:
    def fill(tensors: dict[str, Tensor]) -> None:
        tensors[PRUNED][first_zero(tensors[PRUNED])] = 1e-6

    spoil(folder, fill)
    (detail,) = failed(folder).values()
    name = PRUNED.removesuffix(".weight")
    assert f"{name} has 49.9512% zeros, expected 50.0000%" in detail
    assert f"{name} keeps 3 of 4 somewhere, expected 2:4" in detail
    assert "pattern" in failed(folder)


def test_zero_in_another_group_breaks_the_pattern(folder: Path) -> None:
    """The number of zeros is the same."""

    def move(tensors: dict[str, Tensor]) -> None:
        weight = tensors[PRUNED]
        row, column = first_zero(weight)
        weight[row, column] = 1e-6
        other = (weight[row + 1] != 0).nonzero()[0].item()
        weight[row + 1, int(other)] = 0.0

    spoil(folder, move)
    detail = failed(folder)["pattern"]
    assert "keeps 3 of 4 somewhere, expected 2:4" in detail
    assert "zeros" not in detail


def test_dense_block_breaks_the_pattern_of_every_matrix(folder: Path) -> None:
    dense = tiny_model("llama").state_dict()

    def restore(tensors: dict[str, Tensor]) -> None:
        for name in tensors:
            if name.startswith("model.layers.0."):
                tensors[name] = dense[name].clone()

    spoil(folder, restore)
    detail = failed(folder)["pattern"]
    assert detail.startswith("model.layers.0.self_attn.q_proj has 0.0000% zeros")
    # Two faults for each of seven matrices, of which three are shown.
    assert detail.endswith("; and 11 more")


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.norm.weight",
        "model.layers.0.input_layernorm.weight",
    ],
)
def test_other_weights_change_the_logits(folder: Path, name: str) -> None:
    def scale(tensors: dict[str, Tensor]) -> None:
        tensors[name] *= 1.5

    spoil(folder, scale)
    found = failed(folder)
    assert list(found) == ["logits"]
    assert "this is not the model that was written" in found["logits"]


def test_kept_weight_changes_the_logits(folder: Path) -> None:
    def negate(tensors: dict[str, Tensor]) -> None:
        tensors[PRUNED].neg_()

    spoil(folder, negate)
    assert list(failed(folder)) == ["logits"]


def test_rounding_passes_and_is_said(folder: Path) -> None:
    def round_off(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] *= 1 + 1e-5

    spoil(folder, round_off)
    assert failed(folder) == {}
    detail = verify_checkpoint(folder)[-1].detail
    assert detail.endswith("rounding, of another machine or of buffers that are not saved")


def test_weights_that_are_no_numbers_fail(folder: Path) -> None:
    def overflow(tensors: dict[str, Tensor]) -> None:
        tensors["model.norm.weight"][3] = float("nan")

    spoil(folder, overflow)
    assert "logits" in failed(folder)


def test_missing_tensor_fails_to_reload(folder: Path) -> None:
    def lose(tensors: dict[str, Tensor]) -> None:
        del tensors[PRUNED]

    spoil(folder, lose)
    found = failed(folder, ["manifest", "reload"])
    assert list(found) == ["reload"]
    assert f"1 missing keys, such as {PRUNED}" in found["reload"]


def test_unknown_tensor_fails_to_reload(folder: Path) -> None:
    def add(tensors: dict[str, Tensor]) -> None:
        tensors["model.extra.weight"] = torch.ones(3)

    spoil(folder, add)
    found = failed(folder, ["manifest", "reload"])
    assert "1 unexpected keys, such as model.extra.weight" in found["reload"]


def test_tensor_of_another_shape_fails_to_reload(folder: Path) -> None:
    def cut(tensors: dict[str, Tensor]) -> None:
        tensors[PRUNED] = tensors[PRUNED][:, :32].contiguous()

    spoil(folder, cut)
    assert list(failed(folder, ["manifest", "reload"])) == ["reload"]


def test_truncated_weights_fail_twice(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    found = failed(folder, ["manifest", "reload"])
    assert list(found) == ["manifest", "reload"]
    assert "bytes, expected" in found["manifest"]
    assert "is corrupt or cut short" in found["reload"]


def test_any_change_fails_the_manifest(folder: Path) -> None:
    def round_off(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] *= 1 + 1e-5

    spoil(folder, round_off, hide=False)
    found = failed(folder)
    assert list(found) == ["manifest"]
    assert found["manifest"] == ("model.safetensors has other content than when it was written")
    (folder / "README.md").unlink()
    assert "README.md is missing" in failed(folder)["manifest"]


def test_configuration_that_computes_something_else(folder: Path) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text())
    values["rope_parameters"]["rope_theta"] = 3.0
    path.write_text(json.dumps(values))
    write_manifest(folder)
    assert list(failed(folder)) == ["logits"]


def test_unstructured_sparsity_is_counted_to_the_weight(tmp_path: Path) -> None:
    folder = written(tmp_path / "out", {"stage": "prune", "method": "wanda", "sparsity": 0.5})
    assert failed(folder) == {}

    def fill(tensors: dict[str, Tensor]) -> None:
        tensors[PRUNED][first_zero(tensors[PRUNED])] = 1e-6

    spoil(folder, fill)
    assert list(failed(folder)) == ["pattern"]


def test_more_zeros_are_no_fault_of_the_pattern(folder: Path) -> None:
    def clear(tensors: dict[str, Tensor]) -> None:
        tensors[PRUNED].zero_()

    spoil(folder, clear)
    assert list(failed(folder)) == ["logits"]


def test_matrices_are_found_where_later_stages_moved_them(tmp_path: Path) -> None:
    """Block 2 was pruned, and is block 1 since block 0 was dropped; block 0 is not missed."""
    folder = written(tmp_path / "out", WANDA, {"stage": "drop_blocks", "blocks": [0]}, num_blocks=3)
    assert failed(folder) == {}

    def fill(tensors: dict[str, Tensor]) -> None:
        tensors[PRUNED][first_zero(tensors[PRUNED])] = 1e-6

    spoil(folder, fill)
    detail = failed(folder)["pattern"]
    assert detail.startswith("model.layers.1.mlp.down_proj has 49.9512% zeros")


def test_report_of_other_matrices_fails_the_pattern(folder: Path) -> None:
    path = folder / "secateur_report.json"
    original = json.loads(path.read_text())
    for key, value, message in [
        ("name", "model.layers.0.mlp.other", "model.layers.0.mlp.other is not in the model"),
        ("shape", [32, 16], "is [32, 32], expected [32, 16]"),
        ("sparsity", 0.75, "has 50.0000% zeros, expected 75.0000%"),
        ("pattern", "1:4", "keeps 2 of 4 somewhere, expected 1:4"),
    ]:
        values = copy.deepcopy(original)
        values["stages"][0]["layers"][0][key] = value
        path.write_text(json.dumps(values))
        write_manifest(folder)
        assert list(failed(folder)) == ["pattern"]
        assert message in failed(folder)["pattern"]


def test_report_without_logits_is_verified_as_far_as_it_goes(folder: Path) -> None:
    path = folder / "secateur_report.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "verification": None}))
    write_manifest(folder)
    assert failed(folder, ["manifest", "reload", "pattern"]) == {}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("input_ids", [999]),
        ("input_ids", [-1]),
        ("input_ids", []),
        ("last_tokens", [999] * 16),
        ("last_tokens", [1, 2]),
    ],
)
def test_recorded_tokens_that_do_not_fit_the_model_fail(
    folder: Path, key: str, value: list[int]
) -> None:
    path = folder / "secateur_report.json"
    values = json.loads(path.read_text())
    values["verification"].update({"logits_sha256": "", key: value})
    path.write_text(json.dumps(values))
    write_manifest(folder)
    assert list(failed(folder)) == ["logits"]


@pytest.mark.parametrize("missing", ["secateur_report.json", MANIFEST_FILE])
def test_folder_that_secateur_did_not_write(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(SecateurError, match=f"expected {missing}") as caught:
        verify_checkpoint(folder)
    assert caught.value.exit_code == 2


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(SecateurError, match="is not a file"):
        verify_checkpoint(tmp_path / "missing")


def test_report_that_is_none(folder: Path) -> None:
    (folder / "secateur_report.json").write_text("{")
    with pytest.raises(SecateurError, match="is not JSON"):
        verify_checkpoint(folder)
    (folder / "secateur_report.json").write_text("{}")
    with pytest.raises(SecateurError, match="is not a Secateur report: "):
        verify_checkpoint(folder)


def test_a_cast_in_memory_that_touched_unsaved_buffers_verifies(tmp_path: Path) -> None:
    """Rotary frequencies are cast too, are not saved, and come back in fp32."""
    model = tiny_model("llama").to(torch.bfloat16)
    compress(model, {"stages": [WANDA]}, calibration=some_ids(), output=tmp_path / "out")
    check = verify_checkpoint(tmp_path / "out")[-1]
    assert check.passed
    assert "of buffers that are not saved" in check.detail


# The comparison before the output is put in place.


def test_the_same_model_is_accepted(tmp_path: Path) -> None:
    for family in ("llama", "gpt2", "mixtral"):
        model = tiny_model(family)
        model.save_pretrained(tmp_path / family)
        require_same_model(model, tmp_path / family)


@pytest.mark.parametrize("name", ["model.norm.weight", "lm_head.weight", PRUNED])
def test_one_bit_of_one_weight_is_another_model(tmp_path: Path, name: str) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path)
    parameter = model.get_parameter(name).data.view(-1)
    parameter[-1] = torch.nextafter(parameter[-1], torch.tensor(1e9))
    message = f"{name} is not the same after it was written and reloaded"
    with pytest.raises(VerificationError, match=message) as caught:
        require_same_model(model, tmp_path)
    assert caught.value.exit_code == 4


def test_the_sign_of_zero_is_a_bit_too(tmp_path: Path) -> None:
    model = tiny_model("llama")
    weight = model.get_parameter(PRUNED).data.view(-1)
    weight[0] = 0.0
    model.save_pretrained(tmp_path)
    weight[0] = -0.0
    with pytest.raises(VerificationError, match=f"{PRUNED} is not the same"):
        require_same_model(model, tmp_path)


@pytest.mark.parametrize("seed", [0, 1])
def test_deep_16_bit_models_may_round_more(seed: int, tmp_path: Path) -> None:
    """As on another device: what is recorded is computed by another implementation."""
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    config = LlamaConfig(num_hidden_layers=80, vocab_size=VOCAB_SIZE, **sizes)
    model = model_from(config, seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.normal_(0, parameter.shape[1] ** -0.5, generator=generator)
    model = model.to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    model.set_attn_implementation("eager")
    require_same_model(model, tmp_path, fingerprint(model))
    # The same weights under a configuration that means something else.
    config.hidden_act = "gelu"
    other = model_from(config).to(torch.bfloat16)
    other.load_state_dict(model.state_dict())
    with pytest.raises(VerificationError, match="does not describe the model"):
        require_same_model(model, tmp_path, fingerprint(other))


def test_another_dtype_is_another_model(tmp_path: Path) -> None:
    tiny_model("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    rounded = tiny_model("llama").to(torch.bfloat16).float()
    with pytest.raises(VerificationError, match="is not the same"):
        require_same_model(rounded, tmp_path)


def test_untied_weights_are_another_model(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    model.save_pretrained(tmp_path)
    untied = copy.deepcopy(model)
    head = untied.get_output_embeddings()
    assert head is not None
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    with pytest.raises(VerificationError, match="tied"):
        require_same_model(untied, tmp_path)


def test_folder_that_does_not_load_is_another_model(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="the written model does not load"):
        require_same_model(tiny_model("llama"), tmp_path)
