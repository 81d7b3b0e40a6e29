"""Which parameters each method trains, by name, in every family."""

import contextlib
from collections.abc import Sequence

import pytest
import torch
from families import FAMILIES, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from secateur.compress import compress
from secateur.errors import SecateurError
from secateur.models.swap import convert_sparse24
from secateur.training.trained import (
    blocks_near_cuts,
    head_and_last_blocks,
    linear_modules,
    linear_parameters,
    mlp_parameters,
    only_trained,
)

QKVO = [f"self_attn.{kind}_proj.weight" for kind in "qkvo"]
QKV_BIASES = [f"self_attn.{kind}_proj.bias" for kind in "qkv"]
GATED = [f"mlp.{kind}_proj.weight" for kind in ("gate", "up", "down")]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def with_bias(*modules: str) -> list[str]:
    return [f"{module}.{kind}" for module in modules for kind in ("weight", "bias")]


# Family -> place of the blocks, names of the attention's, names of the MLP's in each block.
LAYOUTS: dict[str, tuple[str, list[str], list[list[str]]]] = {
    "llama": ("model.layers", QKVO, [GATED]),
    "mistral": ("model.layers", QKVO, [GATED]),
    "qwen2": ("model.layers", QKVO + QKV_BIASES, [GATED]),
    "qwen3": ("model.layers", QKVO, [GATED]),
    "gemma3": ("model.layers", QKVO, [GATED]),
    "phi3": (
        "model.layers",
        ["self_attn.qkv_proj.weight", "self_attn.o_proj.weight"],
        [["mlp.gate_up_proj.weight", "mlp.down_proj.weight"]],
    ),
    "gpt2": (
        "transformer.h",
        with_bias("attn.c_attn", "attn.c_proj"),
        [with_bias("mlp.c_fc", "mlp.c_proj")],
    ),
    "gptj": (
        "transformer.h",
        [f"attn.{kind}_proj.weight" for kind in ("q", "k", "v", "out")],
        [with_bias("mlp.fc_in", "mlp.fc_out")],
    ),
    "opt": (
        "model.decoder.layers",
        with_bias(*(f"self_attn.{kind}_proj" for kind in ("q", "k", "v", "out"))),
        [with_bias("fc1", "fc2")],
    ),
    "gpt_neox": (
        "gpt_neox.layers",
        with_bias("attention.query_key_value", "attention.dense"),
        [with_bias("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")],
    ),
    "mixtral": ("model.layers", QKVO, [EXPERTS]),
    "qwen3_moe": ("model.layers", QKVO, [GATED, EXPERTS]),
    "qwen3_moe_listed": ("model.layers", QKVO, [EXPERTS, GATED]),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_names(family: str) -> None:
    place, attention, mlps = LAYOUTS[family]
    model = tiny_model(family, 2)
    for blocks in ([0], [1], [0, 1]):
        gates = {f"{place}.{i}.{n}" for i in blocks for n in mlps[i % len(mlps)]}
        rest = {f"{place}.{i}.{n}" for i in blocks for n in attention}
        found = mlp_parameters(model, blocks)
        assert (set(found), len(found)) == (gates, len(gates))
        found = linear_parameters(model, blocks)
        assert (set(found), len(found)) == (gates | rest, len(gates | rest))
        names = {n.removesuffix(".weight") for n in gates | rest if n.endswith(".weight")}
        found = linear_modules(model, blocks)
        assert (set(found), len(found)) == (names, len(names))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_factors_take_the_place_of_their_matrix(family: str) -> None:
    model = tiny_model(family, 2)
    dense = {*linear_parameters(model, [0, 1])}
    gates = {*mlp_parameters(model, [0, 1])}
    place, site = LAYOUTS[family][0], "mlp.down_proj" if family == "llama" else "mlp.c_proj"
    name = f"{place}.1.{site}"
    compress(
        model, {"stages": [{"stage": "factor", "method": "svd", "rank": 8, "targets": [name]}]}
    )
    factors = {f"{name}.down", f"{name}.up"}
    assert {*linear_parameters(model, [0, 1])} == dense - {f"{name}.weight"} | factors
    assert {*mlp_parameters(model, [0, 1])} == gates - {f"{name}.weight"} | factors
    assert not factors & {*linear_parameters(model, [0])}


def test_kept_values_of_compact_layers_are_trained_and_indices_are_not() -> None:
    model = tiny_model("llama", 2)
    gates = mlp_parameters(model, [0, 1])
    compress(model, {"stages": [{"stage": "prune", "method": "magnitude", "pattern": "2:4"}]})
    names = convert_sparse24(model)
    assert "model.layers.0.mlp.down_proj" in names
    assert mlp_parameters(model, [0, 1]) == gates


def test_adapters_stand_beside_what_computes_a_linear_layer() -> None:
    class ByGroups(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 2

    model = tiny_model("llama")
    layer = model.get_submodule("model.layers.0.self_attn.o_proj")
    layer.__class__ = ByGroups
    names = linear_modules(model, [0, 1])
    assert "model.layers.0.self_attn.o_proj" not in names
    assert len(names) == 13


def test_no_matrix_of_the_kind() -> None:
    model = tiny_model("llama", 2)
    for module in (model.model.layers[1].mlp, model.model.layers[1].self_attn):
        for name, _ in list(module.named_children()):
            if name.endswith("_proj"):
                setattr(module, name, nn.Identity())
    with pytest.raises(SecateurError, match=r"expected a matrix in an MLP .* blocks \[1\], found"):
        mlp_parameters(model, [1])
    with pytest.raises(
        SecateurError, match=r"expected a matrix to train in blocks \[1\], found no"
    ):
        linear_parameters(model, [1])
    with pytest.raises(SecateurError, match=r"expected a linear layer to train in blocks \[1\]"):
        linear_modules(model, [1])


# The head and the last blocks.


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "mixtral"])
def test_head_and_last_blocks(family: str) -> None:
    model = tiny_model(family, 3)
    place = LAYOUTS[family][0]
    head = "lm_head.weight"
    names = [name for name, _ in model.named_parameters()]
    assert head in names
    for count in (1, 2, 3):
        inside = tuple(f"{place}.{3 - 1 - i}." for i in range(count))
        expected = {n for n in names if n == head or n.startswith(inside)}
        found = head_and_last_blocks(model, count)
        assert (set(found), len(found)) == (expected, len(expected))


