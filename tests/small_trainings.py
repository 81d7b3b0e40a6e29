"""Windows of random tokens, and trainings of a few steps on tiny models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from secateur.progress import SilentProgress
from secateur.recipe import Training
from secateur.training.adapters import Adapters
from secateur.training.checkpoints import CheckpointFolder
from secateur.training.data import TrainingData
from secateur.training.run import TrainingResult, TrainingTexts, run_training

LENGTH = 12
IGNORED = -100


class Windows(Dataset[dict[str, Tensor]]):
    """Windows in a list."""

    def __init__(self, items: Sequence[dict[str, Tensor]]) -> None:
        self.items = list(items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.items[index]


def training_data(num: int, seed: int = 0, first_labels: Sequence[int] = (0,)) -> TrainingData:
    """Random windows of eight tokens of the vocabulary, so that there is something to learn.

    Args:
        num: how many windows.
        seed: of the tokens.
        first_labels: by window, repeated, where its labels begin, as a response does in a chat.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 11, (num, LENGTH), generator=generator)
    labels = ids.clone()
    for row, label in enumerate(labels):
        label[: first_labels[row % len(first_labels)]] = IGNORED
    items = [{"input_ids": i, "labels": label} for i, label in zip(ids, labels, strict=True)]
    return TrainingData(
        dataset=Windows(items),
        source=f"random {seed}",
        max_seq_length=LENGTH,
        num_windows=num,
        sha256=f"{seed:064x}",
    )


def training_texts(num: int = 16, held_out: int = 5, **options: Any) -> TrainingTexts:
    """The loss is measured on other windows of the same tokens."""
    return TrainingTexts(training_data(num, 0, **options), training_data(held_out, 1, **options))


def options(steps: int = 6, batch_size: int = 2, **changes: Any) -> Training:
    """Options of a training of so many steps."""
    tokens = steps * batch_size * changes.get("gradient_accumulation", 1) * LENGTH
    values: dict[str, Any] = {
        "data": ("random",),
        "max_seq_length": LENGTH,
        "num_tokens": tokens,
        "batch_size": batch_size,
        "eval_steps": 2,
        "warmup": 0.0,
        "schedule": "constant",
    }
    return Training(**{**values, **changes})


def train(
    model: nn.Module,
    trained: Sequence[str] | Adapters,
    folder: Path,
    training: Training | None = None,
    *,
    learning_rate: float = 1e-2,
    texts: TrainingTexts | None = None,
    resume: bool = False,
    progress: Any = None,
    **more: Any,
) -> TrainingResult:
    """`run_training` on the CPU, with checkpoints in `folder`."""
    place = CheckpointFolder(folder, resume)
    place.claim({"test": "same"})
    return run_training(
        model,
        training or options(),
        learning_rate,
        texts or training_texts(),
        trained,
        place,
        progress or SilentProgress(),
        on_cpu=True,
        **more,
    )


class Interrupted(Exception):
    """What `StopAt` raises."""


class StopAt:
    """Progress that raises once a step of training is done, as if the process had been stopped."""

    def __init__(self, step: int) -> None:
        """`step`: counted over all trainings, without those that were resumed."""
        self._left = step
        self._trains = False

    def begin(self, task: str, total: int) -> None:
        """Look whether it is a training."""
        self._trains = task.startswith(("train", "recover", "round"))

    def advance(self, detail: str = "") -> None:
        """Count."""
        if detail == "resumed" or not self._trains:
            return
        self._left -= 1
        if self._left == 0:
            raise Interrupted

    def close(self) -> None:
        """Ignore."""


def everything(model: nn.Module) -> tuple[str, ...]:
    """Names of all parameters."""
    return tuple(name for name, _ in model.named_parameters())


def values_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters by name."""
    return {name: item.detach().clone() for name, item in model.named_parameters()}


def same_values(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether names, dtypes and bits are the same, NaN included."""
    return one.keys() == other.keys() and all(
        item.dtype == other[name].dtype
        and torch.equal(item.view(-1).view(torch.uint8), other[name].view(-1).view(torch.uint8))
        for name, item in one.items()
    )
