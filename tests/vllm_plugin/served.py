"""vLLM's own linear layers with the plugin's methods, loaded as vLLM's models load them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config
from vllm.distributed import (
    destroy_distributed_environment,
    destroy_model_parallel,
    init_distributed_environment,
    initialize_model_parallel,
)
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from vllm_plugin.stored import DTYPE, Stored, layer_list

from secateur.integrations.vllm.config import SecateurVllmConfig

FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
BLOCK = "model.layers.0"
HEADS, KV_HEADS, HEAD_SIZE = 4, 2, 16
SHARD_IDS: dict[str, tuple[str | int, ...]] = {"qkv_proj": ("q", "k", "v"), "gate_up_proj": (0, 1)}


@contextmanager
def ranks(file: Path, rank: int = 0, size: int = 1) -> Iterator[None]:
    """vLLM's groups of processes, met by a file."""
    with set_current_vllm_config(VllmConfig(device_config=DeviceConfig(device="cpu"))):
        init_distributed_environment(size, rank, f"file://{file}", rank, "gloo")
        initialize_model_parallel(size)
        try:
            yield
        finally:
            destroy_model_parallel()
            destroy_distributed_environment()


def config_of(layers: Mapping[str, Stored], **more: Any) -> SecateurVllmConfig:
    plain = {"quant_method": "secateur", "format_version": 1, "layers": layer_list(layers), **more}
    config = SecateurVllmConfig.from_config(plain)
    config.packed_modules_mapping = FUSED
    return config


def build(name: str, columns: int, rows: Sequence[int], config: Any, **more: Any) -> nn.Module:
    """The layer of vLLM that a Llama model has by this name."""
    options = {"params_dtype": DTYPE, "quant_config": config, "prefix": f"{BLOCK}.{name}"}
    kv_heads = more.pop("kv_heads", KV_HEADS)
    options = {"bias": False, **options, **more}
    last = name.rpartition(".")[2]
    if last == "qkv_proj":
        return QKVParallelLinear(columns, HEAD_SIZE, HEADS, kv_heads, **options)
    if last == "gate_up_proj":
        return MergedColumnParallelLinear(columns, list(rows), **options)
    if last in ("o_proj", "down_proj"):
        return RowParallelLinear(columns, rows[0], **options)
    if last == "router":
        return ReplicatedLinear(columns, rows[0], **options)
    return ColumnParallelLinear(columns, rows[0], **options)


def load(layer: nn.Module, name: str, layers: Mapping[str, Stored]) -> None:
    """Give every tensor to its parameter's loader, with the shard that it belongs to."""
    parameters = dict(layer.named_parameters())
    parent, _, last = f"{BLOCK}.{name}".rpartition(".")
    parts = FUSED.get(last, [last])
    for index, part in enumerate(parts):
        shard = (SHARD_IDS[last][index],) if last in FUSED else ()
        for leaf, tensor in layers[f"{parent}.{part}"].tensors.items():
            parameter = parameters[leaf]
            parameter.weight_loader(parameter, tensor, *shard)


def finish(layer: nn.Module) -> nn.Module:
    layer.quant_method.process_weights_after_loading(layer)
    return layer


def inputs(columns: int, tokens: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(columns)
    return torch.randn(tokens, columns, generator=generator).to(DTYPE)
