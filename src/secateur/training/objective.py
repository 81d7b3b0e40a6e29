"""The loss of a batch: what the options of a training ask for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.training.loss import block_distance, cross_entropy, distillation


@dataclass(frozen=True)
class Objective:
    """Cross-entropy, distillation from a teacher, or a mixture, and what blocks are to make."""

    teacher: nn.Module | None = None
    """The dense model."""
    distillation_weight: float = 0.0
    """Share of the distillation; the rest is cross-entropy."""
    temperature: float = 1.0
    block_weight: float = 0.0
    teacher_places: Sequence[int] = ()
    """For `block_weight`: see `matching_places`."""

    def on(self, device: torch.device) -> "Objective":
        """The same with the teacher on the device of training, where it stays."""
        if self.teacher is not None:
            self.teacher.to(device).requires_grad_(False).eval()
        return self

    def loss(
        self, model: nn.Module, batch: dict[str, Any], num_items: Tensor | int | None
    ) -> Tensor:
        """The loss of one batch with gradients.

        Args:
            model: student.
            batch: `input_ids`, `labels`, and what else the model takes.
            num_items: predictions of the whole optimizer step.
        """
        labels: Tensor = batch["labels"]
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        with_blocks = self.block_weight > 0.0
        output = model(**inputs, use_cache=False, output_hidden_states=with_blocks)
        weight = self.distillation_weight
        loss: Tensor = output.logits.new_zeros((), dtype=torch.float32)
        if weight < 1.0:
            loss = loss + (1.0 - weight) * cross_entropy(output.logits, labels, num_items)
        if self.teacher is None:
            return loss
        with torch.no_grad():
            wanted = self.teacher(**inputs, use_cache=False, output_hidden_states=with_blocks)
        if weight > 0.0:
            loss = loss + weight * distillation(
                output.logits, wanted.logits, labels, self.temperature, num_items
            )
        if with_blocks:
            share = 1.0 if num_items is None else float((labels[:, 1:] != -100).sum()) / num_items
            loss = loss + self.block_weight * share * block_distance(
                output.hidden_states, wanted.hidden_states, self.teacher_places
            )
        return loss
