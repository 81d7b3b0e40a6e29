import pytest
import torch
from torch import Tensor

from secateur.errors import SecateurError
from secateur.mask import select_grouped, select_unstructured
from secateur.update.admm import admm
from secateur.update.least_squares import least_squares


def problem(rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, dtype=torch.float64, generator=generator)
    mixing = torch.randn(columns, columns, dtype=torch.float64, generator=generator)
    inputs = torch.randn(400, columns, dtype=torch.float64, generator=generator)
    inputs = inputs + inputs @ mixing / columns**0.5
    return weight, inputs.T @ inputs / 200


def select24(score: Tensor, _: float) -> Tensor:
    return select_grouped(score, 2, 4)


def textbook(weight: Tensor, hessian: Tensor) -> Tensor:
    """The published loop, with inverses."""
    norm = hessian.diagonal().sqrt()
    gram = hessian / norm[:, None] / norm[None] + 0.1 * torch.eye(len(hessian)).double()
    inverse = torch.linalg.inv(gram + torch.eye(len(gram)).double())
    dense = weight * norm
    w, u = dense.clone(), torch.zeros_like(dense)
    for turn in range(20):
        if turn < 15:
            mask = select_grouped((w + u).abs(), 2, 4)
        z = (w + u) * mask
        u = u + w - z
        w = (dense @ gram + (z - u)) @ inverse
    return (w + u) * mask / norm


def test_agrees_with_the_textbook() -> None:
    weight, hessian = problem(6, 32)
    before = weight.clone()
    pruned, mask = admm(weight, hessian, select24)
    torch.testing.assert_close(pruned, textbook(weight, hessian), rtol=1e-8, atol=1e-9)
    assert mask.view(6, 8, 4).sum(dim=2).eq(2).all()
    assert torch.equal(pruned != 0, mask)
    assert torch.equal(weight, before)


def test_a_fixed_mask_leads_to_least_squares() -> None:
    weight, hessian = problem(5, 24)
    fixed = select_grouped(weight.abs(), 2, 4)
    pruned, mask = admm(weight, hessian, lambda score, _: fixed, damping=0.01, iterations=2000)
    assert torch.equal(mask, fixed)
    # Damping is on the scaled diagonal: the same problem once the Hessian is scaled.
    norm = hessian.diagonal().sqrt()
    scaled = least_squares(weight * norm, hessian / torch.outer(norm, norm), fixed, 0.01) / norm
    torch.testing.assert_close(pruned, scaled, rtol=1e-6, atol=1e-8)


def test_unstructured_sparsity_grows_to_what_is_asked() -> None:
    weight, hessian = problem(4, 20)
    shares = []

    def select(score: Tensor, share: float) -> Tensor:
        shares.append(share)
        return select_unstructured(score, 0.6 * share, "row")

    pruned, mask = admm(weight, hessian, select, iterations=8, selecting=5)
    assert shares == pytest.approx([1 - (1 - t / 5) ** 3 for t in range(1, 6)])
    assert shares[-1] == 1.0
    assert mask.sum(dim=1).tolist() == [8] * 4
    assert not pruned[~mask].any()


def test_every_turn_may_select() -> None:
    weight, hessian = problem(2, 8)
    pruned, mask = admm(weight, hessian, select24, iterations=1, selecting=1)
    assert torch.equal(mask, select24(weight.abs() * hessian.diagonal().sqrt(), 1.0))
    assert torch.equal(pruned != 0, mask)


@pytest.mark.parametrize("seed", range(3))
def test_better_than_the_mask_alone(seed: int) -> None:
    weight, hessian = problem(8, 32, seed)
    pruned, _ = admm(weight, hessian, select24)
    by_norm = select_grouped(weight.abs() * hessian.diagonal().sqrt(), 2, 4)

    def error(candidate: Tensor) -> float:
        return float(((candidate - weight) @ hessian * (candidate - weight)).sum())

    assert error(pruned) < 0.7 * error(weight.masked_fill(~by_norm, 0.0))


def test_dead_columns_are_zero() -> None:
    weight, hessian = problem(3, 16)
    hessian[[2, 9]] = 0.0
    hessian[:, [2, 9]] = 0.0
    pruned, _ = admm(weight.float(), hessian.float(), select24)
    assert pruned.dtype == torch.float32
    assert pruned.isfinite().all()
    assert not pruned[:, [2, 9]].any()


def test_bad_arguments_are_refused() -> None:
    weight, hessian = problem(2, 8)
    with pytest.raises(SecateurError, match=r"expected hessian \[8, 8\] for weight \[2, 8\]"):
        admm(weight, hessian[:4], select24)
    with pytest.raises(SecateurError, match="1 <= selecting <= iterations, got 15 and 3"):
        admm(weight, hessian, select24, iterations=3)
    with pytest.raises(SecateurError, match="1 <= selecting <= iterations, got 0 and 3"):
        admm(weight, hessian, select24, iterations=3, selecting=0)
    with pytest.raises(SecateurError, match="expected a finite, positive semidefinite Hessian"):
        admm(weight, torch.full_like(hessian, torch.nan), select24)
