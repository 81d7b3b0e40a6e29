"""Weights loaded a second time, as vLLM does it between steps of training."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm")

from torch import Tensor, nn
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
    record_metadata_for_reloading,
)
from vllm_plugin.served import BLOCK, FUSED, build, config_of, finish, inputs, load, ranks
from vllm_plugin.stored import Stored, expected, stored

from secateur.errors import SecateurError
from secateur.integrations.vllm.segments import tensors_of
from secateur_kernels.testing.tolerance import assert_within, unit_of

COLUMNS = 36
ROWS = {"self_attn.qkv_proj": (64, 32, 32), "mlp.router": (24,)}
KINDS = ("sparse24", "low_rank", "sparse24_low_rank")


@pytest.fixture(scope="module", autouse=True)
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with ranks(tmp_path_factory.mktemp("ranks") / "file"):
        yield


def layers_of(name: str, kinds: tuple[str, ...], bias: bool, seed: int) -> dict[str, Stored]:
    parent, _, last = f"{BLOCK}.{name}".rpartition(".")
    return {
        f"{parent}.{part}": stored(kind, rows, COLUMNS, bias=bias, seed=seed + index)
        for index, (part, kind, rows) in enumerate(
            zip(FUSED.get(last, [last]), kinds, ROWS[name], strict=True)
        )
    }


def served(name: str, layers: dict[str, Stored], bias: bool) -> nn.Module:
    """A layer with the first values, inside of what vLLM takes for a model."""
    config = config_of({**layers, f"{BLOCK}.mlp.fc2": stored("sparse24", 8, 8)})
    build("mlp.fc2", 8, (8,), config)
    layer = build(name, COLUMNS, ROWS[name], config, bias=bias)
    record_metadata_for_reloading(nn.ModuleList([layer]))
    load(layer, name, layers)
    return finish(layer)


def reload(layer: nn.Module, name: str, layers: dict[str, Stored]) -> None:
    model = nn.ModuleList([layer])
    initialize_layerwise_reload(model)
    load(layer, name, layers)
    finalize_layerwise_reload(model, SimpleNamespace(dtype=None))


def assert_serves(layer: nn.Module, layers: dict[str, Stored]) -> None:
    x = inputs(COLUMNS)
    parts = layer(x)[0].split([expected(part, x).value.shape[1] for part in layers.values()], 1)
    for y, part in zip(parts, layers.values(), strict=True):
        result = expected(part, x)
        # A dense layer's bias is added by torch, which may round in between.
        assert_within(y, result.rounded(unit_of(y.dtype)) if part.spec is None else result)


def addresses(tensors: Any) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors if isinstance(tensor, Tensor)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("self_attn.qkv_proj", KINDS),
        ("self_attn.qkv_proj", ("sparse24", "dense", "dense")),
        ("self_attn.qkv_proj", ("dense",) * 3),
        *(("mlp.router", (kind,)) for kind in (*KINDS, "dense")),
    ],
)
def test_other_values_take_the_place_of_the_first(
    name: str, kinds: tuple[str, ...], bias: bool
) -> None:
    first, second = (layers_of(name, kinds, bias, seed) for seed in (0, 7))
    layer = served(name, first, bias)
    assert_serves(layer, first)
    before = addresses(tensors_of(getattr(layer, "segments", ())))
    reload(layer, name, second)
    assert_serves(layer, second)
    # CUDA graphs hold addresses: none may change.
    assert addresses(tensors_of(getattr(layer, "segments", ()))) == before


@pytest.mark.parametrize("kind", [*KINDS, "dense"])
def test_what_is_missing_the_second_time_is_an_error(kind: str) -> None:
    name = "self_attn.qkv_proj"
    whole = layers_of(name, (kind,) * 3, False, 0)
    layer = served(name, whole, False)
    last = list(whole)[-1]
    with pytest.raises(SecateurError, match="the checkpoint does not hold"):
        reload(layer, name, {**whole, last: Stored(whole[last].spec, {})})


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", [*KINDS, "dense"])
def test_processing_without_loading_changes_nothing(kind: str, bias: bool) -> None:
    name = "self_attn.qkv_proj"
    first, second = (layers_of(name, (kind,) * 3, bias, seed) for seed in (0, 7))
    layer = served(name, first, bias)
    assert_serves(finish(layer), first)
    reload(layer, name, second)
    assert_serves(finish(layer), second)


@pytest.mark.parametrize("left_out", ["weight", "bias"])
def test_half_of_a_dense_layer_is_not_taken_for_nothing(left_out: str) -> None:
    name = "mlp.router"
    whole = layers_of(name, ("dense",), True, 0)
    layer = served(name, whole, True)
    half = {
        name: Stored(None, {leaf: t for leaf, t in stored.tensors.items() if leaf != left_out})
        for name, stored in whole.items()
    }
    with pytest.raises(SecateurError, match=f"does not hold {BLOCK}.{name}.{left_out}"):
        reload(layer, name, half)
