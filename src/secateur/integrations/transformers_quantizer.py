"""Plain `from_pretrained` and `save_pretrained` for compact checkpoints, by transformers' hooks.

Registered by `checkpoint/load.py`, so whenever `secateur` is imported. Then
`AutoModelForCausalLM.from_pretrained` loads a folder whose configuration says `"quant_method":
"secateur"`, and packs 2:4 layers.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from secateur.errors import SecateurError
from secateur.integrations.layer_specs import FORMAT_VERSION, QUANT_METHOD, CompactLayers
from secateur.integrations.loading_checks import (
    LOADED,
    check_stored,
    require_loaded,
    shapes_of,
)
from secateur.models.sites import is_step_projection
from secateur.models.swap import (
    compressed_modules,
    pack_layers,
    pack_model,
    to_dense,
)
from secateur.modules import LowRankLinear
from secateur.modules.weight24 import PACKABLE_DTYPES, Weight24Module
from secateur_kernels.layouts import Canonical24


class SecateurConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """The `quantization_config` of a compact checkpoint, or the wish to pack a dense one.

    `from_pretrained(folder, quantization_config=SecateurConfig())` packs the linear layers of a
    dense model that are exactly 2:4 once it is loaded in bf16 or fp16; `modules` names them
    instead, and each must be 2:4.
    """

    def __init__(
        self,
        layers: Sequence[object] | None = None,
        shared_down: object = None,
        removed: object = None,
        *,
        modules: Iterable[str] | None = None,
        format_version: int = FORMAT_VERSION,
        quant_method: str = QUANT_METHOD,
        **unknown: object,
    ) -> None:
        if quant_method != QUANT_METHOD or format_version != FORMAT_VERSION:
            raise SecateurError(
                f"expected quantization_config of {QUANT_METHOD} in format {FORMAT_VERSION}, got "
                f"{quant_method} in format {format_version!r}: a newer Secateur may read it"
            )
        if unknown:
            raise SecateurError(f"quantization_config: unknown key {sorted(unknown)[0]}")
        if isinstance(modules, str):
            raise SecateurError(f"expected modules as a list of names, got the string {modules!r}")
        self.quant_method = quant_method
        self.format_version = format_version
        self.modules = None if modules is None else tuple(modules)
        self.layers: CompactLayers | None = None
        if layers is not None or removed is not None:
            try:
                self.layers = CompactLayers.from_plain(layers, shared_down, removed)
            except SecateurError as error:
                raise SecateurError(f"quantization_config.{error}") from None

    @classmethod
    def of(cls, model: nn.Module) -> "SecateurConfig":
        """What describes the compressed layers of a model.

        Raises:
            SecateurError: a layer cannot be saved; names it.
        """
        config = cls()
        config.layers = CompactLayers.of(model)
        return config

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in config.json."""
        return {
            "quant_method": self.quant_method,
            "format_version": self.format_version,
            **(self.layers.to_plain() if self.layers else {}),
        }


class SecateurQuantizer(HfQuantizer):  # type: ignore[misc]
    """Builds compressed layers before their weights are read, and packs them after."""

    requires_calibration = False
    quantization_config: SecateurConfig
    pre_quantized: bool

    def __init__(self, quantization_config: SecateurConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._expected: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: Sequence[str] | None = None, **kwargs: Any
    ) -> Any:
        if self.pre_quantized:
            self._build_layers(model, checkpoint_files or ())
        elif model.dtype not in PACKABLE_DTYPES:
            raise SecateurError(
                "expected dtype bfloat16 or float16 to pack a model while it is loaded, got "
                f"{str(model.dtype).removeprefix('torch.')}"
            )
        self._expected = shapes_of(model)
        return model

    def _build_layers(self, model: Any, files: Sequence[str]) -> None:
        stored = self.quantization_config.layers
        if stored is None:
            raise SecateurError("quantization_config lists no layers, but the model is compressed")
        layers = stored.renamed_for(model)
        layers.build_in(model)
        _lend_weights(model)
        modules = [model.get_submodule(name) for name in layers.specs]
        check_stored(
            files, stored, dict(zip(stored.specs, modules, strict=True)), _renaming_of(model)
        )

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        _take_weights_back(model)
        saved_as = getattr(model.config, "architectures", None) or []
        require_loaded(model, self._expected, type(model).__name__ in saved_as)
        if self.pre_quantized:
            self._settle_dtypes(model)
            _require_legal_indices(model)
            pack_layers(model)
        else:
            pack_model(model, self.quantization_config.modules)
            self.pre_quantized = True
        _multiply_step_projections_as_before(model)
        self.quantization_config.layers = CompactLayers.of(model)
        self._expected = {}
        return model

    def _settle_dtypes(self, model: Any) -> None:
        """Give weights the dtype that was asked for: 5.17 does not where it renames them."""
        if any(getattr(model, f"_keep_in_fp32_modules{end}", None) for end in ("", "_strict")):
            return
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point() and name in self._expected:
                parameter.data = parameter.data.to(self._expected[name][1])

    def get_state_dict_and_metadata(self, model: Any) -> tuple[None, dict[str, str]]:
        """Called before a model is saved: its configuration then says what it holds now."""
        mark_compressed(model)
        return None, {}

    def _dequantize(self, model: Any, dtype: torch.dtype | str | None = None) -> Any:
        """`model.dequantize()`: dense layers again.

        Args:
            model: changed in place.
            dtype: transformers gives the configuration's, a word once the model was saved.
        """
        if isinstance(dtype, str):
            dtype = getattr(torch, dtype)
        to_dense(model)
        before = model.dtype
        # Not `model.to`: it would round buffers such as the frequencies of rotary embeddings, too,
        # and what stays in fp32 beside 16-bit weights.
        for parameter in model.parameters():
            if dtype is not None and parameter.dtype == before:
                parameter.data = parameter.data.to(dtype)
        return model

    def is_serializable(self) -> bool:
        """`save_pretrained` writes the canonical form, packed or not."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Gradients pass through all layers, so that adapters can be trained.

        Kept values are trainable once unpacked (`secateur.models.swap.unpack_layers`).
        """
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Factors and unpacked 2:4 weights can be trained themselves, without adapters."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Every layer is one op with a fake implementation."""
        return True


