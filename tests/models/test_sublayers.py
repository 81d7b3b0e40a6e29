from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import FAMILIES, tiny_model
from torch import Tensor, nn
from transformers import DynamicCache, OPTConfig, PreTrainedModel, StaticCache

from secateur.checkpoint.fingerprint import probe_tokens
from secateur.depth.remove import rehearse_removal, remove_sublayers
from secateur.errors import SecateurError
from secateur.models.blocks import BlockList, find_blocks
from secateur.models.sublayers import (
    Half,
    Sublayers,
    cache_index,
    find_sublayers,
    removed_sublayers,
    silenced,
)
from secateur.modules.removed_sublayer import RemovedSublayer
from secateur.recipe import DropBlocksStage
from secateur.stages.drop_plan import block_sublayers, check_sublayers

IDS = torch.arange(3, 15).unsqueeze(0)
SIDE_BY_SIDE = {"gpt_neox", "gptj"}


def found_in(model: PreTrainedModel) -> tuple[BlockList, tuple[Sublayers, ...]]:
    blocks = find_blocks(model)
    return blocks, block_sublayers(model, blocks, IDS)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_and_mlp_of_every_family(family: str) -> None:
    _, found = found_in(tiny_model(family))
    for entry in found:
        assert entry.attention is not None
        assert entry.mlp is not None
        assert entry.attention.tuple_length == 2
        assert "attn" in entry.attention.name or "attention" in entry.attention.name
        assert entry.names("mlp") == (("fc1", "fc2") if family == "opt" else ("mlp",))
        assert entry.one_after_other == (family not in SIDE_BY_SIDE)


class Toy(nn.Module):
    """A block of children that each add to the hidden states, in order."""

    def __init__(
        self, names: tuple[str, ...], after: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, nn.Linear(6, 6, bias=False))
        self.after = after or (lambda hidden: hidden)

    def forward(self, hidden: Tensor) -> Tensor:
        for child in self.children():
            hidden = hidden + child(hidden)
        return self.after(hidden)


@torch.no_grad()
def sublayers_of(block: nn.Module) -> Sublayers:
    torch.manual_seed(0)
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    return find_sublayers(block, torch.randn(1, 5, 6), block)


def test_a_toy_block() -> None:
    assert sublayers_of(Toy(("a", "b"))) == Sublayers(Half("a", 6, None), Half("b", 6, None))


class Uncalled(Toy):
    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.get_submodule("a")(hidden)


def with_stack() -> nn.Module:
    block = Toy(("a", "b", "c"))
    block.b = nn.Sequential(nn.Linear(6, 6, bias=False))
    return block


class Multiplied(Toy):
    def forward(self, hidden: Tensor) -> Tensor:
        a, b = self.get_submodule("a")(hidden), self.get_submodule("b")(hidden)
        return hidden + a + b + a * b


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (Toy(("a",)), r"an attention and an MLP among its children, got \['a'\]"),
        (Uncalled(("a", "b")), "it does not call a and b"),
        (with_stack(), r"it has \['b'\] between them"),
        (Toy(("a", "b"), lambda h: h + 1), "with zeros for both it still changes hidden states"),
        (Multiplied(("a", "b")), "what it adds is not that of a and that of b"),
    ],
)
def test_refuses_blocks_of_another_make(block: nn.Module, message: str) -> None:
    with pytest.raises(SecateurError, match=message):
        sublayers_of(block)


def test_refuses_norms_after_the_parts() -> None:
    from_pre_norm = tiny_model("opt").config
    values = {**from_pre_norm.to_dict(), "do_layer_norm_before": False}
    model = type(tiny_model("opt"))(OPTConfig.from_dict(values)).eval()
    with pytest.raises(SecateurError, match=r"decoder\.layers\.0: the attention or MLP of OPT"):
        found_in(model)


def test_silencing_nothing_changes_nothing() -> None:
    block, hidden = Toy(("a", "b")), torch.randn(1, 5, 6)
    with silenced(block, None), torch.no_grad():
        assert torch.equal(block(hidden), block(hidden))


# Stand-ins.


def test_a_stand_in_returns_what_was_returned() -> None:
    hidden = torch.ones(2, 3, 4, dtype=torch.bfloat16)
    zeros = RemovedSublayer(5)(hidden)
    assert zeros.shape == (2, 3, 5)
    assert zeros.dtype == torch.bfloat16
    assert not zeros.any()
    first, second, third = RemovedSublayer(4, 3)(hidden_states=hidden, past_key_values=None)
    assert torch.equal(first, 0 * hidden)
    assert second is third is None
    assert "width=5" in str(RemovedSublayer(5))
    assert not list(RemovedSublayer(5, 2, 0).state_dict())


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0,), "at least 1, got 0 and None"),
        ((3, 0), "at least 1, got 3 and 0"),
        ((3, 1, -1), "at least 0 in the cache, got -1"),
    ],
)
def test_refuses_numbers_that_describe_nothing(numbers: tuple[int, ...], message: str) -> None:
    with pytest.raises(SecateurError, match=message):
        RemovedSublayer(*numbers)


