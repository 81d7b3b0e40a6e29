"""Mamba in 16 bits: block 0 takes hidden states in bf16, all blocks give them in fp32."""

from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from families import VOCAB_SIZE, model_from
from streaming_same import require_same
from thoroughness import most_telling
from torch import Tensor, nn
from transformers import FalconMambaConfig, Mamba2Config, MambaConfig, PreTrainedConfig
from word_tokenizer import word_tokenizer

from secateur import compress
from secateur.calibration.inputs import capture_inputs
from secateur.calibration.tokens import CalibrationTokens
from secateur.errors import SecateurError
from secateur.models.blocks import find_blocks
from secateur.models.replay import hidden_of
from secateur.models.trace import trace_blocks, trace_without_weights

SMALL: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 3}
CONFIGS: dict[str, PreTrainedConfig] = {
    "mamba": MambaConfig(state_size=8, time_step_rank=4, **SMALL),
    "falcon_mamba": FalconMambaConfig(state_size=8, time_step_rank=4, **SMALL),
    "mamba2": Mamba2Config(
        state_size=8, num_heads=4, head_dim=16, n_groups=2, chunk_size=8, **SMALL
    ),
}
STAGES: dict[str, dict[str, Any]] = {
    "wanda": {"stage": "prune", "method": "wanda", "pattern": "2:4"},
    "wanda++": {"stage": "prune", "method": "wanda++", "pattern": "2:4"},
    "sparsegpt": {"stage": "prune", "method": "sparsegpt", "pattern": "2:4"},
    "svd-whitened": {"stage": "factor", "method": "svd-whitened", "rank": 4},
}


def in_bf16(name: str) -> Any:
    # Dropping blocks changes the configuration.
    return model_from(deepcopy(CONFIGS[name])).bfloat16()


def some_ids(rows: int = 6, length: int = 24) -> Tensor:
    return torch.randint(3, VOCAB_SIZE, (rows, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", CONFIGS)
def test_blocks_alone_give_the_very_bits_that_they_give_in_the_model(name: str) -> None:
    model, ids = in_bf16(name), some_ids(4)
    blocks = find_blocks(model)
    expected: list[Tensor] = []
    for block in blocks.modules:
        block.register_forward_hook(lambda _, __, out: expected.append(hidden_of(out).clone()))
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    found = list(expected)
    trace = trace_blocks(model, blocks, {}, ids[:1])
    assert trace.wider == trace_without_weights(model, blocks, ids[:1]).wider == torch.float32
    tokens = CalibrationTokens(tuple(ids), "")
    inputs = capture_inputs(model, blocks, trace, tokens, ids.numel(), torch.device("cpu"))
    for index, output in enumerate(found):
        assert output.dtype == torch.float32
        inputs.pass_through(blocks.modules[index], index, inputs.batch_sizes())
        assert torch.equal(inputs.hidden[0], output)


@pytest.mark.parametrize(
    ("name", "stage"),
    most_telling(
        list(product(CONFIGS, STAGES)),
        [
            ("mamba", "wanda++"),
            ("falcon_mamba", "wanda"),
            ("falcon_mamba", "svd-whitened"),
            ("mamba2", "sparsegpt"),
        ],
    ),
)
def test_streamed_they_become_what_they_become_in_memory(
    name: str, stage: str, tmp_path: Path
) -> None:
    in_bf16(name).save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    require_same(
        tmp_path / "model",
        {"stages": [STAGES[stage]]},
        tmp_path,
        calibration=some_ids(),
        checkpoint_format="compact",
    )


@pytest.mark.parametrize("criterion", ["block_influence", "perplexity"])
def test_blocks_can_be_dropped(criterion: str) -> None:
    model = in_bf16("mamba")
    drop = {"stage": "drop_blocks", "count": 1, "criterion": criterion}
    compress(model, {"stages": [drop, STAGES["wanda"]]}, calibration=some_ids())
    assert len(find_blocks(model)) == 2


def test_a_block_that_does_something_else_with_wider_ones_is_refused() -> None:
    model = in_bf16("mamba")
    mixer_forward = type(model.backbone.layers[0]).forward

    def forward(block: nn.Module, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        shift = 0.0 if hidden.dtype == torch.bfloat16 else 1.0
        return mixer_forward(block, hidden, *args, **kwargs) + shift

    first = model.backbone.layers[0]
    first.forward = forward.__get__(first)
    with pytest.raises(SecateurError, match="where only the dtype differs, load with dtype"):
        compress(model, {"stages": [STAGES["wanda"]]}, calibration=some_ids())
