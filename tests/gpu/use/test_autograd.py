"""Gradients on the device."""

import pytest
import torch
from gpu.backends_here import skip_unless_there
from gpu.gradient_checks import (
    check_canonical_gradients,
    check_factor_gradients,
    check_gradient_of_x,
)
from gpu.layers import BACKENDS, LOW_RANK, SPARSE, Size, random_layer
from torch import Tensor

from secateur_kernels import Canonical24
from secateur_kernels.layouts.pattern import pairs_of, scatter_pairs

BF16, FP16 = torch.bfloat16, torch.float16


@pytest.mark.parametrize("backend", BACKENDS[SPARSE])
@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
@pytest.mark.parametrize("size", [Size(SPARSE, 1000, 384), Size(SPARSE, 4096, 4096)], ids=str)
def test_gradient_of_x(size: Size, dtype: torch.dtype, backend: str, device: torch.device) -> None:
    skip_unless_there(backend, device)
    layer = random_layer(size, dtype, device)
    for m in (m for m in (1, 17, 256) if layer.takes(backend, m)):
        check_gradient_of_x(layer, m, backend, dtype)


@pytest.mark.parametrize("activation", ["none", "silu_and_mul"])
@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
def test_gradients_of_the_trainable_weight(
    dtype: torch.dtype, activation: str, device: torch.device
) -> None:
    layer = random_layer(Size(SPARSE, 208, 384), dtype, device)
    assert layer.dense is not None
    weight = Canonical24.from_dense(layer.dense)
    pairs = pairs_of(weight.nibbles())

    def dense_of(values: Tensor) -> Tensor:
        return scatter_pairs(values.view(208, -1, 2), pairs)

    for m in (1, 33):
        check_canonical_gradients(weight.values, weight.indices, dense_of, m, activation)


@pytest.mark.parametrize("activation", ["none", "silu_and_mul"])
@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
def test_gradients_of_the_factors(
    dtype: torch.dtype, activation: str, device: torch.device
) -> None:
    layer = random_layer(Size(LOW_RANK, 208, 384, 48), dtype, device)
    assert layer.factors is not None
    for m in (1, 33):
        check_factor_gradients(layer.factors, m, activation)
