import pytest
import torch
from problems import SHAPES, inputs, normal, problem
from torch import Tensor

from secateur.errors import SecateurError
from secateur.lowrank import (
    Factors,
    exact_svd,
    randomised_svd,
    split_rows,
    stack_rows,
    truncate,
    whiten,
    whitened_svd,
)


def output_error(weight: Tensor, factors: Factors, tokens: Tensor) -> float:
    return float(torch.linalg.norm(tokens @ (weight - factors.dense()).T))


def published(weight: Tensor, hessian: Tensor, rank: int) -> Tensor:
    """SVD-LLM's own recipe: W_u = U sqrt(s), W_v = sqrt(s) V^T S^-1."""
    root = torch.linalg.cholesky(hessian)
    left, values, right = torch.linalg.svd(weight @ root, full_matrices=False)
    up = left[:, :rank] * values[:rank].sqrt()
    down = values[:rank, None].sqrt() * right[:rank]
    dense: Tensor = up @ torch.linalg.solve_triangular(root, down, upper=False, left=False)
    return dense


@pytest.mark.parametrize("shape", SHAPES)
def test_error_is_the_tail_in_the_whitened_metric(shape: tuple[int, int]) -> None:
    weight, tokens, hessian = problem(*shape)
    whitening = whiten(hessian)
    assert whitening.damping == 0.0
    whitened = whitened_svd(weight, whitening)
    outputs = float(torch.linalg.norm(tokens @ weight.T))
    for rank in range(1, min(shape) + 1):
        factors = whitened.factors(rank)
        assert (factors.shape, factors.rank) == (shape, rank)
        # Rounding of the outputs, 1e-13 of them, is the only other error.
        measured = output_error(weight, factors, tokens)
        assert measured == pytest.approx(whitened.error(rank), rel=1e-9, abs=1e-12 * outputs)
        assert whitened.relative_error(rank) == pytest.approx(whitened.error(rank) / outputs)
        torch.testing.assert_close(
            factors.dense(), published(weight, hessian, rank), rtol=1e-8, atol=1e-9
        )