def test_a_stand_in_needs_hidden_states() -> None:
    with pytest.raises(SecateurError, match="got NoneType among 1 arguments"):
        RemovedSublayer(3)(x=1)
    with pytest.raises(SecateurError, match="got int among 1 arguments"):
        RemovedSublayer(3)(1)


def test_a_stand_in_appends_one_zero_a_token() -> None:
    cache = DynamicCache()
    for length in (3, 1):
        RemovedSublayer(4, 2, layer_idx=0)(torch.ones(2, length, 4), past_key_values=cache)
    assert torch.equal(cache.layers[0].keys, torch.zeros(2, 1, 4, 1))
    assert torch.equal(cache.layers[0].values, torch.zeros(2, 1, 4, 1))


@pytest.mark.parametrize("early", [False, True])
def test_static_caches_stay_in_step(early: bool) -> None:
    model = tiny_model("llama", 3)
    blocks, found = found_in(model)
    remove_sublayers(blocks, {0: found[0], 2: found[2]}, "attention")
    cache = StaticCache(model.config, max_cache_len=16)
    if early:
        cache.early_initialization(1, 2, 8, torch.float32, torch.device("cpu"))
    with torch.no_grad():
        expected = model(input_ids=IDS, use_cache=False).logits[:, -1]
        model(input_ids=IDS[:, :-1], past_key_values=cache, use_cache=True)
        last = model(input_ids=IDS[:, -1:], past_key_values=cache, use_cache=True).logits[:, -1]
    assert int(cache.get_seq_length()) == IDS.shape[1]
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)


def test_places_in_the_cache() -> None:
    blocks = find_blocks(tiny_model("gpt2"))
    assert [cache_index(block.attn) for block in blocks.modules] == [0, 1]
    assert cache_index(nn.Linear(2, 2)) is None


# Removal.


def test_refuses_to_remove_what_is_gone() -> None:
    model = tiny_model("llama")
    blocks, found = found_in(model)
    names = remove_sublayers(blocks, {1: found[1]}, "mlp")
    assert names == ("model.layers.1.mlp",)
    again = block_sublayers(model, blocks, IDS)
    with pytest.raises(SecateurError, match=r"the mlp of blocks \[1\] was removed before"):
        remove_sublayers(blocks, dict(enumerate(again)), "mlp")
    assert list(removed_sublayers(model)) == list(names)


def test_a_rehearsal_leaves_the_model_as_it_was() -> None:
    model = tiny_model("llama")
    blocks, found = found_in(model)
    before = {name: id(module) for name, module in model.named_modules()}
    rehearse_removal(model, blocks, dict(enumerate(found)), "attention", IDS)
    assert {name: id(module) for name, module in model.named_modules()} == before


def test_a_rehearsal_notices_a_cache_that_loses_count(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    blocks, found = found_in(model)
    monkeypatch.setattr("secateur.modules.removed_sublayer._lengthen", lambda *_: None)
    # With the attention of block 0 alone gone, block 1 depends on the count.
    with pytest.raises(
        SecateurError, match=r"the cache loses count of tokens|does not run without"
    ):
        rehearse_removal(model, blocks, {0: found[0]}, "attention", IDS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe"])
def test_a_stage_notices_a_cache_that_loses_count(
    family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family, 3).to(dtype)
    stage = DropBlocksStage(granularity="attention", count=1)
    check_sublayers(model, find_blocks(model), stage, IDS)
    monkeypatch.setattr("secateur.modules.removed_sublayer._lengthen", lambda *_: None)
    with pytest.raises(SecateurError, match="the cache loses count of tokens"):
        check_sublayers(model, find_blocks(model), stage, IDS)


def test_rounding_in_bf16_is_no_lost_count() -> None:
    model = tiny_model("gpt2", 8).to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            # Logits as large as those of trained models.
            parameter.mul_(5 if parameter.ndim > 1 else 1)
        model.lm_head.weight.mul_(4)
    stage = DropBlocksStage(granularity="mlp", count=1)
    check_sublayers(model, find_blocks(model), stage, probe_tokens(model))


def test_a_rehearsal_notices_a_model_that_needs_the_part(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    blocks, found = found_in(model)

    def broken(*_: Any, **__: Any) -> None:
        raise AttributeError("no such attribute")

    monkeypatch.setattr(RemovedSublayer, "forward", broken)
    with pytest.raises(SecateurError, match="does not run without the mlp of its blocks: no such"):
        rehearse_removal(model, blocks, dict(enumerate(found)), "mlp", IDS)
    assert not removed_sublayers(model)