def mark_compressed(model: Any) -> list[str]:
    """Have a transformers model say in its configuration which of its layers are compressed.

    To be called on a model in memory before it is saved for the first time; from then on
    `save_pretrained` keeps it up to date. A model without compressed layers becomes a plain one.

    Args:
        model: a transformers model.

    Returns:
        names of the compressed layers and of removed parts of blocks.

    Raises:
        SecateurError: a layer cannot be saved, or the model is quantised by something else.
    """
    present = getattr(model.config, "quantization_config", None)
    method = present.get("quant_method") if isinstance(present, dict) else present
    if present is not None and getattr(method, "quant_method", method) != QUANT_METHOD:
        raise SecateurError(
            f"{type(model).__name__} is quantised by another method, which cannot be saved "
            "together with compressed layers"
        )
    config = SecateurConfig.of(model)
    assert config.layers is not None
    quantizer = getattr(model, "hf_quantizer", None)
    if not config.layers.names:
        if present is not None:
            SecateurQuantizer(config).remove_quantization_config(model)
        return []
    if not isinstance(quantizer, SecateurQuantizer):
        model.hf_quantizer = quantizer = SecateurQuantizer(config)
    quantizer.quantization_config = config
    model.config.quantization_config = config
    return config.layers.names


def guard_saving(model: Any) -> Callable[[], None]:
    """Have `save_pretrained` of a model ask what its layers are, and refuse what it cannot write.

    For models whose layers are replaced for speed: without this a plain model would be saved with
    whatever tensors its layers have at the time.

    Args:
        model: a transformers model; of others nothing is changed.

    Returns:
        what makes the model as it was.

    Raises:
        SecateurError: the model is quantised by something else.
    """
    if not hasattr(model, "save_pretrained"):
        return lambda: None
    present = vars(model).get("hf_quantizer")
    if present is not None and not isinstance(present, SecateurQuantizer):
        raise SecateurError(
            f"{type(model).__name__} is quantised by another method: its layers are not replaced"
        )
    was_marked = hasattr(model.config, "quantization_config")
    if present is None:
        model.hf_quantizer = SecateurQuantizer(SecateurConfig())

    def release() -> None:
        if present is None:
            vars(model).pop("hf_quantizer", None)
        if not was_marked and hasattr(model.config, "quantization_config"):
            del model.config.quantization_config

    return release


def _renaming_of(model: Any) -> Callable[[str], str]:
    """What transformers calls a tensor of a checkpoint once it is in a model.

    Of several families (Nemotron-H, models that also see) files keep the names of old.
    """
    renamings = [
        entry for entry in get_model_conversion_mapping(model) if isinstance(entry, WeightRenaming)
    ]
    return lambda name: str(rename_source_key(name, renamings, [])[0])


def _lend_weights(model: nn.Module) -> None:
    """Give layers of factors a `weight` while a model is loaded.

    Some models (GPT-2) initialise the `weight` of a child by its name, after they have looked
    whether it is marked as read.
    """
    for module in _without_weight(model):
        placeholder = torch.empty(0)
        setattr(placeholder, LOADED, True)
        setattr(module, "weight", placeholder)  # noqa: B010 - no parameter of the class


def _take_weights_back(model: nn.Module) -> None:
    for module in _without_weight(model):
        if "weight" in vars(module):
            delattr(module, "weight")


def _without_weight(model: nn.Module) -> list[LowRankLinear]:
    return [m for m in compressed_modules(model).values() if isinstance(m, LowRankLinear)]


def _multiply_step_projections_as_before(model: nn.Module) -> None:
    """Have Jamba and Falcon-Mamba not take their `dt_proj` for quantised, as nothing replaces it.

    They would add its bias and subtract it again, which in 16 bit loses the time steps' last bits.
    """
    if any(is_step_projection(model, name) for name, _ in model.named_modules() if name):
        for module in model.modules():
            if isinstance(module, PreTrainedModel):
                vars(module.config).pop("_is_quantized", None)


def _require_legal_indices(model: nn.Module) -> None:
    """Check index pairs also where a weight stays canonical because of its dtype.

    Raises:
        SecateurError: a byte is corrupt; names the layer.
    """
    for name, module in compressed_modules(model).items():
        if not isinstance(module, Weight24Module) or module.weight is None:
            continue
        assert module.indices is not None
        if module.weight.dtype in PACKABLE_DTYPES:
            continue
        try:
            # Values of a dtype that the layout knows: only the pairs are looked at.
            Canonical24(module.weight.detach().to(torch.bfloat16), module.indices)
        except SecateurError as error:
            raise SecateurError(f"{name}: {error}") from None


def register() -> None:
    """Make transformers know the method; safe to call again."""
    if QUANT_METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(QUANT_METHOD)(SecateurConfig)
    if QUANT_METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantizer(QUANT_METHOD)(SecateurQuantizer)
