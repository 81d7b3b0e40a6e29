"""Losses of single changes against whole forward passes over models changed by hand."""

import copy
from collections.abc import Callable

import pytest
import torch
from families import tiny_model
from torch import nn

from secateur.calibration.tokens import CalibrationTokens, tokens_from_tensor
from secateur.checkpoint.fingerprint import probe_tokens
from secateur.depth.drop import drop_blocks
from secateur.errors import SecateurError
from secateur.mask.grouped import select_grouped
from secateur.models.blocks import find_blocks
from secateur.models.inventory import take_inventory
from secateur.plan.losses import Asked, Losses, measure_losses, split_tokens
from secateur.progress import SilentProgress
from secateur.stages.drop_plan import block_sublayers
from secateur.stages.factor_importance import Importance

IDS = torch.randint(3, 128, (8, 20), generator=torch.Generator().manual_seed(2))
TOKENS = tokens_from_tensor(IDS)
CPU = torch.device("cpu")
UP = "model.layers.1.mlp.up_proj"


def whole_loss(model: nn.Module) -> float:
    """In float64, over the last half of the samples."""
    wide = copy.deepcopy(model).double()
    ids = IDS[4:]
    with torch.no_grad():
        logits = wide(input_ids=ids, use_cache=False).logits
    chosen = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])
    return float(-chosen.mean())


def measured(
    model: nn.Module, asked: Asked, importance: dict[str, Importance] | None = None
) -> Losses:
    inventory = take_inventory(model)
    return measure_losses(model, inventory, asked, TOKENS, importance, 0.01, CPU, SilentProgress())


def changed(model: nn.Module, change: Callable[[nn.Module], object]) -> nn.Module:
    other = copy.deepcopy(model)
    change(other)
    return other


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return tiny_model("llama", 3)


@pytest.fixture(scope="module")
def losses(model: nn.Module) -> Losses:
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    asked = Asked(
        {UP: (16, 8)}, True, True, block_sublayers(model, find_blocks(model), probe_tokens(model))
    )
    found = measured(model, asked)
    for key, value in model.state_dict().items():
        assert torch.equal(value, saved[key]), key
    assert "forward" not in vars(model.model.layers[1])
    return found


def test_dense_and_removals(model: nn.Module, losses: Losses) -> None:
    assert losses.start == pytest.approx(whole_loss(model), rel=1e-5)
    for index in range(3):
        without = changed(model, lambda m, i=index: drop_blocks(m, find_blocks(m), [i]))
        assert losses.removals[index, "block"] == pytest.approx(whole_loss(without), rel=1e-5)
        silent = changed(
            model, lambda m, i=index: m.model.layers[i].mlp.down_proj.weight.data.zero_()
        )
        assert losses.removals[index, "mlp"] == pytest.approx(whole_loss(silent), rel=1e-5)
        silent = changed(
            model, lambda m, i=index: m.model.layers[i].self_attn.o_proj.weight.data.zero_()
        )
        assert losses.removals[index, "attention"] == pytest.approx(whole_loss(silent), rel=1e-5)


def test_what_factors_leave_out_is_the_least_possible(model: nn.Module, losses: Losses) -> None:
    """The reference solves min ||X W' - X W|| at the rank by float64 SVDs of the outputs."""
    seen: list[torch.Tensor] = []
    layer = model.model.layers[1].mlp.up_proj
    hook = layer.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    with torch.no_grad():
        model(input_ids=IDS[:4], use_cache=False)
    hook.remove()
    x = seen[0].flatten(0, 1).double()
    gram = x.T @ x
    gram += 0.01 * gram.diagonal().mean() * torch.eye(len(gram))
    weight = layer.weight.detach().double()
    root = torch.linalg.cholesky(gram)
    left = torch.linalg.svd(weight @ root).U
    for rank in (16, 8):
        error = weight - left[:, :rank] @ left[:, :rank].T @ weight
        share = (error @ gram @ error.T).trace() / (weight @ gram @ weight.T).trace()
        assert losses.left_out[UP, f"rank {rank}"] == pytest.approx(float(share), rel=1e-4)
    # Two of four by magnitude alone lose more than with the rest of the weights put right.
    pruned = torch.where(select_grouped(weight.abs(), 2, 4), weight, 0.0)
    error = weight - pruned
    share = (error @ gram @ error.T).trace() / (weight @ gram @ weight.T).trace()
    assert 0.0 < losses.left_out[UP, "2:4"] < float(share)
    assert set(losses.left_out) == {(UP, form) for form in ("rank 16", "rank 8", "2:4")}


