"""Memory that shows what a kernel must not do: read or write outside, or leave outputs unwritten.

All poison is bytes of 0xFF: NaN as bf16, fp16 and fp32, -1 as an integer, an illegal index pair as
2:4 metadata.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

POISON = 0xFF
# What tensors of the caching allocator are aligned to; kernels may rely on 128 for packed weights.
ALIGNMENT = 512
_MARGIN = 64 * 1024


class Surroundings:
    """Copies of tensors in the middle of larger, poisoned allocations, to be inspected afterwards.

    A read outside shows as NaN in the result, a write outside or into an input in `check`.
    """

    def __init__(self, margin: int = _MARGIN) -> None:
        """`margin`: poisoned bytes before and after each tensor, a multiple of 512."""
        assert margin % ALIGNMENT == 0
        self._margin = margin
        self._placed: list[tuple[str, Tensor, Tensor]] = []

    def place(self, name: str, tensor: Tensor, gap: int = 0, offset: int = 0) -> Tensor:
        """A copy of a tensor with poison around it and, for matrices, between its rows.

        Args:
            name: for the message of `check`.
            tensor: any shape; copied as if contiguous.
            gap: poisoned elements after every row (the last dimension).
            offset: elements by which the copy begins after an address divisible by 512.

        Returns:
            [shape of `tensor`], rows `gap` elements apart.
        """
        columns = tensor.shape[-1] if tensor.ndim else 1
        rows = tensor.numel() // columns if columns else 0
        stride = columns + gap
        size = tensor.element_size()
        inner = -(-(rows * stride + offset) * size // ALIGNMENT) * ALIGNMENT
        raw = torch.full(
            (inner + 2 * self._margin,), POISON, dtype=torch.uint8, device=tensor.device
        )
        start = self._margin // size + offset
        flat = raw.view(tensor.dtype)
        strides = [stride] if tensor.ndim > 1 else []
        for length in reversed(tensor.shape[1:-1]):
            strides.insert(0, strides[0] * length)
        shape = tuple(tensor.shape)
        copy = torch.as_strided(flat, shape, (*strides, 1) if tensor.ndim else (), start)
        copy.copy_(tensor)
        self._placed.append((name, raw, raw.clone()))
        return copy

    def check(self) -> None:
        """Fail if a byte of any allocation has changed, inputs included."""
        for name, raw, before in self._placed:
            changed = raw != before
            if bool(changed.any()):
                first = int(changed.nonzero()[0])
                raise AssertionError(
                    f"{int(changed.sum())} bytes in or around {name} were overwritten, "
                    f"the first at byte {first - self._margin} from its start"
                )


@contextmanager
def poisoned_allocations() -> Iterator[None]:
    """Within it, everything that `torch.empty` returns is NaN, or the largest integer.

    Outputs and workspaces of an op alike, also in the memory of a graph that is being captured:
    there the poison is replayed as well.
    """
    settings: Any = torch.utils.deterministic
    fill_before = settings.fill_uninitialized_memory
    mode_before = torch.get_deterministic_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.use_deterministic_algorithms(True, warn_only=True)
        settings.fill_uninitialized_memory = True
        try:
            yield
        finally:
            torch.set_deterministic_debug_mode(mode_before)
            settings.fill_uninitialized_memory = fill_before


def poison_free_memory(device: torch.device, largest: int = 1 << 30) -> None:
    """Fill memory with poison and free it, so that the allocator hands out poisoned blocks next.

    Unlike `poisoned_allocations` it adds no kernel between the calls that follow.

    Args:
        device: whose allocator.
        largest: bytes of the largest block; the others are 2, 4, 8... times smaller, down to 512.
    """
    blocks = []
    size = largest
    while size >= ALIGNMENT:
        blocks += [torch.full((size,), POISON, dtype=torch.uint8, device=device) for _ in range(2)]
        size //= 2
    if device.type == "cuda":
        torch.cuda.synchronize(device)
