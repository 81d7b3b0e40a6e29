import pytest
import torch
from problems import normal, with_spectrum
from torch import Tensor

from secateur.errors import SecateurError
from secateur.lowrank import (
    FRACTIONS,
    Candidate,
    Intervention,
    SpectrumGradient,
    discarded,
    exact_svd,
    kept,
    predicted_changes,
    randomised_svd,
    rank_matrices,
    singular_value_gradients,
    write_back,
)
from secateur.lowrank.laser import MatrixType


def test_the_published_grid() -> None:
    assert FRACTIONS == (0.9, 0.8, 0.6, 0.2, 0.1, 0.05, 0.01)


@pytest.mark.parametrize("fraction", [f for f in FRACTIONS if f > 0.01])
def test_kept_and_discarded_components(fraction: float) -> None:
    weight = normal(30, 50)
    svd = exact_svd(weight)
    rank = int(fraction * 30)
    assert kept(svd, fraction).rank == rank
    assert discarded(svd, fraction).rank == 30 - rank
    total = kept(svd, fraction).dense() + discarded(svd, fraction).dense()
    torch.testing.assert_close(total, weight, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_write_back_keeps_dtype_and_rounds_once(dtype: torch.dtype) -> None:
    weight = normal(30, 50).to(dtype)
    before = weight.clone()
    factors = kept(exact_svd(weight), 0.2)
    dense = write_back(factors, weight)
    assert dense.dtype == dtype
    assert torch.equal(dense, (factors.up @ factors.down).to(dtype))
    assert torch.equal(weight, before)


def test_bad_interventions() -> None:
    weight = normal(30, 50)
    svd = exact_svd(weight)
    with pytest.raises(SecateurError, match=r"at least 1 / 30 .* its rank would be 0"):
        kept(svd, 0.01)
    with pytest.raises(SecateurError, match="full rank 30: it discards nothing"):
        discarded(svd, 1.0)
    with pytest.raises(SecateurError, match="at most the 5 singular values"):
        kept(randomised_svd(weight, 3, oversampling=2), 0.2)
    with pytest.raises(SecateurError, match=r"a weight \[50, 30\], got \[30, 50\]"):
        write_back(kept(svd, 0.2), weight.T)


@pytest.mark.parametrize(
    ("matrix", "block", "fraction", "message"),
    [
        ("gate", 0, 0.1, "q, k, v, qkv, o, mlp_in, mlp_up, mlp_out, got 'gate'"),
        ("q", -1, 0.1, "a block of at least 0, got -1"),
        ("q", 0, 0.0, "0 < kept fraction <= 1, got 0.0"),
        ("q", 0, 1.1, "0 < kept fraction <= 1, got 1.1"),
    ],
)
def test_bad_intervention_values(
    matrix: MatrixType, block: int, fraction: float, message: str
) -> None:
    with pytest.raises(SecateurError, match=message):
        Intervention(matrix, block, fraction)


def test_intervention_is_a_value() -> None:
    assert Intervention("mlp_out", 3, 0.05) == Intervention("mlp_out", 3, 0.05)


def loss(weight: Tensor, tokens: Tensor) -> Tensor:
    """Something smooth that is not linear in the weight."""
    return torch.tanh(tokens @ weight.T).square().mean()


def gradient_of(weight: Tensor, tokens: Tensor) -> Tensor:
    leaf = weight.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf, tokens), leaf)
    return gradient


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_gradients_are_those_of_autograd(shape: tuple[int, int]) -> None:
    weight, tokens = normal(*shape), normal(20, shape[1], seed=1)
    svd = exact_svd(weight)
    values = svd.values.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(svd.left * values @ svd.right, tokens), values)
    spectrum = singular_value_gradients(svd, gradient_of(weight, tokens))
    torch.testing.assert_close(spectrum.gradients, expected, rtol=0, atol=1e-14)
    assert torch.equal(spectrum.values, svd.values)
    assert spectrum.shape == shape


def test_prediction_is_first_order() -> None:
    # With a tail of size e the prediction is off by e^2: a tenth of e, a hundredth of the error.
    tokens = normal(20, 8, seed=1)
    errors = []
    for size in (1e-2, 1e-3):
        values = torch.tensor([3.0, 2.0, 1.0, size, size / 2, size / 3], dtype=torch.float64)
        weight = with_spectrum(6, 8, values)
        svd = exact_svd(weight)
        spectrum = singular_value_gradients(svd, gradient_of(weight, tokens))
        changes = predicted_changes(spectrum)
        real = loss(svd.factors(3).dense(), tokens) - loss(weight, tokens)
        assert float(changes[6]) == 0.0
        assert abs(float(real)) > 1e-3 * size
        errors.append(abs(float(changes[3] - real)))
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.1)


def spectrum_of(values: list[float], gradients: list[float]) -> SpectrumGradient:
    return SpectrumGradient(
        (len(values), 20),
        torch.tensor(values, dtype=torch.float64),
        torch.tensor(gradients, dtype=torch.float64),
    )


def test_matrices_are_ranked_by_their_best_cut() -> None:
    spectra = {
        "no use": spectrum_of([4.0, 3.0, 2.0, 1.0], [-1.0, -1.0, -1.0, -1.0]),
        "noise at the end": spectrum_of([4.0, 3.0, 2.0, 1.0], [-1.0, -1.0, 0.5, 2.0]),
        "flat": spectrum_of([4.0, 3.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0]),
        "flat too": spectrum_of([4.0, 3.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0]),
    }
    ranked = rank_matrices(spectra, (0.25, 0.5, 0.75))
    assert ranked == [
        Candidate("noise at the end", 0.5, 2, -3.0),
        Candidate("flat", 0.75, 3, 0.0),
        Candidate("flat too", 0.75, 3, 0.0),
        Candidate("no use", 0.75, 3, 1.0),
    ]


def test_changes_by_rank() -> None:
    spectrum = spectrum_of([4.0, 2.0, 1.0], [0.5, -1.0, 3.0])
    assert predicted_changes(spectrum).tolist() == [-3.0, -1.0, -3.0, 0.0]


def test_fractions_too_small_for_a_matrix_are_passed_over() -> None:
    spectra = {"small": spectrum_of([2.0, 1.0], [0.0, 1.0])}
    assert rank_matrices(spectra)[0] == Candidate("small", 0.9, 1, -1.0)
    with pytest.raises(SecateurError, match=r"leaves small \[2, 20\] a rank, got \[0.1, 0.05\]"):
        rank_matrices(spectra, [0.1, 0.05])
    with pytest.raises(SecateurError, match=r"leaves small \[2, 20\] a rank, got \[\]"):
        rank_matrices(spectra, [])
    with pytest.raises(SecateurError, match="expected 0 < kept fraction <= 1, got 2"):
        rank_matrices(spectra, [2.0])


def test_gradients_that_do_not_fit() -> None:
    weight = normal(6, 8)
    with pytest.raises(SecateurError, match=r"of a weight \[6, 8\], got \[8, 6\] and 6 values"):
        singular_value_gradients(exact_svd(weight), normal(8, 6))
    with pytest.raises(SecateurError, match=r"got \[6, 8\] and 3 values"):
        singular_value_gradients(randomised_svd(weight, 2, oversampling=1), weight)
    with pytest.raises(SecateurError, match=r"a gradient \[6, 8\] of finite values"):
        singular_value_gradients(exact_svd(weight), weight / 0.0)
