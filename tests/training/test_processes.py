"""Two processes that exchange gradients (DDP), or hold half of every weight each (FSDP2)."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from forked import run_together
from process_worker import pruned_model, train
from sharded_worker import train_sharded
from torch import Tensor
from transformers import AutoModelForCausalLM

from secateur.models.inventory import take_inventory
from secateur.training.pruned_weights import PrunedWeights, pruned_parameters

# It goes through both trainings, for starting processes takes longer than these do.
WORKER = Path(__file__).with_name("sharded_worker.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes made: `ddp` and `fsdp`."""
    folder = tmp_path_factory.mktemp("processes")
    run_together(2, str(WORKER), str(folder))
    return folder


def assert_two_of_four(model: torch.nn.Module) -> None:
    for site in take_inventory(model).all_sites:
        kept = (site.weight != 0).reshape(site.shape[0], -1, 4)
        assert not kept[..., 1:3].any(), site.name
        assert kept[..., [0, 3]].any(), site.name


def weights(path: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(path, weights_only=True)
    return found


def assert_trained_alike(
    together: dict[str, Tensor], alone: torch.nn.Module, before: dict[str, Tensor]
) -> None:
    """Sums of the same gradients in another order: AdamW keeps them at rounding's own distance."""
    values = alone.state_dict()
    moved = sum(float((values[name] - before[name]).abs().sum()) for name in before)
    apart = sum(float((values[name] - together[name]).abs().sum()) for name in before)
    assert moved > 0
    assert apart < 0.02 * moved


@pytest.mark.slow
def test_two_processes_keep_the_pattern_and_train_as_one(folder: Path, tmp_path: Path) -> None:
    first, second = weights(folder / "ddp/rank-0.pt"), weights(folder / "ddp/rank-1.pt")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert_two_of_four(AutoModelForCausalLM.from_pretrained(folder / "ddp/model"))
    alone = pruned_model(torch.float32)
    before = {name: item.clone() for name, item in alone.state_dict().items()}
    run = train(alone, tmp_path / "alone", batch_size=8)
    assert_two_of_four(alone)
    loss_after, num_tokens, loss_at_last_step = json.loads((folder / "ddp/loss.json").read_text())
    assert num_tokens == run.num_tokens
    assert loss_after == pytest.approx(run.loss_after, abs=1e-4)
    assert loss_at_last_step == pytest.approx(loss_after, abs=1e-5)
    assert_trained_alike(first, alone, before)


@pytest.mark.slow
def test_sharded_weights_keep_the_pattern_and_become_whole_again(folder: Path) -> None:
    first, second = weights(folder / "fsdp/rank-0.pt"), weights(folder / "fsdp/rank-1.pt")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert_two_of_four(AutoModelForCausalLM.from_pretrained(folder / "fsdp/model"))
    alone = pruned_model(torch.float32)
    before = {name: item.clone() for name, item in alone.state_dict().items()}
    train_sharded(alone, PrunedWeights(pruned_parameters(alone)), slice(0, 8))
    assert_trained_alike(first, alone, before)
