"""A linear layer whose weight is two thin factors."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.modules.dense_linear import copied_bias, dense_linear
from secateur_kernels.layouts import LowRank


class LowRankLinear(nn.Module):
    """y = epilogue((x @ down.T) @ up.T + bias), by groups of rows; trainable as it is.

    Layers of one input may share `down`: the first holds it, the others refer to it.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        *,
        group_rows: Sequence[int] | None = None,
        activation: str = "none",
        shares_down_with: "LowRankLinear | None" = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Factors of zeros.

        Args:
            in_features: K.
            out_features: N, rows of the weight.
            rank: r of each group; the GPU's kernels need a multiple of 16.
            bias: whether there is one, [N].
            group_rows: rows of each group, as `LowRank.group_rows`; one group by default.
            activation: `none`, or `silu_and_mul` for rows [gate; up].
            shares_down_with: the layer that holds `down`; None to hold an own one.
            dtype: of factors and bias.
            device: of the tensors.

        Raises:
            SecateurError: the shared `down` has another shape.
        """
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.group_rows = tuple(group_rows or (out_features,))
        self.activation = activation
        # In a list, because a module that is an attribute would become a child.
        self._holder = [shares_down_with] if shares_down_with is not None else []
        shape = (len(self.group_rows) * rank, in_features)
        if shares_down_with is None:
            zeros = torch.zeros(shape, dtype=dtype, device=device)
            self.register_parameter("down", nn.Parameter(zeros))
        elif tuple(self.held_down().shape) != shape:
            raise SecateurError(
                f"expected a shared down {list(shape)}, got {list(self.held_down().shape)}"
            )
        self.up = nn.Parameter(torch.zeros(out_features, rank, dtype=dtype, device=device))
        zeros = torch.zeros(out_features, dtype=dtype, device=device)
        self.bias = nn.Parameter(zeros) if bias else None

    @property
    def rank(self) -> int:
        """Of each group."""
        return self.up.shape[1]

    def down_holder(self) -> "LowRankLinear":
        """The layer that holds `down`: this one or another."""
        return self._holder[0].down_holder() if self._holder else self

    def held_down(self) -> Tensor:
        """[G * r, K], this layer's own or that of the layer it shares it with."""
        if self._holder:
            return self._holder[0].held_down()
        assert isinstance(self.down, Tensor)
        return self.down

    @property
    def shares_down(self) -> bool:
        """Whether another layer holds `down`."""
        return bool(self._holder)

    @classmethod
    def from_factors(
        cls,
        factors: LowRank,
        bias: Tensor | None = None,
        *,
        activation: str = "none",
        shares_down_with: "LowRankLinear | None" = None,
    ) -> "LowRankLinear":
        """Hold factors; several weights are fused by `LowRank.stack`.

        Args:
            factors: up and down.
            bias: [N], copied; frozen if it is a frozen parameter.
            activation: as for the constructor.
            shares_down_with: the layer whose `down` is that of `factors`.

        Raises:
            SecateurError: the shared `down` is another one.
        """
        rows, columns = factors.shape
        with torch.device("meta"):
            module = cls(
                columns,
                rows,
                factors.rank,
                False,
                group_rows=factors.group_rows,
                activation=activation,
                shares_down_with=shares_down_with,
                dtype=factors.up.dtype,
            )
        if shares_down_with is None:
            module.down = nn.Parameter(factors.down)
        elif not torch.equal(factors.down, shares_down_with.held_down()):
            raise SecateurError("expected factors with the down of the layer that shares it")
        module.up = nn.Parameter(factors.up)
        module.bias = copied_bias(bias)
        return module

    @classmethod
    def from_linear(cls, linear: nn.Linear, rank: int) -> "LowRankLinear":
        """The best approximation of a linear layer by rank (Eckart and Young), bias kept.

        Factors are frozen if the weight is, the bias if it is.

        Args:
            linear: weight [N, K], finite.
            rank: 1 to min(N, K); padded to 16 with zeros.

        Raises:
            SecateurError: the rank is out of range.
        """
        factors = LowRank.from_dense(linear.weight.detach(), rank)
        module = cls.from_factors(factors, linear.bias)
        module.up.requires_grad_(linear.weight.requires_grad)
        module.held_down().requires_grad_(linear.weight.requires_grad)
        return module

    def factors(self) -> LowRank:
        """The weight as a validated value."""
        down, up = self.held_down().detach().contiguous(), self.up.detach().contiguous()
        return LowRank(down, up, self.group_rows)

    def to_linear(self) -> nn.Linear:
        """The dense layer, the factors multiplied and rounded once; bias shared.

        Raises:
            SecateurError: the layer multiplies gate and up, which a linear layer cannot.
        """
        return dense_linear(self.factors().to_dense(), self.bias, self.activation)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """[..., K] -> [..., N] or [..., N / 2], plus the residual if one is given.

        Raises:
            SecateurError: the shared `down` was offloaded, or an argument does not fit.
        """
        if self._holder:
            self._require_down_beside(x)
        plain = len(self.group_rows) == 1 and self.activation == "none" and residual is None
        if plain and x.device.type == "cpu":
            # What the op would do there; for few tokens its checks take longer than the products.
            return F.linear(F.linear(x, self.held_down()), self.up, self.bias)
        return torch.ops.secateur.low_rank_linear(  # type: ignore[no-any-return]
            x,
            self.held_down(),
            self.up,
            self.group_rows,
            self.bias,
            residual,
            self.activation,
            "auto",
        )

    def _require_down_beside(self, x: Tensor) -> None:
        down = self.held_down()
        # torch multiplies by a weight on meta without a word, and what comes out is no number.
        if down.device.type == "meta" != x.device.type:
            raise SecateurError(
                f"expected the shared down on {x.device} as x, got meta: layers that share a down "
                "cannot be offloaded one by one"
            )

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        groups = f", groups={list(self.group_rows)}" if len(self.group_rows) > 1 else ""
        shared = ", down shared" if self.shares_down else ""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, "
            f"bias={self.bias is not None}{groups}{shared}, activation={self.activation}"
        )
