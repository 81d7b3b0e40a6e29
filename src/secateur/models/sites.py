"""Weight sites: the matrices inside a block that multiply tokens, whatever class holds them."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from secateur.models.blocks import BlockList


@dataclass(frozen=True, eq=False)
class WeightSite:
    """One matrix [N, K] = [out_features, in_features] that multiplies tokens.

    It may live in an `nn.Linear`, in a class that stores it as [K, N] (GPT-2's Conv1D), or as one
    expert's slice of a 3-D parameter.
    """

    name: str
    """Dotted, such as `model.layers.0.self_attn.q_proj`; a slice of a fused parameter is
    `model.layers.0.mlp.experts.3.down_proj`."""
    module: nn.Module
    parameter_name: str
    stored_transposed: bool
    expert: int | None = None

    @property
    def class_name(self) -> str:
        """The class that holds the matrix, as `targets` and `ignore` may name it."""
        return type(self.module).__name__

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter that the matrix is stored in."""
        parameter = getattr(self.module, self.parameter_name)
        assert isinstance(parameter, nn.Parameter)
        return parameter

    @property
    def weight(self) -> Tensor:
        """The matrix [N, K] as a view: writing to it changes the model."""
        return self.part_of(self.parameter.data)

    def part_of(self, value: Tensor) -> Tensor:
        """The matrix's part [N, K], a view, of a tensor in the shape of its parameter."""
        matrix = value if self.expert is None else value[self.expert]
        return matrix.T if self.stored_transposed else matrix

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        rows, columns = self.weight.shape
        return rows, columns

    @property
    def is_expert(self) -> bool:
        """Whether only the tokens routed to it reach this matrix."""
        return self.expert is not None or ".experts." in self.name

    @property
    def expert_name(self) -> str | None:
        """The expert that the matrix is a part of, such as `model.layers.0.mlp.experts.3`."""
        if self.expert is not None:
            return self.name.rpartition(".")[0]
        found = re.match(r".*?\.experts\.\d+(?=\.)", self.name)
        return found.group() if found else None


def renamed(site: WeightSite, block_name: str) -> WeightSite:
    """The site under the name that it has once its block is called `block_name`."""
    parts = site.name.split(".")
    depth = block_name.count(".") + 1
    return replace(site, name=".".join([block_name, *parts[depth:]]))


def find_sites(blocks: BlockList, index: int) -> list[WeightSite]:
    """The weight sites of one block, in the order in which its modules are defined.

    Routers are left out: linears that stand directly beside a child called `experts`. So are
    linears of which models need the weight itself: see `is_step_projection`, `is_head_weighing`.
    """
    block = blocks.modules[index]
    sites: list[WeightSite] = []
    for name, module in block.named_modules(prefix=blocks.block_name(index)):
        relative = name.removeprefix(blocks.block_name(index)).lstrip(".")
        left_alone = (_is_router, is_step_projection, is_head_weighing)
        if not any(is_left_alone(block, relative) for is_left_alone in left_alone):
            sites.extend(_sites_of(name, module))
    return sites


def _sites_of(name: str, module: nn.Module) -> Iterator[WeightSite]:
    if isinstance(module, nn.Linear):
        yield WeightSite(name, module, "weight", stored_transposed=False)
    elif transposed_weight(module) is not None:
        yield WeightSite(name, module, "weight", stored_transposed=True)
    elif not isinstance(module, nn.modules.conv._ConvNd):
        yield from _expert_sites(name, module)


def transposed_weight(module: nn.Module) -> nn.Parameter | None:
    """The weight [K, N] of a layer such as GPT-2's Conv1D, recognised by its number `nf` = N."""
    weight = getattr(module, "weight", None)
    if isinstance(weight, nn.Parameter) and weight.ndim == 2 and hasattr(module, "nf"):
        return weight if weight.shape[1] == module.nf else None
    return None


def _expert_sites(name: str, module: nn.Module) -> Iterator[WeightSite]:
    """Fused experts: parameters [num_experts, N, K] or, turned, [num_experts, K, N]."""
    stacks = {n: p for n, p in module.named_parameters(recurse=False) if p.ndim == 3}
    turned = _is_turned(name, module, list(stacks.values()))
    if turned is None:
        return  # which of the last two dimensions multiplies tokens is not known
    for parameter_name, parameter in stacks.items():
        for expert in range(len(parameter)):
            yield WeightSite(
                f"{name}.{expert}.{parameter_name}", module, parameter_name, turned, expert
            )


def _is_turned(name: str, module: nn.Module, stacks: Sequence[nn.Parameter]) -> bool | None:
    """Whether fused experts are stored [num_experts, K, N]; None where nothing tells.

    Most of transformers' classes say so. Of others only experts of two matrices are known, gate
    and up in one, then down: what the first gives, halved by the gate, enters the second, and what
    the second gives is as wide as what entered the first. Only one way of reading fits that.
    """
    if hasattr(module, "is_transposed"):
        return bool(module.is_transposed)
    if "experts" not in name.rpartition(".")[2] or len(stacks) != 2:
        return None
    (_, first, second), (_, third, fourth) = (stack.shape for stack in stacks)
    plain = first == 2 * fourth and second == third
    turned = second == 2 * third and first == fourth
    return turned if plain != turned else None


def _is_router(block: nn.Module, relative_name: str) -> bool:
    if not relative_name or not isinstance(linear := block.get_submodule(relative_name), nn.Linear):
        return False
    parts = relative_name.split(".")
    if "router" in parts:
        return True
    for depth in range(len(parts)):
        experts = getattr(block.get_submodule(".".join(parts[:depth])), "experts", None)
        if isinstance(experts, nn.Module) and parts[depth] != "experts":
            is_beside = depth == len(parts) - 1
            as_many = linear.out_features == _num_experts(experts)
            return is_beside or (as_many and "gate" in parts[depth:-1])
    return False


def is_step_projection(root: nn.Module, name: str) -> bool:
    """Whether a module makes the time steps of a selective state space (Mamba, Jamba).

    It stands beside the decay `A_log` [N, states], one row of which each of its outputs scales.
    Such models take its weight and bias apart, so that no hook sees what reaches it and nothing can
    stand in its place; it is the smallest matrix of its block by far.
    """
    parent, _, leaf = name.rpartition(".")
    decay = getattr(root.get_submodule(parent), "A_log", None)
    module = root.get_submodule(name)
    return (
        leaf == "dt_proj"
        and isinstance(module, nn.Linear)
        and isinstance(decay, nn.Parameter)
        and decay.ndim == 2
        and len(decay) == module.out_features
    )


def is_head_weighing(root: nn.Module, name: str) -> bool:
    """Whether a module weighs the heads of an indexer, of which each output is one.

    An indexer chooses the tokens that sparse attention sees (DeepSeek-V3.2, GLM-5). Like a router
    this part of it is small and decides much; and most of these models look up the dtype of its
    weight, so that no layer without one can stand in its place.
    """
    return name.rpartition(".")[2] == "weights_proj" and isinstance(
        root.get_submodule(name), nn.Linear
    )


def _num_experts(experts: nn.Module) -> int:
    if isinstance(experts, nn.ModuleList):
        return len(experts)
    return next((len(p) for p in experts.parameters(recurse=False) if p.ndim == 3), 0)
