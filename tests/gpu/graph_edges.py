"""The edges of a captured CUDA graph, asked of the driver."""

import ctypes
from collections import Counter
from dataclasses import dataclass

import torch

_PROGRAMMATIC = 1


class _EdgeData(ctypes.Structure):
    """CUgraphEdgeData of cuda.h."""

    _fields_ = (
        ("from_port", ctypes.c_ubyte),
        ("to_port", ctypes.c_ubyte),
        ("type", ctypes.c_ubyte),
        ("reserved", ctypes.c_ubyte * 5),
    )


@dataclass(frozen=True)
class Edge:
    """From a node to one that depends on it; nodes are handles."""

    source: int
    target: int
    programmatic: bool


def edges_of(graph: torch.cuda.CUDAGraph) -> list[Edge]:
    """All edges of a graph that was captured with `keep_graph`."""
    driver = ctypes.CDLL("libcuda.so.1")
    handle = ctypes.c_void_p(graph.raw_cuda_graph())
    count = ctypes.c_size_t()
    code = driver.cuGraphGetEdges_v2(handle, None, None, None, ctypes.byref(count))
    assert code == 0, f"cuGraphGetEdges_v2 returned {code}"
    sources, targets = ((ctypes.c_void_p * count.value)() for _ in range(2))
    data = (_EdgeData * count.value)()
    code = driver.cuGraphGetEdges_v2(handle, sources, targets, data, ctypes.byref(count))
    assert code == 0, f"cuGraphGetEdges_v2 returned {code}"
    return [
        Edge(source or 0, target or 0, info.type == _PROGRAMMATIC)
        for source, target, info in zip(sources, targets, data, strict=True)
    ]


def programmatic(edges: list[Edge]) -> int:
    """How many of them let a kernel start before its predecessor has ended."""
    return sum(edge.programmatic for edge in edges)


def assert_joins_are_whole(edges: list[Edge]) -> None:
    """Nodes that depend on several others depend on all of them as usual."""
    degree = Counter(edge.target for edge in edges)
    bad = [edge for edge in edges if degree[edge.target] > 1 and edge.programmatic]
    assert not bad, f"{len(bad)} programmatic edges lead into a join"
