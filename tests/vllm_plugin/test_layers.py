"""vLLM's real linear layers, in one process, from create_weights to apply."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm")

from vllm.config import DeviceConfig, LoadConfig, VllmConfig, set_current_vllm_config
from vllm_plugin.served import (
    BLOCK,
    HEAD_SIZE,
    HEADS,
    KV_HEADS,
    build,
    config_of,
    finish,
    inputs,
    load,
    ranks,
)
from vllm_plugin.stored import Stored, expected, stored

from secateur.errors import SecateurError
from secateur_kernels.testing.tolerance import assert_same_bits, assert_within

KINDS = ("sparse24", "low_rank", "sparse24_low_rank")
QKV_ROWS = (HEADS * HEAD_SIZE, KV_HEADS * HEAD_SIZE, KV_HEADS * HEAD_SIZE)


@pytest.fixture(scope="module", autouse=True)
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with ranks(tmp_path_factory.mktemp("ranks") / "file"):
        yield


def layers_of(
    name: str, kinds: tuple[str, ...], rows: tuple[int, ...], columns: int, **more: Any
) -> dict[str, Stored]:
    parent = f"{BLOCK}.{name}".rpartition(".")[0]
    parts = {"qkv_proj": "qkv", "gate_up_proj": ("gate", "up")}.get(name.rpartition(".")[2])
    names = [f"{parent}.{part}_proj" for part in parts] if parts else [f"{BLOCK}.{name}"]
    return {
        part: stored(kind, count, columns, seed=index, **more)
        for index, (part, kind, count) in enumerate(zip(names, kinds, rows, strict=True))
    }


def check(name: str, layers: dict[str, Stored], rows: tuple[int, ...], columns: int) -> Any:
    bias = any("bias" in layer.tensors for layer in layers.values())
    layer = build(name, columns, rows, config_of(layers), bias=bias)
    load(layer, name, layers)
    finish(layer)
    x = inputs(columns)
    y, _ = layer(x)
    start = 0
    for part in layers.values():
        result = expected(part, x)
        stop = start + result.value.shape[1]
        assert_within(y[:, start:stop], result)
        start = stop
    assert start == y.shape[1]
    return layer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [
        ("mlp.fc1", (40,), 52),
        ("self_attn.o_proj", (36,), 44),
        ("mlp.router", (24,), 20),
    ],
)
@pytest.mark.parametrize("bias", [False, True])
def test_single_layers(kind: str, name: str, rows: tuple[int], columns: int, bias: bool) -> None:
    layer = check(name, layers_of(name, (kind,), rows, columns, bias=bias), rows, columns)
    assert len(layer.segments) == 1


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("kinds", "segments"),
    [
        (("sparse24", "sparse24", "sparse24"), 1),
        (("low_rank", "low_rank", "low_rank"), 1),
        (("sparse24_low_rank", "sparse24_low_rank", "sparse24"), 2),
        (("dense", "sparse24", "low_rank"), 3),
        (("sparse24", "dense", "dense"), 2),
    ],
)
def test_fused_attention(kinds: tuple[str, ...], segments: int, bias: bool) -> None:
    layers = layers_of("self_attn.qkv_proj", kinds, QKV_ROWS, 36, bias=bias)
    layer = check("self_attn.qkv_proj", layers, QKV_ROWS, 36)
    assert len(layer.segments) == segments


@pytest.mark.parametrize(
    "kinds",
    [
        ("sparse24", "sparse24"),
        ("low_rank", "low_rank"),
        ("sparse24", "dense"),
        ("low_rank", "sparse24_low_rank"),
    ],
)
def test_fused_mlp(kinds: tuple[str, ...]) -> None:
    layers = layers_of("mlp.gate_up_proj", kinds, (24, 24), 20)
    check("mlp.gate_up_proj", layers, (24, 24), 20)


def test_weights_are_the_stored_ones_bit_for_bit() -> None:
    layers = layers_of("self_attn.qkv_proj", ("dense", "sparse24", "sparse24"), QKV_ROWS, 36)
    layer = check("self_attn.qkv_proj", layers, QKV_ROWS, 36)
    dense, sparse = layer.segments
    q, k, v = (part.sparse() for part in layers.values())
    assert_same_bits(dense.weight, q)
    assert_same_bits(sparse.dense_weight(), torch.cat([k, v]))
    assert not any(hasattr(layer, leaf) for leaf in ("weight", "indices"))


def test_ranks_may_differ_in_a_fused_layer() -> None:
    names = [f"{BLOCK}.mlp.{part}_proj" for part in ("gate", "up")]
    layers = {
        name: stored("low_rank", 24, 20, rank) for name, rank in zip(names, (5, 33), strict=True)
    }
    layer = check("mlp.gate_up_proj", layers, (24, 24), 20)
    assert [segment.rank for segment in layer.segments] == [16, 48]


def test_a_shared_down_is_held_once() -> None:
    layers = layers_of("self_attn.qkv_proj", ("low_rank",) * 3, QKV_ROWS, 36)
    q, k, v = layers
    for name in (k, v):
        del layers[name].tensors["down"]
    config = config_of(layers, shared_down={k: q, v: q})
    layer = build("self_attn.qkv_proj", 36, QKV_ROWS, config)
    load(layer, "self_attn.qkv_proj", layers)
    (segment,) = finish(layer).segments
    assert segment.down.shape == (16, 36)
    x = inputs(36)
    y, _ = layer(x)
    down = layers[q].tensors["down"]
    parts = y.split(QKV_ROWS, dim=1)
    for part, name in zip(parts, layers, strict=True):
        assert_within(part, expected(layers[name], x, down))


@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_the_checkpoint_holds_fused(kind: str) -> None:
    name = f"{BLOCK}.mlp.gate_up_proj"
    layers = {name: stored(kind, 48, 20)}
    layer = build("mlp.gate_up_proj", 20, (24, 24), config_of(layers))
    for leaf, parameter in list(layer.named_parameters()):
        parameter.weight_loader(parameter, layers[name].tensors[leaf])
    finish(layer)
    x = inputs(20)
    assert_within(layer(x)[0], expected(layers[name], x))
    assert len(layer.segments) == 1


def test_bias_that_vllm_adds_itself() -> None:
    layers = layers_of("mlp.fc1", ("sparse24",), (40,), 52, bias=True)
    layer = build("mlp.fc1", 52, (40,), config_of(layers), bias=True, skip_bias_add=True)
    load(layer, "mlp.fc1", layers)
    x = inputs(52)
    y, bias = finish(layer)(x)
    (part,) = layers.values()
    assert_within(y, expected(part, x, bias=False))
    assert_same_bits(bias, part.tensors["bias"])
    with pytest.raises(SecateurError, match="expected to be called without the layer's bias"):
        layer.quant_method.apply(layer, x, bias)


def test_dense_layers_are_vllms_own() -> None:
    layers = {
        **layers_of("mlp.fc1", ("dense",), (40,), 52, bias=True),
        f"{BLOCK}.mlp.fc2": stored("sparse24", 8, 8),
    }
    config = config_of(layers)
    other = build("mlp.fc2", 8, (8,), config)
    layer = build("mlp.fc1", 52, (40,), config, bias=True)
    load(layer, "mlp.fc1", layers)
    finish(layer)
    x = inputs(52)
    assert_within(layer(x)[0], expected(layers[f"{BLOCK}.mlp.fc1"], x).rounded(2.0**-9))
    assert other is not None


@pytest.mark.parametrize("kind", ["dense", *KINDS])
@pytest.mark.parametrize("name", ["self_attn.qkv_proj", "mlp.fc1"])
def test_every_missing_tensor_is_an_error(kind: str, name: str) -> None:
    rows = QKV_ROWS if "qkv" in name else (40,)
    whole = layers_of(name, (kind,) * len(rows), rows, 36, bias=True)
    config_layers = {**whole, f"{BLOCK}.mlp.fc2": stored("sparse24", 8, 8)}
    last = list(whole)[-1]
    for leaf in whole[last].tensors:
        config = config_of(config_layers)
        build("mlp.fc2", 8, (8,), config)
        layer = build(name, 36, rows, config, bias=True)
        part = {k: v for k, v in whole[last].tensors.items() if k != leaf}
        load(layer, name, {**whole, last: Stored(whole[last].spec, part)})
        with pytest.raises(SecateurError, match=f"the checkpoint does not hold .*{leaf}"):
            finish(layer)


def test_tensors_of_other_shapes_and_forms_are_refused() -> None:
    layers = layers_of("self_attn.qkv_proj", ("dense", "sparse24", "low_rank"), QKV_ROWS, 36)
    layer = build("self_attn.qkv_proj", 36, QKV_ROWS, config_of(layers))
    weight, indices = layer.weight, layer.indices
    with pytest.raises(
        SecateurError, match=r"k_proj.weight: expected \[32, 18\] .* got \[32, 36\]"
    ):
        weight.weight_loader(weight, torch.zeros(32, 36), "k")
    with pytest.raises(SecateurError, match="does not list such a form"):
        weight.weight_loader(weight, torch.zeros(32, 36), "v")
    with pytest.raises(SecateurError, match=r"expected \[32, 5\] for torch.uint8, got .*float32"):
        indices.weight_loader(indices, torch.zeros(32, 5), "k")


def test_corrupt_index_pairs_are_named() -> None:
    layers = layers_of("mlp.fc1", ("sparse24",), (40,), 52)
    layer = build("mlp.fc1", 52, (40,), config_of(layers))
    load(layer, "mlp.fc1", layers)
    layer.indices.data.zero_()
    with pytest.raises(SecateurError, match=f"{BLOCK}.mlp.fc1: "):
        finish(layer)


@pytest.mark.parametrize("stored_bias", [False, True])
def test_bias_must_be_where_the_checkpoint_has_one(stored_bias: bool) -> None:
    layers = layers_of("mlp.fc1", ("low_rank",), (40,), 52, bias=stored_bias)
    layer = build("mlp.fc1", 52, (40,), config_of(layers), bias=not stored_bias)
    for leaf, parameter in list(layer.named_parameters()):
        tensor = layers[f"{BLOCK}.mlp.fc1"].tensors.get(leaf, torch.zeros(40))
        parameter.weight_loader(parameter, tensor)
    with pytest.raises(SecateurError, match="bias as in the checkpoint, vLLM's is"):
        finish(layer)


def test_2_4_needs_16_bits() -> None:
    layers = layers_of("mlp.fc1", ("sparse24",), (40,), 52)
    with pytest.raises(SecateurError, match="expected dtype bfloat16 or float16"):
        build("mlp.fc1", 52, (40,), config_of(layers), params_dtype=torch.float32)


def test_removed_parts_give_zeros(tmp_path: Path) -> None:
    removed = [{"width": 36, "modules": [f"{BLOCK}.self_attn"]}]
    config = config_of({f"{BLOCK}.mlp.fc1": stored("sparse24", 40, 36)}, removed=removed)
    build("mlp.fc1", 36, (40,), config)
    qkv = finish(build("self_attn.qkv_proj", 36, QKV_ROWS, config, bias=True))
    out = finish(build("self_attn.o_proj", 64, (36,), config))
    x = inputs(36)
    y, _ = qkv(x)
    z, _ = out(y[:, :64])
    assert y.shape == (5, sum(QKV_ROWS))
    assert not y.any()
    assert z.shape == (5, 36)
    assert not z.any()
    assert not list(out.parameters())


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("self_attn.qkv_proj", ("sparse24", "low_rank", "dense")),
        ("self_attn.qkv_proj", ("dense", "dense", "dense")),
        ("mlp.fc1", ("sparse24_low_rank",)),
        ("mlp.router", ("sparse24",)),
    ],
)
def test_random_weights_of_vllm_are_taken(name: str, kinds: tuple[str, ...]) -> None:
    """`--load-format dummy`: vLLM fills floating-point tensors and loads nothing."""
    rows = QKV_ROWS if "qkv" in name else (40,)
    layers = layers_of(name, kinds, rows, 36, bias=True)
    compressed = {**layers, f"{BLOCK}.mlp.fc2": stored("sparse24", 8, 8)}
    config = config_of(compressed)
    build("mlp.fc2", 8, (8,), config)
    made_up = VllmConfig(
        device_config=DeviceConfig(device="cpu"), load_config=LoadConfig(load_format="dummy")
    )
    with set_current_vllm_config(made_up):
        layer = build(name, 36, rows, config, bias=True)
    for tensor in layer.state_dict().values():
        if tensor.is_floating_point():
            tensor.fill_(0.01)
    y, _ = finish(layer)(inputs(36))
    assert y.shape == (5, sum(rows))
    assert y.isfinite().all()
    assert y.any()
