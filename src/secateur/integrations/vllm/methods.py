"""What vLLM's linear layers do with the layers of a compact checkpoint."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.linear import (
    LinearMethodBase,
    ReplicatedLinear,
    RowParallelLinear,
    UnquantizedLinearMethod,
    register_weight_loader_v2_supported_method,
)

from secateur.errors import SecateurError
from secateur.integrations.layer_specs import CompactLayers
from secateur.integrations.vllm.parameters import (
    Loader,
    ShardedParameter,
    WatchedLoader,
    fused_down_loader,
    load_replicated,
)
from secateur.integrations.vllm.segments import (
    LoadedShard,
    apply_segments,
    build_segments,
    replace_values,
    tensors_of,
)
from secateur.integrations.vllm.shards import LEAVES, Shard, shards_of

PACKABLE_DTYPES = (torch.bfloat16, torch.float16)

# Of the whole model: that no layer was left out, or that its weights can be loaded again.
Check = Callable[[], None]


@register_weight_loader_v2_supported_method
class SecateurLinearMethod(LinearMethodBase):  # type: ignore[misc]
    """A layer of which at least one shard is compressed.

    After loading the layer's `segments` hold the weights, 2:4 in fragment order, and what was
    loaded is let go. Weights that vLLM loads again go into the same memory, which CUDA graphs know.
    """

    def __init__(
        self,
        names: Sequence[str],
        layers: CompactLayers,
        complete: Check,
        reloadable: Check = lambda: None,
    ) -> None:
        self._names = list(names)
        self._layers = layers
        self._complete = complete
        self._reloadable = reloadable

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Make room for the tensors of this rank.

        Raises:
            SecateurError: a matrix cannot be divided or fused so; names it.
        """
        shards = shards_of(
            self._names,
            self._layers,
            output_partition_sizes,
            input_size_per_partition,
            _whole_rows(layer, output_partition_sizes),
            input_size,
        )
        self._check_dtype(shards, params_dtype)
        load = extra_weight_attrs["weight_loader"]
        _watch_bias(layer)
        layer.secateur_shards = shards
        for leaf in LEAVES:
            having = {i: shard for i, shard in enumerate(shards) if leaf in shard.shapes(i)}
            if not having:
                continue
            dtype = torch.uint8 if leaf == "indices" else params_dtype
            own = fused_down_loader(load) if leaf == "down" and len(shards) > 1 else load
            parameter = ShardedParameter.empty(leaf, having, dtype, own)
            if isinstance(layer, ReplicatedLinear):
                parameter.weight_loader = load_replicated
            if _weights_are_made_up():
                parameter.take_as_loaded()
            layer.register_parameter(leaf, parameter)

    @staticmethod
    def _check_dtype(shards: Sequence[Shard], dtype: torch.dtype) -> None:
        for shard in shards:
            is_24 = shard.spec is not None and shard.spec.kind != "low_rank"
            if is_24 and dtype not in PACKABLE_DTYPES:
                raise SecateurError(
                    f"{shard.name}: expected dtype bfloat16 or float16 for a 2:4 layer, got {dtype}"
                )

    def process_weights_after_loading(self, layer: Any) -> None:
        """Pack what was loaded; nothing, if nothing was since the last call.

        Raises:
            SecateurError: something was not loaded or is not legal, or a listed layer is not in
                the model; names it.
        """
        self._complete()
        shards: list[Shard] = layer.secateur_shards
        held = {leaf: getattr(layer, leaf) for leaf in LEAVES if hasattr(layer, leaf)}
        if not held:
            return
        missing = [name for parameter in held.values() for name in parameter.missing]
        _require_loaded(layer, missing, shards[0].name)
        self._check_bias(layer, shards)
        loaded = []
        for index, shard in enumerate(shards):
            tensors = {leaf: held[leaf].block(index).detach() for leaf in shard.shapes(index)}
            if shard.spec is not None and shard.spec.rank is not None:
                tensors["down"] = held["down"].block(shard.down_of).detach()
            loaded.append(LoadedShard(shard, tensors))
        bias = _added_bias(layer)
        segments = build_segments(loaded, bias)
        for leaf, parameter in held.items():
            parameter.loaded.clear()
            delattr(layer, leaf)
        layer.secateur_adds_bias = bias is not None
        if hasattr(layer, "segments"):
            self._reloadable()
            replace_values(layer.segments, segments)
            return
        # A tuple, not child modules: reloading would take their tensors away for its own.
        layer.segments = tuple(segments)
        _show_device(layer, next(tensors_of(segments)))

    @staticmethod
    def _check_bias(layer: Any, shards: Sequence[Shard]) -> None:
        has_bias = getattr(layer, "bias", None) is not None
        for shard in shards:
            if shard.spec is not None and shard.spec.bias != has_bias:
                raise SecateurError(
                    f"{shard.name}: expected a layer {'with' if shard.spec.bias else 'without'} "
                    f"bias as in the checkpoint, vLLM's is {'with' if has_bias else 'without'}"
                )

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[..., K] -> [..., N] of this rank; the bias was taken in after loading.

        Raises:
            SecateurError: vLLM adds a bias where none was expected, or none where one was.
        """
        if (bias is not None) != layer.secateur_adds_bias:
            raise SecateurError(
                f"{layer.secateur_shards[0].name}: expected to be called "
                f"{'with' if layer.secateur_adds_bias else 'without'} the layer's bias"
            )
        return apply_segments(layer.segments, x)


@register_weight_loader_v2_supported_method
class SecateurDenseMethod(UnquantizedLinearMethod):  # type: ignore[misc]
    """A dense layer as vLLM has it, but missing weights are an error."""

    # vLLM's own layer takes weights that another process loaded: those were not watched.
    supports_pre_processed_weights = False

    def __init__(self, name: str, complete: Check) -> None:
        super().__init__()
        self._name = name
        self._complete = complete

    def create_weights(self, layer: Any, *sizes: Any, weight_loader: Any, **named: Any) -> None:
        """Make room for the weight; arguments are vLLM's."""
        layer.secateur_watch = _watched(weight_loader)
        _watch_bias(layer)
        super().create_weights(layer, *sizes, weight_loader=layer.secateur_watch, **named)

    def process_weights_after_loading(self, layer: Any) -> None:
        """Check that all was loaded; nothing, if nothing was since the last call.

        Raises:
            SecateurError: something was not, or a listed layer is not in the model; names it.
        """
        self._complete()
        bias_watch = _bias_watch(layer)
        if layer.secateur_watch.is_idle and (bias_watch is None or bias_watch.is_idle):
            return
        # Some models put a loader of their own in its place: nothing is known then.
        watched = getattr(layer.weight, "weight_loader", None) is layer.secateur_watch
        complete = layer.secateur_watch.is_complete(_num_shards(layer))
        missing = [f"{self._name}.weight"] if watched and not complete else []
        _require_loaded(layer, missing, self._name)
        layer.secateur_watch.forget()
        super().process_weights_after_loading(layer)


