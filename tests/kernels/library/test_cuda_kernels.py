"""Which compiled kernel of the 2:4 linear takes what."""

import dataclasses
import re

import pytest
import torch

from secateur_kernels.dispatch.candidates import (
    candidates,
    candidates_to_tune,
    config_from,
    variants_to_tune,
)
from secateur_kernels.dispatch.problem import DeviceFacts, Problem
from secateur_kernels.errors import SecateurError
from secateur_kernels.library import SCHEMAS
from secateur_kernels.sparse24_linear.cuda_kernels import (
    KERNELS,
    candidate_configs,
    config_of,
    default_config,
    kernels_for,
    supports,
    variants,
)

HOPPER, AMPERE, ADA = (9, 0), (8, 0), (8, 9)
TOKENS = (1, 8, 16, 17, 64, 65, 512, 8192)


@pytest.mark.parametrize("m", TOKENS)
def test_the_kernel_for_a_number_of_tokens(m: int) -> None:
    on_hopper = default_config(m, 4096, 4096, 132, HOPPER).kernel
    elsewhere = default_config(m, 4096, 4096, 108, AMPERE).kernel
    assert on_hopper == ("skinny" if m <= 16 else "wide")
    assert elsewhere == ("skinny" if m <= 64 else "tiles")


def test_order_of_the_kernels() -> None:
    assert kernels_for(64, 256, 256, HOPPER) == ["wide", "skinny", "tiles"]
    assert kernels_for(65, 256, 256, HOPPER) == ["wide", "tiles"]
    assert kernels_for(17, 256, 256, HOPPER) == ["wide", "skinny", "tiles"]
    assert kernels_for(16, 256, 256, HOPPER) == ["skinny", "wide", "tiles"]
    assert kernels_for(8, 256, 256, ADA) == ["skinny", "tiles"]
    assert kernels_for(8, 256, 256, (12, 0)) == ["skinny", "tiles"]
    assert kernels_for(8, 256, 256, (7, 5)) == []
    assert not supports(8, 256, 256, (7, 5))


@pytest.mark.parametrize("capability", [HOPPER, ADA])
@pytest.mark.parametrize("m", TOKENS)
def test_what_is_timed(m: int, capability: tuple[int, int]) -> None:
    configs = candidate_configs(m, 4096, 4096, 132, capability)
    assert configs[0] == default_config(m, 4096, 4096, 132, capability)
    kernels = {config.kernel for config in configs}
    assert "tiles" not in kernels or capability == ADA
    assert ("skinny" in kernels) == (m <= 64)
    assert len(configs) <= 36


@pytest.mark.parametrize("name", KERNELS)
def test_configs_come_back_from_a_table(name: str) -> None:
    config = KERNELS[name].default_config(48, 4096, 4096, 132, HOPPER)
    fields = dataclasses.asdict(config)
    assert fields["kernel"] == name
    assert config_from("sparse24_linear", "cuda", fields) == config


@pytest.mark.parametrize("name", KERNELS)
def test_a_config_is_what_its_op_takes_last(name: str) -> None:
    """In the op's order: all are numbers, and would pass for each other."""
    config = KERNELS[name].default_config(48, 4096, 4096, 132, HOPPER)
    taken = re.findall(r"(?:int|bool) (\w+)", SCHEMAS[f"sparse24_{name}"].partition("dependent")[2])
    fields = [argument.removeprefix("tile_") for argument in taken]
    assert fields == [field.name for field in dataclasses.fields(config)][1:]
    values = tuple(getattr(config, field) for field in fields)
    assert KERNELS[name].tiling(config) == values


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(SecateurError, match=r"expected kernel skinny, wide, tiles, got 'narrow'"):
        config_of(kernel="narrow", blocks=1)
    with pytest.raises(SecateurError, match=r"compiled kernels, got 0, 64 and 64"):
        default_config(0, 64, 64, 132, HOPPER)


def test_dispatch_offers_them() -> None:

    device = DeviceFacts("NVIDIA H200", HOPPER, 132, has_triton=True, has_library=True)
    problem = Problem("sparse24_linear", 2048, 4096, 4096, torch.bfloat16, device)
    assert candidates(problem)[0].config.kernel == "wide"
    timed = [c.config.kernel for c in candidates_to_tune(problem) if c.backend == "cuda"]
    assert set(timed) == {"wide"}


def test_tuning_varies_what_is_fast() -> None:
    device = DeviceFacts("NVIDIA H200", HOPPER, 132, has_triton=True, has_library=True)
    for m, op in ((1, "sparse24_linear"), (64, "sparse24_linear"), (1, "low_rank_linear")):
        problem = Problem(op, m, 57344, 8192, torch.bfloat16, device, rank=2048)
        ours, *others = candidates(problem)
        varied = variants_to_tune(problem, ours)
        assert len(varied) > 2
        assert all(choice.backend == "cuda" and choice.config != ours.config for choice in varied)
        assert all(not variants_to_tune(problem, other) for other in others)
    tiles = KERNELS["tiles"].default_config(512, 4096, 4096, 132, HOPPER)
    assert variants(tiles, 512, 4096, 4096, 132, HOPPER) == []


def test_a_default_is_worked_out_once() -> None:
    """It takes milliseconds, and calls by name need it each time."""
    assert default_config(512, 4096, 4096, 132, HOPPER) is default_config(
        512, 4096, 4096, 132, HOPPER
    )
