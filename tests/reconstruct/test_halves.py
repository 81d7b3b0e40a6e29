from dataclasses import replace

import pytest
import torch
from families import tiny_model
from torch import nn
from toys import Block, make_block, make_samples

from secateur.calibration.inputs import capture_inputs
from secateur.calibration.tokens import tokens_from_tensor
from secateur.errors import SecateurError
from secateur.models.blocks import find_blocks
from secateur.models.trace import trace_blocks
from secateur.reconstruct import BlockSamples, Half, find_halves, silenced


def block_and_samples(family: str) -> tuple[nn.Module, BlockSamples]:
    model = tiny_model(family)
    blocks = find_blocks(model)
    ids = torch.randint(3, 128, (2, 12), generator=torch.Generator().manual_seed(0))
    trace = trace_blocks(model, blocks, {}, ids[:1, :8])
    inputs = capture_inputs(model, blocks, trace, tokens_from_tensor(ids), 24, torch.device("cpu"))
    return blocks.modules[0], BlockSamples(inputs.hidden, tuple(c[0] for c in inputs.calls))


def test_one_half_after_the_other_is_the_block() -> None:
    block, samples = make_block(), make_samples()
    attention, mlp = find_halves(block, samples)
    assert (attention, mlp) == (Half("attention", 8, 2), Half("mlp", 8, None))
    with torch.no_grad():
        hidden = samples.rows(samples.hidden, [4, 5])
        mix = samples.calls[1].kwargs["mix"][:2]
        normed = block.first_norm(hidden)
        expected = hidden + block.attention.proj(mix @ normed)
        with silenced(block, mlp):
            between = samples.run(block, [4, 5])
        torch.testing.assert_close(between, expected)
        second = replace(samples, hidden=(between,), calls=samples.calls[:1])
        with silenced(block, attention):
            after = second.run(block, [0, 1])
        torch.testing.assert_close(after, samples.run(block, [4, 5]))
    assert "forward" not in vars(block.attention)
    assert "forward" not in vars(block.mlp)


def test_only_the_half_that_runs_gets_gradients() -> None:
    block, samples = make_block(), make_samples()
    _, mlp = find_halves(block, samples)
    with silenced(block, mlp):
        samples.run(block, [0]).sum().backward()  # type: ignore[no-untyped-call]
    trained = {name for name, value in block.named_parameters() if value.grad is not None}
    assert trained == {
        "first_norm.weight",
        "first_norm.bias",
        "attention.proj.weight",
        "attention.proj.bias",
    }


def test_a_forward_of_its_own_comes_back() -> None:
    block, samples = make_block(), make_samples()
    halves = find_halves(block, samples)
    own = block.mlp.forward
    block.mlp.forward = own  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="inside"), silenced(block, halves[1]):
        raise ValueError("inside")
    assert vars(block.mlp)["forward"] is own


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("llama", ("self_attn", "mlp")),
        ("gemma3", ("self_attn", "mlp")),
        ("qwen3_moe", ("self_attn", "mlp")),
        ("gpt2", ("attn", "mlp")),
        ("opt", ("self_attn", "fc2")),
    ],
)
def test_halves_of_real_blocks(family: str, names: tuple[str, str]) -> None:
    block, samples = block_and_samples(family)
    halves = find_halves(block, samples)
    assert tuple(half.name for half in halves) == names


@pytest.mark.parametrize("family", ["gpt_neox", "gptj"])
def test_halves_side_by_side_are_refused(family: str) -> None:
    block, samples = block_and_samples(family)
    with pytest.raises(SecateurError, match="it does not, so tune it as a whole"):
        find_halves(block, samples)


def test_blocks_without_halves_are_refused() -> None:
    samples = make_samples()
    with pytest.raises(SecateurError, match="it does not, so tune it as a whole"):
        find_halves(make_side_by_side(), samples)
    block = make_block()
    block.attention = nn.Identity()  # type: ignore[assignment]
    with pytest.raises(SecateurError, match=r"among its children, got \['mlp'\]"):
        find_halves(block, samples)


def make_side_by_side() -> Block:
    block = make_block()
    block.side_by_side = True
    return block
