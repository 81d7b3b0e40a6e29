"""Every way to divide the work that tuning would try, for each kernel behind backend `cuda`; and
clusters that add up one row block after the other, which is rarely a default.
"""

import pytest
import torch
from gpu.accuracy_checks import case_of
from gpu.backends_here import skip_unless_there
from gpu.forced_kernels import FORCED, configs, forced
from gpu.layers import LOW_RANK, SPARSE, Size

from secateur_kernels.dispatch.problem import device_facts
from secateur_kernels.low_rank_linear import cuda_kernel as low_rank_kernel
from secateur_kernels.low_rank_linear.cuda_kernel import LowRankCudaConfig
from secateur_kernels.testing.tolerance import assert_same_bits, assert_within

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


# Eight row blocks or more for each of two clusters, so that both inboxes are used again and again.
# Five chunks of t: some thread blocks of a cluster of 8 have none.
BOX_SIZES = (Size(LOW_RANK, 1088, 1024, 528, (544, 544)), Size(LOW_RANK, 1090, 520, 528))


@pytest.mark.parametrize(("op", "backend"), [(LOW_RANK, "cuda")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cluster", [1, 2, 4, 8])
@pytest.mark.parametrize("activation", ["none", "silu_and_mul"], ids=["natural", "gate_up"])
def test_low_rank_clusters_take_turns(
    activation: str, cluster: int, dtype: torch.dtype, op: str, backend: str, device: torch.device
) -> None:
    skip_unless_there(backend, device)
    if device_facts(device).capability != (9, 0):
        pytest.skip("boxes are for compute capability 9.0")
    for size in BOX_SIZES:
        case = case_of(size, dtype, device, 16)
        factors = case.layer.factors
        assert factors is not None
        for m, row_tiles in ((1, 2), (8, 4), (9, 2), (16, 4)):
            if cluster > row_tiles * (1 if m <= 8 else 2):
                continue
            config = LowRankCudaConfig(8, 2, 3, 8, 8, row_tiles, 2, 2 * cluster, cluster, cluster)
            x, what = case.x[:m], f"{m} tokens, {activation}, {config}"
            rest = (factors.down, factors.up, factors.group_rows, None, None, activation)
            y = low_rank_kernel.launch(x, None, *rest, config)
            assert_within(y, case.layer.expected(x, backend, activation=activation), what)
            for _ in range(20):
                assert_same_bits(low_rank_kernel.launch(x, None, *rest, config), y, what)
