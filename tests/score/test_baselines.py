import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import SecateurError
from secateur.score.gblm import score_gblm
from secateur.score.ria import score_ria


@settings(deadline=None, max_examples=30)
@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    seed=st.integers(0, 999),
    power=st.sampled_from([0.5, 0.0, 1.0]),
)
def test_ria_is_the_published_formula(rows: int, columns: int, seed: int, power: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    norm = torch.rand(columns, generator=generator, dtype=torch.float64)
    score = score_ria(weight, norm, power)
    values = weight.abs().tolist()
    for i in range(rows):
        for j in range(columns):
            column_sum = sum(values[k][j] for k in range(rows))
            row_sum = sum(values[i])
            relative = values[i][j] / column_sum + values[i][j] / row_sum
            assert score[i, j].item() == pytest.approx(
                relative * norm[j].item() ** power, rel=1e-12
            )


def test_ria_of_zero_rows_and_columns_is_zero() -> None:
    weight = torch.tensor([[0.0, 2.0], [0.0, 0.0]])
    assert torch.equal(score_ria(weight, torch.ones(2)), torch.tensor([[0.0, 2.0], [0.0, 0.0]]))


def test_gblm_is_the_published_formula() -> None:
    # Numbers that single precision would round.
    weight = torch.tensor([[1.1, -2.0], [3.0, 0.0]], dtype=torch.float64)
    gradient = torch.tensor([[0.5, 0.3], [0.0, 1.0]], dtype=torch.float64)
    norm = torch.tensor([1.0, 10.0], dtype=torch.float64)
    expected = [[1.1 * (100 * 0.5 + 1.0), 2.0 * (100 * 0.3 + 10.0)], [3.0, 0.0]]
    assert score_gblm(weight, gradient, norm).tolist() == expected
    assert score_gblm(weight, gradient, norm, scale=0.0).tolist() == [[1.1, 20.0], [3.0, 0.0]]


def test_dtypes() -> None:
    weight, norm = torch.randn(4, 6).bfloat16(), torch.rand(6)
    assert score_ria(weight, norm).dtype == torch.float32
    assert score_ria(weight.double(), norm).dtype == torch.float64
    assert score_gblm(weight, weight.abs(), norm).dtype == torch.float32
    assert score_gblm(weight, weight.abs().double(), norm).dtype == torch.float64
    assert score_ria(weight.T, torch.rand(4)).is_contiguous()
    assert score_gblm(weight.T, weight.T.abs(), torch.rand(4)).is_contiguous()


def test_shapes_that_do_not_fit_are_refused() -> None:
    weight = torch.ones(2, 3)
    with pytest.raises(SecateurError, match=r"expected input_norm \[3\] for weight \[2, 3\]"):
        score_ria(weight, torch.ones(2))
    with pytest.raises(SecateurError, match=r"expected gradient \[2, 3\] and input_norm \[3\]"):
        score_gblm(weight, torch.ones(2, 2), torch.ones(3))
