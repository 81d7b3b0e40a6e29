import pytest
import torch

from secateur.report.facts import package_versions


def test_the_version_of_torch_names_its_build(monkeypatch: pytest.MonkeyPatch) -> None:
    # The metadata of PyPI's wheel says 2.15.0.
    monkeypatch.setattr(torch, "__version__", "2.15.0+cu132")
    assert package_versions()["torch"] == "2.15.0+cu132"