def test_a_tied_head_moves_the_embeddings() -> None:
    model = tiny_model("gpt2", 2)
    names = head_and_last_blocks(model, 1)
    assert "transformer.wte.weight" in names
    assert "transformer.wpe.weight" not in names
    with only_trained(model, names) as count:
        block = sum(p.numel() for p in model.transformer.h[1].parameters())
        assert count == model.transformer.wte.weight.numel() + block
        assert model.lm_head.weight.requires_grad


def test_head_errors() -> None:
    model = tiny_model("llama", 2)
    with pytest.raises(SecateurError, match="expected at least 3 blocks to train, the model has 2"):
        head_and_last_blocks(model, 3)
    with pytest.raises(SecateurError, match="expected a head in LlamaModel, found none"):
        head_and_last_blocks(model.model, 1)


# Near cuts.


@pytest.mark.parametrize(
    ("kept", "before", "distance", "expected"),
    [
        ((0, 1, 4, 5), 6, 1, (1, 2)),
        ((0, 1, 4, 5), 6, 2, (0, 1, 2, 3)),
        ((0, 1, 2, 3), 6, 1, (3,)),
        ((2, 3, 4, 5), 6, 1, (0,)),
        ((2, 3, 4, 5), 6, 3, (0, 1, 2)),
        ((0, 2, 3, 4, 6), 7, 1, (0, 1, 3, 4)),
        ((1,), 3, 5, (0,)),
    ],
)
def test_near_cuts(
    kept: Sequence[int], before: int, distance: int, expected: tuple[int, ...]
) -> None:
    assert blocks_near_cuts(kept, before, distance) == expected


@given(
    num_blocks=st.integers(2, 14),
    distance=st.integers(1, 5),
    data=st.data(),
)
def test_near_cuts_by_walking(num_blocks: int, distance: int, data: st.DataObject) -> None:
    kept = sorted(
        data.draw(st.sets(st.integers(0, num_blocks - 1), min_size=1, max_size=num_blocks - 1))
    )

    def steps_to_a_gap(place: int) -> int:
        """Kept blocks from here to a missing one, this one included, up or down."""
        found = []
        for direction in (1, -1):
            old, passed = kept[place], 0
            while old in kept:
                old, passed = old + direction, passed + 1
            if 0 <= old < num_blocks:
                found.append(passed)
        return min(found, default=num_blocks + 1)

    nearest = [
        min(
            # Across other gaps blocks are counted by their new places.
            steps_to_a_gap(other) + abs(other - place)
            for other in range(len(kept))
        )
        for place in range(len(kept))
    ]
    expected = tuple(p for p, steps in enumerate(nearest) if steps <= distance)
    assert blocks_near_cuts(kept, num_blocks, distance) == expected


def test_near_cuts_without_a_cut() -> None:
    with pytest.raises(SecateurError, match="expected a model with dropped blocks for near_cut"):
        blocks_near_cuts((0, 1, 2), 3, 1)


# Only what is named takes gradients.


def test_only_the_named_take_gradients_and_all_is_as_before() -> None:
    model = tiny_model("llama", 2)
    frozen = "model.norm.weight"
    model.get_parameter(frozen).requires_grad_(False)
    names = mlp_parameters(model, [1])
    with contextlib.suppress(ZeroDivisionError), only_trained(model, names) as count:
        assert count == sum(model.get_parameter(name).numel() for name in names)
        trained = {name for name, item in model.named_parameters() if item.requires_grad}
        assert trained == set(names)
        ids = torch.arange(3, 9)[None]
        model(input_ids=ids, labels=ids).loss.backward()
        assert model.get_parameter(names[0]).grad is not None
        raise ZeroDivisionError
    for name, item in model.named_parameters():
        assert item.requires_grad == (name != frozen)
        assert item.grad is None
