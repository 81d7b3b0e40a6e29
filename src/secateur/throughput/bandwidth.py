"""How fast this machine reads memory, and how fast a model could at best be read."""

from statistics import median
from time import perf_counter

import torch
from torch import nn

_GPU_BYTES = 1 << 30
_CPU_BYTES = 1 << 27


def copy_bandwidth(device: torch.device, rounds: int = 15, num_bytes: int | None = None) -> float:
    """Bytes a second that a large copy moves, its reads and its writes counted.

    The median of `rounds` copies after one that is not timed. Larger than any cache by default:
    128 MiB on a CPU, 1 GiB on a GPU.

    Args:
        device: whose memory is copied within itself.
        rounds: timed copies.
        num_bytes: to copy.
    """
    size = num_bytes or (_GPU_BYTES if device.type == "cuda" else _CPU_BYTES)
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    target = torch.zeros_like(source)
    times = [_copy_time(source, target) for _ in range(rounds + 1)]
    return 2 * source.numel() * source.element_size() / median(times[1:])


def _copy_time(source: torch.Tensor, target: torch.Tensor) -> float:
    if source.device.type != "cuda":
        started = perf_counter()
        target.copy_(source)
        return perf_counter() - started
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    target.copy_(source)
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def streamed_bytes(model: nn.Module) -> int:
    """Bytes of weights that one decode step must read, whatever the batch.

    All of the state dict, tied weights once, but for input embeddings that nothing else uses: of
    these a step reads a few rows. Experts count whole, as a large batch reads them all.
    """
    tensors = model.state_dict(keep_vars=True)
    embedding = getattr(model, "get_input_embeddings", lambda: None)()
    looked_up = id(getattr(embedding, "weight", None))
    uses = sum(id(tensor) == looked_up for tensor in tensors.values())
    distinct = {id(tensor): tensor for tensor in tensors.values()}
    if uses == 1:
        del distinct[looked_up]
    return sum(tensor.numel() * tensor.element_size() for tensor in distinct.values())
