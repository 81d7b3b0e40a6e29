"""Whether compiled kernels start before the kernel in front of them has ended.

Programmatic dependent launch (PDL, compute capability 9.0): a kernel of the compiled library lets
its successor start once all its thread blocks have asked for their first weights, or later, as its
config says. The successor fetches its first weights, then waits until everything in front of it has
ended, and only then touches anything else. In a chain of layers this hides most of what a launch
and the first fetch cost.

**When it is used.** In eager calls it is off; while the current stream is captured into a CUDA
graph it is on. `dependent_launch` forces either. The library leaves it out by itself where the GPU,
or the code that runs on it, has no such wait; and in a capture where the call does not follow
exactly one kernel: at the start of a graph, behind a memset or a copy, behind a join of streams. A
programmatic edge of a graph leads from a kernel to a kernel. A call that first has to copy factors,
since they are strided, do not start at a multiple of 16 bytes or are cast by autocast, leaves it
out, too.

**What must hold.** The weights are read before the kernel in front has ended, so nothing that may
still run then can have written them:

- In a graph: no kernel of that graph writes the weights (packs, loads or swaps them, or casts them
  in what a compiler makes of autocast). Whatever was written on the stream before a replay has
  ended when its first kernel starts, for that one is never a dependent.
- Forced on in eager calls: synchronise once after weights were packed, loaded or swapped, whatever
  the stream they were written on.

Everything else may be the work of the kernel in front: x, residual, counters. It may also still
read the memory that becomes y or workspace.

**What follows for a chain.** A kernel ends only when its own wait has returned, and every thread
block waits on every path. So when layer i + 1 has ended, layer i has, although layer i + 2 may
have started while layer i still ran: between any two layers of a chain the order is that of a
plain stream, for everything but the weights. A foreign kernel in the middle that is launched as a
dependent has to wait likewise; one that is not orders everything by itself.

Results are the same, bit for bit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_forced: ContextVar[bool | None] = ContextVar("dependent launch", default=None)


@contextmanager
def dependent_launch(wanted: bool | None) -> Iterator[None]:
    """Force dependent launch on or off for calls of this thread; None gives the default back.

    Meant for benchmarks, tests, and graphs that write weights as well as use them. Put it around a
    compiled function rather than into it.
    """
    token = _forced.set(wanted)
    try:
        yield
    finally:
        _forced.reset(token)


def wants_dependent_launch(device: torch.device) -> bool:
    """Whether a kernel on the current stream of a GPU should be launched as a dependent."""
    forced = _forced.get()
    if forced is not None:
        return forced
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()
