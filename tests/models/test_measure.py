from math import inf, nan

import pytest
import torch
from torch import nn

from secateur.errors import SecateurError
from secateur.models.measure import is_finite, require_finite, require_finite_weights


@pytest.mark.parametrize("bad", [nan, inf, -inf])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 7, 64, 1001])
def test_one_bad_number_anywhere_is_found(size: int, dtype: torch.dtype, bad: float) -> None:
    for place in {0, size // 2, size - 1}:
        values = torch.linspace(-3.0, 3.0, size).to(dtype)
        assert is_finite(values)
        values[place] = bad
        assert not is_finite(values)
        assert not is_finite(values.expand(3, -1).T)


def test_nothing_is_finite() -> None:
    assert is_finite(torch.empty(0, 4))


def test_the_largest_numbers_are_finite() -> None:
    largest = torch.finfo(torch.float32).max
    assert is_finite(torch.tensor([largest, -largest]))


def test_bad_numbers_are_counted() -> None:
    values = torch.zeros(5, 4)
    values[1, 2], values[4, 0] = inf, nan
    message = "expected finite weights, but up holds NaN or Inf in 2 of 20 places"
    with pytest.raises(SecateurError, match=message):
        require_finite("up", values)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"])
def test_weights_of_8_bits_are_refused_by_name(dtype: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight.data = model[1].weight.data.to(getattr(torch, dtype))
    message = (
        f"expected weights of at least 16 bits, but 1.weight is {dtype}: load the model in another "
        "dtype, such as bfloat16"
    )
    with pytest.raises(SecateurError, match=message):
        require_finite_weights(model)
    require_finite_weights(model.to(torch.bfloat16))
