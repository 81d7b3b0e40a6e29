"""The quantization method `secateur` of vLLM: which layer is served in which form."""

import warnings
from typing import Any

import torch
from torch import nn
from vllm import envs
from vllm.distributed import get_pp_group
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.quantization.base_config import (
    QuantizationConfig,
    QuantizeMethodBase,
)
from vllm.platforms import current_platform

from secateur.errors import SecateurError
from secateur.integrations.layer_specs import QUANT_METHOD, CompactLayers
from secateur.integrations.removed_specs import RemovedParts
from secateur.integrations.transformers_quantizer import SecateurConfig
from secateur.integrations.vllm.methods import (
    SecateurDenseMethod,
    SecateurLinearMethod,
    SecateurRemovedMethod,
)
from secateur.integrations.vllm.shards import names_in

# Before the names of all layers of a draft model that speculates for another one.
_DRAFT_PREFIX = "draft_model."


class SecateurVllmConfig(QuantizationConfig):  # type: ignore[misc]
    """The `quantization_config` of a compact checkpoint, as vLLM asks for it.

    Notes which listed layers vLLM built, so that none is silently left out.
    """

    def __init__(self, layers: CompactLayers) -> None:
        super().__init__()
        self.layers = layers
        self._built: set[str] = set()
        self._has_experts = False
        self._complete = False

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "SecateurVllmConfig":
        """Read what a compact checkpoint says.

        Raises:
            SecateurError: it is none that Secateur writes (names the place), or vLLM promises
                answers that do not depend on the batch.
        """
        if getattr(envs, "VLLM_BATCH_INVARIANT", False):
            raise SecateurError(
                "expected VLLM_BATCH_INVARIANT=0: how the kernels of compressed layers split sums "
                "depends on the number of tokens, and so do the last bits"
            )
        layers = SecateurConfig(**config).layers
        if layers is None:
            raise SecateurError("quantization_config lists no layers")
        return cls(layers)

    def get_name(self) -> str:
        """Of the method, as in `quant_method`."""
        return QUANT_METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """The value types of packed weights."""
        return [torch.bfloat16, torch.float16]

    @classmethod
    def get_min_capability(cls) -> int:
        """Ampere: the first with sparse matrix instructions."""
        return 80

    @staticmethod
    def get_config_filenames() -> list[str]:
        """None beside the model's own configuration."""
        return []

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        """Rename listed layers as vLLM's model renames those of the checkpoint."""
        if self._complete:  # This model is built: a draft for it is about to be.
            return
        mapped = hf_to_vllm_mapper
        names = self.layers.names
        renamed = mapped.apply_list(names)
        if len(renamed) != len(names):
            raise SecateurError("vLLM's model leaves out layers that the configuration lists")
        new = dict(zip(names, renamed, strict=True))
        self.layers = CompactLayers(
            {new[name]: spec for name, spec in self.layers.specs.items()},
            {new[name]: new[leader] for name, leader in self.layers.shared_down.items()},
            RemovedParts({new[name]: spec for name, spec in self.layers.removed.specs.items()}),
        )

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """How a layer of vLLM is served; None leaves anything but a linear layer to vLLM.

        Raises:
            SecateurError: a listed layer is part of something that is no linear layer in vLLM.
        """
        prefix = prefix.removeprefix(_DRAFT_PREFIX)
        if not isinstance(layer, LinearBase):
            self._refuse_listed(layer, prefix)
            # Their class has had several names.
            self._has_experts |= hasattr(layer, "moe_config")
            return None
        names = names_in(prefix, self.packed_modules_mapping, self.layers)
        self._built.update(names)
        if all(self.layers.removed.holds(name) for name in names):
            return SecateurRemovedMethod(self.require_complete)
        if any(name in self.layers.specs for name in names):
            return SecateurLinearMethod(
                names, self.layers, self.require_complete, self.warn_of_experts
            )
        return SecateurDenseMethod(prefix, self.require_complete)

    def _refuse_listed(self, layer: nn.Module, prefix: str) -> None:
        listed = [n for n in self.layers.specs if n == prefix or n.startswith(f"{prefix}.")]
        # Attention may stay: it has no weights, and gets zeros. Experts would miss theirs.
        if not isinstance(layer, AttentionLayerBase) and self.layers.removed.holds(prefix):
            listed.append(prefix)
        if listed:
            raise SecateurError(
                f"{listed[0]} is compressed or removed, but {type(layer).__name__} {prefix} of "
                "vLLM is no linear layer, and the plugin serves linear layers only"
            )

    def require_complete(self) -> None:
        """Check, once a model is built, that every listed layer and part is in it.

        With pipeline parallelism only blocks of which this process has a layer are looked at.

        Raises:
            SecateurError: one is not; names it.
        """
        if self._complete:
            return
        absent = [name for name in self.layers.specs if name not in self._built]
        absent += [
            part
            for part in self.layers.removed.specs
            if not any(name.startswith(f"{part}.") for name in self._built)
        ]
        if absent and get_pp_group().world_size > 1:
            here = {_block_of(name) for name in self._built}
            absent = [name for name in absent if _block_of(name) in here]
        if absent:
            raise SecateurError(
                f"the configuration lists {len(absent)} layers that vLLM's model does not have, "
                f"such as {absent[0]}: they would be left out"
            )
        self._complete = True

    def warn_of_experts(self) -> None:
        """Say, as weights are loaded again, that vLLM's experts cannot take them on a CPU.

        `UnquantizedFusedMoEMethod._setup_kernel` of vLLM 0.33.0 packs only what it gets first.
        """
        if self._has_experts and current_platform.is_cpu():
            warnings.warn(
                "vLLM does not pack experts for the CPU when weights are loaded again: its answers "
                "will be wrong, as they are from models that Secateur did not compress",
                stacklevel=2,
            )


def _block_of(name: str) -> str:
    """The part of a name that ends with the number of a block; all of it without one."""
    parts = name.split(".")
    numbers = [index for index, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1]) if numbers else name
