"""Hessians and factors that matrices of a block share."""

import torch

from secateur.calibration.statistics import InputStatistics
from secateur.stages.prune_update import SharedHessians

CPU = torch.device("cpu")


def seen(columns: int) -> InputStatistics:
    statistics = InputStatistics(columns, with_hessian=True, num_batches=1, device=CPU)
    generator = torch.Generator().manual_seed(columns)
    statistics.add(torch.randn(20, columns, generator=generator))
    return statistics


def test_a_factor_is_made_once_and_kept_for_its_last_user() -> None:
    shared, alone = seen(8), seen(4)
    hessians = SharedHessians(0.01, 1, [shared, alone, shared, None])
    first = hessians.factor(shared)
    hessians.done(shared)
    other = hessians.factor(alone)
    hessians.done(alone)
    assert hessians.factor(shared) is first
    hessians.done(shared)
    hessians.done(None)
    assert hessians.factor(alone) is not other
    assert hessians.factor(shared) is not first
