"""A device that runs out of memory: smaller batches, the same masks, or a clear refusal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from families import tiny_model
from torch import Tensor, nn

from secateur import SecateurError, compress_with_report
from secateur.calibration.inputs import BlockInputs, capture_inputs, in_smaller_batches
from secateur.calibration.tokens import tokens_from_tensor
from secateur.models.blocks import find_blocks
from secateur.models.replay import BlockCall
from secateur.models.trace import trace_blocks
from secateur.report.record import DropRecord, FactorRecord, PruneRecord

# Not that of the short runs by which a model is looked at before it is changed.
LENGTH = 9


def tokens() -> Tensor:
    return torch.randint(0, 90, (6, LENGTH), generator=torch.Generator().manual_seed(0))


@contextmanager
def room_for(
    samples: int, model: nn.Module, while_training: bool = False, of: str = "mlp"
) -> Iterator[list[int]]:
    """Blocks of `model` find no memory for more samples than that; batches that were run."""
    ran: list[int] = []

    def refuse(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        is_calibration = hidden.shape[1] == LENGTH
        if is_calibration and len(hidden) > samples and torch.is_grad_enabled() == while_training:
            raise torch.OutOfMemoryError("no memory, as the test wants it")
        if is_calibration:
            ran.append(len(hidden))

    # After the matrices of the block were watched: what they saw must not be counted twice.
    hooks = [
        block.get_submodule(of).register_forward_pre_hook(refuse, with_kwargs=True)
        for block in model.model.layers
    ]
    try:
        yield ran
    finally:
        for hook in hooks:
            hook.remove()


def pruned(model: nn.Module, method: str, **more: Any) -> tuple[dict[str, Tensor], PruneRecord]:
    recipe = {"stages": [{"stage": "prune", "method": method, "pattern": "2:4", **more}]}
    _, report = compress_with_report(model, recipe, calibration=tokens())
    record = report.stages[0]
    assert isinstance(record, PruneRecord)
    return {name: value.clone() for name, value in model.state_dict().items()}, record


@pytest.mark.parametrize("samples", [1, 2, 4])
def test_smaller_batches_count_every_token_once(samples: int) -> None:
    roomy, _ = pruned(tiny_model("llama"), "wanda")
    model = tiny_model("llama")
    with room_for(samples, model) as ran:
        tight, record = pruned(model, "wanda")
    assert max(ran) <= samples
    assert {layer.num_tokens for layer in record.layers} == {54}
    for name, weight in roomy.items():
        assert torch.equal(weight == 0, tight[name] == 0), name


FACTORS = {"method": "svd-whitened", "rank": 8, "write": "dense", "importance": "output"}


@pytest.mark.parametrize(
    "more",
    [{}, {"dense_targets": True}, {"rank": None, "budget": 0.1}, {"in_turn": True}],
    ids=["inputs", "both-streams", "ranks", "in-turn"],
)
def test_factors_count_every_token_once_too(more: dict[str, Any]) -> None:
    def factored(model: nn.Module) -> FactorRecord:
        stage = {"stage": "factor", **FACTORS, **more}
        _, report = compress_with_report(model, {"stages": [stage]}, calibration=tokens())
        record = report.stages[0]
        assert isinstance(record, FactorRecord)
        return record

    roomy, tight = tiny_model("llama"), tiny_model("llama")
    factored(roomy)
    with room_for(2, tight) as ran:
        record = factored(tight)
    assert max(ran) <= 2
    assert {layer.num_tokens for layer in record.layers if layer.rank} == {54}
    assert "from here on 2 samples run together" in record.blocks[0].note
    for name, weight in roomy.state_dict().items():
        torch.testing.assert_close(tight.state_dict()[name], weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("granularity", ["block", "attention", "mlp"])
def test_blocks_are_measured_in_smaller_batches(granularity: str) -> None:
    stage = {"stage": "drop_blocks", "count": 1, "granularity": granularity}
    scores = []
    for samples in (6, 2):
        model = tiny_model("llama")
        with room_for(samples, model) as ran:
            _, report = compress_with_report(model, {"stages": [stage]}, calibration=tokens())
        assert max(ran) <= samples
        record = report.stages[0]
        assert isinstance(record, DropRecord)
        scores.append(torch.tensor(record.rounds[0].scores))
    torch.testing.assert_close(scores[0], scores[1])


def test_the_report_says_that_memory_was_short() -> None:
    model = tiny_model("llama")
    with room_for(2, model):
        _, record = pruned(model, "wanda")
    assert record.blocks[0].note == "block 0: memory was short, from here on 2 samples run together"
    assert record.blocks[1].note == ""


def test_one_sample_that_does_not_fit_is_an_error() -> None:
    model = tiny_model("llama")
    with (
        room_for(0, model),
        pytest.raises(
            SecateurError,
            match=r"cpu has no memory to run one block on one calibration sample of 9 tokens",
        ),
    ):
        pruned(model, "wanda")


def test_one_of_several_processes_does_not_begin_again() -> None:
    inputs, _ = inputs_of([2, 5, 3])

    def work(_: tuple[BlockInputs, ...]) -> None:
        raise torch.OutOfMemoryError("no memory, as the test wants it")

    with pytest.raises(SecateurError, match=r"on 5 calibration samples of 3 tokens together, and"):
        in_smaller_batches(work, (inputs,), alone=False)


def test_activations_that_do_not_fit_are_an_error() -> None:
    def no_room(size: int, dtype: torch.dtype) -> Tensor:
        raise torch.OutOfMemoryError("no memory, as the test wants it")

    model = tiny_model("llama")
    blocks = find_blocks(model)
    trace = trace_blocks(model, blocks, {}, tokens()[:1])
    samples, cpu = tokens_from_tensor(tokens()), torch.device("cpu")
    with pytest.raises(SecateurError, match="activations of 54 calibration tokens twice"):
        capture_inputs(model, blocks, trace, samples, 18, cpu, no_room)


def test_tuning_goes_on_in_smaller_micro_batches() -> None:
    model = tiny_model("llama")
    with room_for(1, model, while_training=True):
        _, record = pruned(model, "best-2:4")
    assert all(block.rounds for block in record.blocks)


@pytest.mark.parametrize("granularity", ["block", "halves"])
def test_samples_held_out_are_run_in_smaller_micro_batches(granularity: str) -> None:
    model = tiny_model("llama")
    tuning = {"held_out": 0.5, "rounds": 1, "granularity": granularity}
    with room_for(1, model) as ran:
        _, record = pruned(model, "best-2:4", reconstruct=tuning)
    # Also where there would be room for two: what did not fit once is not tried again.
    assert set(ran) == {1}
    assert all(block.rounds for block in record.blocks)


def test_what_halves_give_is_computed_for_fewer_samples_at_a_time() -> None:
    errors = []
    for samples in (6, 2):
        model = tiny_model("llama")
        half_only = {"granularity": "halves", "rounds": 1, "frozen_mask": True}
        with room_for(samples, model, of="self_attn") as ran:
            _, record = pruned(model, "wanda++", reconstruct=half_only)
        assert max(ran) <= samples
        errors.append([block.output_error for block in record.blocks])
    torch.testing.assert_close(errors[0], errors[1], rtol=1e-3, atol=0)


def test_tuning_one_sample_that_does_not_fit_is_an_error() -> None:
    model = tiny_model("llama")
    with (
        room_for(0, model, while_training=True),
        pytest.raises(SecateurError, match="no memory to tune a block on one sample of 9 tokens"),
    ):
        pruned(model, "best-2:4")


def inputs_of(
    sizes: list[int], block: Callable[[Tensor], Tensor] | None = None
) -> tuple[BlockInputs, nn.Module]:
    hidden = tuple(torch.randn(size, 3, 4) for size in sizes)
    masks = [torch.arange(size * 3.0).reshape(size, 1, 3) for size in sizes]
    theta = torch.ones(1)
    calls = tuple((BlockCall((), {"mask": m, "theta": theta}, None, (1, 0)),) for m in masks)
    outputs = tuple(torch.empty_like(states) for states in hidden)

    class Block(nn.Module):
        def forward(self, states: Tensor, mask: Tensor, theta: Tensor) -> Tensor:
            assert len(mask) == len(states)
            assert len(theta) == 1
            if block is not None:
                return block(states)
            return states * theta + mask.sum(-1, keepdim=True)

    return BlockInputs(hidden, outputs, calls, sum(sizes), torch.device("cpu")), Block()


def test_halved_batches_are_the_same_samples_in_the_same_memory() -> None:
    inputs, block = inputs_of([3, 1, 2])
    inputs.run_block(block, 0)
    whole = [output.clone() for output in inputs.outputs]
    halved = inputs.halved()
    assert [len(batch) for batch in halved.hidden] == [2, 1, 1, 1, 1]
    halved.run_block(block, 0)
    assert all(torch.equal(a, b) for a, b in zip(whole, inputs.outputs, strict=True))
    assert torch.equal(torch.cat(list(halved.stream(block, 0))), torch.cat(whole))
    with pytest.raises(SecateurError, match="no memory to run one block on one calibration sample"):
        halved.halved().halved()


def test_a_stream_splits_a_batch_that_does_not_fit() -> None:
    def small_only(states: Tensor) -> Tensor:
        if len(states) > 1:
            raise torch.OutOfMemoryError("no memory, as the test wants it")
        return states + 1

    inputs, block = inputs_of([5, 1], small_only)
    for hidden, output in zip(inputs.hidden, inputs.stream(block, 0), strict=True):
        assert torch.equal(output, hidden + 1)
    together = [3, 1]
    parts = list(inputs.stream_in_parts(block, 0, together))
    assert [fitting for _, fitting in parts] == [1, 1]
    assert together == [3, 1]
    with pytest.raises(torch.OutOfMemoryError):
        inputs.run_block(block, 0)
