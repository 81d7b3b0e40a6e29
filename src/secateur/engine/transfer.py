"""Between host and device without waiting: prompts one way, new tokens the other."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host's on the device, where it arrives before what is launched later.

    From ordinary memory the host would wait until all that was launched before is done.
    """
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Readback:
    """Copies of tokens and log-probabilities, started now and waited for later."""

    def __init__(self, tokens: Tensor, logprobs: Tensor | None) -> None:
        """Start to copy; the tensors [B] may be overwritten by later work on the same stream."""
        self._tokens = _to_host(tokens)
        self._logprobs = None if logprobs is None else _to_host(logprobs)
        self._event: torch.cuda.Event | None = None
        if tokens.is_cuda:
            self._event = torch.cuda.Event()
            self._event.record()

    def wait(self) -> tuple[list[int], list[float] | None]:
        """The values, once they are here."""
        if self._event is not None:
            self._event.synchronize()
        logprobs = None if self._logprobs is None else self._logprobs.tolist()
        return self._tokens.tolist(), logprobs


def _to_host(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor.clone()
    # torch keeps pinned memory for the next copy of this size; nothing is allocated a step.
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
