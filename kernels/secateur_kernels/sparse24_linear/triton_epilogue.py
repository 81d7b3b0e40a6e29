"""The epilogue of the linears in Triton: bias, SiLU-and-multiply, residual, one rounding.

Tiles are [features, tokens], as products come from matrix instructions whose rows are weights.
"""

import triton
import triton.language as tl


@triton.jit
def add_bias(z: tl.tensor, bias: tl.tensor, row: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """z [F, T] plus bias[row], row and inside [F]; z itself where there is no bias."""
    if bias is not None:
        z += tl.load(bias + row, mask=inside, other=0.0).to(tl.float32)[:, None]
    return z


@triton.jit
def silu_and_mul(gate: tl.tensor, up: tl.tensor) -> tl.tensor:
    """silu(gate) * up in fp32."""
    return gate / (1.0 + tl.exp(-gate)) * up


@triton.jit
def store_tile(
    out: tl.tensor,
    z: tl.tensor,
    residual: tl.tensor,
    feature: tl.tensor,
    token: tl.tensor,
    width: tl.tensor,
    m: tl.tensor,
    residual_stride: tl.tensor,
    inside: tl.tensor,
) -> None:
    """Add the residual [M, width] where there is one, round, store to out [M, width].

    Args:
        out: pointer to the output.
        z: fp32 [F, T].
        residual: pointer or None.
        feature: int32 [F], column of the output of each row of z.
        token: int32 [T], row of the output of each column of z.
        width: columns of the output.
        m: rows of the output.
        residual_stride: elements from one row of the residual to the next.
        inside: [F], which features exist.
    """
    mask = inside[:, None] & (token < m)[None, :]
    long_token = token.to(tl.int64)[None, :]
    if residual is not None:
        places = long_token * residual_stride + feature[:, None]
        z += tl.load(residual + places, mask=mask, other=0.0).to(tl.float32)
    places = long_token * width + feature[:, None]
    tl.store(out + places, z.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["m", "slots"])
def reduce_kernel(
    partials: tl.tensor,
    out: tl.tensor,
    bias: tl.tensor,
    residual: tl.tensor,
    m: tl.tensor,
    rows: tl.tensor,
    slots: tl.tensor,
    residual_stride: tl.tensor,
    SILU: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Epilogue of the sum over slots of fp32 partials [slots, M, rows], in slot order."""
    token = tl.program_id(0) + tl.arange(0, 1)
    width = rows // 2 if SILU else rows
    feature = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = feature < width
    first = partials + tl.program_id(0).to(tl.int64) * rows + feature[:, None]
    slot_stride = m.to(tl.int64) * rows
    z = add_bias(sum_slots(first, slots, slot_stride, inside[:, None]), bias, feature, inside)
    if SILU:
        up = sum_slots(first + width, slots, slot_stride, inside[:, None])
        z = silu_and_mul(z, add_bias(up, bias, width + feature, inside))
    store_tile(out, z, residual, feature, token, width, m, residual_stride, inside)


@triton.jit
def sum_slots(
    first: tl.tensor, slots: tl.tensor, stride: tl.tensor, inside: tl.tensor
) -> tl.tensor:
    """Sum of fp32 tiles in slot order; the first of them lies at `first`, a tensor of pointers.

    Four loads at a time: added one by one, each would wait for the cache on its own.
    """
    total = tl.zeros(first.shape, tl.float32)
    for slot in range(0, slots, 4):
        # A tensor: the interpreter of Triton 3.9 takes no mask that was joined with one number.
        here = slot + tl.zeros(inside.shape, tl.int32)
        p0 = tl.load(first + slot * stride, mask=inside, other=0.0)
        p1 = tl.load(first + (slot + 1) * stride, mask=inside & (here + 1 < slots), other=0.0)
        p2 = tl.load(first + (slot + 2) * stride, mask=inside & (here + 2 < slots), other=0.0)
        p3 = tl.load(first + (slot + 3) * stride, mask=inside & (here + 3 < slots), other=0.0)
        total = (((total + p0) + p1) + p2) + p3
    return total
