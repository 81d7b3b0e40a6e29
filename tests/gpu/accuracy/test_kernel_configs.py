"""Every way to divide the work that tuning would try, for each kernel behind backend `cuda`."""

import pytest
import torch
from gpu.accuracy_checks import case_of
from gpu.backends_here import skip_unless_there
from gpu.forced_kernels import FORCED, configs, forced
from gpu.layers import SPARSE, Size

from secateur_kernels.testing.tolerance import assert_same_bits

# One block of rows and many, K that is split, tails; gate and up, whose rows are apart in y.
SIZES = [
    Size(SPARSE, 4096, 4096),
    Size(SPARSE, 1000, 2820),
    Size(SPARSE, 130, 68),
    Size(SPARSE, 5632, 1024, row_order="gate_up"),
]
TOKENS = (1, 8, 33, 64, 100, 257, 1000)


@pytest.mark.parametrize("backend", FORCED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_integers_are_exact(
    size: Size, dtype: torch.dtype, backend: str, device: torch.device
) -> None:
    skip_unless_there(backend, device)
    case = case_of(size, dtype, device, max(TOKENS), integers=True)
    for m in case.tokens(backend, TOKENS):
        expected = case.product(backend).value[:m].to(dtype)
        for config in configs(backend, m, size.n, size.k, device):
            with forced(backend, config):
                y = case.layer(case.x[:m], "cuda")
            assert_same_bits(y, expected, f"{m} tokens, {config}")
