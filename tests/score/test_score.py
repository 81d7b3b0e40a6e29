import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.errors import SecateurError
from secateur.mask import select_grouped, select_unstructured
from secateur.score import score_magnitude, score_wanda

NARROW = [torch.float32, torch.bfloat16, torch.float16]


def random_tensor(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", [*NARROW, torch.float64])
def test_magnitude_is_the_absolute_value_of_every_weight(dtype: torch.dtype) -> None:
    weight = random_tensor(5, 7, dtype=dtype)
    score = score_magnitude(weight)
    assert score.tolist() == [[abs(value) for value in row] for row in weight.tolist()]
    assert score.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_magnitude_of_zeros_and_extremes() -> None:
    smallest, largest = 1e-45, torch.finfo(torch.float32).max
    score = score_magnitude(torch.tensor([[-0.0, 0.0, -smallest, -largest]]))
    expected = torch.tensor([[0.0, 0.0, smallest, largest]])
    assert torch.equal(score, expected)
    assert not score.signbit().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_scores_of_a_transposed_weight_are_contiguous_and_its_own(dtype: torch.dtype) -> None:
    base = random_tensor(6, 4, dtype=dtype)
    before = base.clone()
    norm = random_tensor(6, seed=1).abs()
    for score in (score_magnitude(base.T), score_wanda(base.T, norm)):
        assert score.shape == (4, 6)
        assert score.is_contiguous()
        score.fill_(-1.0)
    assert torch.equal(base, before)
    assert torch.equal(score_magnitude(base.T), score_magnitude(base.T.contiguous()))
    assert torch.equal(score_wanda(base.T, norm), score_wanda(base.T.contiguous(), norm))


@settings(deadline=None, max_examples=50)
@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from(NARROW),
)
def test_wanda_is_weight_times_norm_of_its_column(
    rows: int, columns: int, seed: int, dtype: torch.dtype
) -> None:
    weight = random_tensor(rows, columns, seed=seed, dtype=dtype)
    norm = random_tensor(columns, seed=seed + 1).abs()
    score = score_wanda(weight, norm)
    assert score.dtype == torch.float32
    for row in range(rows):
        for column in range(columns):
            # One fp32 product is the exact product rounded once.
            product = abs(weight[row, column].item()) * norm[column].item()
            assert score[row, column].item() == torch.tensor(product, dtype=torch.float32).item()


def test_wanda_is_float64_if_either_argument_is() -> None:
    weight, norm = random_tensor(3, 4), random_tensor(4, seed=1).abs()
    assert score_wanda(weight, norm).dtype == torch.float32
    for score in (score_wanda(weight.double(), norm), score_wanda(weight, norm.double())):
        assert score.dtype == torch.float64
        assert torch.equal(score, weight.double().abs() * norm.double())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_and_norms_are_multiplied_in_single_precision(dtype: torch.dtype) -> None:
    weight, norm = random_tensor(3, 4, dtype=dtype), random_tensor(4, seed=1, dtype=dtype).abs()
    score = score_wanda(weight, norm)
    assert score.dtype == torch.float32
    assert torch.equal(score, weight.float().abs() * norm.float())


def test_wanda_of_a_silent_channel_is_zero() -> None:
    score = score_wanda(torch.full((2, 3), 100.0), torch.tensor([0.0, 1.0, 2.0]))
    assert score.tolist() == [[0.0, 100.0, 200.0]] * 2


def test_constant_factor_on_the_norm_changes_no_mask() -> None:
    weight, norm = random_tensor(8, 32), random_tensor(32, seed=1).abs()
    scores = [score_wanda(weight, norm * factor) for factor in (1.0, 8.0, 1 / 128**0.5)]
    for other in scores[1:]:
        assert torch.equal(select_grouped(scores[0], 2, 4), select_grouped(other, 2, 4))
        masks = [select_unstructured(score, 0.5, "row") for score in (scores[0], other)]
        assert torch.equal(*masks)


@pytest.mark.parametrize("shape", [(3,), (5,), (1, 4), (4, 1), (), (0,)])
def test_norm_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    expected = rf"expected input_norm \[4\] for weight \[3, 4\], got \[{str(list(shape))[1:-1]}\]"
    with pytest.raises(SecateurError, match=expected):
        score_wanda(torch.ones(3, 4), torch.ones(shape))
