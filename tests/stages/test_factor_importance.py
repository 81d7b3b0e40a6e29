"""Sums of gradients that are too large for a GPU all at once."""

import pytest
import torch
from families import tiny_model
from torch import Tensor, nn

from secateur import compress
from secateur.calibration.tokens import CalibrationTokens
from secateur.models.inventory import take_inventory
from secateur.stages import factor_importance
from secateur.stages.factor_importance import measure_importance

TOKENS = torch.randint(3, 128, (3, 16), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("largest_together", "passes"), [(4, 2), (1, 7), (0, 14)])
def test_parts_of_the_sums_give_what_all_together_give(
    largest_together: int, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokens = tiny_model("llama"), CalibrationTokens(tuple(TOKENS), "test")
    sites = take_inventory(model).all_sites
    backward, calls = factor_importance._backward, []

    def counted(of: nn.Module, sample: Tensor) -> None:
        calls.append(sample)
        backward(of, sample)

    monkeypatch.setattr(factor_importance, "_backward", counted)
    room = largest_together * max(4 * site.shape[0] ** 2 for site in sites)
    monkeypatch.setattr(factor_importance, "_MOST_BYTES_ON_GPU", room)
    together = measure_importance(model, sites, tokens, with_directions=True)
    # In host memory nothing is gained by parts.
    assert len(calls) == len(TOKENS)
    calls.clear()
    monkeypatch.setattr(factor_importance, "_is_on_host", lambda _: False)
    in_parts = measure_importance(model, sites, tokens, with_directions=True)
    assert len(calls) == passes * len(TOKENS)
    assert together is not None
    assert in_parts is not None
    assert list(in_parts) == [site.name for site in sites]
    for name, found in in_parts.items():
        assert found.whole == together[name].whole
        assert found.gradients is not None
        expected = together[name].gradients
        assert expected is not None
        assert torch.equal(found.gradients, expected)
    calls.clear()
    # Without directions there is nothing that would have to fit.
    measure_importance(model, sites, tokens)
    assert len(calls) == len(TOKENS)


def test_no_more_samples_are_run_than_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = tiny_model("llama"), CalibrationTokens(tuple(TOKENS), "test")
    sites = take_inventory(model).all_sites
    calls: list[Tensor] = []
    backward = factor_importance._backward

    def counted(of: nn.Module, sample: Tensor) -> None:
        calls.append(sample)
        backward(of, sample)

    monkeypatch.setattr(factor_importance, "_backward", counted)
    measure_importance(model, sites, tokens, most_samples=2)
    assert torch.equal(torch.stack(calls), TOKENS[:2])
    calls.clear()
    stage = {"stage": "factor", "rank": 8, "importance": "directions", "importance_samples": 1}
    compress(model, {"stages": [stage]}, calibration=TOKENS)
    assert torch.equal(torch.stack(calls), TOKENS[:1])
