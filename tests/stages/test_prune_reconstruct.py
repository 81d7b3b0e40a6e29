"""Tuning a block in halves."""

import pytest
import torch
from torch import Tensor, nn

from secateur.models.replay import BlockCall
from secateur.reconstruct import BlockSamples, Half
from secateur.stages.prune_reconstruct import half_targets


def test_what_halves_give_is_kept_where_the_samples_are(monkeypatch: pytest.MonkeyPatch) -> None:
    # The meta device stands for where activations wait, the CPU for where blocks run.
    hidden = torch.empty(2, 3, 4, device="meta")
    samples = BlockSamples((hidden, hidden), (BlockCall((), {}, None),) * 2)
    halves = Half("attention", 4, None), Half("mlp", 4, None)
    monkeypatch.setattr("secateur.stages.prune_reconstruct.find_halves", lambda *_: halves)

    def run(_: BlockSamples, __: nn.Module, chosen: range) -> Tensor:
        return torch.zeros(len(chosen), 3, 4)

    monkeypatch.setattr(BlockSamples, "run", run)
    block = nn.ModuleDict({"attention": nn.Linear(4, 4), "mlp": nn.Linear(4, 4)})
    assert {output.device for output in half_targets(block, samples).outputs} == {hidden.device}
