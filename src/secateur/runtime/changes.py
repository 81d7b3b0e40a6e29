"""What is changed in a model while it is accelerated, and how it is changed back."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from secateur.integrations.transformers_quantizer import guard_saving
from secateur.models.fuse import unfuse
from secateur.models.swap import (
    compressed_modules,
    convert_sparse24,
    pack_layers,
    put_dense,
    replace_module,
    to_dense,
)
from secateur.modules import Sparse24Linear
from secateur.modules.weight24 import PACKABLE_DTYPES, Weight24Module


@dataclass(eq=False)
class Changes:
    """Notes of changes to one model."""

    model: nn.Module
    _packed: dict[str, bool] = field(default_factory=dict)
    """By name, whether the dense weight asked for a gradient."""
    _replaced: dict[str, nn.Module] = field(default_factory=dict)
    _canonical: dict[str, bool] = field(default_factory=dict)
    """By name, whether the weight asked for a gradient."""
    _copied: list[Sparse24Linear] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._release = guard_saving(self.model)

    def pack(self, names: Sequence[str]) -> None:
        """Make packed 2:4 layers of dense ones that are exactly 2:4."""
        for name in convert_sparse24(self.model, names):
            layer = self.model.get_submodule(name)
            assert isinstance(layer, Sparse24Linear)
            assert layer.weight is not None
            self._packed[name] = layer.weight.requires_grad
            layer.pack()

    def pack_compressed(self) -> None:
        """Put 2:4 layers that are canonical and can be packed into the order of the kernels."""
        for name, layer in compressed_modules(self.model).items():
            weight = layer.weight if isinstance(layer, Weight24Module) else None
            if weight is not None and weight.dtype in PACKABLE_DTYPES:
                self._canonical[name] = weight.requires_grad
        pack_layers(self.model)

    def make_dense(self, names: Sequence[str]) -> None:
        """Make dense layers of compressed ones; those are kept, since factors do not come back."""
        for name in names:
            layer = compressed_modules(self.model)[name]
            put_dense(self.model, name, layer)
            self._replaced[name] = layer

    def keep_dense_copy(self, layer: nn.Module) -> None:
        """Keep the dense weight beside the packed one of a layer."""
        if isinstance(layer, Sparse24Linear) and layer.dense is None:
            layer.keep_dense_copy()
            self._copied.append(layer)

    def undo(self) -> None:
        """Change everything back."""
        for copied in self._copied:
            copied.drop_dense_copy()
        unfuse(self.model)
        for name, layer in self._replaced.items():
            # The model may have been cast or moved since.
            dense = next(self.model.get_submodule(name).parameters())
            replace_module(self.model, name, layer.to(dense.device, dense.dtype))
        to_dense(self.model, self._packed)
        for name, trainable in self._packed.items():
            self.model.get_submodule(name).get_parameter("weight").requires_grad_(trainable)
        for name, trainable in self._canonical.items():
            unpacked = compressed_modules(self.model)[name]
            assert isinstance(unpacked, Weight24Module)
            unpacked.unpack()
            assert unpacked.weight is not None
            unpacked.weight.requires_grad_(trainable)
        self._release()
