"""How much memory of a GPU one model takes while others lie beside it."""

from dataclasses import dataclass, field

import torch


@dataclass
class PeakMemory:
    """Watches one turn of a model whose own resident bytes are known."""

    device: torch.device
    own_bytes: int
    """Of its weights and caches, allocated before the watch began."""
    _before: int = field(default=0, init=False)

    def begin(self) -> None:
        """Forget earlier peaks."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)

    def end(self) -> int | None:
        """Most bytes since `begin`, what others hold taken off; None on a CPU."""
        if self.device.type != "cuda":
            return None
        peak = torch.cuda.max_memory_allocated(self.device)
        return peak - self._before + self.own_bytes
