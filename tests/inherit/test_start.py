"""How weights begin: which are the parent's, which are new."""

import pytest
import torch
from families import FAMILIES, tiny_model
from small_trainings import same_values, values_of
from torch import nn

from secateur.compress import compress
from secateur.errors import SecateurError
from secateur.inherit.start import initialise, initialise_part, stack_top
from secateur.models.blocks import find_blocks

ATTENTION = ("self_attn.", "attn.", "attention.")


@pytest.mark.parametrize("family", FAMILIES)
def test_random_is_new_everywhere_and_the_same_each_time(family: str) -> None:
    parent = values_of(tiny_model(family, 4))
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(made))  # of no matter
        state = torch.random.get_rng_state()
        model = tiny_model(family, 4)
        identities = [id(item) for item in model.parameters()]
        initialise(model, seed)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert [id(item) for item in model.parameters()] == identities
        assert model.config == tiny_model(family, 4).config
        made.append(values_of(model))
    assert same_values(made[0], made[1])
    for name, value in made[0].items():
        assert not torch.equal(value, parent[name]), name  # `tiny_model` has noise in constants
        is_constant = bool((value == value.flatten()[0]).all())
        assert is_constant == torch.equal(value, made[2][name]), name
        if value.ndim > 1:
            # As models are initialised: small and about zero.
            assert 0.0 < float(value.std()) < 0.1, name
            assert abs(float(value.mean())) < 0.01, name


def test_new_weights_have_the_dtype_of_the_parent() -> None:
    model = tiny_model("llama").to(torch.bfloat16)
    initialise(model, 0)
    assert {item.dtype for item in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("part", ["attention", "mlp", "both"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_part_is_inherited(family: str, part: str) -> None:
    model = tiny_model(family, 4)
    before = values_of(model)
    initialise_part(model, part, 0)  # type: ignore[arg-type]
    after = values_of(model)
    place = f"{find_blocks(model).name}."
    for name, value in after.items():
        inside = name.removeprefix(place).partition(".")[2] if name.startswith(place) else ""
        is_matrix = value.ndim > 1 and inside != ""
        is_attention = inside.startswith(ATTENTION)
        is_new = is_matrix and part != "both" and is_attention == (part == "mlp")
        assert torch.equal(value, before[name]) == (not is_new), name


def test_a_model_that_cannot_be_built_anew() -> None:
    class Stubborn(nn.Module):
        def __init__(self, config: object) -> None:
            super().__init__()
            raise ValueError("needs more than a configuration")

    model = Stubborn.__new__(Stubborn)
    nn.Module.__init__(model)
    model.config = object()
    message = "Stubborn cannot be built anew from its configuration: needs more than a config"
    with pytest.raises(SecateurError, match=message):
        initialise(model, 0)


def test_a_compressed_model_cannot_be_initialised() -> None:
    model = tiny_model("llama")
    compress(model, {"stages": [{"stage": "factor", "method": "svd", "rank": 8}]})
    before = values_of(model)
    message = "expected a model with plain layers to initialise, but .*down is none of a new"
    with pytest.raises(SecateurError, match=message):
        initialise(model, 0)
    with pytest.raises(SecateurError, match=message):
        initialise_part(model, "attention", 0)
    assert same_values(values_of(model), before)


def test_stacked_blocks_are_copies_of_the_top_ones() -> None:
    model = tiny_model("llama", 7)
    blocks = list(find_blocks(model).modules)
    before = [values_of(block) for block in blocks]
    stack_top(blocks, 3, 2)
    after = [values_of(block) for block in blocks]
    for index, source in enumerate((0, 1, 2, 1, 2, 5, 6)):
        assert same_values(after[index], before[source])


def test_more_copies_than_blocks() -> None:
    blocks = list(find_blocks(tiny_model("llama", 4)).modules)
    before = [values_of(block) for block in blocks]
    stack_top(blocks, 1, 3)
    # There is one block to copy, and then its copies.
    for block in blocks[1:]:
        assert same_values(values_of(block), before[0])


def test_blocks_of_other_shapes_cannot_be_stacked() -> None:
    blocks = list(find_blocks(tiny_model("qwen3_moe", 4)).modules)
    with pytest.raises(SecateurError, match="block 2 cannot be a copy of a lower one"):
        stack_top(blocks, 2, 1)
