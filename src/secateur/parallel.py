"""Several processes that share one calibration, as torchrun starts them: the collective calls.

Each process has its own samples and its own device. Sums over all samples are made by
torch.distributed; what is decided is decided by the first process. One process calls nothing.
"""

import atexit
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from secateur.errors import SecateurError
from secateur.settings import read_settings

Value = TypeVar("Value")


@dataclass(frozen=True)
class Parallel:
    """This process among those that work together. All of them make the same calls in order."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that decides and writes."""
        return self.rank == 0

    def sum_(self, *tensors: Tensor) -> None:
        """Put the sum over all processes into each tensor, bit-identical in all of them."""
        if self.size > 1:
            for tensor in tensors:
                _through(tensor, dist.all_reduce)

    def broadcast_(self, *tensors: Tensor) -> None:
        """Make tensors of any dtype what they are in the first process."""
        if self.size > 1:
            for tensor in tensors:
                # As bytes: gloo does not know every dtype.
                _through(tensor, lambda t: dist.broadcast(t.view(-1).view(torch.uint8), src=0))

    def gather(self, value: Value) -> list[Value]:
        """The small values that all processes give, by rank."""
        if self.size == 1:
            return [value]
        values: list[Value] = [value] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_first(self, work: Callable[[], Value]) -> Value:
        """What `work` gives in the first process, which alone does it; its error in all of them.

        Args:
            work: its result is small and can be pickled.

        Raises:
            SecateurError: the work raised it.
        """
        if self.size == 1:
            return work()
        outcome: list[Value | SecateurError | None] = [None]
        if self.is_first:
            try:
                outcome[0] = work()
            except SecateurError as error:
                outcome[0] = error
        dist.broadcast_object_list(outcome, src=0)
        result = outcome[0]
        if isinstance(result, SecateurError):
            raise result
        return result  # type: ignore[return-value]


def _through(tensor: Tensor, call: Callable[[Tensor], object]) -> None:
    """Collective calls take dense tensors in C order only."""
    tensor = tensor.detach()
    if tensor.is_contiguous():
        call(tensor)
    elif tensor.numel():
        dense = tensor.contiguous()
        call(dense)
        tensor.copy_(dense)


def own_device(device: torch.device) -> torch.device:
    """The device of this process where several run: `cuda` is the GPU of its local rank.

    Raises:
        SecateurError: all are told to take the same GPU, or this machine has fewer GPUs than
            processes.
    """
    settings = read_settings()
    if settings.world_size <= 1 or device.type != "cuda":
        return device
    if device.index not in (None, settings.local_rank):
        raise SecateurError(
            f"expected device cuda without a number, as each process takes its own, got {device}"
        )
    if settings.local_rank >= torch.cuda.device_count():
        raise SecateurError(
            f"expected a GPU for each process of this machine, but process {settings.local_rank} "
            f"finds {torch.cuda.device_count()}; start fewer"
        )
    torch.cuda.set_device(settings.local_rank)
    return torch.device("cuda", settings.local_rank)


def join_processes(device: torch.device) -> tuple[Parallel, torch.device]:
    """Meet the other processes that torchrun started, if there are any.

    Args:
        device: where blocks are to run.

    Returns:
        (this process among them, its `own_device`).

    Raises:
        SecateurError: the processes cannot find each other, or the device cannot be had.
    """
    settings = read_settings()
    if settings.world_size <= 1:
        return Parallel(), device
    device = own_device(device)
    if not dist.is_initialized():
        both = torch.cuda.is_available() and dist.is_nccl_available()
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if both else "gloo")
        except (ValueError, RuntimeError) as error:
            raise SecateurError(
                f"WORLD_SIZE is {settings.world_size}, but the processes do not meet: {error}. "
                "Start them by torchrun, or unset WORLD_SIZE to use one"
            ) from None
        atexit.register(_leave)
    return Parallel(dist.get_rank(), dist.get_world_size()), device


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
