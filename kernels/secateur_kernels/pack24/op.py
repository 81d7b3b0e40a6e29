"""`secateur::pack24`: the public function, schema, checks and fake."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from secateur_kernels.backends import HAS_TRITON, Backend, check_backend, require_triton
from secateur_kernels.errors import SecateurError
from secateur_kernels.layouts.fragment24 import RowOrder
from secateur_kernels.namespace import LIBRARY
from secateur_kernels.pack24 import reference
from secateur_kernels.pack24.pruned import Pruned24
from secateur_kernels.pack24.request import Packed, Request

if HAS_TRITON:
    from secateur_kernels.pack24 import triton_kernel

BACKENDS = ("auto", "reference", "triton")

Form = Literal["mask", "canonical", "fragment"]

LIBRARY.define(
    "pack24(Tensor weight, Tensor? input_norm, Tensor? score, Tensor? keep_mask, str row_order, "
    "bool want_mask, bool want_canonical, bool want_fragment, str backend) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)


def pack24(
    weight: Tensor,
    *,
    input_norm: Tensor | None = None,
    score: Tensor | None = None,
    keep_mask: Tensor | None = None,
    row_order: RowOrder = "natural",
    want: Sequence[Form] = ("mask",),
    backend: Backend = "auto",
) -> Pruned24:
    """Score, select two of every four columns, and pack, in one pass over the weight.

    Without `input_norm`, `score` and `keep_mask` the score is |W|. In each group of four columns
    the two highest scores are kept; ties go to the lower column, zeros of either sign tie, and NaN
    ranks below every number: never an error, and the same on every backend. Kept values are stored
    bit for bit; dropped ones are not looked at, and may be NaN or Inf.

    Masks and bytes equal those of `Canonical24.from_dense` and `Fragment24.from_dense` with the
    mask, on every backend.

    Args:
        weight: [N, K], K divisible by 4; bf16 or fp16, or fp32 where only the mask is wanted. Any
            strides; copied where groups of four do not start at multiples of their size.
        input_norm: fp32 [K], not negative: the score is |W| times it, in fp32 (Wanda, Sun et al.,
            arXiv 2306.11695).
        score: bf16, fp16 or fp32 [N, K], higher = keep.
        keep_mask: bool [N, K], True = keep, at most two of four: packs only. Where fewer are kept,
            the lowest other columns fill up, as zeros. Checked, so that this waits for the device.
        row_order: of the fragment form; `gate_up` needs N divisible by 16.
        want: which of `mask`, `canonical` and `fragment`.
        backend: `auto`: Triton on a GPU, plain torch on a CPU. Another name is used or refused.

    Raises:
        SecateurError: an argument does not fit; the mask keeps more than two of four; the backend
            is not there.
    """
    unknown = [form for form in want if form not in get_args(Form)]
    if unknown or not want:
        raise SecateurError(
            f"expected want to name some of {', '.join(get_args(Form))}, got {list(want)}"
        )
    wanted = [form in want for form in get_args(Form)]
    request = Request(weight.detach(), input_norm, score, keep_mask, row_order, *wanted)
    packed = torch.ops.secateur.pack24(
        request.weight, input_norm, score, keep_mask, row_order, *wanted, backend
    )
    return Pruned24.of(Packed(*packed), request)


def _run(weight: Tensor, *arguments: Any) -> Packed:
    *fields, backend = arguments
    check_backend(backend, BACKENDS)
    request = Request(weight, *fields)
    request.check()
    use_triton = backend == "triton" or (backend == "auto" and weight.device.type == "cuda")
    if use_triton:
        require_triton(weight)
    if weight.numel() == 0 or not use_triton:
        return reference.run(request)
    if request.keep_mask is not None:
        reference.check_keeps_at_most_two(request.keep_mask)
    return triton_kernel.launch(request)


def _fake(weight: Tensor, *arguments: Any) -> Packed:
    *fields, _ = arguments
    return Request(weight, *fields).allocate()


for _device in ("CPU", "CUDA"):
    LIBRARY.impl("pack24", _run, _device)
torch.library.register_fake("secateur::pack24", _fake, lib=LIBRARY)
