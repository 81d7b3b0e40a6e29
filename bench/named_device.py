"""The device that a benchmark was asked to run on."""

import torch


def named_device(name: str = "cuda") -> torch.device:
    """The device of a name: `cuda` is the current GPU.

    Raises:
        SystemExit: a GPU is named, and there is none.
    """
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"expected an NVIDIA GPU for device {name}, found none")
    current = device == torch.device("cuda")
    return torch.device("cuda", torch.cuda.current_device()) if current else device
