"""What the published code does, as its authors run it: what ours is measured against."""

from typing import Any

import torch
from torch import Tensor, nn


def wanda_two_of_four(score: Tensor) -> Tensor:
    """bool [N, K], True = keep: the two lowest of every four columns go, group by group.

    The loop over groups of Wanda's repository (Sun et al., arXiv 2306.11695).
    """
    removed = torch.zeros_like(score) == 1
    for column in range(0, score.shape[1], 4):
        lowest = torch.topk(score[:, column : column + 4].float(), 2, dim=1, largest=False).indices
        removed.scatter_(1, column + lowest, True)
    return ~removed


def wanda_half_of_each_row(score: Tensor) -> Tensor:
    """bool [N, K], True = keep: half of every row by a stable sort, as that repository does."""
    order = torch.sort(score, dim=-1, stable=True).indices
    removed = torch.zeros_like(score) == 1
    removed.scatter_(1, order[:, : score.shape[1] // 2], True)
    return ~removed


@torch.no_grad()
def wanda_model(model: Any, tokens: Tensor) -> None:
    """Prune the blocks of a Llama-like model to 2:4 in place, as that repository goes about it.

    Every sample passes every block alone, twice: once while the block is dense, when the squares
    of each linear's inputs are summed, and once after it was pruned.

    Args:
        model: with its blocks in `model.model.layers`.
        tokens: int64 [samples, length].
    """
    layers = model.model.layers
    hidden, kwargs = _entering(model, tokens)
    outputs = torch.zeros_like(hidden)
    for layer in layers:
        norms = {
            name: _InputNorm(module)
            for name, module in layer.named_modules()
            if isinstance(module, nn.Linear)
        }
        for number in range(len(hidden)):
            outputs[number] = layer(hidden[number : number + 1], **kwargs)[0]
        for norm in norms.values():
            norm.prune()
        for number in range(len(hidden)):
            outputs[number] = layer(hidden[number : number + 1], **kwargs)[0]
        hidden, outputs = outputs, hidden


class _InputNorm:
    """Mean over samples of the summed squares of what enters a linear, by column, in fp32."""

    def __init__(self, linear: nn.Linear) -> None:
        self._linear = linear
        self._mean = torch.zeros(linear.in_features)
        self._samples = 0
        self._hook = linear.register_forward_hook(self._add)

    def _add(self, _: nn.Module, args: tuple[Tensor, ...], __: Tensor) -> None:
        inputs = args[0].reshape(-1, args[0].shape[-1]).T.float()
        self._mean *= self._samples / (self._samples + 1)
        self._samples += 1
        self._mean += torch.norm(inputs, p=2, dim=1) ** 2 / self._samples

    def prune(self) -> None:
        self._hook.remove()
        weight = self._linear.weight.data
        keep = wanda_two_of_four(weight.abs() * self._mean.sqrt())
        weight[~keep] = 0.0


class _Caught(Exception):
    """What enters the first block is known; the rest of the model need not run."""


def _entering(model: Any, tokens: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Hidden states [samples, length, width] that enter block 0, and how it is called."""
    caught: list[Tensor] = []
    kwargs: dict[str, Any] = {}

    def catch(_: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        caught.append(args[0])
        kwargs.update(given)
        raise _Caught

    hook = model.model.layers[0].register_forward_pre_hook(catch, with_kwargs=True)
    for number in range(len(tokens)):
        try:
            model(tokens[number : number + 1], use_cache=False)
        except _Caught:
            continue
    hook.remove()
    return torch.cat(caught), kwargs
