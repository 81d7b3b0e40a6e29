"""Every family in every compression: what is loaded gives the logits of the model in memory."""

from pathlib import Path

import pytest
import torch
from families import FAMILIES, MOST_DIFFERENT, tiny_model
from integrations.compact_models import (
    assert_same,
    compressed,
    dense_sites,
    in_dtype,
    loaded,
    logits_of,
    make_both,
    make_low_rank,
    pruned,
    saved,
    stored_config,
)
from integrations.test_round_trip import ROUND_TRIPS
from thoroughness import most_telling
from transformers import PreTrainedModel

from secateur.compress import compress_with_report
from secateur.integrations.transformers_quantizer import SecateurConfig, mark_compressed
from secateur.models.blocks import find_blocks
from secateur.models.sublayers import removed_sublayers
from secateur.models.swap import compressed_modules, convert_sparse24, pack_layers, pack_model

BF16 = torch.bfloat16
ELSEWHERE = {(family, kind) for family, kind, _ in ROUND_TRIPS}
KINDS = ("low_rank", "sparse24_low_rank", "mixed")
REST = [(f, kind) for f in FAMILIES for kind in KINDS if (f, kind) not in ELSEWHERE]


@pytest.mark.parametrize(("family", "kind"), REST)
def test_factors(family: str, kind: str, tmp_path: Path) -> None:
    model = compressed(family, kind)
    folder = saved(model, tmp_path, max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").is_file(), "sharded"
    again = loaded(folder)
    assert_same(model, again)
    kinds = {name: type(layer) for name, layer in compressed_modules(model).items()}
    assert {name: type(layer) for name, layer in compressed_modules(again).items()} == kinds


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_while_a_dense_checkpoint_is_loaded(family: str, tmp_path: Path) -> None:
    model = pruned(family)
    folder = saved(model, tmp_path / "dense", max_shard_size="20KB")
    again = loaded(folder, quantization_config=SecateurConfig())
    packed = pack_model(model)
    assert list(compressed_modules(again)) == packed
    assert_same(model, again)
    # From here on it is a compact checkpoint.
    assert_same(model, loaded(saved(again, tmp_path / "compact")))


def dropped(family: str, **stage: object) -> PreTrainedModel:
    model = in_dtype(tiny_model(family, 3), BF16)
    compress_with_report(model, {"stages": [{"stage": "drop_blocks", **stage}]})
    return model


def compress_layers(model: PreTrainedModel) -> None:
    """A third of the layers each as factors, as both, and as 2:4."""
    sites = dense_sites(model)
    with torch.no_grad():
        for index, site in enumerate(sites):
            if index % 3 == 2:
                site.weight[:, ::2] = 0.0
    for site in sites[::3]:
        make_low_rank(model, site)
    for site in sites[1::3]:
        make_both(model, site)
    convert_sparse24(model)
    pack_layers(model)
    mark_compressed(model)


@pytest.mark.parametrize("layers", ["dense", "compressed"])
@pytest.mark.parametrize("family", most_telling(list(FAMILIES), MOST_DIFFERENT))
def test_dropped_blocks(family: str, layers: str, tmp_path: Path) -> None:
    model = dropped(family, blocks=[1])
    assert len(find_blocks(model).modules) == 2
    if layers == "compressed":
        compress_layers(model)
        assert compressed_modules(model)
    folder = saved(model, tmp_path)
    again = loaded(folder)
    assert_same(model, again)
    assert ("quantization_config" in stored_config(folder)) == (layers == "compressed")


@pytest.mark.parametrize("part", ["attention", "mlp"])
@pytest.mark.parametrize("family", most_telling(list(FAMILIES), MOST_DIFFERENT))
def test_removed_parts_beside_layers_of_all_kinds(family: str, part: str, tmp_path: Path) -> None:
    model = in_dtype(tiny_model(family, 3), BF16)
    stage = {"stage": "drop_blocks", "granularity": part, "blocks": [1]}
    compress_with_report(model, {"stages": [stage]}, checkpoint_format="compact")
    compress_layers(model)
    again = loaded(saved(model, tmp_path))
    assert_same(model, again)
    assert removed_sublayers(again).keys() == removed_sublayers(model).keys()
    assert compressed_modules(again).keys() == compressed_modules(model).keys()
    assert torch.equal(logits_of(model), logits_of(again))
