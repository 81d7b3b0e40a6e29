"""A linear layer with a 2:4 weight."""

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.modules.dense_linear import copied_bias, dense_linear
from secateur.modules.weight24 import Weight24Module
from secateur_kernels.layouts import Canonical24
from secateur_kernels.sparse24_linear.canonical_op import canonical24_linear


class Sparse24Linear(Weight24Module):
    """y = epilogue(x @ weight.T + bias), two of every four columns of the weight kept.

    Fresh modules are canonical (trainable, loadable); `from_linear` packs. Once packed, each call
    is one `secateur::sparse24_linear`.
    """

    dense: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        activation: str = "none",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """A weight of zeros.

        Args:
            in_features: K, divisible by 4.
            out_features: N, rows of the weight. Outputs are N, or N / 2 for `silu_and_mul`.
            bias: whether there is one, [N].
            activation: `none`, or `silu_and_mul` for rows [gate; up].
            dtype: bf16 or fp16 to be packed; any floating dtype to be trained.
            device: of the tensors.
        """
        gate_up = activation == "silu_and_mul"
        super().__init__(in_features, out_features, gate_up, dtype, device)
        self.activation = activation
        zeros = torch.zeros(out_features, dtype=dtype, device=device)
        self.bias = nn.Parameter(zeros) if bias else None
        self._hold_buffer("dense", None)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, keep_mask: Tensor | None = None, *, activation: str = "none"
    ) -> "Sparse24Linear":
        """Pack a linear layer; what is frozen stays frozen.

        Args:
            linear: weight [N, K] in bf16 or fp16.
            keep_mask: bool [N, K], at most two of four; without it, whatever is not zero is kept.
            activation: `silu_and_mul` if the rows are [gate; up].

        Raises:
            SecateurError: the weight is not 2:4, or its dtype cannot be packed.
        """
        weight = Canonical24.from_dense(linear.weight.detach(), keep_mask)
        module = cls.from_weight(weight, linear.bias, activation=activation)
        module.trains_weight = linear.weight.requires_grad
        return module

    @classmethod
    def from_weight(
        cls, weight: Canonical24, bias: Tensor | None = None, *, activation: str = "none"
    ) -> "Sparse24Linear":
        """Pack a canonical weight; several of them are fused by `Canonical24.concatenate_rows`."""
        rows, columns = weight.shape
        with torch.device("meta"):
            module = cls(columns, rows, False, activation=activation, dtype=weight.values.dtype)
        module._hold_canonical(weight.values, weight.indices)
        module.bias = copied_bias(bias)
        module.pack()
        return module

    def to_linear(self) -> nn.Linear:
        """The dense layer with zeros, bit for bit; bias shared.

        Raises:
            SecateurError: the layer multiplies gate and up, which a linear layer cannot.
        """
        return dense_linear(self.dense_weight(), self.bias, self.activation)

    def keep_dense_copy(self) -> int:
        """Keep the dense weight beside the packed one, for where dense is faster (policy strict).

        It goes when the weight is replaced, loaded, cast or unpacked.

        Returns:
            bytes that it takes.

        Raises:
            SecateurError: the layer is not packed.
        """
        if not self.is_packed:
            raise SecateurError("expected a packed layer: call pack() before keep_dense_copy()")
        dense = self.dense_weight()
        self._hold_buffer("dense", dense)
        return dense.nbytes

    def drop_dense_copy(self) -> None:
        """Back to one packed copy (policy memory)."""
        self._hold_buffer("dense", None)

    def _hold_canonical(self, values: Tensor, indices: Tensor) -> None:
        super()._hold_canonical(values, indices)
        self.drop_dense_copy()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """[..., K] -> [..., N] or [..., N / 2], plus the residual if one is given."""
        if self.data is None:
            assert self.weight is not None
            assert self.indices is not None
            return canonical24_linear(
                x,
                self.weight,
                self.indices,
                bias=self.bias,
                residual=residual,
                activation=self.activation,
            )
        return torch.ops.secateur.sparse24_linear(  # type: ignore[no-any-return]
            x, *self._packed_arguments(), self.bias, residual, self.activation, self.dense, "auto"
        )

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        form = "packed" if self.is_packed else "canonical"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, 2:4 {form}, activation={self.activation}"
        )
