"""The 2:4 linear whose weight is trained."""

from itertools import product
from typing import Any

import pytest
import torch
from kernels.linears import randn, random_mask
from thoroughness import most_telling
from torch.autograd import gradcheck
from torch.library import opcheck

from secateur_kernels import Canonical24, SecateurError, canonical24_linear


def canonical(rows: int, columns: int) -> Canonical24:
    weight = randn(rows, columns, dtype=torch.bfloat16, seed=3)
    return Canonical24.from_dense(weight, random_mask(rows, columns))


@pytest.mark.parametrize(
    ("columns", "tokens"),
    most_telling(list(product((4, 24, 28), ((2, 3), ()))), [(4, ()), (28, (2, 3))]),
)
def test_gradients_against_finite_differences(columns: int, tokens: tuple[int, ...]) -> None:
    weight = canonical(16, columns)
    x = randn(*tokens, columns, dtype=torch.float64).requires_grad_()
    values = weight.values.double().requires_grad_()
    bias = randn(16, dtype=torch.float64, seed=1).requires_grad_()
    residual = randn(*tokens, 8, dtype=torch.float64, seed=2).requires_grad_()
    assert gradcheck(
        lambda x, v, b, r: canonical24_linear(
            x, v, weight.indices, bias=b, residual=r, activation="silu_and_mul"
        ),
        (x, values, bias, residual),
    )
    arguments = (x, values, weight.indices, bias, residual, "silu_and_mul")
    opcheck(torch.ops.secateur.canonical24_linear.default, arguments)


def test_equals_the_dense_product() -> None:
    weight = canonical(20, 64)
    x = randn(3, 64, dtype=torch.float64)
    expected = x @ weight.to_dense().double().T
    y = canonical24_linear(x, weight.values.double(), weight.indices)
    assert torch.allclose(y, expected, rtol=1e-14)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": torch.ones(16, 31)}, r"expected values torch.float32 \[N, K / 2\]"),
        ({"values": torch.ones(16, 32).half()}, "expected values torch.float32"),
        ({"indices": torch.zeros(16, 7, dtype=torch.uint8)}, r"expected indices uint8 \[16, 8\]"),
        ({"indices": torch.zeros(16, 8)}, "expected indices uint8"),
        ({"x": torch.ones(3, 60)}, r"expected x \[\.\.\., 64\]"),
    ],
)
def test_errors(changes: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {
        "x": torch.ones(3, 64),
        "values": torch.ones(16, 32),
        "indices": torch.full((16, 8), 0x44, dtype=torch.uint8),
    }
    with pytest.raises(SecateurError, match=message):
        canonical24_linear(**(values | changes))
