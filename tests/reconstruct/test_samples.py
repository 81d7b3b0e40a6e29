import pytest
import torch
from families import tiny_model
from toys import make_block, make_samples, whole_outputs

from secateur.calibration.inputs import capture_inputs
from secateur.calibration.tokens import tokens_from_tensor
from secateur.errors import SecateurError
from secateur.models.blocks import find_blocks
from secateur.models.trace import trace_blocks
from secateur.reconstruct import BlockSamples


def test_any_samples_of_equal_length_run_together() -> None:
    block, samples = make_block(), make_samples()
    kept = whole_outputs(block, samples)
    single = [output for batch in kept for output in batch]
    assert samples.num_samples == 9
    with torch.no_grad():
        for chosen in ([0], [3, 1], [4, 5, 6], [6, 0, 5, 2], [8, 7], [1, 1]):
            together = samples.run(block, chosen)
            expected = torch.stack([single[number] for number in chosen])
            # Sums of 16 products in fp32, in another order at most.
            torch.testing.assert_close(together, expected, rtol=1e-5, atol=1e-5)
            assert torch.equal(samples.rows(kept, chosen), expected)


def test_micro_batches_keep_the_order_and_the_limit() -> None:
    samples = make_samples()
    order = [0, 5, 7, 8, 1, 2, 3]
    assert list(samples.micro_batches(order, 12)) == [[0, 5], [7, 8], [1, 2], [3]]
    assert list(samples.micro_batches(order, 1)) == [[number] for number in order]
    assert list(samples.micro_batches(order, 1000)) == [[0, 5], [7, 8], [1, 2, 3]]
    assert list(samples.micro_batches([], 10)) == []


def test_inputs_and_arguments_take_the_dtype_of_the_block() -> None:
    block = make_block(dtype=torch.float64)
    samples = make_samples(dtype=torch.bfloat16)
    with torch.no_grad():
        assert samples.run(block, [4, 5]).dtype == torch.float64


def test_a_single_sample_is_on_its_own() -> None:
    block, samples = make_block(), make_samples()
    single = samples.single(5)
    assert single.num_samples == 1
    with torch.no_grad():
        assert torch.equal(single.run(block, [0]), samples.run(block, [5]))


def test_batches_without_calls_are_refused() -> None:
    samples = make_samples()
    with pytest.raises(SecateurError, match=r"one call for each .* got 2 calls and 3 batches"):
        BlockSamples(samples.hidden, samples.calls[:2])
    with pytest.raises(SecateurError, match="got 0 calls and 0 batches"):
        BlockSamples((), ())


@pytest.mark.parametrize(
    "family", ["llama", "qwen2", "gemma3", "gpt2", "opt", "gpt_neox", "gptj", "qwen3_moe"]
)
def test_samples_of_real_blocks(family: str) -> None:
    model = tiny_model(family)
    blocks = find_blocks(model)
    ids = torch.randint(3, 128, (5, 12), generator=torch.Generator().manual_seed(0))
    tokens = tokens_from_tensor(ids)
    trace = trace_blocks(model, blocks, {}, ids[:1, :8])
    inputs = capture_inputs(model, blocks, trace, tokens, 24, torch.device("cpu"))
    for index, block in enumerate(blocks.modules):
        samples = BlockSamples(inputs.hidden, tuple(calls[index] for calls in inputs.calls))
        inputs.run_block(block, index)
        with torch.no_grad():
            together = samples.run(block, [4, 1, 2])
        expected = samples.rows(inputs.outputs, [4, 1, 2])
        torch.testing.assert_close(together, expected, rtol=1e-4, atol=1e-4)
