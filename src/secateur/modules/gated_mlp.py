"""An MLP down(silu(gate(x)) * up(x)) as two calls."""

from collections.abc import Sequence

from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.modules.stack import SILU, stack, unstack


class GatedMlp(nn.Module):
    """Stands for a gated MLP: gate and up are one product whose epilogue multiplies them.

    The module that it stands for is kept as an empty shell, to be filled again by `restored`.
    """

    def __init__(self, mlp: nn.Module, gate_up: Sequence[str], down: str) -> None:
        """Stack gate and up; `mlp` is not changed until `adopt`.

        Args:
            mlp: the MLP.
            gate_up: names of its layers gate and up, or of the one that is both.
            down: name of its last layer.

        Raises:
            SecateurError: the layers cannot be stacked.
        """
        super().__init__()
        layers = [mlp.get_submodule(name) for name in gate_up]
        self.gate_up, self.parts = stack(layers, SILU)
        self.down = mlp.get_submodule(down)
        self.names = (*gate_up, down)
        # In a list, because a module that is an attribute would become a child.
        self._shell = [mlp]

    def adopt(self) -> None:
        """Take the layers out of the MLP that it stands for, so that their memory is free."""
        for name in self.names:
            setattr(self._shell[0], name, None)

    def restored(self) -> nn.Module:
        """The MLP that it stands for, with its layers bit for bit as they were.

        Raises:
            SecateurError: the MLP still has them: `adopt` was not called.
        """
        shell = self._shell[0]
        if getattr(shell, self.names[0]) is not None:
            raise SecateurError("expected an MLP whose layers were taken out")
        layers = [*unstack(self.gate_up, self.parts), self.down]
        for name, layer in zip(self.names, layers, strict=True):
            setattr(shell, name, layer.train(shell.training))
        return shell

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., K]."""
        return self.down(self.gate_up(x))  # type: ignore[no-any-return]
