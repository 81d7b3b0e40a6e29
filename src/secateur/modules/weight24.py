"""The 2:4 weight of a module: canonical to be loaded, saved and trained, packed to be served."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from secateur.errors import SecateurError
from secateur_kernels.layouts import Canonical24, Fragment24, RowOrder, kind_of
from secateur_kernels.layouts.fragment24 import canonical_order, plain_order

PACKABLE_DTYPES = (torch.bfloat16, torch.float16)


class Weight24Module(nn.Module):
    """Holds one 2:4 weight [N, K] in one of two forms, never both.

    Canonical (as made by the constructor): parameter `weight` [N, K / 2], the kept values, and
    buffer `indices` uint8 [N, ceil(K / 8)]. Packed (after `pack`): buffer `data` in fragment order.
    State dicts hold the canonical form either way, so that they can be sliced and do not depend on
    a kernel's layout.

    `to`, `half`, `float` and their like cast a packed weight as well: it stays packed in bf16 or
    fp16 and becomes canonical in other dtypes.
    """

    trains_weight: bool
    """Of a packed layer: whether its weight asks for a gradient once it is canonical."""
    weight: nn.Parameter | None
    indices: Tensor | None
    data: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        gate_up: bool,
        dtype: torch.dtype | None,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        if in_features % 4:
            raise SecateurError(f"expected in_features divisible by 4, got {in_features}")
        self.in_features = in_features
        self.out_features = out_features
        self.row_order: RowOrder = "gate_up" if gate_up else "natural"
        self.trains_weight = True
        self.value_dtype = dtype or torch.get_default_dtype()
        values = torch.zeros(out_features, in_features // 2, dtype=dtype, device=device)
        # Columns 0 and 1 of each group: legal, so that a fresh module is a valid weight of zeros.
        filler = torch.full(
            (out_features, -(-in_features // 8)), 0x44, dtype=torch.uint8, device=device
        )
        self.weight = nn.Parameter(values)
        self.register_buffer("indices", filler)
        self._hold_buffer("data", None)

    @property
    def is_packed(self) -> bool:
        """Whether the weight is in fragment order."""
        return self.data is not None

    def canonical(self) -> Canonical24:
        """The weight as a validated value; a copy where it is packed.

        Raises:
            SecateurError: what was loaded is not a legal 2:4 weight.
        """
        if self.data is None:
            assert self.weight is not None
            assert self.indices is not None
            return Canonical24(self.weight.detach(), self.indices)
        return self._fragment().to_canonical()

    def canonical_values(self) -> Tensor:
        """The kept values [N, K / 2], whatever the form; index pairs are not looked at."""
        if self.data is None:
            assert self.weight is not None
            return self.weight.detach()
        shape = (self.out_features, self.in_features)
        return plain_order(self.data, shape, self.value_dtype, self.row_order)[0]

    def pack(self) -> "Weight24Module":
        """Into the order of the kernels, for serving; the values are not trainable until `unpack`.

        Raises:
            SecateurError: the dtype is not bf16 or fp16, or the weight is not legal.
        """
        if not self.is_packed:
            fragment = Fragment24.from_canonical(self.canonical(), self.row_order)
            self.value_dtype = fragment.kind.value_dtype
            assert self.weight is not None
            self.trains_weight = self.weight.requires_grad
            self.weight = None
            self.indices = None
            self._hold_buffer("data", fragment.data)
        return self

    def unpack(self) -> "Weight24Module":
        """Back to the canonical form, for training and loading; frozen if it was."""
        if self.is_packed:
            weight = self.canonical()
            self._hold_canonical(weight.values, weight.indices)
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """As of every module; a packed weight remembers it."""
        self.trains_weight = requires_grad
        return super().requires_grad_(requires_grad)

    def dense_weight(self) -> Tensor:
        """The weight [N, K] in logical row order, zeros included."""
        return self.canonical().to_dense()

    def _fragment(self) -> Fragment24:
        assert self.data is not None
        shape = (self.out_features, self.in_features)
        return Fragment24(self.data, shape, kind_of(self.value_dtype), self.row_order)

    def _hold_canonical(self, values: Tensor, indices: Tensor) -> None:
        trainable = self.trains_weight if self.weight is None else self.weight.requires_grad
        self._hold_buffer("data", None)
        self.value_dtype = values.dtype
        self.weight = nn.Parameter(values, requires_grad=trainable)
        self.indices = indices

    def _hold_buffer(self, name: str, tensor: Tensor | None) -> None:
        """Hold a buffer that state dicts leave out.

        One that is None counts as persistent: accelerate takes all others for tensors.
        """
        self.register_buffer(name, tensor, persistent=tensor is None)

    def _packed_arguments(self) -> tuple[Any, ...]:
        """The weight as packed ops take it."""
        shape = (self.out_features, self.in_features)
        return (self.data, *shape, self.row_order, self.value_dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As of every module, which would cast what is beside packed bytes and not the bytes."""
        kept = self.data is None or self.value_dtype == _dtype_after(
            fn, self.value_dtype, self.data.device
        )
        if not kept:
            self.unpack()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.weight is not None:
            self.value_dtype = self.weight.dtype
        if not kept and self.value_dtype in PACKABLE_DTYPES:
            self.pack()
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.is_packed:
            weight = self.canonical()
            destination[f"{prefix}weight"] = weight.values
            destination[f"{prefix}indices"] = weight.indices

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        was_packed = self.is_packed
        if self.data is not None:
            # Not `unpack`, which checks bytes: memory may be fresh, as after `to_empty`.
            shape = (self.out_features, self.in_features)
            self._hold_canonical(
                *canonical_order(self.data, shape, self.value_dtype, self.row_order)
            )
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if was_packed:
            self.pack()


def _dtype_after(
    fn: Callable[[Tensor], Tensor], dtype: torch.dtype, device: torch.device
) -> torch.dtype:
    """What a function that moves or casts tensors makes of a dtype."""
    return fn(torch.empty(0, dtype=dtype, device=device)).dtype
