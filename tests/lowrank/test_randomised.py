from math import pi, sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import normal, with_spectrum

from secateur.errors import SecateurError
from secateur.lowrank import Svd, exact_svd, measure_error, randomised_svd

ROUNDING = 1e-12


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(2, 60),
    columns=st.integers(2, 60),
    decay=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    oversampling=st.integers(0, 10),
    power_iterations=st.integers(0, 3),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_bound_holds(
    rows: int,
    columns: int,
    decay: float,
    oversampling: int,
    power_iterations: int,
    seed: int,
    data: st.DataObject,
) -> None:
    full = min(rows, columns)
    rank = data.draw(st.integers(1, full))
    values = torch.arange(1, full + 1, dtype=torch.float64) ** -decay
    weight = with_spectrum(rows, columns, values, seed=seed % 1000)
    svd = randomised_svd(weight, rank, oversampling, power_iterations, seed)
    assert len(svd.values) == min(rank + oversampling, full)
    bound = measure_error(weight, svd, rank, seed)
    difference = weight - svd.factors(rank).dense()
    assert float(torch.linalg.norm(difference)) == pytest.approx(bound.frobenius, abs=ROUNDING)
    assert float(torch.linalg.matrix_norm(difference, 2)) <= bound.spectral + ROUNDING
    assert bound.failure_probability == pytest.approx(1e-10)
    # Nothing of that rank is nearer than the exact truncation.
    assert bound.frobenius >= exact_svd(weight).tail(rank) - ROUNDING
    # The bound says something: 8 times the longest of 10 images, whose mean square is the squared
    # Frobenius norm. One in 10^9 is 6 times as long.
    assert bound.spectral <= 50 * bound.frobenius + ROUNDING


def test_parts_are_orthonormal_and_fit_each_other() -> None:
    weight = normal(30, 50)
    svd = randomised_svd(weight, 6, oversampling=4, power_iterations=1)
    identity = torch.eye(10, dtype=torch.float64)
    torch.testing.assert_close(svd.left.T @ svd.left, identity, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(svd.right @ svd.right.T, identity, rtol=0, atol=ROUNDING)
    assert (svd.values[1:] <= svd.values[:-1]).all()
    seen = svd.values[:, None] * svd.right
    torch.testing.assert_close(svd.left.T @ weight, seen, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (1, 5)])
def test_a_sketch_of_full_width_is_exact(shape: tuple[int, int]) -> None:
    weight = normal(*shape)
    svd = randomised_svd(weight, 1, oversampling=100, power_iterations=0)
    exact = exact_svd(weight)
    assert svd.is_complete
    torch.testing.assert_close(svd.values, exact.values, rtol=0, atol=ROUNDING)
    for rank in range(1, min(shape) + 1):
        torch.testing.assert_close(
            svd.factors(rank).dense(), exact.factors(rank).dense(), rtol=0, atol=1e-9
        )


def test_near_the_optimum_where_the_spectrum_falls() -> None:
    values = torch.arange(1, 81, dtype=torch.float64) ** -1.0
    weight = with_spectrum(100, 80, values)
    optimum = exact_svd(weight).tail(16)
    errors = [
        measure_error(weight, randomised_svd(weight, 16, 16, power), 16).frobenius
        for power in (0, 1, 2)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1.001 * optimum


def test_more_oversampling_helps() -> None:
    weight = normal(60, 60)
    errors = [
        measure_error(weight, randomised_svd(weight, 10, more, 0), 10).frobenius
        for more in (0, 10, 50)
    ]
    assert errors[0] > errors[1] > errors[2]


def test_the_probes_are_not_the_sketch() -> None:
    # A sketch without power iterations annihilates its own vectors: probing with them would
    # report an error of nothing. 10 is the number of probes.
    weight = normal(60, 60)
    svd = randomised_svd(weight, 10, 0, 0, seed=7)
    error = float(torch.linalg.matrix_norm(weight - svd.factors(10).dense(), 2))
    for seed in (7, 7 + 2**32):
        assert measure_error(weight, svd, 10, seed).spectral > error


def test_bound_is_that_of_the_lemma() -> None:
    # One direction of size 3 is left out: each of 10 images is 3 times a normal number, the longest
    # of them 3 * 1.88 on average, and the bound 10 * sqrt(2 / pi) times that. Its spread over 200
    # seeds is 0.51 / sqrt(200) of 1.88, 2 %.
    weight = with_spectrum(12, 9, torch.tensor([7.0, 5.0, 3.0], dtype=torch.float64))
    exact = exact_svd(weight)
    svd = Svd(exact.left[:, :2], exact.values[:2], exact.right[:2])
    bounds = [measure_error(weight, svd, 2, seed).spectral for seed in range(200)]
    mean = sum(bounds) / len(bounds)
    assert mean == pytest.approx(10 * sqrt(2 / pi) * 3 * 1.88, rel=0.1)
    assert min(bounds) > 3.0


def test_seed_decides() -> None:
    weight = normal(30, 30)
    first, again, other = (randomised_svd(weight, 4, 2, 0, seed=seed) for seed in (1, 1, 2))
    for one, two in ((first.left, again.left), (first.right, again.right)):
        assert torch.equal(one, two)
    assert torch.equal(first.values, again.values)
    assert not torch.equal(first.values, other.values)
    state = torch.get_rng_state()
    randomised_svd(weight, 4)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_incomplete_decomposition_does_not_pretend() -> None:
    svd = randomised_svd(normal(30, 40), 4, oversampling=2)
    assert not svd.is_complete
    with pytest.raises(SecateurError, match="all 30 singular values to sum their tail, got 6"):
        svd.tail(4)
    with pytest.raises(SecateurError, match="all 30 singular values to tell what rank 4 discards"):
        svd.discarded(4)
    with pytest.raises(SecateurError, match=r"at most the 6 singular values .* computed, got 7"):
        svd.factors(7)


def test_half_precision_weights_and_errors() -> None:
    weight = normal(20, 30).bfloat16()
    svd = randomised_svd(weight, 5)
    assert svd.left.dtype == torch.float32
    assert measure_error(weight, svd, 5).frobenius > 0
    with pytest.raises(SecateurError, match=r"the weight \[20, 30\] that was .* got \[30, 20\]"):
        measure_error(weight.T, svd, 5)
    for rank in (0, 21):
        with pytest.raises(SecateurError, match=f"a rank from 1 to 20 .* got {rank}"):
            randomised_svd(weight, rank)
    with pytest.raises(SecateurError, match="of at least 0, got -1 and 2"):
        randomised_svd(weight, 5, oversampling=-1)
    with pytest.raises(SecateurError, match="of at least 0, got 16 and -2"):
        randomised_svd(weight, 5, power_iterations=-2)
    weight[0, 0] = float("nan")
    with pytest.raises(SecateurError, match="NaN or Inf in 1 places"):
        randomised_svd(weight, 5)
