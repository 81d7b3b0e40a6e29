"""Between host and device without waiting: prompts one way, new tokens the other."""

import torch
from torch import Tensor

from secateur.engine.result import ScoredToken
from secateur.engine.scoring import Scores


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host's on the device, where it arrives before what is launched later.

    From ordinary memory the host would wait until all that was launched before is done.
    """
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Readback:
    """Copies of tokens and their scores, started now and waited for later."""

    def __init__(self, tokens: Tensor, scores: Scores | None) -> None:
        """Start to copy; the tensors of B may be overwritten by later work on the same stream."""
        self._tokens = _to_host(tokens)
        self._scores = None if scores is None else Scores(*map(_to_host, scores.tensors()))
        self._event: torch.cuda.Event | None = None
        if tokens.is_cuda:
            self._event = torch.cuda.Event()
            self._event.record()

    def wait(self) -> tuple[list[int], list[ScoredToken] | None]:
        """The values, once they are here."""
        if self._event is not None:
            self._event.synchronize()
        tokens: list[int] = self._tokens.tolist()
        return tokens, None if self._scores is None else self._scores.of_tokens(tokens)


def _to_host(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor.clone()
    # torch keeps pinned memory for the next copy of this size; nothing is allocated a step.
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
