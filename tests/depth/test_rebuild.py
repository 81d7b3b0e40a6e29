import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import FAMILIES
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma4TextConfig,
    LlamaForCausalLM,
    ModernBertDecoderConfig,
    PreTrainedConfig,
    XLMConfig,
)

from secateur.depth.drop import drop_blocks
from secateur.errors import SecateurError
from secateur.models.blocks import BlockList, find_blocks

# A model that cannot be rebuilt: attributes are renumbered by name.


class ToyBlock(nn.Module):
    def __init__(self, index: int) -> None:
        super().__init__()
        self.layer_idx = index
        self.inner = nn.Module()
        self.inner.layer_number = index
        self.inner.width = index
        self.inner.layer_id = "fixed"


class ToyModel(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList([ToyBlock(index) for index in range(4)])


@pytest.mark.parametrize("config", [SimpleNamespace(num_hidden_layers=4), None])
def test_model_of_another_library(config: Any) -> None:
    model = ToyModel(config)
    drop_blocks(model, find_blocks(model), [1])
    assert [block.layer_idx for block in model.layers] == [0, 1, 2]
    assert [block.inner.layer_number for block in model.layers] == [0, 1, 2]
    assert [block.inner.width for block in model.layers] == [0, 2, 3]
    assert {block.inner.layer_id for block in model.layers} == {"fixed"}
    assert config is None or config.num_hidden_layers == 3


class OuterConfig(SimpleNamespace):
    def get_text_config(self) -> Any:
        return self.text


def test_outer_configuration_that_repeats_the_count() -> None:
    whole = OuterConfig(num_hidden_layers=4, text=SimpleNamespace(num_hidden_layers=4))
    model = ToyModel(whole)
    drop_blocks(model, find_blocks(model), [1])
    assert (whole.num_hidden_layers, whole.text.num_hidden_layers) == (3, 3)


def test_outer_configuration_that_does_not() -> None:
    whole = OuterConfig(num_hidden_layers=9, text=SimpleNamespace(num_hidden_layers=4))
    model = ToyModel(whole)
    drop_blocks(model, find_blocks(model), [1])
    assert (whole.num_hidden_layers, whole.text.num_hidden_layers) == (9, 3)


# What a reload would build differently: the model is as it was.


@pytest.mark.parametrize(
    ("config", "dropped", "message"),
    [
        (
            lambda: ModernBertDecoderConfig(num_hidden_layers=6),
            [0],
            "block 1 would be block 0, and there the model's code adds, removes or changes attn",
        ),
        (
            lambda: XLMConfig(n_layers=4, emb_dim=32, n_heads=4, n_words=128),
            [1],
            "outside them these weights do too: transformer.attentions.3",
        ),
        (
            lambda: Gemma4TextConfig(num_hidden_layers=6, hidden_size_per_layer_input=0),
            [5],
            "layer_types was written as",
        ),
    ],
)
def test_refuses_what_a_reload_would_build_differently(
    config: Callable[[], PreTrainedConfig], dropped: list[int], message: str
) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config())
    blocks = find_blocks(model)
    before = copy.deepcopy(model.config.to_dict())
    with pytest.raises(SecateurError, match=message):
        drop_blocks(model, blocks, dropped)
    assert model.config.to_dict() == before
    assert find_blocks(model).modules is blocks.modules


class LastBlockDiffers(LlamaForCausalLM):
    """A model whose code does to the last block what no configuration says."""

    kind: str

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        last = self.model.layers[-1]
        if self.kind == "attribute":
            last.self_attn.is_last = True
            for block in self.model.layers[:-1]:
                block.self_attn.is_last = False
        if self.kind == "class":
            last.mlp.act_fn = nn.ReLU()
        if self.kind == "error" and len(self.model.layers) < 4:
            raise RuntimeError("too few layers")
        if self.kind == "count":
            self.model.layers.append(copy.deepcopy(last))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("attribute", "makes self_attn.is_last True instead of False"),
        ("class", "adds, removes or changes mlp.act_fn"),
        ("error", "LastBlockDiffers cannot be built from its configuration: too few layers"),
    ],
)
def test_refuses_what_the_models_code_decides(
    kind: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LastBlockDiffers, "kind", kind, raising=False)
    model = LastBlockDiffers(FAMILIES["llama"](4))
    with pytest.raises(SecateurError, match=message):
        drop_blocks(model, find_blocks(model), [3])
    assert len(model.model.layers) == 4


def test_refuses_a_model_that_builds_another_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LastBlockDiffers, "kind", "count", raising=False)
    model = LastBlockDiffers(FAMILIES["llama"](4))
    blocks = BlockList("model.layers", model.model.layers[:4])
    with pytest.raises(SecateurError, match="to build 3 blocks, it builds 4"):
        drop_blocks(model, blocks, [3])
