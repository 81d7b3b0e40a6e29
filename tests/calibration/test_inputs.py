import pytest
import torch
from families import VOCAB_SIZE, tiny_model

from secateur.calibration import inputs
from secateur.calibration.inputs import (
    TOKENS_PER_BATCH,
    BlockInputs,
    arguments_on,
    capture_inputs,
    tokens_per_batch,
)
from secateur.calibration.tokens import tokens_from_tensor
from secateur.models.blocks import find_blocks
from secateur.models.trace import trace_blocks

META = torch.device("meta")


def captured() -> BlockInputs:
    """Three batches of two samples, two blocks."""
    ids = torch.randint(3, VOCAB_SIZE, (6, 9), generator=torch.Generator().manual_seed(0))
    model = tiny_model("gemma3", 2)
    blocks = find_blocks(model)
    trace = trace_blocks(model, blocks, {}, ids[:1])
    tokens = tokens_from_tensor(ids)
    return capture_inputs(model, blocks, trace, tokens, 18, torch.device("cpu"))


def test_arguments_go_to_the_device_once() -> None:
    """Copied with every batch, they would make it wait for all that came before."""
    found = captured()
    before = [[id(t) for call in by_block for t in call.tensors()] for by_block in found.calls]
    moved = arguments_on(META, found.calls)
    after = [[id(t) for call in by_block for t in call.tensors()] for by_block in moved]
    tensors = [t for by_block in moved for call in by_block for t in call.tensors()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    # What was one tensor still is.
    assert len(set(before[0])) == len(set(after[0])) == len({key for keys in after for key in keys})
    assert [keys.index(keys[-1]) for keys in after] == [keys.index(keys[-1]) for keys in before]
    assert [[call.rows_per_sample for call in own] for own in moved] == [
        [call.rows_per_sample for call in own] for own in found.calls
    ]


def test_too_many_arguments_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    found = captured()
    tensors = {id(t): t for own in found.calls for call in own for t in call.tensors()}
    needed = sum(tensor.nbytes for tensor in tensors.values())
    monkeypatch.setattr(inputs, "_MOST_ARGUMENT_BYTES", needed)
    assert arguments_on(META, found.calls)[0][0].tensors()[0].is_meta
    monkeypatch.setattr(inputs, "_MOST_ARGUMENT_BYTES", needed - 1)
    assert arguments_on(META, found.calls) == list(found.calls)


def test_a_gpu_is_given_more_tokens_at_once() -> None:
    assert tokens_per_batch(torch.device("cpu")) == TOKENS_PER_BATCH
    assert tokens_per_batch(torch.device("cuda", 0)) == 8 * TOKENS_PER_BATCH
