"""Compression with blocks on the device: the model stays where it was, streamed or not."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
from families import tiny_model
from streaming_jobs import recipe_of, samples, save, stream
from transformers import AutoModelForCausalLM

import secateur


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


@pytest.mark.parametrize("activations", ["device", "host", "file"])
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_streamed_through_the_device_as_pruned_there(
    tmp_path: Path, family: str, method: str, activations: str
) -> None:
    """More blocks than are read and written at once, from memory that is used again."""
    folder = save(tiny_model(family, 6), tmp_path / "in")
    recipe, tokens = recipe_of(method=method), samples(16, 32)
    expected = secateur.compress(folder, recipe, calibration=tokens, device="cuda").state_dict()
    stream(
        folder,
        tmp_path / "out",
        recipe=recipe,
        calibration=tokens,
        device="cuda",
        activations=activations,
    )
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value.cpu()), name