@pytest.mark.parametrize("shape", SHAPES)
def test_full_rank_is_the_matrix(shape: tuple[int, int]) -> None:
    weight, _, hessian = problem(*shape)
    dense = whitened_svd(weight, whiten(hessian)).factors(min(shape)).dense()
    torch.testing.assert_close(dense, weight, rtol=0, atol=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_beats_plain_svd_on_the_outputs_and_not_on_the_weights(seed: int) -> None:
    weight, tokens, hessian = problem(16, 24, seed)
    whitened = whitened_svd(weight, whiten(hessian))
    for rank in (2, 6, 10):
        ours, plain = whitened.factors(rank), truncate(weight, rank)
        assert output_error(weight, ours, tokens) < 0.95 * output_error(weight, plain, tokens)
        assert torch.linalg.norm(weight - ours.dense()) > torch.linalg.norm(weight - plain.dense())


@pytest.mark.parametrize("seed", range(3))
def test_no_small_change_of_the_factors_is_better(seed: int) -> None:
    weight, tokens, hessian = problem(8, 10, seed)
    factors = whitened_svd(weight, whiten(hessian)).factors(3)
    least = output_error(weight, factors, tokens)
    for step in (1e-1, 1e-3):
        up = factors.up + step * normal(8, 3, seed=seed + 50)
        down = factors.down + step * normal(3, 10, seed=seed + 60)
        assert output_error(weight, Factors(up, down), tokens) > least


def test_scale_of_the_hessian_changes_nothing_but_the_error() -> None:
    weight, _, hessian = problem(6, 9)
    one, other = (whitened_svd(weight, whiten(hessian * c)) for c in (1.0, 2 / 128))
    torch.testing.assert_close(one.factors(3).dense(), other.factors(3).dense())
    assert other.error(3) == pytest.approx(one.error(3) * (2 / 128) ** 0.5)
    assert other.relative_error(3) == pytest.approx(one.relative_error(3))


def test_columns_of_up_and_rows_of_down_have_equal_norms() -> None:
    weight, _, hessian = problem(6, 9)
    factors = whitened_svd(weight, whiten(hessian)).factors(4)
    torch.testing.assert_close(factors.up.norm(dim=0), factors.down.norm(dim=1))


@pytest.mark.parametrize("num_tokens", [1, 3, 11])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_fewer_tokens_than_features(num_tokens: int, dtype: torch.dtype) -> None:
    weight, tokens, hessian = problem(10, 12, num_tokens=num_tokens)
    whitening = whiten(hessian.to(dtype))
    # Rounding leaves eigenvalues a little below zero, or the Hessian just definite.
    assert whitening.damping <= (1e-10 if dtype == torch.float64 else 1e-4)
    whitened = whitened_svd(weight, whitening)
    outputs = float(torch.linalg.norm(tokens @ weight.T))
    for rank in range(1, 11):
        factors = whitened.factors(rank)
        # The factors are a projection of the weight: nothing blows up where no data was.
        assert torch.linalg.norm(factors.dense()) <= torch.linalg.norm(weight) * (1 + 1e-12)
        if rank >= num_tokens:
            # As many directions as tokens: nothing is lost but what the damping blurs.
            limit = 1e-4 if dtype == torch.float64 else 2e-2
            assert output_error(weight, factors, tokens) < limit * outputs


def test_dead_inputs_need_damping_and_do_no_harm() -> None:
    weight, tokens, _ = problem(8, 10)
    tokens[:, [2, 7]] = 0.0
    whitening = whiten(tokens.T @ tokens)
    assert whitening.damping == 1e-12
    whitened = whitened_svd(weight, whitening)
    for rank in (2, 5, 8):
        factors = whitened.factors(rank)
        measured = output_error(weight, factors, tokens)
        # The tail counts the damping's own share too.
        extra = 1e-12 * float((tokens.T @ tokens).diagonal().mean())
        bound = (whitened.error(rank) ** 2 + extra * float(weight.square().sum())) ** 0.5
        assert measured <= bound + 1e-9
    alive = [0, 1, 3, 4, 5, 6, 8, 9]
    alone = whitened_svd(weight[:, alive], whiten((tokens.T @ tokens)[alive][:, alive])).factors(5)
    torch.testing.assert_close(
        whitened.factors(5).dense()[:, alive], alone.dense(), rtol=0, atol=1e-6
    )


def test_asked_for_damping_is_added() -> None:
    weight, _, hessian = problem(6, 9)
    mean = float(hessian.diagonal().mean())
    damped = hessian + 0.1 * mean * torch.eye(9, dtype=torch.float64)
    ours = whitened_svd(weight, whiten(hessian, 0.1))
    torch.testing.assert_close(ours.svd.values, whitened_svd(weight, whiten(damped)).svd.values)


def test_a_weight_without_output() -> None:
    whitened = whitened_svd(torch.zeros(4, 6), whiten(problem(4, 6)[2]))
    assert whitened.relative_error(2) == 0.0
    factors = whitened.factors(2)
    assert not factors.dense().any()
    assert torch.isfinite(factors.up).all()


def test_randomised_decomposition() -> None:
    weight, tokens, hessian = problem(40, 50)
    whitening = whiten(hessian)
    whitened = whitened_svd(weight, whitening, lambda w: randomised_svd(w, 8, 16, 2))
    error = output_error(weight, whitened.factors(8), tokens)
    best = whitened_svd(weight, whitening).error(8)
    assert best <= error < 1.02 * best
    with pytest.raises(SecateurError, match="all 40 singular values to sum their tail, got 24"):
        whitened.error(8)


def test_half_precision_weights() -> None:
    weight, _, hessian = problem(12, 9)
    half = weight.bfloat16()
    factors = whitened_svd(half, whiten(hessian.float())).factors(9)
    assert factors.up.dtype == torch.float64
    torch.testing.assert_close(factors.dense(), half.double(), rtol=0, atol=1e-6)


def test_joint_factors_share_down() -> None:
    tokens = inputs(200, 12)
    weights = [normal(8, 12, seed=1), normal(4, 12, seed=2), normal(4, 12, seed=3)]
    whitened = whitened_svd(stack_rows(weights), whiten(tokens.T @ tokens))
    parts = split_rows(whitened.factors(5), [8, 4, 4])
    assert [part.shape for part in parts] == [(8, 12), (4, 12), (4, 12)]
    assert parts[0].down is parts[1].down is parts[2].down
    errors = [output_error(w, part, tokens) for w, part in zip(weights, parts, strict=True)]
    assert sum(error**2 for error in errors) == pytest.approx(whitened.error(5) ** 2)


def test_importance_weighs_the_errors_of_a_stack() -> None:
    tokens = inputs(200, 12)
    weights = [normal(8, 12, seed=1), normal(8, 12, seed=2)]
    whitening = whiten(tokens.T @ tokens)
    errors = []
    for importance in ([1.0, 1.0], [1.0, 9.0]):
        whitened = whitened_svd(stack_rows(weights, importance), whitening)
        parts = split_rows(whitened.factors(5), [8, 8], importance)
        errors.append(
            [output_error(w, part, tokens) for w, part in zip(weights, parts, strict=True)]
        )
        weighted = sum(a * e**2 for a, e in zip(importance, errors[-1], strict=True))
        assert weighted == pytest.approx(whitened.error(5) ** 2)
    assert errors[1][0] > errors[0][0]
    assert errors[1][1] < errors[0][1]
    # Factors at full rank are the weights whatever the importance.
    full = whitened_svd(stack_rows(weights, [2.0, 0.3]), whitening).factors(12)
    for weight, part in zip(weights, split_rows(full, [8, 8], [2.0, 0.3]), strict=True):
        torch.testing.assert_close(part.dense(), weight, rtol=0, atol=1e-10)


def test_one_matrix_is_a_stack_too() -> None:
    weight, _, hessian = problem(6, 9)
    alone = whitened_svd(weight, whiten(hessian)).factors(3)
    (part,) = split_rows(whitened_svd(stack_rows([weight]), whiten(hessian)).factors(3), [6])
    assert torch.equal(part.dense(), alone.dense())


def test_bad_hessians() -> None:
    weight, _, hessian = problem(6, 9)
    with pytest.raises(SecateurError, match=r"a Hessian \[9, 9\], got \[9, 8\]"):
        whiten(hessian[:, :8])
    with pytest.raises(SecateurError, match="a mean of 0: no calibration token reached"):
        whiten(torch.zeros(9, 9))
    with pytest.raises(SecateurError, match=r"the Hessian \[9, 9\] is not positive definite even"):
        whiten(hessian - torch.eye(9, dtype=torch.float64) * hessian.diagonal().mean() / 2)
    with pytest.raises(SecateurError, match="damping of at least 0, got -1"):
        whiten(hessian, -1.0)
    with pytest.raises(SecateurError, match=r"9 input features for a weight \[6, 9\], got 8"):
        whitened_svd(weight, whiten(hessian[:8, :8]))
    hessian[3, 4] = float("inf")
    with pytest.raises(SecateurError, match=r"a Hessian \[9, 9\] of finite values"):
        whiten(hessian)


def test_bad_weights_and_ranks() -> None:
    weight, _, hessian = problem(6, 9)
    whitening = whiten(hessian)
    for rank in (0, 7):
        with pytest.raises(SecateurError, match=f"a rank from 1 to 6 .* got {rank}"):
            whitened_svd(weight, whitening).factors(rank)
    weight[0, 0] = float("nan")
    with pytest.raises(SecateurError, match="finite values, got NaN or Inf in 1 places"):
        whitened_svd(weight, whitening)


def test_bad_stacks() -> None:
    with pytest.raises(SecateurError, match=r"of one input, got \[\[2, 3\], \[2, 4\]\]"):
        stack_rows([normal(2, 3), normal(2, 4)])
    with pytest.raises(SecateurError, match=r"of one input, got \[\]"):
        stack_rows([])
    for importance in ([1.0], [1.0, 0.0], [1.0, float("inf")], [1.0, -1.0]):
        with pytest.raises(SecateurError, match="2 positive finite importances, got"):
            stack_rows([normal(2, 3), normal(2, 3)], importance)
    factors = exact_svd(normal(6, 9)).factors(2)
    for rows in ([3, 2], [6, 0], []):
        with pytest.raises(SecateurError, match="add up to the 6 of the stack, got"):
            split_rows(factors, rows)
    with pytest.raises(SecateurError, match="2 positive finite importances"):
        split_rows(factors, [3, 3], [1.0])
