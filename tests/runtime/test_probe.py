"""What a forward pass tells of a model: which layers share an input."""

import pytest
import torch
from families import tiny_model
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.runtime.layers import LayerFacts
from secateur.runtime.probe import Call, groups_of, nearly_equal, probe_ids, record_calls
from secateur.runtime.units import gated_mlp_candidates, units_of

BF16 = torch.bfloat16


def facts(name: str, rows: int = 8, columns: int = 8, **more: object) -> LayerFacts:
    values: dict[str, object] = {"dtype": BF16, "form": "dense", **more}
    return LayerFacts(name, (rows, columns), **values)  # type: ignore[arg-type]


def test_groups_are_children_of_one_parent_called_once_with_one_tensor() -> None:
    x, y, same_values = torch.zeros(2), torch.zeros(2), torch.zeros(2)
    calls = [
        Call("a.k", x),
        Call("a.q", x),
        Call("b.q", x),
        Call("a.o", y),
        Call("b.up", y),
        Call("b.gate", same_values),
        Call("c.one", x),
        Call("c.two", x),
        Call("c.one", y),
    ]
    assert groups_of(calls) == [("a.k", "a.q")]
    assert groups_of([]) == []


def test_calls_of_a_model() -> None:
    model = tiny_model("gptj", 1)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    calls = record_calls(model, layers)
    names = [call.name for call in calls]
    assert sorted(names) == sorted(layers)
    block = "transformer.h.0"
    assert groups_of(calls) == [tuple(f"{block}.attn.{name}_proj" for name in "qkv")]
    # GPT-J's MLP has the same input, but another parent.
    inputs = {call.name: call.x for call in calls}
    assert inputs[f"{block}.mlp.fc_in"] is inputs[f"{block}.attn.q_proj"]
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_small_vocabulary_and_a_model_without_one() -> None:
    model = tiny_model("llama", 1)
    model.resize_token_embeddings(3)
    assert probe_ids(model).tolist() == [[0, 1, 2, 0, 1, 2, 0, 1]]
    with pytest.raises(SecateurError, match=r"with input embeddings .* got Linear; fuse=False"):
        probe_ids(nn.Linear(2, 2))


def test_rounding_and_more_than_that() -> None:
    exact = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    rounded = exact.to(BF16)
    assert nearly_equal(rounded, (exact * (1 + 2**-8)).to(BF16))
    assert not nearly_equal(rounded, (exact * 1.05).to(BF16))
    assert not nearly_equal(rounded, rounded[:1])
    assert not nearly_equal(rounded, rounded.float())
    assert not nearly_equal(rounded * torch.nan, rounded * torch.nan)


def test_units_have_one_form() -> None:
    layers = [
        facts("q", form="2:4"),
        facts("k"),
        facts("v", form="2:4"),
        facts("o"),
        facts("up", could_be_24=True),
        facts("gate"),
    ]
    units = units_of({x.name: x for x in layers}, [("q", "k", "v"), ("gate", "up")])
    names = [[layer.name for layer in unit] for unit in units]
    assert names == [["q", "v"], ["k"], ["o"], ["up"], ["gate"]]
    swapped = units_of({x.name: x for x in layers}, [("v", "q")])
    assert [layer.name for layer in swapped[0]] == ["v", "q"], "in the order of calls"


class Odd(nn.Module):
    """Shaped as a gated MLP, with a parameter of its own."""

    def __init__(self, scaled: bool) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 4)
        if scaled:
            self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


def test_candidates_for_gated_mlps() -> None:
    model = nn.ModuleDict({"a": Odd(False), "b": Odd(True)})
    shapes = {"gate": (6, 4), "up": (6, 4), "down": (4, 6)}
    layers = [facts(f"{m}.{name}", *shape) for m in "ab" for name, shape in shapes.items()]
    units = units_of({x.name: x for x in layers}, [(f"{m}.up", f"{m}.gate") for m in "ab"])
    called = [f"{m}.{name}" for m in "ab" for name in ("up", "gate", "down")]
    assert gated_mlp_candidates(model, units, called) == [("a", ("up", "gate"), "down")]
    alone = [(layer,) for layer in layers]
    assert gated_mlp_candidates(model, alone, called) == []
    assert gated_mlp_candidates(model, units, called[:2]) == []
