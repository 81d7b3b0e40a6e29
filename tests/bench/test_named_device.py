"""Benchmarks of a GPU where there is none."""

from types import ModuleType

import pytest
import torch
from bench import linears, microbench, packing, timeline, tune
from bench.named_device import named_device


@pytest.mark.parametrize("command", [linears, microbench, packing, timeline, tune], ids=str)
def test_without_a_gpu_it_says_so(command: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="expected an NVIDIA GPU for device cuda, found none"):
        command.main([])


def test_the_gpu_of_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert named_device() == torch.device("cuda", 1)
    assert named_device("cuda:0") == torch.device("cuda", 0)
    assert named_device("cpu") == torch.device("cpu")
