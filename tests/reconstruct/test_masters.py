import pytest
import torch
from toys import halved, make_block

from secateur.models.rounding import narrow
from secateur.reconstruct import master_weights

NARROW = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", NARROW)
def test_parameters_are_wide_inside_and_come_back_narrow(dtype: torch.dtype) -> None:
    block = make_block(dtype=dtype)
    before = {name: value.clone() for name, value in block.named_parameters()}
    with master_weights(block, {}):
        assert all(value.dtype == torch.float32 for value in block.parameters())
    for name, value in block.named_parameters():
        assert value.dtype == dtype
        assert torch.equal(value, before[name])


def test_wide_parameters_are_left_alone() -> None:
    block = make_block(dtype=torch.float64)
    places = [value.data_ptr() for value in block.parameters()]
    with master_weights(block, {}):
        assert all(value.dtype == torch.float64 for value in block.parameters())
    assert places == [value.data_ptr() for value in block.parameters()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_pattern_is_exact_afterwards_even_when_interrupted(dtype: torch.dtype) -> None:
    student, masks = halved(make_block(dtype=dtype))

    def change_and_stop() -> None:
        for value in student.parameters():
            value.data.add_(0.001)
        masks["mlp.up.weight"] = ~masks["mlp.up.weight"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), master_weights(student, masks):
        change_and_stop()
    for name, value in student.named_parameters():
        assert value.dtype == dtype
        if name in masks:
            assert torch.equal(value != 0, masks[name])


def test_steps_too_small_for_the_dtype_add_up() -> None:
    block = make_block(dtype=torch.bfloat16)
    block.mlp.up.weight.data.fill_(0.02)
    with master_weights(block, {}):
        for _ in range(100):
            block.mlp.up.weight.data.add_(1e-5)
    expected = torch.tensor(0.021, dtype=torch.bfloat16)
    assert bool((block.mlp.up.weight == expected).all())


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("dtype", NARROW)
def test_kept_weights_never_round_to_zero(dtype: torch.dtype, rounding: str) -> None:
    value = torch.tensor([1e-42, -1e-42, 0.0, 1.0, 1e-42, -0.5])
    keep = torch.tensor([True, True, True, True, False, False])
    result = narrow(value, dtype, keep, rounding)  # type: ignore[arg-type]
    tiny = torch.finfo(dtype).tiny
    assert result.tolist() == [tiny, -tiny, 0.0, 1.0, 0.0, 0.0]
    assert not narrow(value, dtype)[:2].any() or dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", NARROW)
def test_stochastic_rounding_keeps_the_mean(dtype: torch.dtype) -> None:
    # A quarter of the way from 1 to its neighbour, either side of zero.
    spacing = torch.finfo(dtype).eps
    value = torch.full((40_000,), 1.0 + spacing / 4)
    value[::2] *= -1.0
    result = narrow(value, dtype, rounding="stochastic", seed=3).float().abs()
    assert set(result.tolist()) == {1.0, 1.0 + spacing}
    up = float((result > 1.0).double().mean())
    # Standard deviation sqrt(0.25 * 0.75 / 40000) = 0.0022; five of them.
    assert up == pytest.approx(0.25, abs=0.011)
    again = narrow(value, dtype, rounding="stochastic", seed=3)
    assert torch.equal(result, again.float().abs())
    exact = value.to(dtype).float()
    assert torch.equal(narrow(exact, dtype, rounding="stochastic").float(), exact)


def test_stochastic_rounding_of_extremes() -> None:
    largest = torch.finfo(torch.float16).max
    value = torch.tensor([largest, -largest, torch.inf, 0.0, -0.0, 65510.0])
    result = narrow(value, torch.float16, rounding="stochastic")
    assert result.tolist() == [largest, -largest, torch.inf, 0.0, 0.0, largest]
