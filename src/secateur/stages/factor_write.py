"""Put factors into the model: as layers, or multiplied back into the matrix."""

from collections.abc import Sequence

from torch import Tensor, nn

from secateur.models.sites import WeightSite
from secateur.models.swap import replace_module
from secateur.modules import LowRankLinear, SparseLowRankLinear
from secateur.recipe import FactorStage
from secateur.stages.factor_group import Factored, FactorGroup
from secateur_kernels.layouts import Canonical24, LowRank


def write_factored(
    model: nn.Module, group: FactorGroup, factored: Sequence[Factored], stage: FactorStage
) -> list[int]:
    """Change the model.

    Args:
        model: holds the group's sites.
        group: the matrices.
        factored: what each becomes.
        stage: says in which form.

    Returns:
        values stored for each matrix; a shared `down` counts for the first.
    """
    if not stage.writes_factors:
        for site, part in zip(group.sites, factored, strict=True):
            site.weight.copy_(part.dense().to(site.parameter.dtype))
        return [site.shape[0] * site.shape[1] for site in group.sites]
    leader: LowRankLinear | None = None
    stored = []
    for site, part in zip(group.sites, factored, strict=True):
        layer = _layer(site, part, leader)
        layer.to(site.parameter.device)
        layer.train(site.module.training)
        layer.requires_grad_(site.parameter.requires_grad)
        # Sites name the old layer until the run ends; its weights need not stay for as long.
        replace_module(model, site.name, layer).to("meta")
        stored.append(_stored(layer, site, part))
        if len(group.sites) > 1 and leader is None:
            assert isinstance(layer, LowRankLinear)
            leader = layer
    return stored


def _layer(
    site: WeightSite, part: Factored, leader: LowRankLinear | None
) -> LowRankLinear | SparseLowRankLinear:
    dtype = site.parameter.dtype
    factors = LowRank.from_factors(part.factors.up.to(dtype), part.factors.down.to(dtype))
    bias: Tensor | None = getattr(site.module, "bias", None)
    if part.sparse is None:
        return LowRankLinear.from_factors(factors, bias, shares_down_with=leader)
    weight = Canonical24.from_dense(part.sparse.to(dtype), part.keep_mask)
    return SparseLowRankLinear.from_parts(weight, factors, bias)


def _stored(layer: nn.Module, site: WeightSite, part: Factored) -> int:
    own = [p.numel() for name, p in layer.named_parameters() if name != "bias"]
    if part.sparse is None:
        return sum(own)
    return sum(own) + site.shape[0] * site.shape[1] // 2