class SecateurRemovedMethod(LinearMethodBase):  # type: ignore[misc]
    """A layer of an attention or MLP that was removed: zeros, whatever comes in.

    The part's output is zero then, as in the pruned model; vLLM still runs what lies between its
    linear layers, and keeps the attention's cache.
    """

    def __init__(self, complete: Check) -> None:
        self._complete = complete

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        *sizes: Any,
        **named: Any,
    ) -> None:
        """No weights are there."""
        layer.secateur_rows = sum(output_partition_sizes)
        _show_device(layer, torch.empty(0))

    def process_weights_after_loading(self, layer: Any) -> None:
        """Clear a bias, which a layer may hand out beside its product."""
        self._complete()
        if getattr(layer, "bias", None) is not None:
            layer.bias.data.zero_()

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[..., K] -> zeros [..., N] of this rank."""
        return x.new_zeros((*x.shape[:-1], layer.secateur_rows))


def _whole_rows(layer: Any, own_rows: Sequence[int]) -> list[int]:
    """Rows of every matrix on all ranks together: what the checkpoint holds."""
    if hasattr(layer, "total_num_kv_heads"):
        heads = (layer.total_num_heads, layer.total_num_kv_heads, layer.total_num_kv_heads)
        widths = (layer.head_size, layer.head_size, getattr(layer, "v_head_size", layer.head_size))
        return [count * width for count, width in zip(heads, widths, strict=True)]
    sizes = getattr(layer, "output_sizes", None)
    return list(sizes) if sizes else [layer.output_size] * len(own_rows)


def _num_shards(layer: Any) -> int:
    return len(getattr(layer, "output_sizes", None) or (0,))


def _watch_bias(layer: Any) -> None:
    # vLLM gives the bias, which it makes afterwards, this loader.
    layer.weight_loader = _watched(layer.weight_loader)


def _watched(load: Loader) -> WatchedLoader:
    watched = WatchedLoader(load)
    if _weights_are_made_up():
        watched.take_as_loaded()
    return watched


def _weights_are_made_up() -> bool:
    """Whether vLLM fills parameters with random numbers itself, as benchmarks ask for."""
    return bool(get_current_vllm_config().load_config.load_format == "dummy")


def _require_loaded(layer: Any, missing: Sequence[str], name: str) -> None:
    """Raise SecateurError unless all tensors of a layer were in the checkpoint."""
    missing = list(missing)
    watch = _bias_watch(layer)
    if watch is not None and not watch.is_complete(_num_shards(layer)):
        missing.append(
            f"{name.rpartition('.')[0]}.*.bias" if _num_shards(layer) > 1 else f"{name}.bias"
        )
    if missing:
        raise SecateurError(f"the checkpoint does not hold {', '.join(missing)}")
    if watch is not None:
        watch.forget()


def _bias_watch(layer: Any) -> WatchedLoader | None:
    watch = getattr(getattr(layer, "bias", None), "weight_loader", None)
    return watch if isinstance(watch, WatchedLoader) else None


def _show_device(layer: Any, held: Tensor) -> None:
    # vLLM's LoRA and MLA ask a tensor of this name where the layer's weights are.
    layer.weight_packed = held.detach()


def _added_bias(layer: Any) -> Tensor | None:
    """The bias that vLLM passes to `apply`: of one rank only where outputs are summed."""
    bias: Tensor | None = getattr(layer, "bias", None)
    elsewhere = isinstance(layer, RowParallelLinear) and layer.tp_rank > 0
    return None if layer.skip_bias_add or elsewhere else bias
