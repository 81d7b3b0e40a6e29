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
from torch.utils._pytree import tree_leaves

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
            and _alike(layer, other)
            and not _may_be_written_to(other, place, layer, node)
        ):
            return layer
    return None


def _takes_a_residual(node: Node) -> bool:
    index = _RESIDUAL.get(node.target)
    return index is not None and index < len(node.args) and node.args[index] is None


def _may_be_written_to(residual: Node, place: dict[Node, int], after: Node, before: Node) -> bool:
    """Whether anything between two nodes uses memory of the residual: it, a view, what it views."""
    memory = _memory_of(residual)
    return any(
        memory & _memory_of(used)
        for node in place
        if place[after] < place[node] < place[before]
        for used in node.all_input_nodes
    )


def _memory_of(node: Node) -> set[int]:
    """Of the tensors that a node stands for. As torch.compile traces, views share their storage."""
    values = tree_leaves(node.meta.get("example_value"))
    return {value.untyped_storage()._cdata for value in values if isinstance(value, Tensor)}


def _alike(one: Node, other: Node) -> bool:
    first, second = (node.meta.get("example_value") for node in (one, other))
    if not (isinstance(first, Tensor) and isinstance(second, Tensor)):
        return False
    return first.shape == second.shape and first.dtype == second.dtype
