import pytest
import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.mask import select_grouped, select_unstructured
from secateur.score.regional_gradient import (
    norm_divisor,
    regional_gradients,
    score_regional_gradient,
)


class ToyBlock(nn.Module):
    """A residual block with a product of two branches, as a gated MLP has."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 5, bias=False, dtype=torch.float64)
        self.up = nn.Linear(6, 5, bias=False, dtype=torch.float64)
        self.down = nn.Linear(5, 6, dtype=torch.float64)

    def forward(self, hidden: Tensor) -> Tensor:
        inner = nn.functional.silu(self.gate(hidden)) * self.up(hidden)
        output: Tensor = hidden + self.down(inner)
        return output


def toy(seed: int = 0) -> tuple[ToyBlock, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    block = ToyBlock()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return block, torch.randn(3, 4, 6, generator=generator, dtype=torch.float64)


def test_gradient_equals_central_differences() -> None:
    block, inputs = toy()
    parameters = dict(block.named_parameters())
    gradients = regional_gradients(lambda n: block(inputs[n : n + 1]), 3, parameters)
    step = 1e-6
    with torch.no_grad():
        for name, parameter in parameters.items():
            flat = parameter.view(-1)
            for place in range(0, len(flat), 3):
                squares = 0.0
                for sample in inputs:
                    norms = []
                    for shift in (step, -2 * step):
                        flat[place] += shift
                        norms.append(float(block(sample[None]).norm()))
                    flat[place] += step
                    squares += ((norms[0] - norms[1]) / (2 * step)) ** 2
                # The error of central differences: step^2 of truncation, eps / step of rounding.
                expected = (squares / 3) ** 0.5
                got = float(gradients[name].view(-1)[place])
                assert got == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_parameters_are_left_as_they_were() -> None:
    block, inputs = toy()
    block.up.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in block.named_parameters()}
    with torch.no_grad():
        regional_gradients(lambda n: block(inputs[n]), 3, dict(block.named_parameters()))
    assert not block.up.weight.requires_grad
    assert block.gate.weight.requires_grad
    for name, value in block.named_parameters():
        assert value.grad is None
        assert torch.equal(value, before[name])


def test_what_no_sample_reaches_has_gradient_zero() -> None:
    weight = torch.randn(3, 3, requires_grad=True)
    unused = torch.randn(2, 2)
    inputs = torch.stack([torch.zeros(1, 3), torch.full((1, 3), 1e-3)])
    gradients = regional_gradients(
        lambda n: inputs[n] @ weight.T, 2, {"used": weight, "unused": unused}
    )
    assert not gradients["unused"].any()
    # The sample of zeros adds nothing, and no NaN, but counts in the mean. Small outputs count.
    output = weight.detach().sum(dim=1)
    expected = 1e-3 * (output / output.norm())[:, None].expand(3, 3).abs() / 2**0.5
    torch.testing.assert_close(gradients["used"], expected)


def test_low_precision_gradients_are_summed_in_single() -> None:
    weight = torch.randn(4, 4, dtype=torch.bfloat16, requires_grad=True)
    inputs = torch.randn(2, 5, 4, dtype=torch.bfloat16)
    gradients = regional_gradients(lambda n: inputs[n] @ weight.T, 2, {"w": weight})
    assert gradients["w"].dtype == torch.float32


def test_gradients_that_are_not_finite_are_refused() -> None:
    # One column alone: the other's gradients are zero.
    weight = torch.tensor([[torch.inf, 1.0], [1.0, 1.0]], requires_grad=True)
    with pytest.raises(SecateurError, match="gradients of the block's output, but those of w hold"):
        regional_gradients(lambda _: torch.ones(1, 2) @ weight, 1, {"w": weight})
    with pytest.raises(SecateurError, match="at least one calibration sample, got 0"):
        regional_gradients(lambda _: weight, 0, {"w": weight})


def test_score_is_the_published_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    gradient = torch.rand(5, 8, generator=generator, dtype=torch.float64)
    norm = torch.rand(8, generator=generator, dtype=torch.float64)
    score = score_regional_gradient(weight, gradient, norm)
    for row in range(5):
        for column in range(8):
            expected = (100 * gradient[row, column] + norm[column]) * abs(weight[row, column])
            assert score[row, column].item() == pytest.approx(expected.item(), rel=1e-14)
    assert torch.equal(score_regional_gradient(weight, gradient, norm, 0.0), norm * weight.abs())
    narrow = score_regional_gradient(weight.bfloat16().T, gradient.float().T, norm.float()[:5])
    assert narrow.dtype == torch.float32
    assert narrow.is_contiguous()


def test_score_serves_every_pattern() -> None:
    weight, gradient, norm = torch.randn(4, 8), torch.rand(4, 8), torch.rand(8)
    score = score_regional_gradient(weight, gradient, norm)
    assert select_grouped(score, 2, 4).sum() == 16
    assert select_unstructured(score, 0.5, "row").sum(dim=1).tolist() == [4] * 4


def test_norms_are_summed_or_averaged() -> None:
    assert norm_divisor("summed", 128) == 1
    assert norm_divisor("averaged", 128) == 128


def test_shapes_that_do_not_fit_are_refused() -> None:
    weight = torch.ones(2, 3)
    with pytest.raises(SecateurError, match=r"expected gradient \[2, 3\] and input_norm \[3\]"):
        score_regional_gradient(weight, torch.ones(3, 2), torch.ones(3))
    with pytest.raises(SecateurError, match=r"got \[2, 3\] and \[2\]"):
        score_regional_gradient(weight, weight, torch.ones(2))
