"""A linear layer whose weight is a 2:4 part plus two thin factors."""

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.modules.dense_linear import copied_bias, dense_linear
from secateur.modules.weight24 import Weight24Module
from secateur_kernels.epilogue import apply_epilogue
from secateur_kernels.layouts import Canonical24, LowRank
from secateur_kernels.sparse24_linear.canonical_op import canonical24_linear


class SparseLowRankLinear(Weight24Module):
    """y = epilogue(x @ weight.T + (x @ down.T) @ up.T + bias); the weight is 2:4.

    Fresh modules are canonical (trainable, loadable). Once packed, each call is one
    `secateur::sparse24_low_rank_linear`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        *,
        group_rows: tuple[int, ...] | None = None,
        activation: str = "none",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Zeros; arguments as those of `Sparse24Linear` and `LowRankLinear`."""
        gate_up = activation == "silu_and_mul"
        super().__init__(in_features, out_features, gate_up, dtype, device)
        self.activation = activation
        self.group_rows = group_rows or (out_features,)
        down_rows = len(self.group_rows) * rank
        self.down = nn.Parameter(torch.zeros(down_rows, in_features, dtype=dtype, device=device))
        self.up = nn.Parameter(torch.zeros(out_features, rank, dtype=dtype, device=device))
        zeros = torch.zeros(out_features, dtype=dtype, device=device)
        self.bias = nn.Parameter(zeros) if bias else None

    @property
    def rank(self) -> int:
        """Of each group."""
        return self.up.shape[1]

    @classmethod
    def from_parts(
        cls,
        weight: Canonical24,
        factors: LowRank,
        bias: Tensor | None = None,
        *,
        activation: str = "none",
    ) -> "SparseLowRankLinear":
        """Hold and pack both parts.

        Raises:
            SecateurError: they differ in shape or dtype.
        """
        if weight.shape != factors.shape or weight.values.dtype != factors.up.dtype:
            raise SecateurError(
                f"expected parts of one shape and dtype, got {weight.values.dtype} "
                f"{list(weight.shape)} and {factors.up.dtype} {list(factors.shape)}"
            )
        rows, columns = weight.shape
        with torch.device("meta"):
            module = cls(
                columns,
                rows,
                factors.rank,
                False,
                group_rows=factors.group_rows,
                activation=activation,
                dtype=factors.up.dtype,
            )
        module._hold_canonical(weight.values, weight.indices)
        module.down = nn.Parameter(factors.down)
        module.up = nn.Parameter(factors.up)
        module.bias = copied_bias(bias)
        module.pack()
        return module

    @classmethod
    def from_linear(cls, linear: nn.Linear, keep_mask: Tensor, rank: int) -> "SparseLowRankLinear":
        """Keep what the mask keeps, and the best factors of what it drops (Eckart and Young).

        What is frozen stays frozen; factors are as the weight is.

        Args:
            linear: weight [N, K] in bf16 or fp16.
            keep_mask: bool [N, K], at most two of four.
            rank: 1 to min(N, K); padded to 16 with zeros.

        Raises:
            SecateurError: mask or rank do not fit.
        """
        weight = linear.weight.detach()
        sparse = Canonical24.from_dense(weight, keep_mask)
        dropped = weight.double() - sparse.to_dense().double()
        exact = LowRank.from_dense(dropped, rank)
        factors = LowRank.from_factors(exact.up.to(weight.dtype), exact.down.to(weight.dtype))
        module = cls.from_parts(sparse, factors, linear.bias)
        module.trains_weight = linear.weight.requires_grad
        module.down.requires_grad_(linear.weight.requires_grad)
        module.up.requires_grad_(linear.weight.requires_grad)
        return module

    def factors(self) -> LowRank:
        """The low-rank part as a validated value."""
        down, up = self.down.detach().contiguous(), self.up.detach().contiguous()
        return LowRank(down, up, self.group_rows)

    def to_linear(self) -> nn.Linear:
        """The dense layer, both parts added and rounded once; bias shared.

        Raises:
            SecateurError: the layer multiplies gate and up, which a linear layer cannot.
        """
        sparse = self.dense_weight()
        wide = LowRank(self.down.detach().double(), self.up.detach().double(), self.group_rows)
        weight = (sparse.double() + wide.to_dense()).to(sparse.dtype)
        return dense_linear(weight, self.bias, self.activation)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """[..., K] -> [..., N] or [..., N / 2], plus the residual if one is given."""
        low_rank = (self.down, self.up, self.group_rows)
        rest = (self.bias, residual, self.activation)
        if self.data is not None:
            return torch.ops.secateur.sparse24_low_rank_linear(  # type: ignore[no-any-return]
                x, *self._packed_arguments(), *low_rank, *rest, "auto"
            )
        assert self.weight is not None
        assert self.indices is not None
        product = canonical24_linear(x, self.weight, self.indices)
        product = product + torch.ops.secateur.low_rank_linear(
            x, *low_rank, None, None, "none", "auto"
        )
        return apply_epilogue(product, *rest)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        form = "packed" if self.is_packed else "canonical"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"rank={self.rank}, bias={self.bias is not None}, 2:4 {form}, "
            f"activation={self.activation}"
        )
