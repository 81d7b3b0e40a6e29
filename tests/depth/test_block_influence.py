import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.depth.block_influence import BlockInfluence
from secateur.errors import SecateurError


def influence_of(hidden_in: Tensor, hidden_out: Tensor) -> float:
    influence = BlockInfluence()
    influence.add(hidden_in, hidden_out)
    return influence.value()


def direct(hidden_in: Tensor, hidden_out: Tensor) -> float:
    x, y = hidden_in.double(), hidden_out.double()
    cosine = (x * y).sum(-1) / (x.square().sum(-1).sqrt() * y.square().sum(-1).sqrt())
    return 1.0 - float(cosine.mean())


@settings(deadline=None, max_examples=40)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    seed=st.integers(0, 1000),
)
def test_equals_the_formula_in_double_precision(
    shape: list[int], dtype: torch.dtype, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden_in = (scale * (1 + torch.rand(shape, generator=generator))).to(dtype)
    hidden_out = (hidden_in + scale * torch.randn(shape, generator=generator)).to(dtype)
    hidden_out[hidden_out == 0] = scale
    expected = direct(hidden_in, hidden_out)
    assert influence_of(hidden_in, hidden_out) == pytest.approx(expected, abs=2e-6)


def test_batches_add_up_to_the_mean_over_all_tokens() -> None:
    hidden_in, hidden_out = torch.randn(2, 60, 16, generator=torch.Generator().manual_seed(0))
    influence = BlockInfluence()
    for start, stop in ((0, 7), (7, 7), (7, 60)):
        influence.add(hidden_in[start:stop], hidden_out[start:stop])
    assert influence.value() == pytest.approx(direct(hidden_in, hidden_out), abs=1e-6)


def test_known_angles() -> None:
    hidden = torch.tensor([[3.0, 4.0]])
    assert influence_of(hidden, 7 * hidden) == pytest.approx(0.0, abs=1e-7)
    assert influence_of(hidden, -hidden) == pytest.approx(2.0, abs=1e-7)
    assert influence_of(hidden, torch.tensor([[-4.0, 3.0]])) == pytest.approx(1.0, abs=1e-7)


@pytest.mark.parametrize(("before", "after", "expected"), [(0, 0, 0.0), (0, 1, 1.0), (1, 0, 1.0)])
def test_zero_vectors(before: float, after: float, expected: float) -> None:
    assert influence_of(before * torch.ones(1, 4), after * torch.ones(1, 4)) == expected


@pytest.mark.parametrize("value", [3e38, 1e-38, 1e-45])
def test_extreme_magnitudes_neither_overflow_nor_vanish(value: float) -> None:
    hidden = torch.full((2, 8), value)
    assert influence_of(hidden, hidden) == pytest.approx(0.0, abs=1e-6)


def test_massive_activations_in_half_precision() -> None:
    hidden = torch.full((2, 4096), 60000.0, dtype=torch.float16)
    assert influence_of(hidden, hidden) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_refuses_values_that_are_not_finite(broken: float) -> None:
    hidden = torch.ones(2, 4)
    bad = hidden.clone()
    bad[1, 2] = broken
    with pytest.raises(SecateurError, match="after the block, 1 of 8 values are not"):
        BlockInfluence().add(hidden, bad)
    with pytest.raises(SecateurError, match="before the block"):
        BlockInfluence().add(bad, hidden)


def test_refuses_different_shapes() -> None:
    with pytest.raises(SecateurError, match=r"got \[2, 4\] and \[2, 5\]"):
        BlockInfluence().add(torch.ones(2, 4), torch.ones(2, 5))


def test_refuses_integers() -> None:
    with pytest.raises(SecateurError, match=r"floating hidden states .* got torch.int64"):
        BlockInfluence().add(torch.ones(2, 4).long(), torch.ones(2, 4).long())


def test_refuses_a_value_of_no_tokens() -> None:
    influence = BlockInfluence()
    influence.add(torch.ones(0, 4), torch.ones(0, 4))
    with pytest.raises(SecateurError, match="at least one token"):
        influence.value()
