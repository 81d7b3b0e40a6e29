"""What calls are told by a backend that is not there, or that does not take them."""

from collections.abc import Callable

import pytest
import torch
from kernels.linears import randn
from torch import Tensor

from secateur_kernels import (
    Fragment24,
    LowRank,
    SecateurError,
    low_rank_linear,
    sparse24_linear,
    sparse24_low_rank_linear,
)
from secateur_kernels.dispatch import DeviceFacts
from secateur_kernels.low_rank_linear import cuda_kernel, launch, op
from secateur_kernels.low_rank_linear.cuda_choice import default_config
from secateur_kernels.low_rank_linear.cuda_config import LowRankShape
from secateur_kernels.pack24.op import pack24
from secateur_kernels.sparse24_linear import cuda_call
from secateur_kernels.sparse24_linear.packed import Packed24
from secateur_kernels.threshold.op import keep_largest_per_row
from secateur_kernels.unpack24.op import unpack24

BF16 = torch.bfloat16
X = randn(3, 64, dtype=BF16)
SPARSE = Fragment24.from_dense(torch.zeros(32, 64, dtype=BF16))
FACTORS = LowRank(randn(16, 64, dtype=BF16), randn(32, 16, dtype=BF16), (32,))

CALLS: dict[str, Callable[[], object]] = {
    "sparse24_linear": lambda: sparse24_linear(X, SPARSE, backend="triton"),
    "low_rank_linear": lambda: low_rank_linear(X, FACTORS, backend="triton"),
    "both": lambda: sparse24_low_rank_linear(X, SPARSE, FACTORS, backend="triton"),
    "pack24": lambda: pack24(X, backend="triton"),
    "unpack24": lambda: unpack24(SPARSE, backend="triton"),
    "keep_largest_per_row": lambda: keep_largest_per_row(X.float(), 8, backend="triton"),
}


@pytest.mark.parametrize("name", CALLS)
def test_triton_that_is_not_installed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur_kernels.backends.HAS_TRITON", False)
    with pytest.raises(SecateurError, match="the package triton is not installed"):
        CALLS[name]()


@pytest.mark.parametrize(("dtype", "rank"), [(torch.float32, 16), (BF16, 12)])
def test_factors_that_triton_s_kernels_do_not_take(dtype: torch.dtype, rank: int) -> None:
    factors = LowRank(randn(rank, 64, dtype=dtype), randn(32, rank, dtype=dtype), (32,))
    message = rf"bf16 or fp16 and a rank divisible by 16 for backend triton, .* rank {rank}"
    with pytest.raises(SecateurError, match=message):
        low_rank_linear(X.to(dtype), factors, backend="triton")


@pytest.fixture
def as_on_an_h200(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks of what is asked of the compiled library, without it and without a GPU."""
    facts = DeviceFacts("NVIDIA H200", (9, 0), 132, has_triton=True, has_library=True)
    monkeypatch.setattr(op, "device_facts", lambda device: facts)
    for module in (launch, cuda_kernel, cuda_call):
        monkeypatch.setattr(module, "require_library", lambda device: None)
    monkeypatch.setattr(launch, "require_cuda_tensor", lambda x: None)


@pytest.mark.usefixtures("as_on_an_h200")
@pytest.mark.parametrize(("tokens", "groups"), [(65, 1), (3, 9)])
def test_problems_that_the_compiled_low_rank_kernels_do_not_take(tokens: int, groups: int) -> None:
    rows = (16,) * groups
    down, up = randn(16 * groups, 64, dtype=BF16), randn(16 * groups, 16, dtype=BF16)
    with pytest.raises(SecateurError, match=r"1 to 64 tokens, 1 to 8 groups, .* backend cuda"):
        low_rank_linear(randn(tokens, 64, dtype=BF16), LowRank(down, up, rows), backend="cuda")


@pytest.mark.usefixtures("as_on_an_h200")
def test_groups_that_do_not_fit_beside_a_packed_weight() -> None:
    groups = (10, 22)
    config = default_config(LowRankShape(3, 32, 64, 16, 2, True), 132, (9, 0))
    factors: tuple[Tensor, Tensor] = (randn(32, 64, dtype=BF16), randn(32, 16, dtype=BF16))
    rest = (groups, None, None, "none", config)
    with pytest.raises(SecateurError, match=r"groups of multiples of 16 rows .* got \[10, 22\]"):
        cuda_kernel.launch(X, Packed24.of(SPARSE), *factors, *rest)


@pytest.mark.usefixtures("as_on_an_h200")
@pytest.mark.parametrize("tokens", [0, 65])
def test_more_tokens_than_a_compiled_kernel_takes(tokens: int) -> None:
    with pytest.raises(SecateurError, match=f"1 to 64 tokens for the compiled kernel, .* {tokens}"):
        cuda_call.check_call(torch.zeros(tokens, 64), 64)
