"""`secateur::keep_largest_per_row`: the public function, schema, checks and fake."""

import torch
from torch import Tensor

from secateur_kernels.backends import HAS_TRITON, Backend, check_backend, require_triton
from secateur_kernels.errors import SecateurError
from secateur_kernels.namespace import LIBRARY
from secateur_kernels.threshold import reference

if HAS_TRITON:
    from secateur_kernels.threshold import triton_kernel

BACKENDS = ("auto", "reference", "triton")

LIBRARY.define("keep_largest_per_row(Tensor score, int keep, str backend) -> Tensor")


def keep_largest_per_row(score: Tensor, keep: int, backend: Backend = "auto") -> Tensor:
    """Keep exactly the `keep` highest scores of every row.

    Ties go to the lower column, zeros of either sign tie, and NaN ranks below every number. Exact
    on every backend: nothing is sampled or rounded.

    Args:
        score: fp32 [N, K], any strides, higher = keep.
        keep: 0 to K.
        backend: `auto`: Triton on a GPU, plain torch on a CPU. Another name is used or refused.

    Returns:
        bool [N, K], True = keep.

    Raises:
        SecateurError: an argument does not fit; the backend is not there.
    """
    return torch.ops.secateur.keep_largest_per_row(  # type: ignore[no-any-return]
        score.detach(), keep, backend
    )


def _run(score: Tensor, keep: int, backend: str) -> Tensor:
    check_backend(backend, BACKENDS)
    if score.ndim != 2 or score.dtype != torch.float32:
        raise SecateurError(
            f"expected scores torch.float32 [N, K], got {score.dtype} {list(score.shape)}"
        )
    if not 0 <= keep <= score.shape[1]:
        raise SecateurError(f"expected 0 <= keep <= K = {score.shape[1]}, got keep = {keep}")
    use_triton = backend == "triton" or (backend == "auto" and score.device.type == "cuda")
    if use_triton:
        require_triton(score)
    if not use_triton or score.numel() == 0 or keep in (0, score.shape[1]):
        return reference.run(score, keep)
    return triton_kernel.launch(score, keep)


def _fake(score: Tensor, keep: int, backend: str) -> Tensor:
    return score.new_empty(score.shape, dtype=torch.bool)


for _device in ("CPU", "CUDA"):
    LIBRARY.impl("keep_largest_per_row", _run, _device)
torch.library.register_fake("secateur::keep_largest_per_row", _fake, lib=LIBRARY)
