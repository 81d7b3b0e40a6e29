"""One of several processes that train together, called by sharded_worker.py."""

import json
import sys
from pathlib import Path

import torch
from torch.utils.data import Dataset

sys.path.insert(0, str(Path(__file__).parents[1]))

from families import tiny_model

from secateur.models.inventory import take_inventory
from secateur.progress import SilentProgress
from secateur.recipe import Training
from secateur.report.training_record import TrainingRun
from secateur.settings import read_settings
from secateur.training.checkpoints import CheckpointFolder
from secateur.training.data import TrainingData
from secateur.training.run import TrainingTexts, run_training
from secateur.training.trained import mlp_parameters

LENGTH = 16
NUM_BLOCKS = 2


class Windows(Dataset):
    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(3, 128, (count, LENGTH), generator=generator)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def windows(count: int, seed: int) -> TrainingData:
    return TrainingData(
        dataset=Windows(count, seed),
        source="random tokens",
        max_seq_length=LENGTH,
        num_windows=count,
        sha256="0",
    )


def pruned_model(dtype: torch.dtype) -> torch.nn.Module:
    model = tiny_model("llama", NUM_BLOCKS).to(dtype)
    for site in take_inventory(model).all_sites:
        site.weight[:, 1::4] = 0
        site.weight[:, 2::4] = 0
    return model


def train(model: torch.nn.Module, folder: Path, batch_size: int, steps: int = 6) -> TrainingRun:
    options = Training(
        data=("random tokens",),
        max_seq_length=LENGTH,
        num_tokens=steps * 8 * LENGTH,
        batch_size=batch_size,
        eval_steps=3,
        held_out=9,
        keep_best=False,
    )
    trained = mlp_parameters(model, range(NUM_BLOCKS))
    texts = TrainingTexts(windows(64, 1), windows(9, 2))
    place = CheckpointFolder(folder)
    return run_training(
        model, options, 3e-3, texts, trained, place, SilentProgress(), on_cpu=True
    ).run


def train_together(output: Path) -> None:
    """Processes that exchange gradients (DDP)."""
    model = pruned_model(torch.float32)
    run = train(model, output / "checkpoints", batch_size=4)
    assert all(not isinstance(p.data, torch.distributed.tensor.DTensor) for p in model.parameters())
    rank = read_settings().rank
    torch.save(model.state_dict(), output / f"rank-{rank}.pt")
    if rank == 0:
        model.save_pretrained(output / "model")
        (output / "loss.json").write_text(
            json.dumps([run.loss_after, run.num_tokens, run.points[-1].held_out_loss])
        )
