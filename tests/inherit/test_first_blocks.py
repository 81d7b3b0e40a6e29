"""Models of first blocks against models that were built with so many blocks."""

import copy
from pathlib import Path

import pytest
import torch
from families import FAMILIES, MOST_DIFFERENT, VOCAB_SIZE, model_from, tiny_model
from small_trainings import same_values, values_of
from thoroughness import most_telling
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel

from secateur.errors import SecateurError
from secateur.inherit.first_blocks import FirstBlocks
from secateur.models.blocks import find_blocks

NUM_BLOCKS = 6
IDS = torch.randint(3, VOCAB_SIZE, (2, 20), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    found: Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


@torch.no_grad()
def greedy(model: PreTrainedModel) -> list[list[int]]:
    mask = torch.ones_like(IDS)
    found: list[list[int]] = model.generate(
        input_ids=IDS, attention_mask=mask, max_new_tokens=4, do_sample=False
    ).tolist()
    return found


def built_with(family: str, model: PreTrainedModel, count: int) -> PreTrainedModel:
    """A model whose configuration has so many blocks of the same kinds, with the same weights."""
    config = FAMILIES[family](NUM_BLOCKS)
    values = copy.deepcopy(model.config.to_dict())
    config.num_hidden_layers = count
    for name in ("layer_types", "mlp_layer_types"):
        if isinstance(values.get(name), list):
            setattr(config, name, values[name][:count])
    other = model_from(config)
    other.load_state_dict(
        {name: value for name, value in model.state_dict().items() if name in other.state_dict()}
    )
    return other


@pytest.mark.parametrize("family", most_telling(list(FAMILIES), MOST_DIFFERENT))
def test_first_blocks_of_every_family(family: str) -> None:
    model = tiny_model(family, NUM_BLOCKS)
    config, everything = copy.deepcopy(vars(model.config)), values_of(model)
    modules, whole = list(find_blocks(model).modules), logits(model)
    first = FirstBlocks(model)
    assert len(first) == NUM_BLOCKS
    assert list(first.modules) == modules
    for count in (4, 2, 5):  # down and up again
        first.keep(count)
        assert list(find_blocks(model).modules) == modules[:count]
        assert model.config.num_hidden_layers == count
        expected = built_with(family, model, count)
        assert torch.equal(logits(model), logits(expected))
        assert greedy(model) == greedy(expected)
        assert not find_blocks(model).modules.training
    first.keep(NUM_BLOCKS)
    assert torch.equal(logits(model), whole)
    first.keep(2)
    first.restore()
    assert vars(model.config) == config
    assert list(vars(model.config)) == list(config)
    assert list(find_blocks(model).modules) == modules
    assert torch.equal(logits(model), whole)
    assert same_values(values_of(model), everything)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3", "gpt2", "qwen3_moe_listed"])
def test_what_is_saved_is_the_smaller_model(tmp_path: Path, family: str) -> None:
    model = tiny_model(family, NUM_BLOCKS)
    FirstBlocks(model).keep(4)
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert len(find_blocks(loaded)) == 4
    assert torch.equal(logits(loaded.eval()), logits(model))


def test_blocks_that_were_trained_stay_trained() -> None:
    model = tiny_model("llama", 4)
    first = FirstBlocks(model)
    first.keep(2)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.fill_(0.5)
    first.keep(3)
    assert (model.model.layers[0].mlp.up_proj.weight == 0.5).all()


def test_scales_by_depth_are_those_of_the_first_blocks() -> None:
    config = GPT2Config(
        n_layer=4,
        n_embd=32,
        n_head=4,
        n_positions=64,
        vocab_size=VOCAB_SIZE,
        scale_attn_by_inverse_layer_idx=True,
    )
    model = model_from(config)
    first = FirstBlocks(model)
    assert first.keep(3) != ()  # a warning about the last block
    small = copy.deepcopy(config)
    small.n_layer = 3
    expected = model_from(small)
    expected.load_state_dict(model.state_dict())
    assert torch.equal(logits(model), logits(expected))


@pytest.mark.parametrize("count", [0, -1, 5])
def test_counts_out_of_range(count: int) -> None:
    model = tiny_model("llama", 4)
    first = FirstBlocks(model)
    first.keep(2)
    with pytest.raises(SecateurError, match=f"expected between 1 and 4 blocks, got {count}"):
        first.keep(count)
    assert len(find_blocks(model)) == 2


def test_a_configuration_that_cannot_say_so_leaves_all_blocks() -> None:
    model = tiny_model("llama", 4)
    model.config.num_kv_shared_layers = 2
    first = FirstBlocks(model)
    with pytest.raises(SecateurError, match="num_kv_shared_layers"):
        first.keep(2)
    assert len(find_blocks(model)) == 4
    assert model.config.num_hidden_layers == 4
