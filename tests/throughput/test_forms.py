"""Shapes, random models, and what forms make of them."""

from dataclasses import replace

import pytest
import torch
from families import tiny_model
from torch import nn

from secateur.errors import SecateurError
from secateur.models.blocks import find_blocks
from secateur.models.measure import num_bytes
from secateur.models.swap import compressed_modules, find_sparse24
from secateur.modules import LowRankLinear, Sparse24Linear, SparseLowRankLinear
from secateur.throughput.bandwidth import copy_bandwidth, streamed_bytes
from secateur.throughput.forms import Form, apply_form, parse_form
from secateur.throughput.random_model import random_model
from secateur.throughput.shapes import SHAPES, shape_named

CPU = torch.device("cpu")
TOKENS = torch.arange(3, 10)[None]


def tiny(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    return random_model(shape_named("tiny"), dtype, CPU, seed)


def test_known_shapes_have_their_published_sizes() -> None:
    with torch.device("meta"):
        sizes = {
            name: sum(
                p.numel()
                for p in random_model(
                    SHAPES[name], torch.bfloat16, torch.device("meta")
                ).parameters()
            )
            for name in ("llama-3-8b", "llama-3.2-1b", "qwen3-8b", "qwen3-0.6b")
        }
    assert sizes == {
        "llama-3-8b": 8_030_261_248,
        "llama-3.2-1b": 1_235_814_400,
        "qwen3-8b": 8_190_735_360,
        "qwen3-0.6b": 596_049_920,
    }


def test_a_shape_that_is_not_known_is_refused() -> None:
    with pytest.raises(SecateurError, match=r"expected --shape one of llama-3-8b, .*, got 'x'"):
        shape_named("x")


def test_random_models_depend_on_their_seed_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = tiny(), tiny(), tiny(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in first.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(other.state_dict()[name], first.state_dict()[name])
    assert not first.training
    assert first.config.eos_token_id is None  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("dense", Form()),
        ("2:4", Form(sparse24=True)),
        (" depth + low-rank ", Form(depth=True, low_rank=True)),
        ("2:4+low-rank+depth", Form(True, True, True)),
    ],
)
def test_forms_are_read(text: str, form: Form) -> None:
    assert parse_form(text) == form


@pytest.mark.parametrize("text", ["", "x", "dense+depth", "depth+depth", "2:4+"])
def test_forms_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(SecateurError, match="expected a form: dense, or some of 2:4"):
        parse_form(text)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_of_four_weights_of_every_matrix_stay(dtype: torch.dtype) -> None:
    model, dense = tiny(dtype), tiny(dtype)
    apply_form(model, Form(sparse24=True))
    layers = compressed_modules(model)
    assert len(layers) == 4 * 7
    for name, layer in layers.items():
        assert isinstance(layer, Sparse24Linear)
        assert layer.is_packed == (dtype == torch.bfloat16)
        weight = dense.get_submodule(name).weight.detach()  # type: ignore[union-attr]
        groups = weight.float().abs().reshape(-1, 4)  # type: ignore[operator]
        # Of distinct values the two largest are above the third.
        kept = groups > groups.sort(dim=1, descending=True).values[:, 2:3]
        if dtype == torch.float32:
            assert kept.sum(1).eq(2).all()
            x = torch.eye(weight.shape[1])  # type: ignore[index, arg-type]
            expected = torch.where(kept.view(weight.shape), weight, 0)  # type: ignore
            bias_free = layer(x).T
            assert torch.allclose(bias_free, expected, atol=1e-6)
    assert bool(model(TOKENS).logits.isfinite().all())


def test_low_rank_replaces_mlps_by_quarter_rank_factors() -> None:
    model = tiny()
    apply_form(model, Form(low_rank=True))
    layers = compressed_modules(model)
    assert {name.rpartition(".")[2] for name in layers} == {"gate_proj", "up_proj", "down_proj"}
    assert len(layers) == 4 * 3
    for layer in layers.values():
        assert isinstance(layer, LowRankLinear)
        assert layer.rank == 16
        size = layer.factors().to_dense().std()
        assert 0.01 < float(size) < 0.04  # the initial weights' 0.02
    assert bool(model(TOKENS).logits.isfinite().all())


def test_both_together_keep_factors_beside_the_mlps_2_of_4() -> None:
    model = tiny(torch.bfloat16)
    apply_form(model, parse_form("2:4+low-rank"))
    kinds = {name: type(layer) for name, layer in compressed_modules(model).items()}
    assert len(kinds) == 4 * 7
    for name, kind in kinds.items():
        assert kind is (SparseLowRankLinear if ".mlp." in name else Sparse24Linear)
    with pytest.raises(SecateurError, match=r"expected bfloat16 or float16 for .* got float32"):
        apply_form(tiny(), parse_form("2:4+low-rank"))


@pytest.mark.parametrize(("kept", "blocks"), [(0.75, 3), (1.0, 4), (0.5, 2)])
def test_depth_takes_middle_blocks(kept: float, blocks: int) -> None:
    model, dense = tiny(), tiny()
    apply_form(model, Form(depth=True), depth_kept=kept)
    found, before = find_blocks(model), find_blocks(dense)
    assert len(found) == blocks
    for place in (0, -1):
        ours, theirs = found.modules[place].state_dict(), before.modules[place].state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank_fraction": 0.0}, "expected a rank fraction above 0 and at most 1, got 0"),
        ({"depth_kept": 1.5}, "expected a part of the blocks above 0 and at most 1, got 1.5"),
        ({"depth_kept": 0.2}, "cannot drop 3 of 4 blocks: first and last stay"),
    ],
)
def test_numbers_out_of_range_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(SecateurError, match=message):
        apply_form(tiny(), Form(low_rank=True, depth=True), **change)


def test_a_model_without_linear_mlps_cannot_be_factored() -> None:
    with pytest.raises(SecateurError, match="found no linear layer of an MLP in GPT2"):
        apply_form(tiny_model("gpt2"), Form(low_rank=True))


def test_compressed_forms_hold_fewer_bytes() -> None:
    sizes = []
    for text in ("dense", "2:4", "low-rank", "depth"):
        model = tiny(torch.bfloat16)
        apply_form(model, parse_form(text))
        sizes.append(num_bytes(model))
        assert find_sparse24(model) == []
    assert max(sizes[1:]) < sizes[0]


def test_a_step_reads_all_but_embeddings_that_nothing_else_uses() -> None:
    tied = tiny()
    assert streamed_bytes(tied) == num_bytes(tied)
    untied = random_model(
        replace(
            shape_named("tiny"), fields=shape_named("tiny").fields | {"tie_word_embeddings": False}
        ),
        torch.float32,
        CPU,
    )
    assert num_bytes(untied) - streamed_bytes(untied) == 512 * 64 * 4


def test_bandwidth_counts_reads_and_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter(range(100))
    monkeypatch.setattr("secateur.throughput.bandwidth.perf_counter", lambda: next(moments))
    # Every copy takes one second of this clock.
    assert copy_bandwidth(CPU, rounds=3, num_bytes=4096) == 2 * 4096
