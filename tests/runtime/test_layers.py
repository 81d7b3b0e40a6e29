import torch
from torch import nn

from secateur.modules import LowRankLinear, Sparse24Linear, SparseLowRankLinear
from secateur.runtime.layers import facts_of
from secateur_kernels.layouts import Canonical24, LowRank


def test_compressed_layers_are_called_by_their_form() -> None:
    dense = nn.Linear(32, 64, dtype=torch.bfloat16)
    canonical = Canonical24.from_dense(torch.zeros(64, 32, dtype=torch.bfloat16))
    factors = LowRank.from_dense(dense.weight.detach(), 16)
    layers = {
        "low-rank": LowRankLinear.from_factors(factors),
        "2:4": Sparse24Linear.from_weight(canonical, None),
        "2:4+low-rank": SparseLowRankLinear.from_parts(canonical, factors, None),
        "dense": dense,
    }
    for form, layer in layers.items():
        facts = facts_of("name", layer)
        assert (facts.name, facts.form, facts.shape) == ("name", form, (64, 32))
        assert facts.rank == (16 if "low-rank" in form else 0)
