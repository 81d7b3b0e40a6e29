import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.engine.attention import MaskPlan, attention_of_rows, attention_set_to
from secateur.engine.block_masks import BLOCK, block_masks

GENERATOR = torch.Generator().manual_seed(0)


def states(heads: int, length: int, batch: int = 2, head_dim: int = 5) -> Tensor:
    return torch.randn(batch, heads, length, head_dim, generator=GENERATOR)


def reference(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scaling: float) -> Tensor:
    """In fp64, a head at a time."""
    groups = query.shape[1] // key.shape[1]
    outputs = []
    for head in range(query.shape[1]):
        keys, values = key[:, head // groups].double(), value[:, head // groups].double()
        scores = query[:, head].double() @ keys.transpose(1, 2) * scaling
        scores = scores.masked_fill(~seen[:, 0], -math.inf)
        outputs.append(scores.softmax(-1) @ values)
    return torch.stack(outputs, 2)


@pytest.mark.parametrize("heads", [2, 6])
@pytest.mark.parametrize(("length", "keys"), [(1, 7), (3, 7), (7, 7), (1, 1)])
@pytest.mark.parametrize("plain", [True, False])
def test_attention_is_that_of_a_reference(heads: int, length: int, keys: int, plain: bool) -> None:
    query, key, value = states(heads, length), states(2, keys), states(2, keys)
    causal = torch.arange(keys) <= torch.arange(keys - length, keys)[:, None]
    seen = causal.expand(2, 1, length, keys)
    if not plain:
        # Some keys are hidden, never a query's own.
        seen = seen & ((torch.arange(keys) % 3 != 1) | (torch.arange(keys) >= keys - length))
    mask = torch.zeros(1, 1, 1, 1) if plain else torch.zeros(seen.shape).masked_fill(~seen, -1e30)
    output, _ = attention_of_rows(nn.Module(), query, key, value, mask, scaling=0.3)
    expected = reference(query, key, value, seen, 0.3)
    assert output.shape == (2, length, heads, 5)
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("length", [1, 3])
def test_a_mask_may_be_of_another_dtype_than_the_states(length: int) -> None:
    # Attention of some devices takes the bytes of a mask for numbers of the states' dtype.
    query, key, value = (states(2, size).bfloat16() for size in (length, 7, 7))
    mask = torch.zeros(2, 1, length, 7).masked_fill(torch.arange(7) > 4, -1e30)
    found, _ = attention_of_rows(nn.Module(), query, key, value, mask)
    expected, _ = attention_of_rows(nn.Module(), query, key, value, mask.bfloat16())
    assert torch.equal(found, expected)


@pytest.mark.parametrize("window", [None, 3])
def test_masks_show_each_token_what_is_before_it(window: int | None) -> None:
    positions = torch.tensor([[0, 1], [4, 6]])
    mask = MaskPlan({"any": window}, own_attention=False).masks(positions, 8, torch.float32)["any"]
    lowest = torch.finfo(torch.float32).min
    for row in range(2):
        for token in range(2):
            at = int(positions[row, token])
            first = 0 if window is None else max(0, at - window + 1)
            expected = [0.0 if first <= key <= at else lowest for key in range(8)]
            assert mask[row, 0, token].tolist() == expected


def test_only_windows_shorter_than_the_text_need_a_mask_for_a_lone_row() -> None:
    plan = MaskPlan({"full_attention": None, "sliding_attention": 4}, own_attention=False)
    positions = torch.arange(2, 5).unsqueeze(0)
    masks = plan.causal_masks(positions, 5, torch.float32)
    assert masks["full_attention"].numel() == 1
    full = plan.masks(positions, 5, torch.float32)
    assert torch.equal(masks["sliding_attention"], full["sliding_attention"])
    short = plan.causal_masks(positions[:, :2], 4, torch.float32)
    assert short["sliding_attention"].numel() == 1


def test_a_model_gets_its_attention_back_also_after_an_error() -> None:
    class Config:
        _attn_implementation = "sdpa"

    config: Any = Config()

    def fail() -> None:
        assert config._attn_implementation == "other"
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"), attention_set_to((config,), "other"):
        fail()
    assert config._attn_implementation == "sdpa"


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("window", [None, 100, 300])
def test_blocks_show_the_same_keys_as_masks(window: int | None) -> None:
    positions = torch.tensor([[0], [127], [128], [300], [511], [512]])
    plan = MaskPlan({"any": window}, own_attention=False)
    blocks = block_masks(plan.windows, positions, 512)["any"]
    query, key, value = states(4, 1, batch=6), states(2, 512, batch=6), states(2, 512, batch=6)
    by_blocks, _ = attention_of_rows(nn.Module(), query, key, value, blocks)
    mask = plan.masks(positions, 512, torch.float32)["any"]
    by_mask, _ = attention_of_rows(nn.Module(), query, key, value, mask)
    # The last row is idle.
    torch.testing.assert_close(by_blocks[:-1], by_mask[:-1], rtol=0, atol=2e-6)
    first = [0 if window is None else max(0, p - window + 1) // BLOCK for p in positions[:-1, 0]]
    expected = [int(p) // BLOCK - one + 1 for p, one in zip(positions[:-1, 0], first, strict=True)]
    assert blocks.kv_num_blocks.flatten().tolist() == [*expected, 1]
    for row, (start, count) in enumerate(zip(first, expected, strict=True)):
        assert blocks.kv_indices[row, 0, 0, :count].tolist() == [*range(start, start + count)]
