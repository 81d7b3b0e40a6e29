"""Every kind of stage with blocks on the device: what the CPU makes, but for rounding."""

from typing import Any

import pytest
import torch

families = pytest.importorskip("families")
secateur = pytest.importorskip("secateur")

PRUNE: dict[str, dict[str, Any]] = {
    "wanda": {"method": "wanda"},
    "ria": {"method": "ria"},
    "gblm": {"method": "gblm"},
    "rgs": {"method": "rgs"},
    "wanda++": {"method": "wanda++"},
    "sparsegpt": {"method": "sparsegpt"},
    "admm": {"method": "admm"},
    "best-2:4": {"method": "best-2:4"},
}
SVD_WHITENED = {"stage": "factor", "method": "svd-whitened", "rank": 8}
FACTOR: dict[str, dict[str, Any]] = {
    "svd": {"method": "svd", "rank": 8},
    "svd-whitened": SVD_WHITENED,
    "at once": {"method": "svd-whitened", "rank": 8, "in_turn": False},
    "joint": {"method": "svd-whitened", "rank": 8, "joint": True},
    "budget": {"method": "svd-whitened", "budget": 0.15},
}


def outputs(
    stage: dict[str, Any], device: str, family: str = "llama", dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Logits after one stage, computed on the CPU."""
    model = families.tiny_model(family, seed=0).to(dtype)
    tokens = torch.randint(0, 90, (16, 32), generator=torch.Generator().manual_seed(1))
    model = secateur.compress(model, {"stages": [stage]}, calibration=tokens, device=device)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    with torch.no_grad():
        return model(tokens[:4]).logits.double()


def assert_alike(stage: dict[str, Any], share: float, **model: Any) -> None:
    """Outputs differ by less than that share of their size."""
    on_device, on_cpu = outputs(stage, "cuda", **model), outputs(stage, "cpu", **model)
    # Rounding alone moves them by 1e-6 to 1e-5; a score near another that falls the other way, by
    # some hundredths.
    assert float((on_device - on_cpu).norm() / on_cpu.norm()) < share


@pytest.mark.parametrize("stage", PRUNE.values(), ids=PRUNE)
def test_prune(stage: dict[str, Any]) -> None:
    assert_alike({"stage": "prune", "pattern": "2:4", **stage}, 0.05)


@pytest.mark.parametrize("stage", FACTOR.values(), ids=FACTOR)
def test_factor(stage: dict[str, Any]) -> None:
    assert_alike({"stage": "factor", **stage}, 1e-3)


@pytest.mark.parametrize("stage", [{"method": "wanda"}, {"method": "rgs"}], ids=str)
def test_prune_a_model_in_float64(stage: dict[str, Any]) -> None:
    assert_alike({"stage": "prune", "pattern": "2:4", **stage}, 1e-6, dtype=torch.float64)


def test_factor_a_model_in_float64() -> None:
    assert_alike(SVD_WHITENED, 1e-6, dtype=torch.float64)


@pytest.mark.parametrize("family", ["gpt2", "falcon", "gemma3"])
def test_other_families(family: str) -> None:
    # In float64, where nothing is near enough to another to fall the other way.
    for stage in ({"stage": "prune", "method": "wanda", "pattern": "2:4"}, SVD_WHITENED):
        assert_alike(stage, 1e-6, family=family, dtype=torch.float64)


def test_experts() -> None:
    assert_alike({"stage": "prune", "method": "wanda", "pattern": "2:4"}, 0.05, family="mixtral")


def test_drop() -> None:
    assert_alike({"stage": "drop_blocks", "count": 1}, 1e-4)