def up_inputs(model: nn.Module) -> torch.Tensor:
    """What enters the matrix on the samples that forms are fitted to, float64 [tokens, K]."""
    seen: list[torch.Tensor] = []
    layer = model.get_submodule(UP)
    hook = layer.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    with torch.no_grad():
        model(input_ids=IDS[:4], use_cache=False)
    hook.remove()
    return seen[0].flatten(0, 1).double()


def test_weighed_directions_estimate_what_the_loss_moves_by(model: nn.Module) -> None:
    weight = model.get_submodule(UP).weight.detach().double()  # type: ignore[operator, union-attr]
    gradients = torch.randn(40, len(weight), generator=torch.Generator().manual_seed(5)).double()
    gradients *= torch.logspace(-1, 1, len(weight))
    moment = gradients.T @ gradients / 40
    found = measured(
        model, Asked({UP: (16, 8)}, True, False), {UP: Importance(3.0, moment.float())}
    )
    x = up_inputs(model)
    hessian = x.T @ x / len(x)
    for matrix in (hessian, moment):
        matrix += 0.01 * matrix.diagonal().mean() * torch.eye(len(matrix))
    left, right = torch.linalg.cholesky(moment), torch.linalg.cholesky(hessian)
    energy = torch.linalg.svdvals(left.T @ weight @ right).square()
    assert found.worth[UP] == pytest.approx(float(energy.sum()), rel=1e-4)
    for rank in (16, 8):
        share = float(energy[rank:].sum() / energy.sum())
        assert found.left_out[UP, f"rank {rank}"] == pytest.approx(share, rel=1e-4)
    pruned = torch.where(select_grouped(weight.abs(), 2, 4), 0.0, weight)
    lost = float((left.T @ pruned @ right).square().sum() / energy.sum())
    assert 0.0 < found.left_out[UP, "2:4"] < 2 * lost
    whole = measured(model, Asked({UP: (8,)}, False, False), {UP: Importance(3.0)})
    assert whole.worth[UP] == 3.0
    alike = measured(model, Asked({UP: (8,)}, False, False))
    assert alike.worth[UP] == 1.0
    assert alike.left_out == whole.left_out


def test_what_falls_by_chance_is_no_gain() -> None:
    losses = Losses(2.0)
    assert losses.rise(1.5) == 0.0
    assert losses.rise(2.5) == 0.5


def test_the_last_half_is_measured_on() -> None:
    fitted, kept = split_tokens(TOKENS)
    assert (len(fitted.samples), len(kept.samples)) == (4, 4)
    assert torch.equal(kept.samples[0], IDS[4])
    fitted, kept = split_tokens(tokens_from_tensor(IDS[:2]))
    assert (len(fitted.samples), len(kept.samples)) == (1, 1)
    with pytest.raises(SecateurError, match="at least 2 calibration samples to plan by, got 1"):
        split_tokens(CalibrationTokens(TOKENS.samples[:1], "text"))


def drawn(*starts: int) -> CalibrationTokens:
    """Samples of 20 tokens that lie at these places of one text."""
    spans = tuple((start, start + 20) for start in starts)
    return CalibrationTokens(TOKENS.samples[: len(starts)], "text", spans)


def test_nothing_is_fitted_to_a_token_that_is_measured_on() -> None:
    fitted, kept = split_tokens(drawn(0, 20, 40, 60))
    assert (fitted.spans, kept.spans) == (((0, 20), (20, 40)), ((40, 60), (60, 80)))
    # Now the halves as drawn overlap, so the text is cut in two; the sample at 25 is on both sides.
    fitted, kept = split_tokens(drawn(40, 0, 25, 41, 20, 100))
    assert fitted.spans == ((0, 20), (20, 40))
    assert kept.spans == ((40, 60), (41, 61), (100, 120))
    assert torch.equal(fitted.samples[0], IDS[1])
    assert torch.equal(kept.samples[2], IDS[5])


def test_samples_that_all_share_tokens_cannot_be_split() -> None:
    with pytest.raises(SecateurError, match="share no token with those to measure on, but all"):
        split_tokens(drawn(0, 5, 9))
