"""Checkpoints of models that are without the attention or the MLP of some blocks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, MOST_DIFFERENT, tiny_model
from integrations.compact_models import (
    IDS,
    assert_same,
    edit_config,
    loaded,
    saved,
    spoil,
    stored_config,
)
from thoroughness import most_telling
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from secateur.checkpoint.compact import make_compact, needs_own_format
from secateur.checkpoint.verify import verify_checkpoint
from secateur.compress import compress_with_report
from secateur.errors import SecateurError
from secateur.integrations.removed_specs import RemovedParts, RemovedSpec
from secateur.models.blocks import find_blocks
from secateur.models.sublayers import removed_sublayers
from secateur.modules.removed_sublayer import RemovedSublayer
from secateur.prepare import open_model

CALIBRATION = torch.randint(3, 128, (4, 12), generator=torch.Generator().manual_seed(0))


def without(family: str, part: str, blocks: tuple[int, ...] = (0, 2)) -> PreTrainedModel:
    model = tiny_model(family, 3)
    stage = {"stage": "drop_blocks", "granularity": part, "blocks": list(blocks)}
    compress_with_report(model, {"stages": [stage]}, checkpoint_format="compact")
    return model


def continued(model: PreTrainedModel) -> list[list[int]]:
    tokens: list[list[int]] = model.generate(
        input_ids=IDS,
        attention_mask=torch.ones_like(IDS),
        max_new_tokens=5,
        min_new_tokens=5,
        do_sample=False,
    ).tolist()
    return tokens


@pytest.mark.parametrize("part", ["attention", "mlp"])
@pytest.mark.parametrize("family", most_telling(list(FAMILIES), MOST_DIFFERENT))
def test_reloads_bit_for_bit_and_generates_the_same(family: str, part: str, tmp_path: Path) -> None:
    model = without(family, part)
    again = loaded(saved(model, tmp_path))
    assert_same(model, again)
    assert removed_sublayers(again).keys() == removed_sublayers(model).keys()
    assert continued(model) == continued(again)
    # A second time, from the model that was loaded.
    assert_same(model, loaded(saved(again, tmp_path / "again")))


def test_what_the_configuration_says(tmp_path: Path) -> None:
    config = stored_config(saved(without("llama", "attention"), tmp_path))
    assert config["quantization_config"] == {
        "quant_method": "secateur",
        "format_version": 1,
        "removed": [
            {
                "width": 32,
                "tuple_length": 2,
                "modules": ["model.layers.0.self_attn", "model.layers.2.self_attn"],
            }
        ],
    }


def test_removed_parts_beside_compressed_layers(tmp_path: Path) -> None:
    model = tiny_model("llama", 3)
    stages = [
        {"stage": "drop_blocks", "granularity": "mlp", "count": 1},
        {"stage": "prune", "method": "magnitude", "pattern": "2:4"},
        {"stage": "drop_blocks", "granularity": "attention", "blocks": [1]},
    ]
    _, report = compress_with_report(
        model,
        {"stages": stages},
        calibration=CALIBRATION,
        output=tmp_path / "out",
        checkpoint_format="compact",
    )
    assert report.size.num_blocks == 3
    assert_same(model, loaded(tmp_path / "out"))
    assert all(check.passed for check in verify_checkpoint(tmp_path / "out"))


@pytest.mark.parametrize("checkpoint_format", ["auto", "compact"])
def test_auto_writes_its_own_format_and_the_card_says_so(
    checkpoint_format: Any, tmp_path: Path
) -> None:
    recipe = {"stages": [{"stage": "drop_blocks", "granularity": "attention", "blocks": [1]}]}
    model = tiny_model("llama", 3)
    compress_with_report(
        model, recipe, output=tmp_path / "out", checkpoint_format=checkpoint_format
    )
    assert needs_own_format(model)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`import secateur` first" in card
    assert "- attention of block 1 removed (named in the recipe)" in card
    assert all(check.passed for check in verify_checkpoint(tmp_path / "out"))


def test_only_training_takes_a_model_without_parts(tmp_path: Path) -> None:
    model = loaded(saved(without("llama", "attention"), tmp_path))
    opened = open_model(model, None, None, "auto", False, accept_compact=True)
    assert opened.model is model
    with pytest.raises(SecateurError, match="LlamaForCausalLM is of a compact Secateur"):
        open_model(model, None, None, "auto", False)


def test_whole_blocks_stay_plain_models(tmp_path: Path) -> None:
    recipe = {"stages": [{"stage": "drop_blocks", "blocks": [1]}]}
    model = tiny_model("llama", 3)
    compress_with_report(model, recipe, output=tmp_path / "out")
    assert not needs_own_format(model)
    assert "quantization_config" not in stored_config(tmp_path / "out")


def test_a_base_model_finds_its_parts_under_other_names(tmp_path: Path) -> None:
    model = without("llama", "mlp")
    saved(model, tmp_path)
    base = AutoModel.from_pretrained(tmp_path)
    assert set(removed_sublayers(base)) == {"layers.0.mlp", "layers.2.mlp"}
    with torch.no_grad():
        states = base(input_ids=IDS).last_hidden_state
        assert torch.equal(states, model.model(input_ids=IDS).last_hidden_state)


def test_a_model_that_is_whole_again_is_plain(tmp_path: Path) -> None:
    model = without("llama", "mlp", (1,))
    make_compact(model)
    whole = tiny_model("llama", 3)
    model.model.layers[1].mlp = whole.model.layers[1].mlp
    saved(model, tmp_path)
    assert "quantization_config" not in stored_config(tmp_path)


def test_what_was_removed_cannot_be_made_dense() -> None:
    with pytest.raises(SecateurError, match=r"layers\.0\.mlp was removed: no dense layer"):
        without("llama", "mlp").dequantize()


# Files that do not fit.


def missing(tensors: dict[str, Tensor]) -> None:
    del tensors["model.layers.1.mlp.up_proj.weight"]


def left_over(tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.ones(64, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (missing, r"layers\.1\.mlp\.up_proj\.weight is missing"),
        (left_over, r"layers\.0\.mlp\.up_proj\.weight is there, but .* its part as removed"),
    ],
)
def test_refuses_weights_that_do_not_fit(
    change: Callable[[dict[str, Tensor]], None], message: str, tmp_path: Path
) -> None:
    saved(without("llama", "mlp"), tmp_path)
    spoil(tmp_path, change)
    with pytest.raises(SecateurError, match=message):
        loaded(tmp_path)


def entry(**changes: Any) -> dict[str, Any]:
    return {"width": 32, "modules": ["model.layers.0.mlp"], **changes}


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ([], r"removed: expected a list of removed parts, got \[\]"),
        ("mlp", "removed: expected a list of removed parts, got 'mlp'"),
        ([entry(width=0)], r"removed\.0: expected a width and a tuple length of at least 1, got 0"),
        ([entry(tuple_length=0)], r"removed\.0: expected a width .* got 32 and 0"),
        ([entry(tuple_length=17)], r"removed\.0: expected a tuple length of at most 16, got 17"),
        ([entry(width=10**13)], r"layers\.0\.mlp .* a width of 10000000000000, which none of its"),
        ([entry(width=31)], r"layers\.0\.mlp .* a width of 31, which none of its weights has"),
        ([entry(modules=[""])], "expected  to be the attention or MLP of a block"),
        ([entry(modules=["lm_head"])], "expected lm_head to be the attention or MLP of a block"),
        ([entry(modules=["model.norm"])], "expected model.norm to be the attention or MLP of a"),
        ([entry(modules=["model.layers.0"])], "expected model.layers.0 to be the attention or MLP"),
        (
            [entry(modules=["model.layers.0.mlp.act_fn"])],
            "expected model.layers.0.mlp.act_fn to be the attention or MLP of a block",
        ),
        ([entry(width="wide")], r"removed\.0\.width: expected a whole number"),
        ([entry(more=1)], r"removed\.0"),
        ([entry(), entry()], r"removed\.1: model\.layers\.0\.mlp is listed twice"),
        ([entry(modules=["model.layers.9.mlp"])], r"the removed part model\.layers\.9\.mlp, which"),
    ],
)
def test_refuses_configurations_that_nobody_wrote(
    removed: object, message: str, tmp_path: Path
) -> None:
    saved(without("llama", "mlp"), tmp_path)
    edit_config(tmp_path, lambda config: config.update(removed=removed))
    with pytest.raises(SecateurError, match=message):
        loaded(tmp_path)


def test_refuses_a_layer_inside_a_removed_part(tmp_path: Path) -> None:
    saved(without("llama", "mlp"), tmp_path)
    layers = [{"kind": "sparse24", "bias": False, "modules": ["model.layers.0.mlp.up_proj"]}]
    edit_config(tmp_path, lambda config: config.update(layers=layers))
    with pytest.raises(SecateurError, match="is listed as a layer, but was removed"):
        loaded(tmp_path)


def test_parts_survive_plain_values_and_are_found_by_name() -> None:
    specs = {"a.mlp": RemovedSpec(width=3), "b.attn": RemovedSpec(width=3, tuple_length=2)}
    parts = RemovedParts(specs)
    assert RemovedParts.from_plain(json.loads(json.dumps(parts.to_plain()))) == parts
    assert parts.holds("a.mlp")
    assert parts.holds("a.mlp.up_proj.weight")
    assert not parts.holds("a.mlp2.up_proj")
    with pytest.raises(SecateurError, match=r"LlamaForCausalLM has no a\.mlp to remove"):
        parts.build_in(tiny_model("llama"))


def test_stand_ins_keep_their_place_in_the_cache(tmp_path: Path) -> None:
    model = loaded(saved(without("gpt2", "attention"), tmp_path))
    found = [m.layer_idx for m in removed_sublayers(model).values()]
    assert found == [0, 2]
    assert isinstance(find_blocks(model).modules[0].attn, RemovedSublayer)
