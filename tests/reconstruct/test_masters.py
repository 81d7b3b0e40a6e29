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


@pytest.mark.parametrize("dtype", NARROW)
def test_kept_weights_never_round_to_zero(dtype: torch.dtype) -> None:
    value = torch.tensor([1e-42, -1e-42, 0.0, 1.0, 1e-42, -0.5])
    keep = torch.tensor([True, True, True, True, False, False])
    result = narrow(value, dtype, keep)
    tiny = torch.finfo(dtype).tiny
    assert result.tolist() == [tiny, -tiny, 0.0, 1.0, 0.0, 0.0]
    assert not narrow(value, dtype)[:2].any() or dtype == torch.bfloat16
