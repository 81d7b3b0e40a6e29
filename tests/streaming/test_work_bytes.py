"""What work on a block takes, against a recount of its dearest phase."""

from functools import partial
from typing import Any

import torch
from families import tiny_model
from streaming_jobs import samples

from secateur.calibration.tokens import CalibrationTokens
from secateur.models.inventory import take_inventory
from secateur.recipe import FactorStage, PruneStage
from secateur.recipe.reconstruction import Reconstruction
from secateur.reconstruct import ReconstructionSettings
from secateur.streaming.work_bytes import _TOKENS_TO_TUNE, work_bytes

# A tiny Llama's block: q and o, k and v, gate and up and down.
ELEMENTS = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 64
LARGEST = 32 * 64
HESSIANS = (6 * 32**2 + 64**2) * 8
TOKENS = 5 * 13
prune = partial(PruneStage, pattern="2:4")


def work(
    stage: PruneStage | FactorStage,
    family: str = "llama",
    tokens: Any = None,
    dtype_bytes: int = 4,
    device: str = "cpu",
) -> int:
    chosen = CalibrationTokens(tuple(samples() if tokens is None else tokens), "drawn")
    inventory = take_inventory(tiny_model(family))
    return work_bytes(inventory, stage, chosen, 32, 2, dtype_bytes, torch.device(device))


def with_gaps(dearest: float) -> int:
    return int(1.1 * dearest)


def test_a_batch_decides_where_there_are_many_tokens() -> None:
    # Four of an MLP's width in fp32, while masks wait to be used.
    assert work(prune(method="wanda")) == with_gaps(TOKENS * 4 * 64 * 4 + ELEMENTS)
    many = samples(100, 13)
    assert work(prune(method="wanda"), tokens=many) == with_gaps(1024 * 4 * 64 * 4 + ELEMENTS)
    on_gpu = work(prune(method="wanda"), tokens=samples(1000, 13), device="cuda")
    assert on_gpu == with_gaps(8192 * 4 * 64 * 4 + ELEMENTS)
    # A sample alone is not divided.
    long = samples(2, 1100)
    assert work(prune(method="wanda"), tokens=long) == with_gaps(1100 * 4 * 64 * 4 + ELEMENTS)


def test_hessians_and_what_factors_them() -> None:
    few = samples(1, 2)
    factored = LARGEST * 4 + 6 * 64**2 * 4
    expected = with_gaps(HESSIANS + ELEMENTS + factored)
    assert work(prune(method="sparsegpt"), tokens=few) == expected
    # Nine copies of a matrix, and the Hessian twice.
    solved = 9 * LARGEST * 4 + 2 * 64**2 * 4
    stage = prune(method="wanda", update="conjugate_gradient")
    assert work(stage, tokens=few) == with_gaps(HESSIANS + ELEMENTS + solved)
    swapped = 20 * LARGEST * 4 + 2 * 64**2 * 4
    assert work(prune(method="wanda", swaps=2), tokens=few) == with_gaps(
        HESSIANS + ELEMENTS + swapped
    )
    # All rows of these systems are solved at once.
    systems = LARGEST * 4 * 64
    stage = prune(method="wanda", update="least_squares")
    expected = with_gaps(HESSIANS + ELEMENTS + 6 * LARGEST * 4 + 2 * 64**2 * 4 + systems)
    assert work(stage, tokens=few) == expected


def test_masters_and_what_tunes_them() -> None:
    few = samples(2, 1)
    # fp32: the weights before, three masks, the best, two moments, gradients.
    expected = ELEMENTS * (4 + 3 + 4 + 8 + 4)
    assert work(prune(method="wanda++"), tokens=few) == with_gaps(expected)
    # bf16 on a GPU: masters, copies for products, and a gradient that is not added up yet.
    narrow = ELEMENTS * (2 + 2 + 3 + 4 + 8 + 2 + 4) + 2 * LARGEST
    tuned = partial(work, tokens=few, dtype_bytes=2, device="cuda")
    assert tuned(prune(method="wanda++")) == with_gaps(narrow)
    # RMSprop has one moment; where masks are chosen anew, gradients of the score stay.
    published = prune(method="wanda++", reconstruct=Reconstruction(preset="published"))
    again = ELEMENTS * 4 + ELEMENTS + 4 * LARGEST * 4
    assert tuned(published) == with_gaps(narrow - ELEMENTS * 4 + again)


def test_as_many_tokens_are_tuned_on_as_the_optimizer_takes() -> None:
    assert ReconstructionSettings().tokens_per_micro_batch == _TOKENS_TO_TUNE


def test_factors_fitted_in_turn_have_moments_of_their_own() -> None:
    few = samples(1, 2)
    fitting = 2.5 * 64**2 * 8 + 6 * LARGEST * 8
    stage = partial(FactorStage, method="svd-whitened", rank=16)
    assert work(stage(in_turn=False), tokens=few) == with_gaps(HESSIANS + fitting)
    # Those of o and down once more, and a copy of the block.
    crossed = (32**2 + 64**2) * 8 + ELEMENTS * 4
    assert work(stage(), tokens=few) == with_gaps(HESSIANS + crossed + fitting)
    split = 2.5 * 64**2 * 8 + 17 * LARGEST * 8
    stage = partial(FactorStage, method="sparse-plus-low-rank", rank=16)
    assert work(stage(), tokens=few) == with_gaps(HESSIANS + split)


def test_experts_have_hessians_of_their_own_and_tokens_in_several() -> None:
    # Attention's four, and two matrices of each of eight experts: [128, 32] and [32, 64].
    hessians = (4 * 32**2 + 8 * (32**2 + 64**2)) * 8
    elements = 2 * 32 * 32 + 2 * 16 * 32 + 8 * (128 * 32 + 32 * 64)
    factored = 32 * 64 * 4 + 6 * 64**2 * 4
    stage = prune(method="sparsegpt")
    assert work(stage, "mixtral", samples(1, 2)) == with_gaps(hessians + elements + factored)
    # Each token is in two experts.
    running = TOKENS * 4 * (2 * 128) * 4
    assert work(prune(method="wanda"), "mixtral") == with_gaps(elements + running)


def test_without_calibration() -> None:
    inventory = take_inventory(tiny_model("llama"))
    stage = FactorStage(method="svd", rank=16)
    found = work_bytes(inventory, stage, None, 32, 1, 4, torch.device("cpu"))
    assert found == with_gaps(4 * LARGEST * 4)
