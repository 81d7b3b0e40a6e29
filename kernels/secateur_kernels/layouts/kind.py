"""What a packed weight is made of: the type of its values and the instruction that reads them."""

from dataclasses import dataclass

import torch

from secateur_kernels.errors import SecateurError
from secateur_kernels.precision import dtype_name


@dataclass(frozen=True)
class WeightKind:
    """The type parameter of a fragment-order weight.

    The same value type can be packed for different instructions, in different bytes; so the pair
    is the parameter, not the value type alone.
    """

    value_dtype: torch.dtype
    instruction: str
    """Family of the sparse matrix instruction: its metadata and register order."""


# mma.sp m16n8k32 and, warp by warp, wgmma.sp m64nNk32 take the same registers.
BF16 = WeightKind(torch.bfloat16, "sp_k32")
FP16 = WeightKind(torch.float16, "sp_k32")

_KINDS = {kind.value_dtype: kind for kind in (BF16, FP16)}


def kind_of(dtype: torch.dtype) -> WeightKind:
    """The kind that weights of a dtype are packed as.

    Raises:
        SecateurError: there is none.
    """
    if dtype not in _KINDS:
        known = ", ".join(dtype_name(known) for known in _KINDS)
        raise SecateurError(
            f"expected weights of dtype {known}, got {str(dtype).removeprefix('torch.')}"
        )
    return _KINDS[dtype]
