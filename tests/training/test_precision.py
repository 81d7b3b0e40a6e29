"""fp32 while training, and back: bits, zeros, and no weight that becomes zero."""

import pytest
import torch
from families import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from small_trainings import same_values, values_of
from torch import nn

from secateur.training.precision import restore, widen

NARROW = (torch.bfloat16, torch.float16)


def every_value(dtype: torch.dtype) -> nn.Module:
    """A module whose weight holds every finite number of a 16-bit dtype."""
    bits = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    module = nn.Linear(1, 1)
    module.weight = nn.Parameter(bits[bits.isfinite()].clone())
    return module


@pytest.mark.parametrize("dtype", NARROW)
def test_every_16_bit_number_comes_back(dtype: torch.dtype) -> None:
    module = every_value(dtype)
    before = module.weight.detach().clone()
    parameter = module.weight
    dtypes = widen(module)
    assert dtypes == {"weight": dtype}
    assert module.weight.dtype == torch.float32
    assert torch.equal(module.weight.double(), before.double())
    restore(module, dtypes)
    assert module.weight is parameter
    # -0.0 comes back as 0.0: a zero all the same.
    assert module.weight.dtype == dtype
    assert torch.equal(module.weight, before)
    nonzero = before != 0
    assert torch.equal(
        module.weight.detach()[nonzero].view(torch.int16), before[nonzero].view(torch.int16)
    )


@pytest.mark.parametrize("family", ["gpt2", "mixtral"])
@pytest.mark.parametrize("dtype", NARROW)
def test_models_come_back_bit_for_bit(family: str, dtype: torch.dtype) -> None:
    model = tiny_model(family).to(dtype)
    model.get_parameter(
        next(n for n, p in model.named_parameters() if p.ndim == 1)
    ).data = torch.ones(3, dtype=torch.float64)
    before, identities = values_of(model), [id(p) for p in model.parameters()]
    dtypes = widen(model)
    assert {p.dtype for p in model.parameters()} == {torch.float32, torch.float64}
    assert set(dtypes.values()) == {dtype}
    restore(model, dtypes)
    assert same_values(values_of(model), before)
    assert [id(p) for p in model.parameters()] == identities


def test_fp32_is_left_alone() -> None:
    model = tiny_model("llama")
    before = values_of(model)
    assert widen(model) == {}
    restore(model, {})
    assert same_values(values_of(model), before)


@pytest.mark.parametrize("dtype", NARROW)
@given(
    values=st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False, max_value=6e4, min_value=-6e4)
        | st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 1e-30, -1e-30]),
        min_size=1,
        max_size=20,
    )
)
@settings(max_examples=50, deadline=None)
def test_the_pattern_of_zeros_is_the_same(dtype: torch.dtype, values: list[float]) -> None:
    module = nn.Linear(1, 1, bias=False)
    module.weight = nn.Parameter(torch.zeros(len(values), dtype=dtype))
    dtypes = widen(module)
    trained = torch.tensor(values)
    module.weight.data = trained.clone()
    restore(module, dtypes)
    result = module.weight.detach()
    assert result.dtype == dtype
    assert torch.equal(result == 0, trained == 0)
    assert torch.equal(result.signbit()[result != 0], trained.signbit()[trained != 0])
    rounded = trained.to(dtype)
    survives = rounded != 0
    assert torch.equal(result[survives], rounded[survives])
