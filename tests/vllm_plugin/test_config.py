"""The configuration: what is read, renamed, dispatched and refused."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm")

from importlib.metadata import entry_points

from torch import nn
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.layers.quantization import get_quantization_config
from vllm.model_executor.models.utils import WeightsMapper
from vllm.platforms import current_platform
from vllm_plugin.served import BLOCK, build, config_of, finish, load, ranks
from vllm_plugin.stored import stored

from secateur.errors import SecateurError
from secateur.integrations.vllm.config import SecateurVllmConfig
from secateur.integrations.vllm.methods import (
    SecateurDenseMethod,
    SecateurLinearMethod,
    SecateurRemovedMethod,
)


@pytest.fixture(scope="module", autouse=True)
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with ranks(tmp_path_factory.mktemp("ranks") / "file"):
        yield


def test_vllm_finds_the_method_by_its_entry_point() -> None:
    (entry,) = entry_points(group="vllm.general_plugins", name="secateur")
    register = entry.load()
    register()
    register()
    assert get_quantization_config("secateur") is SecateurVllmConfig
    assert SecateurVllmConfig.get_min_capability() == 80
    assert SecateurVllmConfig.get_config_filenames() == []


def test_layers_are_served_in_their_form() -> None:
    removed = [{"width": 16, "modules": ["model.layers.1.mlp"]}]
    config = config_of({f"{BLOCK}.mlp.up_proj": stored("sparse24", 24, 16)}, removed=removed)
    methods = {
        "mlp.gate_up_proj": SecateurLinearMethod,
        "mlp.down_proj": SecateurDenseMethod,
        "self_attn.qkv_proj": SecateurDenseMethod,
    }
    for name, method in methods.items():
        layer = build(name, 16, (24, 24), config)
        assert type(layer.quant_method) is method
    layer = build(
        "mlp.gate_up_proj", 16, (24, 24), config, prefix="model.layers.1.mlp.gate_up_proj"
    )
    assert type(layer.quant_method) is SecateurRemovedMethod
    assert config.get_quant_method(nn.Embedding(4, 4), "model.embed_tokens") is None
    config.require_complete()


@pytest.mark.parametrize("more", [{}, {"layers": []}])
def test_a_configuration_without_layers_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(SecateurError, match="layers"):
        SecateurVllmConfig.from_config({"quant_method": "secateur", "format_version": 1, **more})


def test_answers_that_do_not_depend_on_the_batch_are_not_promised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    with pytest.raises(SecateurError, match="expected VLLM_BATCH_INVARIANT=0"):
        config_of({f"{BLOCK}.mlp.fc1": stored("sparse24", 8, 8)})


def test_layers_that_vllm_did_not_build_are_an_error() -> None:
    layers = {
        f"{BLOCK}.mlp.fc1": stored("sparse24", 8, 8),
        "model.layers.1.mlp.fc1": stored("sparse24", 8, 8),
    }
    layer = build("mlp.fc1", 8, (8,), config_of(layers))
    load(layer, "mlp.fc1", layers)
    with pytest.raises(SecateurError, match=r"lists 1 layers .* such as model.layers.1.mlp.fc1"):
        finish(layer)


def test_layers_of_a_draft_model_are_found_behind_its_prefix() -> None:
    layers = {f"{BLOCK}.mlp.fc1": stored("sparse24", 8, 8)}
    config = config_of(layers)
    layer = build("mlp.fc1", 8, (8,), config, prefix=f"draft_model.{BLOCK}.mlp.fc1")
    load(layer, "mlp.fc1", layers)
    assert type(finish(layer).quant_method) is SecateurLinearMethod
    # Another draft, for this model, is asked about names of its own.
    config.apply_vllm_mapper(WeightsMapper(orig_to_new_prefix={"model.": None}))
    assert list(config.layers.specs) == list(layers)


def test_fused_layers_whose_names_vllm_does_not_tell_are_an_error() -> None:
    config = config_of({f"{BLOCK}.mlp.up_proj": stored("sparse24", 24, 16)})
    config.packed_modules_mapping = {}
    layer = build("mlp.gate_up_proj", 16, (24, 24), config)
    with pytest.raises(SecateurError, match=r"mlp.up_proj: they would be left out"):
        finish(layer)


def test_removed_parts_that_vllm_did_not_build_are_an_error() -> None:
    removed = [{"width": 8, "modules": ["model.layers.1.mlp"]}]
    layers = {f"{BLOCK}.mlp.fc1": stored("sparse24", 8, 8)}
    layer = build("mlp.fc1", 8, (8,), config_of(layers, removed=removed))
    load(layer, "mlp.fc1", layers)
    with pytest.raises(SecateurError, match=r"such as model.layers.1.mlp"):
        finish(layer)


class Experts(nn.Module):
    """Stands for vLLM's, which need a device to be built; their class has had several names."""


@pytest.mark.parametrize("removed", [False, True])
def test_experts_are_refused(removed: bool) -> None:
    layers = {f"{BLOCK}.mlp.experts.0.up_proj": stored("sparse24", 8, 8)}
    gone: dict[str, Any] = {"removed": [{"width": 8, "modules": ["model.layers.1.mlp"]}]}
    config = config_of(layers, **(gone if removed else {}))
    prefix = "model.layers.1.mlp.experts" if removed else f"{BLOCK}.mlp.experts"
    with pytest.raises(SecateurError, match=f"Experts {prefix} of vLLM is no linear layer"):
        config.get_quant_method(Experts(), prefix)


@pytest.mark.parametrize("on_a_cpu", [False, True])
@pytest.mark.parametrize("has_experts", [False, True])
def test_experts_that_vllm_cannot_load_again_are_told_of(
    has_experts: bool, on_a_cpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: on_a_cpu)
    config = config_of({f"{BLOCK}.mlp.fc1": stored("sparse24", 8, 8)})
    experts = Experts()
    if has_experts:
        experts.moe_config = object()
    assert config.get_quant_method(experts, f"{BLOCK}.mlp.experts") is None
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        config.warn_of_experts()
    assert ["experts" in str(one.message) for one in said] == [True] * (has_experts and on_a_cpu)


class HeldAttention(nn.Module, AttentionLayerBase):
    """Stands for what asks how its cache is stored."""

    def get_attn_backend(self) -> Any: ...

    def get_kv_cache_spec(self, vllm_config: Any) -> Any: ...


def test_attention_may_stay_where_its_part_was_removed() -> None:
    removed = [{"width": 8, "modules": ["model.layers.1.self_attn"]}]
    config = config_of({f"{BLOCK}.mlp.fc1": stored("sparse24", 8, 8)}, removed=removed)
    assert config.get_quant_method(HeldAttention(), "model.layers.1.self_attn.attn") is None


def test_names_follow_vllms_model() -> None:
    layers = {name: stored("low_rank", 8, 8) for name in ("model.a", "model.b")}
    removed = [{"width": 8, "modules": ["model.layers.1.mlp"]}]
    config = config_of(layers, shared_down={"model.b": "model.a"}, removed=removed)
    config.apply_vllm_mapper(WeightsMapper(orig_to_new_prefix={"model.": "language_model."}))
    assert list(config.layers.specs) == ["language_model.a", "language_model.b"]
    assert config.layers.shared_down == {"language_model.b": "language_model.a"}
    assert list(config.layers.removed.specs) == ["language_model.layers.1.mlp"]
    with pytest.raises(SecateurError, match="leaves out layers"):
        config.apply_vllm_mapper(WeightsMapper(orig_to_new_prefix={"language_model.a": None}))
