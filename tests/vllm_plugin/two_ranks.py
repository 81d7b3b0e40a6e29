"""What each of two processes does: vLLM's layers with its share of the weights.

A file of its own, so that a process can import it by name.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from vllm_plugin.served import BLOCK, build, config_of, finish, inputs, load, ranks
from vllm_plugin.stored import Stored, stored

KINDS = ("sparse24", "low_rank", "sparse24_low_rank", "dense")
ROW_COLUMNS = 48
QKV = {
    "same": ("sparse24", "sparse24", "sparse24"),
    "factors": ("low_rank", "low_rank", "low_rank"),
    "mixed": ("sparse24_low_rank", "dense", "low_rank"),
}


def attention(kinds: tuple[str, ...], kv_heads: int) -> dict[str, Stored]:
    """q_proj, k_proj and v_proj."""
    rows = (64, 16 * kv_heads, 16 * kv_heads)
    return {
        f"{BLOCK}.self_attn.{part}_proj": stored(kind, count, 36, bias=True, seed=index)
        for index, (part, kind, count) in enumerate(zip("qkv", kinds, rows, strict=True))
    }


def gate_up(kinds: tuple[str, ...]) -> dict[str, Stored]:
    return {
        f"{BLOCK}.mlp.{part}_proj": stored(kind, 24, 20, rank, seed=rank)
        for part, kind, rank in zip(("gate", "up"), kinds, (5, 33), strict=True)
    }


def single(name: str, kind: str, rows: int, columns: int) -> dict[str, Stored]:
    return {f"{BLOCK}.{name}": stored(kind, rows, columns, bias=True)}


def cases() -> dict[str, tuple[str, dict[str, Stored]]]:
    """Case -> name of vLLM's layer, and the layers of the checkpoint in it."""
    found: dict[str, tuple[str, dict[str, Stored]]] = {}
    for kind in KINDS:
        found[f"column {kind}"] = ("mlp.fc1", single("mlp.fc1", kind, 40, 52))
        row = single("self_attn.o_proj", kind, 36, ROW_COLUMNS)
        found[f"row {kind}"] = ("self_attn.o_proj", row)
        found[f"gate_up {kind}"] = ("mlp.gate_up_proj", gate_up((kind, "sparse24")))
    for label, kinds in QKV.items():
        for kv_heads in (2, 1):
            layers = attention(kinds, kv_heads)
            found[f"qkv {label} {kv_heads}"] = ("self_attn.qkv_proj", layers)
    return found


def serve(name: str, layers: Mapping[str, Stored], rank: int) -> dict[str, Tensor]:
    """Outputs and weights of one layer on one rank."""
    other = f"{BLOCK}.mlp.other"
    config = config_of({**layers, other: stored("sparse24", 16, 16)})
    build("mlp.other", 16, (16,), config)
    first = next(iter(layers.values())).tensors
    columns = _columns(next(iter(layers.values())))
    rows = [_rows(layer) for layer in layers.values()]
    more = {"kv_heads": rows[1] // 16} if name.endswith("qkv_proj") else {}
    layer = build(name, columns, rows, config, bias="bias" in first, **more)
    load(layer, name, layers)
    finish(layer)
    x = inputs(columns)
    if name.endswith("o_proj"):
        x = x.chunk(2, dim=1)[rank].contiguous()
    return {"y": layer(x)[0], **_weights(layer)}


def _rows(layer: Stored) -> int:
    return len(layer.tensors["up"] if "up" in layer.tensors else layer.tensors["weight"])


def _columns(layer: Stored) -> int:
    if "down" in layer.tensors:
        return layer.tensors["down"].shape[1]
    return layer.tensors["weight"].shape[1] * (1 if layer.spec is None else 2)


def _weights(layer: nn.Module) -> dict[str, Tensor]:
    """The 2:4 and dense weights that a layer holds, side by side."""
    held = []
    for segment in getattr(layer, "segments", [layer]):
        if hasattr(segment, "dense_weight"):
            held.append(segment.dense_weight())
        elif getattr(segment, "weight", None) is not None and segment.weight.numel():
            held.append(segment.weight.detach())
    return {"weights": torch.cat(held)} if held else {}


def work(rank: int, folder: str) -> None:
    """Serve all cases as one of two ranks; results go to a file."""
    torch.set_num_threads(1)
    # By this name vLLM's builds for CPUs find the memory that ranks share.
    place = Path(folder)
    os.environ["VLLM_DIST_IDENT"] = f"{place.parent.name}-{place.name}"
    with ranks(Path(folder) / "meeting", rank, 2):
        results = {case: serve(name, layers, rank) for case, (name, layers) in cases().items()}
        torch.save(results, Path(folder) / f"rank{rank}.pt")
