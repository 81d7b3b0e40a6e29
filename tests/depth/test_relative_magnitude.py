import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.depth.relative_magnitude import RelativeMagnitude
from secateur.errors import SecateurError


def magnitude_of(hidden_in: Tensor, hidden_out: Tensor) -> float:
    magnitude = RelativeMagnitude()
    magnitude.add(hidden_in, hidden_out)
    return magnitude.value()


@settings(deadline=None, max_examples=30)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    seed=st.integers(0, 1000),
)
def test_equals_the_formula(shape: list[int], dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator).to(dtype)
    y = (1 + torch.rand(shape, generator=generator)).to(dtype)
    change = (y.double() - x.double()).square().sum(-1).sqrt()
    expected = float((change / y.double().square().sum(-1).sqrt()).mean())
    assert magnitude_of(x, y) == pytest.approx(expected, rel=1e-12)


def test_batches_add_up_to_the_mean_over_all_tokens() -> None:
    x, y = torch.randn(2, 60, 16, generator=torch.Generator().manual_seed(0))
    magnitude = RelativeMagnitude()
    for start, stop in ((0, 7), (7, 7), (7, 60)):
        magnitude.add(x[start:stop], y[start:stop])
    assert magnitude.value() == pytest.approx(magnitude_of(x, y), rel=1e-12)


def test_known_values() -> None:
    x = torch.tensor([[3.0, 4.0]])
    assert magnitude_of(x, x) == 0.0
    assert magnitude_of(x, 2 * x) == 0.5
    assert magnitude_of(0 * x, x) == 1.0
    assert magnitude_of(0 * x, 0 * x) == 0.0
    assert magnitude_of(torch.full((1, 8), 2e38), torch.full((1, 8), 1e38)) == pytest.approx(1.0)


def test_refusals() -> None:
    with pytest.raises(SecateurError, match=r"got \[2, 4\] and \[2, 5\]"):
        magnitude_of(torch.ones(2, 4), torch.ones(2, 5))
    with pytest.raises(SecateurError, match="after the block, 8 of 8 values are not"):
        magnitude_of(torch.ones(2, 4), torch.full((2, 4), torch.nan))
    with pytest.raises(SecateurError, match="do not leave the block as zero, 1 of 2 do"):
        magnitude_of(torch.ones(2, 4), torch.tensor([[0.0], [1.0]]).expand(2, 4))
    with pytest.raises(SecateurError, match="at least one token for a relative magnitude"):
        RelativeMagnitude().value()
