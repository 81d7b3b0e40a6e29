"""Compiled code in which compressed layers add the residual themselves, as they round their sums.

A block ends in `residual + down(x)`. As two steps that is one more kernel for every block, which
reads and writes again what the layer has just written.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._dynamo import lookup_backend
from torch.fx import GraphModule, Node

import secateur_kernels  # noqa: F401  (defines the operators)

_LAYERS: tuple[Any, ...] = (
    torch.ops.secateur.sparse24_linear,
    torch.ops.secateur.low_rank_linear,
    torch.ops.secateur.sparse24_low_rank_linear,
)
# Which argument of an operator is the residual.
_RESIDUAL: dict[Any, int] = {
    target: [argument.name for argument in op.default._schema.arguments].index("residual")
    for op in _LAYERS
    for target in (op, op.default)
}
_SUMS = (operator.add, torch.add)

COMPILER: Any = "inductor"
"""What compiles the graph then: a backend of torch.compile, or its name."""


def compiled_with_residuals(graph: GraphModule, examples: Sequence[Tensor]) -> Callable[..., Any]:
    """A backend of `torch.compile`: `fuse_residuals`, then the compiler."""
    fuse_residuals(graph)
    compiled: Callable[..., Any] = lookup_backend(COMPILER)(graph, list(examples))
    return compiled


def fuse_residuals(graph: GraphModule) -> int:
    """Give what is added to the output of a compressed layer, and to nothing else, to that layer.

    Results are then rounded once instead of twice.

    Args:
        graph: as torch.compile traced it; changed in place.

    Returns:
        The number of sums that went.
    """
    place = {node: index for index, node in enumerate(graph.graph.nodes)}
    gone = 0
    for node in list(graph.graph.nodes):
        layer = _layer_summed(node, place)
        if layer is None:
            continue
        (residual,) = (part for part in node.args if part is not layer)
        layer.update_arg(_RESIDUAL[layer.target], residual)
        node.replace_all_uses_with(layer)
        graph.graph.erase_node(node)
        gone += 1
    if gone:
        graph.recompile()
    return gone


def _layer_summed(node: Node, place: dict[Node, int]) -> Node | None:
    """The layer that can take over a sum, if the node is one."""
    if node.target not in _SUMS or node.kwargs or len(node.args) != 2:
        return None
    for layer, other in (node.args, node.args[::-1]):
        if (
            isinstance(layer, Node)
            and isinstance(other, Node)
            and _takes_a_residual(layer)
            and len(layer.users) == 1
            and place[other] < place[layer]
            # Nobody may have written to it by then.
            and not any(place[layer] < place[user] < place[node] for user in other.users)
            and _alike(layer, other)
        ):
            return layer
    return None


def _takes_a_residual(node: Node) -> bool:
    index = _RESIDUAL.get(node.target)
    return index is not None and index < len(node.args) and node.args[index] is None


def _alike(one: Node, other: Node) -> bool:
    first, second = (node.meta.get("example_value") for node in (one, other))
    if not (isinstance(first, Tensor) and isinstance(second, Tensor)):
        return False
    return first.shape == second.shape and first.dtype == second.dtype
