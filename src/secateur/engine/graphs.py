"""Launches of a step as a CUDA graph, so that the host repeats them by one call."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from secateur.errors import SecateurError

Launch = Callable[[], None]
"""Starts work on the device and returns; tensors that it reads and writes stay where they are."""

_WARM_UPS = 3


@dataclass(frozen=True, eq=False)
class _Replay:
    graph: torch.cuda.CUDAGraph
    step: Launch
    """Kept: a graph knows addresses, and what lies there belongs to the step's own tensors."""

    def __call__(self) -> None:
        self.graph.replay()


class GraphCapture:
    """Captures steps one by one; their graphs share memory, so no two may run at the same time."""

    def __init__(self, device: torch.device) -> None:
        """For steps on one GPU, which is to be the current device in every call."""
        self._pool = torch.cuda.graph_pool_handle()
        # One for all: libraries keep memory of their own for every stream that they see.
        self._stream = torch.cuda.Stream(device)

    def __call__(self, step: Launch) -> Launch:
        """Run a step a few times, so that libraries set themselves up, and capture it.

        Raises:
            SecateurError: it cannot be captured; says why.
        """
        self._warm_up(step)
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads of a server may use the GPU meanwhile.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                step()
        except RuntimeError as error:
            first_line = str(error).strip().partition("\n")[0]
            raise SecateurError(
                "a decode step cannot be captured in a CUDA graph; with cuda_graphs=False it runs "
                f"without: {first_line}"
            ) from error
        return _Replay(graph, step)

    def _warm_up(self, step: Launch) -> None:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                step()
        torch.cuda.current_stream().wait_stream(self._stream)
