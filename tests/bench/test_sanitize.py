"""The sanitizer's program where there is nothing to run: never a success."""

import pytest
import torch
from gpu import sanitize


def test_without_a_gpu_nothing_was_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["sanitize.py"])
    with pytest.raises(SystemExit, match="needs an NVIDIA GPU"):
        sanitize.main()


def test_without_a_backend_nothing_was_clean(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(sanitize, "why_not", lambda backend, device: f"{backend} is not there")
    monkeypatch.setattr("sys.argv", ["sanitize.py", "--part", "1/2"])
    with pytest.raises(SystemExit, match="left out: triton is not there; cuda is not there"):
        sanitize.main()
    assert capsys.readouterr().out == "0 of 0 groups of launches\n"
