"""What a model consists of: the sites that stages work on, and everything they must not touch."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn

from secateur.errors import SecateurError
from secateur.models.blocks import BlockList, find_blocks
from secateur.models.sites import WeightSite, find_sites, is_head_weighing, is_step_projection
from secateur.modules import LowRankLinear, Sparse24Linear, SparseLowRankLinear

_COMPRESSED = (LowRankLinear, Sparse24Linear, SparseLowRankLinear)


@dataclass(frozen=True)
class Unmatched:
    """A parameter that no stage touches."""

    name: str
    shape: tuple[int, ...]
    reason: str
    other_names: tuple[str, ...] = ()
    """Those it is tied to."""


@dataclass(frozen=True)
class Inventory:
    """The blocks, their weight sites, and the rest."""

    blocks: BlockList
    sites: tuple[tuple[WeightSite, ...], ...]
    """By block."""
    unmatched: tuple[Unmatched, ...]

    @property
    def all_sites(self) -> list[WeightSite]:
        """The sites of every block, first block first."""
        return [site for block_sites in self.sites for site in block_sites]

    @property
    def left_alone(self) -> dict[str, str]:
        """By module name: why no stage touches its matrix, or its vectors where it has none."""
        sites = {site.name for site in self.all_sites}
        reasons: dict[str, str] = {}
        for entry in sorted(self.unmatched, key=lambda entry: -len(entry.shape)):
            for name in (entry.name, *entry.other_names):
                module_name = name.rpartition(".")[0]
                if module_name not in sites:
                    reasons.setdefault(module_name, entry.reason)
        return reasons


def take_inventory(model: nn.Module) -> Inventory:
    """Find the blocks and weight sites of a model.

    A matrix whose parameter is also used under another name (tied) is no site, and neither is a
    compressed layer, nor what the family keeps in fp32 beside bf16 weights.

    Raises:
        SecateurError: no blocks, or neither a weight matrix nor a compressed layer in them.
    """
    blocks = find_blocks(model)
    tied = _tied_names(model)
    in_fp32 = _kept_in_fp32(model)
    sites = tuple(
        tuple(
            site
            for site in find_sites(blocks, index)
            if id(site.parameter) not in tied and not in_fp32(site.name)
        )
        for index in range(len(blocks))
    )
    has_compressed = any(isinstance(module, _COMPRESSED) for module in blocks.modules.modules())
    if not any(sites) and not has_compressed:
        raise SecateurError(
            f"found {len(blocks)} blocks at {blocks.name} in {type(model).__name__}, but no "
            "weight matrix in them that can be pruned"
        )
    return Inventory(blocks, sites, tuple(_unmatched(model, blocks, sites, tied)))


def _kept_in_fp32(model: nn.Module) -> Callable[[str], bool]:
    """Whether a module is among those that a family of transformers names for it, or in one."""
    # Those of the other list, `_keep_in_fp32_modules`, are bf16 beside bf16 weights.
    named: Iterable[str] | None = getattr(model, "_keep_in_fp32_modules_strict", None)
    if not named:
        return lambda _: False
    # Whole parts of names: "fn" does not stand for "ffn".
    parts = "|".join(re.escape(one.removesuffix(".weight")) for one in sorted(named))
    found = re.compile(rf"(^|\.)({parts})(\.|$)")
    return lambda name: found.search(name) is not None


def _tied_names(model: nn.Module) -> dict[int, list[str]]:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {key: value for key, value in names.items() if len(value) > 1}


def _unmatched(
    model: nn.Module,
    blocks: BlockList,
    sites: tuple[tuple[WeightSite, ...], ...],
    tied: dict[int, list[str]],
) -> list[Unmatched]:
    matched = {id(site.parameter) for block_sites in sites for site in block_sites}
    embeddings = _embedding_parameters(model)
    compressed = _compressed_parameters(model)
    rest = []
    for name, parameter in model.named_parameters():
        if id(parameter) not in matched:
            reason = compressed.get(id(parameter)) or _reason(
                model, name, parameter, blocks, embeddings, tied
            )
            others = tuple(other for other in tied.get(id(parameter), ()) if other != name)
            rest.append(Unmatched(name, tuple(parameter.shape), reason, others))
    return rest


def _embedding_parameters(model: nn.Module) -> set[int]:
    return {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
    }


def _compressed_parameters(model: nn.Module) -> dict[int, str]:
    """Why what compressed layers hold is no site; a packed 2:4 weight is no parameter at all."""
    reasons = {
        "weight": "kept values of a 2:4 layer",
        "down": "factors of a low-rank layer",
        "up": "factors of a low-rank layer",
    }
    return {
        id(parameter): reasons[name]
        for module in model.modules()
        if isinstance(module, _COMPRESSED)
        for name, parameter in module.named_parameters(recurse=False)
        if name in reasons
    }


def _reason(
    model: nn.Module,
    name: str,
    parameter: nn.Parameter,
    blocks: BlockList,
    embeddings: set[int],
    tied: dict[int, list[str]],
) -> str:
    if id(parameter) in tied:
        return "tied: " + " = ".join(tied[id(parameter)])
    if id(parameter) in embeddings:
        return "embedding"
    if parameter.ndim < 2:
        return "vector (norm or bias)"
    if not name.startswith(f"{blocks.name}."):
        return "outside the blocks (head or projection)"
    module_name = name.rpartition(".")[0]
    if is_head_weighing(model, module_name):
        return "weighs the heads of an indexer"
    if is_step_projection(model, module_name):
        return "time steps of a state space, multiplied without a call"
    if _kept_in_fp32(model)(module_name):
        return "kept in fp32 by its family"
    return "router or unknown kind of weight"
