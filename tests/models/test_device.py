"""Where models are."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import tiny_model

from secateur import SecateurError, compress


def test_a_model_on_several_devices_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    recipe = {"stages": [{"stage": "prune", "method": "magnitude", "pattern": "2:4"}]}

    def spread(*_: Any, **__: Any) -> Iterator[Any]:
        for device in ("meta", "cuda:0", "cuda:1", "cuda:1"):
            yield SimpleNamespace(device=torch.device(device), is_meta=device == "meta")

    monkeypatch.setattr(type(model), "parameters", spread)
    with pytest.raises(SecateurError, match="on one device, got its weights on cuda:0, cuda:1:"):
        compress(model, recipe)
