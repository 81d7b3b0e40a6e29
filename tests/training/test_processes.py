"""Training by two processes that exchange gradients (DDP) or hold half the weights each (FSDP2)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from process_worker import pruned_model, train
from torch import Tensor
from transformers import AutoModelForCausalLM

from secateur.models.inventory import take_inventory

WORKER = Path(__file__).with_name("process_worker.py")
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}


def run_two(output: Path, dtype: str, **environment: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, str(WORKER), str(output), dtype],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def assert_two_of_four(model: torch.nn.Module) -> None:
    for site in take_inventory(model).all_sites:
        kept = (site.weight != 0).reshape(site.shape[0], -1, 4)
        assert not kept[..., 1:3].any(), site.name
        assert kept[..., [0, 3]].any(), site.name


def weights(path: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(path, weights_only=True)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "environment"), [("ddp", {}), ("fsdp2", FSDP2)], ids=["ddp", "fsdp2"]
)
def test_two_processes_keep_the_pattern_and_train_as_one(
    tmp_path: Path, kind: str, environment: dict[str, str]
) -> None:
    run_two(tmp_path, "float32", **environment)
    first, second = weights(tmp_path / "rank-0.pt"), weights(tmp_path / "rank-1.pt")
    assert all(torch.equal(first[name], second[name]) for name in first)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert_two_of_four(reloaded)
    alone = pruned_model(torch.float32)
    before = {name: item.clone() for name, item in alone.state_dict().items()}
    run = train(alone, tmp_path / "alone", batch_size=8)
    assert_two_of_four(alone)
    loss_after, num_tokens, gathered = json.loads((tmp_path / "loss.json").read_text())
    assert num_tokens == run.num_tokens
    assert gathered == ([True] if kind == "fsdp2" else [])
    # Sums of the same gradients in another order; AdamW's division by their size keeps the
    # difference at rounding's own.
    assert loss_after == pytest.approx(run.loss_after, abs=1e-4)
    moved = sum(float((alone.state_dict()[n] - before[n]).abs().sum()) for n in before)
    apart = sum(float((alone.state_dict()[n] - first[n]).abs().sum()) for n in before)
    assert apart < 0.02 * moved
