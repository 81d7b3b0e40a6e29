"""2:4 masks on the CPU: ours against the loop over groups of four that Wanda published.

    python -m bench.masks

Both make the same mask from the same score, in turns; goal: at least 20 times as fast.
"""

from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
import typer
from torch import Tensor

from bench.published import wanda_two_of_four
from bench.records import append_record
from secateur.mask import select_grouped

SHAPES = ((768, 256), (1024, 1024), (4096, 4096), (14336, 4096))
ROUNDS = 9


def seconds(work: Callable[[Tensor], Tensor], score: Tensor) -> float:
    started = perf_counter()
    work(score)
    return perf_counter() - started


def main() -> None:
    for rows, columns in SHAPES:
        generator = torch.Generator().manual_seed(0)
        score = torch.rand(rows, columns, generator=generator)
        # The loop breaks ties otherwise; among millions of random scores there are a few.
        same = (wanda_two_of_four(score) == select_grouped(score, 2, 4)).double().mean()
        assert same > 1 - 1e-5, same
        loop, ours = [], []
        for _ in range(ROUNDS):
            loop.append(seconds(wanda_two_of_four, score))
            ours.append(seconds(lambda s: select_grouped(s, 2, 4), score))
        ratio = median(a / b for a, b in zip(loop, ours, strict=True))
        values = {
            "shape": [rows, columns],
            "loop_ms": 1e3 * median(loop),
            "ours_ms": 1e3 * median(ours),
            "ratio": ratio,
            "goal": 20,
        }
        append_record("masks", values)
        typer.echo(
            f"{rows} x {columns}: loop {values['loop_ms']:.1f} ms, "
            f"ours {values['ours_ms']:.2f} ms, {ratio:.1f} times as fast"
        )


if __name__ == "__main__":
    typer.run(main)
