"""One of two processes, started by test_processes.py: first DDP, then half of every weight (FSDP2).

accelerate shards on GPUs only, so that torch's own `fully_shard` stands for it here: the masks of
local shards and the way back to a whole model are the same.
"""

import sys
from pathlib import Path

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

sys.path.insert(0, str(Path(__file__).parent))

from process_worker import pruned_model, train_together, windows

from secateur.models.blocks import find_blocks
from secateur.settings import read_settings
from secateur.training.loss import cross_entropy
from secateur.training.pruned_weights import PrunedWeights, local_values, pruned_parameters
from secateur.training.sharded import is_sharded, make_whole, meta_copy

STEPS = 5


def train_sharded(model: torch.nn.Module, pruned: PrunedWeights, rows: slice) -> None:
    """Steps of AdamW on some rows of each batch of eight windows."""
    ids = windows(8 * STEPS, 1).dataset.ids.view(STEPS, 8, -1)[:, rows]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    pruned.begin(model)
    for batch in ids:
        cross_entropy(model(input_ids=batch, use_cache=False).logits, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        pruned.apply()
        pruned.check()


def train_in_halves(output: Path) -> None:
    rank = read_settings().rank
    model = pruned_model(torch.float32)
    names = pruned_parameters(model)
    plain = meta_copy(model)
    mesh = init_device_mesh("cpu", (2,))
    for block in find_blocks(model).modules:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert is_sharded(model)
    parameters = dict(model.named_parameters())
    for name in names:
        assert isinstance(parameters[name].data, DTensor)
        assert local_values(parameters[name]).numel() * 2 == parameters[name].numel()
    train_sharded(model, PrunedWeights(names), slice(4 * rank, 4 * rank + 4))
    make_whole(model, plain)
    assert not is_sharded(model)
    torch.save(model.state_dict(), output / f"rank-{rank}.pt")
    if rank == 0:
        model.save_pretrained(output / "model")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for train, name in ((train_together, "ddp"), (train_in_halves, "fsdp")):
        folder = Path(sys.argv[1], name)
        folder.mkdir(exist_ok=True)
        train(folder)
    torch.distributed.destroy_process_group()
