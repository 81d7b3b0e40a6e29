"""The loss of a model on windows that are not trained on."""

import torch
from torch import Tensor, nn

from secateur.evaluate.forward import evaluating, input_device
from secateur.training.data import TrainingData
from secateur.training.loss import window_losses


def held_out_loss(model: nn.Module, data: TrainingData, batch_size: int) -> float:
    """Mean over windows of each window's mean cross-entropy in nats, where the model is.

    Args:
        model: a causal language model.
        data: windows of one length.
        batch_size: windows at once; changes the result by rounding only.
    """
    device = input_device(model)
    losses: list[Tensor] = []
    with evaluating(model):
        for start in range(0, data.num_windows, batch_size):
            rows = range(start, min(start + batch_size, data.num_windows))
            items = [data.dataset[row] for row in rows]
            batch = {name: torch.stack([i[name] for i in items]).to(device) for name in items[0]}
            labels = batch.pop("labels")
            logits = model(**batch, use_cache=False).logits
            losses.append(window_losses(logits, labels).double().cpu())
    return float(torch.cat(losses).mean())
