"""Linear layers of one input that are multiplied together, seen by their parent as before."""

from collections.abc import Sequence

from torch import Tensor, nn

from secateur.modules.stack import stack, unstack


class SideBySide(nn.Module):
    """One product for several layers; each takes its columns.

    The first layer in the order of calls computes it, the last one lets go of it. In between it
    belongs to one input tensor, compared by identity: a layer that is called with another one
    computes anew. So results never depend on the order of calls, only the work does. Nothing is
    kept from one forward pass to the next, which is what compilers and CUDA graphs need.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        """Stack layers.

        Args:
            layers: in the order in which they are called.

        Raises:
            SecateurError: they cannot be stacked.
        """
        super().__init__()
        self.product, self.parts = stack(layers)
        self.rows = [part.rows for part in self.parts]
        self._held: tuple[Tensor, tuple[Tensor, ...]] | None = None

    def columns(self, index: int, x: Tensor) -> Tensor:
        """[..., K] -> the columns [..., N] of one layer."""
        held = self._held
        if index == 0 or held is None or held[0] is not x:
            held = (x, self.product(x).split(self.rows, dim=-1))
        self._held = None if index == len(self.rows) - 1 else held
        return held[1][index]

    def layers(self) -> list[nn.Module]:
        """What was stacked, bit for bit."""
        return unstack(self.product, self.parts)

    def __getstate__(self) -> dict[str, object]:
        """What copies and files hold: nothing of a forward pass."""
        return {**vars(self), "_held": None}


class OneOfSeveral(nn.Module):
    """Stands where one of the layers stood."""

    def __init__(self, together: SideBySide, index: int, in_features: int) -> None:
        """The layer of an index; the first one owns the product in the tree of modules."""
        super().__init__()
        self.in_features = in_features
        self.out_features = together.rows[index]
        self.index = index
        if index == 0:
            self.together = together
        # In a list, because a module that is an attribute would become a child again.
        self._holder = [together]

    @property
    def shared(self) -> SideBySide:
        """What all of them share."""
        return self._holder[0]

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N]."""
        return self._holder[0].columns(self.index, x)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        place = f"{self.index + 1} of {len(self.shared.rows)} side by side"
        return f"in_features={self.in_features}, out_features={self.out_features}, {place}"
