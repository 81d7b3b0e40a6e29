"""Which backends there are here, and why one is not."""

from importlib.util import find_spec
from typing import Literal, get_args

from torch import Tensor

from secateur_kernels.errors import SecateurError

Backend = Literal["auto", "reference", "triton", "cuda", "unpack", "two_gemms", "dense"]
"""`reference`: plain torch, any device. `triton`: compiled at first use. `cuda`: the compiled
library. `unpack`: unpack to dense, then torch's matrix product. `two_gemms`: factors by two
matrix products. `dense`: a dense copy that the caller keeps. `auto`: what dispatch chooses."""

BACKENDS: tuple[str, ...] = get_args(Backend)

HAS_TRITON = find_spec("triton") is not None


def check_backend(name: str, allowed: tuple[str, ...]) -> None:
    """Raise SecateurError unless an op knows the backend."""
    if name not in allowed:
        raise SecateurError(f"expected backend {', '.join(allowed)}, got {name!r}")


def triton_interprets() -> bool:
    """Whether Triton kernels run in its interpreter (TRITON_INTERPRET=1), as on a CPU."""
    if not HAS_TRITON:
        return False
    import triton

    return bool(triton.knobs.runtime.interpret)


def require_triton(x: Tensor) -> None:
    """Raise SecateurError unless a Triton kernel can run on the device of `x`."""
    if not HAS_TRITON:
        raise SecateurError("backend triton is not there: the package triton is not installed")
    if x.device.type != "cuda" and not triton_interprets():
        raise SecateurError(
            f"expected x on an NVIDIA GPU for backend triton, got {x.device}; on a CPU Triton "
            "kernels run in its interpreter only (TRITON_INTERPRET=1)"
        )


def require_cuda_tensor(x: Tensor) -> None:
    """Raise SecateurError unless `x` is on a GPU."""
    if x.device.type != "cuda":
        raise SecateurError(f"expected x on an NVIDIA GPU for backend cuda, got {x.device}")
