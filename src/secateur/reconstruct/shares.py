"""Samples that several processes hold together, and gradients that they add up."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.parallel import Parallel


@dataclass(frozen=True)
class SampleShare:
    """Which samples are this process's own; samples are numbered through all processes."""

    first: int
    count: int
    total: int

    def own(self, chosen: Sequence[int]) -> list[int]:
        """Those of `chosen` that are here, by their numbers here, in their order."""
        here = (sample - self.first for sample in chosen)
        return [sample for sample in here if 0 <= sample < self.count]


def share_samples(count: int, parallel: Parallel) -> SampleShare:
    """The place of this process's `count` samples among those of all."""
    counts = parallel.gather(count)
    return SampleShare(sum(counts[: parallel.rank]), count, sum(counts))


def sum_gradients(parameters: Sequence[nn.Parameter], parallel: Parallel) -> None:
    """Add the gradients of all processes; a parameter that none reached keeps having none."""
    if parallel.size == 1 or not parameters:
        return
    reached = torch.tensor([float(p.grad is not None) for p in parameters])
    reached = reached.to(parameters[0].device)
    parallel.sum_(reached)
    for parameter, times in zip(parameters, reached.tolist(), strict=True):
        if times:
            parallel.sum_(_gradient(parameter))


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
