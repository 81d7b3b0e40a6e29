"""The probe of the fragment layout, with made-up hardware: what it says when something differs."""

from collections.abc import Callable

import pytest
import torch
from bench.one_hot_probe import (
    DTYPES,
    distinct_unit,
    find,
    main,
    report,
    weights_of,
    with_moved_pairs,
)
from torch import Tensor

from secateur_kernels.layouts.fragment24 import SUB_TILE_BYTES, VALUE_BYTES


def sums_of(weights: Tensor) -> Tensor:
    """Weights [count, 64, 64] as the threads hold them: row = 16 * warp + lane / 4 + 8 * (sum / 2),
    column = 8 * block + 2 * (lane % 4) + sum % 2."""
    block = torch.arange(8)[:, None, None]
    thread = torch.arange(128)[None, :, None]
    item = torch.arange(4)[None, None, :]
    lane = thread % 32
    rows = 16 * (thread // 32) + lane // 4 + 8 * (item // 2) + 0 * block
    columns = 8 * block + 2 * (lane % 4) + item % 2
    return weights[:, rows, columns].float()


def perfect(units: Tensor, dtype: str) -> Tensor:
    return sums_of(weights_of(units, dtype))[:, None].expand(-1, 2, -1, -1, -1)


def with_a_fault(fault: Callable[[Tensor], None]) -> Callable[[Tensor, str], Tensor]:
    """Hardware whose second instruction reads what `fault` makes of the units."""

    def hardware(units: Tensor, dtype: str) -> Tensor:
        read = units.clone()
        fault(read.view(-1, 4, SUB_TILE_BYTES))
        return torch.stack([perfect(units, dtype)[:, 0], perfect(read, dtype)[:, 0]], dim=1)

    return hardware


@pytest.mark.parametrize("dtype", DTYPES)
def test_hardware_that_follows_the_layout_passes(dtype: str) -> None:
    findings = find(perfect, dtype)
    assert [found.differences for found in findings] == [(), ()]
    assert report(findings)[1] == f"wgmma.sp m64n32k32 {dtype}: as fragment24.py says"


def test_units_are_legal_and_their_values_differ() -> None:
    unit, weight = distinct_unit(3, "fp16")
    assert len(weight[weight != 0].unique()) == 2048
    assert torch.equal(weights_of(unit[None], "fp16")[0], weight)
    base, plain = distinct_unit(0, "bf16")
    moved = weights_of(with_moved_pairs(base), "bf16")
    assert moved.shape == (256, 64, 64)
    # Two values of one group of each sub-tile have moved.
    assert ((moved != plain).sum(dim=(1, 2)) == 16).all()


def test_a_swapped_register_is_named() -> None:
    def swap(tiles: Tensor) -> None:
        # Registers 1 and 2 of lane 5, fragment 1, second sub-tile.
        lane = tiles[:, 1, 512 + 5 * 16 : 512 + 6 * 16]
        lane[:, 4:12] = lane[:, 4:12].roll(4, dims=1)

    first, second = find(with_a_fault(swap), "bf16")
    assert first.differences == ()
    text = "\n".join(report([second]))
    assert "wgmma.sp m64n32k32 bf16: 4 differences" in text
    expected = "warp 1 fragment 1 lane 5 register 1 low half: expected at row 25 column 36, seen"
    assert f"{expected} row 17 column 52" in text


def test_a_metadata_word_of_another_lane_is_named() -> None:
    def swap(tiles: Tensor) -> None:
        # The hardware takes lane 2's word where the layout says lane 3's, and the reverse.
        words = tiles[:, 0, VALUE_BYTES:].unflatten(1, (32, 4))
        words[:, 2:4] = words[:, 2:4].flip(1)

    _, second = find(with_a_fault(swap), "bf16")
    assert (
        "warp 0 metadata of lane 2 bits 16-19: expected to rule row 8 columns 32-35 (selector 1), "
        "rules row 8 columns 48-51 (selector 1)" in second.differences
    )
    assert len(second.differences) == 16


def test_values_in_two_places_are_noticed() -> None:
    def hardware(units: Tensor, dtype: str) -> Tensor:
        sums = perfect(units, dtype).clone()
        sums[0, 0, 0, 0, 1] += 1
        return sums

    first, second = find(hardware, "fp16")
    assert second.differences == ()
    assert first.differences


def test_the_exit_status_says_whether_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], perfect) == 0
    assert capsys.readouterr().out.count("as fragment24.py says") == 4

    def nothing(units: Tensor, dtype: str) -> Tensor:
        return torch.full((len(units), 2, 8, 128, 4), float("nan"))

    assert main([], nothing) == 1
    out = capsys.readouterr().out
    assert "register 0 low half: expected at row 0 column 0, seen nowhere" in out
    assert "more" in out

    def broken(units: Tensor, dtype: str) -> Tensor:
        raise RuntimeError("no GPU")

    assert main([], broken) == 2
    assert capsys.readouterr().out == "the probe did not run: no GPU\n"
