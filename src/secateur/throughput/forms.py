"""Compressed variants of a model with random weights, made in memory.

Only their speed means anything: which weights go is chosen by size or at random.
"""

from dataclasses import dataclass

import torch
from torch import nn

from secateur.depth.drop import drop_blocks
from secateur.errors import SecateurError
from secateur.mask.grouped import select_grouped
from secateur.models.blocks import find_blocks
from secateur.models.inventory import take_inventory
from secateur.models.matrix_types import matrix_type
from secateur.models.sites import WeightSite
from secateur.models.swap import convert_sparse24, pack_layers, replace_module
from secateur.modules import LowRankLinear, SparseLowRankLinear
from secateur.modules.weight24 import PACKABLE_DTYPES
from secateur_kernels.layouts import Canonical24, LowRank
from secateur_kernels.layouts.low_rank import RANK_STEP

PARTS = ("dense", "2:4", "low-rank", "depth")
_MLP = ("mlp_in", "mlp_up", "mlp_out")


@dataclass(frozen=True)
class Form:
    """What is done to a model. None of the three leaves it dense."""

    sparse24: bool = False
    """2:4 in every matrix of the blocks."""
    low_rank: bool = False
    """Factors instead of MLP matrices, or beside the 2:4 weights of the MLP."""
    depth: bool = False
    """Fewer blocks."""


def parse_form(text: str) -> Form:
    """`dense`, or `2:4`, `low-rank` and `depth` joined by `+`.

    Raises:
        SecateurError: a part is unknown, comes twice, or stands beside `dense`.
    """
    parts = [part.strip() for part in text.split("+")]
    fits = set(parts) <= set(PARTS) and len(set(parts)) == len(parts)
    if not fits or ("dense" in parts and len(parts) > 1):
        raise SecateurError(
            f"expected a form: dense, or some of {', '.join(PARTS[1:])} joined by +, got {text!r}"
        )
    return Form("2:4" in parts, "low-rank" in parts, "depth" in parts)


@torch.no_grad()
def apply_form(
    model: nn.Module, form: Form, *, rank_fraction: float = 0.25, depth_kept: float = 0.75
) -> None:
    """Change a model in place; no layer needs another one's memory.

    Args:
        model: with dense linear layers in its blocks. 2:4 layers are packed where their dtype is
            bf16 or fp16.
        form: what is done.
        rank_fraction: rank of the factors, as a part of a matrix's smaller side; down to a
            multiple of 16.
        depth_kept: part of the blocks that stay; the first and the last do.

    Raises:
        SecateurError: a number is out of range, no matrix is of an MLP, or a form needs another
            dtype.
    """
    for name, value in (("rank fraction", rank_fraction), ("part of the blocks", depth_kept)):
        if not 0 < value <= 1:
            raise SecateurError(f"expected a {name} above 0 and at most 1, got {value}")
    if form.depth:
        _drop(model, depth_kept)
    if form.low_rank:
        _factor(model, rank_fraction, form.sparse24)
    if form.sparse24:
        for site in _linear_sites(model):
            site.weight.mul_(select_grouped(site.weight.abs(), 2, 4))
        convert_sparse24(model)
        pack_layers(model)


def _drop(model: nn.Module, kept: float) -> None:
    blocks = find_blocks(model)
    count = len(blocks) - max(1, round(kept * len(blocks)))
    # Spread over the middle, as published methods do: never the first and the last block.
    middle = range(1, len(blocks) - 1)
    if count > len(middle):
        raise SecateurError(f"cannot drop {count} of {len(blocks)} blocks: first and last stay")
    step = len(middle) / max(1, count)
    drop_blocks(model, blocks, [middle[int(step * index)] for index in range(count)])


def _linear_sites(model: nn.Module) -> list[WeightSite]:
    sites = take_inventory(model).all_sites
    return [site for site in sites if type(site.module) is nn.Linear and not site.is_expert]


def _factor(model: nn.Module, fraction: float, beside_24: bool) -> None:
    sites = [site for site in _linear_sites(model) if matrix_type(site) in _MLP]
    if not sites:
        raise SecateurError(f"found no linear layer of an MLP in {type(model).__name__} to factor")
    for site in sites:
        factors = _random_factors(site.weight, fraction)
        bias = getattr(site.module, "bias", None)
        if not beside_24:
            replace_module(model, site.name, LowRankLinear.from_factors(factors, bias))
            continue
        if site.weight.dtype not in PACKABLE_DTYPES:
            raise SecateurError(
                "expected bfloat16 or float16 for 2:4+low-rank, got "
                f"{str(site.weight.dtype).removeprefix('torch.')}"
            )
        kept = Canonical24.from_dense(site.weight, select_grouped(site.weight.abs(), 2, 4))
        replace_module(model, site.name, SparseLowRankLinear.from_parts(kept, factors, bias))


def _random_factors(weight: torch.Tensor, fraction: float) -> LowRank:
    """Factors whose product has entries of the size of the weight's."""
    smaller = min(weight.shape)
    rank = min(smaller, max(RANK_STEP, int(fraction * smaller) // RANK_STEP * RANK_STEP))
    up = torch.randn_like(weight[:, :1].expand(-1, rank)) * rank**-0.5
    down = torch.randn_like(weight[:1].expand(rank, -1)) * weight.float().std().to(weight.dtype)
    return LowRank.from_factors(up.contiguous(), down.contiguous())
