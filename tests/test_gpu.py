"""What needs an NVIDIA GPU: compression with blocks on the device, the model on the CPU."""

import pytest
import torch
from families import tiny_model

import secateur

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def compressed(method: str, device: str) -> torch.nn.Module:
    model = tiny_model("llama", seed=0)
    tokens = torch.randint(0, 128, (16, 32), generator=torch.Generator().manual_seed(1))
    recipe = {"stages": [{"stage": "prune", "method": method, "pattern": "2:4"}]}
    return secateur.compress(model, recipe, calibration=tokens, device=device)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_blocks_run_on_the_device_and_the_model_comes_back(method: str) -> None:
    model = compressed(method, "cuda")
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    reference = dict(compressed(method, "cpu").named_parameters())
    for name, parameter in model.named_parameters():
        same_zeros = ((parameter == 0) == (reference[name] == 0)).float().mean()
        # Scores differ by rounding, so that near-ties may fall the other way.
        assert same_zeros > 0.98, name


def test_a_model_on_the_device_stays_there() -> None:
    model = tiny_model("llama", seed=0).cuda()
    tokens = torch.randint(0, 128, (16, 32), generator=torch.Generator().manual_seed(1))
    recipe = {"stages": [{"stage": "prune", "method": "sparsegpt", "pattern": "2:4"}]}
    assert secateur.compress(model, recipe, calibration=tokens) is model
    assert {parameter.device.type for parameter in model.parameters()} == {"cuda"}
