"""`secateur compress` with blocks on the device makes the masks that the CPU makes."""

import pytest
import torch

families = pytest.importorskip("families")
secateur = pytest.importorskip("secateur")


def compressed(stage: dict[str, object], device: str) -> dict[str, torch.Tensor]:
    model = families.tiny_model("llama", seed=0).to(torch.bfloat16)
    tokens = torch.randint(0, 128, (16, 32), generator=torch.Generator().manual_seed(1))
    recipe = {"stages": [{"stage": "prune", **stage}]}
    return dict(
        secateur.compress(model, recipe, calibration=tokens, device=device).named_parameters()
    )


@pytest.mark.parametrize(
    "pattern",
    [
        {"pattern": "2:4"},
        {"pattern": "4:8"},
        {"pattern": "unstructured", "sparsity": 0.5},
        {"pattern": "unstructured", "sparsity": 0.6},
    ],
    ids=lambda pattern: "-".join(map(str, pattern.values())),
)
def test_magnitude_masks_are_those_of_the_cpu(pattern: dict[str, object]) -> None:
    # |W| is exact, so that there is nothing to round differently; weights in bf16 tie often.
    on_device = compressed({"method": "magnitude", **pattern}, "cuda")
    on_cpu = compressed({"method": "magnitude", **pattern}, "cpu")
    for name, weight in on_device.items():
        assert torch.equal(weight, on_cpu[name]), name


@pytest.mark.parametrize("pattern", ["2:4", "unstructured"])
def test_wanda_masks_differ_at_near_ties_only(pattern: str) -> None:
    stage: dict[str, object] = {"method": "wanda", "pattern": pattern}
    if pattern == "unstructured":
        stage["sparsity"] = 0.5
    on_device, on_cpu = compressed(stage, "cuda"), compressed(stage, "cpu")
    for name, weight in on_device.items():
        same = ((weight == 0) == (on_cpu[name] == 0)).float().mean()
        assert same > 0.98, name
        assert int((weight == 0).sum()) == int((on_cpu[name] == 0).sum()), name
