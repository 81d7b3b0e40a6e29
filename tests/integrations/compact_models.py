"""Tiny models of the families with compressed layers, and ways to compare and to spoil them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from families import VOCAB_SIZE, tiny_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from secateur.integrations.transformers_quantizer import mark_compressed
from secateur.models.inventory import take_inventory
from secateur.models.sites import WeightSite
from secateur.models.swap import convert_sparse24, pack_layers, replace_module
from secateur.modules import LowRankLinear, SparseLowRankLinear
from secateur_kernels.layouts import Canonical24, LowRank

RANK = 16
SINGLE = "model.safetensors"
IDS = (torch.arange(1, 15) * 37 % VOCAB_SIZE).view(1, -1)


def in_dtype(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Parameters only: buffers such as rotary frequencies are not in checkpoints."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    return model


def random_mask(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """bool [N, K], two of four kept."""
    rows, columns = shape
    order = torch.rand(rows, columns // 4, 4, generator=generator).argsort(dim=2)
    return (order < 2).view(rows, columns)


def pruned(family: str, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    """Dense layers with zeros: every matrix is 2:4."""
    model = in_dtype(tiny_model(family), dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for site in take_inventory(model).all_sites:
            site.weight.masked_fill_(~random_mask(site.shape, generator), 0.0)
    return model


def taking_a_weight(dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    """Multiplies by the weight of down_proj, which is 2:4, without calling the layer."""
    model = in_dtype(tiny_model("llama", 1), dtype)
    mlp = model.model.layers[0].mlp
    mlp.down_proj.weight.data.view(-1, 4)[:, :2] = 0.0

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        return (mlp.act_fn(mlp.gate_proj(hidden)) * mlp.up_proj(hidden)) @ mlp.down_proj.weight.T

    mlp.forward = forward
    return model


def dense_sites(model: nn.Module) -> list[WeightSite]:
    return [site for site in take_inventory(model).all_sites if site.expert is None]


def make_low_rank(model: nn.Module, site: WeightSite) -> None:
    factors = LowRank.from_dense(site.weight.detach(), RANK)
    bias = getattr(site.module, "bias", None)
    replace_module(model, site.name, LowRankLinear.from_factors(factors, bias))


def make_both(model: nn.Module, site: WeightSite) -> None:
    generator = torch.Generator().manual_seed(2)
    weight = site.weight.detach()
    sparse = Canonical24.from_dense(weight, random_mask(site.shape, generator))
    factors = LowRank.from_dense(weight, RANK)
    bias = getattr(site.module, "bias", None)
    replace_module(model, site.name, SparseLowRankLinear.from_parts(sparse, factors, bias))


def compressed(
    family: str, kind: str = "sparse24", dtype: torch.dtype = torch.bfloat16
) -> PreTrainedModel:
    """A model in memory whose linear layers are all of one kind, or of all kinds (`mixed`)."""
    model = pruned(family, dtype)
    makers: dict[str, Callable[[nn.Module, WeightSite], None]] = {
        "low_rank": make_low_rank,
        "sparse24_low_rank": make_both,
    }
    sites = dense_sites(model)
    if kind == "mixed":
        for site in sites[::3]:
            make_low_rank(model, site)
        for site in sites[1::3]:
            make_both(model, site)
    for site in sites if kind in makers else []:
        makers[kind](model, site)
    convert_sparse24(model)
    pack_layers(model)
    mark_compressed(model)
    return model


def saved(model: PreTrainedModel, folder: Path, max_shard_size: str = "1GB") -> Path:
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def loaded(folder: Path, **options: Any) -> PreTrainedModel:
    """Loads by transformers alone; nothing may be missing or left over."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info.values()), info
    assert isinstance(model, PreTrainedModel)
    return model


def logits_of(model: nn.Module) -> Tensor:
    with torch.no_grad():
        output: Tensor = model(input_ids=IDS, use_cache=False).logits
    return output


def assert_same(left: nn.Module, right: nn.Module) -> None:
    """Bit for bit: every tensor of the state dict, and the logits."""
    states = left.state_dict(), right.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert tensor.dtype == states[1][name].dtype, name
        assert torch.equal(tensor, states[1][name]), name
    assert torch.equal(logits_of(left), logits_of(right))


def spoil(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of a folder with a single weight file."""
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the quantization_config of a folder."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config["quantization_config"])
    path.write_text(json.dumps(config))


def stored_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config
