"""pytest-benchmark suite of mask making: `pytest bench/bench_masks.py --benchmark-only`."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.published import wanda_two_of_four
from secateur.mask import select_grouped, select_unstructured

WORK: dict[str, Callable[[Tensor], Tensor]] = {
    "published 2:4 loop": wanda_two_of_four,
    "2:4": lambda score: select_grouped(score, 2, 4),
    "4:8": lambda score: select_grouped(score, 4, 8),
    "50% by row": lambda score: select_unstructured(score, 0.5, "row"),
    "50% by matrix": lambda score: select_unstructured(score, 0.5, "matrix"),
}


@pytest.mark.parametrize("name", WORK)
@pytest.mark.parametrize("shape", [(768, 256), (4096, 4096)], ids=str)
def test_mask(benchmark: Any, name: str, shape: tuple[int, int]) -> None:
    score = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    benchmark.group = f"{shape[0]} x {shape[1]}"
    benchmark(WORK[name], score)
